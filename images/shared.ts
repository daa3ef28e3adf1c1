/** One run of some work for everybody who wants its result at the same time. */
import { abortError } from '../runtime/host/errors.ts';

export interface SharedWork<T> {
  /**
   * Joins the run for `key`, or starts it with `start`. `signal` ends only this caller's wait; when the last
   * caller has left, the signal that `start` got aborts, and the next caller starts anew.
   */
  join(key: string, start: (signal: AbortSignal) => Promise<T>, signal?: AbortSignal): Promise<T>;
  /** Resolves when nothing runs any more, not even what everybody has left. */
  idle(): Promise<void>;
}

export function sharedWork<T>(): SharedWork<T> {
  interface Run {
    readonly result: Promise<T>;
    readonly controller: AbortController;
    waiters: number;
  }
  const runs = new Map<string, Run>();
  const unfinished = new Set<Promise<unknown>>();

  const begin = (key: string, start: (signal: AbortSignal) => Promise<T>): Run => {
    const controller = new AbortController();
    const run: Run = { result: start(controller.signal), controller, waiters: 0 };
    runs.set(key, run);
    unfinished.add(run.result);
    const forget = () => {
      unfinished.delete(run.result);
      if (runs.get(key) === run) runs.delete(key);
    };
    run.result.then(forget, forget);
    return run;
  };

  return {
    join(key, start, signal) {
      if (signal?.aborted) return Promise.reject(abortError(signal, key));
      const run = runs.get(key) ?? begin(key, start);
      run.waiters++;
      return new Promise<T>((resolve, reject) => {
        const leave = () => {
          run.waiters--;
          if (run.waiters === 0 && runs.get(key) === run) {
            runs.delete(key);
            run.controller.abort(signal?.reason);
          }
          reject(abortError(signal!, key));
        };
        signal?.addEventListener('abort', leave, { once: true });
        const settled = () => signal?.removeEventListener('abort', leave);
        run.result.then(
          (value) => {
            settled();
            resolve(value);
          },
          (error: unknown) => {
            settled();
            reject(error);
          },
        );
      });
    },
    async idle() {
      while (unfinished.size > 0) await Promise.allSettled(unfinished);
    },
  };
}
