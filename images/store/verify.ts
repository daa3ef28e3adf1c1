/**
 * Verification of layers on disk against their diffIDs, and their repair from kept blobs. One run at a time; the work is
 * done on a thread of its own, which ends with the run.
 */
import type { FileHandle } from 'node:fs/promises';
import { lstat } from 'node:fs/promises';
import { Worker } from 'node:worker_threads';
import type { ImageArchives, LayerReport } from '../../runtime/api.ts';
import { abortError, describe, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { UnpackPool } from '../unpack/pool.ts';
import type { KnownLayer, Store } from './store.ts';
import type { ToVerify, Verified } from './verify_worker.ts';

/** The kept blobs, as far as a repair wants them. */
export interface BlobSource {
  blobOf(diffId: string): { readonly digest: string; readonly size: number } | undefined;
  open(digest: string): Promise<FileHandle>;
}

export interface Verifier {
  /** As `ImageArchives.verifyImages`. Throws ABORTED, SYSCALL_FAILED. */
  verifyImages: ImageArchives['verifyImages'];
  /**
   * What a crash has made doubtful: layers whose rows it took come back where they are whole, and after a power cut the
   * newest layers are verified. Damaged ones are made anew from their blob, or marked so that the next use pulls them.
   */
  verifyStart(signal: AbortSignal): Promise<void>;
  /** The same for `doubts` of the store, which nobody can use before. Never rejects. */
  verifyDoubts(signal: AbortSignal): Promise<void>;
  /** Resolves when nothing runs any more. */
  idle(): Promise<void>;
}

export interface VerifierOptions {
  readonly store: Store;
  readonly unpack: UnpackPool;
  readonly log: Logger;
  readonly blobs?: BlobSource;
  /** Called when a layer is damaged and could not be made anew: its images are not present any more. */
  readonly onLost?: () => void;
}

/** One thread for one run. */
interface Thread {
  /** Throws ABORTED; SYSCALL_FAILED where the layer could not be looked at. */
  verify(wanted: ToVerify): Promise<Exclude<Verified, { failed: string }>>;
  end(): Promise<void>;
}

export function makeVerifier({ store, unpack, log, blobs, onLost }: VerifierOptions): Verifier {
  let last: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(run: () => Promise<T>): Promise<T> => {
    const mine = last.then(run, run);
    last = mine.catch(() => {});
    return mine;
  };

  /** Undefined where nothing is wrong, or it can only be seen that the folder is there (then with a note). */
  const look = async (thread: Thread, diffId: string): Promise<{ problem?: string; note?: string }> => {
    const files = store.layerFiles(diffId);
    if (files === undefined) return { note: 'it has been removed' };
    const { folder, map } = files;
    const found = await lstat(folder).catch(() => undefined);
    if (!found?.isDirectory()) return { problem: `${folder} is not there` };
    if (map === undefined) return { note: 'without a map it can only be seen that it is there' };
    const seen = await thread.verify({ folder, map });
    const problems = [...seen.problems];
    if (seen.diffId !== undefined && seen.diffId !== diffId) {
      problems.unshift(`the contents of its files are not what they were (they make ${seen.diffId})`);
    }
    if (problems.length > 0) return { problem: problems.join('; ') };
    // A pull may have replaced it meanwhile, which says nothing of the new one.
    return store.layerFiles(diffId)?.folder === folder ? {} : { note: 'it has been replaced' };
  };

  const repair = async (diffId: string, signal: AbortSignal): Promise<boolean> => {
    const blob = blobs?.blobOf(diffId);
    if (blobs === undefined || blob === undefined) return false;
    const folder = await store.stage();
    try {
      const unpacking = await unpack.begin(folder, blob.size, blob.digest.split(':')[0]!);
      try {
        const stream = (await blobs.open(blob.digest)).createReadStream({ highWaterMark: 256 << 10 });
        for await (const chunk of stream as AsyncIterable<Buffer>) {
          signal.throwIfAborted();
          await unpacking.write(chunk);
        }
        const { digest, diffId: made, size, inodes, mapped } = await unpacking.end();
        if (digest !== blob.digest || made !== diffId) {
          throw new KeelsonError('LAYER_DAMAGED', `the kept blob ${blob.digest} is damaged too`);
        }
        await store.commitLayer(folder, { diffId, size, inodes, mapped });
      } catch (error) {
        await unpacking.abort();
        throw error;
      }
      return true;
    } catch (error) {
      store.discard(folder);
      if (signal.aborted) throw abortError(signal, 'verification');
      log.warn({ err: error, diffId }, 'a damaged layer cannot be made anew from its blob');
      return false;
    }
  };

  const verifyOne = async (
    thread: Thread,
    layer: KnownLayer,
    mend: boolean,
    signal: AbortSignal,
  ): Promise<LayerReport> => {
    const { diffId, images } = layer;
    const release = store.holdLayers([diffId]);
    try {
      const { problem, note = '' } = await look(thread, diffId);
      if (problem === undefined) {
        if (mend && note === '') store.markLayer(diffId, 'good');
        return { diffId, images, state: 'good', message: note };
      }
      if (!mend) return { diffId, images, state: 'damaged', message: problem };
      // From here on nobody starts anything from it.
      store.markLayer(diffId, 'damaged');
      const mended = await repair(diffId, signal);
      log.warn(
        { diffId, images, problem },
        mended
          ? 'a damaged layer was made anew from its kept blob'
          : 'a layer is damaged: the next use of its images pulls it again',
      );
      if (!mended) onLost?.();
      return { diffId, images, state: mended ? 'repaired' : 'damaged', message: problem };
    } finally {
      release();
    }
  };

  const run = async (
    layers: readonly KnownLayer[],
    mend: boolean,
    signal: AbortSignal,
    onLayer: (report: LayerReport) => void,
  ): Promise<LayerReport[]> => {
    const thread = startThread(signal);
    try {
      const reports: LayerReport[] = [];
      for (const layer of layers) {
        if (signal.aborted) throw abortError(signal, 'verification');
        const report = await verifyOne(thread, layer, mend, signal);
        reports.push(report);
        onLayer(report);
      }
      return reports;
    } finally {
      await thread.end();
    }
  };

  /** Strays that hold a whole layer get a row again: what they are their own archive says. */
  const adoptStrays = async (signal: AbortSignal) => {
    const strays = store.strays();
    if (strays.length === 0) return;
    const thread = startThread(signal);
    try {
      for (const { number, folder, map } of strays) {
        const { diffId, size, inodes, problems } = await thread.verify({ folder, map });
        if (diffId === undefined || problems.length > 0) {
          log.info({ folder, problems }, 'what a crash left of a layer is removed');
          store.dropStray(number);
        } else if (store.adoptStray(number, { diffId, size, inodes, mapped: true })) {
          log.info({ folder, diffId }, 'a layer without a row is whole and has one again');
        }
      }
    } finally {
      await thread.end();
    }
  };

  const verifySome = async (wanted: readonly string[], signal: AbortSignal) => {
    if (wanted.length === 0) return;
    log.info({ layers: wanted.length }, 'the machine went down unexpectedly: the newest layers are verified');
    const layers = store.knownLayers().filter(({ diffId }) => wanted.includes(diffId));
    await run(layers, true, signal, () => {});
  };
  const quietly = (signal: AbortSignal, work: () => Promise<void>) =>
    inTurn(work).catch((error: unknown) => {
      if (!signal.aborted) log.warn({ err: error }, `layers could not be verified: ${describe(error)}`);
    });

  return {
    verifyImages: ({
      repair: mend = false,
      signal = new AbortController().signal,
      onLayer = () => {},
    } = {}) => inTurn(() => run(store.knownLayers(), mend, signal, onLayer)),
    verifyStart: (signal) =>
      quietly(signal, async () => {
        await adoptStrays(signal);
        await verifySome(store.suspects, signal);
      }),
    verifyDoubts: (signal) => quietly(signal, () => verifySome(store.doubts, signal)),
    async idle() {
      await last;
    },
  };
}

/**
 * Started with the first layer. It is asked to end and never terminated: what a native library is doing at that moment
 * could take the whole process with it.
 */
function startThread(signal: AbortSignal): Thread {
  const stop = new Int32Array(new SharedArrayBuffer(4));
  let worker: Worker | undefined;
  let exited: Promise<unknown> = Promise.resolve();
  let died: unknown;
  const start = (): Worker => {
    const started = new Worker(new URL('./verify_worker.ts', import.meta.url), {
      name: 'verify',
      env: {},
      workerData: stop,
      resourceLimits: { maxYoungGenerationSizeMb: 8, maxOldGenerationSizeMb: 512 },
    });
    started.on('error', (error) => {
      died = error;
    });
    exited = new Promise((resolve) => {
      started.once('exit', resolve);
    });
    return started;
  };
  const onAbort = () => Atomics.store(stop, 0, 1);
  signal.addEventListener('abort', onAbort, { once: true });
  return {
    async verify(wanted) {
      if (signal.aborted) throw abortError(signal, 'verification');
      worker ??= start();
      const mine = worker;
      const answer = new Promise<Verified>((resolve) => {
        mine.once('message', resolve);
      });
      mine.postMessage(wanted);
      const verified = await Promise.race([answer, exited.then(() => undefined)]);
      if (signal.aborted) throw abortError(signal, 'verification');
      if (verified === undefined) {
        throw new KeelsonError('INTERNAL', `the verification thread is gone: ${String(died)}`, {
          cause: died,
        });
      }
      if ('failed' in verified) {
        throw new KeelsonError(
          'SYSCALL_FAILED',
          `${wanted.folder} cannot be verified now: ${verified.failed}`,
        );
      }
      return verified;
    },
    async end() {
      signal.removeEventListener('abort', onAbort);
      worker?.postMessage(undefined);
      await exited;
    },
  };
}
