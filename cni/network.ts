/**
 * The pod network: attaching sandboxes through CNI plugins, and detaching them whatever happened meanwhile.
 *
 * The life of an attachment: its cache file is written (without a result) while the first plugin runs, gets the
 * result after the last, and is removed only after all plugins have answered DEL. So a crash at any line leaves either
 * nothing or a file by which `del` and `gc` undo the rest, with the configuration that was in force at ADD.
 */
import { stat } from 'node:fs/promises';
import { abortError, describe, isError, KeelsonError } from '../runtime/host/errors.ts';
import { keyedQueue } from '../runtime/host/keyed.ts';
import type { Logger } from '../runtime/host/log.ts';
import { type Attached, type Attachment, type Detachment, targetOf } from './attachment.ts';
import { type CachedAttachment, makeAttachmentCache } from './cache.ts';
import { makeChain, type SettledNetwork, type Target } from './chain.ts';
import { type Network, parseNetwork } from './config.ts';
import { type Configured, makeNetworkFolders } from './folder.ts';
import { makeGate } from './gate.ts';
import { makePluginRunner, pluginEnvironment, pluginPackage } from './plugin.ts';
import { addressesOf, type CniResult, readResult, writeResult } from './result.ts';
import { settleVersion } from './settle.ts';
import { atLeast } from './version.ts';

/**
 * Errors of all calls: CNI_NOT_CONFIGURED (no valid file in the folders), CNI_PLUGIN_MISSING, CNI_PLUGIN_FAILED (the
 * plugin's own words), CNI_CONFIG_INVALID and ABORTED. Calls for one container run one after the other.
 */
export interface Cni {
  /** Attaches the sandbox. Where it fails, everything is undone before it throws, as far as the plugins can. */
  add(attachment: Attachment, signal?: AbortSignal): Promise<Attached>;
  /** Detaches. Idempotent; no error where nothing was ever attached, or where the namespace is gone. */
  del(attachment: Detachment, signal?: AbortSignal): Promise<void>;
  /** Does the attachment still hold? NOT_FOUND where there is none; says nothing for networks older than 0.4.0. */
  check(attachment: Attachment, signal?: AbortSignal): Promise<void>;
  /** Can pods be attached now? `message` says why not, what to install, and which files were passed over. */
  status(
    signal?: AbortSignal,
  ): Promise<{ readonly ready: boolean; readonly reason: string; readonly message: string }>;
  /**
   * Detaches what is attached and not in `valid`: leftovers of crashes. Runs alone; attachments that were being made
   * when it was called are kept. Attachments that other programs made in the same cache folder are left alone.
   */
  gc(
    valid: readonly { readonly containerId: string; readonly ifName: string }[],
    signal?: AbortSignal,
  ): Promise<void>;
  close(): void;
}

export interface WatchedCni extends Cni {
  /** Calls `listener` after the configuration changed: `status` may say something else now. Returns the end of it. */
  onChange(listener: () => void): () => void;
}

export type { Attached, Attachment, CapabilityArgs, Detachment } from './attachment.ts';

const notReady = 'NetworkPluginNotReady';

