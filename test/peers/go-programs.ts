/** Programs built once from Go modules that a folder of the checkout pins, into a cache folder outside of it. */
import { createHash } from 'node:crypto';
import { access, constants, mkdir, readFile, rename } from 'node:fs/promises';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import { exec } from '../../runtime/host/exec.ts';
import { removeTree } from '../../runtime/host/files.ts';

export interface GoProgram {
  readonly name: string;
  /** Import path of the main package. */
  readonly package: string;
  readonly ldflags: string;
  /** Its tests are the program. */
  readonly tests?: boolean;
}

export interface GoPrograms {
  /** Absolute path of a folder with go.mod and go.sum. */
  readonly pins: string;
  /** What they are together, with their version: begins the name of the folder in the cache. */
  readonly label: string;
  readonly programs: readonly GoProgram[];
  /** Said to somebody who has no Go. */
  readonly hint: string;
}

/** Where what takes long to make is kept between runs, outside of the checkout. */
export function cacheFolder(): string {
  return join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'keelson');
}

/**
 * The folder that has them, or the reason why they cannot be had here. A build takes minutes where nothing is
 * downloaded yet, and says so on standard error. Throws EXEC_FAILED where the build fails.
 */
export async function goPrograms(
  wanted: GoPrograms,
): Promise<{ readonly folder: string } | { readonly missing: string }> {
  const { pins, label, programs } = wanted;
  const key = createHash('sha256')
    .update(await readFile(join(pins, 'go.mod')))
    .update(await readFile(join(pins, 'go.sum')))
    .update(JSON.stringify([programs, process.arch]))
    .digest('hex')
    .slice(0, 12);
  const folder = join(cacheFolder(), `${label}-${key}`);
  const names = programs.map(({ name }) => name);
  if ((await absentFrom(folder, names)).length === 0) return { folder };
  if (!(await goIsThere())) return { missing: wanted.hint };
  await build(wanted, folder);
  return { folder };
}

/** Builds into a folder beside `folder` and renames it, so that a broken build or two at once leave nothing half. */
async function build({ pins, label, programs }: GoPrograms, folder: string): Promise<void> {
  const temporary = `${folder}.${process.pid}.partial`;
  await mkdir(temporary, { recursive: true });
  try {
    for (const [index, program] of programs.entries()) {
      console.error(
        `building ${program.name} (${index + 1} of ${programs.length}, ${label}), once; may take minutes`,
      );
      const command = program.tests ? ['test', '-c'] : ['build'];
      const flags = ['-mod=readonly', '-trimpath', '-ldflags', program.ldflags];
      await exec('go', [...command, ...flags, '-o', join(temporary, program.name), program.package], {
        cwd: pins,
        env: { ...(process.env as Record<string, string>), CGO_ENABLED: '0', GOFLAGS: '' },
        deadlineMs: 45 * 60_000,
        onOverflow: 'discard',
      });
    }
    const names = programs.map(({ name }) => name);
    await rename(temporary, folder).catch(async (error: unknown) => {
      // Somebody else was faster; theirs is the same.
      if ((await absentFrom(folder, names)).length > 0) throw error;
    });
  } finally {
    await removeTree(temporary);
  }
}

const isExecutable = (path: string) =>
  access(path, constants.X_OK).then(
    () => true,
    () => false,
  );

/** Those of `names` that `folder` does not have. */
export async function absentFrom(folder: string, names: readonly string[]): Promise<string[]> {
  const checks = names.map(async (name) => ((await isExecutable(join(folder, name))) ? [] : [name]));
  return (await Promise.all(checks)).flat();
}

async function goIsThere(): Promise<boolean> {
  const places = (process.env['PATH'] ?? '').split(delimiter).map((place) => join(place, 'go'));
  return (await Promise.all(places.map(isExecutable))).includes(true);
}
