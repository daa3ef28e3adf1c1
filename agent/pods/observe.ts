/** What the runtime says about a pod; and a look at the whole of it now and then, for events that got lost. */
import type { ContainerStatus, RuntimeService } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { isError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { terminationMessage } from './actions/termination_message.ts';
import { labelNames } from './spec/pod.ts';
import type { ObservedPod } from './types.ts';

export const nothingObserved: ObservedPod = { sandboxes: [], containers: [] };

async function unlessGone<T>(status: Promise<T>): Promise<T | undefined> {
  try {
    return await status;
  } catch (error) {
    if (isError(error, 'NOT_FOUND')) return undefined;
    throw error;
  }
}

/**
 * The pod's sandboxes and containers, newest first. Containers that have ended do not change any more: those in
 * `before` are taken from there, and their last words are read once.
 */
export async function observe(
  runtime: RuntimeService,
  uid: string,
  before: ObservedPod,
  onSandboxError: (error: unknown) => void = () => {},
): Promise<ObservedPod> {
  const labels = { [labelNames.podUid]: uid };
  const [sandboxes, containers] = await Promise.all([
    runtime.listPodSandbox({ labels }),
    runtime.listContainers({ labels }),
  ]);
  const ended = new Map(
    before.containers.filter(({ state }) => state === 'exited').map((container) => [container.id, container]),
  );
  const [sandboxStatuses, containerStatuses] = await Promise.all([
    Promise.all(
      sandboxes.map(({ id }) =>
        unlessGone(runtime.podSandboxStatus(id)).catch((error: unknown) => {
          onSandboxError(error);
          throw error;
        }),
      ),
    ),
    Promise.all(
      containers.map(async ({ id, state }) => {
        const known = state === 'exited' ? ended.get(id) : undefined;
        if (known !== undefined) return known;
        const status = await unlessGone(runtime.containerStatus(id));
        return status?.state === 'exited' ? withMessage(status) : status;
      }),
    ),
  ]);
  return {
    sandboxes: sandboxStatuses
      .filter((status) => status !== undefined)
      .sort((a, b) => b.metadata.attempt - a.metadata.attempt || b.createdAt - a.createdAt),
    containers: containerStatuses
      .filter((status) => status !== undefined)
      .sort((a, b) => b.createdAt - a.createdAt || b.metadata.attempt - a.metadata.attempt),
  };
}

async function withMessage(status: ContainerStatus): Promise<ContainerStatus> {
  const said = await terminationMessage(status);
  if (said === '') return status;
  return { ...status, message: status.message === '' ? said : `${status.message}: ${said}` };
}

/** A container that ran before does not any more. */
export function someEnded(before: ObservedPod, after: ObservedPod): boolean {
  const live = new Set(after.containers.filter(({ state }) => state !== 'exited').map(({ id }) => id));
  return before.containers.some(({ id, state }) => state !== 'exited' && !live.has(id));
}

interface Looking {
  readonly observed: ObservedPod;
  wake(): void;
}

/** Wakes the workers whose sandboxes or containers are not as they think. The first look is after `everyMs`. */
export function startRelist(options: {
  readonly runtime: Pick<RuntimeService, 'listPodSandbox' | 'listContainers'>;
  readonly everyMs: number;
  /** By the uid of the pod. */
  readonly workers: () => readonly (readonly [string, Looking])[];
  /** Called after each look. */
  readonly onDone: () => void;
  readonly clock: Clock;
  readonly log: Logger;
}): { close(): void } {
  const { runtime, everyMs, clock, log } = options;
  let closed = false;
  let cancel = clock.after(everyMs, () => void look());

  async function look(): Promise<void> {
    try {
      await compare();
    } catch (error) {
      log.warn({ err: error }, 'cannot list what the runtime has');
    }
    if (closed) return;
    options.onDone();
    cancel = clock.after(everyMs, () => void look());
  }

  async function compare(): Promise<void> {
    const [sandboxes, containers] = await Promise.all([runtime.listPodSandbox(), runtime.listContainers()]);
    const seen = new Map<string, string[]>();
    for (const { id, state, labels } of [...sandboxes, ...containers]) {
      const uid = labels[labelNames.podUid];
      if (uid === undefined) continue;
      const list = seen.get(uid);
      if (list === undefined) seen.set(uid, [`${id} ${state}`]);
      else list.push(`${id} ${state}`);
    }
    for (const [uid, { observed, wake }] of options.workers()) {
      const thought = [...observed.sandboxes, ...observed.containers].map(
        ({ id, state }) => `${id} ${state}`,
      );
      if (thought.sort().join() !== (seen.get(uid) ?? []).sort().join()) wake();
    }
  }

  return {
    close() {
      closed = true;
      cancel();
    },
  };
}
