/**
 * The map of an unpacked layer: what its archive had besides the contents of files, so that the archive can be built
 * again, byte for byte, from the layer's folder. With it a layer on disk can be checked against its diffID, and an image
 * can be exported, without the compressed blob being kept.
 *
 * A map is a sequence of frames: u32 length, then so many bytes of zstd. A frame holds records, numbers little-endian:
 *   1, u32 n, n bytes                        bytes of the archive, as they are
 *   2, u32 n                                 n zero bytes
 *   3, u16 n, path, f64 offset, f64 length   content of the file at `path` (a byte string) below the folder
 */
import { writeSync } from 'node:fs';
import { type FileHandle, constants as fsConstants, open, realpath } from 'node:fs/promises';
import { dirname } from 'node:path';
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';

export interface TarMap {
  /** Bytes of the archive that are no file's content. */
  meta(bytes: Buffer): void;
  /** `length` bytes at `offset` of the file at `path` (byte string, without a slash before it). */
  content(path: string, offset: number, length: number): void;
  /** Writes what is left. */
  finish(): void;
}

/** Where the map of the layer in `folder` is: beside it. */
export function mapOf(folder: string): string {
  return `${folder}.map`;
}

const frameSize = 256 << 10;
const kinds = { bytes: 1, zeros: 2, content: 3 } as const;
const zeros = Buffer.alloc(frameSize);
/** What reads and yields at once. */
const pieceSize = 256 << 10;

/** Writes a map into the file `fd`, synchronously: for a thread of its own. */
export function makeTarMap(fd: number): TarMap {
  const frame = Buffer.allocUnsafe(frameSize);
  let at = 0;

  const flush = () => {
    if (at === 0) return;
    const packed = zstdCompressSync(frame.subarray(0, at), {
      params: { [constants.ZSTD_c_compressionLevel]: 1 },
    });
    at = 0;
    const length = Buffer.alloc(4);
    length.writeUInt32LE(packed.length);
    for (const part of [length, packed]) {
      for (let from = 0; from < part.length; ) from += writeSync(fd, part, from);
    }
  };
  const room = (length: number) => {
    if (at + length > frameSize) flush();
  };

  return {
    meta(bytes) {
      for (let from = 0; from < bytes.length; ) {
        const piece = bytes.subarray(from, from + frameSize - 5);
        from += piece.length;
        const empty = piece.equals(zeros.subarray(0, piece.length));
        room(empty ? 5 : 5 + piece.length);
        frame[at] = empty ? kinds.zeros : kinds.bytes;
        frame.writeUInt32LE(piece.length, at + 1);
        at += 5;
        if (!empty) at += piece.copy(frame, at);
      }
    },
    content(path, offset, length) {
      room(3 + path.length + 16);
      frame[at] = kinds.content;
      frame.writeUInt16LE(path.length, at + 1);
      at += 3 + frame.write(path, at + 3, 'latin1');
      frame.writeDoubleLE(offset, at);
      frame.writeDoubleLE(length, at + 8);
      at += 16;
    },
    finish: flush,
  };
}

type MapRecord =
  | { readonly kind: 'bytes'; readonly bytes: Buffer }
  | { readonly kind: 'content'; readonly path: Buffer; readonly offset: number; readonly length: number };

/** The records of one frame. Throws LAYER_DAMAGED. Pure. */
export function readMapFrame(packed: Buffer): MapRecord[] {
  const records: MapRecord[] = [];
  try {
    const frame = zstdDecompressSync(packed, { maxOutputLength: frameSize });
    for (let at = 0; at < frame.length; ) {
      const kind = frame[at];
      if (kind === kinds.content) {
        const length = frame.readUInt16LE(at + 1);
        const path = frame.subarray(at + 3, at + 3 + length);
        at += 3 + length;
        records.push({
          kind: 'content',
          path,
          offset: frame.readDoubleLE(at),
          length: frame.readDoubleLE(at + 8),
        });
        at += 16;
        continue;
      }
      const length = frame.readUInt32LE(at + 1);
      at += 5;
      if (length > frameSize) throw new Error('a record is too long');
      if (kind === kinds.zeros) records.push({ kind: 'bytes', bytes: zeros.subarray(0, length) });
      else if (kind === kinds.bytes && at + length <= frame.length) {
        records.push({ kind: 'bytes', bytes: frame.subarray(at, at + length) });
        at += length;
      } else throw new Error('a record of no kind');
    }
  } catch (error) {
    throw new KeelsonError('LAYER_DAMAGED', `its map is broken: ${(error as Error).message}`, {
      cause: error,
    });
  }
  return records;
}

