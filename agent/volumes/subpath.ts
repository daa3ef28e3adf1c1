/**
 * subPath: a path inside a volume that a container gets instead of the volume. Whoever writes to the volume may put
 * links there at any moment, so the way is walked folder by folder with open descriptors that follow no link, and
 * what was reached is held by a bind mount (CVE-2017-1002101, CVE-2021-25741).
 */
import { constants, type FileHandle, mkdir, open, realpath, stat, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { abortError, errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { mount, mountFlags, unmount } from '../../runtime/host/syscalls.ts';
import { mountsBelow } from './mounts.ts';

/** open(2) O_PATH: a handle on the place, without opening what is there. */
const O_PATH = 0o10000000;

export interface SubPathOptions {
  /**
   * Absolute path to bind-mount the place on: what is mounted stays the same whatever happens to the path. Below the
   * pod's folder, so that `tearDown` finds it (see `subPathTarget`).
   */
  readonly target?: string;
  readonly signal?: AbortSignal;
}

/** Where kubelet mounts the subPath of the mount number `index` of a container. */
export function subPathTarget(
  kubeletDir: string,
  podUid: string,
  volume: string,
  container: string,
  index: number,
): string {
  return join(kubeletDir, 'pods', podUid, 'volume-subpaths', volume, container, String(index));
}

/**
 * The place `subPath` inside the volume at `volumeHostPath`, made as a folder (with the volume's own mode) where
 * there is nothing. Links are followed as long as they stay inside the volume. With `target` the returned path is
 * the target and safe to hand to a runtime; without it, it is the real path at this moment.
 * Throws VOLUME_FAILED where the path is not relative, leaves the volume or is changed meanwhile.
 */
export async function resolveSubPath(
  volumeHostPath: string,
  subPath: string,
  options: SubPathOptions = {},
): Promise<string> {
  const bad = (why: string, cause?: unknown) =>
    new KeelsonError('VOLUME_FAILED', `subPath ${JSON.stringify(subPath)} ${why}`, { cause });
  if (subPath.startsWith('/')) throw bad('must be relative');
  if (subPath.includes('\0')) throw bad('contains a NUL byte');
  const steps = subPath.split('/').filter((step) => step !== '' && step !== '.');
  if (steps.includes('..')) throw bad("must not contain '..'");
  if (options.signal?.aborted) throw abortError(options.signal, 'setting up a subPath');
  try {
    const root = await realpath(volumeHostPath);
    const { inside, missing } = await resolveExisting(root, steps, bad);
    const place = await walk(root, [...inside, ...missing], inside.length, bad);
    try {
      const real = join(root, ...inside, ...missing);
      if (options.target === undefined) return real;
      await hold(place, options.target);
      return options.target;
    } finally {
      await place.close();
    }
  } catch (error) {
    if (error instanceof KeelsonError) throw error;
    throw bad(`of ${volumeHostPath} cannot be set up`, error);
  }
}

type Bad = (why: string, cause?: unknown) => KeelsonError;

/** Follows links of the longest part of the way that exists: its steps below `root`, and those still to be made. */
async function resolveExisting(
  root: string,
  steps: readonly string[],
  bad: Bad,
): Promise<{ inside: string[]; missing: string[] }> {
  for (let count = steps.length; count >= 0; count--) {
    let real: string;
    try {
      real = await realpath(join(root, ...steps.slice(0, count)));
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') continue;
      throw error;
    }
    const inside = relative(root, real);
    if (inside === '..' || inside.startsWith('../')) throw bad('leaves the volume through a link');
    return { inside: inside === '' ? [] : inside.split('/'), missing: steps.slice(count) };
  }
  throw bad('is in a volume that does not exist');
}

/** Opens the place at the end of `steps`, making those from `existing` on. Nothing on the way may be a link. */
async function walk(root: string, steps: readonly string[], existing: number, bad: Bad): Promise<FileHandle> {
  let at = await open(root, O_PATH | constants.O_DIRECTORY);
  const mode = (await at.stat()).mode & 0o7777;
  try {
    for (const [index, step] of steps.entries()) {
      const path = `/proc/self/fd/${at.fd}/${step}`;
      let made = false;
      if (index >= existing) {
        made = await mkdir(path).then(
          () => true,
          (error: unknown) => {
            if (errnoOf(error) !== 'EEXIST') throw error;
            return false;
          },
        );
      }
      const next = await open(path, O_PATH | constants.O_NOFOLLOW);
      await at.close();
      at = next;
      const facts = await at.stat();
      if (facts.isSymbolicLink()) throw bad(`is not safe: ${step} became a link meanwhile`);
      if (made) await setMode(at, mode);
    }
    return at;
  } catch (error) {
    await at.close();
    throw error;
  }
}

/** fchmod(2) does not take an O_PATH descriptor; a folder is opened again through it, which follows no link. */
async function setMode(place: FileHandle, mode: number): Promise<void> {
  const folder = await open(`/proc/self/fd/${place.fd}/.`, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await folder.chmod(mode);
  } finally {
    await folder.close();
  }
}

/** Bind-mounts what `place` is open on at `target`, unless that is already so. */
async function hold(place: FileHandle, target: string): Promise<void> {
  const facts = await place.stat();
  await mkdir(dirname(target), { recursive: true, mode: 0o750 });
  const real = join(await realpath(dirname(target)), target.slice(dirname(target).length + 1));
  if ((await mountsBelow(real)).includes(real)) {
    const there = await stat(real).catch(() => undefined);
    if (there?.dev === facts.dev && there.ino === facts.ino) return;
    while (unmount(real)) {
      // Mounts may be stacked.
    }
  }
  if (facts.isDirectory()) await mkdir(real, { recursive: true, mode: 0o750 });
  else await writeFile(real, '', { flag: 'a', mode: 0o640 });
  mount(`/proc/self/fd/${place.fd}`, real, null, mountFlags.BIND);
}
