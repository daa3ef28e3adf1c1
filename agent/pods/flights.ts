/** The actions of one pod that are under way: one per key, each with a deadline and an end. */
import type { Clock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { type ActionContext, interrupted, type MemoryUpdate } from './actions/context.ts';
import { deadlineMs, perform } from './actions/perform.ts';
import { type Action, due, type InFlight, isStarting } from './plan/actions.ts';
import type { Turns } from './resources/turns.ts';

export interface Flights {
  readonly inFlight: InFlight;
  /** Starts those of the wanted actions that are not under way, and interrupts stops that take too long. */
  begin(wanted: readonly Action[], context: Omit<ActionContext, 'signal'>): readonly Action[];
  /** Interrupts everything that brings the pod up. */
  interruptStarts(): void;
  /** What actions that have ended mean to the memory; they are not under way any more. */
  take(): readonly MemoryUpdate[];
  /** Interrupts everything; resolves when it has ended. */
  close(): Promise<void>;
}

interface Flight {
  readonly deadline?: number;
  readonly image?: string;
  readonly controller: AbortController;
  readonly done: Promise<void>;
}

/**
 * What the pods of a node do in turns. New sandboxes come last: of many pods the first are then soon whole, instead of all
 * late, and fewer states in between have to be told.
 */
const heavy: ReadonlyMap<Action['kind'], { readonly finishes: boolean }> = new Map([
  ['sandbox', { finishes: false }],
  ['create', { finishes: true }],
  ['stopSandbox', { finishes: true }],
]);

/** `onEnd` is called when an action has ended, before `take` gives its result. */
export function makeFlights(options: {
  readonly clock: Clock;
  readonly log: Logger;
  readonly turns: Turns;
  readonly onEnd: (key: string) => void;
}): Flights {
  const { clock, log } = options;
  const inFlight = new Map<string, Flight>();
  const ended: { key: string; update: MemoryUpdate }[] = [];
  const stopsBegun = new Set<string>();

  function launch(action: Action, surroundings: Omit<ActionContext, 'signal'>): void {
    const { key } = action;
    const controller = new AbortController();
    const context = { ...surroundings, signal: controller.signal };
    const allowed = deadlineMs(action, clock.now());
    const cancel = clock.after(allowed, () =>
      controller.abort(new KeelsonError('DEADLINE_EXCEEDED', `${key} was not done within ${allowed} ms`)),
    );
    const again = stopsBegun.has(key);
    if (action.kind === 'stop') stopsBegun.add(key);
    const work = () => perform(action, context, again);
    const turn = heavy.get(action.kind);
    const done = (turn === undefined ? work() : options.turns.run(work, context.signal, turn.finishes))
      .catch((error: unknown): MemoryUpdate => {
        if (!interrupted(context)) log.error({ err: error, action: key }, 'an action failed unexpectedly');
        return (memory) => memory;
      })
      .then((update) => {
        cancel();
        ended.push({ key, update });
        options.onEnd(key);
      });
    inFlight.set(key, {
      controller,
      done,
      ...('deadline' in action ? { deadline: action.deadline } : {}),
      ...('image' in action ? { image: action.image } : {}),
    });
  }

  return {
    inFlight,
    begin(wanted, context) {
      const { start, interrupt } = due(wanted, inFlight);
      for (const key of interrupt) inFlight.get(key)?.controller.abort();
      for (const action of start) launch(action, context);
      return start;
    },
    interruptStarts() {
      for (const [key, { controller }] of inFlight) if (isStarting(key)) controller.abort();
    },
    take() {
      const results = ended.splice(0);
      for (const { key } of results) inFlight.delete(key);
      return results.map(({ update }) => update);
    },
    async close() {
      for (const { controller } of inFlight.values()) controller.abort();
      await Promise.all([...inFlight.values()].map(({ done }) => done));
    },
  };
}
