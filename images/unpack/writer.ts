/**
 * Contents and attributes of files that are open already. Who makes the names and who writes the contents may be two
 * threads: then the calls go over as numbers.
 */
import { closeSync, fchmodSync, fchownSync, ftruncateSync, writeSync } from 'node:fs';
import type { MessagePort } from 'node:worker_threads';
import { errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import { setFileTimes, setFileXattr } from '../../runtime/host/syscalls.ts';
import type { Steps } from './protocol.ts';
import { countClosed, countOpened, freePiece, isStopped, type Ring, waitForFiles } from './ring.ts';

export interface FileAttributes {
  /** -1: as it is. The same for the mode. */
  readonly uid: number;
  readonly gid: number;
  readonly mode: number;
  readonly seconds: number;
  readonly nanoseconds: number;
  readonly xattrs: readonly (readonly [name: string, value: Uint8Array])[];
}

/** The files are its own from `opened` on: it closes them. Throws IMAGE_INVALID, STORAGE_FULL, SYSCALL_FAILED. */
export interface ContentWriter {
  /** Call before each file that is opened: may wait until others are closed. */
  beforeOpen(): void;
  /** `chunk` from `start` to `end`; `position` -1: behind what was written last. */
  write(fd: number, chunk: Buffer, start: number, end: number, position: number): void;
  resize(fd: number, size: number): void;
  /** Attributes, then close. */
  finish(fd: number, attributes: FileAttributes): void;
  /** Only close: the layer was given up. */
  close(fd: number): void;
}

export const directWriter: ContentWriter = {
  beforeOpen() {},
  write(fd, chunk, start, end, position) {
    explained(() => {
      for (let at = start; at < end; ) {
        at += writeSync(fd, chunk, at, end - at, position === -1 ? null : position + at - start);
      }
    });
  },
  resize: (fd, size) => explained(() => ftruncateSync(fd, size)),
  finish(fd, { uid, gid, mode, xattrs, seconds, nanoseconds }) {
    try {
      explained(() => {
        // Owner first: changing it clears setuid, setgid and capabilities.
        if (uid !== -1) fchownSync(fd, uid, gid);
        if (mode !== -1) fchmodSync(fd, mode);
        for (const [name, value] of xattrs) whereSupported(() => setFileXattr(fd, name, Buffer.from(value)));
        setFileTimes(fd, seconds, nanoseconds);
      });
    } finally {
      closeSync(fd);
    }
  },
  close: closeSync,
};

/** Sets an extended attribute by `set`. A file system without them: the files are more use without than none at all. */
export function whereSupported(set: () => void): void {
  try {
    set();
  } catch (error) {
    if (errnameOf(error) !== 'ENOTSUP' && errnameOf(error) !== 'EOPNOTSUPP') throw error;
  }
}

/** Steps as numbers: what, descriptor, and up to six more. */
const step = { write: 0, resize: 1, finish: 2, close: 3 } as const;
const width = 8;
/** Files that are open at once for one layer, at most. */
const mostOpenFiles = 400;

export interface RemoteWriter extends ContentWriter {
  /** Sends what is waiting; `last`: the piece of the ring that it came from is needed no longer. */
  flush(last: boolean): void;
}

/** Sends all to the thread at the other end of `target`. Contents must lie in the ring's pieces. */
export function remoteWriter(ring: Ring, target: MessagePort): RemoteWriter {
  let steps: number[] = [];
  let xattrs: (readonly [name: string, value: Uint8Array])[] = [];
  let opened = 0;

  const flush = (last: boolean) => {
    if (opened > 0) countOpened(ring, opened);
    opened = 0;
    const array = Float64Array.from(steps);
    target.postMessage({ steps: array, xattrs, last } satisfies Steps, [array.buffer]);
    steps = [];
    xattrs = [];
  };
  return {
    beforeOpen() {
      opened++;
      if (opened < mostOpenFiles / 4) return;
      flush(false);
      waitForFiles(ring, mostOpenFiles);
    },
    write(fd, chunk, start, end, position) {
      // Within the ring's memory, so that the other side need not know the piece.
      const base = chunk.byteOffset;
      steps.push(step.write, fd, base + start, base + end, position, 0, 0, 0);
    },
    resize: (fd, size) => void steps.push(step.resize, fd, size, 0, 0, 0, 0, 0),
    finish(fd, { uid, gid, mode, seconds, nanoseconds, xattrs: more }) {
      xattrs.push(...more);
      steps.push(step.finish, fd, uid, gid, mode, seconds, nanoseconds, more.length);
    },
    close: (fd) => void steps.push(step.close, fd, 0, 0, 0, 0, 0, 0),
    flush,
  };
}

/** The other end: does the steps of a message. After a stop, or once something has failed, it only closes. */
export function doSteps(ring: Ring, memory: Buffer, message: Exclude<Steps, { end: unknown }>): void {
  const { steps, xattrs, last } = message;
  let nextXattr = 0;
  let closed = 0;
  let failure: { error: unknown } | undefined;
  const attempt = (body: () => void) => {
    try {
      body();
    } catch (error) {
      failure ??= { error };
    }
  };
  for (let at = 0; at < steps.length; at += width) {
    const fd = steps[at + 1]!;
    const a = steps[at + 2]!;
    const b = steps[at + 3]!;
    const c = steps[at + 4]!;
    const givenUp = failure !== undefined || isStopped(ring);
    switch (steps[at]) {
      case step.write:
        if (!givenUp) attempt(() => directWriter.write(fd, memory, a, b, c));
        break;
      case step.resize:
        if (!givenUp) attempt(() => directWriter.resize(fd, a));
        break;
      case step.finish: {
        const from = nextXattr;
        nextXattr += steps[at + 7]!;
        const attributes = {
          uid: a,
          gid: b,
          mode: c,
          seconds: steps[at + 5]!,
          nanoseconds: steps[at + 6]!,
          xattrs: xattrs.slice(from, nextXattr),
        };
        attempt(() => (givenUp ? closeSync(fd) : directWriter.finish(fd, attributes)));
        closed++;
        break;
      }
      default:
        attempt(() => closeSync(fd));
        closed++;
    }
  }
  if (closed > 0) countClosed(ring, closed);
  if (last) freePiece(ring);
  if (failure !== undefined) throw failure.error;
}

/** The name of a system error, from wherever it came. */
export function errnameOf(error: unknown): string | undefined {
  if (isError(error, 'SYSCALL_FAILED')) return String(error.details['errno']);
  return errnoOf(error);
}

/** Failures that the archive is to blame for; others are the machine's. */
const archiveFaults = new Set([
  'ENOTDIR',
  'EISDIR',
  'ENOENT',
  'EEXIST',
  'ELOOP',
  'ENAMETOOLONG',
  'EINVAL',
  'EMLINK',
  'EPERM',
  'EXDEV',
  'EFBIG',
]);

/** Runs `body`; what the file system refuses is told of `what`. */
export function explained<T>(body: () => T, what: () => string = () => 'a file'): T {
  try {
    return body();
  } catch (error) {
    const errno = errnameOf(error);
    if (errno === undefined) throw error;
    if (errno === 'ENOSPC' || errno === 'EDQUOT') {
      throw new KeelsonError('STORAGE_FULL', `${what()}: ${errno}: no space is left for the layer`, {
        cause: error,
        hint: 'free some space or remove images that nobody needs',
      });
    }
    throw new KeelsonError(
      archiveFaults.has(errno) ? 'IMAGE_INVALID' : 'SYSCALL_FAILED',
      `${what()}: ${errno}`,
      {
        cause: error,
        details: { errno },
      },
    );
  }
}