export function makeCni(options: {
  readonly confDirs: readonly string[];
  readonly binDirs: readonly string[];
  readonly cacheDir: string;
  readonly log: Logger;
  /** Milliseconds for each plugin. Default 60,000. */
  readonly deadlineMs?: number;
  /** Milliseconds in which an ADD that is aborted may still end by itself. Default 5,000. */
  readonly addGraceMs?: number;
}): WatchedCni {
  const { confDirs, binDirs, cacheDir, log, deadlineMs = 60_000, addGraceMs = 5000 } = options;
  const env = pluginEnvironment(process.env);
  const runner = makePluginRunner({ binDirs, deadlineMs, addGraceMs, env, log });
  const chain = makeChain(runner);
  const cache = makeAttachmentCache(cacheDir);
  const folders = makeNetworkFolders({ confDirs, log });
  const byContainer = keyedQueue();
  const gate = makeGate();
  const beingMade = new Set<Attachment>();
  let settled: { readonly network: Network; readonly result: Promise<SettledNetwork> } | undefined;

  /** Settled once for each reading of the configuration, whoever asks first. */
  const settle = async ({ network }: Configured): Promise<SettledNetwork | undefined> => {
    if (network === undefined) return undefined;
    if (settled?.network !== network) settled = { network, result: settleVersion(network, runner) };
    const { result } = settled;
    return result.catch((error) => {
      if (settled?.result === result) settled = undefined;
      throw error;
    });
  };
  const currentNetwork = async (): Promise<SettledNetwork> => {
    const configured = await folders.current();
    const found = await settle(configured);
    if (found === undefined) throw notConfigured(confDirs, configured.skipped);
    return found;
  };
  const undo = async (
    entry: CachedAttachment,
    network: SettledNetwork,
    target: Target,
    signal?: AbortSignal,
  ) => {
    const previous = resultOf(entry, network);
    await chain.del(network, target, previous, signal);
    await cache.remove(entry.networkName, entry.containerId, entry.ifName);
  };
  /** The network as it was at ADD; undefined where the cache file does not say. */
  const networkAtAdd = async (
    entry: CachedAttachment,
    signal?: AbortSignal,
  ): Promise<SettledNetwork | undefined> => {
    try {
      const network = parseNetwork(entry.config, `cached for container ${entry.containerId}`);
      const version = (entry.result as { cniVersion?: unknown } | undefined)?.cniVersion;
      const known = network.versions.find((allowed) => allowed === version);
      if (network.plugins.length === 0) return undefined;
      return known === undefined ? await settleVersion(network, runner, signal) : { network, version: known };
    } catch (error) {
      if (!isError(error, 'CNI_CONFIG_INVALID')) throw error;
      return undefined;
    }
  };

  const add = async (attachment: Attachment, signal?: AbortSignal): Promise<Attached> => {
    if (signal?.aborted) throw abortError(signal, `attaching container ${attachment.containerId}`);
    const network = await currentNetwork();
    const target = targetOf(attachment);
    const entry = cacheEntry(network, target);
    let soFar: CniResult | undefined;
    try {
      const remembered = cache.put(entry);
      const adding = chain.add(
        network,
        target,
        (result) => {
          soFar = result;
        },
        signal,
      );
      const [outcome, written] = await Promise.allSettled([adding, remembered]);
      if (outcome.status === 'rejected') throw outcome.reason;
      if (written.status === 'rejected') throw written.reason;
      const ips = addressesOf(outcome.value, attachment.ifName);
      if (ips.length === 0) {
        throw new KeelsonError(
          'CNI_PLUGIN_FAILED',
          `network ${network.network.name} gave container ${attachment.containerId} no address`,
          { hint: 'its configuration may lack an "ipam" part', details: { network: network.network.name } },
        );
      }
      await cache.put({ ...entry, result: writeResult(outcome.value, network.version) });
      return { ips };
    } catch (error) {
      if (isError(error) && error.details['pluginCode'] === 1) settled = undefined; // Ask for versions again.
      const untouched = soFar === undefined && isError(error, 'CNI_PLUGIN_MISSING');
      const errors = untouched ? [] : await chain.cleanUp(network, target, soFar);
      if (errors.length === 0) {
        await cache.remove(entry.networkName, entry.containerId, entry.ifName);
      } else {
        // The cache file stays, so that `del` or `gc` tries again.
        log.warn(
          { container: attachment.containerId, errors: errors.map(describe) },
          'CNI clean-up after a failed ADD failed',
        );
      }
      throw asKeelsonError(error, attachment);
    }
  };

  const del = async (attachment: Detachment, signal?: AbortSignal): Promise<void> => {
    const [entries, netns] = await Promise.all([
      cache.find(attachment.containerId, attachment.ifName),
      existing(attachment.netns),
    ]);
    const target = targetOf({ ...attachment, netns });
    for (const entry of entries) {
      const network = (await networkAtAdd(entry, signal)) ?? (await currentNetwork());
      const { cniArgs, capabilityArgs } = entry;
      await undo(
        entry,
        network,
        { ...target, capabilityArgs, cniArgs: cniArgs.length > 0 ? cniArgs : target.cniArgs },
        signal,
      );
    }
    if (entries.length > 0) return;
    // No file: never attached, or the file was lost. The plugins can tell, where there are any.
    const network = await settle(await folders.current());
    if (network !== undefined) {
      await chain.del(network, target, undefined, signal);
      await cache.remove(network.network.name, target.containerId, target.ifName); // A torn file, if any.
    }
  };

  const check = async (attachment: Attachment, signal?: AbortSignal): Promise<void> => {
    const [entry] = await cache.find(attachment.containerId, attachment.ifName);
    const network = entry && (await networkAtAdd(entry, signal));
    const previous = entry && network && resultOf(entry, network);
    if (previous === undefined || network === undefined) {
      throw new KeelsonError('NOT_FOUND', `container ${attachment.containerId} is attached to no network`);
    }
    if (network.network.disableCheck || !atLeast(network.version, '0.4.0')) return;
    await chain.check(network, targetOf(attachment), previous, signal);
  };

  const gc = async (
    valid: readonly { readonly containerId: string; readonly ifName: string }[],
    signal?: AbortSignal,
  ): Promise<void> => {
    const network = await settle(await folders.current());
    if (network?.network.disableGc) return;
    const keyOf = (of: { containerId: string; ifName: string }) => `${of.containerId}/${of.ifName}`;
    const keys = new Set(valid.map(keyOf));
    const errors: unknown[] = [];
    const kept = valid.map(({ containerId, ifName }) => ({ containerId, ifName }));
    await cache.sweep();
    for (const entry of await cache.list()) {
      if (keys.has(keyOf(entry))) continue;
      if (!entry.ours) {
        if (entry.networkName === network?.network.name) kept.push(entry);
        continue;
      }
      try {
        const then = (await networkAtAdd(entry, signal)) ?? network;
        if (then === undefined) continue; // Kept until there is a network whose plugins can be asked.
        await undo(entry, then, { ...entry, netns: await existing(entry.netns) }, signal);
        log.info(
          { container: entry.containerId, network: entry.networkName },
          'stale network attachment removed',
        );
      } catch (error) {
        errors.push(error);
      }
    }
    if (network !== undefined && atLeast(network.version, '1.1.0')) {
      errors.push(...(await chain.gc(network, kept, signal)));
    }
    if (errors.length > 0) {
      throw new KeelsonError(
        'CNI_PLUGIN_FAILED',
        `network clean-up is incomplete: ${errors.map(describe).join('; ')}`,
        {
          cause: errors[0],
        },
      );
    }
  };

  const status = async (signal?: AbortSignal) => {
    const configured = await folders.current();
    const skipped = configured.skipped.length === 0 ? '' : `passed over: ${configured.skipped.join('; ')}`;
    const no = (message: string) => ({
      ready: false,
      reason: notReady,
      message: skipped === '' ? message : `${message}; ${skipped}`,
    });
    if (configured.network === undefined) return no(describe(notConfigured(confDirs, [])));
    try {
      const types = configured.network.plugins.flatMap(({ type, ipamType }) =>
        ipamType === undefined ? [type] : [type, ipamType],
      );
      await Promise.all([...new Set(types)].map((type) => runner.find(type)));
      const network = await settle(configured);
      if (network !== undefined && atLeast(network.version, '1.1.0')) await chain.status(network, signal);
    } catch (error) {
      if (!isError(error) || signal?.aborted) throw error;
      return no(describe(error));
    }
    return { ready: true, reason: '', message: skipped };
  };

  return {
    add: (attachment, signal) => {
      beingMade.add(attachment);
      return gate
        .shared(() => byContainer.run(attachment.containerId, () => add(attachment, signal)))
        .finally(() => beingMade.delete(attachment));
    },
    del: (attachment, signal) =>
      gate.shared(() => byContainer.run(attachment.containerId, () => del(attachment, signal))),
    check: (attachment, signal) =>
      gate.shared(() => byContainer.run(attachment.containerId, () => check(attachment, signal))),
    status,
    gc: (valid, signal) => {
      const all = [...valid, ...beingMade];
      return gate.exclusive(() => gc(all, signal));
    },
    onChange: folders.onChange,
    close: folders.close,
  };
}

