/** nginx as files of an image: Debian's own, with the libraries that it needs and nothing else of Debian. */
import { join } from 'node:path';
import { cacheFolder } from './go-programs.ts';
import { fetchProgram, linkedFiles, suite } from './linked-program.ts';
import type { TarEntry } from './tar.ts';

const packages = ['nginx', 'libc6', 'libcrypt1', 'libpcre2-8-0', 'libssl3', 'zlib1g'];
const program = 'usr/sbin/nginx';

/** Its folders, its libraries and `/usr/sbin/nginx`; the first call on a machine downloads 9 MB from Debian. */
export async function nginxFiles(signal?: AbortSignal): Promise<TarEntry[]> {
  const root = join(cacheFolder(), `nginx-${suite}`);
  await fetchProgram(root, program, (debian) => debian.download(packages), signal);
  const folders = ['usr/sbin', 'etc/nginx', 'var', 'var/log/nginx', 'var/lib/nginx', 'run'];
  return [
    ...folders.map((path): TarEntry => ({ path, type: 'directory' })),
    { path: 'var/run', type: 'symlink', target: '/run' },
    ...(await linkedFiles(root, program)),
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
