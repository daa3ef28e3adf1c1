/** Starting a pod over in its sandbox (KEP-5532, container restart action RestartAllContainers). Pure. */
import type { ContainerStatus } from '../../../runtime/api.ts';
import type { Pod, PodStatus } from '../../apiserver/types.ts';
import { allContainers, type ContainerExtras, ruleFor } from '../spec/pod.ts';
import type { ObservedPod } from '../types.ts';
import type { Action, InFlight } from './actions.ts';
import { stopAction } from './teardown.ts';
import { isLive, type View } from './view.ts';

export const allContainersRestarting = 'AllContainersRestarting';
/** Reason of containers that were ended and removed for it. */
export const restartingAllContainers = 'RestartingAllContainers';

/** Some rule of the pod has the action: only then does the pod have the condition. */
export function couldRestartAll(pod: Pod): boolean {
  return allContainers(pod).some((container) =>
    (container as ContainerExtras).restartPolicyRules?.some(
      ({ action }) => action === 'RestartAllContainers',
    ),
  );
}

/** An exit asked for it, or it was begun and the status says so (ShouldAllContainersRestart). */
export function asksForRestartOfAll(pod: Pod, view: View, old: PodStatus | undefined): boolean {
  if (!couldRestartAll(pod)) return false;
  const begun = old?.conditions?.find(({ type }) => type === (allContainersRestarting as string));
  return begun?.status === 'True' || allContainers(pod).some(({ name }) => isSource(pod, view, name));
}

function isSource(pod: Pod, view: View, name: string): boolean {
  const newest = view.newest(name);
  const container = allContainers(pod).find((one) => one.name === name);
  if (newest?.state !== 'exited' || container === undefined) return false;
  return ruleFor(container, newest.exitCode) === 'RestartAllContainers';
}

/** What is left of the containers that are to begin anew; ephemeral ones stay as they are. */
export function anyLeft(pod: Pod, view: View, inFlight: InFlight): boolean {
  return allContainers(pod).some(
    ({ name }) =>
      view.newest(name) !== undefined || inFlight.has(`create/${name}`) || inFlight.has(`start/${name}`),
  );
}

/**
 * Ends and removes all but ephemeral containers, without their preStop hooks; those whose exit asked for it go last,
 * so that an agent that is started anew in the middle knows.
 */
export function resetAll(
  pod: Pod,
  observed: ObservedPod,
  view: View,
  inFlight: InFlight,
  now: number,
): Action[] {
  const names = new Set(allContainers(pod).map(({ name }) => name));
  const left = observed.containers.filter(({ metadata }) => names.has(metadata.name));
  const sources = new Set([...names].filter((name) => isSource(pod, view, name)));
  const live = left.filter(isLive);
  const targets = left.filter(({ metadata }) => !sources.has(metadata.name));
  const busy = [...inFlight.keys()].some((key) => /^(create|start)\//.test(key));
  const wanted: Action[] = live.map((container) => ({
    ...stopAction(
      container,
      inFlight.get(`stop/${container.id}`)?.deadline ?? now,
      `Stopping container ${container.metadata.name}`,
    ),
    bare: true,
  }));
  const dead = (targets.length > 0 || busy ? targets : left).filter((container) => !isLive(container));
  // The oldest of a name first, so that no earlier end shows once more.
  const isOldest = ({ id, metadata }: ContainerStatus) =>
    left.findLast((one) => one.metadata.name === metadata.name)?.id === id;
  for (const { id, metadata } of dead.filter(isOldest)) {
    if (inFlight.has(`create/${metadata.name}`) || inFlight.has(`start/${metadata.name}`)) continue;
    wanted.push({ kind: 'removeContainer', key: `remove/${id}`, id, keepLogs: true });
  }
  return wanted;
}
