/** Programs of Debian as files of images. */
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { DebianSuite } from './debian.ts';
import { cacheFolder } from './go-programs.ts';
import { fetchProgram, linkedFiles, suite } from './linked-program.ts';
import type { TarEntry } from './tar.ts';

const packages = ['bash', 'coreutils', 'curl', 'netcat-openbsd', 'util-linux'];
const programs = ['usr/bin/bash', 'usr/bin/curl', 'usr/bin/nsenter', 'bin/nc.openbsd', 'bin/dd'];

/**
 * bash, curl, nsenter, nc and dd, with their libraries; the first call on a machine downloads 20 MB from Debian. busybox's
 * own nsenter would not start the programs of where it enters, but itself for all that it has an applet for; its nc knows
 * no unix sockets, and its dd not all flags. Of the last two a `newBusybox` for images with tools has none.
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

export interface Busyboxes {
  readonly plain: string;
  /** For images with `toolFiles`: its shell would take its own dd and nc whatever lies on the PATH. */
  readonly besideTools: string;
}

/**
 * Paths of a static busybox from sid: newer ones keep variables in a shell's environment whose names are none of a shell's,
 * which pods may have. But newer ones also say in which line of a script something went wrong, which specs do not expect:
 * the words are taken out of the program. Throws INTERNAL where it is another program than expected.
 */
export async function newBusybox(signal?: AbortSignal): Promise<Busyboxes> {
  const root = join(cacheFolder(), 'busybox-sid');
  const program = 'usr/bin/busybox';
  await fetchProgram(root, program, (debian) => debian.download(['busybox-static']), signal, 'sid');
  const put = async (name: string, content: Buffer) => {
    const path = join(root, name);
    await writeFile(`${path}.${process.pid}`, content, { mode: 0o755 });
    await rename(`${path}.${process.pid}`, path);
    return path;
  };
  // As a string of C the line is now empty.
  const plain = changed(await readFile(join(root, program)), 'line %d: ', '\0ine %d: ');
  // Applets are found by their order, which these names keep.
  const besideTools = changed(changed(plain, 'nc', 'nd'), 'dd', 'de');
  return {
    plain: await put('busybox-without-lines', plain),
    besideTools: await put('busybox-beside-tools', besideTools),
  };
}

/** `program` with another string of the same length. Throws INTERNAL where it does not have it once. */
function changed(program: Buffer, from: string, to: string): Buffer {
  const [words, others] = [Buffer.from(`\0${from}\0`), Buffer.from(`\0${to}\0`)];
  const at = program.indexOf(words);
  if (at < 0 || program.includes(words, at + 1)) {
    throw new KeelsonError('INTERNAL', `busybox's ${JSON.stringify(from)} is not there, or twice`);
  }
  const copy = Buffer.from(program);
  others.copy(copy, at);
  return copy;
}
