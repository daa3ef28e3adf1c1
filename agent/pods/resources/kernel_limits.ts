/**
 * Swap, huge pages and the end of a container that runs out of memory: what hosts differ in (kuberuntime's
 * kuberuntime_container_linux.go). Pure.
 */
import type { LinuxContainerResources } from '../../../runtime/api.ts';
import { parseQuantity, wholeUnits } from '../../apiserver/quantity.ts';
import type { Pod, PodContainer } from '../../apiserver/types.ts';
import { allContainers } from '../spec/pod.ts';
import { milliOf, podNeeds, podRequestMilli, qosClassOf } from '../spec/qos.ts';
import { mayRestart } from './allocation.ts';
import { isCritical } from './preemption.ts';

/** What the host has and how it is to be used. */
export interface KernelSettings {
  readonly cgroupVersion: 1 | 2;
  /** Cgroups can limit swap. */
  readonly swapControl: boolean;
  readonly swapBehavior: 'NoSwap' | 'LimitedSwap';
  readonly memoryBytes: number;
  readonly swapBytes: number;
  /** Sizes of huge pages as resources name them (`hugepages-2Mi`). */
  readonly hugepages: readonly string[];
  /** Out of memory ends one process of a container, not all of them. */
  readonly singleProcessOOMKill: boolean;
}

/** Whether a container may swap (GetContainerSwapBehavior): only Burstable ones that ask for some of their limit. */
export function maySwap(pod: Pod, container: PodContainer, settings: KernelSettings): boolean {
  if (settings.swapBehavior !== 'LimitedSwap' || settings.cgroupVersion !== 2 || !settings.swapControl)
    return false;
  if (isCritical(pod, false) || qosClassOf(pod) !== 'Burstable') return false;
  const request = milliOf(container.resources?.requests?.['memory']);
  const limit = milliOf(container.resources?.limits?.['memory']);
  return request !== limit;
}

/** Bytes of swap: the container's part of the memory is its part of the swap. */
export function swapLimit(container: PodContainer, settings: KernelSettings): number {
  const request = milliOf(container.resources?.requests?.['memory']) / 1000;
  if (settings.memoryBytes <= 0 || request > settings.memoryBytes) return 0;
  return Math.floor((request / settings.memoryBytes) * settings.swapBytes);
}

/** `2Mi` is `2MB` to the kernel. */
function pageSize(resource: string): string {
  let size = parseQuantity(resource.slice('hugepages-'.length)) / 1024;
  let unit = 0;
  for (; size >= 1024 && size % 1024 === 0 && unit < 3; unit++) size /= 1024;
  return `${size}${'KMGT'[unit]}B`;
}

/** What a container's cgroup gets besides processors and memory. Without `settings` nothing. */
export function kernelLimits(
  pod: Pod,
  container: PodContainer,
  settings: KernelSettings | undefined,
): Pick<LinuxContainerResources, 'unified' | 'hugepageLimits'> {
  if (settings === undefined) return {};
  const unified: Record<string, string> = {};
  if (settings.cgroupVersion === 2) {
    if (!settings.singleProcessOOMKill) unified['memory.oom.group'] = '1';
    if (settings.swapControl)
      unified['memory.swap.max'] = String(
        maySwap(pod, container, settings) ? swapLimit(container, settings) : 0,
      );
  }
  const limits = { ...podNeeds(pod)?.limits, ...container.resources?.limits };
  const hugepageLimits = settings.hugepages.map((resource) => ({
    pageSize: pageSize(resource),
    limit: limits[resource] === undefined ? 0 : wholeUnits(String(limits[resource])),
  }));
  return {
    ...(Object.keys(unified).length === 0 ? {} : { unified }),
    ...(hugepageLimits.length === 0 ? {} : { hugepageLimits }),
  };
}

/** What a pod's cgroup gets of huge pages: nothing of the sizes that it does not ask for (cm.maybeSetHugetlb). */
export function podHugepages(
  pod: Pod,
  settings: KernelSettings | undefined,
): { readonly hugepageLimits?: { readonly pageSize: string; readonly limit: number }[] } {
  if (settings === undefined || settings.hugepages.length === 0) return {};
  return {
    hugepageLimits: settings.hugepages.map((resource) => ({
      pageSize: pageSize(resource),
      limit: Math.ceil(podRequestMilli(pod, resource) / 1000),
    })),
  };
}

/** Why a pod can never be resized so: the swap of a running container cannot follow its memory. */
export function swapForbids(
  wanted: Pod,
  given: Pod,
  settings: KernelSettings | undefined,
): string | undefined {
  if (settings === undefined) return undefined;
  const before = new Map(allContainers(given).map((container) => [container.name, container]));
  const forbidden = allContainers(wanted).some((container) => {
    const old = before.get(container.name);
    if (old === undefined) return false;
    const request = (of: PodContainer) => milliOf(of.resources?.requests?.['memory']);
    if (request(container) === request(old) || restartsForMemory(old)) return false;
    return maySwap(wanted, container, settings) || maySwap(given, old, settings);
  });
  return forbidden ? 'In-place resize of containers with swap is not supported.' : undefined;
}

function restartsForMemory(container: PodContainer): boolean {
  const policies = (container as { resizePolicy?: { resourceName: string; restartPolicy: string }[] })
    .resizePolicy;
  return (
    mayRestart(container) &&
    (policies ?? []).some(
      ({ resourceName, restartPolicy }) => resourceName === 'memory' && restartPolicy === 'RestartContainer',
    )
  );
}

/** Where swap is on; `text` is of /proc/swaps. */
export function swapDevices(text: string): string[] {
  return text
    .split('\n')
    .slice(1)
    .flatMap((line) => (line.trim() === '' ? [] : [line.trim().split(/\s+/)[0]!]));
}
