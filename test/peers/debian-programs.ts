/** Programs of Debian as files of images. */
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { DebianSuite } from './debian.ts';
import { cacheFolder } from './go-programs.ts';
import { fetchProgram, linkedFiles, suite } from './linked-program.ts';
import type { TarEntry } from './tar.ts';

const packages = ['bash', 'curl', 'netcat-openbsd', 'util-linux'];
const programs = ['usr/bin/bash', 'usr/bin/curl', 'usr/bin/nsenter', 'bin/nc.openbsd'];

/**
 * bash, curl, nsenter and nc, with their libraries; the first call on a machine downloads 20 MB from Debian. busybox's own
 * nsenter would not start the programs of where it enters, but itself for all that it has an applet for; its nc knows
 * no unix sockets.
 */
export async function toolFiles(signal?: AbortSignal): Promise<TarEntry[]> {
  const root = join(cacheFolder(), `${packages.join('-')}-${suite}`);
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
    { path: 'bin/nc', type: 'symlink', target: '/bin/nc.openbsd' },
  ];
}

/**
 * Path of a static busybox from sid: newer ones keep variables in a shell's environment whose names are none of a shell's,
 * which pods may have. But newer ones also say in which line of a script something went wrong, which specs do not expect:
 * the words are taken out of the program. Throws INTERNAL where it does not have them.
 */
export async function newBusybox(signal?: AbortSignal): Promise<string> {
  const root = join(cacheFolder(), 'busybox-sid');
  const program = 'usr/bin/busybox';
  await fetchProgram(root, program, (debian) => debian.download(['busybox-static']), signal, 'sid');
  const quiet = join(root, 'busybox-without-lines');
  await writeFile(`${quiet}.${process.pid}`, withoutLines(await readFile(join(root, program))), {
    mode: 0o755,
  });
  await rename(`${quiet}.${process.pid}`, quiet);
  return quiet;
}

function withoutLines(program: Buffer): Buffer {
  const words = Buffer.from('\0line %d: \0');
  const at = program.indexOf(words);
  if (at < 0 || program.includes(words, at + 1)) {
    throw new KeelsonError('INTERNAL', "busybox's words for the line of an error are not there, or twice");
  }
  // As a string of C it is now empty.
  return Buffer.from(program).fill(0, at + 1, at + 2);
}
