/** When something transient is tried again: pure decisions, and the loop that follows them. */
import { type Clock, sleep } from '../../runtime/host/clock.ts';
import { isError } from '../../runtime/host/errors.ts';

/** Tries in all, the first one included. */
export const mostTries = 4;
/** Milliseconds before the second try at most; each further one waits up to four times longer. */
const firstDelay = 100;
/** Milliseconds that a registry may ask us to wait (Retry-After) while a pull hangs on it. */
export const longestWait = 30_000;

/**
 * Milliseconds to wait after failure number `failures` (from 1), or undefined to give up. `random` is from 0 to 1:
 * half of the wait is left to it, so that nodes that failed together do not come back together. A registry that
 * named its own time (`retryAfterMs`) is asked no earlier, and not again in this pull where it named a long one.
 */
export function retryDelay(failures: number, random: number, retryAfterMs?: number): number | undefined {
  if (failures >= mostTries) return undefined;
  const backoff = firstDelay * 4 ** (failures - 1);
  const jittered = Math.round(backoff / 2 + (backoff / 2) * random);
  if (retryAfterMs === undefined) return jittered;
  return retryAfterMs > longestWait ? undefined : retryAfterMs + jittered;
}

/**
 * Milliseconds from `now` (Unix time) that a Retry-After header (RFC 9110 section 10.2.3: seconds or an HTTP date)
 * asks for, not negative; undefined where it says nothing that can be understood.
 */
export function parseRetryAfter(value: string | undefined, now: number): number | undefined {
  const text = value?.trim() ?? '';
  if (/^\d{1,10}$/.test(text)) return Number(text) * 1000;
  // Date.parse reads much more than HTTP dates; those begin with a day's name and are in GMT.
  if (!/^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,? .*\d/.test(text) || text.length > 40) return undefined;
  const at = Date.parse(/GMT$/.test(text) ? text : `${text} GMT`);
  return Number.isNaN(at) ? undefined : Math.max(0, at - now);
}

/** Whether the same request may get another answer than this HTTP status. */
function isTransient(status: number): boolean {
  return status < 400 || status >= 500 || [408, 425, 429].includes(status);
}

/**
 * Runs `body` again, after a wait, for as long as it fails with REGISTRY_UNAVAILABLE and tries are left.
 * `details.retryAfterMs` of the error is what the registry asked for.
 */
export async function withRetries<T>(
  clock: Clock,
  signal: AbortSignal | undefined,
  body: () => Promise<T>,
): Promise<T> {
  for (let failures = 1; ; failures++) {
    try {
      return await body();
    } catch (error) {
      if (!isError(error, 'REGISTRY_UNAVAILABLE')) throw error;
      const { status, code, retryAfterMs: asked } = error.details;
      if (typeof status === 'number' && !isTransient(status)) throw error;
      // A dial that came to nothing has taken long enough; the pod comes back by itself.
      if (code === 'UND_ERR_CONNECT_TIMEOUT') throw error;
      const delay = retryDelay(failures, Math.random(), typeof asked === 'number' ? asked : undefined);
      if (delay === undefined) throw error;
      await sleep(clock, delay, signal);
    }
  }
}
