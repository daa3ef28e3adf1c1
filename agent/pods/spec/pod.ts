/** Reading a pod's specification: the small questions that every part of the room asks. */
import type { Pod, PodContainer } from '../../apiserver/types.ts';

export type ContainerKind = 'init' | 'sidecar' | 'regular';

/** Label and annotation names that kubelet gives to sandboxes and containers (pkg/kubelet/types/labels.go). */
export const labelNames = {
  podName: 'io.kubernetes.pod.name',
  podNamespace: 'io.kubernetes.pod.namespace',
  podUid: 'io.kubernetes.pod.uid',
  containerName: 'io.kubernetes.container.name',
} as const;
export const annotationNames = {
  hash: 'io.kubernetes.container.hash',
  restartCount: 'io.kubernetes.container.restartCount',
  terminationMessagePath: 'io.kubernetes.container.terminationMessagePath',
  terminationMessagePolicy: 'io.kubernetes.container.terminationMessagePolicy',
  ports: 'io.kubernetes.container.ports',
  preStop: 'io.kubernetes.container.preStopHandler',
  grace: 'io.kubernetes.pod.terminationGracePeriod',
  /** Ours: what a container was made with whose resizePolicy restarts it. */
  resources: 'keelson.io/container.resources',
} as const;

/** Parts of core/v1 that are newer than the type package. */
export interface ContainerExtras {
  readonly restartPolicy?: string;
  readonly restartPolicyRules?: readonly {
    readonly action: string;
    readonly exitCodes?: { readonly operator: string; readonly values?: readonly number[] };
  }[];
  readonly lifecycle?: { readonly stopSignal?: string };
}

export function uidOf(pod: Pod): string {
  return pod.metadata?.uid ?? '';
}

export function namespaceOf(pod: Pod): string {
  return pod.metadata?.namespace ?? 'default';
}

/** `name_namespace(uid)`, as kubelet writes pods in messages. */
export function formatPod(pod: Pod): string {
  return `${pod.metadata?.name}_${namespaceOf(pod)}(${uidOf(pod)})`;
}

export function isHostNetwork(pod: Pod): boolean {
  return pod.spec?.hostNetwork === true;
}

export function initContainers(pod: Pod): readonly PodContainer[] {
  return pod.spec?.initContainers ?? [];
}

export function regularContainers(pod: Pod): readonly PodContainer[] {
  return pod.spec?.containers ?? [];
}

export function allContainers(pod: Pod): readonly PodContainer[] {
  return [...initContainers(pod), ...regularContainers(pod)];
}

/** Added to running pods for a look inside (`kubectl debug`): started once, never again. */
export function ephemeralContainers(pod: Pod): readonly PodContainer[] {
  return (pod.spec?.ephemeralContainers ?? []) as readonly PodContainer[];
}

/** Whatever may run in the pod. */
export function everyContainer(pod: Pod): readonly PodContainer[] {
  return [...allContainers(pod), ...ephemeralContainers(pod)];
}

export function isSidecar(pod: Pod, container: PodContainer): boolean {
  return container.restartPolicy === 'Always' && initContainers(pod).includes(container);
}

export function restartPolicyOf(pod: Pod): string {
  return pod.spec?.restartPolicy ?? 'Always';
}

/** What the first of the container's rules that fits says; undefined where none does (KEP-5307). */
export function ruleFor(container: PodContainer, exitCode: number): string | undefined {
  const { restartPolicy, restartPolicyRules = [] } = container as ContainerExtras;
  // Rules refine a policy of the container's own; without one they are not looked at.
  if (restartPolicy === undefined) return undefined;
  return restartPolicyRules.find(({ exitCodes }) => {
    if (exitCodes === undefined) return false;
    const listed = exitCodes.values?.includes(exitCode) ?? false;
    if (exitCodes.operator === 'In') return listed;
    return exitCodes.operator === 'NotIn' && !listed;
  })?.action;
}

/** Whether the policies alone, without an exit code that rules could be held against, start the container again. */
export function restartsWhenKilled(pod: Pod, container: PodContainer): boolean {
  return ((container as ContainerExtras).restartPolicy ?? restartPolicyOf(pod)) !== 'Never';
}

/** Whether a container that ended with `exitCode` is to run again (KEP-5307 rules first, then the policies). */
export function restartsAfter(pod: Pod, container: PodContainer, exitCode: number): boolean {
  const rule = ruleFor(container, exitCode);
  if (rule === 'Restart' || rule === 'RestartAllContainers') return true;
  const own = (container as ContainerExtras).restartPolicy ?? restartPolicyOf(pod);
  // An init container of a pod that always runs need not run again once it has succeeded.
  const policy = own === 'Always' && isPlainInit(pod, container) ? 'OnFailure' : own;
  return policy === 'Always' || (policy === 'OnFailure' && exitCode !== 0);
}

function isPlainInit(pod: Pod, container: PodContainer): boolean {
  return initContainers(pod).includes(container) && container.restartPolicy !== 'Always';
}

/** Seconds between the stop signal and KILL where nobody asked for others. */
export function specGraceSeconds(pod: Pod): number {
  return pod.spec?.terminationGracePeriodSeconds ?? 30;
}

/** Folder of the pod's logs below `podLogsDir`. */
export function podLogFolder(podLogsDir: string, pod: Pod): string {
  return `${podLogsDir}/${namespaceOf(pod)}_${pod.metadata?.name}_${uidOf(pod)}`;
}