async function existing(path: string | undefined): Promise<string | undefined> {
  if (path === undefined || path === '') return undefined;
  return stat(path).then(
    () => path,
    () => undefined,
  );
}

function notConfigured(confDirs: readonly string[], skipped: readonly string[]): KeelsonError {
  const why = skipped.length === 0 ? '' : ` (${skipped.join('; ')})`;
  return new KeelsonError(
    'CNI_NOT_CONFIGURED',
    `no network is configured: no valid .conflist, .conf or .json file in ${confDirs.join(' or ')}${why}`,
    { hint: `install the package ${pluginPackage} and put a network configuration into ${confDirs[0]}` },
  );
}

function cacheEntry({ network }: SettledNetwork, target: Target): CachedAttachment {
  return { ...target, networkName: network.name, config: network.text, ours: true };
}

/** The cached result; undefined where the file has none that can be read. */
function resultOf(entry: CachedAttachment, { version }: SettledNetwork): CniResult | undefined {
  if (entry.result === undefined) return undefined;
  try {
    return readResult(entry.result, version);
  } catch {
    return undefined;
  }
}

function asKeelsonError(error: unknown, { containerId }: Attachment): KeelsonError {
  if (isError(error)) return error;
  return new KeelsonError(
    'CNI_PLUGIN_FAILED',
    `cannot attach container ${containerId}: ${(error as Error).message}`,
    { cause: error },
  );
}
