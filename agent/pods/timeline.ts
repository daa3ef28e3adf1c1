/** When the stages of a pod's start were reached: for the bench, and one line in the log. */
import type { Clock } from '../../runtime/host/clock.ts';

export type Stage =
  | 'watchEvent'
  | 'pullStart'
  | 'pullEnd'
  | 'volumes'
  | 'cgroup'
  | 'sandboxStart'
  | 'sandbox'
  | 'create'
  | 'start'
  | 'statusWritten';

export interface TimelineEntry {
  readonly stage: Stage;
  /** Unix milliseconds. */
  readonly at: number;
  /** Milliseconds since the watch event. */
  readonly ms: number;
}

export interface Timeline {
  /** Stages ending something keep the last time, `…Start` ones and `watchEvent` the first. */
  mark(stage: Stage): void;
  entries(): readonly TimelineEntry[];
}

export function makeTimeline(clock: Clock): Timeline {
  const zero = clock.monotonic();
  const wall = clock.now();
  const marks = new Map<Stage, number>([['watchEvent', 0]]);
  return {
    mark(stage) {
      // What happens after the start was told (restarts, refreshed volumes) is not the start.
      if (marks.has('statusWritten')) return;
      if (stage.endsWith('Start') && marks.has(stage)) return;
      marks.set(stage, clock.monotonic() - zero);
    },
    entries: () =>
      [...marks].map(([stage, ms]) => ({ stage, at: wall + ms, ms })).sort((a, b) => a.ms - b.ms),
  };
}
