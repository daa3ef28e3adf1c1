/** How long to wait before trying again. Pure: the caller counts the failures and draws the random number. */

export interface BackoffLimits {
  /** The shortest first wait, milliseconds. */
  readonly baseMs: number;
  /** No wait is longer. */
  readonly maxMs: number;
}

/** client-go's figures for reflectors. */
export const reflectorBackoff: BackoffLimits = { baseMs: 800, maxMs: 30_000 };

/**
 * Milliseconds to wait after `failures` failures in a row (1 for the first). Doubles each time up to `maxMs`, and
 * lies between half of the step and the whole of it, so that many nodes do not come back at one moment.
 * `random` is in [0, 1).
 */
export function backoffDelay(failures: number, random: number, limits: BackoffLimits): number {
  const step = Math.min(limits.maxMs, limits.baseMs * 2 ** Math.min(Math.max(failures, 1), 32));
  return step / 2 + (random * step) / 2;
}
