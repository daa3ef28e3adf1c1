/**
 * The heart of the room: what is to be done for a pod, from what is wanted, what is observed and what is
 * remembered. Level-triggered: nothing depends on having seen an event. No I/O, no clock, no randomness.
 */
import type { Pod, PodStatus } from '../../apiserver/types.ts';
import type { Refusal } from '../spec/admission.ts';
import { specGraceSeconds } from '../spec/pod.ts';
import type { ObservedPod } from '../types.ts';
import { type Action, type InFlight, isStarting } from './actions.ts';
import { type BackoffSettings, crashBackoff } from './backoff.ts';
import { bringUp } from './bringup.ts';
import { isTerminalPhase } from './conditions.ts';
import { decide } from './decide.ts';
import { activeDeadline, type PodMemory } from './memory.ts';
import type { DeadContainers } from './prune.ts';
import { anyLeft, asksForRestartOfAll, resetAll } from './restart_all.ts';
import { refusedStatus, statusOf, type WrittenStatus } from './status.ts';
import { isAnythingLive, releaseAll, removeAll, stopAll, withoutHeld } from './teardown.ts';
import { type View, viewOf } from './view.ts';

export interface PlanInput {
  readonly pod: Pod;
  readonly observed: ObservedPod;
  readonly memory: PodMemory;
  readonly inFlight: InFlight;
  /** The status of the plan before; the apiserver's for the first. */
  readonly old: PodStatus | undefined;
  readonly hostIps: readonly string[];
  readonly now: number;
  /** Default: `crashBackoff`. */
  readonly crash?: BackoffSettings;
  /** Default: `deadContainers`. */
  readonly dead?: DeadContainers;
  /** Default `keelson`. */
  readonly runtimeName?: string;
}

export interface Plan {
  /** Wanted now; those under way are named again. */
  readonly actions: readonly Action[];
  /** Everything that brings the pod up is to be interrupted. */
  readonly interruptStarts: boolean;
  readonly status: WrittenStatus;
  /** When to plan again though nothing happened, in wall clock milliseconds. */
  readonly wakeAt?: number;
  /** A start goes well and is not done, or an end is under way: the status may be written a little later. */
  readonly settling: boolean;
  /** Nothing runs any more and nothing will: the status is the last one. */
  readonly final: boolean;
  /** Nothing of the pod is left on the node: its object may go. */
  readonly gone: boolean;
}

const deadlineExceeded: Refusal = {
  reason: 'DeadlineExceeded',
  message: 'Pod was active on the node longer than the specified deadline',
};

export function plan(input: PlanInput): Plan {
  const wanted = wantedOf(input);
  const { actions, wakeAt } = withoutHeld(wanted.actions, input.memory, input.now);
  return wakeAt === undefined ? wanted : { ...wanted, actions, ...earliest([wakeAt, wanted.wakeAt]) };
}

function wantedOf(input: PlanInput): Plan {
  if (input.memory.termination !== undefined) return terminate(input, input.memory.termination.deadline);
  if (input.memory.refused !== undefined) return refuse(input, input.memory.refused);
  return run(input);
}

function earliest(times: readonly (number | undefined)[]): { wakeAt?: number } {
  const known = times.filter((time) => time !== undefined);
  return known.length === 0 ? {} : { wakeAt: Math.min(...known) };
}

function run(input: PlanInput): Plan {
  const { pod, observed, memory, inFlight, now } = input;
  const limit = activeDeadline(pod, memory, observed);
  const over = isTerminalPhase(pod.status?.phase) || isTerminalPhase(input.old?.phase);
  if (!over && limit !== undefined && limit <= now)
    return fail(input, deadlineExceeded, memory.overdueSince ?? now);
  if (!over && memory.evicted !== undefined) return end(input, memory.evicted, memory.evicted.since);
  const view = viewOf(pod, observed);
  const restartingAll = !over && asksForRestartOfAll(pod, view, input.old);
  if (restartingAll && anyLeft(pod, view, inFlight)) return restartAll(input, view, limit);
  const decision = decide(pod, view, memory, input.old);
  if (over || decision.ended) return end(input, undefined, undefined);
  const up = bringUp({ ...input, view, decision, crash: input.crash ?? crashBackoff });
  const starting = new Set(
    [...inFlight.keys()].filter((key) => key.startsWith('start/')).map((key) => key.slice('start/'.length)),
  );
  const failing = up.failing || memory.sandboxFailure !== undefined || memory.volumesFailure !== undefined;
  const busy =
    [...inFlight.keys()].some(isStarting) ||
    up.actions.some(({ key }) => isStarting(key) && key !== 'volumes');
  return {
    actions: up.actions,
    interruptStarts: false,
    status: statusOf({
      ...input,
      view,
      waiting: shown(up.waiting, input),
      restartingAll,
      starting,
      ended: false,
      live: true,
    }),
    ...earliest([...up.wakeAt, limit]),
    settling: busy && !failing,
    final: false,
    gone: false,
  };

  /** Before the init containers are through, the others wait for them, whatever else is the matter. */
  function shown(waiting: typeof up.waiting, { pod: { spec } }: PlanInput): typeof up.waiting {
    const init = new Set(spec?.initContainers?.map(({ name }) => name));
    if (init.size === 0 || decision.start.some(({ name }) => !init.has(name))) return waiting;
    const apart = new Set(decision.ephemeral.map(({ name }) => name));
    return new Map([...waiting].filter(([name]) => init.has(name) || apart.has(name)));
  }
}

