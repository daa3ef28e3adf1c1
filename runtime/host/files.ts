/** Writing files so that a crash or a power cut leaves the old content or the new one, never a half. */
import { randomBytes } from 'node:crypto';
import {
  chmod,
  constants,
  type FileHandle,
  lstat,
  mkdir,
  open,
  readdir,
  rename,
  rm,
  writeFile,
} from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { errnoOf } from './errors.ts';

/** Files that this module has not renamed yet start so. */
export const temporaryPrefix = '.keelson-tmp-';

export interface WriteOptions {
  /** Permission bits, exact whatever the umask. Default 0o600. */
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  /** Also survive a power cut: sync the file before, and its folder after the rename. Default false. */
  readonly durable?: boolean;
}

/** Replaces `path` by `content` in one step. The folder must exist. */
export async function writeFileAtomic(
  path: string,
  content: string | Buffer,
  options: WriteOptions = {},
): Promise<void> {
  const temporary = join(
    dirname(path),
    `${temporaryPrefix}${basename(path).slice(0, 64)}-${randomBytes(6).toString('hex')}`,
  );
  const { mode = 0o600, uid, gid, durable = false } = options;
  try {
    if (durable || uid !== undefined || gid !== undefined) {
      await writeNew(temporary, content, { mode, uid, gid, durable });
    } else {
      // The same in fewer trips to the threads of the pool; `wx` takes no link either.
      await writeFile(temporary, content, { flag: 'wx', mode: 0o600 });
      if (mode !== 0o600) await chmod(temporary, mode);
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  if (durable) await syncFolder(dirname(path));
}

async function writeNew(path: string, content: string | Buffer, options: WriteOptions): Promise<void> {
  const { mode = 0o600, uid, gid, durable } = options;
  let handle: FileHandle | undefined;
  try {
    handle = await open(
      path,
      constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
      0o600,
    );
    await handle.writeFile(content);
    if (uid !== undefined || gid !== undefined) await handle.chown(uid ?? 0, gid ?? 0);
    await handle.chmod(mode);
    if (durable) await handle.sync();
  } finally {
    await handle?.close();
  }
}

/** Removes what `writeFileAtomic` of an earlier process, killed in the middle, has left in `folder`. */
export async function sweepTemporaryFiles(folder: string): Promise<void> {
  const names = (await listFolder(folder)).filter((name) => name.startsWith(temporaryPrefix));
  await Promise.all(
    names.map(async (name) => {
      const path = join(folder, name);
      const found = await lstat(path).catch(() => undefined);
      // Younger ones are being written, maybe by another keelson that shares the folder.
      if (found !== undefined && found.mtimeMs < performance.timeOrigin) await rm(path, { force: true });
    }),
  );
}

/** fsync of a folder: makes renames and new names in it survive a power cut. */
export async function syncFolder(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** mkdir -p with an exact mode for the last folder. */
export async function ensureFolder(path: string, mode = 0o755): Promise<void> {
  await mkdir(path, { recursive: true, mode });
}

/** The names in `path`; an empty list where there is no such folder. */
export async function listFolder(path: string): Promise<string[]> {
  try {
    return await readdir(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
}

/** Milliseconds for a tree that only rm(1) can remove. */
const deepRemovalMs = 600_000;

/**
 * Removes a tree; no error where there is none. Never follows links out of it. A container or an image can nest
 * folders deeper than a path can say, which only rm(1) can go down to.
 */
export async function removeTree(path: string): Promise<void> {
  try {
    await rm(path, { recursive: true, force: true, maxRetries: 3, retryDelay: 20 });
  } catch (error) {
    if (errnoOf(error) !== 'ENAMETOOLONG') throw error;
    const { exec } = await import('./exec.ts'); // It loads koffi, which not every command has.
    await exec('rm', ['-rf', '--one-file-system', '--', path], { deadlineMs: deepRemovalMs });
  }
}
