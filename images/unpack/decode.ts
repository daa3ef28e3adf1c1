/** Decompressing and hashing one layer: compressed bytes in, pieces of the archive and both digests out. */
import { createHash } from 'node:crypto';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { type Decompressor, openDecompressor } from './decompress.ts';
import type { UnpackLimits } from './protocol.ts';

export interface Decoder {
  /** Throws IMAGE_INVALID, LAYER_UNSAFE, ABORTED, and what `Pieces.filled` throws. */
  data(bytes: Uint8Array): void;
  /** No more bytes: hands over the last piece. Throws as `data`. */
  end(): { readonly digest: string; readonly diffId: string };
  close(): void;
}

/** Where the archive goes, piece by piece. */
export interface Pieces {
  /** Memory for the next piece; undefined where the work was stopped. May block until there is some. */
  next(): Buffer | undefined;
  /** The piece that `next` gave last has `length` bytes. */
  filled(length: number): void;
}

export function makeDecoder(algorithm: string, limits: UnpackLimits, pieces: Pieces): Decoder {
  const digest = createHash(algorithm);
  const diffId = createHash('sha256');
  let decompressor: Decompressor | undefined;
  let piece: Buffer | undefined;
  let filled = 0;
  let total = 0;

  const handOver = () => {
    if (piece === undefined || filled === 0) return;
    diffId.update(piece.subarray(0, filled));
    const length = filled;
    piece = undefined;
    filled = 0;
    pieces.filled(length);
  };

  return {
    data(bytes) {
      digest.update(bytes);
      decompressor ??= openDecompressor(bytes);
      decompressor.feed(bytes);
      for (;;) {
        piece ??= pieces.next();
        if (piece === undefined) throw new KeelsonError('ABORTED', 'unpacking was cancelled');
        const length = decompressor.read(filled === 0 ? piece : piece.subarray(filled));
        if (length === 0) return;
        filled += length;
        total += length;
        if (total > limits.bytes) {
          throw new KeelsonError('LAYER_UNSAFE', `it has more than ${limits.bytes} bytes when decompressed`);
        }
        if (filled === piece.length) handOver();
      }
    },
    end() {
      decompressor?.finish();
      handOver();
      return { digest: `${algorithm}:${digest.digest('hex')}`, diffId: `sha256:${diffId.digest('hex')}` };
    },
    close() {
      decompressor?.close();
      decompressor = undefined;
    },
  };
}
