/** pluginregistration v1 (kubelet's pkg/apis/pluginregistration): what a plugin says of itself, and what it is told. */
import { describe, isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Channel } from './channel.ts';

/** Held against the published api.proto by test/agent/plugins/messages.test.ts. */
export const registration = {
  name: 'pluginregistration.Registration',
  schema: {
    name: 'pluginregistration',
    messages: {
      PluginInfo: {
        type: [1, 'string'],
        name: [2, 'string'],
        endpoint: [3, 'string'],
        supportedVersions: [4, 'string[]'],
      },
      RegistrationStatus: { pluginRegistered: [1, 'bool'], error: [2, 'string'] },
      RegistrationStatusResponse: {},
      InfoRequest: {},
    },
    enums: {},
  },
  methods: {
    GetInfo: ['InfoRequest', 'PluginInfo'],
    NotifyRegistrationStatus: ['RegistrationStatus', 'RegistrationStatusResponse'],
  },
} as const;

export interface Plugin {
  readonly name: string;
  /** Absolute path of the socket with its service. */
  readonly endpoint: string;
  readonly versions: readonly string[];
  /** The socket that it registered with. */
  readonly socket: string;
}

/** What is done with the plugins of one type. */
export interface PluginHandler {
  /** Throws why the plugin is not taken. */
  readonly validate: (plugin: Plugin) => void | Promise<void>;
  /** From here on it is used. Throws why it cannot be; then `deregister` is not called. */
  readonly register: (plugin: Plugin, signal: AbortSignal) => Promise<void>;
  readonly deregister: (plugin: Plugin) => Promise<void>;
}

export interface Registered {
  readonly plugin: Plugin;
  readonly handler: PluginHandler;
}

/** kubelet's: a plugin that does not say at once who it is, is asked again later. */
const infoMs = 1000;
const notifyMs = 5000;

/** Speaks with the plugin behind `socket` until it is registered. Throws why it is not; it was told then, where it listens. */
export async function register(
  socket: string,
  handlers: Readonly<Record<string, PluginHandler>>,
  signal: AbortSignal,
): Promise<Registered> {
  const { openChannel } = await import('./channel.ts');
  const channel = openChannel(socket, registration);
  try {
    return await introduce(channel, socket, handlers, signal);
  } finally {
    channel.close();
  }
}

async function introduce(
  channel: Channel<typeof registration>,
  socket: string,
  handlers: Readonly<Record<string, PluginHandler>>,
  signal: AbortSignal,
): Promise<Registered> {
  const { type, name, endpoint, supportedVersions } = await channel.call(
    'GetInfo',
    {},
    { deadlineMs: infoMs, signal },
  );
  const plugin = { name, endpoint: endpoint || socket, versions: supportedVersions, socket };
  const notify = (error: string) =>
    channel.call(
      'NotifyRegistrationStatus',
      { pluginRegistered: error === '', error },
      { deadlineMs: notifyMs, signal },
    );
  const refuse = async (why: string): Promise<never> => {
    const message = `RegisterPlugin error -- ${why}`;
    await notify(message).catch((error: unknown) => {
      throw new KeelsonError('UNAVAILABLE', `${message}; the plugin could not be told: ${describe(error)}`);
    });
    throw new KeelsonError('FAILED_PRECONDITION', message);
  };
  const handler = Object.hasOwn(handlers, type) ? handlers[type] : undefined;
  if (handler === undefined)
    return refuse(`no handler registered for plugin type: ${type} at socket ${socket}`);
  try {
    await handler.validate(plugin);
  } catch (error) {
    return refuse(`plugin validation failed with err: ${describe(error)}`);
  }
  try {
    await handler.register(plugin, signal);
  } catch (error) {
    if (signal.aborted || isError(error, 'ABORTED')) throw error;
    return refuse(`plugin registration failed with err: ${describe(error)}`);
  }
  try {
    await notify('');
  } catch (error) {
    await handler.deregister(plugin);
    throw error;
  }
  return { plugin, handler };
}
