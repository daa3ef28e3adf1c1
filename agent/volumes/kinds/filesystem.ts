/** File systems on devices, and mounts that a program of the host makes. */
import { mkdir, realpath } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { exec } from '../../../runtime/host/exec.ts';
import { mountAside, mountFlags, umountFlags, unmountAside } from '../../../runtime/host/syscalls.ts';
import { mountsBelow } from '../mounts.ts';

/** Milliseconds for a file system check or for making a file system, which both may read the whole device. */
const formatMs = 30 * 60_000;
/** Milliseconds for one call of mount(8) or umount(8). */
const mountMs = 100_000;

/** Whether something is mounted on the folder itself; bind mounts count. What is mounted is not asked. */
export async function isMounted(folder: string): Promise<boolean> {
  const parent = await realpath(dirname(folder)).catch(() => dirname(folder));
  const real = join(parent, basename(folder));
  return (await mountsBelow(real)).includes(real);
}

/** `source` is seen at `folder`, read-only if so wanted. What is mounted there already stays. Throws SYSCALL_FAILED. */
export async function bind(source: string, folder: string, readOnly: boolean): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o750 });
  if (await isMounted(folder)) return;
  await mountAside(source, folder, null, mountFlags.BIND);
  // A bind mount becomes read-only only when it is there.
  if (readOnly) await makeReadOnly(folder);
}

/** The bind mount at `folder` is read-only from now on. Throws SYSCALL_FAILED. */
export async function makeReadOnly(folder: string): Promise<void> {
  await mountAside(null, folder, null, mountFlags.BIND | mountFlags.REMOUNT | mountFlags.RDONLY);
}

/**
 * mount(8), which knows helpers such as mount.nfs. Throws VOLUME_FAILED with what it said, DEADLINE_EXCEEDED, ABORTED; the
 * program has ended then.
 */
export async function mountByProgram(
  source: string,
  folder: string,
  type: string,
  options: readonly string[],
  signal: AbortSignal | undefined,
): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o750 });
  if (await isMounted(folder)) return;
  const args = ['-t', type, ...(options.length === 0 ? [] : ['-o', options.join(',')]), source, folder];
  const { code, stderr } = await exec('mount', args, {
    deadlineMs: mountMs,
    okCodes: 'any',
    ...aborted(signal),
  });
  if (code !== 0) {
    throw new KeelsonError(
      'VOLUME_FAILED',
      `mount failed: exit status ${code}\nMounting command: mount\nMounting arguments: ${args.join(' ')}\nOutput: ${stderr.trim()}`,
      type === 'nfs' ? { hint: 'NFS needs the package nfs-common on the node' } : {},
    );
  }
}

/** umount(8); where that does not end in time, what is mounted is taken out of sight. Throws SYSCALL_FAILED, ABORTED. */
export async function unmountByProgram(folder: string, signal: AbortSignal | undefined): Promise<void> {
  const quiet = { okCodes: 'any', ...aborted(signal) } as const;
  const end = await exec('umount', [folder], { ...quiet, deadlineMs: 10_000 }).catch((error: unknown) => {
    if (signal?.aborted) throw error;
    return undefined;
  });
  if (end?.code === 0) return;
  // Without helpers, which would ask the server. Where nothing is mounted any more, somebody else did it.
  await unmountAside(folder, umountFlags.NOFOLLOW | umountFlags.FORCE | umountFlags.DETACH);
}

/**
 * Mounts the block device `device`, checked before, and made a file system first where it has none at all (kubelet's
 * SafeFormatAndMount). Throws VOLUME_FAILED; a device with something else on it is left alone.
 */
export async function mountDevice(
  device: string,
  folder: string,
  type: string,
  options: readonly string[],
  signal: AbortSignal | undefined,
): Promise<void> {
  if (await isMounted(folder)) return;
  const found = await contentOf(device, signal);
  if (found === undefined) {
    if (options.includes('ro')) {
      throw new KeelsonError(
        'VOLUME_FAILED',
        `cannot mount unformatted disk ${device} as we are manipulating it in read-only mode`,
      );
    }
    const extra = type === 'ext4' || type === 'ext3' ? ['-F', '-m0'] : type === 'xfs' ? ['-f'] : [];
    const { code, stderr } = await exec(`mkfs.${type}`, [...extra, device], {
      deadlineMs: formatMs,
      okCodes: 'any',
      ...aborted(signal),
    });
    if (code !== 0)
      throw new KeelsonError('VOLUME_FAILED', `failed to format ${device} as ${type}: ${stderr.trim()}`);
  } else if (!options.includes('ro')) {
    await check(device, signal);
  }
  try {
    await mountByProgram(device, folder, type, options, signal);
  } catch (error) {
    if (found === undefined || found === type || !(error instanceof KeelsonError)) throw error;
    throw new KeelsonError(
      'VOLUME_FAILED',
      `failed to mount the volume as "${type}", it already contains ${found}. Mount error: ${error.message}`,
      { cause: error },
    );
  }
}

/** The file system of a device, or what else is on it; undefined where it is blank. */
async function contentOf(device: string, signal: AbortSignal | undefined): Promise<string | undefined> {
  const { code, stdout, stderr } = await exec(
    'blkid',
    ['-p', '-s', 'TYPE', '-s', 'PTTYPE', '-o', 'export', device],
    { deadlineMs: mountMs, okCodes: 'any', ...aborted(signal) },
  );
  // blkid(8): 2 says that nothing was found, and nothing else.
  if (code === 2) return undefined;
  if (code !== 0)
    throw new KeelsonError('VOLUME_FAILED', `cannot see what is on ${device}: ${stderr.trim()}`);
  const facts = new Map(
    stdout
      .toString('utf8')
      .split('\n')
      .map((line) => line.split('=', 2) as [string, string]),
  );
  if (facts.has('PTTYPE')) return 'unknown data, probably partitions';
  return facts.get('TYPE') ?? 'unknown data';
}

/** fsck(8): 1 means that errors were corrected, 4 that some remain; a missing checker or its other troubles stop nothing. */
async function check(device: string, signal: AbortSignal | undefined): Promise<void> {
  const { code, stdout } = await exec('fsck', ['-a', device], {
    deadlineMs: formatMs,
    okCodes: 'any',
    onOverflow: 'discard',
    ...aborted(signal),
  });
  if (code !== 4) return;
  throw new KeelsonError(
    'VOLUME_FAILED',
    `'fsck' found errors on device ${device} but could not correct them: ${stdout.toString('utf8').trim()}`,
  );
}

function aborted(signal: AbortSignal | undefined): { signal?: AbortSignal } {
  return signal === undefined ? {} : { signal };
}
