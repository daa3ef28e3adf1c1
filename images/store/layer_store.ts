/**
 * The layers of the store: one folder for each below `layers/`, its map beside it, and a row that says which diffID it
 * holds. Layers are shared by images and never change.
 *
 * A layer becomes real in the order: unpacked in `staging/`, renamed to `layers/`, row written as not synced; it can be
 * used from here on, for a slow disk takes longer to sync than the network to bring it. Soon after, the file system is
 * synced and the row says so. What a power cut finds not synced is trusted no more until it has been verified.
 * It goes in the opposite order.
 */
import { randomBytes } from 'node:crypto';
import { mkdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../runtime/host/clock.ts';
import type { Database } from '../../runtime/host/database.ts';
import { errnoOf } from '../../runtime/host/errors.ts';
import { removeTree } from '../../runtime/host/files.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { mapOf } from '../unpack/tar_map.ts';
import { folderName, sweep } from './start.ts';
import type { KnownLayer, LayerRow, Store, StrayLayer } from './store.ts';

/** Syncing waits for this long after the last layer, so that it does not get in the way of those that still come. */
const calmMs = 1000;

/** By then even a disk that says too early that it has written has done so. */
const settleMs = 600_000;

export type LayerStore = Pick<
  Store,
  | 'stage'
  | 'discard'
  | 'commitLayer'
  | 'hasLayer'
  | 'layerFiles'
  | 'holdLayers'
  | 'isHeld'
  | 'knownLayers'
  | 'suspects'
  | 'doubts'
  | 'strays'
  | 'adoptStray'
  | 'dropStray'
  | 'markLayer'
  | 'collectLayers'
  | 'collectLayersOf'
> & {
  /** Lets go of the replaced folders that only `holder` still had mounted. */
  releaseRetired(holder: string): void;
  folderOf(number: number): string;
  settle(): void;
  /** Resolves when all layers so far are on the disk, and their rows say so. Throws SYSCALL_FAILED. */
  synced(): Promise<void>;
  /** Ends the waiting for a calm moment. */
  close(): void;
  /** Resolves when all removals are done. */
  idle(): Promise<void>;
};

export async function openLayerStore(options: {
  readonly db: Database;
  readonly layersFolder: string;
  readonly stagingFolder: string;
  readonly log: Logger;
  readonly clock: Clock;
  /** Makes all that was written survive a power cut. */
  readonly sync: () => Promise<void>;
  /** The last run ended in a power cut. */
  readonly afterPowerCut: boolean;
}): Promise<LayerStore> {
  const { db, layersFolder, stagingFolder, log, clock, sync } = options;
  const sql = db.statement;
  const removals = new Set<Promise<void>>();
  const held = new Map<string, number>();

  const track = (removal: Promise<void>) => {
    const tracked = removal.finally(() => removals.delete(tracked));
    removals.add(tracked);
  };
  const discard = (folder: string) =>
    track(
      Promise.all([removeTree(folder), rm(mapOf(folder), { force: true })]).then(
        () => {},
        (err: unknown) => log.warn({ err, folder }, 'cannot remove a folder of the image store'),
      ),
    );
  const stagingPath = () => join(stagingFolder, randomBytes(8).toString('hex'));
  const folderOf = (number: number) => join(layersFolder, folderName(number));

  /** Out of `layers/` first, so that a crash in the middle of the removal leaves nothing that looks like a layer. */
  const discardLayer = (number: number) => {
    const grave = stagingPath();
    const folder = folderOf(number);
    track(
      rename(folder, grave)
        .catch(ignoreMissing)
        .then(() => rename(mapOf(folder), mapOf(grave)).catch(ignoreMissing))
        .then(
          () => discard(grave),
          (err: unknown) => log.warn({ err, folder }, 'cannot remove a layer'),
        ),
    );
  };

  const found = await sweep(db, layersFolder, stagingFolder, log, stagingPath, discard);
  let lastNumber = found.highestNumber;
  const strays = new Set(found.strays);
  const select = (where: string) =>
    sql(`SELECT diff_id FROM layers WHERE ${where} AND damaged = 0 ORDER BY number`)
      .all()
      .map((row) => String(row['diff_id']));
  const doubts = options.afterPowerCut ? select('synced = 0') : [];
  // Until they are verified. The others of the newest are trusted meanwhile.
  if (doubts.length > 0) sql('UPDATE layers SET damaged = 1 WHERE synced = 0').run();
  const doubtful = new Set(doubts);
  const suspects = options.afterPowerCut ? select('settled = 0') : [];
  /** Layers whose bytes may not be on the disk yet. */
  const unsynced = new Set(options.afterPowerCut ? [] : select('synced = 0'));
  /** Layers that have not settled, and since when they are on the disk (monotonic). */
  const unsettled = new Map<string, number>();
  for (const row of sql('SELECT diff_id FROM layers WHERE settled = 0').all()) {
    const diffId = String(row['diff_id']);
    if (!suspects.includes(diffId) && !unsynced.has(diffId)) unsettled.set(diffId, clock.monotonic());
  }
  let cancelSync = () => {};
  const synced = async () => {
    cancelSync();
    const these = [...unsynced];
    if (these.length === 0) return;
    await sync();
    db.transaction(() => {
      for (const diffId of these) sql('UPDATE layers SET synced = 1 WHERE diff_id = ?').run(diffId);
    });
    for (const diffId of these) if (unsynced.delete(diffId)) unsettled.set(diffId, clock.monotonic());
  };
  const syncSoon = () => {
    cancelSync();
    cancelSync = clock.after(calmMs, () =>
      track(
        synced().catch((err: unknown) =>
          log.error({ err }, 'the image store could not be written to the disk'),
        ),
      ),
    );
  };
  if (unsynced.size > 0) syncSoon();
  const settle = () => {
    for (const [diffId, since] of unsettled) {
      if (clock.monotonic() - since < settleMs) continue;
      unsettled.delete(diffId);
      sql('UPDATE layers SET settled = 1 WHERE diff_id = ?').run(diffId);
    }
  };

  /** In a transaction. True where containers have the folder mounted, so that it must stay for them. */
  const retire = (number: number, diffId: string): boolean => {
    const { changes } = sql(
      `INSERT OR IGNORE INTO layers_retired (number, holder)
       SELECT DISTINCT ?, holder FROM image_leases JOIN image_layers USING (image) WHERE diff_id = ?`,
    ).run(number, diffId);
    return Number(changes) > 0;
  };

  /** Writes the row of a layer whose folder is there already. False: there is a good one. */
  const addRow = (number: number, { diffId, size, inodes, mapped }: LayerRow, isSynced: boolean): boolean => {
    let unused: number | undefined;
    const added = db.transaction(() => {
      const old = sql('SELECT number, damaged FROM layers WHERE diff_id = ?').get(diffId);
      const values = [number, size, inodes, mapped ? 1 : 0, clock.now(), isSynced ? 1 : 0];
      if (old === undefined) {
        sql(
          'INSERT INTO layers (number, size, inodes, mapped, added, synced, diff_id) VALUES (?, ?, ?, ?, ?, ?, ?)',
        ).run(...values, diffId);
        return true;
      }
      if (old['damaged'] === 0) return false;
      const oldNumber = Number(old['number']);
      if (!retire(oldNumber, diffId)) unused = oldNumber;
      sql(
        `UPDATE layers SET number = ?, size = ?, inodes = ?, mapped = ?, added = ?, synced = ?, damaged = 0, settled = 0
         WHERE diff_id = ?`,
      ).run(...values, diffId);
      return true;
    });
    if (unused !== undefined) discardLayer(unused);
    if (added && isSynced) unsettled.set(diffId, clock.monotonic());
    if (added && !isSynced) {
      unsynced.add(diffId);
      syncSoon();
    }
    settle();
    return added;
  };

  /** In one go with the look whether anybody needs them: nothing can come between. */
  const remove = (rows: readonly Record<string, unknown>[]): number => {
    const unneeded = rows.filter(({ diff_id }) => !held.has(String(diff_id)));
    if (unneeded.length === 0) return 0;
    db.transaction(() => {
      for (const row of unneeded) sql('DELETE FROM layers WHERE diff_id = ?').run(String(row['diff_id']));
    });
    for (const row of unneeded) {
      unsettled.delete(String(row['diff_id']));
      unsynced.delete(String(row['diff_id']));
      discardLayer(Number(row['number']));
    }
    return unneeded.reduce((sum, row) => sum + Number(row['size']), 0);
  };
  const isUnneeded = 'diff_id NOT IN (SELECT diff_id FROM image_layers)';

  return {
    async stage() {
      const folder = stagingPath();
      await mkdir(folder, { mode: 0o755 });
      return folder;
    },
    discard,
    async commitLayer(folder, layer) {
      if (!layer.mapped) await rm(mapOf(folder), { force: true });
      const number = ++lastNumber;
      const target = folderOf(number);
      if (layer.mapped) await rename(mapOf(folder), mapOf(target));
      let added = false;
      try {
        await rename(folder, target);
        added = addRow(number, layer, false);
      } finally {
        // No row (a full disk): nothing else would find it. Or a fetch that was given up was done all the same, and
        // a second one too: one of them is enough.
        if (!added) discardLayer(number);
      }
    },
    hasLayer: (diffId) =>
      sql('SELECT 1 FROM layers WHERE diff_id = ? AND damaged = 0').get(diffId) !== undefined,
    layerFiles(diffId) {
      const row = sql('SELECT number, mapped FROM layers WHERE diff_id = ?').get(diffId);
      if (row === undefined) return undefined;
      const folder = folderOf(Number(row['number']));
      return { folder, map: row['mapped'] === 1 ? mapOf(folder) : undefined };
    },
    holdLayers(diffIds) {
      for (const id of diffIds) held.set(id, (held.get(id) ?? 0) + 1);
      let released = false;
      return () => {
        if (released) return;
        released = true;
        for (const id of diffIds) {
          const count = (held.get(id) ?? 1) - 1;
          if (count === 0) held.delete(id);
          else held.set(id, count);
        }
      };
    },
    isHeld: (diffId) => held.has(diffId),
    knownLayers: () =>
      sql('SELECT diff_id, size, damaged FROM layers ORDER BY number')
        .all()
        .map((row): KnownLayer => {
          const diffId = String(row['diff_id']);
          const images = sql(
            `SELECT DISTINCT coalesce((SELECT name FROM image_names WHERE image = image_layers.image
               ORDER BY name LIKE '%@%', rowid DESC LIMIT 1), image) AS image
             FROM image_layers WHERE diff_id = ? ORDER BY image`,
          ).all(diffId);
          return {
            diffId,
            size: Number(row['size']),
            damaged: row['damaged'] === 1,
            images: images.map(({ image }) => String(image)),
          };
        }),
    suspects,
    doubts,
    strays: () =>
      [...strays].map((number): StrayLayer => {
        const folder = folderOf(number);
        return { number, folder, map: mapOf(folder) };
      }),
    adoptStray(number, layer) {
      if (!strays.delete(number)) return false;
      const added = addRow(number, layer, false);
      if (!added) discardLayer(number);
      return added;
    },
    dropStray(number) {
      if (strays.delete(number)) discardLayer(number);
    },
    markLayer(diffId, state) {
      unsettled.delete(diffId);
      const damaged = state === 'damaged' ? 1 : 0;
      // What is whole may have been read from memory: only those on the disk have settled. What was doubtful at the start
      // has come from the disk.
      if (doubtful.delete(diffId)) sql('UPDATE layers SET synced = 1 WHERE diff_id = ?').run(diffId);
      sql('UPDATE layers SET damaged = ?, settled = synced WHERE diff_id = ?').run(damaged, diffId);
    },
    collectLayersOf(diffIds) {
      const find = sql(`SELECT diff_id, number, size FROM layers WHERE diff_id = ? AND ${isUnneeded}`);
      remove(diffIds.map((id) => find.get(id)).filter((row) => row !== undefined));
    },
    collectLayers(unneededForMs) {
      const now = clock.now();
      const find = sql(
        `SELECT diff_id, number, size FROM layers WHERE (added <= ? OR added > ?) AND ${isUnneeded}`,
      );
      return remove(find.all(now - unneededForMs, now));
    },
    releaseRetired(holder) {
      const numbers = sql('SELECT number FROM layers_retired WHERE holder = ?').all(holder);
      if (numbers.length === 0) return;
      sql('DELETE FROM layers_retired WHERE holder = ?').run(holder);
      for (const { number } of numbers) {
        const other = sql('SELECT 1 FROM layers_retired WHERE number = ?').get(Number(number));
        if (other === undefined) discardLayer(Number(number));
      }
    },
    folderOf,
    settle,
    synced,
    close: () => cancelSync(),
    async idle() {
      while (removals.size > 0) await Promise.all(removals);
    },
  };
}

function ignoreMissing(error: unknown): void {
  if (errnoOf(error) !== 'ENOENT') throw error;
}
