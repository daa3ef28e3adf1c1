/** Volumes that nobody mounts are not made (kubelet's GetPodVolumeNames): what is wrong with them stops no pod. Pure. */
import type { Pod, PodContainer } from '../../apiserver/types.ts';

/** Names of the volumes that the container mounts, has as devices or reads variables from. */
export function volumesOf({ volumeMounts = [], volumeDevices = [], env = [] }: PodContainer): string[] {
  return [
    ...[...volumeMounts, ...volumeDevices].map(({ name }) => name),
    ...env.flatMap(({ valueFrom }) => {
      const { fileKeyRef } = (valueFrom ?? {}) as { fileKeyRef?: { volumeName?: string } };
      return fileKeyRef?.volumeName === undefined ? [] : [fileKeyRef.volumeName];
    }),
  ];
}

/** The pod with only the volumes that some container of it uses; the same object where it uses all. */
export function withUsedVolumes(pod: Pod): Pod {
  const { volumes = [], initContainers = [], containers = [], ephemeralContainers = [] } = pod.spec ?? {};
  const all = [...initContainers, ...containers, ...ephemeralContainers] as readonly PodContainer[];
  const used = new Set(all.flatMap(volumesOf));
  const left = volumes.filter(({ name }) => used.has(name));
  return left.length === volumes.length ? pod : { ...pod, spec: { ...pod.spec!, volumes: left } };
}
