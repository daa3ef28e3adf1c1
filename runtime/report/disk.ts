/** The file system that holds what containers write, and the names of the devices below. */
import { readFile, stat, statfs } from 'node:fs/promises';

export interface DiskFacts {
  /** `/dev/sda1`, or '' where it has none of its own. */
  readonly device: string;
  readonly totalBytes: number;
  readonly totalInodes: number;
  readonly freeInodes: number;
  /** `8:0` → `/dev/sda`. */
  readonly names: ReadonlyMap<string, string>;
}

/** Of the file system of `path`, with the names of `devices`. */
export async function diskFacts(path: string, devices: readonly string[]): Promise<DiskFacts> {
  const [sizes, info] = await Promise.all([
    statfs(path).catch(() => ({ blocks: 0, bsize: 0, files: 0, ffree: 0 })),
    stat(path).catch(() => ({ dev: 0 })),
  ]);
  // makedev(3), as glibc packs the numbers.
  const major = ((info.dev >> 8) & 0xfff) | ((info.dev / 2 ** 32) & ~0xfff);
  const minor = (info.dev & 0xff) | ((info.dev >> 12) & ~0xff);
  const own = `${major}:${minor}`;
  const wanted = [...new Set([...devices, own])];
  const found = await Promise.all(wanted.map(async (number) => [number, await deviceName(number)] as const));
  const names = new Map(found.filter(([, name]) => name !== ''));
  return {
    device: names.get(own) ?? '',
    totalBytes: sizes.blocks * sizes.bsize,
    totalInodes: sizes.files,
    freeInodes: sizes.ffree,
    names,
  };
}

async function deviceName(number: string): Promise<string> {
  const facts = await readFile(`/sys/dev/block/${number}/uevent`, 'latin1').catch(() => '');
  const name = /^DEVNAME=(.+)$/m.exec(facts)?.[1];
  return name === undefined ? '' : `/dev/${name}`;
}
