/** What the runtime says about a pod. */
import type { ContainerStatus, RuntimeService } from '../../runtime/api.ts';
import { isError } from '../../runtime/host/errors.ts';
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
    Promise.all(sandboxes.map(({ id }) => unlessGone(runtime.podSandboxStatus(id)))),
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
