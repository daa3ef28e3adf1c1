/** Bringing a pod up: what its sandbox and containers wait for, and what is done about it. Pure. */
import type { ContainerStatus } from '../../../runtime/api.ts';
import type { Pod, PodContainer, PodStatus } from '../../apiserver/types.ts';
import { holdsStarts, needsRestart, resizeActions } from '../resources/resize_plan.ts';
import { containerHash } from '../spec/container_config.ts';
import { allContainers, annotationNames, formatPod, specGraceSeconds } from '../spec/pod.ts';
import { namespacesOf } from '../spec/sandbox_config.ts';
import type { ObservedPod } from '../types.ts';
import type { Action, InFlight } from './actions.ts';
import {
  type BackoffSettings,
  crashStateOf,
  goSeconds,
  restartAllowed,
  restartAllowedAt,
} from './backoff.ts';
import type { Waiting } from './container_status.ts';
import type { Decision } from './decide.ts';
import type { PodMemory } from './memory.ts';
import { type DeadContainers, prune } from './prune.ts';
import { stopAction } from './teardown.ts';
import { isLive, nextAttempt, oldStatusOf, type View } from './view.ts';

export interface BringUpInput {
  readonly pod: Pod;
  readonly observed: ObservedPod;
  readonly view: View;
  readonly memory: PodMemory;
  readonly decision: Decision;
  readonly inFlight: InFlight;
  readonly old: PodStatus | undefined;
  readonly now: number;
  readonly crash: BackoffSettings;
  readonly dead?: DeadContainers;
}

export interface BringUp {
  readonly actions: readonly Action[];
  readonly waiting: ReadonlyMap<string, Waiting>;
  readonly wakeAt: readonly number[];
  /** Something failed: the status is worth writing at once. */
  readonly failing: boolean;
}

/** For how long the cause of a failed pull is shown before the waiting is. */
const showPullErrorMs = 5_000;

