/** A token bucket: so many at once, then so many per second. Pure state; the caller brings the time. */

export interface TokenBucket {
  /** Takes a token that is there; false where none is. */
  tryTake(nowMs: number): boolean;
  /** Takes a token in any case and returns the milliseconds until it may be used. */
  reserve(nowMs: number): number;
}

/** `nowMs` must come from a monotonic clock; time that runs backwards counts as none. */
export function makeTokenBucket(limits: { readonly perSecond: number; readonly burst: number }): TokenBucket {
  const { perSecond, burst } = limits;
  let tokens = burst;
  let last: number | undefined;
  const refill = (now: number) => {
    if (last !== undefined && now > last) {
      tokens = Math.min(burst, tokens + ((now - last) / 1000) * perSecond);
    }
    if (last === undefined || now > last) last = now;
  };
  return {
    tryTake(now) {
      refill(now);
      if (tokens < 1) return false;
      tokens -= 1;
      return true;
    },
    reserve(now) {
      refill(now);
      tokens -= 1;
      return tokens >= 0 ? 0 : (-tokens / perSecond) * 1000;
    },
  };
}
