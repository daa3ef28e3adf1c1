/** Ends pods that take more of the node's disk than they may. Nothing is looked at while no pod has such a limit. */
import type { Clock } from '../../../runtime/host/clock.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import type { Pod } from '../../apiserver/types.ts';
import type { Eviction } from '../plan/memory.ts';
import { formatPod, uidOf } from '../spec/pod.ts';
import { hasContainerLimits, limitedEmptyDirs, type StorageUse, storageExcess } from './storage_limits.ts';

export interface StorageWatchOptions {
  /** What the pods have, by uid. */
  readonly measure: (pods: readonly Pod[], signal: AbortSignal) => Promise<ReadonlyMap<string, StorageUse>>;
  /** Images have a file system of their own. */
  readonly imagesApart: () => Promise<boolean>;
  /** Ends a pod; false where it must not be. */
  readonly evict: (pod: Pod, eviction: Omit<Eviction, 'since'>) => boolean;
  readonly clock: Clock;
  readonly log: Logger;
  /** Milliseconds between two looks. Default 10,000, as kubelet's. */
  readonly everyMs?: number;
}

export interface StorageWatch {
  /** The pods that hold resources now. */
  update(pods: readonly Pod[]): void;
  close(): Promise<void>;
}

/** kubelet's, for all that it evicts at once, in milliseconds. */
const graceMs = 1000;
/** The disk is left alone for so many times the time that a look took. */
const rest = 20;

export function watchStorage(options: StorageWatchOptions): StorageWatch {
  const { clock, log, everyMs = 10_000 } = options;
  const ending = new AbortController();
  let watched: readonly Pod[] = [];
  let cancel = () => {};
  let waiting = false;
  let looking: Promise<void> | undefined;
  let failed = false;

  async function look(): Promise<void> {
    const began = clock.monotonic();
    try {
      const [uses, imagesApart] = await Promise.all([
        options.measure(watched, ending.signal),
        options.imagesApart(),
      ]);
      failed = false;
      // Those that are still there: what was measured may have gone meanwhile.
      for (const pod of watched) {
        const use = uses.get(uidOf(pod));
        const message = use && storageExcess(pod, use, imagesApart);
        if (message === undefined) continue;
        if (options.evict(pod, { reason: 'Evicted', message, graceMs }))
          log.info({ pod: formatPod(pod) }, `evicting a pod: ${message.trim()}`);
      }
    } catch (error) {
      if (ending.signal.aborted) return;
      if (!failed) log.warn({ err: error }, 'cannot measure what pods have on disk, trying again');
      failed = true;
    }
    looking = undefined;
    wait(Math.max(everyMs, rest * (clock.monotonic() - began)));
  }

  function wait(ms: number): void {
    if (watched.length === 0 || waiting || looking !== undefined || ending.signal.aborted) return;
    waiting = true;
    cancel = clock.after(ms, () => {
      waiting = false;
      if (watched.length > 0) looking = look();
    });
  }

  return {
    update(pods) {
      watched = pods.filter(
        (pod) =>
          pod.metadata?.deletionTimestamp === undefined &&
          (limitedEmptyDirs(pod).length > 0 || hasContainerLimits(pod)),
      );
      wait(everyMs);
    },
    async close() {
      ending.abort(new KeelsonError('ABORTED', 'the agent is stopping'));
      cancel();
      await looking;
    },
  };
}
