/** Compressed archives, decompressed to a file that has no name: it is gone with its descriptor, even after a crash. */
import { type FileHandle, open, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { abortError, errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import type { Store } from '../store/store.ts';

export type Compression = 'gzip' | 'zstd' | 'none';

/** By the first bytes: what a file is called is often wrong. Pure. */
export function compressionOf(first: Uint8Array): Compression {
  if (first[0] === 0x1f && first[1] === 0x8b) return 'gzip';
  const magic = first[1] === 0xb5 && first[2] === 0x2f && first[3] === 0xfd;
  const skippable = first[1] === 0x2a && first[2] === 0x4d && first[3] === 0x18;
  if ((first[0] === 0x28 && magic) || ((first[0] ?? 0) >> 4 === 5 && skippable)) return 'zstd';
  return 'none';
}

const chunkSize = 256 << 10;
/** Bytes between two looks at the space that is left. */
const spaceEvery = 64 << 20;
/** Bytes of the file system that are left free in any case, unless 5 % of it are less. */
const reserve = 2 ** 30;

/**
 * The decompressed content of `compressed`, open for reading. `limit`: bytes that it may have.
 * Throws IMAGE_INVALID, LAYER_UNSAFE, STORAGE_FULL, ABORTED.
 */
export async function spool(
  store: Pick<Store, 'stage' | 'discard'>,
  compressed: FileHandle,
  compression: 'gzip' | 'zstd',
  limit: number,
  signal?: AbortSignal,
): Promise<FileHandle> {
  const folder = await store.stage();
  let file: FileHandle;
  try {
    file = await open(join(folder, 'archive'), 'wx+', 0o600);
  } finally {
    store.discard(folder);
  }
  const decompress =
    compression === 'gzip' ? createGunzip({ chunkSize }) : createZstdDecompress({ chunkSize });
  let written = 0;
  let looked = 0;
  try {
    await pipeline(
      compressed.createReadStream({ start: 0, autoClose: false, highWaterMark: chunkSize }),
      decompress,
      async (source: AsyncIterable<Buffer>) => {
        for await (const chunk of source) {
          if (written + chunk.length > limit) {
            throw new KeelsonError('LAYER_UNSAFE', `it has more than ${limit} bytes when decompressed`);
          }
          if (written >= looked) {
            looked = written + spaceEvery;
            await checkSpace(folder);
          }
          for (let at = 0; at < chunk.length; ) {
            at += (await file.write(chunk, at, chunk.length - at, written + at)).bytesWritten;
          }
          written += chunk.length;
        }
      },
      { signal },
    );
    return file;
  } catch (error) {
    await file.close();
    if (signal?.aborted) throw abortError(signal, 'decompressing the archive');
    if (error instanceof KeelsonError) throw error;
    if (errnoOf(error) === 'ENOSPC' || errnoOf(error) === 'EDQUOT') throw full(error);
    if (errnoOf(error) !== undefined) throw error;
    throw new KeelsonError('IMAGE_INVALID', `it cannot be decompressed: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

async function checkSpace(folder: string): Promise<void> {
  const { bavail, blocks, bsize } = await statfs(join(folder, '..'));
  if (bavail * bsize < Math.min(reserve, blocks * bsize * 0.05)) throw full();
}

function full(cause?: unknown): KeelsonError {
  return new KeelsonError('STORAGE_FULL', 'no space is left to decompress it', {
    cause,
    hint: 'free some space, or decompress the archive elsewhere: an uncompressed one is read where it lies',
  });
}
