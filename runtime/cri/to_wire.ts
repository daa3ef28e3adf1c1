/** What runtime/api.ts answers, and what requests share with it → the messages of the wire. Pure. */
import { constants } from 'node:os';
import type {
  Container,
  ContainerStatus,
  ExecSyncResult,
  Image,
  LinuxContainerResources,
  Mount,
  NamespaceMode,
  NamespaceOption,
  PodSandbox,
  PodSandboxStatus,
} from '../api.ts';
import {
  containerStates,
  nameOf,
  namespaceModes,
  propagations,
  sandboxStates,
  signalNameOf,
} from './names.ts';
import type { WireInput } from './wire/types.ts';

/** Unix milliseconds → nanoseconds; a fraction keeps its microseconds. */
export function nanoseconds(milliseconds: number): bigint {
  const whole = Math.floor(milliseconds);
  return BigInt(whole) * 1_000_000n + BigInt(Math.round((milliseconds - whole) * 1000)) * 1000n;
}

export function namespacesTo(namespaces: NamespaceOption): WireInput<'NamespaceOption'> {
  return {
    network: nameOf(namespaceModes, namespaces.network),
    pid: nameOf(namespaceModes, namespaces.pid),
    ipc: nameOf(namespaceModes, namespaces.ipc),
    targetId: namespaces.targetId,
    usernsOptions: namespaces.user && {
      ...namespaces.user,
      mode: nameOf(namespaceModes, namespaces.user.mode as NamespaceMode),
    },
  };
}

export function sandboxTo(sandbox: PodSandbox): WireInput<'PodSandbox'> {
  const { id, metadata, state, createdAt, labels, annotations, runtimeHandler } = sandbox;
  return {
    id,
    metadata,
    state: nameOf(sandboxStates, state),
    createdAt: nanoseconds(createdAt),
    labels,
    annotations,
    runtimeHandler,
  };
}

export function sandboxStatusTo(status: PodSandboxStatus): WireInput<'PodSandboxStatus'> {
  const [ip = '', ...others] = status.ips;
  return {
    ...sandboxTo(status),
    network: { ip, additionalIps: others.map((other) => ({ ip: other })) },
    linux: { namespaces: { options: namespacesTo(status.namespaces) } },
  };
}

export function containerTo(container: Container): WireInput<'Container'> {
  return {
    id: container.id,
    podSandboxId: container.podSandboxId,
    metadata: container.metadata,
    image: { image: container.image, userSpecifiedImage: container.image },
    imageRef: container.imageRef,
    imageId: container.imageRef,
    state: nameOf(containerStates, container.state),
    createdAt: nanoseconds(container.createdAt),
    labels: container.labels,
    annotations: container.annotations,
  };
}

export function mountTo(mount: Mount): WireInput<'Mount'> {
  return {
    containerPath: mount.containerPath,
    hostPath: mount.hostPath,
    readonly: mount.readonly,
    propagation: nameOf(propagations, mount.propagation),
    selinuxRelabel: mount.selinuxRelabel,
    recursiveReadOnly: mount.recursiveReadonly,
    uidMappings: mount.uidMappings,
    gidMappings: mount.gidMappings,
    image: mount.image && {
      image: mount.image.image,
      // Kubelets name it by its id.
      imageRef: /^sha256:[0-9a-f]{64}$/.test(mount.image.image) ? mount.image.image : undefined,
    },
    imageSubPath: mount.imageSubPath,
    mountOptions: mount.mountOptions,
  };
}

export function resourcesTo(resources: LinuxContainerResources): WireInput<'LinuxContainerResources'> {
  const { memoryLimitBytes, memorySwapLimitBytes, ...same } = resources;
  return { ...same, memoryLimitInBytes: memoryLimitBytes, memorySwapLimitInBytes: memorySwapLimitBytes };
}

export function containerStatusTo(status: ContainerStatus): WireInput<'ContainerStatus'> {
  return {
    id: status.id,
    metadata: status.metadata,
    state: nameOf(containerStates, status.state),
    createdAt: nanoseconds(status.createdAt),
    startedAt: nanoseconds(status.startedAt),
    finishedAt: nanoseconds(status.finishedAt),
    exitCode: status.exitCode,
    image: { image: status.image, userSpecifiedImage: status.image },
    imageRef: status.imageDigestRef,
    imageId: status.imageRef,
    reason: status.reason,
    message: status.message,
    labels: status.labels,
    annotations: status.annotations,
    mounts: status.mounts.map(mountTo),
    logPath: status.logPath,
    resources: status.resources && { linux: resourcesTo(status.resources) },
    user: status.user && {
      linux: {
        uid: status.user.uid,
        gid: status.user.gid,
        supplementalGroups: status.user.supplementalGroups.map(BigInt),
      },
    },
    stopSignal:
      status.stopSignal === undefined ? undefined : signalNameOf(status.stopSignal, constants.signals),
  };
}

export function imageTo(image: Image): WireInput<'Image'> {
  const { uid, ...same } = image;
  return { ...same, uid: uid === undefined ? undefined : { value: uid } };
}

/** Readers take 16 MiB, with the fields around the output. */
const mostOutput = 16 * 2 ** 20 - 1024;

/** Output that one message holds: the rest is dropped, of both streams as of a fair share. */
export function execResultTo({ stdout, stderr, exitCode }: ExecSyncResult): WireInput<'ExecSyncResponse'> {
  const half = mostOutput / 2;
  return {
    stdout: stdout.subarray(0, Math.max(half, mostOutput - stderr.length)),
    stderr: stderr.subarray(0, Math.max(half, mostOutput - stdout.length)),
    exitCode,
  };
}

/** Facts as `info` of a verbose answer: each value is JSON, as crictl and critest read it. */
export function infoOf(facts: Readonly<Record<string, unknown>>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(facts)
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => [name, JSON.stringify(value)]),
  );
}
