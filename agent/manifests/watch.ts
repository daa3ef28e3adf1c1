/**
 * Static pods: a folder of manifests, watched. What is in the folder runs, whether or not an apiserver can be had.
 * A file that cannot be read or is wrong leaves the pod that runs from it alone.
 */
import { type FSWatcher, watch } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { type Clock, rfc3339Micro } from '../../runtime/host/clock.ts';
import { describe, errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { Pod } from '../apiserver/types.ts';
import type { PodSink } from '../pods/types.ts';
import { decodeManifest } from './decode.ts';

export interface ManifestsOptions {
  /** May be made later, removed and made again. */
  readonly folder: string;
  readonly nodeName: string;
  readonly sink: PodSink;
  readonly log: Logger;
  readonly clock: Clock;
}

export interface ManifestWatch {
  /** Resolves once the folder has been read for the first time and the sink was told. */
  readonly ready: Promise<void>;
  close(): void;
}

/** Editors and copies write in several steps. */
const settleMs = 50;
/** Where the folder cannot be watched, it is looked at this often (kubelet's fileCheckFrequency). */
const fallbackMs = 20_000;
/** The apiserver takes no larger pods either, and reading one must not hold up everything else. */
const maxBytes = 1 << 20;

/** Names that are not manifests: hidden files, and what editors leave beside a file while they write it. Pure. */
export function isManifestName(name: string): boolean {
  return !/^\.|~$|\.sw[a-z]$|^#.*#$|\.(?:bak|orig|tmp|rpmnew|rpmsave|dpkg-(?:new|old|dist|tmp))$/.test(name);
}

interface Known {
  /** What the file was when it was read: device, inode, size and times. */
  readonly version: string;
  /** The last good pod from it. */
  readonly pod: Pod | undefined;
}

/** Watches `folder` and tells the sink the complete list, once at the start and whenever it changed. */
export function watchManifests(options: ManifestsOptions): ManifestWatch {
  const { nodeName, sink, log, clock } = options;
  const folder = resolve(options.folder);
  const known = new Map<string, Known>();
  let last: readonly Pod[] | undefined;
  let watcher: FSWatcher | undefined;
  let watched: string | undefined;
  let cancelTimer: (() => void) | undefined;
  let scanning = false;
  let again = false;
  let closed = false;

  const poke = (delayMs = settleMs) => {
    if (closed) return;
    cancelTimer?.();
    cancelTimer = clock.after(delayMs, () => void scan());
  };

  /** Watches the folder, or the nearest one above it that exists. Returns true where what is watched changed. */
  const arm = async (): Promise<boolean> => {
    for (let path = folder; ; path = dirname(path)) {
      const facts = await stat(path, { bigint: true }).catch(() => undefined);
      if (!facts?.isDirectory() && path !== '/') continue;
      // Inode numbers are used again; the time of birth tells a new folder from the old one.
      const identity = `${path} ${facts?.dev} ${facts?.ino} ${facts?.birthtimeNs}`;
      if (identity === watched || closed) return false;
      watcher?.close();
      watched = undefined;
      try {
        watcher = watch(path, () => poke());
        watcher.on('error', (error) => {
          log.warn({ err: error, folder: path }, 'watching for static pods broke');
          watched = undefined;
          poke(1000);
        });
        watched = identity;
        return true;
      } catch (error) {
        log.warn(
          { err: error, folder: path },
          `cannot watch for static pods; looking every ${fallbackMs / 1000} s`,
        );
        poke(fallbackMs);
        return false;
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
        // Again after each change: the folder may have come while the watch above it began. What came before the
        // watch is seen by the read that follows it.
        while (await arm()) {}
        const pods = await readAll();
        if (closed) return;
        tell(pods);
      } while (again);
    } catch (error) {
      log.error({ err: error, folder }, 'cannot read the folder of static pods; those that run are kept');
      poke(fallbackMs);
    } finally {
      scanning = false;
    }
  };

  const tell = (pods: readonly Pod[]) => {
    if (last?.length === pods.length && pods.every((pod, index) => pod === last?.[index])) return;
    last = pods;
    sink.replaceAll('file', pods);
  };

  const readAll = async (): Promise<Pod[]> => {
    let names: string[];
    try {
      names = (await readdir(folder)).filter(isManifestName).sort();
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT' && errnoOf(error) !== 'ENOTDIR') throw error;
      names = [];
    }
    for (const name of known.keys()) if (!names.includes(name)) known.delete(name);
    await Promise.all(names.map(readOne));
    const taken = new Set<string>();
    const pods: Pod[] = [];
    for (const name of names) {
      const pod = known.get(name)?.pod;
      if (pod === undefined) continue;
      const key = `${pod.metadata?.namespace}/${pod.metadata?.name}`;
      const uid = `uid ${pod.metadata?.uid}`;
      if (taken.has(key) || taken.has(uid)) {
        const what = taken.has(key) ? 'is' : 'has a uid that is';
        log.error(
          { file: join(folder, name) },
          `static pod ${key} ${what} in another file too; this one is ignored`,
        );
        continue;
      }
      taken.add(key).add(uid);
      pods.push(pod);
    }
    return pods;
  };

  const readOne = async (name: string): Promise<void> => {
    const file = join(folder, name);
    const before = known.get(name);
    let version = 'unreadable';
    try {
      const facts = await stat(file, { bigint: true });
      version = [facts.dev, facts.ino, facts.size, facts.mtimeNs, facts.ctimeNs].join(' ');
      if (before?.version === version) return;
      if (facts.isDirectory())
        throw new KeelsonError('POD_INVALID', 'it is a folder; folders are not searched');
      if (!facts.isFile()) throw new KeelsonError('POD_INVALID', 'it is not a file');
      if (facts.size > maxBytes) throw new KeelsonError('POD_INVALID', `it has ${facts.size} bytes`);
      const seen = rfc3339Micro(clock.now());
      const pod = await decodeManifest(await readFile(file, 'utf8'), { file, nodeName, seen });
      // A file that was only touched gives the pod that is known: nobody need look at it again.
      const same = before?.pod !== undefined && isDeepStrictEqual(unseen(before.pod), unseen(pod));
      known.set(name, { version, pod: same ? before.pod : pod });
    } catch (error) {
      if (errnoOf(error) === 'ENOENT' && version === 'unreadable') {
        known.delete(name);
        return;
      }
      if (before?.version === version) return;
      known.set(name, { version, pod: before?.pod });
      log.error(
        { err: error, file },
        `static pod manifest ${file}: ${describe(error)}${before?.pod === undefined ? '' : '; the pod that runs from it is kept'}`,
      );
    }
  };

  return {
    ready: scan(),
    close() {
      closed = true;
      cancelTimer?.();
      watcher?.close();
    },
  };
}

/** The pod without the time at which its file was read. */
function unseen({ metadata, ...pod }: Pod): object {
  const { 'kubernetes.io/config.seen': _, ...annotations } = metadata?.annotations ?? {};
  return { ...pod, metadata: { ...metadata, annotations } };
}
