/** Programs of Debian as files of images. */
import { join } from 'node:path';
import type { DebianSuite } from './debian.ts';
import { cacheFolder } from './go-programs.ts';
import { fetchProgram, linkedFiles, suite } from './linked-program.ts';
import type { TarEntry } from './tar.ts';

const packages = ['bash', 'curl'];

/** `/usr/bin/curl` and `/bin/bash` with their libraries; the first call on a machine downloads 20 MB from Debian. */
export async function curlFiles(signal?: AbortSignal): Promise<TarEntry[]> {
  const root = join(cacheFolder(), `curl-bash-${suite}`);
  const choose = (debian: DebianSuite) => debian.downloadWithDependencies(packages);
  await fetchProgram(root, 'usr/bin/bash', choose, signal);
  const files = [...(await linkedFiles(root, 'usr/bin/curl')), ...(await linkedFiles(root, 'usr/bin/bash'))];
  const seen = new Set<string>();
  return [
    // Both have the loader and some libraries.
    ...files.filter(({ path }) => !seen.has(path) && seen.add(path)),
    { path: 'bin/bash', type: 'symlink', target: '/usr/bin/bash' },
  ];
}

/**
 * Path of a static busybox from sid: newer ones keep variables in a shell's environment whose names are none of a shell's,
 * which pods may have.
 */
export async function newBusybox(signal?: AbortSignal): Promise<string> {
  const root = join(cacheFolder(), 'busybox-sid');
  const program = 'usr/bin/busybox';
  await fetchProgram(root, program, (debian) => debian.download(['busybox-static']), signal, 'sid');
  return join(root, program);
}
