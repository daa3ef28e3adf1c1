/** Which containers of a pod are to be started and which are to be stopped (kubelet's computePodActions). Pure. */
import type { ContainerStatus } from '../../../runtime/api.ts';
import type { Pod, PodContainer, PodStatus } from '../../apiserver/types.ts';
import { needsRestart } from '../resources/resize_plan.ts';
import { containerHash } from '../spec/container_config.ts';
import {
  annotationNames,
  ephemeralContainers,
  initContainers,
  isSidecar,
  regularContainers,
  restartPolicyOf,
  restartsAfter,
  restartsWhenKilled,
} from '../spec/pod.ts';
import type { PodMemory } from './memory.ts';
import type { View } from './view.ts';

export interface Decision {
  /** Nothing is to be started any more, whatever still runs is to be stopped: the pod has ended. */
  readonly ended: boolean;
  /** The pod needs another sandbox first. */
  readonly needSandbox: boolean;
  /** In the order of starting; may still have to wait for their backoff, image or stop. */
  readonly start: readonly PodContainer[];
  readonly stop: readonly Stop[];
  /** Ephemeral containers that are to be started: they wait for nobody, and nobody for them. */
  readonly ephemeral: readonly PodContainer[];
}

interface Stop {
  readonly container: ContainerStatus;
  readonly message: string;
  /** Where it is not the pod's. */
  readonly graceSeconds?: number;
}

const nothing = { ended: false, needSandbox: false, start: [], stop: [], ephemeral: [] } as const;

/** `old`: the status computed last, or the apiserver's; it tells of containers that the runtime has forgotten. */
export function decide(pod: Pod, view: View, memory: PodMemory, old: PodStatus | undefined): Decision {
  if (view.sandbox === undefined) return withoutSandbox(pod, view);
  const decision = inSandbox(pod, view, memory);
  return { ...decision, ephemeral: decision.ended ? [] : ephemeralToStart(pod, view, memory, old) };
}

/** Ephemeral containers run once: whatever became of one, it is not made again. */
function ephemeralToStart(
  pod: Pod,
  view: View,
  memory: PodMemory,
  old: PodStatus | undefined,
): readonly PodContainer[] {
  return ephemeralContainers(pod).filter(({ name }) => {
    const newest = view.newest(name);
    if (newest !== undefined)
      return newest === view.active(name) && newest.state === 'created' && !memory.broken.includes(newest.id);
    const told = old?.ephemeralContainerStatuses?.find((status) => status.name === name);
    return [told?.state, told?.lastState].every(
      (state) => state?.running === undefined && state?.terminated === undefined,
    );
  });
}

function withoutSandbox(pod: Pod, view: View): Decision {
  const regular = regularContainers(pod);
  const ran = [...initContainers(pod), ...regular].some(({ name }) => view.newest(name) !== undefined);
  // A pod that never restarts is not begun again only because its sandbox was lost.
  if (restartPolicyOf(pod) === 'Never' && view.nextSandboxAttempt !== 0 && ran)
    return { ...nothing, ended: true };
  const open = regular.filter((container) => {
    const newest = view.newest(container.name);
    return newest?.state !== 'exited' || restartsAfter(pod, container, newest.exitCode);
  });
  if (open.length === 0 && view.anyRegularEver) return { ...nothing, ended: true };
  const [first] = initContainers(pod);
  return { ...nothing, needSandbox: true, start: first === undefined ? open : [first] };
}

/** Why a running container must be stopped, or undefined. */
function unwanted(
  container: PodContainer,
  pod: Pod,
  running: ContainerStatus,
  memory: PodMemory,
): { why: string; changed: boolean; graceSeconds?: number } | undefined {
  const hash = running.annotations[annotationNames.hash];
  if (hash !== undefined && hash !== containerHash(container))
    return { why: `Container ${container.name} definition changed`, changed: true };
  if (needsRestart(memory.resize, container, pod, running))
    return { why: `Container ${container.name} resize requires restart`, changed: true };
  const failed = memory.probes[running.id]?.failed;
  if (failed === undefined) return undefined;
  const probe = failed === 'liveness' ? container.livenessProbe : container.startupProbe;
  const graceSeconds = probe?.terminationGracePeriodSeconds;
  return {
    why: `Container ${container.name} failed ${failed} probe`,
    changed: false,
    ...(graceSeconds === undefined ? {} : { graceSeconds }),
  };
}

