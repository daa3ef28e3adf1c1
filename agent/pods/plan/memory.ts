/**
 * What a pod's worker remembers between two looks at the pod: plain data, changed only by the functions here.
 * Everything that must survive a restart of the agent is in the runtime or in the pod's status instead.
 */
import type { Pod, PodStatus } from '../../apiserver/types.ts';
import type { ResizeState } from '../resources/resize_plan.ts';
import type { Refusal } from '../spec/admission.ts';
import { specGraceSeconds } from '../spec/pod.ts';
import type { ObservedPod } from '../types.ts';
import type { CrashState, Failure } from './backoff.ts';

export interface ImageMemory {
  /** For which attempt of the container the image was looked for. */
  readonly attempt: number;
  /** The reference that was looked for; it may be changed while the pod runs. */
  readonly image?: string;
  /** Present: the image is there. */
  readonly imageId?: string;
  /** Ids of the images that it mounts, by their references. */
  readonly volumeImages?: Readonly<Record<string, string>>;
  /** The reference that `failure` is about, where it is one that the container mounts. */
  readonly failed?: string;
  readonly failure?: Failure;
}

/** Results of probes of one container, by its id. Absent: not known yet. */
export interface ProbeResult {
  readonly started?: boolean;
  readonly ready?: boolean;
  /** Which probe failed so often that the container is to be killed. */
  readonly failed?: 'liveness' | 'startup';
}

export interface Termination {
  /** `deleted`: the apiserver waits for us. `removed`: the source no longer has the pod; nothing is written. */
  readonly kind: 'deleted' | 'removed';
  readonly since: number;
  /** When what still runs is killed. */
  readonly deadline: number;
}

/** The node ends the pod for the good of others. */
export interface Eviction extends Refusal {
  readonly since: number;
  /** Message of the condition DisruptionTarget; absent: there is none. */
  readonly condition?: string;
  /** Milliseconds instead of the pod's own grace. */
  readonly graceMs?: number;
}

export interface PodMemory {
  readonly firstSeen: number;
  readonly refused?: Refusal;
  readonly resize?: ResizeState;
  readonly evicted?: Eviction;
  readonly cgroupReady: boolean;
  readonly cgroupFailure?: Failure;
  readonly volumes: 'unknown' | 'ready' | 'gone';
  readonly volumesFailure?: Failure;
  /** When the volumes are to be set up again (tokens, ConfigMaps). */
  readonly refreshAt?: number;
  readonly sandboxFailure?: Failure;
  readonly stoppedSandboxes: readonly string[];
  readonly images: Readonly<Record<string, ImageMemory>>;
  readonly crash: Readonly<Record<string, CrashState>>;
  /** Containers that could not be made or started, by name. */
  readonly startFailures: Readonly<Record<string, Failure>>;
  /** Created containers that could not be started and are of no use any more. */
  readonly broken: readonly string[];
  readonly probes: Readonly<Record<string, ProbeResult>>;
  /** Containers whose preStop hook has had its time, by id, before they are stopped. */
  readonly hooked: readonly string[];
  /** Notes (events) that were given, with the occasion that they were given for. */
  readonly noted: Readonly<Record<string, string>>;
  /** Teardown steps that failed, by action key. */
  readonly teardownFailures: Readonly<Record<string, Failure>>;
  readonly termination?: Termination;
  /** When activeDeadlineSeconds was first seen to be over. */
  readonly overdueSince?: number;
  /** The status once nothing of the pod runs any more. */
  readonly final?: PodStatus;
  readonly erased: boolean;
}

export function newMemory(now: number): PodMemory {
  return {
    firstSeen: now,
    cgroupReady: false,
    volumes: 'unknown',
    stoppedSandboxes: [],
    images: {},
    crash: {},
    startFailures: {},
    broken: [],
    probes: {},
    hooked: [],
    noted: {},
    teardownFailures: {},
    erased: false,
  };
}

/** Since when the pod counts as active, in milliseconds: a sandbox tells where no status was written, as for static pods. */
export function startOf(pod: Pod, memory: Pick<PodMemory, 'firstSeen'>, observed: ObservedPod): number {
  if (pod.status?.startTime !== undefined) return Date.parse(pod.status.startTime);
  return Math.min(memory.firstSeen, ...observed.sandboxes.map(({ createdAt }) => createdAt));
}

/** Wall clock time at which activeDeadlineSeconds is over. */
export function activeDeadline(
  pod: Pod,
  memory: Pick<PodMemory, 'firstSeen'>,
  observed: ObservedPod,
): number | undefined {
  const seconds = pod.spec?.activeDeadlineSeconds;
  return seconds === undefined ? undefined : startOf(pod, memory, observed) + seconds * 1000;
}

/** The pod's grace counts from when its limit is seen to be over, not from a limit that nobody was there to see. */
export function withOverdue(memory: PodMemory, pod: Pod, observed: ObservedPod, now: number): PodMemory {
  if (memory.overdueSince !== undefined) return memory;
  const limit = activeDeadline(pod, memory, observed);
  return limit === undefined || limit > now ? memory : { ...memory, overdueSince: now };
}

/** Seconds that a forcibly deleted pod gets, as every container does (kubelet's minimumGracePeriodInSeconds). */
export const minimumGraceSeconds = 2;

/**
 * The termination that the pod's object or its disappearance asks for. A later wish may only shorten the time:
 * it counts from when it was seen.
 */
export function withTermination(memory: PodMemory, pod: Pod, removed: boolean, now: number): PodMemory {
  const before = memory.termination;
  const deleting = pod.metadata?.deletionTimestamp !== undefined;
  if ((!deleting && !removed) || before?.kind === 'removed') return memory;
  const grace =
    removed && before !== undefined
      ? minimumGraceSeconds
      : ((deleting ? pod.metadata?.deletionGracePeriodSeconds : undefined) ?? specGraceSeconds(pod));
  const deadline = Math.min(before?.deadline ?? Number.POSITIVE_INFINITY, now + grace * 1000);
  const kind = removed ? 'removed' : 'deleted';
  if (before !== undefined && before.kind === kind && before.deadline === deadline) return memory;
  return { ...memory, termination: { kind, since: before?.since ?? now, deadline } };
}

/** A copy of `record` without `key`. */
export function without<T>(record: Readonly<Record<string, T>>, key: string): Readonly<Record<string, T>> {
  if (!(key in record)) return record;
  const { [key]: _gone, ...rest } = record;
  return rest;
}

/** Forgets what is about containers that are gone. */
export function forgetContainers(memory: PodMemory, present: ReadonlySet<string>): PodMemory {
  const keep = <T>(record: Readonly<Record<string, T>>) =>
    Object.keys(record).every((id) => present.has(id))
      ? record
      : Object.fromEntries(Object.entries(record).filter(([id]) => present.has(id)));
  return {
    ...memory,
    probes: keep(memory.probes),
    broken: memory.broken.filter((id) => present.has(id)),
    hooked: memory.hooked.filter((id) => present.has(id)),
  };
}
