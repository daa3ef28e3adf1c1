/** The images of the store: rows only. An image with a damaged layer counts as not present until that is there again. */
import type { Clock } from '../../runtime/host/clock.ts';
import type { Database } from '../../runtime/host/database.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { LayerStore } from './layer_store.ts';
import { isPresent } from './schema.ts';
import type { ImageUse, Store, StoredImage } from './store.ts';

export type ImageStore = Pick<
  Store,
  | 'commitImage'
  | 'imageOfManifest'
  | 'nameImage'
  | 'setPinned'
  | 'findImage'
  | 'listImages'
  | 'layerFolders'
  | 'lease'
  | 'release'
  | 'removeImage'
  | 'collectImage'
  | 'imageUse'
  | 'usage'
>;

export function makeImageStore(db: Database, layers: LayerStore, clock: Clock): ImageStore {
  const sql = db.statement;

  const used = (id: string) => sql('UPDATE images SET last_used = ? WHERE id = ?').run(clock.now(), id);
  const addNames = (id: string, names: readonly string[], manifestDigests: readonly string[]) => {
    for (const name of names) sql('INSERT OR REPLACE INTO image_names VALUES (?, ?)').run(name, id);
    for (const digest of manifestDigests) {
      sql('INSERT OR REPLACE INTO image_manifests VALUES (?, ?)').run(digest, id);
    }
    used(id);
  };
  const isThere = (id: string) =>
    sql(`SELECT 1 FROM images WHERE id = ? AND ${isPresent}`).get(id) !== undefined;

  const namesOf = (id: string): string[] =>
    sql('SELECT name FROM image_names WHERE image = ? ORDER BY rowid DESC')
      .all(id)
      .map(({ name }) => String(name));
  const layersOf = (id: string): string[] =>
    sql('SELECT DISTINCT diff_id FROM image_layers WHERE image = ?')
      .all(id)
      .map((row) => String(row['diff_id']));
  const read = (row: Record<string, unknown>): StoredImage => {
    const id = String(row['id']);
    const names = namesOf(id);
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

  /** The row, and what only it needed. */
  const remove = (id: string) => {
    const diffIds = layersOf(id);
    sql('DELETE FROM images WHERE id = ?').run(id);
    layers.collectLayersOf(diffIds);
  };

  return {
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
      const row = sql(
        `SELECT images.id FROM image_manifests JOIN images ON images.id = image_manifests.image
         WHERE digest = ? AND ${isPresent}`,
      ).get(digest);
      return row === undefined ? undefined : String(row['id']);
    },
    nameImage(id, names, manifestDigests) {
      if (!isThere(id)) return false;
      db.transaction(() => addNames(id, names, manifestDigests));
      return true;
    },
    setPinned: (id, pinned) => void sql('UPDATE images SET pinned = ? WHERE id = ?').run(pinned ? 1 : 0, id),
    findImage(idOrName) {
      const row = sql(
        `${select} WHERE (id = ?1 OR id = (SELECT image FROM image_names WHERE name = ?1)) AND ${isPresent}`,
      ).get(idOrName);
      return row === undefined ? undefined : read(row);
    },
    listImages: () => sql(`${select} WHERE ${isPresent} ORDER BY id`).all().map(read),
    layerFolders(id) {
      const numbers = sql(
        'SELECT number FROM image_layers JOIN layers USING (diff_id) WHERE image = ? ORDER BY position DESC',
      )
        .all(id)
        .map(({ number }) => Number(number));
      // overlayfs refuses a folder that comes twice. The upper one hides all that the lower one could show.
      return [...new Set(numbers)].map(layers.folderOf);
    },
    lease(id, holder) {
      if (!isThere(id)) throw new KeelsonError('IMAGE_NOT_PRESENT', `image ${id} is not present`);
      db.transaction(() => {
        sql('INSERT OR IGNORE INTO image_leases VALUES (?, ?)').run(holder, id);
        used(id);
      });
    },
    release(holder) {
      db.transaction(() => {
        for (const { image } of sql('SELECT image FROM image_leases WHERE holder = ?').all(holder)) {
          used(String(image));
        }
        sql('DELETE FROM image_leases WHERE holder = ?').run(holder);
      });
      layers.releaseRetired(holder);
    },
    removeImage(id) {
      const lease = sql('SELECT holder FROM image_leases WHERE image = ? LIMIT 1').get(id);
      if (lease !== undefined) {
        throw new KeelsonError('FAILED_PRECONDITION', `image ${id} is in use by ${lease['holder']}`, {
          hint: 'remove the container first',
        });
      }
      remove(id);
    },
    collectImage(id) {
      // Looked at and removed without a pause: no lease, pin or pull can come between.
      const unused = sql(
        `SELECT 1 FROM images WHERE id = ? AND pinned = 0
         AND NOT EXISTS (SELECT 1 FROM image_leases WHERE image = images.id)`,
      ).get(id);
      if (unused === undefined) return false;
      remove(id);
      return true;
    },
    imageUse() {
      layers.settle();
      return sql(
        `SELECT id, pinned, last_used,
           EXISTS (SELECT 1 FROM image_leases WHERE image = images.id) AS leased FROM images ORDER BY id`,
      )
        .all()
        .map((row): ImageUse => {
          const id = String(row['id']);
          return {
            id,
            names: namesOf(id),
            pinned: row['pinned'] === 1,
            leased: row['leased'] === 1,
            lastUsedAt: Number(row['last_used']),
            layers: layersOf(id).map((diffId) => ({
              diffId,
              size: layers.isHeld(diffId)
                ? 0
                : Number(sql('SELECT size FROM layers WHERE diff_id = ?').get(diffId)?.['size'] ?? 0),
            })),
          };
        });
    },
    usage() {
      const row = sql(
        'SELECT coalesce(sum(size), 0) AS size, coalesce(sum(inodes), 0) AS inodes FROM layers',
      ).get();
      return { usedBytes: Number(row?.['size']), usedInodes: Number(row?.['inodes']) };
    },
  };
}
