/** How many pulls may begin, and how many may run at once: registryPullQPS, registryBurst, maxParallelImagePulls. */
import type { Clock } from '../../runtime/host/clock.ts';
import { abortError, KeelsonError } from '../../runtime/host/errors.ts';
import { makeTokenBucket } from '../apiserver/rates.ts';

export interface PullLimits {
  /**
   * Waits for a place, in order, and takes a token; resolves with what gives the place back. Pulls of one `key` (the
   * same image with the same credentials) are one pull for the registry: they share one place and one token.
   * Throws UNAVAILABLE ("pull QPS exceeded") without waiting for a token, as kubelet does, and ABORTED.
   */
  enter(key: string, signal: AbortSignal): Promise<() => void>;
}

export interface PullLimitOptions {
  /** Pulls per second; 0: no limit. */
  readonly qps: number;
  readonly burst: number;
  /** Undefined: any number; the fetching of layers has its own bounds. */
  readonly parallel: number | undefined;
  readonly clock: Clock;
}

interface Entry {
  users: number;
  /** Settles when the pull may begin, or not. */
  readonly admitted: Promise<void>;
  readonly leave: () => void;
}

export function makePullLimits({ qps, burst, parallel, clock }: PullLimitOptions): PullLimits {
  const bucket = qps > 0 ? makeTokenBucket({ perSecond: qps, burst }) : undefined;
  const entries = new Map<string, Entry>();
  const waiting: (() => void)[] = [];
  let running = 0;

  function place(): { taken: Promise<void>; leave: () => void } {
    let state: 'waiting' | 'running' | 'left' = 'waiting';
    const { promise, resolve } = Promise.withResolvers<void>();
    const begin = () => {
      state = 'running';
      running++;
      resolve();
    };
    if (parallel === undefined || running < parallel) begin();
    else waiting.push(begin);
    return {
      taken: promise,
      leave() {
        const before = state;
        state = 'left';
        if (before === 'waiting') waiting.splice(waiting.indexOf(begin), 1);
        if (before !== 'running') return;
        running--;
        waiting.shift()?.();
      },
    };
  }

  function open(): Entry {
    const { taken, leave } = place();
    const admitted = taken.then(() => {
      if (bucket?.tryTake(clock.monotonic()) === false) {
        throw new KeelsonError('UNAVAILABLE', 'pull QPS exceeded', {
          hint: `this node begins ${qps} image pulls a second and ${burst} at once: registryPullQPS, registryBurst`,
        });
      }
    });
    admitted.catch(() => {}); // Told to those who wait for it, if there still are any.
    return { users: 0, admitted, leave };
  }

  return {
    async enter(key, signal) {
      if (signal.aborted) throw abortError(signal, 'image pull');
      const entry = entries.get(key) ?? open();
      entries.set(key, entry);
      entry.users++;
      let left = false;
      const leave = () => {
        if (left) return;
        left = true;
        if (--entry.users > 0) return;
        if (entries.get(key) === entry) entries.delete(key);
        entry.leave();
      };
      let onAbort = () => {};
      try {
        await Promise.race([
          entry.admitted,
          new Promise<never>((_, reject) => {
            onAbort = () => reject(abortError(signal, 'image pull'));
            signal.addEventListener('abort', onAbort, { once: true });
          }),
        ]);
      } catch (error) {
        // A refused entry must not refuse those who come later.
        if (entries.get(key) === entry && !signal.aborted) entries.delete(key);
        leave();
        throw error;
      } finally {
        signal.removeEventListener('abort', onAbort);
      }
      return leave;
    },
  };
}
