/** The status of one container, as kubelet reports it (convertToAPIContainerStatuses). Pure. */
import type { ContainerStatus } from '../../../runtime/api.ts';
import { rfc3339 } from '../../../runtime/host/clock.ts';
import type { Pod, PodContainer, PodContainerState, PodContainerStatus } from '../../apiserver/types.ts';
import { containerResourceStatus } from '../resources/resource_status.ts';
import {
  type ContainerExtras,
  ephemeralContainers,
  everyContainer,
  initContainers,
  isSidecar,
} from '../spec/pod.ts';
import type { ProbeResult } from './memory.ts';
import { restartingAllContainers } from './restart_all.ts';
import { nextAttempt, restartCountOf, type View } from './view.ts';

/** 12 KiB for all containers of a pod together (MaxPodTerminationMessageLogLength). */
const messageBytesOfPod = 12 * 1024;

export interface Waiting {
  readonly reason: string;
  readonly message?: string;
}

export interface ContainerStatusInput {
  readonly pod: Pod;
  readonly container: PodContainer;
  readonly view: View;
  /** The status written before. */
  readonly old: PodContainerStatus | undefined;
  /** Why the container is not started, where it is to be. */
  readonly waiting: Waiting | undefined;
  /** Its start, with the postStart hook, is under way. */
  readonly starting: boolean;
  readonly probes: Readonly<Record<string, ProbeResult>>;
  readonly terminating: boolean;
  /** What the container has may differ from what it was given. */
  readonly resizing?: boolean;
  /** All containers are to begin anew: those that are not there any more were removed for that. */
  readonly restartingAll: boolean;
  /** Of the runtime that the container is in; default `keelson`. */
  readonly runtimeName?: string;
}

/** As statuses have it, with the name of the runtime. */
export function containerIdOf({ id }: { readonly id: string }, runtimeName = 'keelson'): string {
  return `${runtimeName}://${id}`;
}

export function containerStatus(input: ContainerStatusInput): PodContainerStatus {
  const { pod, container, view, old } = input;
  const [newest, previous] = view.all(container.name);
  const status = newest === undefined ? unseen(input) : seen(input, newest, previous);
  if (input.waiting !== undefined && status.state?.running === undefined) {
    if (status.state?.terminated !== undefined) status.lastState = status.state;
    status.state = { waiting: { ...input.waiting } };
  }
  const mounts =
    newest === undefined && old?.volumeMounts ? old.volumeMounts : mountStatuses(container, newest);
  return {
    ...status,
    ...readiness(pod, container, status, old, newest, input.probes),
    ...(mounts.length === 0 ? {} : { volumeMounts: mounts }),
  };
}

/** Whether what is below a read-only mount is read-only too, is what the runtime has done (KEP-3857). */
function mountStatuses(
  container: PodContainer,
  newest: ContainerStatus | undefined,
): NonNullable<PodContainerStatus['volumeMounts']> {
  return (container.volumeMounts ?? []).map(({ name, mountPath, readOnly, recursiveReadOnly }) => {
    if (!readOnly) return { name, mountPath };
    const path = mountPath.startsWith('/') ? mountPath : `/${mountPath}`;
    const done = newest?.mounts.find(({ containerPath }) => containerPath === path)?.recursiveReadonly;
    const recursive = done === true || recursiveReadOnly === 'Enabled';
    return { name, mountPath, readOnly, recursiveReadOnly: recursive ? 'Enabled' : 'Disabled' };
  });
}

function defaultWaiting(pod: Pod): PodContainerState {
  return { waiting: { reason: initContainers(pod).length > 0 ? 'PodInitializing' : 'ContainerCreating' } };
}

const lost = {
  reason: 'ContainerStatusUnknown',
  message: 'The container could not be located when the pod was deleted.  The container used to be Running',
  exitCode: 137,
};

/** The runtime knows no container of this name. */
function unseen(input: ContainerStatusInput): PodContainerStatus {
  const { pod, container, view, old } = input;
  const fresh: PodContainerStatus = {
    name: container.name,
    image: container.image ?? '',
    imageID: '',
    ready: false,
    restartCount: old?.restartCount ?? 0,
    state: defaultWaiting(pod),
    lastState: old?.lastState ?? {},
  };
  if (input.restartingAll && old?.state?.waiting?.reason === restartingAllContainers) return { ...old };
  if (input.restartingAll && removedForRestart(container, pod, old)) {
    const message = 'The container is removed because RestartAllContainers in place';
    return {
      ...fresh,
      state: { waiting: { reason: restartingAllContainers, message } },
      lastState: { terminated: { reason: restartingAllContainers, message, exitCode: 137 } },
      restartCount: (old?.restartCount ?? 0) + 1,
    };
  }
  if (old?.state?.terminated !== undefined) return { ...old };
  const plainInit = initContainers(pod).includes(container) && !isSidecar(pod, container);
  if (plainInit && view.anyRegularActive) {
    const message =
      'Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally';
    return { ...fresh, state: { terminated: { reason: 'Completed', message, exitCode: 0 } } };
  }
  if (old?.state?.running === undefined || old.lastState?.terminated !== undefined) {
    // Counted now: this status names no container any more, by which it would be known later.
    return { ...fresh, restartCount: input.terminating ? fresh.restartCount : nextAttempt(undefined, old) };
  }
  if (ephemeralContainers(pod).includes(container)) return { ...fresh, state: { terminated: { ...lost } } };
  // It did run, and what became of it is not known: say so, lest the pod seem never to have started.
  return {
    ...fresh,
    lastState: { terminated: { ...lost } },
    restartCount: old.restartCount + (input.terminating ? 0 : 1),
  };
}

