/**
 * The threads that unpack layers, as the main thread sees them: started when a pull begins, ended when there has been
 * nothing to unpack for some seconds, because each holds some 15 MiB.
 */
import { once } from 'node:events';
import { constants } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { MessageChannel, type Transferable, Worker } from 'node:worker_threads';
import type { Clock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { FromThread, Part, ToThread, Unpacked, UnpackLimits } from './protocol.ts';
import { makeRing, type Ring, stop } from './ring.ts';
import { mapOf } from './tar_map.ts';

export interface UnpackPool {
  /** Starts a thread where none runs, so that it is there when the first layer comes. Resolves when it is ready. */
  warm(): Promise<void>;
  /**
   * Begins to unpack a layer into the empty `folder`, and its map (tar_map.ts) into the new file beside it, `mapOf(folder)`.
   * `compressedSize` (bytes) decides how many threads it is worth; `algorithm` is that of the layer's digest.
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
  /** Threads of each kind at most. Default: one for every two processors. */
  readonly threads?: number;
  /** Milliseconds after which an unused thread ends. Default 5,000. */
  readonly idleMs?: number;
  readonly limits?: UnpackLimits;
  /** Compressed bytes from which on the work on a layer is spread over three threads. Default 512 KiB. */
  readonly spreadFrom?: number;
}

export const defaultLimits: UnpackLimits = { entries: 1_000_000, bytes: 64 * 2 ** 30 };
/** Bytes are gathered to pieces of this size: one message each, moved instead of copied. */
const inputSize = 256 << 10;
/** Bytes on their way to a thread for one layer, at most. */
const mostInFlight = 1 << 20;
/** A layer smaller than this waits for a busy thread rather than start another. */
const worthAThread = 4 << 20;
/** Decompressed pieces of one layer on their way between its threads. */
const ringPieces = 6;

/** What a thread is for. Those of one kind never wait for each other, only for those behind them. */
type Kind = 'decode' | 'create' | 'write';

interface Thread {
  readonly worker: Worker;
  /** Ends it, once it is loaded: a native library that is stopped while it loads takes the whole process with it. */
  readonly end: () => Promise<void>;
  readonly kind: Kind;
  readonly jobs: Map<number, (message: FromThread | { type: 'gone'; reason: string }) => void>;
  cancelIdle: () => void;
}

function defaultThreads(): number {
  return Math.max(1, Math.min(8, Math.floor(availableParallelism() / 2)));
}

export function makeUnpackPool(options: UnpackPoolOptions): UnpackPool {
  const { clock, threads: mostThreads = defaultThreads(), idleMs = 5000, limits = defaultLimits } = options;
  const { spreadFrom = 512 << 10 } = options;
  const threads = new Set<Thread>();
  let closed = false;
  let nextId = 1;
  const closing = () => new KeelsonError('ABORTED', 'the image store is closing');

  const compileCache = process.env['NODE_COMPILE_CACHE'];

  const start = (kind: Kind): Thread => {
    const worker = new Worker(new URL('./worker.ts', import.meta.url), {
      name: `unpack-${kind}`,
      // Compiled code is kept: without it a thread takes 36 MiB more, and 100 ms more to start.
      env: compileCache === undefined ? {} : { NODE_COMPILE_CACHE: compileCache },
      // One thread opens what another closes.
      trackUnmanagedFds: false,
      resourceLimits: { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 256 },
    });
    const loaded = new Promise<void>((resolve) => {
      worker.once('message', () => resolve());
      worker.once('exit', () => resolve());
    });
    const end = async () => {
      await loaded;
      await worker.terminate();
    };
    const thread: Thread = { worker, end, kind, jobs: new Map(), cancelIdle: () => {} };
    threads.add(thread);
    worker.on('message', (message: FromThread) => thread.jobs.get(message.id)?.(message));
    let reason = 'it ended';
    worker.on('error', (error) => {
      reason = String(error);
    });
    worker.once('exit', () => {
      threads.delete(thread);
      thread.cancelIdle();
      for (const settle of [...thread.jobs.values()]) settle({ type: 'gone', reason });
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
      void thread.end();
    });
  };
  const leastBusy = (kind: Kind, compressedSize: number): Thread => {
    const those = [...threads].filter((thread) => thread.kind === kind);
    const best = those.sort((a, b) => a.jobs.size - b.jobs.size)[0];
    if (best === undefined) return start(kind);
    const another = best.jobs.size > 0 && compressedSize >= worthAThread && those.length < mostThreads;
    return another ? start(kind) : best;
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
      if ([...threads].some(({ kind }) => kind === 'create')) return;
      const { worker } = start('create');
      await Promise.race([once(worker, 'message'), once(worker, 'exit')]);
    },
    async begin(folder, compressedSize, algorithm) {
      await warmPool();
      const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_DIRECTORY, O_NOFOLLOW } = constants;
      const handle = await open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      const map = await open(mapOf(folder), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600).catch(
        async (error: unknown) => {
          await handle.close();
          throw error;
        },
      );
      if (closed) {
        await Promise.all([handle.close(), map.close()]);
        throw closing();
      }
      const parts: readonly (readonly [Part, Thread])[] =
        compressedSize < spreadFrom
          ? [['whole', leastBusy('create', compressedSize)]]
          : (['decode', 'create', 'write'] as const).map((kind) => [kind, leastBusy(kind, compressedSize)]);
      for (const [, thread] of parts) thread.cancelIdle();
      return unpacking({
        id: nextId++,
        parts,
        handles: [handle, map],
        algorithm,
        limits,
        isClosed: () => closed,
        onLeft: rest,
      });
    },
    async close() {
      closed = true;
      await Promise.all(
        [...threads].map(async ({ worker, end, cancelIdle }) => {
          cancelIdle();
          const exited = once(worker, 'exit');
          await end();
          await exited;
        }),
      );
    },
  };
}

