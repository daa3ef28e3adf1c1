/** What decides about a fetch: numbers, and pure functions of them. */

export interface FetchPolicy {
  /** A connection that gives fewer bytes a second over `stallMs` counts as broken; 0: only one that gives none. */
  readonly minBytesPerSecond: number;
  /** Milliseconds of waiting for the network; what the unpacker makes us wait does not count. */
  readonly stallMs: number;
  /** Milliseconds before each further try in which nothing has come, up to random halves of them. */
  readonly retryDelaysMs: readonly number[];
  /** So many bytes since the tries were last counted are progress: they are counted anew. */
  readonly progressBytes: number;
  /** Whether a layer is written down is decided after so many bytes… */
  readonly decideAfterBytes: number;
  /** …or after so many milliseconds, whichever comes first. Until then it is kept in memory. */
  readonly decideAfterMs: number;
  /** Bytes of one layer that may wait for the disk before the network does, too. */
  readonly spoolPendingBytes: number;
  /** Bytes a second from which on a link is fast: fetching again costs less than writing everything twice. */
  readonly fastBytesPerSecond: number;
  /** Milliseconds after which a part of a layer that nobody has asked for is removed. */
  readonly partialMaxAgeMs: number;
  /** Bytes of all such parts together, at a start. */
  readonly partialMaxBytes: number;
}

export const defaultPolicy: FetchPolicy = {
  minBytesPerSecond: 1024,
  stallMs: 30_000,
  retryDelaysMs: [100, 400, 1000, 3000],
  progressBytes: 64 << 10,
  decideAfterBytes: 4 << 20,
  decideAfterMs: 2000,
  spoolPendingBytes: 4 << 20,
  fastBytesPerSecond: 40_000_000,
  partialMaxAgeMs: 7 * 24 * 3600 * 1000,
  partialMaxBytes: 2 * 2 ** 30,
};

/** Bytes that all layers together may keep in memory for the sake of their parts on disk. */
const mostSpoolMemory = 16 << 20;

/** The policy with `parallel` fetches at once: many of them keep less each. */
export function policyFor(policy: FetchPolicy, parallel: number): FetchPolicy {
  const share = Math.floor(mostSpoolMemory / parallel);
  return {
    ...policy,
    decideAfterBytes: Math.min(policy.decideAfterBytes, share),
    spoolPendingBytes: Math.min(policy.spoolPendingBytes, share),
  };
}

/** What is known of a fetch when it is decided whether its bytes are written down as they come. */
export interface LinkSeen {
  /** The compressed layer is kept anyway. */
  readonly keep: boolean;
  /** Bytes so far. */
  readonly bytes: number;
  /** Milliseconds since the first of them. */
  readonly ms: number;
  readonly bytesPerSecond: number;
  /** The connection has broken at least once. */
  readonly broken: boolean;
}

/** `wait`: keep them in memory until more is known; `drop`: do not write them at all. */
export function spoolDecision(policy: FetchPolicy, seen: LinkSeen): 'wait' | 'write' | 'drop' {
  if (seen.keep || seen.broken) return 'write';
  if (seen.bytes < policy.decideAfterBytes && seen.ms < policy.decideAfterMs) return 'wait';
  return seen.bytesPerSecond < policy.fastBytesPerSecond ? 'write' : 'drop';
}

export interface Tries {
  /** Milliseconds to wait before going on after a failure with `received` bytes in all; undefined: give up. */
  next(received: number): number | undefined;
}

/** Counts tries without progress. `random` gives numbers from 0 to 1. */
export function countTries(policy: FetchPolicy, random: () => number, received = 0): Tries {
  let failures = 0;
  let from = received;
  return {
    next(received) {
      if (received - from >= policy.progressBytes) {
        from = received;
        failures = 0;
      }
      const delay = policy.retryDelaysMs[failures++];
      // All layers of a node lose their connection at the same moment: they should not come back at the same moment.
      return delay === undefined ? undefined : Math.round(delay * (0.5 + random() / 2));
    },
  };
}

export interface PartialFile {
  readonly name: string;
  readonly size: number;
  /** Milliseconds since the epoch, of the last fetch that used it. */
  readonly usedAt: number;
}

/** The names to remove: those that nobody wanted for long, then the ones unused for longest, down to the bound. */
export function expiredPartials(policy: FetchPolicy, files: readonly PartialFile[], now: number): string[] {
  let total = 0;
  return [...files]
    .sort((a, b) => b.usedAt - a.usedAt)
    .filter(({ size, usedAt }) => {
      total += size;
      return now - usedAt > policy.partialMaxAgeMs || total > policy.partialMaxBytes;
    })
    .map(({ name }) => name);
}
