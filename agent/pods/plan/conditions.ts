/** A pod's phase and conditions (kubelet_pods.go getPhase, status/generate.go). Pure. */
import { rfc3339 } from '../../../runtime/host/clock.ts';
import type {
  Pod,
  PodCondition,
  PodContainer,
  PodContainerState,
  PodContainerStatus,
  PodStatus,
} from '../../apiserver/types.ts';
import { allContainers, initContainers, isSidecar, regularContainers, restartsAfter } from '../spec/pod.ts';
import { allContainersRestarting, couldRestartAll, restartingAllContainers } from './restart_all.ts';
import type { View } from './view.ts';

type Ended = NonNullable<PodContainerState['terminated']>;
export type Phase = 'Pending' | 'Running' | 'Succeeded' | 'Failed' | 'Unknown';

export function isTerminalPhase(phase: string | undefined): boolean {
  return phase === 'Succeeded' || phase === 'Failed';
}

type Statuses = ReadonlyMap<string, PodContainerStatus>;

/** Whether what ended so is going to run again. */
function runsAgain(pod: Pod, container: PodContainer, { exitCode, reason }: Ended): boolean {
  return reason === restartingAllContainers || restartsAfter(pod, container, exitCode);
}

/**
 * The phase that the containers' states amount to. `ended`: no container is going to be started any more, so that
 * none of them counts as restarting.
 */
export function phaseOf(pod: Pod, statuses: Statuses, ended: boolean, view: View): Phase {
  let pendingInit = 0;
  let pendingSidecars = 0;
  let waiting = 0;
  let running = 0;
  let stopped = 0;
  let restarting = 0;
  let succeeded = 0;

  for (const container of initContainers(pod)) {
    const status = statuses.get(container.name);
    if (isSidecar(pod, container)) {
      if (status?.state?.running !== undefined) {
        running++;
        if (status.started !== true) pendingSidecars++;
      } else if (status?.state?.terminated === undefined && status?.lastState?.terminated === undefined) {
        pendingSidecars++;
        waiting++;
      }
      continue;
    }
    const exit =
      status?.state?.terminated ??
      (status?.state?.waiting === undefined ? undefined : status.lastState?.terminated);
    if (exit === undefined) pendingInit++;
    else if (exit.exitCode !== 0 && !runsAgain(pod, container, exit)) return 'Failed';
  }
  for (const container of regularContainers(pod)) {
    const status = statuses.get(container.name);
    if (status?.state?.running !== undefined) running++;
    else if (status?.state?.terminated !== undefined) {
      stopped++;
      if (status.state.terminated.exitCode === 0) succeeded++;
      if (runsAgain(pod, container, status.state.terminated)) restarting++;
    } else if (status?.lastState?.terminated !== undefined) {
      stopped++;
      if (runsAgain(pod, container, status.lastState.terminated)) restarting++;
    } else waiting++;
  }

  const held = pendingInit > 0 || (pendingSidecars > 0 && !view.anyRegularActive) || waiting > 0;
  // What has not begun when all is over will not begin: the pod failed.
  if (ended && running === 0) return stopped === succeeded && !held && stopped > 0 ? 'Succeeded' : 'Failed';
  if (held) return 'Pending';
  if (running > 0) return 'Running';
  if (restarting > 0) return 'Running';
  return stopped === succeeded ? 'Succeeded' : 'Failed';
}

interface Draft {
  readonly type: string;
  readonly status: 'True' | 'False';
  readonly reason?: string;
  readonly message?: string;
}

const yes = (type: string): Draft => ({ type, status: 'True' });
const no = (type: string, reason: string, message?: string): Draft => ({
  type,
  status: 'False',
  reason,
  message,
});
const list = (names: readonly string[]) => `[${names.join(' ')}]`;

