/**
 * Decompression on the spot: bytes in, bytes out, in the thread that asks. The streams of node:zlib would use the pool's
 * threads and cost an event, a buffer and a copy for each piece; their native part is used as it is instead (Node's
 * version is pinned in package.json, and a test fails where these two fields are gone).
 */
import { createGunzip, createZstdDecompress, constants as zlib } from 'node:zlib';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { openIgzip } from './igzip.ts';

export interface Decompressor {
  /** Takes the next compressed bytes; all that they give must be read before more are given. */
  feed(input: Uint8Array): void;
  /** Fills `out` as far as the input reaches; 0 where it is used up. Throws IMAGE_INVALID for what is broken. */
  read(out: Uint8Array): number;
  /** No more input. Throws IMAGE_INVALID where it is cut off. */
  finish(): void;
  close(): void;
}

/** By the first bytes of a layer, not by its media type, which is often wrong. No bytes: nothing to decompress. */
export function openDecompressor(first: Uint8Array): Decompressor {
  if (first[0] === 0x1f && first[1] === 0x8b)
    return openIgzip(broken) ?? native(createGunzip() as unknown as Native);
  const zstd = first[0] === 0x28 && first[1] === 0xb5 && first[2] === 0x2f && first[3] === 0xfd;
  const skippable =
    (first[0]! & 0xf0) === 0x50 && first[1] === 0x2a && first[2] === 0x4d && first[3] === 0x18;
  return zstd || skippable ? native(createZstdDecompress() as unknown as Native) : identity();
}

/** What node:zlib's streams are made of. */
interface Native {
  readonly _handle: {
    onerror: (message: string, errno: number, code: string) => void;
    writeSync(
      flush: number,
      input: Uint8Array | null,
      inputAt: number,
      inputLength: number,
      out: Uint8Array,
      outAt: number,
      outLength: number,
    ): void;
  };
  /** Bytes that were left of the output and of the input after a write. */
  readonly _writeState: Uint32Array;
  close(): void;
}

function native(stream: Native): Decompressor {
  const { _handle: handle, _writeState: left } = stream;
  let failure: KeelsonError | undefined;
  handle.onerror = (message) => {
    failure = broken(message);
  };
  let input: Uint8Array = new Uint8Array();
  let at = 0;
  /** The output was full, so there may be more without more input. */
  let more = false;

  const write = (flush: number, out: Uint8Array): number => {
    handle.writeSync(flush, input, at, input.length - at, out, 0, out.length);
    if (failure !== undefined) throw failure;
    const [freeOut = 0, freeIn = 0] = left;
    const taken = input.length - at - freeIn;
    at += taken;
    more = freeOut === 0;
    const given = out.length - freeOut;
    if (taken === 0 && given === 0) at = input.length; // What follows the last member means nothing.
    return given;
  };
  return {
    feed(bytes) {
      input = bytes;
      at = 0;
    },
    read(out) {
      let filled = 0;
      while (filled < out.length && (more || at < input.length)) {
        filled += write(zlib.Z_NO_FLUSH, filled === 0 ? out : out.subarray(filled));
      }
      return filled;
    },
    finish() {
      input = new Uint8Array();
      at = 0;
      const isZstd = 'ZSTD_e_end' in zlib && stream.constructor.name.startsWith('Zstd');
      if (write(isZstd ? zlib.ZSTD_e_end : zlib.Z_FINISH, new Uint8Array(1)) > 0)
        throw broken('it has no end');
    },
    close: () => stream.close(),
  };
}

function identity(): Decompressor {
  let input: Uint8Array = new Uint8Array();
  return {
    feed(bytes) {
      input = bytes;
    },
    read(out) {
      const piece = input.subarray(0, out.length);
      out.set(piece);
      input = input.subarray(piece.length);
      return piece.length;
    },
    finish() {},
    close() {},
  };
}

function broken(why: string): KeelsonError {
  return new KeelsonError('IMAGE_INVALID', `it cannot be decompressed: ${why}`);
}