/** Every container of the pod is on its way to begin anew, in the same sandbox. */
function restartAll(input: PlanInput, view: View, limit: number | undefined): Plan {
  const { pod, observed, inFlight, now } = input;
  return {
    actions: resetAll(pod, observed, view, inFlight, now),
    interruptStarts: true,
    status: statusOf({
      ...input,
      view,
      waiting: new Map(),
      restartingAll: true,
      starting: new Set(),
      ended: false,
      live: true,
    }),
    ...earliest([limit]),
    settling: false,
    final: false,
    gone: false,
  };
}

/** The pod as a whole failed at `since`: stop it, keep its logs. */
function fail(input: PlanInput, failed: Refusal, since: number): Plan {
  const plan = end(input, failed, since);
  const key = 'note/failed';
  if (input.memory.noted[key] === failed.reason) return plan;
  const note: Action = {
    kind: 'note',
    key,
    occasion: failed.reason,
    type: 'Normal',
    reason: failed.reason,
    message: failed.message,
  };
  return { ...plan, actions: [...plan.actions, note] };
}

/** Nothing is to be started any more: stop what runs, give back network and volumes, keep containers for logs. */
function end(input: PlanInput, failed: Refusal | undefined, since: number | undefined): Plan {
  const { pod, observed, memory, inFlight, now } = input;
  const live = isAnythingLive(observed, inFlight);
  return {
    ...(live
      ? stopAll(pod, observed, deadlineOf(input, since ?? now), memory, inFlight, now)
      : releaseAll(observed, memory)),
    interruptStarts: true,
    status: endStatus(input, live, failed),
    settling: false,
    final: !live,
    gone: false,
  };
}

/** One deadline for all: that of a stop under way, else the pod's grace from `since`. */
function deadlineOf({ pod, inFlight, memory }: PlanInput, since: number): number {
  const given = [...inFlight.values()].flatMap(({ deadline }) => (deadline === undefined ? [] : [deadline]));
  return Math.min(since + (memory.evicted?.graceMs ?? specGraceSeconds(pod) * 1000), ...given);
}

function endStatus(input: PlanInput, live: boolean, failed: Refusal | undefined): WrittenStatus {
  const { pod, observed } = input;
  return statusOf({
    ...input,
    view: viewOf(pod, observed),
    waiting: new Map(),
    starting: new Set(),
    ended: true,
    live,
    failed,
  });
}

/** Deleted, or gone from its source: stop, tell how it ended, remove every trace. */
function terminate(input: PlanInput, deadline: number): Plan {
  const { pod, observed, memory, inFlight, now } = input;
  if (memory.final === undefined) {
    const live = isAnythingLive(observed, inFlight);
    const status =
      memory.refused === undefined
        ? endStatus(input, live, undefined)
        : refusedStatus(pod, memory.refused, memory.firstSeen);
    if (live) {
      return {
        ...stopAll(pod, observed, deadline, memory, inFlight, now),
        interruptStarts: true,
        status,
        settling: true,
        final: false,
        gone: false,
      };
    }
    const first = removeAll(observed, memory);
    return { ...first, interruptStarts: true, status, settling: false, final: true, gone: false };
  }
  const rest = removeAll(observed, memory);
  return {
    ...rest,
    interruptStarts: true,
    status: memory.final,
    settling: false,
    final: true,
    gone: rest.gone && inFlight.size === 0,
  };
}

/** Not admitted: nothing is made; what an earlier life left is given back. */
function refuse(input: PlanInput, refused: Refusal): Plan {
  const { pod, memory } = input;
  return {
    ...releaseAll(input.observed, { ...memory, volumes: 'gone' }),
    interruptStarts: true,
    status: refusedStatus(pod, refused, memory.firstSeen),
    settling: false,
    final: true,
    gone: false,
  };
}
