/**
 * What the node has given a pod, which may be less or more than its object asks for while a resize waits (KEP-1287).
 * Only cpu and memory can be resized. Pure.
 */
import type { Pod, PodContainer, PodStatus } from '../../apiserver/types.ts';
import { allContainers, initContainers, regularContainers } from '../spec/pod.ts';
import {
  effectiveNeeds,
  milliOf,
  type Needs,
  podNeeds,
  podRequestMilli,
  type QosClass,
  qosClassOf,
} from '../spec/qos.ts';

export interface Allocation {
  readonly containers: Readonly<Record<string, Needs>>;
  /** Of the pod as a whole, where it has any. */
  readonly pod?: Needs;
}

export function allocationOf(pod: Pod): Allocation {
  const containers = Object.fromEntries(
    allContainers(pod).map(({ name, resources }) => [name, needsOf(resources)]),
  );
  const whole = podNeeds(pod);
  return { containers, ...(whole === undefined ? {} : { pod: whole }) };
}

function needsOf(resources: PodContainer['resources']): Needs {
  const { requests, limits } = resources ?? {};
  return { ...(requests ? { requests } : {}), ...(limits ? { limits } : {}) };
}

const resizable = ['cpu', 'memory'] as const;

/** The same amounts of cpu and memory, however they are written. */
export function sameNeeds(a: Needs | undefined, b: Needs | undefined): boolean {
  return resizable.every(
    (name) =>
      milliOf(a?.requests?.[name]) === milliOf(b?.requests?.[name]) &&
      milliOf(a?.limits?.[name]) === milliOf(b?.limits?.[name]),
  );
}

export function isAllocated(pod: Pod, given: Allocation): boolean {
  return (
    sameNeeds(podNeeds(pod), given.pod) &&
    allContainers(pod).every(({ name, resources }) => {
      const own = given.containers[name];
      return own === undefined || sameNeeds(resources, own);
    })
  );
}

/** The pod as the node runs it: what was given instead of what is wanted. The same object where nothing differs. */
export function withAllocation(pod: Pod, given: Allocation): Pod {
  if (pod.spec === undefined || isAllocated(pod, given)) return pod;
  const give = (container: PodContainer): PodContainer => {
    const own = given.containers[container.name];
    return own === undefined || sameNeeds(container.resources, own)
      ? container
      : { ...container, resources: { ...container.resources, ...own } };
  };
  const spec = {
    ...pod.spec,
    containers: regularContainers(pod).map(give),
    ...(pod.spec.initContainers === undefined ? {} : { initContainers: initContainers(pod).map(give) }),
    ...(given.pod === undefined || sameNeeds(podNeeds(pod), given.pod) ? {} : { resources: given.pod }),
  };
  return { ...pod, spec };
}

type ResourceStatus = { allocatedResources?: Record<string, string>; resources?: Needs };

/**
 * What a pod had when its status was written, for a node that has no record of its own: the pod was never resized
 * here. Containers that the status says nothing of have what they ask for.
 */
export function allocationFromStatus(pod: Pod, status: PodStatus | undefined): Allocation {
  const wanted = allocationOf(pod);
  const containers = { ...wanted.containers };
  for (const one of [...(status?.initContainerStatuses ?? []), ...(status?.containerStatuses ?? [])]) {
    const { allocatedResources, resources } = one as ResourceStatus;
    if (resources === undefined || containers[one.name] === undefined) continue;
    containers[one.name] = needsOf({
      requests: allocatedResources ?? resources.requests,
      limits: resources.limits,
    });
  }
  const whole = (status as ResourceStatus | undefined)?.resources;
  if (wanted.pod === undefined || whole === undefined) return { ...wanted, containers };
  const kept = (of: Needs['requests'], now: Needs['requests']) =>
    of && Object.fromEntries(Object.entries(of).map(([name, value]) => [name, now?.[name] ?? value]));
  const { requests, limits } = wanted.pod;
  return {
    containers,
    pod: {
      ...(requests ? { requests: kept(requests, whole.requests) } : {}),
      ...(limits ? { limits: kept(limits, whole.limits) } : {}),
    },
  };
}

/** Some request of the pod would grow. */
export function grows(wanted: Pod, given: Allocation): boolean {
  const before = withAllocation(wanted, given);
  return resizable.some((name) => podRequestMilli(wanted, name) > podRequestMilli(before, name));
}

export interface Pending {
  readonly pod: Pod;
  readonly given: Allocation;
  /** When it began to wait, in milliseconds; undefined for a new one. */
  readonly since?: number;
}

const rank: Readonly<Record<QosClass, number>> = { Guaranteed: 0, Burstable: 1, BestEffort: 2 };

/** In which order resizes are tried: those that need nothing, then by priority, QoS class and time of waiting. */
export function inTurn(pending: readonly Pending[]): Pending[] {
  const keys = new Map(
    pending.map((one) => [
      one,
      [
        Number(grows(one.pod, one.given)),
        -(one.pod.spec?.priority ?? 0),
        rank[qosClassOf(one.pod)],
        one.since ?? Number.POSITIVE_INFINITY,
      ],
    ]),
  );
  return [...pending].sort((a, b) => {
    const [one, other] = [keys.get(a)!, keys.get(b)!];
    const place = one.findIndex((key, index) => key !== other[index]);
    return place < 0 ? 0 : one[place]! < other[place]! ? -1 : 1;
  });
}

/** Whether a container's own policy asks for a restart, from what it was made with (`effectiveNeeds`) to what it is to have. */
export function restartsFor(container: PodContainer, pod: Pod, made: Needs): boolean {
  const wanted = effectiveNeeds(container, pod);
  const policies = (container as { resizePolicy?: { resourceName: string; restartPolicy: string }[] })
    .resizePolicy;
  return (policies ?? []).some(
    ({ resourceName: name, restartPolicy }) =>
      restartPolicy === 'RestartContainer' &&
      (milliOf(wanted.requests?.[name]) !== milliOf(made.requests?.[name]) ||
        milliOf(wanted.limits?.[name]) !== milliOf(made.limits?.[name])),
  );
}

/** True for a container that some resize restarts: what it was made with must be known. */
export function mayRestart(container: PodContainer): boolean {
  return ((container as { resizePolicy?: { restartPolicy: string }[] }).resizePolicy ?? []).some(
    ({ restartPolicy }) => restartPolicy === 'RestartContainer',
  );
}

/** The message of an event about a resize (events/resize.go): what is wanted, container by container. */
export function resizeMessage(what: string, pod: Pod, generation: number, error = ''): string {
  const list = (containers: readonly PodContainer[]) =>
    containers.map(({ name, resources }) => ({ name, resources: needsOf(resources) }));
  const init = list(initContainers(pod));
  const summary = {
    ...(init.length === 0 ? {} : { initContainers: init }),
    containers: list(regularContainers(pod)),
    generation,
    ...(error === '' ? {} : { error }),
  };
  return `${what}: ${JSON.stringify(summary)}`;
}
