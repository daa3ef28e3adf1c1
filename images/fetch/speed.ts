/** How fast bytes come: for people, and to tell a connection that is as good as broken. */
import type { PullProgress } from '../../runtime/api.ts';

export interface ByteWindow {
  /** `at` (milliseconds, any origin) never goes back. */
  add(at: number, bytes: number): void;
  /** Bytes of the last `ms` before `at`, exact to a slot. */
  sum(at: number): number;
}

/** Bytes over the last `ms`, in slots of equal length; costs nothing but an addition per call. */
export function byteWindow(ms: number, slots = 12): ByteWindow {
  const slotMs = ms / slots;
  const counts = new Float64Array(slots);
  let newest = 0;
  let total = 0;
  const move = (at: number) => {
    const slot = Math.floor(at / slotMs);
    for (let passed = Math.min(slot - newest, slots); passed > 0; passed--) {
      const stale = (slot - passed + 1) % slots;
      total -= counts[stale]!;
      counts[stale] = 0;
    }
    newest = Math.max(newest, slot);
  };
  return {
    add(at, bytes) {
      if (Math.floor(at / slotMs) > newest) move(at);
      counts[newest % slots]! += bytes;
      total += bytes;
    },
    sum(at) {
      move(at);
      return total;
    },
  };
}

export interface Floor {
  /** Bytes came. */
  add(now: number, bytes: number): void;
  /** From now on it is not the network that we wait for. */
  hold(now: number): void;
  resume(now: number): void;
  /** Milliseconds spent on the network up to now. */
  elapsed(now: number): number;
  /** Less than the floor has come over the whole of the last `stallMs` spent on the network. */
  stalled(now: number): boolean;
}

/** `started` and every `now` are on one monotonic clock, in milliseconds. */
export function throughputFloor(
  policy: { readonly minBytesPerSecond: number; readonly stallMs: number },
  started: number,
): Floor {
  const { minBytesPerSecond, stallMs } = policy;
  const window = byteWindow(stallMs);
  let held = 0;
  let heldSince: number | undefined;
  const elapsed = (now: number) => (heldSince ?? now) - started - held;
  return {
    add: (now, bytes) => window.add(elapsed(now), bytes),
    hold(now) {
      heldSince ??= now;
    },
    resume(now) {
      if (heldSince !== undefined) held += now - heldSince;
      heldSince = undefined;
    },
    elapsed,
    stalled(now) {
      const spent = elapsed(now);
      return spent >= stallMs && window.sum(spent) < Math.max(1, (minBytesPerSecond * stallMs) / 1000);
    },
  };
}

export type LayerStep = Pick<PullProgress, 'phase' | 'bytes' | 'bytesPerSecond'>;

export interface ProgressTeller {
  /** Told at once. */
  phase(now: number, phase: PullProgress['phase'], bytes: number): void;
  /** `bytes` of the layer are there, `fetched` of them came just now over the network. Told now and then. */
  bytes(now: number, bytes: number, fetched: number): void;
}

const rateMs = 3000;
/** At most five times a second: nobody can read faster. */
export const progressEveryMs = 200;

/** Tells `listener` every change of the phase, and bytes not more often than people want to know. */
export function tellProgress(listener: (step: LayerStep) => void): ProgressTeller {
  const window = byteWindow(rateMs);
  let current: PullProgress['phase'] = 'waiting';
  let since: number | undefined;
  let told = Number.NEGATIVE_INFINITY;
  const speed = (now: number): number => {
    if (since === undefined || current !== 'downloading') return 0;
    // In the first moments the window is longer than what there is to see.
    const seen = Math.max(progressEveryMs, Math.min(rateMs, now - since));
    return Math.round((window.sum(now) * 1000) / seen);
  };
  return {
    phase(now, phase, bytes) {
      current = phase;
      told = now;
      listener({ phase, bytes, bytesPerSecond: speed(now) });
    },
    bytes(now, bytes, fetched) {
      since ??= now;
      window.add(now, fetched);
      if (now - told < progressEveryMs) return;
      told = now;
      listener({ phase: current, bytes, bytesPerSecond: speed(now) });
    },
  };
}
