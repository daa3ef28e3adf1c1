/** nginx as files of an image: Debian's own, with the libraries that it needs and nothing else of Debian. */
import { realpathSync } from 'node:fs';
import { access, rename, rm } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { exec } from '../../runtime/host/exec.ts';
import { removeTree } from '../../runtime/host/files.ts';
import { openSuite, unpackPackages } from './debian.ts';
import { cacheFolder } from './go-programs.ts';
import type { TarEntry } from './tar.ts';

const suite = 'bookworm';
const packages = ['nginx', 'libc6', 'libcrypt1', 'libpcre2-8-0', 'libssl3', 'zlib1g'];
const program = 'usr/sbin/nginx';

/** Its folders, its libraries and `/usr/sbin/nginx`; the first call on a machine downloads 9 MB from Debian. */
export async function nginxFiles(signal?: AbortSignal): Promise<TarEntry[]> {
  const root = join(cacheFolder(), `nginx-${suite}`);
  await access(join(root, program)).catch(() => fetchInto(root, signal));
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
  const folders = [
    'usr/sbin',
    'usr/lib',
    'lib',
    'lib64',
    'etc/nginx',
    'var/log/nginx',
    'var/lib/nginx',
    'run',
    'var',
  ];
  const target = relative(root, libraries);
  return [
    ...[...new Set([...folders, target])].sort().map((path): TarEntry => ({ path, type: 'directory' })),
    { path: 'var/run', type: 'symlink', target: '/run' },
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

/** The configuration of one site with files from /www, in the foreground, with its log on standard output. */
export const nginxConfig = (port: number) => `daemon off;
user root;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
  access_log /dev/stdout;
  server { listen ${port}; root /www; }
}
`;

async function fetchInto(root: string, signal: AbortSignal | undefined): Promise<void> {
  const partial = `${root}.${process.pid}.partial`;
  try {
    const debian = await openSuite(suite, join(partial, 'apt'), signal);
    await unpackPackages(await debian.download(packages), partial, signal);
    await rm(join(partial, 'apt'), { recursive: true });
    await rename(partial, root).catch(async (error: unknown) => {
      // Somebody else was faster; theirs is the same.
      await access(join(root, program)).catch(() => Promise.reject(error));
    });
  } finally {
    await removeTree(partial);
  }
}
