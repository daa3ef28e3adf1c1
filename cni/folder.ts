/**
 * The network that the configuration folders name now: the lexically first valid file of the first folder that has
 * one. Folders are watched, also before they exist; files are read again only after something changed.
 */
import { type FSWatcher, watch } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { isError, KeelsonError } from '../runtime/host/errors.ts';
import { listFolder } from '../runtime/host/files.ts';
import type { Logger } from '../runtime/host/log.ts';
import { addPlugin, type Network, parseNetwork } from './config.ts';

export interface Configured {
  /** Undefined where no folder has a valid file. */
  readonly network?: Network;
  /** Path of its file. */
  readonly file?: string;
  /** Why files that come before it were passed over, a sentence each. */
  readonly skipped: readonly string[];
}

export interface NetworkFolders {
  /** What the folders say now. Cheap while nothing changed. Never throws for what is wrong with a file. */
  current(): Promise<Configured>;
  /** Calls `listener` after the network, or the reasons for having none, changed. Returns the function that ends it. */
  onChange(listener: () => void): () => void;
  close(): void;
}

const fileName = /\.(conf|conflist|json)$/;
const maxBytes = 1 << 20;

/** Throws CNI_CONFIG_INVALID. */
async function readConfig(path: string): Promise<string> {
  try {
    const found = await stat(path);
    if (!found.isFile()) throw new Error('is not a file');
    if (found.size > maxBytes) throw new Error(`is larger than ${maxBytes} bytes`);
    return await readFile(path, 'utf8');
  } catch (error) {
    throw new KeelsonError(
      'CNI_CONFIG_INVALID',
      `network configuration ${path}: ${(error as Error).message}`,
      { cause: error },
    );
  }
}

async function loadNetwork(path: string): Promise<Network> {
  let network = parseNetwork(await readConfig(path), path);
  if (network.readsPluginFolder) {
    const folder = join(dirname(path), network.name);
    const entries = await readdir(folder, { withFileTypes: true }).catch(() => []);
    const names = entries.filter((entry) => !entry.isDirectory()).map(({ name }) => name);
    for (const name of names.filter((name) => name.endsWith('.conf')).sort()) {
      network = addPlugin(network, await readConfig(join(folder, name)), join(folder, name));
    }
  }
  if (network.plugins.length === 0) {
    throw new KeelsonError('CNI_CONFIG_INVALID', `network configuration ${path}: has no plugins`);
  }
  return network;
}

/** The first network of the folders that is valid. */
export async function load(confDirs: readonly string[]): Promise<Configured> {
  const skipped: string[] = [];
  for (const folder of confDirs) {
    const names = await listFolder(folder).catch((error: Error) => {
      skipped.push(`cannot read folder ${folder}: ${error.message}`);
      return [];
    });
    for (const name of names.filter((name) => fileName.test(name)).sort()) {
      const file = join(folder, name);
      try {
        return { network: await loadNetwork(file), file, skipped };
      } catch (error) {
        if (!isError(error)) throw error;
        skipped.push(error.message);
      }
    }
  }
  return { skipped };
}

/** What makes two readings differ for those who use them. */
function fingerprint({ network, file, skipped }: Configured): string {
  return JSON.stringify([file, network?.text, skipped]);
}

export function makeNetworkFolders(options: {
  readonly confDirs: readonly string[];
  readonly log: Logger;
}): NetworkFolders {
  const { confDirs, log } = options;
  const listeners = new Set<() => void>();
  let watchers: FSWatcher[] = [];
  let state: Configured = { skipped: [] };
  let stale = true;
  let closed = false;
  let loading: Promise<Configured> | undefined;

  const onEvent = () => {
    stale = true;
    if (listeners.size > 0 && !closed) void current();
  };

  /** Watches `path`, or its nearest folder that exists for the one name that leads to it. False where neither works. */
  const watchPath = (path: string): boolean => {
    let wanted: string | undefined;
    for (let folder = path; ; folder = dirname(folder)) {
      try {
        const name = wanted;
        const watcher = watch(folder, { persistent: false }, (_event, changed) => {
          if (name === undefined || changed === null || changed === name) onEvent();
        });
        watcher.on('error', onEvent);
        watchers.push(watcher);
        return true;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || dirname(folder) === folder) return false;
        wanted = basename(folder);
      }
    }
  };
  /** Before reading, so that what changes meanwhile is seen. False: not all can be watched, so read on each use. */
  const watchAll = (): boolean => {
    const old = watchers;
    watchers = [];
    const all = confDirs.map(watchPath).every(Boolean);
    for (const watcher of old) watcher.close();
    return all;
  };
  /** A plugin folder that comes later is seen as a new name in the folder of the file. */
  const watchPlugins = ({ network, file }: Configured): boolean => {
    if (!network?.readsPluginFolder || file === undefined) return false;
    try {
      watchers.push(
        watch(join(dirname(file), network.name), { persistent: false }, onEvent).on('error', onEvent),
      );
      return true;
    } catch {
      return false;
    }
  };

  const reload = async (): Promise<Configured> => {
    do {
      stale = false;
      const watched = watchAll();
      let read = await load(confDirs);
      if (closed) return read;
      // It may have changed between reading and watching: read once more now that it is watched.
      if (watchPlugins(read)) read = await load(confDirs);
      const changed = fingerprint(read) !== fingerprint(state);
      if (changed) {
        state = read;
        log.info(
          { file: state.file, network: state.network?.name, skipped: state.skipped },
          'CNI configuration read',
        );
        for (const listener of listeners) listener();
      }
      if (!watched) {
        stale = true;
        break;
      }
    } while (stale && !closed);
    return state;
  };

  const current = (): Promise<Configured> => {
    if (closed) return Promise.resolve(state);
    if (loading === undefined) {
      if (!stale && state.network !== undefined) return Promise.resolve(state);
      loading = reload().finally(() => {
        loading = undefined;
      });
    }
    return loading;
  };

  return {
    current,
    onChange(listener) {
      listeners.add(listener);
      void current(); // From now on the watches must be there.
      return () => listeners.delete(listener);
    },
    close() {
      closed = true;
      listeners.clear();
      for (const watcher of watchers) watcher.close();
      watchers = [];
    },
  };
}