export function bringUp(input: BringUpInput): BringUp {
  const { pod, view, memory, decision, inFlight, now } = input;
  const actions: Action[] = [];
  const waiting = new Map<string, Waiting>();
  const wakeAt: number[] = [];
  let failing = false;
  /** True while something that failed has to wait. */
  const held = (failure: { readonly retryAt: number } | undefined) => {
    if (failure === undefined) return false;
    failing = true;
    if (failure.retryAt <= now) return false;
    wakeAt.push(failure.retryAt);
    return true;
  };

  const starts = decision.start.length + decision.ephemeral.length > 0;
  if (starts && !memory.cgroupReady && !held(memory.cgroupFailure))
    actions.push({ kind: 'cgroup', key: 'cgroup' });
  const refresh = memory.volumes === 'ready' && memory.refreshAt !== undefined ? memory.refreshAt : undefined;
  if (
    (memory.volumes !== 'ready' || (refresh !== undefined && refresh <= now)) &&
    !held(memory.volumesFailure)
  )
    actions.push({ kind: 'volumes', key: 'volumes' });
  else if (refresh !== undefined) wakeAt.push(refresh);

  const graceful = now + specGraceSeconds(pod) * 1000;
  if (decision.needSandbox) actions.push(...replaceSandbox(input, graceful, held(memory.sandboxFailure)));
  // A container that came up in a sandbox that was replaced meanwhile.
  const strays = decision.needSandbox
    ? []
    : input.observed.containers
        .filter((container) => isLive(container) && container.podSandboxId !== view.sandbox?.id)
        .filter(({ id }) => decision.stop.every(({ container }) => container.id !== id))
        .map((container) => ({ container, message: 'Pod sandbox changed', graceSeconds: undefined }));
  for (const { container, message, graceSeconds } of [...decision.stop, ...strays]) {
    // The deadline of a stop under way stands: it must not move with the clock.
    const given = graceSeconds === undefined ? graceful : now + graceSeconds * 1000;
    const deadline = inFlight.get(`stop/${container.id}`)?.deadline ?? given;
    actions.push(stopAction(container, deadline, message));
  }

  // The images of all containers are fetched from the start, also of those whose turn comes later.
  const due = new Set(decision.start);
  for (const container of allContainers(pod)) {
    if (!due.has(container) && view.newest(container.name) === undefined) prefetch(container);
  }
  for (const container of decision.ephemeral) advance(container, true);
  let inOrder = true;
  for (const container of decision.start) inOrder = advance(container, inOrder);
  const resize = resizeActions(pod, memory.resize, view.newest, inFlight, now);
  actions.push(...resize.actions);
  if (resize.wakeAt !== undefined) wakeAt.push(resize.wakeAt);
  const pruned = prune(input);
  actions.push(...pruned.actions);
  if (pruned.wakeAt !== undefined) wakeAt.push(pruned.wakeAt);
  return { actions, waiting, wakeAt, failing };

  function attemptOf(name: string): number {
    return nextAttempt(view.newest(name), oldStatusOf(input.old, name));
  }

  /** What is known of the image that the container wants now. */
  function imageOf({ name, image = '' }: PodContainer) {
    const known = memory.images[name];
    return known?.image === undefined || known.image === image ? known : undefined;
  }

  function prefetch(container: PodContainer): void {
    const attempt = attemptOf(container.name);
    const image = imageOf(container);
    if (image?.attempt === attempt && image.imageId !== undefined) return;
    const failure = image?.failure;
    if (failure !== undefined && failure.retryAt > now) wakeAt.push(failure.retryAt);
    else actions.push(imageAction(container, attempt));
  }

  /** Brings one container a step nearer to running. False while later containers must not overtake it. */
  function advance(container: PodContainer, mayStart: boolean): boolean {
    const { name } = container;
    const newest = view.newest(name);
    if (inFlight.has(`start/${name}`)) return false;
    if (inFlight.has(`create/${name}`)) return false;
    if (newest !== undefined && isLive(newest)) return true; // Is being stopped first.
    const usable =
      newest?.state === 'created' &&
      newest.podSandboxId === view.sandbox?.id &&
      !memory.broken.includes(newest.id) &&
      !decision.stop.some((stop) => stop.container.id === newest.id);
    const failure = memory.startFailures[name];
    if (failure !== undefined) {
      failing = true;
      if (failure.retryAt > now) {
        wakeAt.push(failure.retryAt);
        waiting.set(name, { reason: failure.reason, message: failure.message });
        return true;
      }
    }
    if (newest !== undefined && usable) {
      // One made before a resize that would restart it has not run yet: it gets the new resources and need not.
      if (mayStart && volumesReady() && !needsRestart(memory.resize, container, pod, newest))
        actions.push({ kind: 'start', key: `start/${name}`, container: name, id: newest.id });
      return false;
    }
    const crash = backoffOf(container, newest);
    if (crash === 'wait') return true;
    const attempt = attemptOf(name);
    const image = imageOf(container);
    if (image?.attempt !== attempt || image.imageId === undefined) return fetch(container, attempt);
    // What is started now must fit into the pod's cgroup.
    if (holdsStarts(memory.resize)) return true;
    if (view.sandbox === undefined || !memory.cgroupReady || !volumesReady()) {
      if (memory.sandboxFailure === undefined && memory.volumesFailure === undefined) return false;
      return true;
    }
    actions.push({
      kind: 'create',
      key: `create/${name}`,
      container: name,
      attempt,
      sandboxId: view.sandbox.id,
      imageId: image.imageId,
      ...(crash === undefined ? {} : { crash }),
    });
    return false;
  }

  function volumesReady(): boolean {
    return memory.volumes === 'ready';
  }

  /** 'wait', or the state to remember with the restart; undefined where nothing ended before. */
  function backoffOf(container: PodContainer, newest: ContainerStatus | undefined) {
    if (newest?.state !== 'exited') return undefined;
    const { name } = container;
    const hash = newest.annotations[annotationNames.hash];
    // What is not the same any more is not what crashed: its waits start over.
    if (hash !== undefined && hash !== containerHash(container))
      return restartAllowed(undefined, newest.id, newest.finishedAt, now, input.crash);
    const state = memory.crash[name] ?? crashStateOf(newest, view.all(name)[1]?.finishedAt, input.crash);
    const at = restartAllowedAt(state, newest.id, newest.finishedAt, input.crash);
    if (at <= now) return restartAllowed(state, newest.id, newest.finishedAt, now, input.crash);
    failing = true;
    wakeAt.push(at);
    const delay = goSeconds(state?.delayMs ?? 0);
    waiting.set(name, {
      reason: 'CrashLoopBackOff',
      message: `back-off ${delay} restarting failed container=${name} pod=${formatPod(pod)}`,
    });
    note(
      name,
      `crash/${newest.id}`,
      'Warning',
      `Back-off restarting failed container ${name} in pod ${formatPod(pod)}`,
    );
    return 'wait';
  }

  function fetch(container: PodContainer, attempt: number): boolean {
    const { name } = container;
    const { failure, failed = container.image } = imageOf(container) ?? {};
    if (failure !== undefined) {
      failing = true;
      const backOff = !['ErrImageNeverPull', 'InvalidImageName'].includes(failure.reason);
      if (backOff && now >= Math.min(failure.at + showPullErrorMs, failure.retryAt)) {
        const text = `Back-off pulling image "${failed}"`;
        waiting.set(name, {
          reason: 'ImagePullBackOff',
          message: `${text}: ${failure.reason}: ${failure.message}`,
        });
        const occasion = `image/${attempt}/${failure.count}`;
        note(name, occasion, 'Normal', text);
        note(name, occasion, 'Warning', 'Error: ImagePullBackOff', 'Failed');
      } else {
        waiting.set(name, { reason: failure.reason, message: failure.message });
        if (backOff) wakeAt.push(failure.at + showPullErrorMs);
      }
      if (failure.retryAt > now) {
        wakeAt.push(failure.retryAt);
        return true;
      }
    }
    actions.push(imageAction(container, attempt));
    return failure !== undefined;
  }

  function note(
    name: string,
    occasion: string,
    type: 'Normal' | 'Warning',
    message: string,
    reason = 'BackOff',
  ): void {
    const key = `note/${name}/${reason}`;
    if (memory.noted[key] !== occasion)
      actions.push({ kind: 'note', key, occasion, container: name, type, reason, message });
  }
}

