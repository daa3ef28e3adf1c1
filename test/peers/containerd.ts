/** A newer containerd than the machine's suite has: from Debian's sid, unpacked into the user's cache folder. */
import { access, constants, mkdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { exec } from '../../runtime/host/exec.ts';
import { removeTree } from '../../runtime/host/files.ts';
import { openSuite, unpackPackages } from './debian.ts';

export interface ContainerdPrograms {
  readonly containerd: string;
  readonly ctr: string;
  /** `2.1.9` */
  readonly version: string;
}

/**
 * The programs; downloads them (30 MB) where `cache` does not have them yet. They need glibc 2.34, as Debian 12 has it.
 * Throws EXEC_FAILED where Debian does not answer or the programs do not run here.
 */
export async function containerdPrograms(cache: string, signal?: AbortSignal): Promise<ContainerdPrograms> {
  const folder = join(cache, 'containerd-sid');
  const containerd = join(folder, 'usr/bin/containerd');
  const there = await access(containerd, constants.X_OK).then(
    () => true,
    () => false,
  );
  if (!there) await fetchInto(folder, signal);
  const { stdout } = await exec(containerd, ['--version'], { deadlineMs: 10_000 });
  const version = / v?(\d+\.\d+\.\d+)/.exec(stdout.toString('utf8'))?.[1] ?? stdout.toString('utf8').trim();
  return { containerd, ctr: join(folder, 'usr/bin/ctr'), version };
}

async function fetchInto(folder: string, signal: AbortSignal | undefined): Promise<void> {
  const partial = `${folder}.${process.pid}.partial`;
  try {
    await mkdir(partial, { recursive: true });
    const suite = await openSuite('sid', join(partial, 'apt'), signal);
    await unpackPackages(await suite.download(['containerd']), partial, signal);
    await rm(join(partial, 'apt'), { recursive: true });
    await rename(partial, folder).catch(async (error: unknown) => {
      // Somebody else was faster; theirs is the same.
      await access(join(folder, 'usr/bin/containerd')).catch(() => Promise.reject(error));
    });
  } finally {
    await removeTree(partial);
  }
}
