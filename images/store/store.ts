/**
 * What is remembered of images: rows in state.db, and one folder for each layer below `layers/`.
 *
 * A layer folder has a short number as its name, because overlayfs takes the names of all layers of an image in one
 * page of mount options; its row says which diffID it holds. Layers are shared by images and never change.
 * A layer becomes real in the order: unpacked in `staging/`, synced to the disk, renamed to `layers/`, row written.
 * It goes in the opposite order. So a crash leaves folders without a row, which the next start removes.
 */
import { randomBytes } from 'node:crypto';
import { type FileHandle, mkdir, open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Database } from '../../runtime/host/database.ts';
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { ensureFolder, listFolder, removeTree, syncFolder } from '../../runtime/host/files.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { syncFilesystem } from '../../runtime/host/syscalls.ts';
import { mapOf } from '../unpack/tar_map.ts';
import { groupedSync } from './sync.ts';

export interface ImageRow {
  readonly id: string;
  /** The configuration blob as it came. */
  readonly config: Buffer;
  /** The manifest as it came. */
  readonly manifest: Buffer;
  /** Lowest first. */
  readonly diffIds: readonly string[];
}

export interface LayerRow {
  readonly diffId: string;
  /** Bytes of its files. */
  readonly size: number;
  readonly inodes: number;
  /** Its map is complete (unpack/tar_map.ts). */
  readonly mapped: boolean;
}

export interface Store {
  /** An empty folder to unpack a layer into. */
  stage(): Promise<string>;
  /** Removes what `stage` gave, in the background. */
  discard(folder: string): void;
  /** Makes a staged folder the layer of its diffID; when it returns, the layer survives a power cut. */
  commitLayer(folder: string, layer: LayerRow): Promise<void>;
  hasLayer(diffId: string): boolean;
  /** Where a layer is, absolute; `map` is undefined where its archive cannot be built again from it. */
  layerFiles(diffId: string): { readonly folder: string; readonly map: string | undefined } | undefined;
  /** Keeps layers from being collected, present or not, until the returned function is called. */
  holdLayers(diffIds: readonly string[]): () => void;
  /**
   * Writes an image whose layers are all there, gives it `names` (normalised tag and digest references, taken from
   * whatever image had them) and notes that the manifests of `manifestDigests` mean it. `pin` keeps it from collection,
   * until it is removed; without it a pinned image stays so.
   */
  commitImage(
    image: ImageRow,
    names: readonly string[],
    manifestDigests: readonly string[],
    pin?: boolean,
  ): void;
  /** The image that a manifest or index with this digest was resolved to, where it is still here. */
  imageOfManifest(digest: string): string | undefined;
  /** Gives an image further names and manifests; false where it has just been removed. */
  nameImage(id: string, names: readonly string[], manifestDigests: readonly string[]): boolean;
  /** The image with this id or normalised name. */
  findImage(idOrName: string): StoredImage | undefined;
  listImages(): StoredImage[];
  /** Absolute folders of its layers, topmost first, each once. */
  layerFolders(id: string): string[];
  /** Throws IMAGE_NOT_PRESENT for an unknown image. */
  lease(id: string, holder: string): void;
  release(holder: string): void;
  /** Removes an image and what only it needed. Throws FAILED_PRECONDITION while it is leased; no error where unknown. */
  removeImage(id: string): void;
  /** Removes layers that no image has and nobody holds. */
  collectLayers(): void;
  usage(): { usedBytes: number; usedInodes: number };
  /** Waits for removals that are under way. */
  close(): Promise<void>;
}

export interface StoredImage {
  readonly id: string;
  readonly config: Buffer;
  readonly size: number;
  readonly repoTags: readonly string[];
  /** Newest first. */
  readonly repoDigests: readonly string[];
  readonly pinned: boolean;
}

const schema = [
  `CREATE TABLE images (
     id TEXT PRIMARY KEY, config BLOB NOT NULL, manifest BLOB NOT NULL, pinned INTEGER NOT NULL DEFAULT 0
   ) STRICT;
   CREATE TABLE image_names (
     name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images ON DELETE CASCADE
   ) STRICT;
   CREATE INDEX image_names_image ON image_names (image);
   CREATE TABLE image_manifests (
     digest TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images ON DELETE CASCADE
   ) STRICT;
   CREATE INDEX image_manifests_image ON image_manifests (image);
   CREATE TABLE layers (
     diff_id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, size INTEGER NOT NULL, inodes INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE image_layers (
     image TEXT NOT NULL REFERENCES images ON DELETE CASCADE, position INTEGER NOT NULL,
     diff_id TEXT NOT NULL REFERENCES layers, PRIMARY KEY (image, position)
   ) STRICT;
   CREATE INDEX image_layers_layer ON image_layers (diff_id);
   CREATE TABLE image_leases (
     holder TEXT NOT NULL, image TEXT NOT NULL REFERENCES images, PRIMARY KEY (holder, image)
   ) STRICT;
   CREATE INDEX image_leases_image ON image_leases (image);`,
  `ALTER TABLE layers ADD COLUMN mapped INTEGER NOT NULL DEFAULT 0;`,
];

