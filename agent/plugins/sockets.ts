/** The unix sockets below a folder, watched: plugins come and go with theirs. */
import { type FSWatcher, watch } from 'node:fs';
import { lstat, mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../runtime/host/clock.ts';
import { errnoOf } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';

export interface SocketsOptions {
  /** Made where it is missing. */
  readonly folder: string;
  /** Told all sockets, path and which one it is, when some came, went, or were made anew. */
  readonly changed: (sockets: ReadonlyMap<string, string>) => void;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface SocketWatch {
  /** Resolves once the folder has been read for the first time and `changed` was told. */
  readonly ready: Promise<void>;
  close(): void;
}

/** A socket is bound before it listens. */
const settleMs = 20;
/** Where something cannot be watched or read, it is looked at this often. */
const fallbackMs = 20_000;
/** Folders within folders: nobody needs more, and a loop of mounts must end. */
const maxDepth = 4;

export function watchSockets({ folder, changed, clock, log }: SocketsOptions): SocketWatch {
  const watchers = new Map<string, { identity: string; watcher: FSWatcher }>();
  let last = '';
  let cancelTimer: (() => void) | undefined;
  let scanning = false;
  let again = false;
  let closed = false;

  const poke = (ms = settleMs) => {
    if (closed) return;
    cancelTimer?.();
    cancelTimer = clock.after(ms, () => void scan());
  };

  /** Watches `path`, unless that very folder is watched already. */
  const arm = (path: string, identity: string) => {
    const before = watchers.get(path);
    if (before?.identity === identity || closed) return;
    before?.watcher.close();
    watchers.delete(path);
    const watcher = watch(path, () => poke());
    watcher.on('error', (error) => {
      log.warn({ err: error, folder: path }, 'watching for plugins broke');
      watcher.close();
      if (watchers.get(path)?.watcher === watcher) watchers.delete(path);
      poke(1000);
    });
    watchers.set(path, { identity, watcher });
  };

  const look = async (path: string, depth: number, found: Map<string, string>, seen: Set<string>) => {
    const facts = await lstat(path, { bigint: true }).catch(gone);
    if (facts === undefined) return;
    // Inode numbers are used again: the time of birth tells a new one from the old.
    const identity = `${facts.dev} ${facts.ino} ${facts.birthtimeNs} ${facts.isSocket() ? facts.ctimeNs : ''}`;
    if (facts.isSocket()) {
      found.set(path, identity);
    } else if (facts.isDirectory() && depth < maxDepth) {
      seen.add(path);
      // Before it is read: what comes in between is seen by one of the two.
      arm(path, identity);
      for (const name of (await readdir(path).catch(gone)) ?? []) {
        if (!name.startsWith('.')) await look(join(path, name), depth + 1, found, seen);
      }
    }
  };

  const scan = async (): Promise<void> => {
    if (scanning) {
      again = true;
      return;
    }
    scanning = true;
    try {
      do {
        again = false;
        await mkdir(folder, { recursive: true, mode: 0o755 });
        const found = new Map<string, string>();
        const seen = new Set<string>();
        await look(folder, 0, found, seen);
        if (closed) return;
        for (const [path, { watcher }] of watchers) {
          if (seen.has(path)) continue;
          watcher.close();
          watchers.delete(path);
        }
        const text = JSON.stringify([...found]);
        if (text !== last) {
          last = text;
          changed(found);
        }
      } while (again);
    } catch (error) {
      log.error({ err: error, folder }, 'cannot look for plugins; those that are known are kept');
      poke(fallbackMs);
    } finally {
      scanning = false;
    }
  };

  return {
    ready: scan(),
    close() {
      closed = true;
      cancelTimer?.();
      for (const { watcher } of watchers.values()) watcher.close();
      watchers.clear();
    },
  };
}

/** What went away between two looks. */
function gone(error: unknown): undefined {
  if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined;
  throw error;
}
