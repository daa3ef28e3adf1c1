/**
 * Giving a volume to the group of a pod (PodSecurityContext.fsGroup): everything in it becomes the group's, which may read,
 * write and, in folders, pass; new files get the group from their folder (kubelet's volume_linux.go). The walk holds
 * descriptors and follows no link: the volume's writers may change it meanwhile.
 */
import { chmod, chown, constants, type FileHandle, open, readdir } from 'node:fs/promises';
import { abortError, errnoOf } from '../../../runtime/host/errors.ts';

/** open(2) O_PATH: a handle on the place, without opening what is there. */
const O_PATH = 0o10000000;
const setgid = 0o2000;
const groupOfFolder = 0o110;

export interface OwnershipOptions {
  /** Always: default. OnRootMismatch: nothing is done where the volume's own folder is as it should be. */
  readonly changePolicy?: string | undefined;
  readonly readOnly?: boolean;
  readonly signal?: AbortSignal | undefined;
  /** Called for each file and folder that was looked at. */
  readonly onEntry?: () => void;
}

/** Bits that a file or folder gets. Pure. */
export function groupMode(mode: number, isFolder: boolean, readOnly: boolean): number {
  const wanted = readOnly ? 0o440 : 0o660;
  return (mode & 0o7777) | wanted | (isFolder ? setgid | groupOfFolder : 0);
}

/** Whether the volume's own folder says that all is done (kubelet's requiresPermissionChange). Pure. */
export function isOwned(facts: { gid: number; mode: number }, gid: number, readOnly: boolean): boolean {
  return facts.gid === gid && groupMode(facts.mode, true, readOnly) === (facts.mode & 0o7777);
}

/** Gives `folder` to the group `gid`, its own folder last: until it is, all is to be done again. */
export async function setOwnership(
  folder: string,
  gid: number,
  { changePolicy, readOnly = false, signal, onEntry = () => {} }: OwnershipOptions = {},
): Promise<void> {
  const root = await open(folder, O_PATH | constants.O_DIRECTORY);
  try {
    if (changePolicy === 'OnRootMismatch' && isOwned(await root.stat(), gid, readOnly)) return;
    await giveFolder(root, { gid, readOnly, signal, onEntry });
  } finally {
    await root.close();
  }
}

interface Walk extends Required<Pick<OwnershipOptions, 'readOnly' | 'onEntry'>> {
  readonly gid: number;
  readonly signal: AbortSignal | undefined;
}

async function giveFolder(folder: FileHandle, walk: Walk): Promise<void> {
  const { gid, readOnly, signal } = walk;
  const names = await readdir(Buffer.from(`/proc/self/fd/${folder.fd}/.`), { encoding: 'buffer' });
  for (const name of names) {
    if (signal?.aborted) throw abortError(signal, 'giving a volume to its group');
    const path = Buffer.concat([Buffer.from(`/proc/self/fd/${folder.fd}/`), name]);
    let entry: FileHandle;
    try {
      entry = await open(path, O_PATH | constants.O_NOFOLLOW);
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') continue;
      throw error;
    }
    try {
      const facts = await entry.stat();
      if (facts.isSymbolicLink()) continue;
      if (facts.isDirectory()) {
        await giveFolder(entry, walk);
      } else {
        await give(entry, facts, gid, readOnly);
        walk.onEntry();
      }
    } finally {
      await entry.close();
    }
  }
  await give(folder, await folder.stat(), gid, readOnly);
  walk.onEntry();
}

async function give(
  entry: FileHandle,
  facts: { uid: number; gid: number; mode: number; isDirectory(): boolean },
  gid: number,
  readOnly: boolean,
): Promise<void> {
  const place = `/proc/self/fd/${entry.fd}`;
  const mode = groupMode(facts.mode, facts.isDirectory(), readOnly);
  // A change of the owner takes setuid and setgid away.
  if (facts.gid !== gid) await chown(place, facts.uid, gid);
  else if (mode === (facts.mode & 0o7777)) return;
  await chmod(place, mode);
}
