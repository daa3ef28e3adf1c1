/** When the node has nothing to do. */
import { flushCompileCache } from 'node:module';
import type { Clock } from '../../runtime/host/clock.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { giveMemoryBack } from '../../runtime/host/memory.ts';

/** After a start or a change of containers, when memory that only they needed is given back. */
const calmMs = 10_000;

/** What waits until the start is over: `archives` are looked for, memory is given back. */
export function whenIdle(archives: () => Promise<void>, clock: Clock, log: Logger) {
  return whenCalm(clock, calmMs, async () => {
    await archives().catch((error: unknown) =>
      log.error({ err: error }, 'image archives are not looked for'),
    );
    flushCompileCache(); // A killed process would not leave it to the next one.
    // Last, for what comes before needs memory only once.
    await giveMemoryBack().catch((error: unknown) => log.warn({ err: error }, 'cannot give memory back'));
  });
}

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
