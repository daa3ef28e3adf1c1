/**
 * Compressed layers that are kept, for repairing and exporting without the network: `blobs/<algorithm>/<hex>` below
 * the state folder, and a row for each.
 *
 * A blob becomes real in the order: file synced, renamed, folder synced, row. It goes in the opposite order. So a crash
 * leaves files without a row, which the next start removes. Who reads one verifies it again: disks rot.
 */
import { createHash } from 'node:crypto';
import { constants, type FileHandle, lstat, mkdir, open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Database } from '../../runtime/host/database.ts';
import { errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import { listFolder, syncFolder } from '../../runtime/host/files.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { clearWay, ensureStoreFolder } from './start.ts';

export interface KeptBlob {
  /** `sha256:…` or `sha512:…` of the bytes as they came. */
  readonly digest: string;
  /** Bytes, compressed. */
  readonly size: number;
  readonly mediaType: string;
  /** sha256 of the archive that it unpacks to. */
  readonly diffId: string;
}

export interface Blobs {
  /** A blob that unpacks to the layer `diffId`, the newest where there are several. */
  blobOf(diffId: string): KeptBlob | undefined;
  find(digest: string): KeptBlob | undefined;
  list(): KeptBlob[];
  /** For reading; the caller closes it. Throws NOT_FOUND. */
  open(digest: string): Promise<FileHandle>;
  /**
   * Takes the verified file `path` (on the same file system) as a blob. When it returns, the blob survives a power cut.
   * Throws what the disk says; the file may then be anywhere or nowhere.
   */
  add(path: string, blob: KeptBlob): Promise<void>;
  /** Whether the bytes on disk are still what the digest says; false where there are none. */
  verify(digest: string): Promise<boolean>;
  /** Idempotent. */
  remove(digest: string): Promise<void>;
  /** At a start: removes files that have no row, and rows whose file is gone or has another size. */
  sweep(): Promise<void>;
  /**
   * Removes all blobs but those in `keep` (digests that the manifests of images name) and those of layers that
   * `isHeld`: a pull puts its blobs here before the image that names them is written. Returns how many went.
   */
  collect(keep: ReadonlySet<string>, isHeld?: (diffId: string) => boolean): Promise<number>;
}

const schema = [
  `CREATE TABLE blobs (
     digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT NOT NULL, diff_id TEXT NOT NULL
   ) STRICT;
   CREATE INDEX blobs_layer ON blobs (diff_id);`,
];
const algorithms = ['sha256', 'sha512'];

/** The blob store below `stateDir`. `sweep` is the caller's to call. */
export async function openBlobs(db: Database, stateDir: string, log: Logger): Promise<Blobs> {
  db.migrate('blobs', schema);
  const root = join(stateDir, 'blobs');
  await ensureStoreFolder(root);
  await Promise.all(algorithms.map((algorithm) => clearWay(join(root, algorithm))));
  const sql = db.statement;
  const read = (row: Record<string, unknown> | undefined): KeptBlob | undefined =>
    row && {
      digest: String(row['digest']),
      size: Number(row['size']),
      mediaType: String(row['media_type']),
      diffId: String(row['diff_id']),
    };
  const pathOf = (digest: string) => join(root, ...(digest.split(':') as [string, string]));
  const list = () =>
    sql('SELECT * FROM blobs ORDER BY digest')
      .all()
      .map((row) => read(row)!);

  const remove = async (digest: string) => {
    sql('DELETE FROM blobs WHERE digest = ?').run(digest);
    await rm(pathOf(digest), { force: true });
  };

  const openBlob = async (digest: string): Promise<FileHandle> => {
    try {
      return await open(pathOf(digest), constants.O_RDONLY | constants.O_NOFOLLOW);
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error;
      throw new KeelsonError('NOT_FOUND', `blob ${digest} is not kept in ${root}`);
    }
  };

  return {
    blobOf: (diffId) =>
      read(sql('SELECT * FROM blobs WHERE diff_id = ? ORDER BY rowid DESC LIMIT 1').get(diffId)),
    find: (digest) => read(sql('SELECT * FROM blobs WHERE digest = ?').get(digest)),
    list,
    open: openBlob,
    async verify(digest) {
      const [algorithm, hex] = digest.split(':') as [string, string];
      try {
        const hash = createHash(algorithm);
        // In small pieces: other work of the main thread comes between them.
        const stream = (await openBlob(digest)).createReadStream({ highWaterMark: 256 << 10 });
        for await (const chunk of stream as AsyncIterable<Buffer>) hash.update(chunk);
        return hash.digest('hex') === hex;
      } catch (error) {
        if (isError(error, 'NOT_FOUND') || errnoOf(error) === 'EIO') return false;
        throw error;
      }
    },
    async add(path, blob) {
      const target = pathOf(blob.digest);
      const folder = join(target, '..');
      if ((await mkdir(folder, { recursive: true, mode: 0o700 })) !== undefined) {
        await syncFolder(root);
        await syncFolder(stateDir);
      }
      const handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
      try {
        await handle.sync();
      } finally {
        await handle.close();
      }
      await rename(path, target);
      await syncFolder(folder);
      const { digest, size, mediaType, diffId } = blob;
      sql('INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)').run(digest, size, mediaType, diffId);
    },
    remove,
    async sweep() {
      const unnamed = new Set<string>();
      for (const algorithm of algorithms) {
        for (const name of await listFolder(join(root, algorithm))) unnamed.add(`${algorithm}:${name}`);
      }
      for (const { digest, size } of list()) {
        const found = unnamed.delete(digest) ? (await lstat(pathOf(digest))).size : undefined;
        if (found === size) continue;
        log.warn({ digest, size, found }, 'a kept blob is gone or damaged');
        await remove(digest);
      }
      for (const digest of unnamed) await rm(pathOf(digest), { recursive: true, force: true });
    },
    async collect(keep, isHeld = () => false) {
      const unneeded = list().filter(({ digest, diffId }) => !keep.has(digest) && !isHeld(diffId));
      for (const { digest } of unneeded) await remove(digest);
      return unneeded.length;
    },
  };
}
