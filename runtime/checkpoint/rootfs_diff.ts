/** What a container has changed of its image, as checkpoints carry it: an archive of files, and names of deleted ones. */
import type { Dirent } from 'node:fs';
import { lstat, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { exec } from '../host/exec.ts';
import { getXattr } from '../host/syscalls.ts';

export interface RootfsChanges {
  /** Paths of new and changed files and folders, relative to the root, folders before what is in them. */
  readonly changed: readonly string[];
  /** Paths that the image has and the container has not; what is below a deleted folder is not named. */
  readonly deleted: readonly string[];
}

const entriesOf = (folder: string): Promise<Dirent[]> =>
  readdir(folder, { withFileTypes: true }).catch(() => []);

/**
 * Reads overlayfs' upper folder (kernel documentation, overlayfs: whiteouts are devices 0:0, folders with the attribute
 * `opaque` hide what is below them). `layers`: the image's folders.
 */
export async function rootfsChanges(upper: string, layers: readonly string[]): Promise<RootfsChanges> {
  const changed: string[] = [];
  const deleted: string[] = [];
  const look = async (folder: string, hidden: boolean): Promise<void> => {
    const names = new Set<string>();
    for (const entry of await entriesOf(join(upper, folder))) {
      const path = join(folder, entry.name);
      names.add(entry.name);
      if (entry.isCharacterDevice() && (await lstat(join(upper, path))).rdev === 0) {
        deleted.push(path);
        continue;
      }
      changed.push(path);
      if (entry.isDirectory()) await look(path, hidden || isOpaque(join(upper, path)));
    }
    if (!hidden) return;
    const below = await Promise.all(layers.map((layer) => entriesOf(join(layer, folder))));
    const gone = new Set(
      below
        .flat()
        .map(({ name }) => name)
        .filter((name) => !names.has(name)),
    );
    deleted.push(...[...gone].map((name) => join(folder, name)));
  };
  await look('', false);
  return { changed, deleted };
}

function isOpaque(path: string): boolean {
  return getXattr(path, 'trusted.overlay.opaque')?.toString('latin1') === 'y';
}

/** Writes the archive of what is `changed` at `target`, with the help of a file beside it. Throws what `exec` throws. */
export async function packChanges(
  upper: string,
  { changed }: RootfsChanges,
  target: string,
  options: { readonly deadlineMs: number; readonly signal?: AbortSignal },
): Promise<void> {
  const list = `${target}.names`;
  await writeFile(list, changed.map((path) => `${path}\0`).join(''), { mode: 0o600 });
  const which = ['--null', '--no-recursion', '--verbatim-files-from', `--files-from=${list}`];
  const how = ['--numeric-owner', '--xattrs', '--xattrs-include=security.*', '--xattrs-include=user.*'];
  // A process outside may have an open file there: a file that goes meanwhile is no reason to fail.
  await exec(
    'tar',
    ['--create', `--file=${target}`, `--directory=${upper}`, '--ignore-failed-read', ...how, ...which],
    { ...options, okCodes: [0, 1] },
  );
}
