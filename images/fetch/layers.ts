/**
 * Layers on their way from a registry into the store: a bounded number at once for the whole node, each only once
 * however many images and callers wait for it, verified before anybody can see it.
 */
import type { Clock } from '../../runtime/host/clock.ts';
import { isError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { LayerSource } from '../registry/repository.ts';
import { sharedWork } from '../shared.ts';
import type { Blobs } from '../store/blobs.ts';
import type { Store } from '../store/store.ts';
import type { UnpackPool } from '../unpack/pool.ts';
import { fetchLayer, type WantedLayer } from './fetch.ts';
import { makeFlight } from './inlet.ts';
import { type FetchMetrics, makeCounters } from './metrics.ts';
import type { Partials } from './partial.ts';
import { defaultPolicy, type FetchPolicy, policyFor } from './policy.ts';
import { type FetchQueue, makeFetchQueue } from './queue.ts';
import { type LayerStep, tellProgress } from './speed.ts';

export type { WantedLayer } from './fetch.ts';
export type LayerProgress = (step: LayerStep) => void;

export interface Layers {
  /**
   * Resolves when the layer is in the store. Layers of one `image` wait for each other, those of different ones take
   * turns. Throws what `LayerSource.blob` throws, and IMAGE_DIGEST_MISMATCH, IMAGE_INVALID, IMAGE_UNSUPPORTED,
   * LAYER_UNSAFE, STORAGE_FULL, SYSCALL_FAILED.
   */
  ensure(
    layer: WantedLayer,
    from: LayerSource,
    onProgress: LayerProgress,
    signal?: AbortSignal,
    image?: string,
  ): Promise<void>;
  metrics(): FetchMetrics;
  /** Resolves when nothing is fetched any more. */
  idle(): Promise<void>;
}

export interface LayersOptions {
  readonly store: Store;
  readonly blobs: Blobs;
  readonly partials: Partials;
  readonly unpack: UnpackPool;
  readonly clock: Clock;
  readonly log: Logger;
  /** The folder of the store, for messages. */
  readonly stateDir: string;
  /** Layers fetched at once. */
  readonly parallel: number;
  /** Bytes received and not yet taken by an unpacker, at most, for all layers together. Default 16 MiB. */
  readonly bytesInFlight?: number;
  /** Keep compressed layers in `blobs`. Default false. */
  readonly keepBlobs?: boolean;
  readonly policy?: FetchPolicy;
  /** From 0 to 1, for the waits between tries. Default Math.random. */
  readonly random?: () => number;
}

const defaultBytesInFlight = 16 << 20;

export function makeLayers(options: LayersOptions): Layers {
  const { store, clock, parallel, bytesInFlight = defaultBytesInFlight } = options;
  const fetches = sharedWork<void>();
  const listeners = new Map<string, Set<LayerProgress>>();
  const queue = makeFetchQueue(parallel);
  /** The newest place in the queue for each diffID. */
  const places = new Map<string, ReturnType<FetchQueue['add']>>();
  const counters = makeCounters();
  const flight = makeFlight(bytesInFlight);
  const fetchOptions = {
    ...options,
    keepBlobs: options.keepBlobs ?? false,
    policy: policyFor(options.policy ?? defaultPolicy, parallel),
    random: options.random ?? Math.random,
    flight,
    counters,
  };

  const start = async (
    layer: WantedLayer,
    from: LayerSource,
    image: string,
    signal: AbortSignal,
  ): Promise<void> => {
    const { diffId, descriptor } = layer;
    const progress = tellProgress((step) => {
      for (const listener of listeners.get(diffId) ?? []) listener(step);
    });
    progress.phase(clock.monotonic(), 'waiting', 0);
    const place = queue.add(image, () => fetchLayer(fetchOptions, layer, from, progress, signal), signal);
    places.set(diffId, place);
    try {
      await place.done;
    } catch (error) {
      if (!signal.aborted) counters.layersFailed++;
      throw error;
    } finally {
      if (places.get(diffId) === place) places.delete(diffId);
    }
    counters.layersFetched++;
    progress.phase(clock.monotonic(), 'done', descriptor.size);
  };

  return {
    async ensure(layer, from, onProgress, signal, image = from.name) {
      const { diffId, descriptor } = layer;
      const heard = listeners.get(diffId) ?? new Set();
      listeners.set(diffId, heard.add(onProgress));
      try {
        for (;;) {
          if (store.hasLayer(diffId)) {
            return onProgress({ phase: 'present', bytes: descriptor.size, bytesPerSecond: 0 });
          }
          let own = false;
          const begin = (shared: AbortSignal) => {
            own = true;
            return start(layer, from, image, shared);
          };
          try {
            const fetched = fetches.join(diffId, begin, signal);
            if (!own) places.get(diffId)?.alsoFor(image);
            return await fetched;
          } catch (error) {
            // Somebody else's registry, credentials or descriptor failed: that says nothing about ours.
            if (own || signal?.aborted || isError(error, 'STORAGE_FULL')) throw error;
          }
        }
      } finally {
        heard.delete(onProgress);
        if (heard.size === 0 && listeners.get(diffId) === heard) listeners.delete(diffId);
      }
    },
    metrics: () => ({
      ...counters,
      layersInFlight: flight.layers,
      layersWaiting: queue.waiting,
      bytesInFlight: flight.bytes,
    }),
    idle: fetches.idle,
  };
}
