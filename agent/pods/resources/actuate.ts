/** Carries a resize out on the cgroups of a pod and its running containers. */
import type { ContainerStatus, LinuxContainerResources } from '../../../runtime/api.ts';
import { describe, KeelsonError } from '../../../runtime/host/errors.ts';
import type { PodContainer } from '../../apiserver/types.ts';
import { type ActionContext, interrupted, type MemoryUpdate, tell } from '../actions/context.ts';
import { containerBackoff, failedAgain } from '../plan/backoff.ts';
import { allContainers, uidOf } from '../spec/pod.ts';
import { containerResources, podCgroup, podCgroupResources } from '../spec/qos.ts';
import { allocationOf, resizeMessage } from './allocation.ts';
import { podLimits } from './pod_cgroup.ts';
import { writeAllocation } from './record.ts';

interface Target {
  readonly container: PodContainer;
  readonly status: ContainerStatus;
  readonly now: LinuxContainerResources;
  readonly wanted: LinuxContainerResources;
}

/** No limit is more than any. */
function bound(value: number | undefined): number {
  return value === undefined || value <= 0 ? Number.POSITIVE_INFINITY : value;
}

/** Throws FAILED_PRECONDITION for a memory limit below what is in use, else what cgroups and runtime throw. */
async function resize(context: ActionContext): Promise<void> {
  const { pod, config, cgroups, runtime, signal } = context;
  const { path } = podCgroup(pod, config.cgroup);
  const whole = podCgroupResources(pod, config.cgroup);
  const before = cgroups === undefined ? {} : await podLimits(cgroups, path);
  const targets = allContainers(pod).flatMap((container): Target[] => {
    const status = context.observed.containers.find(({ metadata }) => metadata.name === container.name);
    if (status === undefined || (status.state !== 'running' && status.state !== 'created')) return [];
    const wanted = containerResources(container, config.cgroup, pod);
    return [{ container, status, now: status.resources ?? {}, wanted }];
  });
  await checkMemory(context, whole.memoryLimitBytes, before, targets);

  // Memory and cpu go their own ways, since one may grow while the other shrinks. A pod grows before its containers
  // and shrinks after them, so that no child ever has more than its parent.
  const memory = { memoryLimitBytes: whole.memoryLimitBytes };
  const memoryGrows = bound(whole.memoryLimitBytes) > bound(before.memoryLimitBytes);
  if (memoryGrows) await cgroups?.ensure(path, memory);
  const memoryOf = ({ memoryLimitBytes }: LinuxContainerResources) => bound(memoryLimitBytes);
  for (const { status, wanted } of decreasingFirst(targets, memoryOf))
    await runtime.updateContainerResources(status.id, { memoryLimitBytes: wanted.memoryLimitBytes }, signal);
  if (!memoryGrows) await cgroups?.ensure(path, memory);

  const cpu = { cpuShares: whole.cpuShares, cpuQuota: whole.cpuQuota, cpuPeriod: whole.cpuPeriod };
  const ratio = ({ cpuQuota, cpuPeriod }: LinuxContainerResources) =>
    bound(cpuQuota) / (cpuPeriod || 100_000);
  const cpuGrows = ratio(whole) > ratio(before);
  if (cpuGrows) await cgroups?.ensure(path, cpu);
  const shares = decreasingFirst(targets, ({ cpuShares }) => cpuShares ?? 0);
  const quotas = decreasingFirst(targets, ratio);
  for (const { status, wanted } of [...quotas, ...shares.filter((one) => !quotas.includes(one))]) {
    const { cpuShares, cpuQuota, cpuPeriod } = wanted;
    await runtime.updateContainerResources(status.id, { cpuShares, cpuQuota, cpuPeriod }, signal);
  }
  if (!cpuGrows) await cgroups?.ensure(path, cpu);
}

/** Those whose value changes, the falling ones first. */
function decreasingFirst(
  targets: readonly Target[],
  value: (resources: LinuxContainerResources) => number,
): Target[] {
  const changed = targets.filter(({ now, wanted }) => value(now) !== value(wanted));
  const falls = ({ now, wanted }: Target) => value(wanted) < value(now);
  return [...changed.filter(falls), ...changed.filter((one) => !falls(one))];
}

/** The kernel would kill processes of a group whose limit falls below what it uses (validateMemoryResizeAction). */
async function checkMemory(
  context: ActionContext,
  podLimit: number | undefined,
  before: { readonly memoryLimitBytes?: number; readonly memoryUsage?: number },
  targets: readonly Target[],
): Promise<void> {
  const faults: string[] = [];
  const { memoryUsage } = before;
  if (
    bound(podLimit) < bound(before.memoryLimitBytes) &&
    memoryUsage !== undefined &&
    memoryUsage >= podLimit!
  )
    faults.push(`attempting to set pod memory limit (${podLimit}) below current usage (${memoryUsage})`);
  for (const { container, status, now, wanted } of targets) {
    const limit = wanted.memoryLimitBytes;
    if (bound(limit) >= bound(now.memoryLimitBytes) || status.state !== 'running') continue;
    const usage = await context.memoryUsage?.(status.id, context.signal);
    if (usage !== undefined && usage >= limit!)
      faults.push(
        `attempting to set container "${container.name}" memory limit (${limit}) below current usage (${usage})`,
      );
  }
  if (faults.length === 0) return;
  const all = faults.length === 1 ? faults[0]! : `[${faults.join(', ')}]`;
  throw new KeelsonError('FAILED_PRECONDITION', `cannot decrease memory limits: ${all}`);
}

/** The action `resize`. */
export async function resizePod(context: ActionContext, generation: number): Promise<MemoryUpdate> {
  try {
    await resize(context);
  } catch (error) {
    if (interrupted(context)) throw error;
    const said = describe(error);
    if (context.memory.resize?.progress?.error !== said)
      tell(
        context,
        undefined,
        'Warning',
        'ResizeError',
        resizeMessage('Pod resize error', context.pod, generation, said),
      );
    const now = context.clock.now();
    return ({ resize: state, ...memory }) =>
      state?.progress?.generation !== generation
        ? { ...memory, resize: state }
        : {
            ...memory,
            resize: {
              ...state,
              progress: { generation, error: said },
              failure: failedAgain(state.failure, 'Error', said, now, containerBackoff),
            },
          };
  }
  return ({ resize: state, ...memory }) =>
    // Another one was given meanwhile: that is still to be done.
    state?.progress?.generation !== generation
      ? { ...memory, resize: state }
      : { ...memory, resize: { ...state, actuated: true, failure: undefined } };
}

/** The action `resized`: it is done, and told. */
export async function resizeCompleted(context: ActionContext, generation: number): Promise<MemoryUpdate> {
  const { pod, config } = context;
  tell(
    context,
    undefined,
    'Normal',
    'ResizeCompleted',
    resizeMessage('Pod resize completed', pod, generation),
  );
  try {
    const allocation = allocationOf(pod);
    writeAllocation(config.kubeletDir, uidOf(pod), { allocation, generation, completed: true });
  } catch (error) {
    // Another run would tell of it once more: no reason to hold the pod up.
    context.log.warn({ error: describe(error) }, 'cannot record that a resize is completed');
  }
  return ({ resize: state, ...memory }) => {
    if (state?.progress?.generation !== generation) return { ...memory, resize: state };
    return { ...memory, resize: state.pending === undefined ? undefined : { pending: state.pending } };
  };
}
