/** What the main thread and an unpack worker say to each other. */
import type { ErrorCode } from '../../runtime/host/errors.ts';

export interface UnpackLimits {
  /** Entries of one layer. */
  readonly entries: number;
  /** Bytes of one layer after decompression. */
  readonly bytes: number;
}

export type ToWorker =
  /** `folder` is a descriptor of the empty folder to unpack into, which stays open until `done` or `failed`. */
  | { type: 'begin'; id: number; folder: number; limits: UnpackLimits; algorithm: string }
  | { type: 'data'; id: number; bytes: Uint8Array<ArrayBuffer> }
  | { type: 'end'; id: number }
  /** Stop; answered by `failed`. */
  | { type: 'abort'; id: number };

export interface Unpacked {
  /** Of the bytes as they came, with the algorithm that was asked for. */
  readonly digest: string;
  /** sha256 of the archive after decompression. */
  readonly diffId: string;
  /** Bytes of the files. */
  readonly size: number;
  /** Files, folders and the rest. */
  readonly inodes: number;
}

export type FromWorker =
  /** `bytes` more of the data have been worked off: as many may be sent. */
  | { type: 'taken'; id: number; bytes: number }
  | { type: 'done'; id: number; result: Unpacked }
  | { type: 'failed'; id: number; code: ErrorCode; message: string; hint?: string };
