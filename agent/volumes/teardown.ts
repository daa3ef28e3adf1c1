/** Removing a folder that containers have written to: no link is followed and no mount is crossed. */
import { randomUUID } from 'node:crypto';
import { constants, type FileHandle, open, readdir, readFile, rename, rmdir, unlink } from 'node:fs/promises';
import { abortError, errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { temporaryPrefix } from '../../runtime/host/files.ts';

/** Files of one folder that are unlinked at once. */
const width = 8;
/** Folders below this depth are first moved up: each level costs an open descriptor, and containers nest as they like. */
const maxDepth = 64;

interface Removal {
  readonly root: FileHandle;
  /** Mount that the whole tree must be on. */
  readonly mount: string;
  readonly shown: string;
  readonly signal: AbortSignal | undefined;
  moved: number;
}

/**
 * Removes the folder `name` in the folder `parent` and everything in it; no error where there is none. Walks with
 * open descriptors, so that a link put in the way meanwhile leads nowhere. Throws VOLUME_FAILED where something
 * is mounted inside, ABORTED, else the error of the file system.
 */
export async function removeBelow(parent: string, name: string, signal?: AbortSignal): Promise<void> {
  const above = await openFolder(Buffer.from(parent));
  if (above === undefined) return;
  try {
    const root = await openFolder(inside(above, Buffer.from(name)));
    if (root === undefined) return await ignoreMissing(unlink(inside(above, Buffer.from(name))));
    try {
      const removal: Removal = {
        root,
        mount: await mountOf(above),
        shown: `${parent}/${name}`,
        signal,
        moved: 0,
      };
      await checkMount(root, removal);
      // Once more after each time that something deep was moved up here.
      for (let before = -1; before !== removal.moved; ) {
        before = removal.moved;
        await empty(root, 0, removal);
      }
    } finally {
      await root.close();
    }
    await ignoreMissing(rmdir(inside(above, Buffer.from(name))));
  } finally {
    await above.close();
  }
}

/** Names need not be UTF-8, so paths are bytes. */
function inside(folder: FileHandle, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`/proc/self/fd/${folder.fd}/`), name]);
}

/** undefined where there is no folder of that name (nothing, a file, a link). */
async function openFolder(path: Buffer): Promise<FileHandle | undefined> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'ELOOP'].includes(errnoOf(error) ?? '')) return undefined;
    throw error;
  }
}

/** The id of the mount that `folder` was reached through. A bind mount may be of the same device as what is around it. */
async function mountOf(folder: FileHandle): Promise<string> {
  const facts = await readFile(`/proc/self/fdinfo/${folder.fd}`, 'utf8');
  const id = /^mnt_id:\s*(\d+)$/m.exec(facts)?.[1];
  if (id === undefined) throw new KeelsonError('INTERNAL', 'the kernel does not tell the mount of a folder');
  return id;
}

async function checkMount(folder: FileHandle, removal: Removal): Promise<void> {
  if ((await mountOf(folder)) === removal.mount) return;
  throw new KeelsonError('VOLUME_FAILED', `something is mounted in ${removal.shown}: it is not removed`, {
    hint: 'unmount it',
  });
}

async function empty(folder: FileHandle, depth: number, removal: Removal): Promise<void> {
  if (removal.signal?.aborted) throw abortError(removal.signal, `removing ${removal.shown}`);
  const entries = await readdir(Buffer.from(`/proc/self/fd/${folder.fd}/.`), {
    encoding: 'buffer',
    withFileTypes: true,
  });
  const files = entries.filter((entry) => !entry.isDirectory());
  for (let start = 0; start < files.length; start += width) {
    await Promise.all(
      files.slice(start, start + width).map(({ name }) => ignoreMissing(unlink(inside(folder, name)))),
    );
  }
  for (const { name } of entries.filter((entry) => entry.isDirectory())) {
    const path = inside(folder, name);
    const child = await openFolder(path);
    if (child === undefined) {
      await ignoreMissing(unlink(path));
      continue;
    }
    try {
      await checkMount(child, removal);
      if (depth >= maxDepth) {
        // A name that no removal before, cut short, can have left here.
        const free = Buffer.from(`${temporaryPrefix}${randomUUID()}`);
        removal.moved++;
        await rename(path, inside(removal.root, free));
        continue;
      }
      await empty(child, depth + 1, removal);
    } finally {
      await child.close();
    }
    await ignoreMissing(rmdir(path));
  }
}

async function ignoreMissing(work: Promise<void>): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
}