function unpacking(options: {
  id: number;
  parts: readonly (readonly [Part, Thread])[];
  /** The folder and the map; closed when nothing writes there any more. */
  handles: readonly [FileHandle, FileHandle];
  algorithm: string;
  limits: UnpackLimits;
  isClosed: () => boolean;
  onLeft: (thread: Thread) => void;
}): Unpacking {
  const { id, parts, handles, algorithm, limits } = options;
  const ring: Ring | undefined = parts.length > 1 ? makeRing(ringPieces) : undefined;
  const first = parts[0]![1];
  const working = new Set<Thread>();
  let inFlight = 0;
  let failure: KeelsonError | undefined;
  let result: Unpacked | undefined;
  let stopping = false;
  let settled = false;
  let wake = () => {};
  let piece = new Uint8Array(new ArrayBuffer(inputSize));
  /** Memory that has come back. */
  const spare: (typeof piece)[] = [];
  let filled = 0;

  const post = (thread: Thread, message: ToThread, transfer: Transferable[] = []) =>
    thread.worker.postMessage(message, transfer);
  const outcome = Promise.withResolvers<Unpacked>();
  outcome.promise.catch(() => {}); // Told to whoever writes, ends or aborts.

  /** Every part lets go; when all have, the layer is settled. */
  const stopAll = () => {
    if (stopping) return;
    stopping = true;
    if (ring !== undefined && failure !== undefined) stop(ring);
    for (const thread of working) post(thread, { type: 'stop', id });
    wake();
  };
  const left = (thread: Thread) => {
    if (!working.delete(thread)) return;
    thread.jobs.delete(id);
    options.onLeft(thread);
    if (working.size > 0 || settled) return;
    settled = true;
    void Promise.all(handles.map((handle) => handle.close())).then(() => {
      if (failure === undefined && result !== undefined) outcome.resolve(result);
      else outcome.reject(failure ?? new KeelsonError('ABORTED', 'unpacking was cancelled'));
    });
    wake();
  };
  const failed = (error: KeelsonError) => {
    if (result !== undefined) return;
    failure ??= error;
    stopAll();
  };
  const listen = (thread: Thread) => (message: FromThread | { type: 'gone'; reason: string }) => {
    switch (message.type) {
      case 'taken':
        inFlight -= message.bytes.length;
        if (message.bytes.length === inputSize) spare.push(message.bytes);
        wake();
        return;
      case 'done':
        result = message.result;
        // A layer in one thread has been forgotten there.
        if (ring === undefined) left(thread);
        else stopAll();
        return;
      case 'ready':
        return;
      case 'failed':
        failed(new KeelsonError(message.code, message.message, { hint: message.hint }));
        if (ring === undefined) left(thread);
        return;
      case 'gone':
        failed(
          options.isClosed()
            ? new KeelsonError('ABORTED', 'the image store is closing')
            : new KeelsonError('INTERNAL', `an unpack thread is gone: ${message.reason}`),
        );
        left(thread);
        // Without the one before it, the writing thread would never hear of the end.
        if (thread.kind === 'create')
          for (const other of [...working]) if (other.kind === 'write') left(other);
        return;
      default:
        left(thread);
    }
  };

  const channels = [new MessageChannel(), new MessageChannel()] as const;
  for (const [part, thread] of parts) {
    working.add(thread);
    thread.jobs.set(id, listen(thread));
    const ports =
      part === 'decode'
        ? { target: channels[0].port1 }
        : part === 'create'
          ? { source: channels[0].port2, target: channels[1].port1 }
          : part === 'write'
            ? { source: channels[1].port2 }
            : {};
    const [folder, map] = handles;
    const begin = {
      type: 'begin',
      id,
      part,
      limits,
      algorithm,
      ring,
      folder: folder.fd,
      map: map.fd,
    } as const;
    post(thread, { ...begin, ...ports }, Object.values(ports));
  }

  const flush = () => {
    if (filled === 0) return;
    const bytes = filled === inputSize ? piece : piece.slice(0, filled);
    inFlight += filled;
    filled = 0;
    if (bytes === piece) piece = spare.pop() ?? new Uint8Array(new ArrayBuffer(inputSize));
    post(first, { type: 'data', id, bytes }, [bytes.buffer]);
  };

  return {
    async write(bytes) {
      for (let at = 0; at < bytes.length; ) {
        if (failure !== undefined) throw failure;
        const length = Math.min(inputSize - filled, bytes.length - at);
        piece.set(bytes.subarray(at, at + length), filled);
        filled += length;
        at += length;
        if (filled === inputSize) flush();
        while (inFlight >= mostInFlight && !settled && !stopping) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    },
    end() {
      if (failure === undefined) {
        flush();
        post(first, { type: 'end', id });
      }
      return outcome.promise;
    },
    async abort() {
      failed(new KeelsonError('ABORTED', 'unpacking was cancelled'));
      await outcome.promise.catch(() => {});
    },
  };
}
