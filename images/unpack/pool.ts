/**
 * The threads that unpack layers, as the main thread sees them: started when a pull begins, ended when there has been
 * nothing to unpack for some seconds, because each holds some 15 MiB.
 */
import { once } from 'node:events';
import { constants } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { Worker } from 'node:worker_threads';
import type { Clock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { FromWorker, ToWorker, Unpacked, UnpackLimits } from './protocol.ts';

export interface UnpackPool {
  /** Starts a thread where none runs, so that it is there when the first layer comes. */
  warm(): Promise<void>;
  /**
   * Begins to unpack a layer into the empty `folder`. `compressedSize` (bytes) decides whether another thread is worth
   * its start; `algorithm` is that of the layer's digest.
   */
  begin(folder: string, compressedSize: number, algorithm: string): Promise<Unpacking>;
  /** Ends all threads; what they were doing fails with ABORTED. */
  close(): Promise<void>;
}

export interface Unpacking {
  /** Takes the next bytes of the layer, as it came. Waits while too much is on its way. Rejects where unpacking failed. */
  write(bytes: Buffer): Promise<void>;
  /** No more bytes: resolves when everything is on disk (not synced). Throws LAYER_UNSAFE, IMAGE_INVALID, STORAGE_FULL… */
  end(): Promise<Unpacked>;
  /** Stops; resolves when nothing more is written into the folder. No error after `end` or a failure. */
  abort(): Promise<void>;
}

export interface UnpackPoolOptions {
  readonly clock: Clock;
  /** Threads at most. Default 2. */
  readonly threads?: number;
  /** Milliseconds after which an unused thread ends. Default 5,000. */
  readonly idleMs?: number;
  readonly limits?: UnpackLimits;
}

export const defaultLimits: UnpackLimits = { entries: 1_000_000, bytes: 64 * 2 ** 30 };
/** Bytes are gathered to pieces of this size: one message each, moved instead of copied. */
const pieceSize = 256 << 10;
/** Bytes on their way to a thread for one layer, at most. */
const mostInFlight = 2 << 20;
/** A layer smaller than this waits for a busy thread rather than start another. */
const worthAThread = 4 << 20;

interface Thread {
  readonly worker: Worker;
  readonly jobs: Map<number, (message: FromWorker) => void>;
  cancelIdle: () => void;
}

export function makeUnpackPool(options: UnpackPoolOptions): UnpackPool {
  const { clock, threads: mostThreads = 2, idleMs = 5000, limits = defaultLimits } = options;
  const threads = new Set<Thread>();
  let closed = false;
  let nextId = 1;
  const closing = () => new KeelsonError('ABORTED', 'the image store is closing');

  const start = (): Thread => {
    const worker = new Worker(new URL('./worker.ts', import.meta.url), {
      name: 'unpack',
      env: {},
      resourceLimits: { maxYoungGenerationSizeMb: 8, maxOldGenerationSizeMb: 256 },
    });
    const thread: Thread = { worker, jobs: new Map(), cancelIdle: () => {} };
    threads.add(thread);
    worker.on('message', (message: FromWorker) => thread.jobs.get(message.id)?.(message));
    let reason = 'it ended';
    worker.on('error', (error) => {
      reason = String(error);
    });
    worker.once('exit', () => {
      threads.delete(thread);
      thread.cancelIdle();
      for (const [id, settle] of [...thread.jobs]) {
        settle(
          closed
            ? { type: 'failed', id, code: 'ABORTED', message: 'the image store is closing' }
            : { type: 'failed', id, code: 'INTERNAL', message: `the unpack thread is gone: ${reason}` },
        );
      }
    });
    rest(thread);
    return thread;
  };
  /** Ends `thread` when it stays without work. */
  const rest = (thread: Thread) => {
    thread.cancelIdle();
    if (thread.jobs.size > 0 || !threads.has(thread)) return;
    thread.cancelIdle = clock.after(idleMs, () => {
      threads.delete(thread);
      void thread.worker.terminate();
    });
  };
  const leastBusy = (compressedSize: number): Thread => {
    let best: Thread | undefined;
    for (const thread of threads) if (best === undefined || thread.jobs.size < best.jobs.size) best = thread;
    if (best === undefined) return start();
    const another = best.jobs.size > 0 && compressedSize >= worthAThread && threads.size < mostThreads;
    return another ? start() : best;
  };
  /**
   * The threads of libuv's pool belong to the root folder of the thread that starts them. They must have been started
   * from here before a worker, which changes its root, can do so.
   */
  const warmPool = async () => {
    await stat('/');
    if (closed) throw closing();
  };

  return {
    async warm() {
      await warmPool();
      if (threads.size === 0) start();
    },
    async begin(folder, compressedSize, algorithm) {
      await warmPool();
      const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
      if (closed) {
        await handle.close();
        throw closing();
      }
      const thread = leastBusy(compressedSize);
      thread.cancelIdle();
      return unpacking(thread, nextId++, handle, algorithm, limits, () => rest(thread));
    },
    async close() {
      closed = true;
      await Promise.all(
        [...threads].map(async ({ worker, cancelIdle }) => {
          cancelIdle();
          const exited = once(worker, 'exit');
          await worker.terminate();
          await exited;
        }),
      );
    },
  };
}

function unpacking(
  thread: Thread,
  id: number,
  folder: FileHandle,
  algorithm: string,
  limits: UnpackLimits,
  onSettled: () => void,
): Unpacking {
  const post = (message: ToWorker, transfer: ArrayBuffer[] = []) =>
    thread.worker.postMessage(message, transfer);
  let inFlight = 0;
  let failure: KeelsonError | undefined;
  let settled = false;
  let wake = () => {};
  let piece = new Uint8Array(new ArrayBuffer(pieceSize));
  let filled = 0;

  const result = new Promise<Unpacked>((resolve, reject) => {
    thread.jobs.set(id, (message) => {
      if (message.type === 'taken') {
        inFlight -= message.bytes;
        return wake();
      }
      thread.jobs.delete(id);
      settled = true;
      if (message.type === 'failed')
        failure = new KeelsonError(message.code, message.message, { hint: message.hint });
      void folder.close().then(() => {
        if (message.type === 'done') resolve(message.result);
        else reject(failure);
      });
      onSettled();
      wake();
    });
  });
  result.catch(() => {}); // Told to whoever writes, ends or aborts.
  post({ type: 'begin', id, folder: folder.fd, limits, algorithm });

  const flush = () => {
    if (filled === 0) return;
    const bytes = filled === pieceSize ? piece : piece.slice(0, filled);
    inFlight += filled;
    filled = 0;
    if (bytes === piece) piece = new Uint8Array(new ArrayBuffer(pieceSize));
    post({ type: 'data', id, bytes }, [bytes.buffer]);
  };

  return {
    async write(bytes) {
      for (let at = 0; at < bytes.length; ) {
        if (failure !== undefined) throw failure;
        const length = Math.min(pieceSize - filled, bytes.length - at);
        piece.set(bytes.subarray(at, at + length), filled);
        filled += length;
        at += length;
        if (filled === pieceSize) flush();
        while (inFlight >= mostInFlight && !settled) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    },
    end() {
      if (failure === undefined) {
        flush();
        post({ type: 'end', id });
      }
      return result;
    },
    async abort() {
      if (!settled) post({ type: 'abort', id });
      await result.catch(() => {});
    },
  };
}
