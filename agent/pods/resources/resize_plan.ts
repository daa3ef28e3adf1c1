/** A resize of a running pod, step by step: what is remembered of it and what is done next. Pure. */
import type { ContainerStatus } from '../../../runtime/api.ts';
import { rfc3339 } from '../../../runtime/host/clock.ts';
import type { Pod, PodCondition, PodContainer, PodStatus } from '../../apiserver/types.ts';
import type { Action, InFlight } from '../plan/actions.ts';
import type { Failure } from '../plan/backoff.ts';
import { allContainers, annotationNames } from '../spec/pod.ts';
import type { Needs } from '../spec/qos.ts';
import { restartsFor } from './allocation.ts';

export interface ResizeState {
  /** What is wanted and not given. */
  readonly pending?: {
    readonly reason: 'Deferred' | 'Infeasible';
    readonly message: string;
    readonly generation: number;
  };
  /** What is given and not told of as completed. */
  readonly progress?: { readonly generation: number; readonly error?: string };
  /** The cgroups have what is given. */
  readonly actuated?: boolean;
  readonly failure?: Failure;
}

/** A change of the part that the node's allocation decides. */
export interface ResizeChange {
  readonly pending: ResizeState['pending'];
  /** A resize was given now, for this generation. */
  readonly begun?: number;
}

export function withChange(state: ResizeState | undefined, change: ResizeChange): ResizeState | undefined {
  const { pending, begun } = change;
  if (begun !== undefined)
    return { ...(pending === undefined ? {} : { pending }), progress: { generation: begun } };
  if (state === undefined && pending === undefined) return undefined;
  const { pending: _before, ...rest } = state ?? {};
  return { ...rest, ...(pending === undefined ? {} : { pending }) };
}

/** Nothing is made in a pod whose cgroups do not have what the pod was given. */
export function holdsStarts(state: ResizeState | undefined): boolean {
  return state?.progress !== undefined && state.actuated !== true;
}

/** The container was made with other resources, and its policy is to make it anew. */
export function needsRestart(
  state: ResizeState | undefined,
  container: PodContainer,
  pod: Pod,
  running: ContainerStatus,
): boolean {
  if (state?.progress === undefined) return false;
  const made = running.annotations[annotationNames.resources];
  if (made === undefined) return false;
  try {
    return restartsFor(container, pod, JSON.parse(made) as Needs);
  } catch {
    return false;
  }
}

/** The next step of a resize under way. */
export function resizeActions(
  pod: Pod,
  state: ResizeState | undefined,
  newest: (name: string) => ContainerStatus | undefined,
  inFlight: InFlight,
  now: number,
): { readonly actions: readonly Action[]; readonly wakeAt?: number } {
  if (state?.progress === undefined) return { actions: [] };
  const { generation } = state.progress;
  // Also one that is being started: it runs with what it was made with.
  const stopping = allContainers(pod).some((container) => {
    const live = newest(container.name);
    const runs =
      live?.state === 'running' || (live?.state === 'created' && inFlight.has(`start/${container.name}`));
    return runs && needsRestart(state, container, pod, live);
  });
  if (stopping) return { actions: [] };
  if (state.actuated === true) return { actions: [{ kind: 'resized', key: 'note/resized', generation }] };
  if (state.failure !== undefined && state.failure.retryAt > now)
    return { actions: [], wakeAt: state.failure.retryAt };
  // A container that is being made shows its old resources only once it is there.
  if ([...inFlight.keys()].some((key) => key === 'cgroup' || key.startsWith('create/')))
    return { actions: [] };
  return { actions: [{ kind: 'resize', key: 'resize', generation }] };
}

/** PodResizePending and PodResizeInProgress, each of the generation that it is about. */
export function resizeConditions(
  state: ResizeState | undefined,
  old: PodStatus | undefined,
  now: number,
): PodCondition[] {
  const make = (type: string, generation: number, reason?: string, message?: string) => {
    const before = old?.conditions?.find((condition) => condition.type === type);
    const same = before !== undefined && (before.reason ?? '') === (reason ?? '');
    return {
      type,
      observedGeneration: generation,
      status: 'True',
      lastTransitionTime: same ? before.lastTransitionTime : rfc3339(now),
      ...(reason === undefined ? {} : { reason }),
      ...(message === undefined ? {} : { message }),
    } as PodCondition;
  };
  const { pending, progress } = state ?? {};
  return [
    ...(pending === undefined
      ? []
      : [make('PodResizePending', pending.generation, pending.reason, pending.message)]),
    ...(progress === undefined
      ? []
      : [
          progress.error === undefined
            ? make('PodResizeInProgress', progress.generation)
            : make('PodResizeInProgress', progress.generation, 'Error', progress.error),
        ]),
  ];
}

type Told = PodCondition & { observedGeneration?: number };

/** What another run of the agent had told. */
export function stateFromStatus(status: PodStatus | undefined): ResizeState {
  const told = (wanted: string) =>
    status?.conditions?.find(({ type }) => type === wanted) as Told | undefined;
  const [progress, open] = [told('PodResizeInProgress'), told('PodResizePending')];
  const generation = (one: Told) => one.observedGeneration ?? 0;
  const reason = open?.reason === 'Deferred' || open?.reason === 'Infeasible' ? open.reason : undefined;
  return {
    ...(progress === undefined ? {} : { progress: { generation: generation(progress) } }),
    ...(open === undefined || reason === undefined
      ? {}
      : { pending: { reason, message: open.message ?? '', generation: generation(open) } }),
  };
}
