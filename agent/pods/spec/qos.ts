/** QoS classes, pod cgroups and what requests and limits mean to the kernel, as kubelet computes them. */
import { dirname } from 'node:path';
import { type CgroupResources, slicePath } from '../../../runtime/host/cgroups.ts';
import { milli, wholeUnits } from '../../apiserver/quantity.ts';
import type { Pod, PodContainer } from '../../apiserver/types.ts';
import { allContainers, initContainers, isSidecar, regularContainers, uidOf } from './pod.ts';

export type QosClass = 'Guaranteed' | 'Burstable' | 'BestEffort';
export type CgroupDriver = 'cgroupfs' | 'systemd';
type Amounts = Readonly<Record<string, string>>;
export interface Needs {
  readonly requests?: Amounts;
  readonly limits?: Amounts;
}

/** The quantity in thousandths; 0 where there is none. Manifests may hold plain numbers. Throws INVALID_ARGUMENT. */
export function milliOf(quantity: string | number | undefined): number {
  return quantity === undefined ? 0 : milli(String(quantity));
}

/** The quantity in whole units; 0 where there is none. Throws INVALID_ARGUMENT. */
function wholeOf(quantity: string | number | undefined): number {
  return quantity === undefined ? 0 : wholeUnits(String(quantity));
}

const minShares = 2;
const maxShares = 262_144;
const minQuotaUs = 1000;

/** Pod-level resources (KEP-2837): newer than the type package. */
export function podNeeds(pod: Pod): Needs | undefined {
  return (pod.spec as { resources?: Needs } | undefined)?.resources;
}

/** What a container may use: a limit of cpu or memory that it has not itself is the pod's (kubelet's GetLimits). */
export function effectiveNeeds(container: PodContainer, pod: Pod): Needs {
  const { requests, limits: own } = container.resources ?? {};
  const whole = podNeeds(pod)?.limits;
  const limits = { ...own };
  for (const name of ['cpu', 'memory']) {
    const given = whole?.[name];
    if (given !== undefined && milliOf(limits[name]) === 0) limits[name] = given;
  }
  return {
    ...(requests ? { requests } : {}),
    ...(Object.keys(limits).length > 0 ? { limits } : {}),
  };
}

/** The class, from the specification alone (ComputePodQOS). */
export function qosClassOf(pod: Pod): QosClass {
  const given = podNeeds(pod);
  const needs: readonly Needs[] =
    given === undefined ? allContainers(pod).map((container) => container.resources ?? {}) : [given];
  let any = false;
  let guaranteed = true;
  for (const { requests, limits } of needs) {
    for (const resource of ['cpu', 'memory']) {
      const limit = milliOf(limits?.[resource]);
      const request = requests?.[resource] === undefined ? limit : milliOf(requests[resource]);
      if (limit > 0 || request > 0) any = true;
      if (limit === 0 || limit !== request) guaranteed = false;
    }
  }
  return !any ? 'BestEffort' : guaranteed && needs.length > 0 ? 'Guaranteed' : 'Burstable';
}

/**
 * What the pod needs in all (component-helpers resource.PodRequests): the containers and sidecars together, or the
 * largest init container with the sidecars before it, plus the overhead. `amount` reads one container.
 */
function podAmount(pod: Pod, amount: (container: PodContainer) => number, overhead: number): number {
  let running = regularContainers(pod).reduce((sum, container) => sum + amount(container), 0);
  let sidecars = 0;
  let largestInit = 0;
  for (const container of initContainers(pod)) {
    if (isSidecar(pod, container)) sidecars += amount(container);
    largestInit = Math.max(largestInit, isSidecar(pod, container) ? sidecars : sidecars + amount(container));
  }
  running += sidecars;
  return Math.max(running, largestInit) + overhead;
}

function requestOf(container: PodContainer, resource: string): string | undefined {
  return container.resources?.requests?.[resource] ?? container.resources?.limits?.[resource];
}

/** The pod's request of a resource in thousandths of its unit. */
export function podRequestMilli(pod: Pod, resource: string): number {
  const given = podNeeds(pod);
  const atPod = given?.requests?.[resource] ?? given?.limits?.[resource];
  const overhead = milliOf(pod.spec?.overhead?.[resource]);
  if (atPod !== undefined) return milliOf(atPod) + overhead;
  return podAmount(pod, (container) => milliOf(requestOf(container, resource)), overhead);
}

/** The pod's limit of a resource in thousandths; 0 where some container has none. */
export function podLimitMilli(pod: Pod, resource: string): number {
  const atPod = podNeeds(pod)?.limits?.[resource];
  const overhead = milliOf(pod.spec?.overhead?.[resource]);
  if (atPod !== undefined) return milliOf(atPod) + overhead;
  if (allContainers(pod).some((container) => milliOf(container.resources?.limits?.[resource]) === 0))
    return 0;
  return podAmount(pod, (container) => milliOf(container.resources?.limits?.[resource]), overhead);
}

export function cpuShares(milliCpu: number): number {
  return Math.min(maxShares, Math.max(minShares, Math.floor((milliCpu * 1024) / 1000)));
}

/** CFS quota in microseconds per period; 0 for no limit. */
export function cpuQuota(milliCpu: number, periodUs: number): number {
  return milliCpu === 0 ? 0 : Math.max(minQuotaUs, Math.floor((milliCpu * periodUs) / 1000));
}

export interface CgroupSettings {
  readonly driver: CgroupDriver;
  /** `/` or a path below the root under which `kubepods` is. */
  readonly root: string;
  readonly cpuCfsQuota: boolean;
  readonly cpuCfsPeriodUs: number;
  /** Per pod; absent: no limit. */
  readonly podPidsLimit?: number;
}

