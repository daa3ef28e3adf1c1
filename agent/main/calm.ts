/** When the node has nothing to do. */
import type { Clock } from '../../runtime/host/clock.ts';

/** Calls `act` each time when nothing has stirred for `ms`; it begins stirred. */
export function whenCalm(clock: Clock, ms: number, act: () => unknown): { stir(): void; close(): void } {
  let cancel = clock.after(ms, act);
  return {
    stir() {
      cancel();
      cancel = clock.after(ms, act);
    },
    close: () => cancel(),
  };
}

/** `act` at the first call only. */
export function once(act: () => Promise<void>): () => Promise<void> {
  let run: Promise<void> | undefined;
  return () => {
    run ??= act();
    return run;
  };
}
