/**
 * The pod network: attaching sandboxes through CNI plugins, and detaching them whatever happened meanwhile.
 *
 * The life of an attachment: its cache file is written (without a result) while the first plugin runs, gets the
 * result after the last, and is removed only after all plugins have answered DEL. So a crash at any line leaves either
 * nothing or a file by which `del` and `gc` undo the rest, with the configuration that was in force at ADD.
 */
import { statfs } from 'node:fs/promises';
import { abortError, describe, isError, KeelsonError } from '../runtime/host/errors.ts';
import { keyedQueue } from '../runtime/host/keyed.ts';
import type { Logger } from '../runtime/host/log.ts';
import { type Attached, type Attachment, type Detachment, targetOf } from './attachment.ts';
import { type CachedAttachment, makeAttachmentCache } from './cache.ts';
import { makeChain, type SettledNetwork, type Target } from './chain.ts';
import { type Network, parseNetwork } from './config.ts';
import { type Configured, makeNetworkFolders } from './folder.ts';
import { makeGate } from './gate.ts';
import { makePluginRunner, pluginEnvironment } from './plugin.ts';
import { notConfigured, type Readiness, readinessOf } from './readiness.ts';
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
  /** Can pods be attached now? */
  status(signal?: AbortSignal): Promise<Readiness>;
  /**
   * Detaches what is attached and not in `valid`: leftovers of crashes. Runs alone; attachments that were being made
   * when it was called are kept. Attachments that other programs made in the same cache folder are left alone, and so
   * are those of networks with `disableGC`. Throws CNI_NOT_CONFIGURED where there is no network whose plugins could be
   * asked, and otherwise where something could not be cleaned: it is worth being called again.
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

/** Enough for a plugin that asks its daemon; the node's status waits for it. */
const statusDeadlineMs = 10_000;
/** statfs(2): the file system of namespaces. */
const nsfsMagic = 0x6e736673;

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
    const { cniArgs, capabilityArgs } = entry!;
    await chain.check(network, { ...targetOf(attachment), cniArgs, capabilityArgs }, previous, signal);
  };

  const gc = async (
    valid: readonly { readonly containerId: string; readonly ifName: string }[],
    signal?: AbortSignal,
  ): Promise<void> => {
    const configured = await folders.current();
    const network = await settle(configured);
    const now = network?.network;
    const keyOf = (of: { containerId: string; ifName: string }) => `${of.containerId}/${of.ifName}`;
    const keys = new Set(valid.map(keyOf));
    const errors: unknown[] = [];
    const kept = valid.map(({ containerId, ifName }) => ({ containerId, ifName }));
    await cache.sweep();
    for (const entry of await cache.list()) {
      if (keys.has(keyOf(entry))) continue;
      if (!entry.ours) {
        if (entry.networkName === now?.name) kept.push(entry);
        continue;
      }
      try {
        const then = (await networkAtAdd(entry, signal)) ?? network;
        if (then === undefined) continue; // Kept until there is a network whose plugins can be asked.
        if (then.network.disableGc || (now?.disableGc && now.name === entry.networkName)) continue;
        await undo(entry, then, { ...entry, netns: await existing(entry.netns) }, signal);
        log.info(
          { container: entry.containerId, network: entry.networkName },
          'stale network attachment removed',
        );
      } catch (error) {
        errors.push(error);
      }
    }
    if (network !== undefined && !network.network.disableGc && atLeast(network.version, '1.1.0')) {
      errors.push(...(await chain.gc(network, kept, signal)));
    }
    if (errors.length > 0) {
      throw new KeelsonError(
        'CNI_PLUGIN_FAILED',
        `network clean-up is incomplete: ${errors.map(describe).join('; ')}`,
        { cause: errors[0] },
      );
    }
    if (network === undefined) throw notConfigured(confDirs, configured.skipped);
  };

  const status = async (signal?: AbortSignal) =>
    readinessOf(
      await folders.current(),
      { confDirs, runner, chain, settle, deadlineMs: Math.min(deadlineMs, statusDeadlineMs) },
      signal,
    );

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

/** The path where a namespace is; plugins refuse the plain file that is left of a pin after a reboot. */
async function existing(path: string | undefined): Promise<string | undefined> {
  if (path === undefined || path === '') return undefined;
  return statfs(path).then(
    ({ type }) => (type === nsfsMagic ? path : undefined),
    () => undefined,
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
