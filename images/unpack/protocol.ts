/** What the main thread and the unpack threads say to each other, and these among themselves. */
import type { MessagePort } from 'node:worker_threads';
import type { ErrorCode } from '../../runtime/host/errors.ts';
import type { Ring } from './ring.ts';

export interface UnpackLimits {
  /** Entries of one layer. */
  readonly entries: number;
  /** Bytes of one layer after decompression. */
  readonly bytes: number;
}

/**
 * What a thread does of a layer. A small one is done by one thread as a whole. The work on a larger one is spread: one
 * decompresses and hashes, one reads the archive and makes the names, one writes the contents.
 */
export type Part = 'whole' | 'decode' | 'create' | 'write';

export type ToThread =
  | {
      type: 'begin';
      id: number;
      part: Part;
      limits: UnpackLimits;
      algorithm: string;
      /** Descriptors of the empty folder to unpack into and of the file for its map: open until the layer is settled. */
      folder: number;
      map: number;
      ring?: Ring;
      /** From the part before, and to the part behind this one. */
      source?: MessagePort;
      target?: MessagePort;
    }
  /** To `whole` and `decode` only. */
  | { type: 'data'; id: number; bytes: Uint8Array<ArrayBuffer> }
  | { type: 'end'; id: number }
  /** Give up; answered by `stopped` unless the layer is settled. */
  | { type: 'stop'; id: number };

export interface Unpacked {
  /** Of the bytes as they came, with the algorithm that was asked for. */
  readonly digest: string;
  /** sha256 of the archive after decompression. */
  readonly diffId: string;
  /** Bytes of the files. */
  readonly size: number;
  /** Files, folders and the rest. */
  readonly inodes: number;
  /** The map is complete: the archive can be built again. */
  readonly mapped: boolean;
}

export type FromThread =
  /** The first message: all code is loaded. */
  | { type: 'ready'; id: 0 }
  /** These data have been worked off: as many may be sent, in the same memory. */
  | { type: 'taken'; id: number; bytes: Uint8Array<ArrayBuffer> }
  | { type: 'done'; id: number; result: Unpacked }
  | { type: 'failed'; id: number; code: ErrorCode; message: string; hint?: string }
  /** This part writes nothing more. */
  | { type: 'stopped'; id: number };

/** From `decode` to `create`: the next piece of the ring has so many bytes; or the end. */
export type Decoded =
  | { readonly length: number }
  | { readonly end: { readonly digest: string; readonly diffId: string } };

/** From `create` to `write`: steps (see writer.ts), and whether the oldest piece of the ring is needed no longer. */
export type Steps =
  | {
      readonly steps: Float64Array<ArrayBuffer>;
      /** Of the files that are finished, in their order. */
      readonly xattrs: readonly (readonly [name: string, value: Uint8Array])[];
      readonly last: boolean;
    }
  | { readonly end: 'done' | 'stopped' };
