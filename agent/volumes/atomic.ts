/**
 * Writes all files of a volume in one step, as containers expect from kubelet's atomic writer:
 * files are links to `..data/<name>`, `..data` is a link to a dated folder, and an update swaps that one link.
 */
import {
  chmod,
  chown,
  lchown,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rename,
  symlink,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { errnoOf } from '../../runtime/host/errors.ts';
import { removeTree } from '../../runtime/host/files.ts';
import { cleanPayload, type FileProjection, type Payload } from './payload.ts';

const dataLink = '..data';
const newDataLink = '..data_tmp';
const datedName = /^\.\.\d{4}_\d{2}_\d{2}_/;

/** setgid and search for a group on folders, read for a group on all (kubelet's SetVolumeOwnership, read-only). */
const groupOfFolder = 0o2550;
const groupOfFile = 0o440;

export interface AtomicOptions {
  /** The group that is to read everything. */
  readonly fsGroup?: number;
  /** Milliseconds since the epoch: names the dated folder. */
  readonly now: number;
}

/**
 * Makes the existing folder `volume` hold exactly `payload`. Unchanged content is not rewritten; what a crash left
 * behind is removed. Returns true where something was written. Not to be called twice at once for one volume.
 * Throws VOLUME_FAILED for bad paths, else the error of the file system.
 */
export async function writeAtomically(
  volume: string,
  payload: Payload,
  options: AtomicOptions,
): Promise<boolean> {
  const files = cleanPayload(payload);
  const names = await readdir(volume);
  const current = names.includes(dataLink) ? await readlink(join(volume, dataLink)) : undefined;
  const unchanged = current !== undefined && (await holds(join(volume, current), files));
  let dated = current;
  if (!unchanged) {
    const fresh = await mkdtemp(join(volume, `..${stamp(options.now)}.`));
    dated = fresh.slice(volume.length + 1);
    try {
      await chmod(fresh, 0o755);
      await writeFiles(fresh, files);
      if (options.fsGroup !== undefined) await giveToGroup(volume, fresh, options.fsGroup);
      if (names.includes(newDataLink)) await unlink(join(volume, newDataLink));
      await symlink(dated, join(volume, newDataLink));
      await rename(join(volume, newDataLink), join(volume, dataLink));
    } catch (error) {
      await removeTree(fresh);
      throw error;
    }
  }
  await showFiles(volume, names, files, options.fsGroup);
  const leftovers = names.filter((name) => datedName.test(name) && name !== dated);
  await Promise.all(leftovers.map((name) => removeTree(join(volume, name))));
  return !unchanged;
}

/** True where the volume has been written completely at least once. */
export async function isWritten(volume: string): Promise<boolean> {
  return readlink(join(volume, dataLink)).then(
    () => true,
    (error: unknown) => {
      if (errnoOf(error) === undefined) throw error;
      return false;
    },
  );
}

/** `2026_11_23_22_48_18`, as kubelet names them. */
function stamp(now: number): string {
  return new Date(now).toISOString().slice(0, 19).replace(/[-:T]/g, '_');
}

/** The folder has these files with this content, and no others. */
async function holds(folder: string, files: Payload): Promise<boolean> {
  try {
    const entries = await readdir(folder, { recursive: true, withFileTypes: true });
    const present = entries.filter((entry) => !entry.isDirectory());
    if (present.length !== files.size) return false;
    const same = await Promise.all(
      Array.from(files, async ([path, { data }]) => (await readFile(join(folder, path))).equals(data)),
    );
    return same.every(Boolean);
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    return false;
  }
}

async function writeFiles(folder: string, files: Payload): Promise<void> {
  const folders = new Set<string>();
  for (const path of files.keys()) if (path.includes('/')) folders.add(dirname(path));
  for (const path of folders) await makeFolders(folder, path);
  await Promise.all(
    Array.from(files, async ([path, file]) => {
      const target = join(folder, path);
      await writeFile(target, file.data, { flag: 'wx', mode: 0o600 });
      if (file.uid !== undefined) await chown(target, file.uid, 0);
      await chmod(target, file.mode);
    }),
  );
}

/** mkdir -p with mode 0755 whatever the umask. */
async function makeFolders(base: string, path: string): Promise<void> {
  let folder = base;
  for (const step of path.split('/')) {
    folder = join(folder, step);
    try {
      await mkdir(folder);
      await chmod(folder, 0o755);
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
    }
  }
}

async function giveToGroup(volume: string, fresh: string, gid: number): Promise<void> {
  const give = async (path: string) => {
    const { mode, uid } = await lstat(path);
    await chown(path, uid, gid);
    const bits = (mode & 0o170000) === 0o040000 ? groupOfFolder : groupOfFile;
    await chmod(path, (mode & 0o7777) | bits);
  };
  const entries = await readdir(fresh, { recursive: true, withFileTypes: true });
  await Promise.all([volume, fresh, ...entries.map((entry) => join(entry.parentPath, entry.name))].map(give));
}

/** A link for every first step of a path; links to what is gone are removed. */
async function showFiles(
  volume: string,
  names: readonly string[],
  files: Payload,
  fsGroup: number | undefined,
): Promise<void> {
  const wanted = new Map<string, FileProjection>();
  for (const [path, file] of files) wanted.set(path.split('/', 1)[0]!, file);
  const make = async (name: string, file: FileProjection) => {
    const link = join(volume, name);
    await symlink(join(dataLink, name), link);
    if (file.uid !== undefined || fsGroup !== undefined) await lchown(link, file.uid ?? 0, fsGroup ?? 0);
  };
  const drop = async (name: string) => {
    // Folders here are mount points of nested volumes, not ours to remove.
    const target = await readlink(join(volume, name)).catch(() => '');
    if (target === join(dataLink, name)) await unlink(join(volume, name));
  };
  await Promise.all([
    ...Array.from(wanted, ([name, file]) => (names.includes(name) ? undefined : make(name, file))),
    ...names.filter((name) => !name.startsWith('..') && !wanted.has(name)).map(drop),
  ]);
}
