/** The whole status of a pod, from what is observed and what was written before. Pure. */
import { rfc3339 } from '../../../runtime/host/clock.ts';
import type { Pod, PodContainer, PodContainerStatus, PodStatus } from '../../apiserver/types.ts';
import { holdsStarts, resizeConditions } from '../resources/resize_plan.ts';
import { evictionConditions, podResources } from '../resources/resource_status.ts';
import type { Refusal } from '../spec/admission.ts';
import { ephemeralContainers, initContainers, isHostNetwork, regularContainers } from '../spec/pod.ts';
import { type Needs, qosClassOf } from '../spec/qos.ts';
import type { ObservedPod } from '../types.ts';
import { conditionsOf, isTerminalPhase, type Phase, phaseOf } from './conditions.ts';
import { containerStatus, type Waiting } from './container_status.ts';
import { type PodMemory, startOf } from './memory.ts';
import { oldStatusOf, type View } from './view.ts';

/** core/v1 PodStatus with the fields that are newer than the type package. */
export type WrittenStatus = PodStatus & { observedGeneration?: number };

export interface StatusInput {
  readonly pod: Pod;
  readonly observed: ObservedPod;
  readonly view: View;
  readonly memory: PodMemory;
  /** The status computed last, or the apiserver's where there is none. */
  readonly old: PodStatus | undefined;
  readonly hostIps: readonly string[];
  readonly now: number;
  /** Why containers wait that are to be started, by name. */
  readonly waiting: ReadonlyMap<string, Waiting>;
  /** All containers are to begin anew, or have just been removed for that. */
  readonly restartingAll?: boolean;
  /** Containers whose start is under way. */
  readonly starting: ReadonlySet<string>;
  /** No container will be started any more. */
  readonly ended: boolean;
  /** Something may still run: a terminal phase must not be told yet. */
  readonly live: boolean;
  /** Why the pod as a whole failed. */
  readonly failed?: Refusal;
  /** Default `keelson`. */
  readonly runtimeName?: string;
}

export function statusOf(input: StatusInput): WrittenStatus {
  const { pod, view, memory, old, now } = input;
  const terminating = memory.termination !== undefined;
  const make = (container: PodContainer): PodContainerStatus =>
    containerStatus({
      pod,
      container,
      view,
      old: oldStatusOf(old, container.name),
      waiting: input.waiting.get(container.name),
      starting: input.starting.has(container.name),
      probes: memory.probes,
      terminating,
      resizing: memory.resize?.progress !== undefined,
      restartingAll: input.restartingAll === true,
      runtimeName: input.runtimeName,
    });
  const init = initContainers(pod).map(make);
  const regular = regularContainers(pod).map(make);
  const ephemeral = ephemeralContainers(pod).map(make);
  const statuses = new Map([...init, ...regular].map((status) => [status.name, status]));
  const phase = decidePhase(input, phaseOf(pod, statuses, input.ended && !input.live, view));
  const told = input.failed !== undefined && phase === 'Failed' ? input.failed : samePhase(old, phase);
  const generation = pod.metadata?.generation;
  return {
    ...(generation === undefined ? {} : { observedGeneration: generation }),
    phase,
    conditions: [
      ...conditionsOf(pod, statuses, phase, view, old, now, input.restartingAll === true),
      ...(isTerminalPhase(phase) ? [] : resizeConditions(memory.resize, old, now)),
      ...evictionConditions(pod, memory.evicted, old, now),
    ],
    ...podResources(
      pod,
      holdsStarts(memory.resize) ? (old as { resources?: Needs } | undefined)?.resources : undefined,
    ),
    ...(told?.reason ? { reason: told.reason } : {}),
    ...(told?.message ? { message: told.message } : {}),
    ...addresses(input),
    startTime: pod.status?.startTime ?? rfc3339(startOf(pod, memory, input.observed)),
    qosClass: pod.status?.qosClass ?? qosClassOf(pod),
    ...(init.length === 0 ? {} : { initContainerStatuses: init }),
    containerStatuses: byName(regular),
    ...(ephemeral.length === 0 ? {} : { ephemeralContainerStatuses: byName(ephemeral) }),
  };
}

function byName(statuses: readonly PodContainerStatus[]): PodContainerStatus[] {
  return [...statuses].sort((a, b) => (a.name < b.name ? -1 : 1));
}

function samePhase(
  old: PodStatus | undefined,
  phase: Phase,
): { reason?: string; message?: string } | undefined {
  return old?.phase === phase ? old : undefined;
}

/** Terminal phases are final, and are told only when nothing runs any more (mergePodStatus). */
function decidePhase(input: StatusInput, computed: Phase): Phase {
  const before = input.pod.status?.phase ?? input.old?.phase;
  if (isTerminalPhase(before)) return before as Phase;
  if (isTerminalPhase(input.old?.phase)) return input.old?.phase as Phase;
  if (input.failed !== undefined && !input.live) return 'Failed';
  if (isTerminalPhase(computed) && input.live) return (before as Phase | undefined) ?? 'Pending';
  return computed;
}

function family(ip: string | undefined): 4 | 6 {
  return ip?.includes(':') ? 6 : 4;
}

function addresses(input: StatusInput): Partial<PodStatus> {
  const { pod, view, old, hostIps } = input;
  const hosts = hostIps.map((ip) => ({ ip }));
  const kept = old?.podIPs?.map(({ ip }) => ip ?? '') ?? [];
  let own: readonly string[] = kept;
  if (isHostNetwork(pod)) own = kept.length > 0 ? kept : hostIps;
  else if (view.sandbox !== undefined) {
    // The family of the node comes first.
    const preferred = family(hostIps[0]);
    own = [...view.sandbox.ips].sort(
      (a, b) => Number(family(a) !== preferred) - Number(family(b) !== preferred),
    );
  }
  return {
    ...(hosts.length === 0 ? {} : { hostIP: hostIps[0], hostIPs: hosts }),
    ...(own.length === 0 ? {} : { podIP: own[0], podIPs: own.map((ip) => ({ ip })) }),
  };
}

/** The status of a pod that the node refuses: only the phase and the reason; the rest stays as it is. */
export function refusedStatus(pod: Pod, refusal: Refusal, now: number): WrittenStatus {
  const generation = pod.metadata?.generation;
  return {
    ...(generation === undefined ? {} : { observedGeneration: generation }),
    phase: 'Failed',
    reason: refusal.reason,
    message: `Pod was rejected: ${refusal.message}`,
    qosClass: pod.status?.qosClass ?? qosClassOf(pod),
    startTime: pod.status?.startTime ?? rfc3339(now),
  };
}
