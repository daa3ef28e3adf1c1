/** A program of Debian as files of an image: with its loader and the libraries that it needs, and nothing else of Debian. */
import { realpathSync } from 'node:fs';
import { access, rename, rm } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { exec } from '../../runtime/host/exec.ts';
import { removeTree } from '../../runtime/host/files.ts';
import { type DebianSuite, openSuite, unpackPackages } from './debian.ts';
import type { TarEntry } from './tar.ts';

/** Of the programs that nothing more is asked of than to be there. */
export const suite = 'bookworm';

/**
 * `root` (in the cache) has the unpacked packages, `program` is a path in it without a leading slash. The folders of the
 * libraries, these, the loader and the program itself.
 */
export async function linkedFiles(root: string, program: string): Promise<TarEntry[]> {
  const loader = (
    await exec('find', [join(root, 'usr/lib'), '-name', 'ld-linux-*.so.*'], { deadlineMs: 10_000 })
  ).stdout
    .toString('utf8')
    .trim()
    .split('\n')[0]!;
  const libraries = join(loader, '..');
  const listed = await exec(loader, ['--library-path', libraries, '--list', join(root, program)], {
    deadlineMs: 10_000,
  });
  // `libz.so.1 => /folder/libz.so.1 (0x…)`; the loader names itself without an arrow, the kernel's library without a path.
  const paths = [...listed.stdout.toString('utf8').matchAll(/=> (\/\S+)/g)].map((match) => match[1]!);
  // The program asks for its loader at the place that the ABI fixes: /lib64 where that exists, else /lib.
  const abi = relative(root, loader).includes('x86_64') ? 'lib64' : 'lib';
  const target = relative(root, libraries);
  return [
    ...[...new Set(['usr/lib', 'lib', 'lib64', target])]
      .sort()
      .map((path): TarEntry => ({ path, type: 'directory' })),
    { path: program, fromHost: join(root, program) },
    ...[...new Set([loader, ...paths])].map(
      (path): TarEntry => ({
        path: `${target}/${path.slice(path.lastIndexOf('/') + 1)}`,
        // The name that is asked for is a link to the file.
        fromHost: realpathSync(path),
        mode: 0o755,
      }),
    ),
    {
      path: `${abi}/${loader.slice(loader.lastIndexOf('/') + 1)}`,
      type: 'symlink',
      target: `/${relative(root, loader)}`,
    },
  ];
}

/** Unpacks what `choose` downloads into `root`, unless `program` is there already. */
export async function fetchProgram(
  root: string,
  program: string,
  choose: (debian: DebianSuite) => Promise<string[]>,
  signal?: AbortSignal,
  from = suite,
): Promise<void> {
  const there = () => access(join(root, program));
  if (
    await there().then(
      () => true,
      () => false,
    )
  )
    return;
  const partial = `${root}.${process.pid}.partial`;
  try {
    const debian = await openSuite(from, join(partial, 'apt'), signal);
    await unpackPackages(await choose(debian), partial, signal);
    await rm(join(partial, 'apt'), { recursive: true });
    await rename(partial, root).catch(async (error: unknown) => {
      // Somebody else was faster; theirs is the same.
      await there().catch(() => Promise.reject(error));
    });
  } finally {
    await removeTree(partial);
  }
}
