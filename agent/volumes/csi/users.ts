/** What is on disk of CSI volumes: the data beside them, and which pods have one. It outlives the process. */
import { lstat, mkdir, readFile, rm, rmdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { errnoOf, KeelsonError } from '../../../runtime/host/errors.ts';
import { listFolder, temporaryPrefix, writeFileAtomic } from '../../../runtime/host/files.ts';
import { isMounted } from '../kinds/filesystem.ts';
import { dataFile, parseData, plugin, type VolumeData } from './paths.ts';

/** The data in `folder`; undefined where there is none. Throws VOLUME_FAILED for what makes no sense. */
export async function readData(folder: string): Promise<VolumeData | undefined> {
  const file = join(folder, dataFile);
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined;
    throw error;
  }
  const data = parseData(text);
  if (data !== undefined) return data;
  throw new KeelsonError('VOLUME_FAILED', `failed to parse volume data file [${file}]`, {
    hint: 'it says which driver the volume is of: restore it, or unmount the volume by hand and remove the file',
  });
}

/** Writes the data where it is not there yet. */
export async function writeData(folder: string, data: VolumeData): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o750 });
  const text = `${JSON.stringify(data)}\n`;
  const file = join(folder, dataFile);
  if ((await readFile(file, 'utf8').catch(() => '')) === text) return;
  await writeFileAtomic(file, text, { durable: true });
}

/** Removes `mount`, the data beside it and the folder that they are in, unless something is still mounted. */
export async function removeMount(mount: string): Promise<void> {
  if (await isMounted(mount)) return;
  await quietly(rmdir(mount));
  const folder = dirname(mount);
  // Data that a process was writing when it was killed, too.
  for (const name of await listFolder(folder)) {
    if (name.startsWith(temporaryPrefix)) await rm(join(folder, name), { force: true });
  }
  await rm(join(folder, dataFile), { force: true });
  await quietly(rmdir(folder));
}

/** What is not there, or holds something of others, stays as it is. */
export async function quietly(removal: Promise<unknown>): Promise<void> {
  try {
    await removal;
  } catch (error) {
    if (!['ENOENT', 'ENOTEMPTY', 'ENOTDIR', 'EEXIST'].includes(errnoOf(error) ?? '')) throw error;
  }
}

/** Whether anything but the volume in `folder` of the pod `podUid` has the file system, or began to. */
export async function hasOtherMounts(
  kubeletDir: string,
  podUid: string,
  folder: string,
  { driverName, volumeHandle }: VolumeData,
): Promise<boolean> {
  const pods = join(kubeletDir, 'pods');
  for (const uid of await listFolder(pods)) {
    const volumes = join(pods, uid, 'volumes', plugin);
    for (const name of await listFolder(volumes)) {
      if (uid === podUid && name === basename(folder)) continue;
      const data = await readData(join(volumes, name)).catch(() => undefined);
      if (data?.driverName === driverName && data.volumeHandle === volumeHandle) return true;
    }
  }
  return false;
}

/** Whether a pod but `podUid` has the block volume of that name, or began to. */
export async function hasOtherDevices(
  kubeletDir: string,
  podUid: string,
  specName: string,
): Promise<boolean> {
  const pods = join(kubeletDir, 'pods');
  for (const uid of await listFolder(pods)) {
    if (uid === podUid) continue;
    const link = join(pods, uid, 'volumeDevices', plugin, specName);
    if ((await lstat(link).catch(() => undefined)) !== undefined) return true;
  }
  return false;
}
