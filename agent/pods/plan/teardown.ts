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

export function stopAction(
  container: ContainerStatus,
  deadline: number,
  message: string,
): Extract<Action, { kind: 'stop' }> {
  const { name } = container.metadata;
  return { kind: 'stop', key: `stop/${container.id}`, container: name, id: container.id, deadline, message };
}

/**
 * Stops for all that runs: sidecars only when the containers that they serve have ended, the last one first
 * (KEP-753), all until the same deadline. Their preStop hooks need not wait for their turn, and at the deadline there
 * are no turns any more: `wakeAt`.
 */
export function stopAll(
  pod: Pod,
  observed: ObservedPod,
  deadline: number,
  memory: PodMemory,
  inFlight: InFlight,
  now: number,
): { actions: Action[]; wakeAt?: number } {
  const live = observed.containers.filter(isLive);
  const sidecars = initContainers(pod).filter((container) => isSidecar(pod, container));
  const sidecarOf = ({ metadata }: ContainerStatus) => sidecars.find(({ name }) => name === metadata.name);
  const others = live.filter((container) => sidecarOf(container) === undefined);
  const last = sidecars.filter(({ name }) => live.some(({ metadata }) => metadata.name === name)).at(-1);
  const isDue = (container: ContainerStatus) =>
    now >= deadline || (others.length > 0 ? others.includes(container) : sidecarOf(container) === last);
  let waits = false;
  const actions = live.flatMap((container): Action[] => {
    const { id, metadata } = container;
    const { name } = metadata;
    const key = `preStop/${id}`;
    const stopping = inFlight.has(`stop/${id}`);
    if (!inFlight.has(key) && (stopping || isDue(container))) {
      const stop = stopAction(container, deadline, `Stopping container ${name}`);
      return [memory.hooked.includes(id) ? { ...stop, bare: true } : stop];
    }
    waits = true;
    const hook = sidecarOf(container)?.lifecycle?.preStop;
    if (hook === undefined || memory.hooked.includes(id)) return [];
    return [{ kind: 'preStop', key, container: name, id, deadline }];
  });
  return { actions, ...(waits && now < deadline ? { wakeAt: deadline } : {}) };
}

/** Without the steps that failed and have to wait: until `wakeAt`. */
export function withoutHeld(
  wanted: readonly Action[],
  memory: PodMemory,
  now: number,
): { actions: readonly Action[]; wakeAt?: number } {
  const heldUntil = ({ key }: Action) => memory.teardownFailures[key]?.retryAt ?? 0;
  const later = wanted.map(heldUntil).filter((at) => at > now);
  if (later.length === 0) return { actions: wanted };
  return { actions: wanted.filter((action) => heldUntil(action) <= now), wakeAt: Math.min(...later) };
}

/** What is left to remove once nothing of the pod runs any more; an empty list when all is gone. */
export function removeAll(observed: ObservedPod, memory: PodMemory): { actions: Action[]; gone: boolean } {
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
  return { actions: wanted, gone: bare && memory.erased };
}

/** What a pod that has ended gives back before it is deleted: its network and volumes. Logs stay. */
export function releaseAll(observed: ObservedPod, memory: PodMemory): { actions: Action[] } {
  const wanted: Action[] = observed.sandboxes
    .filter(({ id, state }) => state === 'ready' || !memory.stoppedSandboxes.includes(id))
    .map(({ id }) => ({ kind: 'stopSandbox', key: `sandbox/${id}`, id }));
  if (memory.volumes !== 'gone') wanted.push({ kind: 'tearDown', key: 'tearDown' });
  return { actions: wanted };
}