function imageAction(container: PodContainer, attempt: number): Action {
  const { name, image = '' } = container;
  return { kind: 'image', key: `image/${name}`, container: name, attempt, image };
}

/** Ends what runs in sandboxes that are of no use any more, then makes the next one. */
function replaceSandbox(input: BringUpInput, graceful: number, held: boolean): Action[] {
  const { pod, observed, view, memory, inFlight } = input;
  const actions: Action[] = [];
  const live = observed.containers.filter(isLive);
  const [latest] = observed.sandboxes;
  if (latest !== undefined && memory.noted['note/sandbox'] !== latest.id) {
    actions.push({
      kind: 'note',
      key: 'note/sandbox',
      occasion: latest.id,
      type: 'Normal',
      reason: 'SandboxChanged',
      message: 'Pod sandbox changed, it will be killed and re-created.',
    });
  }
  for (const container of live) {
    const deadline = inFlight.get(`stop/${container.id}`)?.deadline ?? graceful;
    actions.push(stopAction(container, deadline, `Stopping container ${container.metadata.name}`));
  }
  // What is being made in the old sandbox must show first, so that it is stopped too.
  const making = [...inFlight.keys()].some((key) => /^(create|start)\//.test(key));
  if (live.length > 0 || making) return actions;
  const open = observed.sandboxes.filter(
    ({ id, state }) => state === 'ready' || !memory.stoppedSandboxes.includes(id),
  );
  for (const { id } of open) actions.push({ kind: 'stopSandbox', key: `sandbox/${id}`, id });
  // A sandbox with a process of its own starts in the pod's cgroup, which must be there.
  const inCgroup = namespacesOf(pod).pid === 'pod';
  if (open.length === 0 && !held && (memory.cgroupReady || !inCgroup))
    actions.push({ kind: 'sandbox', key: 'sandbox', attempt: view.nextSandboxAttempt });
  return actions;
}
