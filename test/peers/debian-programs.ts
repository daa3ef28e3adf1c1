/** Programs of Debian as files of images. */
import { join } from 'node:path';
import type { DebianSuite } from './debian.ts';
import { cacheFolder } from './go-programs.ts';
import { fetchProgram, linkedFiles, suite } from './linked-program.ts';
import type { TarEntry } from './tar.ts';

const packages = ['bash', 'curl', 'util-linux'];
const programs = ['usr/bin/bash', 'usr/bin/curl', 'usr/bin/nsenter'];

/**
 * bash, curl and nsenter in `/usr/bin`, with their libraries; the first call on a machine downloads 20 MB from Debian.
 * busybox's own nsenter would not start the programs of where it enters, but itself for all that it has an applet for.
 */
export async function toolFiles(signal?: AbortSignal): Promise<TarEntry[]> {
  const root = join(cacheFolder(), `tools-${suite}`);
  const choose = (debian: DebianSuite) => debian.downloadWithDependencies(packages);
  await fetchProgram(root, programs[0]!, choose, signal);
  const files = (await Promise.all(programs.map((program) => linkedFiles(root, program)))).flat();
  const seen = new Set<string>();
  return [
    // All have the loader and some libraries.
    ...files.filter(({ path }) => !seen.has(path) && seen.add(path)),
    ...['bash', 'nsenter'].map(
      (name): TarEntry => ({ path: `bin/${name}`, type: 'symlink', target: `/usr/bin/${name}` }),
    ),
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
