/**
 * How much containers wrote over their images: the sizes of what lies in their upper folders.
 *
 * Files are looked at on Node's threads, one folder tree at a time. A tree is walked again only after 50 times the time
 * that the walk took, and ten seconds at least, so that large ones do not keep the disk busy; meanwhile the last sums are
 * told.
 */
import { lstat, opendir } from 'node:fs/promises';
import { join } from 'node:path';
import type { FilesystemStats } from '../api.ts';
import type { Clock } from '../host/clock.ts';
import { keyedQueue } from '../host/keyed.ts';

export interface WrittenSizes {
  /** Undefined before the first walk is done, where that takes more than half a second. */
  of(id: string, folder: string): Promise<FilesystemStats | undefined>;
  /** Ids that are gone are forgotten. */
  keep(has: (id: string) => boolean): void;
}

const restMs = 10_000;
const patienceMs = 500;

interface Entry {
  stats?: FilesystemStats;
  walking?: Promise<void>;
  /** Monotonic: not walked again before. */
  notBefore: number;
}

export function makeWrittenSizes(clock: Clock): WrittenSizes {
  const entries = new Map<string, Entry>();
  const oneAtATime = keyedQueue();
  const walk = async (entry: Entry, folder: string) => {
    const from = clock.monotonic();
    const sums = await sizeOf(folder);
    const took = clock.monotonic() - from;
    entry.stats = { at: clock.now(), mountpoint: folder, ...sums };
    entry.notBefore = clock.monotonic() + Math.max(restMs, 50 * took);
  };
  return {
    async of(id, folder) {
      const entry: Entry = entries.get(id) ?? { notBefore: 0 };
      entries.set(id, entry);
      if (entry.walking === undefined && clock.monotonic() >= entry.notBefore) {
        entry.walking = oneAtATime
          .run('walk', () => walk(entry, folder))
          .catch(() => {}) // Removed meanwhile.
          .finally(() => {
            entry.walking = undefined;
          });
      }
      if (entry.walking !== undefined) {
        let cancel = () => {};
        const late = new Promise<void>((resolve) => {
          cancel = clock.after(patienceMs, resolve);
        });
        await Promise.race([entry.walking, late]);
        cancel();
      }
      return entry.stats;
    },
    keep(has) {
      for (const id of entries.keys()) if (!has(id)) entries.delete(id);
    },
  };
}

/** Blocks and inodes of the tree, the folder itself not counted; of several names of one file, once. */
async function sizeOf(folder: string): Promise<{ usedBytes: number; usedInodes: number }> {
  let usedBytes = 0;
  let usedInodes = 0;
  const linked = new Set<string>();
  const folders = [folder];
  for (let next = folders.pop(); next !== undefined; next = folders.pop()) {
    const listing = await opendir(next).catch(() => undefined);
    if (listing === undefined) continue;
    for await (const entry of listing) {
      const path = join(next, entry.name);
      const info = await lstat(path).catch(() => undefined);
      if (info === undefined) continue;
      if (info.isDirectory()) folders.push(path);
      else if (info.nlink > 1) {
        const key = `${info.dev}:${info.ino}`;
        if (linked.has(key)) continue;
        linked.add(key);
      }
      usedBytes += info.blocks * 512;
      usedInodes++;
    }
  }
  return { usedBytes, usedInodes };
}
