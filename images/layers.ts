/**
 * Layers on their way from a registry into the store: a bounded number at once for the whole node, each only once
 * however many images and callers wait for it, verified before anybody can see it.
 */
import type PQueue from 'p-queue';
import type { PullProgress } from '../runtime/api.ts';
import type { Clock } from '../runtime/host/clock.ts';
import { abortError, errnoOf, isError, KeelsonError } from '../runtime/host/errors.ts';
import { requestError } from '../runtime/host/http.ts';
import type { Descriptor } from './manifest.ts';
import { type LayerSource, unavailable, withRetries } from './registry/repository.ts';
import { sharedWork } from './shared.ts';
import type { Store } from './store/store.ts';
import type { UnpackPool } from './unpack/pool.ts';

export interface WantedLayer {
  readonly descriptor: Descriptor;
  /** sha256 of the uncompressed archive, by the image's configuration. */
  readonly diffId: string;
}

export type LayerProgress = (progress: Pick<PullProgress, 'phase' | 'bytes'>) => void;

export interface Layers {
  /**
   * Resolves when the layer is in the store. Throws what `Repository.blob` throws, and IMAGE_DIGEST_MISMATCH,
   * IMAGE_INVALID, IMAGE_UNSUPPORTED, LAYER_UNSAFE, STORAGE_FULL.
   */
  ensure(
    layer: WantedLayer,
    from: LayerSource,
    onProgress: LayerProgress,
    signal?: AbortSignal,
  ): Promise<void>;
  /** Resolves when nothing is fetched any more. */
  idle(): Promise<void>;
}

export function makeLayers(options: {
  readonly store: Store;
  readonly unpack: UnpackPool;
  readonly clock: Clock;
  /** Layers fetched at once. */
  readonly parallel: number;
}): Layers {
  const { store, unpack, clock, parallel } = options;
  const fetches = sharedWork<void>();
  const listeners = new Map<string, Set<LayerProgress>>();
  let queue: PQueue | undefined;

  /** Fetches, verifies and commits one layer, once. */
  const fetchOnce = async (
    { descriptor, diffId }: WantedLayer,
    from: LayerSource,
    tell: LayerProgress,
    signal: AbortSignal,
  ): Promise<void> => {
    const what = `layer ${from.name}@${descriptor.digest}`;
    const folder = await store.stage();
    try {
      const [{ body }, unpacking] = await both(
        from.blob(descriptor, 0, signal),
        unpack.begin(folder, descriptor.size, descriptor.digest.split(':')[0]!),
      );
      const onAbort = () => void unpacking.abort();
      signal.addEventListener('abort', onAbort, { once: true });
      try {
        if (signal.aborted) throw abortError(signal, what);
        await pour(body, unpacking, descriptor.size, what, tell, signal);
        tell({ phase: 'verifying', bytes: descriptor.size });
        const result = await unpacking.end();
        if (result.digest !== descriptor.digest) {
          throw new KeelsonError('IMAGE_DIGEST_MISMATCH', `${what}: the registry sent ${result.digest}`);
        }
        if (result.diffId !== diffId) {
          throw new KeelsonError(
            'IMAGE_DIGEST_MISMATCH',
            `${what}: unpacked it is ${result.diffId}, but the image's config says ${diffId}`,
          );
        }
        const { size, inodes, mapped } = result;
        await store.commitLayer(folder, { diffId, size, inodes, mapped });
      } catch (error) {
        await unpacking.abort();
        throw error;
      } finally {
        signal.removeEventListener('abort', onAbort);
      }
    } catch (error) {
      store.discard(folder);
      if (signal.aborted) throw abortError(signal, what);
      throw inWordsOf(error, what);
    }
    tell({ phase: 'done', bytes: descriptor.size });
  };

  const start = async (layer: WantedLayer, from: LayerSource, signal: AbortSignal): Promise<void> => {
    queue ??= new (await import('p-queue')).default({ concurrency: parallel });
    const tell: LayerProgress = (progress) => {
      for (const listener of listeners.get(layer.diffId) ?? []) listener(progress);
    };
    tell({ phase: 'waiting', bytes: 0 });
    await queue.add(() =>
      withRetries(clock, signal, async () => {
        if (signal.aborted) throw abortError(signal, `layer ${from.name}@${layer.descriptor.digest}`);
        await fetchOnce(layer, from, tell, signal);
      }),
    );
  };

  return {
    async ensure(layer, from, onProgress, signal) {
      const { diffId, descriptor } = layer;
      const heard = listeners.get(diffId) ?? new Set();
      listeners.set(diffId, heard.add(onProgress));
      try {
        for (;;) {
          if (store.hasLayer(diffId)) return onProgress({ phase: 'present', bytes: descriptor.size });
          let own = false;
          const begin = (shared: AbortSignal) => {
            own = true;
            return start(layer, from, shared);
          };
          try {
            return await fetches.join(diffId, begin, signal);
          } catch (error) {
            // Somebody else's registry, credentials or descriptor failed: that says nothing about ours.
            if (own || signal?.aborted || isError(error, 'STORAGE_FULL')) throw error;
          }
        }
      } finally {
        heard.delete(onProgress);
        if (heard.size === 0) listeners.delete(diffId);
      }
    },
    idle: fetches.idle,
  };
}

/** Both results; where one fails, the other is undone first. */
async function both(
  request: ReturnType<LayerSource['blob']>,
  begin: ReturnType<UnpackPool['begin']>,
): Promise<[Awaited<typeof request>, Awaited<typeof begin>]> {
  const [body, unpacking] = await Promise.allSettled([request, begin]);
  if (body.status === 'fulfilled' && unpacking.status === 'fulfilled') return [body.value, unpacking.value];
  if (unpacking.status === 'fulfilled') await unpacking.value.abort();
  if (body.status === 'fulfilled') await body.value.body[Symbol.asyncIterator]().return?.();
  throw body.status === 'rejected' ? body.reason : (unpacking as PromiseRejectedResult).reason;
}

/** The whole body into `unpacking`, not a byte more or less than `size`. */
async function pour(
  body: AsyncIterable<Buffer>,
  unpacking: Awaited<ReturnType<UnpackPool['begin']>>,
  size: number,
  what: string,
  tell: LayerProgress,
  signal: AbortSignal,
): Promise<void> {
  let bytes = 0;
  try {
    for await (const chunk of body) {
      bytes += chunk.length;
      if (bytes > size) {
        throw new KeelsonError(
          'IMAGE_DIGEST_MISMATCH',
          `${what}: the registry sent more than its ${size} bytes`,
        );
      }
      await unpacking.write(chunk);
      tell({ phase: 'downloading', bytes });
    }
  } catch (error) {
    throw unavailable(requestError(error, what, signal), what);
  }
  if (bytes !== size) {
    throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: the registry sent ${bytes} of ${size} bytes`);
  }
}

/** What an unpack worker says knows nothing of the registry: the layer's name is put before it. */
function inWordsOf(error: unknown, what: string): unknown {
  const sqliteFull = (error as { errcode?: unknown } | null)?.errcode === 13;
  if (errnoOf(error) === 'ENOSPC' || errnoOf(error) === 'EDQUOT' || sqliteFull) {
    return new KeelsonError('STORAGE_FULL', `${what}: no space is left for the layer`, {
      cause: error,
      hint: 'free some space or remove images that nobody needs',
    });
  }
  if (!(error instanceof KeelsonError) || error.message.startsWith(what)) return error;
  return new KeelsonError(error.code, `${what}: ${error.message}`, {
    cause: error.cause,
    hint: error.hint,
    details: error.details,
  });
}
