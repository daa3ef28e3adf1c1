/** The mounts of this process's namespace: which there are below a folder, making tmpfs ones, taking them away. */
import { readFile, stat } from 'node:fs/promises';
import { release } from 'node:os';
import { dirname } from 'node:path';
import { errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import { mountPoints } from '../../runtime/host/mounts/mountinfo.ts';
import { mount, umountFlags, unmountAside } from '../../runtime/host/syscalls.ts';

/** Mount points at or below the real path `folder`, in the order in which they were made. */
export async function mountsBelow(folder: string): Promise<string[]> {
  // Bytes above 0x7f are not escaped in mountinfo; latin1 keeps each as it is until the path is compared.
  const text = (await readFile('/proc/self/mountinfo')).toString('latin1');
  // A node has thousands of mounts, and few of them are of one pod. The last part of a path has the fewest escapes.
  const [name = ''] = /[\w.-]*$/.exec(folder)!;
  return mountPoints(rowsWith(text, name))
    .map((path) => Buffer.from(path, 'latin1').toString('utf8'))
    .filter((path) => path === folder || path.startsWith(`${folder}/`));
}

/** The lines of `text` that hold `part`. Pure. */
function rowsWith(text: string, part: string): string {
  if (part === '') return text;
  const rows: string[] = [];
  for (let at = text.indexOf(part); at !== -1; ) {
    const end = text.indexOf('\n', at);
    rows.push(text.slice(text.lastIndexOf('\n', at) + 1, end === -1 ? undefined : end));
    at = end === -1 ? -1 : text.indexOf(part, end);
  }
  return rows.join('\n');
}

/** `folder` is on another device than the folder that it is in. */
export async function isMountPoint(folder: string): Promise<boolean> {
  try {
    const [own, above] = await Promise.all([stat(folder), stat(dirname(folder))]);
    return own.dev !== above.dev;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
}

/** `noswap` came with Linux 6.4; older kernels refuse it and complain in their log. */
function hasNoSwap(kernel: string): boolean {
  const [major = 0, minor = 0] = kernel.split('.').map(Number);
  return major > 6 || (major === 6 && minor >= 4);
}

/** Mounts a tmpfs of `options` (tmpfs(5)) whose pages are not swapped where the kernel can do so. */
export function mountTmpfs(folder: string, options: readonly string[]): void {
  mount('tmpfs', folder, 'tmpfs', 0, [...options, ...(hasNoSwap(release()) ? ['noswap'] : [])].join(','));
}

/**
 * Unmounts everything at and below the real path `folder`, last made first; what is busy is detached.
 * Throws SYSCALL_FAILED, or VOLUME_FAILED where mounts keep coming.
 */
export async function unmountBelow(folder: string): Promise<void> {
  for (let round = 0; round < 10; round++) {
    const points = await mountsBelow(folder);
    let asSeen = true;
    for (const point of points.reverse()) {
      try {
        asSeen = (await unmountAside(point)) && asSeen;
      } catch (error) {
        if (!isError(error, 'SYSCALL_FAILED') || error.details['errno'] !== 'EBUSY') throw error;
        await unmountAside(point, umountFlags.NOFOLLOW | umountFlags.DETACH);
      }
    }
    // What is mounted from now on, the removal of the folder finds and refuses.
    if (asSeen) return;
  }
  throw new KeelsonError('VOLUME_FAILED', `mounts below ${folder} do not go away`);
}
