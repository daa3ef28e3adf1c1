/** Taking a pod down: in what order, and what comes when nothing runs any more. Pure. */
import type { ContainerStatus } from '../../../runtime/api.ts';
import type { Pod } from '../../apiserver/types.ts';
import { initContainers, isSidecar } from '../spec/pod.ts';
import type { ObservedPod } from '../types.ts';
import type { Action } from './actions.ts';
import { type InFlight, isStarting } from './actions.ts';
import type { PodMemory } from './memory.ts';
import { isLive } from './view.ts';

/** Something of the pod runs, or is being started, or might be. */
export function isAnythingLive(observed: ObservedPod, inFlight: InFlight): boolean {
  if (observed.containers.some(isLive)) return true;
  return [...inFlight.keys()].some((key) => isStarting(key) || key.startsWith('stop/'));
}

export function stopAction(container: ContainerStatus, deadline: number, message: string): Action {
  const { name } = container.metadata;
  return { kind: 'stop', key: `stop/${container.id}`, container: name, id: container.id, deadline, message };
}

/**
 * Stops for all that runs: sidecars only when the containers that they serve have ended, the last one first
 * (KEP-753), all until the same deadline.
 */
export function stopAll(pod: Pod, observed: ObservedPod, deadline: number): Action[] {
  const live = observed.containers.filter(isLive);
  const sidecars = initContainers(pod)
    .filter((container) => isSidecar(pod, container))
    .map(({ name }) => name);
  const others = live.filter(({ metadata }) => !sidecars.includes(metadata.name));
  const last = sidecars.filter((name) => live.some(({ metadata }) => metadata.name === name)).at(-1);
  const now = others.length > 0 ? others : live.filter(({ metadata }) => metadata.name === last);
  return now.map((container) =>
    stopAction(container, deadline, `Stopping container ${container.metadata.name}`),
  );
}

/** When a step that failed may be tried again; 0 for at once. */
function retryAt(memory: PodMemory, key: string): number {
  return memory.teardownFailures[key]?.retryAt ?? 0;
}

/**
 * What is left to remove once nothing of the pod runs any more; an empty list when all is gone. `wakeAt` where a
 * failed step has to wait.
 */
export function removeAll(
  observed: ObservedPod,
  memory: PodMemory,
  now: number,
): { actions: Action[]; wakeAt?: number; gone: boolean } {
  const wanted: Action[] = observed.sandboxes.map(({ id }) => ({
    kind: 'removeSandbox',
    key: `sandbox/${id}`,
    id,
  }));
  const sandboxes = new Set(observed.sandboxes.map(({ id }) => id));
  for (const { id, podSandboxId } of observed.containers) {
    if (!sandboxes.has(podSandboxId)) wanted.push({ kind: 'removeContainer', key: `remove/${id}`, id });
  }
  if (memory.volumes !== 'gone') wanted.push({ kind: 'tearDown', key: 'tearDown' });
  const bare = wanted.length === 0;
  if (bare && !memory.erased) wanted.push({ kind: 'erase', key: 'erase' });
  return { ...ready(wanted, memory, now), gone: bare && memory.erased };
}

/** What a pod that has ended gives back before it is deleted: its network and volumes. Logs stay. */
export function releaseAll(
  observed: ObservedPod,
  memory: PodMemory,
  now: number,
): { actions: Action[]; wakeAt?: number } {
  const wanted: Action[] = observed.sandboxes
    .filter(({ id, state }) => state === 'ready' || !memory.stoppedSandboxes.includes(id))
    .map(({ id }) => ({ kind: 'stopSandbox', key: `sandbox/${id}`, id }));
  if (memory.volumes !== 'gone') wanted.push({ kind: 'tearDown', key: 'tearDown' });
  return ready(wanted, memory, now);
}

function ready(
  wanted: readonly Action[],
  memory: PodMemory,
  now: number,
): { actions: Action[]; wakeAt?: number } {
  const later = wanted.map(({ key }) => retryAt(memory, key)).filter((at) => at > now);
  return {
    actions: wanted.filter(({ key }) => retryAt(memory, key) <= now),
    ...(later.length === 0 ? {} : { wakeAt: Math.min(...later) }),
  };
}