function stopFor(container: ContainerStatus, message: string, fault: { graceSeconds?: number }): Stop {
  const { graceSeconds } = fault;
  return { container, message, ...(graceSeconds === undefined ? {} : { graceSeconds }) };
}

function inSandbox(pod: Pod, view: View, memory: PodMemory): Omit<Decision, 'ephemeral'> {
  const init = initActions(pod, view, memory);
  if (init.ended || !init.initialized)
    return { ended: init.ended, needSandbox: false, start: init.start, stop: init.stop };
  const start: PodContainer[] = [];
  const stop = [...init.stop];
  let kept = 0;
  for (const container of regularContainers(pod)) {
    const newest = view.newest(container.name);
    if (newest === undefined || newest.state === 'created') start.push(container);
    else if (newest.state === 'exited') {
      if (restartsAfter(pod, container, newest.exitCode)) start.push(container);
    } else if (newest.state === 'unknown') {
      stop.push({
        container: newest,
        message: 'Container is in "unknown" state, try killing it before restart',
      });
      start.push(container);
    } else {
      const fault = unwanted(container, pod, newest, memory);
      if (fault === undefined) kept++;
      else {
        const restart = fault.changed || restartsWhenKilled(pod, container);
        stop.push(stopFor(newest, restart ? `${fault.why}, will be restarted` : fault.why, fault));
        if (restart) start.push(container);
        else kept++; // Until it has stopped: then its exit decides.
      }
    }
  }
  // Sidecars do not keep a pod alive.
  if (kept === 0 && start.length === 0) return { ended: true, needSandbox: false, start: [], stop };
  return { ended: false, needSandbox: false, start: [...init.start, ...start], stop };
}

/**
 * The init containers (computeInitContainerActions): from the last to the first, since those that are done may be
 * gone from the runtime already.
 */
function initActions(
  pod: Pod,
  view: View,
  memory: PodMemory,
): {
  ended: boolean;
  initialized: boolean;
  start: PodContainer[];
  stop: Stop[];
} {
  const init = initContainers(pod);
  const start = new Set<number>();
  const stop: Stop[] = [];
  let initialized = view.anyRegularActive || init.length === 0;
  let passed = view.anyRegularActive;
  const next = (index: number) => {
    if (index === init.length - 1) initialized = true;
    else if (!passed) start.add(index + 1);
  };
  for (let index = init.length - 1; index >= 0; index--) {
    const container = init[index]!;
    const sidecar = isSidecar(pod, container);
    const status = view.active(container.name);
    if (status === undefined) {
      if (passed && sidecar) start.add(index);
      continue;
    }
    if (passed && !sidecar) continue;
    switch (status.state) {
      case 'created':
        start.add(index);
        break;
      case 'running': {
        const fault = unwanted(container, pod, status, memory);
        const restart = fault !== undefined && (sidecar || fault.changed);
        if (restart) {
          stop.push(stopFor(status, `${fault.why.replace(/^C/, 'Init c')}, will be restarted`, fault));
          start.add(index);
        } else if (
          sidecar &&
          (container.startupProbe === undefined || memory.probes[status.id]?.started === true)
        )
          next(index);
        break;
      }
      case 'exited':
        if (sidecar) start.add(index);
        else if (status.exitCode === 0) next(index);
        else if (restartsAfter(pod, container, status.exitCode)) start.add(index);
        else return { ended: true, initialized: false, start: [], stop: [] };
        break;
      default:
        if (!sidecar && !restartsWhenKilled(pod, container))
          return { ended: true, initialized: false, start: [], stop: [] };
        stop.push({
          container: status,
          message: 'Init container is in "unknown" state, try killing it before restart',
        });
        start.add(index);
    }
    passed = true;
  }
  if (!passed && init.length > 0) start.add(0);
  const order = [...start].sort((a, b) => a - b);
  return { ended: false, initialized, start: order.map((index) => init[index]!), stop };
}
