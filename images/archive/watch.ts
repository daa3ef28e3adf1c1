/**
 * A folder of archives: what is put there is imported and pinned, one archive after the other, in the background.
 *
 * - What was imported is remembered by size, times and inode, and skipped as long as that stays so, unless an image of
 *   it is gone at a start.
 * - One that fails is logged once, and tried again when it changes (or, where not the archive was at fault, at the
 *   next start).
 * - A removed archive takes nothing with it: its images stay, and stay pinned, since a site without a registry could
 *   not get them again. `removeImage` is the way to be rid of them.
 *
 * When a file is complete: nobody has it open for writing, and it has not changed for `settleMs`, by its own
 * modification time or while we looked. The kernel does not tell of the last close through fs.watch, so while somebody
 * writes it is looked at again every `settleMs`.
 */
import { constants, type FSWatcher, type Stats, watch } from 'node:fs';
import { open, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Image, ImageService } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import type { Database } from '../../runtime/host/database.ts';
import { describe, errnoOf, isError } from '../../runtime/host/errors.ts';
import { ensureFolder } from '../../runtime/host/files.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { hasWriter } from '../../runtime/host/syscalls.ts';
import { rememberArchives } from './remembered.ts';

export interface ImageFolderOptions {
  /** Made where it is not there. */
  readonly folder: string;
  readonly db: Database;
  readonly images: Pick<ImageService, 'imageStatus'> & {
    importImages(
      path: string,
      options: { pin: boolean; gently: boolean; signal: AbortSignal },
    ): Promise<readonly Image[]>;
  };
  readonly log: Logger;
  readonly clock: Clock;
  /** Default 2,000. */
  readonly settleMs?: number;
  readonly onEvent?: (event: ImageFolderEvent) => void;
}

export type ImageFolderEvent =
  | {
      readonly type: 'imported';
      readonly file: string;
      readonly images: readonly Image[];
      readonly ms: number;
    }
  | { readonly type: 'failed'; readonly file: string; readonly error: unknown };

export interface ImageFolder {
  /** Resolves when what was there at the start, and is complete, has been imported or refused. */
  readonly ready: Promise<void>;
  /** Looks again: an image that came from an archive may have gone. */
  look(): void;
  /** Cancels what runs. */
  close(): Promise<void>;
}

/** Entries of a layout folder that are looked at to tell whether it has changed. */
const mostBlobs = 10_000;
/** Where the folder cannot be watched, it is looked at this often. */
const fallbackMs = 60_000;

/** Names that may be archives: not hidden, nor what copying and downloading programs write before they rename. Pure. */
export function isArchiveName(name: string): boolean {
  return !/^\.|~$|\.(?:tmp|temp|part|partial|filepart|crdownload|download|aria2|md5|sha\d+|sig|asc|txt|json)$/i.test(
    name,
  );
}

