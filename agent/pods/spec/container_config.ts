/** From a container of a pod to the container that the runtime is asked for. Pure. */
import { createHash } from 'node:crypto';
import type { ContainerConfig, KeyValue, Mount, UserNamespace } from '../../../runtime/api.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { Pod, PodContainer } from '../../apiserver/types.ts';
import type { ReadyVolume } from '../../volumes/types.ts';
import { mayRestart } from '../resources/allocation.ts';
import { type KernelSettings, kernelLimits } from '../resources/kernel_limits.ts';
import {
  annotationNames,
  type ContainerExtras,
  labelNames,
  namespaceOf,
  specGraceSeconds,
  uidOf,
} from './pod.ts';
import { type CgroupSettings, containerResources, effectiveNeeds, oomScoreAdj } from './qos.ts';
import { containerSecurity, type SecuritySettings } from './security.ts';

export const hostsPath = '/etc/hosts';
const defaultTerminationPath = '/dev/termination-log';

/**
 * Tells whether a container's specification changed so that it must be made anew: the fields that an update of a
 * pod may change (kubelet's pickFieldsToHash: name and image).
 */
export function containerHash(container: PodContainer): string {
  return createHash('sha256')
    .update(JSON.stringify({ name: container.name, image: container.image }))
    .digest('hex')
    .slice(0, 16);
}

export function terminationPath(container: PodContainer): string {
  return container.terminationMessagePath || defaultTerminationPath;
}

export interface SubPathMount {
  /** Index in `container.volumeMounts`. */
  readonly index: number;
  /** Name of the volume. */
  readonly volume: string;
  readonly volumePath: string;
  /** Relative, without `..`. */
  readonly subPath: string;
}

/** The mounts of `container` that name a part of a volume. Throws CONTAINER_CONFIG_INVALID. */
export function subPathMounts(
  container: PodContainer,
  volumes: ReadonlyMap<string, ReadyVolume>,
  env: readonly KeyValue[],
): SubPathMount[] {
  const values = new Map(env.map(({ key, value }) => [key, value]));
  return (container.volumeMounts ?? []).flatMap((mount, index) => {
    let subPath = mount.subPath ?? '';
    if (mount.subPathExpr) {
      subPath = mount.subPathExpr.replace(/\$\$|\$\(([^)]+)\)/g, (whole, name?: string) => {
        if (name === undefined) return '$';
        const value = values.get(name);
        if (value !== undefined) return value;
        throw invalid(`missing value for "${name}" in subPathExpr ${whole}`);
      });
    }
    const volume = volumeOf(mount.name, container, volumes);
    // The runtime goes into an image by itself.
    if (subPath === '' || volume.image !== undefined) return [];
    if (subPath.startsWith('/')) throw invalid(`subPath ${subPath} must not be an absolute path`);
    if (subPath.split('/').includes('..')) throw invalid(`subPath ${subPath} must not contain ".."`);
    return [{ index, volume: mount.name, volumePath: volume.hostPath, subPath }];
  });
}

function invalid(message: string): KeelsonError {
  return new KeelsonError('CONTAINER_CONFIG_INVALID', message);
}

function volumeOf(
  name: string,
  container: PodContainer,
  volumes: ReadonlyMap<string, ReadyVolume>,
): ReadyVolume {
  const volume = volumes.get(name);
  if (volume !== undefined) return volume;
  throw invalid(`cannot find volume "${name}" to mount into container "${container.name}"`);
}

const propagations = {
  None: 'private',
  HostToContainer: 'host-to-container',
  Bidirectional: 'bidirectional',
} as const;

export interface ContainerInput {
  readonly pod: Pod;
  readonly container: PodContainer;
  readonly attempt: number;
  readonly imageId: string;
  /** Absent: the image's user is the runtime's matter (`asksImageUser`). */
  readonly imageUser?: { readonly uid?: number; readonly username?: string };
  readonly env: readonly KeyValue[];
  readonly command: readonly string[];
  readonly args: readonly string[];
  readonly volumes: ReadonlyMap<string, ReadyVolume>;
  /** Ids of the images that are volumes, by their references. */
  readonly volumeImages?: Readonly<Record<string, string>> | undefined;
  /** Host paths of the mounts of `subPathMounts`, by index. */
  readonly subPaths: ReadonlyMap<number, string>;
  /** The pod's managed hosts file. */
  readonly hostsFile: string;
  /** The empty file that the container writes its last message to. */
  readonly terminationFile: string;
  readonly cgroup: CgroupSettings;
  readonly kernel?: KernelSettings;
  readonly security: SecuritySettings;
  /** Of the node, in bytes. */
  readonly memoryCapacity: number;
}