function ignoreMissing(error: unknown): void {
  if (errnoOf(error) !== 'ENOENT') throw error;
}

const folderName = (number: number): string => number.toString(36);

/** Opens the store below `stateDir`, after removing what a crash left half-made. */
export async function openStore(db: Database, stateDir: string, log: Logger): Promise<Store> {
  db.migrate('images', schema);
  const layersFolder = join(stateDir, 'layers');
  const stagingFolder = join(stateDir, 'staging');
  // Nobody but root may walk into layers: they hold setuid programs and device nodes.
  await Promise.all([ensureFolder(layersFolder, 0o700), ensureFolder(stagingFolder, 0o700)]);

  const sql = db.statement;
  const removals = new Set<Promise<void>>();
  const held = new Map<string, number>();

  const discard = (folder: string) => {
    const removal = Promise.all([removeTree(folder), rm(mapOf(folder), { force: true })])
      .then(() => {})
      .catch((err: unknown) => log.warn({ err, folder }, 'cannot remove a folder of the image store'))
      .finally(() => removals.delete(removal));
    removals.add(removal);
  };
  const stagingPath = () => join(stagingFolder, randomBytes(8).toString('hex'));

  /** Out of `layers/` first, so that a crash in the middle of the removal leaves nothing that looks like a layer. */
  const discardLayer = (number: number) => {
    const grave = stagingPath();
    const folder = join(layersFolder, folderName(number));
    const removal = rename(folder, grave)
      .then(() => rename(mapOf(folder), mapOf(grave)).catch(ignoreMissing))
      .then(
        () => discard(grave),
        (err: unknown) => log.warn({ err, layer: folderName(number) }, 'cannot remove a layer'),
      )
      .finally(() => removals.delete(removal));
    removals.add(removal);
  };

  const sweep = async () => {
    for (const name of await listFolder(stagingFolder)) discard(join(stagingFolder, name));
    const folders = new Set((await listFolder(layersFolder)).filter((name) => !name.endsWith('.map')));
    for (const row of sql('SELECT diff_id, number FROM layers').all()) {
      const name = folderName(Number(row['number']));
      if (folders.delete(name)) continue;
      const diffId = String(row['diff_id']);
      log.warn(
        { diffId, folder: join(layersFolder, name) },
        'a layer is gone: its images must be pulled again',
      );
      db.transaction(() => {
        // Containers go on running from what they have mounted, but nothing is left to be kept for them.
        const images = sql('SELECT DISTINCT image FROM image_layers WHERE diff_id = ?').all(diffId);
        for (const { image } of images) {
          sql('DELETE FROM image_leases WHERE image = ?').run(String(image));
          sql('DELETE FROM images WHERE id = ?').run(String(image));
        }
        sql('DELETE FROM layers WHERE diff_id = ?').run(diffId);
      });
    }
    for (const name of folders) {
      const grave = stagingPath();
      await rename(join(layersFolder, name), grave);
      discard(grave);
    }
    const rows = sql('SELECT number FROM layers').all();
    const maps = new Set(rows.map(({ number }) => mapOf(folderName(Number(number)))));
    for (const name of await listFolder(layersFolder)) {
      if (name.endsWith('.map') && !maps.has(name)) await rm(join(layersFolder, name), { force: true });
    }
  };
  await sweep();

  let lastNumber = Number(sql('SELECT max(number) AS number FROM layers').get()?.['number'] ?? 0);
  const stateFolder: FileHandle = await open(stateDir, 'r');
  const sync = groupedSync(() => syncFilesystem(stateFolder.fd));

  const addNames = (id: string, names: readonly string[], manifestDigests: readonly string[]) => {
    for (const name of names) sql('INSERT OR REPLACE INTO image_names VALUES (?, ?)').run(name, id);
    for (const digest of manifestDigests) {
      sql('INSERT OR REPLACE INTO image_manifests VALUES (?, ?)').run(digest, id);
    }
  };

  const read = (row: Record<string, unknown>): StoredImage => {
    const id = String(row['id']);
    const names = sql('SELECT name FROM image_names WHERE image = ? ORDER BY rowid DESC')
      .all(id)
      .map(({ name }) => String(name));
    return {
      id,
      config: Buffer.from(row['config'] as Uint8Array),
      size: Number(row['size']),
      repoTags: names.filter((name) => !name.includes('@')),
      repoDigests: names.filter((name) => name.includes('@')),
      pinned: row['pinned'] === 1,
    };
  };
  const select = `SELECT id, config, pinned, (
      SELECT coalesce(sum(size), 0) FROM layers WHERE diff_id IN (
        SELECT diff_id FROM image_layers WHERE image = images.id)
    ) AS size FROM images`;

  const collectLayers = () => {
    const rows = sql(
      'SELECT diff_id, number FROM layers WHERE diff_id NOT IN (SELECT diff_id FROM image_layers)',
    ).all();
    const unneeded = rows.filter(({ diff_id }) => !held.has(String(diff_id)));
    if (unneeded.length === 0) return;
    db.transaction(() => {
      for (const row of unneeded) sql('DELETE FROM layers WHERE diff_id = ?').run(String(row['diff_id']));
    });
    for (const row of unneeded) discardLayer(Number(row['number']));
  };
  collectLayers();

  return {
    async stage() {
      const folder = stagingPath();
      await mkdir(folder, { mode: 0o755 });
      return folder;
    },
    discard,
    async commitLayer(folder, { diffId, size, inodes, mapped }) {
      if (!mapped) await rm(mapOf(folder), { force: true });
      await sync();
      const number = ++lastNumber;
      const target = join(layersFolder, folderName(number));
      if (mapped) await rename(mapOf(folder), mapOf(target));
      await rename(folder, target);
      let added = false;
      try {
        await syncFolder(layersFolder);
        const row = sql(
          'INSERT OR IGNORE INTO layers (diff_id, number, size, inodes, mapped) VALUES (?, ?, ?, ?, ?)',
        ).run(diffId, number, size, inodes, mapped ? 1 : 0);
        added = row.changes === 1;
      } finally {
        // No row (a full disk): nothing else would find it. Or a fetch that was given up was done all the same, and
        // a second one too: one of them is enough.
        if (!added) discardLayer(number);
      }
    },
    hasLayer: (diffId) => sql('SELECT 1 FROM layers WHERE diff_id = ?').get(diffId) !== undefined,
    layerFiles(diffId) {
      const row = sql('SELECT number, mapped FROM layers WHERE diff_id = ?').get(diffId);
      if (row === undefined) return undefined;
      const folder = join(layersFolder, folderName(Number(row['number'])));
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
    commitImage({ id, config, manifest, diffIds }, names, manifestDigests, pin = false) {
      db.transaction(() => {
        const added = sql('INSERT OR IGNORE INTO images (id, config, manifest) VALUES (?, ?, ?)').run(
          id,
          config,
          manifest,
        );
        if (added.changes === 1) {
          for (const [position, diffId] of diffIds.entries()) {
            sql('INSERT INTO image_layers VALUES (?, ?, ?)').run(id, position, diffId);
          }
        }
        addNames(id, names, manifestDigests);
        if (pin) sql('UPDATE images SET pinned = 1 WHERE id = ?').run(id);
      });
    },
    imageOfManifest(digest) {
      const row = sql('SELECT image FROM image_manifests WHERE digest = ?').get(digest);
      return row === undefined ? undefined : String(row['image']);
    },
    nameImage(id, names, manifestDigests) {
      if (sql('SELECT 1 FROM images WHERE id = ?').get(id) === undefined) return false;
      db.transaction(() => addNames(id, names, manifestDigests));
      return true;
    },
    findImage(idOrName) {
      const row = sql(`${select} WHERE id = ?1 OR id = (SELECT image FROM image_names WHERE name = ?1)`).get(
        idOrName,
      );
      return row === undefined ? undefined : read(row);
    },
    listImages: () => sql(`${select} ORDER BY id`).all().map(read),
    layerFolders(id) {
      const numbers = sql(
        'SELECT number FROM image_layers JOIN layers USING (diff_id) WHERE image = ? ORDER BY position DESC',
      )
        .all(id)
        .map(({ number }) => Number(number));
      // overlayfs refuses a folder that comes twice. The upper one hides all that the lower one could show.
      return [...new Set(numbers)].map((number) => join(layersFolder, folderName(number)));
    },
    lease(id, holder) {
      if (sql('SELECT 1 FROM images WHERE id = ?').get(id) === undefined) {
        throw new KeelsonError('IMAGE_NOT_PRESENT', `image ${id} is not present`);
      }
      sql('INSERT OR IGNORE INTO image_leases VALUES (?, ?)').run(holder, id);
    },
    release(holder) {
      sql('DELETE FROM image_leases WHERE holder = ?').run(holder);
    },
    removeImage(id) {
      const lease = sql('SELECT holder FROM image_leases WHERE image = ? LIMIT 1').get(id);
      if (lease !== undefined) {
        throw new KeelsonError('FAILED_PRECONDITION', `image ${id} is in use by ${lease['holder']}`, {
          hint: 'remove the container first',
        });
      }
      sql('DELETE FROM images WHERE id = ?').run(id);
      collectLayers();
    },
    collectLayers,
    usage() {
      const row = sql(
        'SELECT coalesce(sum(size), 0) AS size, coalesce(sum(inodes), 0) AS inodes FROM layers',
      ).get();
      return { usedBytes: Number(row?.['size']), usedInodes: Number(row?.['inodes']) };
    },
    async close() {
      while (removals.size > 0) await Promise.all(removals);
      await stateFolder.close();
    },
  };
}
