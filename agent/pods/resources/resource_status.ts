/** What statuses say of resources, and of a pod that the node ends for the good of others. Pure. */
import type { ContainerStatus } from '../../../runtime/api.ts';
import { rfc3339 } from '../../../runtime/host/clock.ts';
import { formatBytes, formatMilli } from '../../apiserver/quantity.ts';
import type {
  Pod,
  PodCondition,
  PodContainer,
  PodContainerStatus,
  PodStatus,
} from '../../apiserver/types.ts';
import type { Eviction } from '../plan/memory.ts';
import { cpuShares, milliOf, type Needs, podLimitMilli, podRequestMilli } from '../spec/qos.ts';

type Amounts = Record<string, string>;

/**
 * `resources` (what the cgroup has) and `allocatedResources` (what was given). They differ only while a resize is under
 * way: else the words of the specification stand, which kernel numbers would only round.
 */
export function containerResourceStatus(
  container: PodContainer,
  newest: ContainerStatus,
  old: PodContainerStatus | undefined,
  resizing: boolean,
): object {
  const { requests, limits } = container.resources ?? {};
  const given: Needs = { ...(requests ? { requests } : {}), ...(limits ? { limits } : {}) };
  return {
    ...(requests === undefined ? {} : { allocatedResources: requests }),
    resources: resizing && newest.state === 'running' ? actual(given, newest, old) : given,
  };
}

/** From what the runtime says; what it does not say is as it was told before. */
function actual(given: Needs, newest: ContainerStatus, old: PodContainerStatus | undefined): Needs {
  const has = newest.resources ?? {};
  const told = (old as { resources?: Needs } | undefined)?.resources;
  const limits: Amounts | undefined = given.limits && { ...given.limits };
  const requests: Amounts | undefined = given.requests && { ...given.requests };
  if (limits !== undefined) {
    const { cpuQuota, cpuPeriod, memoryLimitBytes } = has;
    if (cpuQuota !== undefined && cpuQuota > 0) {
      const milli = Math.round((cpuQuota * 1000) / (cpuPeriod || 100_000));
      // Below a quota of 1 ms the kernel knows no smaller one.
      if (milli !== milliOf(limits['cpu']) && (milli > 10 || milliOf(limits['cpu']) > 10))
        limits['cpu'] = formatMilli(milli);
    } else if (told?.limits?.['cpu'] !== undefined) limits['cpu'] = told.limits['cpu'];
    if (memoryLimitBytes !== undefined && memoryLimitBytes > 0) {
      if (memoryLimitBytes * 1000 !== milliOf(limits['memory']))
        limits['memory'] = formatBytes(memoryLimitBytes);
    } else if (told?.limits?.['memory'] !== undefined) limits['memory'] = told.limits['memory'];
  }
  if (requests !== undefined && has.cpuShares !== undefined && has.cpuShares > 0) {
    const same = has.cpuShares === cpuShares(milliOf(requests['cpu']));
    if (!same && has.cpuShares > 2) requests['cpu'] = formatMilli(Math.ceil((has.cpuShares * 1000) / 1024));
  }
  return { ...(requests ? { requests } : {}), ...(limits ? { limits } : {}) };
}

/**
 * What the pod as a whole has, and was given (KEP-5419); nothing for a pod that asks for nothing. `before`: what it was told
 * to have, while its cgroup does not have what it was given; a request of memory is no matter of cgroups.
 */
export function podResources(pod: Pod, before?: Needs): object {
  const amounts = (of: (resource: string) => number): Amounts => {
    const [cpu, memory] = [of('cpu'), of('memory')];
    return {
      ...(cpu > 0 ? { cpu: formatMilli(cpu) } : {}),
      // Fractions of a byte stay as they are: what was asked for is what was given.
      ...(memory > 0
        ? { memory: memory % 1000 === 0 ? formatBytes(memory / 1000) : formatMilli(memory) }
        : {}),
    };
  };
  const requests = amounts((resource) => podRequestMilli(pod, resource));
  const limits = amounts((resource) => podLimitMilli(pod, resource));
  const some = (list: Amounts) => Object.keys(list).length > 0;
  if (!some(requests) && !some(limits)) return {};
  const still = (list: Amounts, told: Needs['requests'], names: readonly string[]): Amounts =>
    Object.fromEntries(
      Object.entries(list).map(([name, value]) => [
        name,
        (names.includes(name) ? told?.[name] : undefined) ?? value,
      ]),
    );
  const has = {
    requests: still(requests, before?.requests, ['cpu']),
    limits: still(limits, before?.limits, ['cpu', 'memory']),
  };
  return {
    resources: {
      ...(some(requests) ? { requests: has.requests } : {}),
      ...(some(limits) ? { limits: has.limits } : {}),
    },
    ...(some(requests) ? { allocatedResources: requests } : {}),
  };
}

/** DisruptionTarget, once the node has begun to end the pod. */
export function evictionConditions(
  pod: Pod,
  evicted: Eviction | undefined,
  old: PodStatus | undefined,
  now: number,
): PodCondition[] {
  if (evicted?.condition === undefined) return [];
  const type = 'DisruptionTarget';
  const before = old?.conditions?.find((condition) => condition.type === type);
  const generation = pod.metadata?.generation;
  return [
    {
      type,
      ...(generation === undefined ? {} : { observedGeneration: generation }),
      status: 'True',
      lastTransitionTime: before?.lastTransitionTime ?? rfc3339(now),
      reason: 'TerminationByKubelet',
      message: evicted.condition,
    } as PodCondition,
  ];
}
