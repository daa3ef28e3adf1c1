/** Running a network's plugins one after the other (CNI specification, section 3), as libcni does it. */
import { abortError, KeelsonError } from '../runtime/host/errors.ts';
import type { Network, PluginConfig } from './config.ts';
import type { CniCommand, PluginRunner } from './plugin.ts';
import { type CniResult, ResultProblem, readResult, writeResult } from './result.ts';
import { atLeast, type CniVersion } from './version.ts';

/** A network, and the version of the specification that all of its plugins are spoken to in. */
export interface SettledNetwork {
  readonly network: Network;
  readonly version: CniVersion;
}

/** Which interface of which container, and what its plugins are told. */
export interface Target {
  readonly containerId: string;
  readonly ifName: string;
  /** Path; absent where the namespace is gone. */
  readonly netns?: string;
  readonly cniArgs: readonly (readonly [string, string])[];
  readonly capabilityArgs: Readonly<Record<string, unknown>>;
}

/**
 * The configuration for one invocation (specification, section 4, "Deriving execution configuration"): the plugin's
 * object with name, version, previous result, and those capability arguments that it declares. Pure.
 */
export function executionConfig(
  { network, version }: SettledNetwork,
  plugin: PluginConfig,
  more: {
    readonly previous?: CniResult;
    readonly capabilityArgs?: Readonly<Record<string, unknown>>;
    readonly extra?: Readonly<Record<string, unknown>>;
  } = {},
): string {
  const { capabilityArgs = {} } = more;
  const wanted = plugin.capabilities.filter((name) => Object.hasOwn(capabilityArgs, name));
  const runtimeConfig = Object.fromEntries(wanted.map((name) => [name, capabilityArgs[name]]));
  return JSON.stringify({
    ...plugin.raw,
    ...more.extra,
    name: network.name,
    cniVersion: version,
    prevResult: more.previous === undefined ? plugin.raw['prevResult'] : writeResult(more.previous, version),
    runtimeConfig: wanted.length === 0 ? plugin.raw['runtimeConfig'] : runtimeConfig,
  });
}

/**
 * The CNI project's portmap hands the result on as it is, and takes nothing back, where no ports are mapped, as for most
 * pods: it need not be started for that. Pure.
 */
function mapsNothing({ type, raw }: PluginConfig, { capabilityArgs }: Target): boolean {
  const ports = capabilityArgs['portMappings'];
  const none = ports === undefined || (Array.isArray(ports) && ports.length === 0);
  return type === 'portmap' && none && raw['runtimeConfig'] === undefined;
}

export interface Chain {
  /** ADD of all plugins in order. `onProgress` gets the result so far: what a clean-up after a failure may use. */
  add(
    settled: SettledNetwork,
    target: Target,
    onProgress: (result: CniResult) => void,
    signal?: AbortSignal,
  ): Promise<CniResult>;
  /** DEL of all plugins, last first; stops at the first error, so that it can be repeated. */
  del(settled: SettledNetwork, target: Target, previous?: CniResult, signal?: AbortSignal): Promise<void>;
  /** DEL of all plugins, last first, whatever the others say: errors are returned. */
  cleanUp(settled: SettledNetwork, target: Target, previous?: CniResult): Promise<unknown[]>;
  /** CHECK of all plugins in order. */
  check(settled: SettledNetwork, target: Target, previous: CniResult, signal?: AbortSignal): Promise<void>;
  /** STATUS of all plugins in order, `deadlineMs` for each. */
  status(settled: SettledNetwork, deadlineMs: number, signal?: AbortSignal): Promise<void>;
  /** GC of all plugins, whatever the others say: errors are returned. */
  gc(
    settled: SettledNetwork,
    valid: readonly { readonly containerId: string; readonly ifName: string }[],
    signal?: AbortSignal,
  ): Promise<unknown[]>;
}

export function makeChain(runner: PluginRunner): Chain {
  const invoke = (
    command: CniCommand,
    settled: SettledNetwork,
    plugin: PluginConfig,
    target: Target,
    previous?: CniResult,
    signal?: AbortSignal,
  ): Promise<string> =>
    runner.run({
      command,
      network: settled.network.name,
      type: plugin.type,
      input: executionConfig(settled, plugin, { previous, capabilityArgs: target.capabilityArgs }),
      containerId: target.containerId,
      netns: target.netns,
      ifName: target.ifName,
      args: target.cniArgs,
      signal,
    });

  const backwards = (settled: SettledNetwork) => settled.network.plugins.toReversed();
  /** DEL gets the result since 0.4.0. */
  const forDel = ({ version }: SettledNetwork, previous?: CniResult) =>
    atLeast(version, '0.4.0') ? previous : undefined;

  return {
    async add(settled, target, onProgress, signal) {
      let previous: CniResult | undefined;
      for (const plugin of settled.network.plugins) {
        if (previous !== undefined && mapsNothing(plugin, target)) continue;
        const said = await invoke('ADD', settled, plugin, target, previous, signal);
        previous = parseAnswer(said, settled, plugin);
        onProgress(previous);
        // The plugin may have gone on to its end after an abort.
        if (signal?.aborted) throw abortError(signal, `attaching container ${target.containerId}`);
      }
      return previous!;
    },
    async del(settled, target, previous, signal) {
      for (const plugin of backwards(settled)) {
        if (mapsNothing(plugin, target)) continue;
        await invoke('DEL', settled, plugin, target, forDel(settled, previous), signal);
      }
    },
    async cleanUp(settled, target, previous) {
      const errors: unknown[] = [];
      for (const plugin of backwards(settled)) {
        await invoke('DEL', settled, plugin, target, forDel(settled, previous)).catch((error) =>
          errors.push(error),
        );
      }
      return errors;
    },
    async check(settled, target, previous, signal) {
      for (const plugin of settled.network.plugins) {
        await invoke('CHECK', settled, plugin, target, previous, signal);
      }
    },
    async status(settled, deadlineMs, signal) {
      for (const plugin of settled.network.plugins) {
        await runner.run({
          command: 'STATUS',
          network: settled.network.name,
          type: plugin.type,
          input: executionConfig(settled, plugin),
          deadlineMs,
          signal,
        });
      }
    },
    async gc(settled, valid, signal) {
      const attachments = valid.map(({ containerId, ifName }) => ({
        containerID: containerId,
        ifname: ifName,
      }));
      const errors: unknown[] = [];
      for (const plugin of settled.network.plugins) {
        const input = executionConfig(settled, plugin, {
          // The specification first had the second name, and plugins were written by it.
          extra: { 'cni.dev/valid-attachments': attachments, 'cni.dev/attachments': attachments },
        });
        await runner
          .run({ command: 'GC', network: settled.network.name, type: plugin.type, input, signal })
          .catch((error) => errors.push(error));
      }
      return errors;
    },
  };
}

/** Throws CNI_PLUGIN_FAILED for what is no result. */
function parseAnswer(text: string, { network, version }: SettledNetwork, plugin: PluginConfig): CniResult {
  try {
    return readResult(JSON.parse(text), version);
  } catch (error) {
    const why =
      error instanceof ResultProblem
        ? error.message
        : text.trim() === ''
          ? 'it wrote nothing'
          : `it wrote no JSON: ${text.slice(0, 200)}`;
    throw new KeelsonError(
      'CNI_PLUGIN_FAILED',
      `CNI plugin ${plugin.type} of network ${network.name} gave no usable result (ADD): ${why}`,
      { cause: error, details: { plugin: plugin.type, network: network.name, command: 'ADD' } },
    );
  }
}