/**
 * The archive of the layer that was unpacked into `folder` with the map file `map`, as it was before compression. Throws
 * LAYER_DAMAGED where a file is not there, is too short, or is no file; whether the bytes are the right ones only their
 * digest tells. Reads nothing outside of `folder`.
 */
export async function* rebuildArchive(
  folder: string,
  map: string,
  signal?: AbortSignal,
): AsyncGenerator<Buffer, void, undefined> {
  const handle = await opened(map, 'its map');
  try {
    const root = await realpath(folder);
    const checked = new Set<string>();
    for (;;) {
      signal?.throwIfAborted();
      const head = await readExactly(handle, 4, undefined);
      if (head.length === 0) return;
      const length = head.length === 4 ? head.readUInt32LE() : Number.POSITIVE_INFINITY;
      const packed = length <= 2 * frameSize ? await readExactly(handle, length, undefined) : head;
      if (packed.length !== length) throw new KeelsonError('LAYER_DAMAGED', 'its map is cut off');
      for (const record of readMapFrame(packed)) {
        if (record.kind === 'bytes') yield record.bytes;
        else yield* contentOf(root, record, checked, signal);
      }
    }
  } finally {
    await handle.close();
  }
}

async function* contentOf(
  root: string,
  record: MapRecord & { kind: 'content' },
  checked: Set<string>,
  signal: AbortSignal | undefined,
): AsyncGenerator<Buffer, void, undefined> {
  const name = JSON.stringify(record.path.toString('utf8'));
  const path = Buffer.concat([Buffer.from(`${root}/`), record.path]);
  const parent = dirname(path.toString('latin1'));
  if (!checked.has(parent)) {
    // A folder of the layer that is a link by now could lead anywhere.
    const real = await realpath(Buffer.from(parent, 'latin1'), 'buffer').catch(() => undefined);
    if (real?.toString('latin1') !== parent) {
      throw new KeelsonError('LAYER_DAMAGED', `the folder of ${name} is not what it was`);
    }
    checked.add(parent);
  }
  const handle = await opened(path, name);
  try {
    let { offset, length } = record;
    while (length > 0) {
      signal?.throwIfAborted();
      const bytes = await readExactly(handle, Math.min(length, pieceSize), offset);
      if (bytes.length === 0) throw new KeelsonError('LAYER_DAMAGED', `${name} is too short`);
      offset += bytes.length;
      length -= bytes.length;
      yield bytes;
    }
  } finally {
    await handle.close();
  }
}

async function opened(path: string | Buffer, what: string): Promise<FileHandle> {
  try {
    return await open(path, fsConstants.O_RDONLY | fsConstants.O_NOFOLLOW | fsConstants.O_NONBLOCK);
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === undefined || errno === 'EMFILE' || errno === 'ENFILE' || errno === 'ENOMEM') throw error;
    throw new KeelsonError('LAYER_DAMAGED', `${what} cannot be read: ${errno}`, { cause: error });
  }
}

/** As many of `length` bytes as there are. `position` undefined: where the last read ended. */
async function readExactly(
  handle: FileHandle,
  length: number,
  position: number | undefined,
): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(length);
  let filled = 0;
  while (filled < length) {
    const at = position === undefined ? null : position + filled;
    const { bytesRead } = await handle.read(bytes, filled, length - filled, at).catch((error: unknown) => {
      throw new KeelsonError('LAYER_DAMAGED', `it cannot be read: ${errnoOf(error) ?? String(error)}`, {
        cause: error,
      });
    });
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return bytes.subarray(0, filled);
}
