/** Which dead containers and sandboxes of a pod go while the pod goes on (kubelet's containerGC). Pure. */
import type { ObservedPod } from '../types.ts';
import type { Action } from './actions.ts';
import type { View } from './view.ts';

/** How many dead containers are kept for their logs, besides the newest of each name, which tells the status. */
export interface DeadContainers {
  readonly perContainer: number;
  /** Milliseconds from its making for which each is kept in any case. */
  readonly minAgeMs: number;
}

/** As kubelet without its deprecated flags: the one before, for `kubectl logs --previous`. */
export const deadContainers: DeadContainers = { perContainer: 1, minAgeMs: 0 };

/** `wakeAt` where one is too young. */
export function prune(input: {
  readonly observed: ObservedPod;
  readonly view: View;
  readonly now: number;
  readonly dead?: DeadContainers;
}): { actions: Action[]; wakeAt?: number } {
  const { observed, view, now, dead = deadContainers } = input;
  const seen = new Map<string, number>();
  const actions: Action[] = [];
  const later: number[] = [];
  for (const { id, metadata, state, createdAt } of observed.containers) {
    const place = seen.get(metadata.name) ?? 0;
    // What could not be started stays until the next one is there: its number is taken. It has no log worth the place
    // of one that ran.
    const neverRan = place > 0 && state === 'created';
    if (!neverRan) seen.set(metadata.name, place + 1);
    const useless = place > dead.perContainer || neverRan;
    if (!useless || state === 'running' || state === 'unknown') continue;
    const from = createdAt + dead.minAgeMs;
    if (from > now) later.push(from);
    else actions.push({ kind: 'removeContainer', key: `remove/${id}`, id });
  }
  for (const { id, state } of observed.sandboxes) {
    const empty = observed.containers.every(({ podSandboxId }) => podSandboxId !== id);
    if (id !== view.sandbox?.id && state === 'notready' && empty && view.sandbox !== undefined)
      actions.push({ kind: 'removeSandbox', key: `sandbox/${id}`, id });
  }
  return { actions, ...(later.length === 0 ? {} : { wakeAt: Math.min(...later) }) };
}
