/** Which pods have more on the node's disk than they may: kubelet's localStorageEviction. Pure. */
import { wholeUnits } from '../../apiserver/quantity.ts';
import type { Pod, PodContainer } from '../../apiserver/types.ts';
import { initContainers, isSidecar, regularContainers } from '../spec/pod.ts';

const resource = 'ephemeral-storage';

/** Bytes of one pod on the node's own storage. */
export interface StorageUse {
  /** emptyDir volumes on disk, by the pod's names for them. */
  readonly emptyDirs: ReadonlyMap<string, number>;
  /** What running containers wrote over their images, with their logs; by name. */
  readonly containers: ReadonlyMap<string, number>;
  /** The same where images have a disk of their own: only logs. */
  readonly logs: ReadonlyMap<string, number>;
  /** All of it, and what other volumes take that are gone with the pod. */
  readonly total: number;
}

/** emptyDir volumes on disk that must not grow over a size. In memory the kernel sees to that. */
export function limitedEmptyDirs(pod: Pod): { name: string; limit: string }[] {
  return (pod.spec?.volumes ?? []).flatMap(({ name, emptyDir }) => {
    const limit = emptyDir?.sizeLimit;
    return isOnDisk(emptyDir) && limit !== undefined && wholeUnits(limit) > 0 ? [{ name, limit }] : [];
  });
}

export function isOnDisk(emptyDir: { readonly medium?: string } | undefined): boolean {
  return emptyDir !== undefined && !emptyDir.medium;
}

/** Some container of the pod says how much it may write. */
export function hasContainerLimits(pod: Pod): boolean {
  return counted(pod).some((container) => limitOf(container) !== undefined);
}

/** Why the pod has to go, in kubelet's words; undefined where all is as it may be. */
export function storageExcess(pod: Pod, use: StorageUse, imagesApart = false): string | undefined {
  for (const { name, limit } of limitedEmptyDirs(pod)) {
    if ((use.emptyDirs.get(name) ?? 0) > wholeUnits(limit))
      return `Usage of EmptyDir volume ${JSON.stringify(name)} exceeds the limit ${JSON.stringify(limit)}. `;
  }
  const whole = podStorageLimit(pod);
  if (whole !== undefined && use.total > whole.bytes)
    return `Pod ephemeral local storage usage exceeds the total limit of containers ${whole.text}. `;
  const ofContainers = imagesApart ? use.logs : use.containers;
  for (const container of counted(pod)) {
    const limit = limitOf(container);
    if (limit === undefined || wholeUnits(limit) === 0) continue;
    if ((ofContainers.get(container.name) ?? 0) > wholeUnits(limit))
      return `Container ${container.name} exceeded its local ephemeral storage limit ${JSON.stringify(limit)}. `;
  }
  return undefined;
}

/** The sum over the containers that have one (PodLimits); undefined where none has. */
export function podStorageLimit(pod: Pod): { readonly bytes: number; readonly text: string } | undefined {
  if (!hasContainerLimits(pod)) return undefined;
  const bytesOf = (container: PodContainer) => wholeUnits(limitOf(container) ?? '0');
  const sum = (list: readonly PodContainer[]) => list.reduce((total, one) => total + bytesOf(one), 0);
  let sidecars = 0;
  let largestInit = 0;
  for (const container of initContainers(pod)) {
    const own = bytesOf(container);
    if (isSidecar(pod, container)) sidecars += own;
    largestInit = Math.max(largestInit, isSidecar(pod, container) ? sidecars : sidecars + own);
  }
  const overhead = pod.spec?.overhead?.[resource];
  const bytes = Math.max(sum(regularContainers(pod)) + sidecars, largestInit) + wholeUnits(overhead ?? '0');
  const first = counted(pod)
    .map(limitOf)
    .find((limit) => limit !== undefined)!;
  return { bytes, text: wholeUnits(first) === bytes ? first : quantityLike(first, bytes) };
}

function limitOf(container: PodContainer): string | undefined {
  return container.resources?.limits?.[resource];
}

/** All but init containers that end before the others begin. */
function counted(pod: Pod): PodContainer[] {
  const sidecars = initContainers(pod).filter((container) => isSidecar(pod, container));
  return [...regularContainers(pod), ...sidecars];
}

/** A sum is written in the units of its first part: powers of 1024 or of 1000. */
function quantityLike(first: string, bytes: number): string {
  const [step, units] = first.endsWith('i')
    ? ([1024, ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei']] as const)
    : ([1000, ['', 'k', 'M', 'G', 'T', 'P', 'E']] as const);
  let value = bytes;
  let unit = 0;
  while (value !== 0 && value % step === 0 && unit < units.length - 1) {
    value /= step;
    unit++;
  }
  return `${value}${units[unit]}`;
}