/** It ran, or waited to run again, and is not told of as removed yet. */
function removedForRestart(container: PodContainer, pod: Pod, old: PodContainerStatus | undefined): boolean {
  if (old === undefined || ephemeralContainers(pod).includes(container)) return false;
  if (old.state?.waiting === undefined) return true;
  return old.lastState?.terminated !== undefined && Boolean(old.containerID);
}

function seen(
  input: ContainerStatusInput,
  newest: ContainerStatus,
  previous: ContainerStatus | undefined,
): PodContainerStatus {
  const { pod, container, old } = input;
  const id = containerIdOf(newest, input.runtimeName);
  const status: PodContainerStatus = {
    name: container.name,
    image: newest.image || (container.image ?? ''),
    imageID: newest.imageDigestRef || newest.imageRef,
    containerID: id,
    ready: false,
    restartCount: restartCountOf(newest),
    lastState: {},
    ...containerResourceStatus(container, newest, old, input.resizing ?? false),
    ...told(container as ContainerExtras, newest),
  };
  const before = previous === undefined ? undefined : stateOf(previous, pod, input.runtimeName);
  if (before?.terminated !== undefined) status.lastState = before;
  else if (old !== undefined && old.containerID !== id && old.state?.terminated !== undefined)
    status.lastState = { terminated: old.state.terminated };
  else if (old?.lastState?.terminated !== undefined && old.lastState.terminated.containerID !== id)
    status.lastState = { terminated: old.lastState.terminated };

  const wasRunning = old?.containerID === id && old.state?.running !== undefined;
  if (newest.state === 'created' || (newest.state === 'running' && input.starting && !wasRunning)) {
    // What ended before stays visible until the new one runs, or is waited for.
    status.state = defaultWaiting(pod);
  } else status.state = stateOf(newest, pod, input.runtimeName, wasRunning);
  return status;
}

/** What the runtime found out: newer than the type package (KEP-3619, KEP-4960). */
function told({ lifecycle }: ContainerExtras, { user, stopSignal }: ContainerStatus): object {
  return {
    ...(user === undefined
      ? {}
      : {
          user: {
            linux: {
              uid: user.uid,
              gid: user.gid,
              ...(user.supplementalGroups.length === 0
                ? {}
                : { supplementalGroups: [...user.supplementalGroups] }),
            },
          },
        }),
    // An apiserver that lets nobody choose it does not keep it either.
    ...(stopSignal && lifecycle?.stopSignal ? { stopSignal } : {}),
  };
}

function cut(message: string, pod: Pod): string {
  const bytes = Math.floor(messageBytesOfPod / Math.max(1, everyContainer(pod).length));
  if (Buffer.byteLength(message) <= bytes) return message;
  // A character that the cut falls into is dropped, not mangled.
  return Buffer.from(message).subarray(0, bytes).toString('utf8').replace(/�+$/, '');
}

function stateOf(
  container: ContainerStatus,
  pod: Pod,
  runtimeName: string | undefined,
  wasRunning = false,
): PodContainerState {
  const containerID = containerIdOf(container, runtimeName);
  switch (container.state) {
    case 'running':
      return { running: { startedAt: rfc3339(container.startedAt) } };
    case 'exited': {
      const message = cut(container.message, pod);
      const ended = container.finishedAt;
      return {
        terminated: {
          exitCode: container.exitCode,
          reason: container.reason || (container.exitCode === 0 ? 'Completed' : 'Error'),
          ...(message === '' ? {} : { message }),
          // One that was ended before it ran has lived for no time; nobody who reckons wants an end without a start.
          ...(ended > 0
            ? { startedAt: rfc3339(container.startedAt || ended), finishedAt: rfc3339(ended) }
            : {}),
          containerID,
        },
      };
    }
    case 'unknown':
      return wasRunning
        ? {
            terminated: {
              reason: 'ContainerStatusUnknown',
              message: 'The container could not be located when the pod was terminated',
              exitCode: 137,
              containerID,
            },
          }
        : defaultWaiting(pod);
    default:
      return defaultWaiting(pod);
  }
}

/** `ready` and `started` (prober.UpdatePodStatus). Without results yet, what was written for this container counts. */
function readiness(
  pod: Pod,
  container: PodContainer,
  status: PodContainerStatus,
  old: PodContainerStatus | undefined,
  newest: ContainerStatus | undefined,
  probes: Readonly<Record<string, ProbeResult>>,
): { ready: boolean; started?: boolean } {
  // Nobody probes them, and nobody asks whether they are ready.
  if (ephemeralContainers(pod).includes(container)) return { ready: false };
  const running = status.state?.running !== undefined;
  const same = old !== undefined && old.containerID === status.containerID;
  const result = newest === undefined ? undefined : probes[newest.id];
  const started =
    running &&
    (container.startupProbe === undefined || (result?.started ?? (same ? old.started === true : false)));
  if (initContainers(pod).includes(container) && !isSidecar(pod, container))
    return { started, ready: status.state?.terminated?.exitCode === 0 };
  const ready =
    started && (container.readinessProbe === undefined || (result?.ready ?? (same ? old.ready : false)));
  return { started, ready };
}
