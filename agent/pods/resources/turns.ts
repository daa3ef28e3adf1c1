/**
 * How much of the machine's heavy work (namespaces, networks, mounts, the OCI runtime) is under way at once. What a hundred
 * pods begin together ends sooner a few at a time: the kernel does much of it one after the other anyway, and what waits
 * for that costs processor time, the more of it the more there is.
 */
import type { Clock } from '../../../runtime/host/clock.ts';

export interface Turns {
  /**
   * Does `work` when it is its turn: first what finishes something (`finishes`), else first come, first served. Who is
   * aborted waits no longer: `work` finds out by itself. Work that takes long (a plugin that hangs, a slow disk) makes
   * room for the next before it is done.
   */
  run<T>(work: () => Promise<T>, signal: AbortSignal, finishes?: boolean): Promise<T>;
}

/** After so many milliseconds it is somebody else's turn, too. */
const patienceMs = 2000;

export function makeTurns(clock: Clock, places: number): Turns {
  let taken = 0;
  /** In order, those that finish something in front; each takes the place that it is given. */
  const finishing = new Set<() => void>();
  const beginning = new Set<() => void>();

  function giveBack(): void {
    taken--;
    if (taken >= places) return;
    for (const waiting of [finishing, beginning]) {
      for (const next of waiting) {
        next();
        return;
      }
    }
  }

  function takePlace(signal: AbortSignal, waiting: Set<() => void>): Promise<void> | undefined {
    if (taken < places || signal.aborted) {
      taken++;
      return undefined;
    }
    return new Promise((resolve) => {
      const take = () => {
        waiting.delete(take);
        signal.removeEventListener('abort', take);
        taken++;
        resolve();
      };
      waiting.add(take);
      signal.addEventListener('abort', take, { once: true });
    });
  }

  return {
    async run(work, signal, finishes = false) {
      const wait = takePlace(signal, finishes ? finishing : beginning);
      if (wait !== undefined) await wait;
      let held = true;
      const end = () => {
        if (held) giveBack();
        held = false;
      };
      const cancel = clock.after(patienceMs, end);
      try {
        return await work();
      } finally {
        cancel();
        end();
      }
    },
  };
}
