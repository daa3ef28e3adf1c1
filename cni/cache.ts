/**
 * What is attached: one file for each attachment, in libcni's format (`cniCacheV1`) and place
 * (`<cacheDir>/results/<network>-<container>-<interface>`), so that other tools can read it and keelson can undo what
 * was done with a configuration that has changed since.
 */
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from '../runtime/host/errors.ts';
import { sweepTemporaryFiles, temporaryPrefix, writeFileAtomic } from '../runtime/host/files.ts';

export interface CachedAttachment {
  readonly networkName: string;
  readonly containerId: string;
  readonly ifName: string;
  readonly netns?: string;
  /** The network's configuration list, as text. */
  readonly config: string;
  readonly cniArgs: readonly (readonly [string, string])[];
  readonly capabilityArgs: Readonly<Record<string, unknown>>;
  /** The result of ADD; absent while it runs and where it failed. */
  readonly result?: unknown;
  /** Made by keelson, not by another program that shares the folder. */
  readonly ours: boolean;
}

export interface AttachmentCache {
  put(entry: CachedAttachment): Promise<void>;
  /** All attachments of the interface, whatever the network's name was. Files that cannot be read are left out. */
  find(containerId: string, ifName: string): Promise<CachedAttachment[]>;
  list(): Promise<CachedAttachment[]>;
  /** Removes half-written files of killed processes. */
  sweep(): Promise<void>;
  /** No error where there is none. */
  remove(networkName: string, containerId: string, ifName: string): Promise<void>;
}

const kind = 'cniCacheV1';
const owner = 'keelson';

/** Reads a cache file; undefined for what is none (torn by a power cut, foreign). Pure. */
export function readCacheFile(text: string): CachedAttachment | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== 'object' || value === null) return undefined;
  const file = value as Record<string, unknown>;
  const { networkName, containerId, ifName, config, netns, cniArgs, capabilityArgs, result } = file;
  if (file['kind'] !== kind) return undefined;
  if (typeof networkName !== 'string' || typeof containerId !== 'string' || typeof ifName !== 'string') {
    return undefined;
  }
  // They become a file's name again.
  if (![networkName, containerId].every((name) => /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/.test(name)))
    return undefined;
  if (!/^[^/\s\0]{1,15}$/.test(ifName) || typeof config !== 'string') return undefined;
  const isPair = (pair: unknown): pair is [string, string] =>
    Array.isArray(pair) && typeof pair[0] === 'string' && typeof pair[1] === 'string';
  return {
    networkName,
    containerId,
    ifName,
    netns: typeof netns === 'string' ? netns : undefined,
    config: Buffer.from(config, 'base64').toString('utf8'),
    cniArgs: Array.isArray(cniArgs) ? cniArgs.filter(isPair) : [],
    capabilityArgs:
      typeof capabilityArgs === 'object' && capabilityArgs !== null && !Array.isArray(capabilityArgs)
        ? (capabilityArgs as Record<string, unknown>)
        : {},
    result: result ?? undefined,
    ours: file['runtime'] === owner,
  };
}

function writeCacheFile(entry: CachedAttachment): string {
  return JSON.stringify({
    kind,
    containerId: entry.containerId,
    config: Buffer.from(entry.config).toString('base64'),
    ifName: entry.ifName,
    networkName: entry.networkName,
    netns: entry.netns,
    cniArgs: entry.cniArgs.length === 0 ? undefined : entry.cniArgs,
    capabilityArgs: Object.keys(entry.capabilityArgs).length === 0 ? undefined : entry.capabilityArgs,
    result: entry.result,
    runtime: entry.ours ? owner : undefined, // Not libcni's: it ignores what it does not know.
  });
}

export function makeAttachmentCache(cacheDir: string): AttachmentCache {
  const folder = join(cacheDir, 'results');
  const pathOf = (network: string, containerId: string, ifName: string) =>
    join(folder, `${network}-${containerId}-${ifName}`);

  const read = async (names: readonly string[]): Promise<CachedAttachment[]> => {
    const entries = await Promise.all(
      names.map(async (name) => readCacheFile(await readFile(join(folder, name), 'utf8').catch(() => ''))),
    );
    return entries.filter((entry) => entry !== undefined);
  };
  const names = async (): Promise<string[]> => {
    try {
      return (await readdir(folder)).filter((name) => !name.startsWith(temporaryPrefix)).sort();
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return [];
      throw error;
    }
  };

  return {
    async put(entry) {
      const path = pathOf(entry.networkName, entry.containerId, entry.ifName);
      const text = writeCacheFile(entry);
      try {
        await writeFileAtomic(path, text);
      } catch (error) {
        if (errnoOf(error) !== 'ENOENT') throw error;
        await mkdir(folder, { recursive: true, mode: 0o700 });
        await writeFileAtomic(path, text);
      }
    },
    async find(containerId, ifName) {
      const end = `-${containerId}-${ifName}`;
      const found = await read((await names()).filter((name) => name.endsWith(end)));
      return found.filter((entry) => entry.containerId === containerId && entry.ifName === ifName);
    },
    list: async () => read(await names()),
    sweep: () => sweepTemporaryFiles(folder),
    remove: (network, containerId, ifName) => rm(pathOf(network, containerId, ifName), { force: true }),
  };
}
