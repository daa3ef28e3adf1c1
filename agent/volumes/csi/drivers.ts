/** The CSI drivers that are registered with the node: one connection for each, and what it can do. */
import { isError, KeelsonError } from '../../../runtime/host/errors.ts';
import type { Answer, Channel, Request } from '../../plugins/channel.ts';
import type { Plugin, PluginHandler } from '../../plugins/registration.ts';
import { type csiNodeService, type NodeCapability, csiNodeService as service } from './messages.ts';

/** kubelet's csiTimeout: what takes longer is asked for again. */
const callMs = 120_000;

type Methods = keyof (typeof csiNodeService)['methods'];

export interface CsiDriver {
  readonly name: string;
  /** Throws what agent/plugins/channel.ts throws. */
  call<Name extends Methods>(
    method: Name,
    request: Request<typeof csiNodeService, Name>,
    signal?: AbortSignal,
  ): Promise<Answer<typeof csiNodeService, Name>>;
  /** What the driver's node service can do: asked once for each registration. */
  can(signal?: AbortSignal): Promise<(capability: NodeCapability) => boolean>;
}

/** What a driver says of the node. */
export interface NodeInfo {
  readonly nodeId: string;
  /** 0: as many as there are. */
  readonly maxVolumes: bigint;
  readonly topology: Readonly<Record<string, string>>;
}

/** Tells the cluster which drivers the node has. */
export interface Announcer {
  install(driver: string, info: NodeInfo, signal: AbortSignal): Promise<void>;
  uninstall(driver: string): Promise<void>;
}

export interface CsiDrivers {
  readonly handler: PluginHandler;
  /** Throws VOLUME_FAILED while none of that name is registered. */
  get(name: string): CsiDriver;
  close(): void;
}

interface Known {
  readonly plugin: Plugin;
  readonly version: readonly [number, number];
  readonly channel: Channel<typeof csiNodeService>;
  readonly driver: CsiDriver;
}

/** The highest of the versions 1.x, as [major, minor]; undefined where there is none. Pure. */
export function highestVersion(versions: readonly string[]): readonly [number, number] | undefined {
  const minors = versions.flatMap((version) => {
    const [, minor] = /^v?1\.(\d{1,9})(?:\.\d+)*$/.exec(version.trim()) ?? [];
    return minor === undefined ? [] : [Number(minor)];
  });
  return minors.length === 0 ? undefined : [1, Math.max(...minors)];
}

export function makeCsiDrivers(announcer: Announcer | undefined): CsiDrivers {
  const known = new Map<string, Known>();

  const check = ({ name, versions }: Plugin): readonly [number, number] => {
    const fail = (why: string) =>
      new KeelsonError('INVALID_ARGUMENT', `kubernetes.io/csi: for CSI driver "${name}": ${why}`);
    // Names become parts of paths.
    if (!/^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$/.test(name)) {
      throw fail('the name is not one of a CSI driver');
    }
    if (versions.length === 0) throw fail('Plugin returned an empty list for supported versions');
    const version = highestVersion(versions);
    if (version === undefined)
      throw fail(`None of the versions specified ${JSON.stringify(versions)} are supported`);
    const other = known.get(name);
    if (other !== undefined && other.version[1] >= version[1]) {
      throw fail(
        `Another driver with the same name is already registered with a higher supported version: "${other.version.join('.')}"`,
      );
    }
    return version;
  };

  const forget = (one: Known) => {
    if (known.get(one.plugin.name) === one) known.delete(one.plugin.name);
    one.channel.close();
  };

  const handler: PluginHandler = {
    validate: (plugin) => void check(plugin),
    async register(plugin, signal) {
      const version = check(plugin);
      const { openChannel } = await import('../../plugins/channel.ts');
      const channel = openChannel(plugin.endpoint.replace(/^unix:(\/\/)?/, ''), service);
      const one: Known = { plugin, version, channel, driver: driverOver(plugin.name, channel) };
      try {
        const { nodeId, maxVolumesPerNode, accessibleTopology } = await one.driver.call(
          'NodeGetInfo',
          {},
          signal,
        );
        if (nodeId === '')
          throw new KeelsonError(
            'INVALID_ARGUMENT',
            'error adding CSI driver node info: driverNodeID must not be empty',
          );
        const before = known.get(plugin.name);
        known.set(plugin.name, one);
        before?.channel.close();
        const topology = accessibleTopology?.segments ?? {};
        await announcer?.install(plugin.name, { nodeId, maxVolumes: maxVolumesPerNode, topology }, signal);
      } catch (error) {
        forget(one);
        throw error;
      }
    },
    async deregister(plugin) {
      const one = known.get(plugin.name);
      // Another one, of a higher version, has come meanwhile.
      if (one === undefined || one.plugin.socket !== plugin.socket) return;
      forget(one);
      await announcer?.uninstall(plugin.name);
    },
  };

  return {
    handler,
    get(name) {
      const one = known.get(name);
      if (one !== undefined) return one.driver;
      throw new KeelsonError(
        'VOLUME_FAILED',
        `driver name ${name} not found in the list of registered CSI drivers`,
        { hint: 'is the driver running on this node, with its node-driver-registrar?' },
      );
    },
    close() {
      for (const one of known.values()) one.channel.close();
      known.clear();
    },
  };
}

function driverOver(name: string, channel: Channel<typeof csiNodeService>): CsiDriver {
  let capabilities: ReadonlySet<unknown> | undefined;
  const call: CsiDriver['call'] = (method, request, signal) =>
    channel.call(method, request, { deadlineMs: callMs, signal });
  return {
    name,
    call,
    async can(signal) {
      if (capabilities === undefined) {
        const answer = await call('NodeGetCapabilities', {}, signal).catch((error: unknown) => {
          // A driver without the call can do nothing that has to be asked for.
          if (isError(error, 'UNIMPLEMENTED')) return { capabilities: [] };
          throw error;
        });
        capabilities = new Set(answer.capabilities.map(({ rpc }) => rpc?.type));
      }
      const found = capabilities;
      return (capability) => found.has(capability);
    },
  };
}