function containersReady(pod: Pod, statuses: Statuses, phase: Phase): Draft {
  const type = 'ContainersReady';
  if (phase === 'Failed') return no(type, 'PodFailed');
  if (phase === 'Succeeded') return no(type, 'PodCompleted');
  const watched = [
    ...initContainers(pod).filter((container) => isSidecar(pod, container)),
    ...regularContainers(pod),
  ];
  const unready = watched.filter(({ name }) => statuses.get(name)?.ready !== true).map(({ name }) => name);
  return unready.length === 0
    ? yes(type)
    : no(type, 'ContainersNotReady', `containers with unready status: ${list(unready)}`);
}

function initialized(pod: Pod, statuses: Statuses, phase: Phase, old: PodStatus | undefined): Draft {
  const type = 'Initialized';
  if (phase === 'Succeeded') return { ...yes(type), reason: 'PodCompleted' };
  const begun = regularContainers(pod).some(({ name }) => {
    const state = statuses.get(name)?.state;
    return state?.running !== undefined || state?.terminated !== undefined;
  });
  // Once initialized, a pod stays so, also where its init containers run again.
  if (begun || old?.conditions?.find((one) => one.type === type)?.status === 'True') return yes(type);
  const incomplete = initContainers(pod)
    .filter((container) => {
      const status = statuses.get(container.name);
      return isSidecar(pod, container) ? status?.started !== true : status?.ready !== true;
    })
    .map(({ name }) => name);
  return incomplete.length === 0
    ? yes(type)
    : no(type, 'ContainersNotInitialized', `containers with incomplete status: ${list(incomplete)}`);
}

function ready(pod: Pod, containers: Draft, old: readonly PodCondition[]): Draft {
  if (containers.status === 'False') return { ...containers, type: 'Ready' };
  const unmet = (pod.spec?.readinessGates ?? []).flatMap(({ conditionType }) => {
    const condition = old.find(({ type }) => type === conditionType);
    if (condition === undefined)
      return [`corresponding condition of pod readiness gate "${conditionType}" does not exist.`];
    return condition.status === 'True'
      ? []
      : [`the status of pod readiness gate "${conditionType}" is not "True", but ${condition.status}`];
  });
  return unmet.length === 0 ? yes('Ready') : no('Ready', 'ReadinessGatesNotReady', unmet.join(', '));
}

function restarting(pod: Pod, phase: Phase, view: View, restartingAll: boolean): Draft {
  const type = allContainersRestarting;
  if (phase === 'Succeeded') return no(type, 'PodCompleted');
  if (phase === 'Failed') return no(type, 'PodFailed');
  if (!restartingAll || allContainers(pod).every(({ name }) => view.newest(name) === undefined))
    return { type, status: 'False' };
  return {
    ...yes(type),
    reason: 'RestartAllContainersStarted',
    message: 'container exited with restart policy rule',
  };
}

/** The conditions that a node agent owns. Those of others in `pod.status` are left to them. */
export function conditionsOf(
  pod: Pod,
  statuses: Statuses,
  phase: Phase,
  view: View,
  old: PodStatus | undefined,
  now: number,
  restartingAll = false,
): PodCondition[] {
  const all = containersReady(pod, statuses, phase);
  const drafts: Draft[] = [
    view.sandbox !== undefined
      ? yes('PodReadyToStartContainers')
      : no('PodReadyToStartContainers', 'PodSandboxNotReady', view.sandboxMissing),
    initialized(pod, statuses, phase, old),
    ready(pod, all, pod.status?.conditions ?? []),
    all,
    yes('PodScheduled'),
    ...(couldRestartAll(pod) ? [restarting(pod, phase, view, restartingAll)] : []),
  ];
  const generation = pod.metadata?.generation;
  return drafts.map(({ type, status, reason, message }) => {
    const before = old?.conditions?.find((condition) => condition.type === type);
    return {
      type,
      ...(generation === undefined ? {} : { observedGeneration: generation }),
      status,
      lastProbeTime: undefined,
      lastTransitionTime:
        before?.status === status && before.lastTransitionTime !== undefined
          ? before.lastTransitionTime
          : rfc3339(now),
      ...(reason === undefined ? {} : { reason }),
      ...(message === undefined ? {} : { message }),
    } as PodCondition;
  });
}