const folderOf: Readonly<Record<QosClass, string>> = {
  Guaranteed: '/kubepods',
  Burstable: '/kubepods/burstable',
  BestEffort: '/kubepods/besteffort',
};

/**
 * The pod's cgroup: `path` below the root for making and removing it, `parent` as the runtime wants it (the path,
 * or the slice's name for the systemd driver). `known` are the cgroups above it, outermost first.
 */
export function podCgroup(
  pod: Pod,
  settings: CgroupSettings,
): { readonly path: string; readonly parent: string } {
  return cgroupOf(uidOf(pod), qosClassOf(pod), settings);
}

export function cgroupOf(
  uid: string,
  qos: QosClass,
  settings: CgroupSettings,
): { readonly path: string; readonly parent: string } {
  const path = `${settings.root.replace(/\/+$/, '')}${folderOf[qos]}/pod${uid}`;
  if (settings.driver === 'cgroupfs') return { path, parent: path };
  // systemd keeps `-` for nesting, so that of a name becomes `_` (cm.escapeSystemdCgroupName).
  const names = path.split('/').filter((name) => name !== '');
  const slice = `${names.map((name) => name.replaceAll('-', '_')).join('-')}.slice`;
  return { path: slicePath(slice), parent: slice };
}

/** The groups that pods' cgroups are directly below, one for each QoS class. */
export function podCgroupParents(settings: CgroupSettings): readonly string[] {
  const classes = Object.keys(folderOf) as QosClass[];
  return classes.map((qos) => dirname(cgroupOf('', qos, settings).path));
}

/** The uid of the pod whose cgroup has this name; undefined for other groups. The inverse of `cgroupOf`. */
export function uidOfCgroup(name: string, { driver }: Pick<CgroupSettings, 'driver'>): string | undefined {
  if (driver === 'cgroupfs') return /^pod(.+)$/.exec(name)?.[1];
  return /(?:^|-)kubepods(?:-burstable|-besteffort)?-pod(.+)\.slice$/.exec(name)?.[1]?.replaceAll('_', '-');
}

/** What the pod's cgroup is set to (cm.ResourceConfigForPod). */
export function podCgroupResources(pod: Pod, settings: CgroupSettings): CgroupResources {
  const pidsLimit = settings.podPidsLimit;
  if (qosClassOf(pod) === 'BestEffort') return { cpuShares: minShares, pidsLimit };
  const quota = settings.cpuCfsQuota ? cpuQuota(podLimitMilli(pod, 'cpu'), settings.cpuCfsPeriodUs) : 0;
  const memory = Math.ceil(podLimitMilli(pod, 'memory') / 1000);
  return {
    cpuShares: cpuShares(podRequestMilli(pod, 'cpu')),
    ...(quota > 0 ? { cpuQuota: quota, cpuPeriod: settings.cpuCfsPeriodUs } : {}),
    ...(memory > 0 ? { memoryLimitBytes: memory } : {}),
    pidsLimit,
  };
}

/** What one container's cgroup is set to (generateLinuxContainerResources). Limits of the pod stand in for missing ones. */
export function containerResources(
  container: PodContainer,
  settings: CgroupSettings,
  pod?: Pod,
): { cpuShares: number; cpuQuota?: number; cpuPeriod?: number; memoryLimitBytes?: number } {
  const limit = (resource: string) => {
    const own = container.resources?.limits?.[resource];
    return milliOf(own) > 0 || pod === undefined ? own : podNeeds(pod)?.limits?.[resource];
  };
  const quota = settings.cpuCfsQuota ? cpuQuota(milliOf(limit('cpu')), settings.cpuCfsPeriodUs) : 0;
  const memory = wholeOf(limit('memory'));
  return {
    cpuShares: cpuShares(milliOf(container.resources?.requests?.['cpu'] ?? limit('cpu'))),
    ...(quota > 0 ? { cpuQuota: quota, cpuPeriod: settings.cpuCfsPeriodUs } : {}),
    ...(memory > 0 ? { memoryLimitBytes: memory } : {}),
  };
}

/** qos.GetContainerOOMScoreAdjust. `memoryCapacity`: of the node, in bytes. */
export function oomScoreAdj(pod: Pod, container: PodContainer, memoryCapacity: number): number {
  const guaranteed = -997;
  const bestEffort = 1000;
  if (pod.spec?.priorityClassName === 'system-node-critical') return guaranteed;
  const qos = qosClassOf(pod);
  if (qos === 'Guaranteed') return guaranteed;
  if (qos === 'BestEffort') return bestEffort;
  const score = (bytes: number) => 1000 - Math.floor((1000 * bytes) / Math.max(1, memoryCapacity));
  const whole = podNeeds(pod)?.requests?.['memory'];
  const own = (of: PodContainer) => wholeOf(requestOf(of, 'memory'));
  // What the pod asks for beyond its containers is shared out among them (KEP-2837).
  const rest = whole === undefined ? 0 : wholeOf(whole) - podAmount(pod, own, 0);
  const share = Math.max(0, Math.floor(rest / Math.max(1, allContainers(pod).length)));
  const memory = (of: PodContainer) => own(of) + share;
  let adjust = score(memory(container));
  if (isSidecar(pod, container)) {
    // A sidecar must not die before the containers that it serves.
    adjust = Math.min(adjust, score(Math.min(...regularContainers(pod).map(memory))));
  }
  return Math.min(bestEffort - 1, Math.max(1000 + guaranteed, adjust));
}
