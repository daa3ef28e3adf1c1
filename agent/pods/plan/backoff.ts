/** How long to wait before trying again. Pure: states in, states out. */

export interface BackoffSettings {
  /** Milliseconds of the first wait. */
  readonly initialMs: number;
  readonly maxMs: number;
}

/** CrashLoopBackOff: 10 s, doubled up to 300 s (crashLoopBackOff.maxContainerRestartPeriod). */
export const crashBackoff: BackoffSettings = { initialMs: 10_000, maxMs: 300_000 };
export const imageBackoff: BackoffSettings = { initialMs: 10_000, maxMs: 300_000 };
export const sandboxBackoff: BackoffSettings = { initialMs: 1_000, maxMs: 15_000 };
export const volumeBackoff: BackoffSettings = { initialMs: 500, maxMs: 20_000 };
/** Containers that could not be made or started, and what failed while a pod is taken down. */
export const containerBackoff: BackoffSettings = { initialMs: 2_000, maxMs: 20_000 };

/** Something failed `count` times in a row, last at `at`; it may be tried again at `retryAt`. */
export interface Failure {
  readonly reason: string;
  readonly message: string;
  readonly count: number;
  readonly at: number;
  readonly retryAt: number;
}

/** The failure after one more of them. */
export function failedAgain(
  previous: Failure | undefined,
  reason: string,
  message: string,
  now: number,
  settings: BackoffSettings,
): Failure {
  const count = (previous?.count ?? 0) + 1;
  const delay = Math.min(settings.maxMs, settings.initialMs * 2 ** Math.min(count - 1, 30));
  return { reason, message, count, at: now, retryAt: now + delay };
}

/** What is remembered of a container that ended: client-go's flowcontrol.Backoff entry for one key. */
export interface CrashState {
  /** The wait that the next restart has to observe. */
  readonly delayMs: number;
  /** When the last restart was allowed. */
  readonly lastAt: number;
  /** The ended container whose restart was allowed. */
  readonly forId: string;
}

/**
 * The state as the container itself tells it, for a process that has no memory of it (a restarted agent): the wait before
 * this attempt was observed, since the one before it ended (`previousEnd`, milliseconds), and the next one is twice as
 * long. Where that is not known each attempt before this one counts as a crash. Undefined for a first attempt.
 */
export function crashStateOf(
  container: { readonly metadata: { readonly attempt: number }; readonly createdAt: number },
  previousEnd: number | undefined,
  settings: BackoffSettings,
): CrashState | undefined {
  const { attempt } = container.metadata;
  if (attempt === 0) return undefined;
  const { initialMs, maxMs } = settings;
  let delayMs = Math.min(maxMs, initialMs * 2 ** Math.min(attempt - 1, 30));
  if (previousEnd) {
    const waitedMs = container.createdAt - previousEnd;
    let next = initialMs;
    // A longer one was none of these waits: something else kept the container from starting.
    if (waitedMs <= 2 * maxMs) while (next <= waitedMs && next < maxMs) next *= 2;
    delayMs = Math.min(delayMs, next);
  }
  return { delayMs, lastAt: container.createdAt, forId: '' };
}

/** A run of more than twice the longest wait counts as good: the waits start over. */
function expired(state: CrashState, finishedAt: number, settings: BackoffSettings): boolean {
  return finishedAt - state.lastAt > 2 * settings.maxMs;
}

/**
 * When the container that ended as `id` at `finishedAt` may be restarted: 0 for at once. The first restart and
 * those after a good run are immediate; a restart that was allowed stays allowed.
 */
export function restartAllowedAt(
  state: CrashState | undefined,
  id: string,
  finishedAt: number,
  settings: BackoffSettings,
): number {
  if (state === undefined || state.forId === id || expired(state, finishedAt, settings)) return 0;
  return finishedAt + state.delayMs;
}

/** The state once the restart of `id` has been allowed at `now`. */
export function restartAllowed(
  state: CrashState | undefined,
  id: string,
  finishedAt: number,
  now: number,
  settings: BackoffSettings,
): CrashState {
  if (state?.forId === id) return state;
  const delayMs =
    state === undefined || expired(state, finishedAt, settings)
      ? settings.initialMs
      : Math.min(settings.maxMs, state.delayMs * 2);
  return { delayMs, lastAt: now, forId: id };
}

/** A wait as Go prints durations of whole seconds: `10s`, `1m20s`, `5m0s`. */
export function goSeconds(ms: number): string {
  const seconds = Math.round(ms / 1000);
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  if (hours > 0) return `${hours}h${minutes % 60}m${seconds % 60}s`;
  return minutes > 0 ? `${minutes}m${seconds % 60}s` : `${seconds}s`;
}
