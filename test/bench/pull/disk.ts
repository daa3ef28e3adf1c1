/** A fresh ext4 for each pull: one on which much was deleted before is slower. */
import { mkdir, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { exec } from '../../../runtime/host/exec.ts';
import { removeTree } from '../../../runtime/host/files.ts';
import { mountsBelow } from '../../peers/machine.ts';

const bytes = 4 * 2 ** 30;
const deadlineMs = 120_000;

export interface Disk {
  readonly folder: string;
  /** Unmounts it and removes it from the machine. Idempotent. */
  close(): Promise<void>;
}

/** Makes and mounts a file system in the file `NAME.img` of `parent`, as the folder `NAME`. */
export async function freshDisk(parent: string, name: string, signal: AbortSignal): Promise<Disk> {
  const file = join(parent, `${name}.img`);
  const folder = join(parent, name);
  let closing: Promise<void> | undefined;
  const close = async () => {
    for (const target of await mountsBelow(folder)) await exec('umount', [target], { deadlineMs });
    // With the file go the pages that are still to be written, so that the next round does not pay for this one.
    await removeTree(file);
    await removeTree(folder);
  };
  const disk: Disk = {
    folder,
    close() {
      closing ??= close();
      return closing;
    },
  };
  try {
    await mkdir(folder);
    await writeFile(file, '');
    await truncate(file, bytes);
    // Lazily made tables would be written by the kernel while the pull is measured.
    const now = 'lazy_itable_init=0,lazy_journal_init=0';
    await exec('mkfs.ext4', ['-q', '-F', '-E', now, file], { deadlineMs, signal });
    await exec('mount', ['-o', 'loop', file, folder], { deadlineMs, signal });
    await exec('sync', ['-f', file], { deadlineMs, signal });
    return disk;
  } catch (error) {
    await disk.close();
    throw error;
  }
}