export function watchImageFolder(options: ImageFolderOptions): ImageFolder {
  const { folder, db, images, log, clock, settleMs = 2000, onEvent } = options;
  const closing = new AbortController();
  const remembered = rememberArchives(db);
  /** Failures for which nothing is to be written down, and when a version was seen first. */
  const failedNow = new Map<string, string>();
  const seen = new Map<string, { readonly version: string; readonly since: number }>();
  let watcher: FSWatcher | undefined;
  let watched: string | undefined;
  let cancelTimer: (() => void) | undefined;
  let running: Promise<void> | undefined;
  let again = false;
  let first = true;

  const poke = (delayMs: number) => {
    // One that is set stays: while one archive grows, others are complete.
    if (closing.signal.aborted || cancelTimer !== undefined) return;
    cancelTimer = clock.after(delayMs, () => {
      cancelTimer = undefined;
      void scan();
    });
  };
  /** Watches the folder; true where it was not watched before, or was another one, and must be read once more. */
  const arm = async (): Promise<boolean> => {
    await ensureFolder(folder);
    const { ino, birthtimeMs } = await stat(folder);
    const identity = `${ino} ${birthtimeMs}`;
    if (identity === watched || closing.signal.aborted) return false;
    watcher?.close();
    watched = undefined;
    const broke = (error: unknown) => {
      log.warn({ err: error, folder }, 'the folder of image archives cannot be watched');
      watcher?.close();
      watched = undefined;
      poke(fallbackMs);
    };
    try {
      watcher = watch(folder, () => poke(settleMs));
      watcher.on('error', broke);
      watched = identity;
      return true;
    } catch (error) {
      broke(error);
      return false;
    }
  };

  const scan = (): Promise<void> => {
    again = running !== undefined;
    running ??= (async () => {
      try {
        do {
          again = false;
          await look();
        } while (again && !closing.signal.aborted);
      } catch (error) {
        if (!closing.signal.aborted)
          log.error({ err: error, folder }, 'cannot read the folder of image archives');
      } finally {
        running = undefined;
      }
    })();
    return running;
  };

  const look = async (): Promise<void> => {
    while (await arm()) {}
    const names = (await readdir(folder)).filter(isArchiveName).sort();
    remembered.keepOnly(names);
    for (const known of [failedNow, seen]) {
      for (const name of known.keys()) if (!names.includes(name)) known.delete(name);
    }
    let unsettled = false;
    for (const name of names) {
      if (closing.signal.aborted) return;
      const found = await versionOf(join(folder, name));
      if (found === undefined || (await isDone(name, found.version))) continue;
      if (!(await isComplete(name, found))) unsettled = true;
      else if (found.isArchive) await take(name, found.version);
    }
    first = false;
    if (unsettled) poke(settleMs);
  };

  const isDone = async (name: string, version: string): Promise<boolean> => {
    if (failedNow.get(name) === version) return true;
    const known = remembered.get(name);
    if (known?.version !== version) return false;
    if (!first || known.failure !== undefined) return true;
    const present = await Promise.all(known.images.map((image) => images.imageStatus({ image })));
    return present.every((image) => image !== undefined);
  };

  const isComplete = async (name: string, { version, changedMs }: Version): Promise<boolean> => {
    const now = clock.monotonic();
    const before = seen.get(name);
    const same = before?.version === version;
    if (!same) seen.set(name, { version, since: now });
    const quiet = (same && now - before.since >= settleMs) || clock.now() - changedMs >= settleMs;
    return quiet && !(await isWritten(join(folder, name)));
  };

  const take = async (name: string, version: string): Promise<void> => {
    const file = join(folder, name);
    const { signal } = closing;
    const started = clock.monotonic();
    try {
      const found = await images.importImages(file, { pin: true, gently: true, signal });
      if ((await versionOf(file))?.version !== version) {
        again = true; // It is another one by now.
        return;
      }
      remembered.put(name, { version, images: found.map(({ id }) => id), failure: undefined });
      const ms = Math.round(clock.monotonic() - started);
      log.info({ file, images: found.length, ms }, 'image archive imported');
      onEvent?.({ type: 'imported', file, images: found, ms });
    } catch (error) {
      if (signal.aborted) return;
      if ((await versionOf(file))?.version !== version) {
        again = true;
        return;
      }
      failedNow.set(name, version);
      if (isError(error, ...faultsOfArchives)) {
        remembered.put(name, { version, images: [], failure: describe(error) });
      }
      log.error(
        { err: error, file },
        `image archive not imported: ${describe(error)}; when it changes it is tried again`,
      );
      onEvent?.({ type: 'failed', file, error });
    }
  };

  return {
    ready: scan(),
    look: () => poke(0),
    async close() {
      closing.abort();
      cancelTimer?.();
      watcher?.close();
      await running;
    },
  };
}

/** What is wrong with the archive itself, and so will be at the next start. */
const faultsOfArchives = [
  'IMAGE_INVALID',
  'IMAGE_UNSUPPORTED',
  'IMAGE_PLATFORM_MISSING',
  'IMAGE_DIGEST_MISMATCH',
  'LAYER_UNSAFE',
] as const;

interface Version {
  readonly version: string;
  /** The newest modification time, Unix milliseconds. */
  readonly changedMs: number;
  /** False for a folder that is no layout, or not yet. */
  readonly isArchive: boolean;
}

/** Undefined for what cannot be an archive, and for what has just gone. */
async function versionOf(path: string): Promise<Version | undefined> {
  const facts = await statOf(path);
  if (facts?.isFile()) {
    return { version: versionText(facts), changedMs: facts.mtimeMs, isArchive: true };
  }
  if (!facts?.isDirectory()) return undefined;
  const names = ['index.json', 'oci-layout'];
  for (const folder of ['blobs/sha256', 'blobs/sha512']) {
    names.push(...(await namesIn(join(path, folder))).map((name) => `${folder}/${name}`));
  }
  let changedMs = facts.mtimeMs;
  let [files, bytes] = [0, 0];
  let isArchive = false;
  for (const name of names.slice(0, mostBlobs)) {
    const found = await statOf(join(path, name));
    if (!found?.isFile()) continue;
    if (name === 'index.json') isArchive = true;
    changedMs = Math.max(changedMs, found.mtimeMs);
    files++;
    bytes += found.size;
  }
  return { version: `folder ${facts.ino} ${files} ${bytes} ${changedMs}`, changedMs, isArchive };
}

const versionText = ({ ino, size, mtimeMs }: Stats): string => `file ${ino} ${size} ${mtimeMs}`;

async function statOf(path: string): Promise<Stats | undefined> {
  return stat(path).catch(() => undefined);
}

async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return [];
    throw error;
  }
}

async function isWritten(path: string): Promise<boolean> {
  try {
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      return (await file.stat()).isFile() && hasWriter(file.fd);
    } finally {
      await file.close();
    }
  } catch {
    return false; // The import will say what is wrong with it.
  }
}
