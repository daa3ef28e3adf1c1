/** The observed pod, seen from its specification. Pure. */
import type { ContainerStatus, PodSandboxStatus } from '../../../runtime/api.ts';
import type { Pod, PodContainerStatus, PodStatus } from '../../apiserver/types.ts';
import { annotationNames, isHostNetwork, regularContainers } from '../spec/pod.ts';
import type { ObservedPod } from '../types.ts';

export interface View {
  /** The sandbox that containers run in or may be started in. */
  readonly sandbox?: PodSandboxStatus;
  /** Why there is none (kubelet's words). */
  readonly sandboxMissing: string;
  readonly nextSandboxAttempt: number;
  /** All containers of a name, newest first, whatever their sandbox. */
  readonly all: (name: string) => readonly ContainerStatus[];
  readonly newest: (name: string) => ContainerStatus | undefined;
  /** The newest container of a name in the current sandbox. */
  readonly active: (name: string) => ContainerStatus | undefined;
  /** Some regular container was made in the current sandbox: the init containers had done their work. */
  readonly anyRegularActive: boolean;
  readonly anyRegularEver: boolean;
}

/** Which sandbox is good to use (runtimeutil.PodSandboxChanged). */
function usableSandbox(
  pod: Pod,
  sandboxes: readonly PodSandboxStatus[],
): { sandbox?: PodSandboxStatus; missing: string; attempt: number } {
  const [latest] = sandboxes;
  if (latest === undefined) return { missing: 'no pod sandbox exists', attempt: 0 };
  const attempt = latest.metadata.attempt + 1;
  const no = (missing: string) => ({ missing, attempt });
  if (sandboxes.filter(({ state }) => state === 'ready').length > 1)
    return no('multiple pod sandboxes are ready and need to be reconciled');
  if (latest.state !== 'ready') return no('pod sandbox is not ready');
  if ((latest.namespaces.network === 'node') !== isHostNetwork(pod))
    return no('network namespace mode changed and sandbox needs to be recreated');
  if (!isHostNetwork(pod) && latest.ips.length === 0) return no('pod sandbox has no IP address');
  return { sandbox: latest, missing: '', attempt };
}

export function viewOf(pod: Pod, observed: ObservedPod): View {
  const { sandbox, missing, attempt } = usableSandbox(pod, observed.sandboxes);
  const byName = new Map<string, ContainerStatus[]>();
  for (const container of observed.containers) {
    const list = byName.get(container.metadata.name);
    if (list === undefined) byName.set(container.metadata.name, [container]);
    else list.push(container);
  }
  const all = (name: string) => byName.get(name) ?? [];
  const active = (name: string) =>
    sandbox === undefined ? undefined : all(name).find(({ podSandboxId }) => podSandboxId === sandbox.id);
  const regular = regularContainers(pod);
  return {
    sandbox,
    sandboxMissing: missing,
    nextSandboxAttempt: attempt,
    all,
    newest: (name) => all(name)[0],
    active,
    anyRegularActive: regular.some(({ name }) => active(name) !== undefined),
    anyRegularEver: regular.some(({ name }) => all(name).length > 0),
  };
}

/** How often the container was restarted: its annotation, since that is what survives in any runtime. */
export function restartCountOf(container: ContainerStatus): number {
  const annotated = Number(container.annotations[annotationNames.restartCount]);
  return Number.isInteger(annotated) ? annotated : container.metadata.attempt;
}

/** Still to be stopped: runs, or might. */
export function isLive(container: ContainerStatus): boolean {
  return container.state === 'running' || container.state === 'unknown';
}

export function oldStatusOf(status: PodStatus | undefined, name: string): PodContainerStatus | undefined {
  return (
    status?.containerStatuses?.find((container) => container.name === name) ??
    status?.initContainerStatuses?.find((container) => container.name === name) ??
    status?.ephemeralContainerStatuses?.find((container) => container.name === name)
  );
}

/**
 * The number of the next container of this name. Where the runtime knows none, the status that was written before
 * tells whether there were any.
 */
export function nextAttempt(
  newest: ContainerStatus | undefined,
  old: PodContainerStatus | undefined,
): number {
  if (newest !== undefined) return restartCountOf(newest) + 1;
  if (old?.state?.running !== undefined || old?.state?.terminated !== undefined) return old.restartCount + 1;
  // One that waits to be restarted has had a container of that number, of which the runtime has lost sight.
  return old?.containerID ? old.restartCount + 1 : (old?.restartCount ?? 0);
}
