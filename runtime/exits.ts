/** How conmon tells that a container has ended: a file with the exit code, named for the container. */
import { watch } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from './host/errors.ts';

export interface Exit {
  readonly code: number;
  /** Milliseconds since the epoch. */
  readonly at: number;
}

export interface ExitWatch {
  close(): void;
}

/**
 * Calls `onExit` with the name of every file that appears in `folder` from now on, at least once; after lost events
 * with all that are there.
 */
export function watchExits(folder: string, onExit: (name: string) => void): ExitWatch {
  const watcher = watch(folder, (_, name) => {
    // conmon writes a temporary file `<id>.XXXXXX` and renames it.
    if (name !== null) return name.includes('.') ? undefined : onExit(name);
    void readdir(folder).then(
      (names) => names.filter((found) => !found.includes('.')).forEach(onExit),
      () => {},
    );
  });
  watcher.on('error', () => {});
  return { close: () => watcher.close() };
}

/** What the exit file of `id` says; undefined where there is none. */
export async function readExit(folder: string, id: string): Promise<Exit | undefined> {
  const path = join(folder, id);
  try {
    const [text, { mtimeMs }] = await Promise.all([readFile(path, 'latin1'), stat(path)]);
    const code = Number.parseInt(text, 10);
    // -1: conmon could not tell.
    return { code: Number.isInteger(code) && code >= 0 ? code : 255, at: mtimeMs };
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** Pure: the reason that users of Kubernetes know. */
export function exitReason(code: number, oomKilled: boolean): string {
  if (oomKilled) return 'OOMKilled';
  return code === 0 ? 'Completed' : 'Error';
}