/** The whole container. Throws CONTAINER_CONFIG_INVALID. */
export function makeContainerConfig(input: ContainerInput): ContainerConfig {
  const { pod, container, attempt } = input;
  const extras = container as ContainerExtras;
  return {
    metadata: { name: container.name, attempt },
    image: { image: input.imageId },
    userImage: container.image ?? '',
    command: input.command,
    args: input.args,
    workingDir: container.workingDir ?? '',
    envs: input.env,
    mounts: mountsOf(input),
    ...devicesOf(input),
    labels: {
      [labelNames.podName]: pod.metadata?.name ?? '',
      [labelNames.podNamespace]: namespaceOf(pod),
      [labelNames.podUid]: uidOf(pod),
      [labelNames.containerName]: container.name,
    },
    annotations: annotationsOf(pod, container, attempt),
    logPath: `${container.name}/${attempt}.log`,
    stdin: container.stdin === true,
    stdinOnce: container.stdinOnce === true,
    tty: container.tty === true,
    ...(extras.lifecycle?.stopSignal ? { stopSignal: extras.lifecycle.stopSignal } : {}),
    linux: {
      resources: {
        ...containerResources(container, input.cgroup, pod),
        ...kernelLimits(pod, container, input.kernel),
        oomScoreAdj: oomScoreAdj(pod, container, input.memoryCapacity),
      },
      security: containerSecurity(pod, container, input.imageUser, input.security),
    },
  };
}

/** `config` in the user namespace of its pod, where it has one: what is mounted belongs to the same ids there. */
export function withUsers(config: ContainerConfig, users: UserNamespace | undefined): ContainerConfig {
  if (users === undefined || users.mode === 'node') return config;
  const { security } = config.linux;
  return {
    ...config,
    mounts: config.mounts.map((mount) => ({ ...mount, uidMappings: users.uids, gidMappings: users.gids })),
    linux: {
      ...config.linux,
      security: { ...security, namespaces: { ...security.namespaces, user: users } },
    },
  };
}

function annotationsOf(pod: Pod, container: PodContainer, attempt: number): Record<string, string> {
  return {
    [annotationNames.hash]: containerHash(container),
    [annotationNames.restartCount]: String(attempt),
    [annotationNames.terminationMessagePath]: terminationPath(container),
    [annotationNames.terminationMessagePolicy]: container.terminationMessagePolicy ?? 'File',
    [annotationNames.grace]: String(specGraceSeconds(pod)),
    ...(mayRestart(container)
      ? { [annotationNames.resources]: JSON.stringify(effectiveNeeds(container, pod)) }
      : {}),
    ...(container.lifecycle?.preStop === undefined
      ? {}
      : { [annotationNames.preStop]: JSON.stringify(container.lifecycle.preStop) }),
    ...(container.ports === undefined || container.ports.length === 0
      ? {}
      : { [annotationNames.ports]: JSON.stringify(container.ports) }),
  };
}

/** Block volumes, under the paths that the container wants (kubelet's makeBlockVolumes). */
function devicesOf({ container, volumes }: ContainerInput): Pick<ContainerConfig, 'devices'> {
  const wanted = container.volumeDevices ?? [];
  if (wanted.length === 0) return {};
  return {
    devices: wanted.map(({ name, devicePath }) => {
      const { hostPath, device, readOnly } = volumeOf(name, container, volumes);
      if (device === undefined) throw invalid(`volume "${name}" is not a block volume`);
      return { containerPath: devicePath, hostPath, permissions: readOnly ? 'r' : 'mrw' };
    }),
  };
}

function mountsOf(input: ContainerInput): Mount[] {
  const { container, volumes } = input;
  const mounts: Mount[] = (container.volumeMounts ?? []).map((mount, index) => {
    const volume = volumeOf(mount.name, container, volumes);
    const propagation = propagations[(mount.mountPropagation ?? 'None') as keyof typeof propagations];
    if (propagation === undefined)
      throw invalid(`mountPropagation ${mount.mountPropagation} of ${mount.mountPath} is not known`);
    const image = volume.image === undefined ? undefined : input.volumeImages?.[volume.image];
    if (volume.image !== undefined && image === undefined)
      throw invalid(`the image of volume "${mount.name}" is not known to be there`);
    return {
      containerPath: mount.mountPath.startsWith('/') ? mount.mountPath : `/${mount.mountPath}`,
      hostPath: input.subPaths.get(index) ?? volume.hostPath,
      ...(image === undefined
        ? {}
        : { image: { image }, ...(mount.subPath ? { imageSubPath: mount.subPath } : {}) }),
      readonly: mount.readOnly === true || volume.readOnly,
      propagation,
      // IfPossible is not yet: the runtime would refuse it where it cannot.
      ...(mount.recursiveReadOnly === 'Enabled' ? { recursiveReadonly: true } : {}),
    };
  });
  const taken = new Set(mounts.map(({ containerPath }) => containerPath));
  const own: [string, string][] = [
    [hostsPath, input.hostsFile],
    [terminationPath(container), input.terminationFile],
  ];
  for (const [containerPath, hostPath] of own) {
    if (!taken.has(containerPath))
      mounts.push({ containerPath, hostPath, readonly: false, propagation: 'private' });
  }
  return mounts;
}
