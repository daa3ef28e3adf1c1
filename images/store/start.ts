/**
 * What the start of a store finds of the run before: whether that ended in order, folders without a row, rows without
 * a folder.
 *
 * After a power cut (the last run was not closed, and the boot is another) two kinds of layers are to be verified: those
 * whose rows do not say that they were synced, before anybody gets them; and, since cheap disks say too early that they
 * have written, those that were synced but had not settled by then, meanwhile. A mere kill (the same boot) loses nothing
 * that the kernel has been given.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Database } from '../../runtime/host/database.ts';
import { ensureFolder } from '../../runtime/host/files.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { parseImageConfig } from '../config.ts';
import { mapOf } from '../unpack/tar_map.ts';

/** Another with each start of the machine. */
export function currentBootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

/** The name of a layer's folder: overlayfs takes those of all layers of an image in one page of options. */
export const folderName = (number: number): string => number.toString(36);

/** Removes what stands where a folder of the store should be, and leads to none. */
export async function clearWay(path: string): Promise<void> {
  const found = await stat(path).catch(() => undefined);
  if (!found?.isDirectory()) await rm(path, { force: true });
}

export async function ensureStoreFolder(path: string): Promise<void> {
  await clearWay(path);
  await ensureFolder(path, 0o700);
}

/** Marks that a run begins; returns whether the machine went down in the middle of the one before. */
export function beginRun(db: Database, bootId: string): boolean {
  const sql = db.statement;
  return db.transaction(() => {
    const last = sql('SELECT boot_id, open FROM image_store_run').get();
    const sameBoot = last?.['boot_id'] === bootId;
    const cut = last !== undefined && !sameBoot && last['open'] === 1;
    // Nothing stays mounted over a reboot.
    if (!sameBoot) sql('DELETE FROM layers_retired').run();
    if (!sameBoot && !cut) sql('UPDATE layers SET settled = 1').run();
    sql('INSERT OR REPLACE INTO image_store_run VALUES (1, ?, 1)').run(bootId);
    return cut;
  });
}

export function endRun(db: Database): void {
  db.statement('UPDATE image_store_run SET open = 0').run();
}

/**
 * Removes images whose row is not what it was: the id is the digest of the configuration, which says which layers there
 * are. Their leases go too: containers go on with what they have mounted. The layers stay for the next pull.
 */
export function dropBrokenImages(db: Database, log: Logger): void {
  const sql = db.statement;
  for (const row of sql('SELECT id, config FROM images').all()) {
    const [id, config] = [String(row['id']), Buffer.from(row['config'] as Uint8Array)];
    const rows = sql('SELECT diff_id FROM image_layers WHERE image = ? ORDER BY position').all(id);
    const diffIds = rows.map((layer) => String(layer['diff_id']));
    if (isImage(id, config, diffIds)) continue;
    log.warn({ id }, 'what is remembered of an image is damaged: it must be pulled again');
    db.transaction(() => {
      sql('DELETE FROM image_leases WHERE image = ?').run(id);
      sql('DELETE FROM images WHERE id = ?').run(id);
    });
  }
}

function isImage(id: string, config: Buffer, diffIds: readonly string[]): boolean {
  const [algorithm = '', hex] = id.split(':');
  try {
    if (createHash(algorithm).update(config).digest('hex') !== hex) return false;
    const wanted = parseImageConfig(config, `config ${id}`).diffIds;
    return wanted.length === diffIds.length && wanted.every((diffId, at) => diffId === diffIds[at]);
  } catch {
    return false;
  }
}

export interface Found {
  /** No new layer may take this number or a lower one. */
  readonly highestNumber: number;
  /** Folders with a map and without a row: layers whose row a crash took, most likely. */
  readonly strays: readonly number[];
}

/**
 * Makes rows and folders agree. A layer whose folder is gone is marked as damaged, so that its images are pulled again
 * and their other layers stay. What is half-made goes to `bury`, after it has been moved to a path from `grave`.
 */
export async function sweep(
  db: Database,
  layersFolder: string,
  stagingFolder: string,
  log: Logger,
  grave: () => string,
  bury: (path: string) => void,
): Promise<Found> {
  const sql = db.statement;
  for (const name of await readdir(stagingFolder)) bury(join(stagingFolder, name));
  const entries = await readdir(layersFolder, { withFileTypes: true });
  const folders = new Set(entries.filter((entry) => entry.isDirectory()).map(({ name }) => name));
  const maps = new Set(entries.filter((entry) => entry.isFile()).map(({ name }) => name));
  const wanted = new Set<string>();
  let highestNumber = 0;

  for (const row of sql('SELECT diff_id, number, mapped, damaged FROM layers').all()) {
    const [diffId, number] = [String(row['diff_id']), Number(row['number'])];
    const name = folderName(number);
    highestNumber = Math.max(highestNumber, number);
    wanted.add(name);
    wanted.add(mapOf(name));
    if (!folders.has(name) && row['damaged'] === 0) {
      log.warn(
        { diffId, folder: join(layersFolder, name) },
        'a layer is gone: its images must be pulled again',
      );
      sql('UPDATE layers SET damaged = 1 WHERE diff_id = ?').run(diffId);
    }
    if (row['mapped'] === 1 && !maps.has(mapOf(name))) {
      log.warn(
        { diffId, folder: join(layersFolder, name) },
        'a layer has lost its map: it cannot be verified',
      );
      sql('UPDATE layers SET mapped = 0 WHERE diff_id = ?').run(diffId);
    }
  }
  for (const row of sql('SELECT DISTINCT number FROM layers_retired').all()) {
    const name = folderName(Number(row['number']));
    highestNumber = Math.max(highestNumber, Number(row['number']));
    wanted.add(name);
    wanted.add(mapOf(name));
  }
  const strays: number[] = [];
  for (const { name } of entries) {
    if (wanted.has(name)) {
      if (folders.has(name) || maps.has(name)) continue;
    } else if (name.endsWith('.map')) {
      // The map of a stray stays with it.
      if (maps.has(name) && folders.has(name.slice(0, -4)) && !wanted.has(name.slice(0, -4))) continue;
    } else if (folders.has(name) && maps.has(mapOf(name)) && /^[0-9a-z]{1,8}$/.test(name)) {
      const number = Number.parseInt(name, 36);
      highestNumber = Math.max(highestNumber, number);
      if (folderName(number) === name) {
        strays.push(number);
        continue;
      }
    }
    const path = grave();
    await rename(join(layersFolder, name), path);
    bury(path);
  }
  return { highestNumber, strays };
}
