/** Answers of the wire → what runtime/api.ts says: the other way of to_wire.ts. Pure; forgives what it does not know. */
import type {
  Container,
  ContainerStatus,
  ExecSyncResult,
  Image,
  Mount,
  PodSandbox,
  PodSandboxMetadata,
  PodSandboxStatus,
  RuntimeCondition,
  RuntimeFeatures,
  RuntimeHandler,
} from '../../api.ts';
import { isError, KeelsonError } from '../../host/errors.ts';
import { mountOf, namespacesOf, resourcesOf } from '../from_wire.ts';
import { containerStates, sandboxStates, signalOf } from '../names.ts';
import type { Wire } from '../wire/types.ts';

/** Nanoseconds → Unix milliseconds, with the microseconds as fraction. */
export function milliseconds(nanoseconds: bigint): number {
  return Number(nanoseconds / 1000n) / 1000;
}

/** `value`, which an answer must have. */
export function answered<T>(value: T | undefined, field: string): T {
  if (value !== undefined) return value;
  throw new KeelsonError('RUNTIME_FAILED', `the container runtime's answer has no ${field}`);
}

/** What is for people only, and newer than this version perhaps, is left out rather than making the answer useless. */
function ifKnown<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (isError(error, 'INVALID_ARGUMENT')) return undefined;
    throw error;
  }
}

const nobody: PodSandboxMetadata = { name: '', uid: '', namespace: '', attempt: 0 };

type SandboxMessage = Pick<
  Wire<'PodSandbox'>,
  'id' | 'metadata' | 'state' | 'createdAt' | 'labels' | 'annotations' | 'runtimeHandler'
>;

export function sandboxOf(sandbox: SandboxMessage): PodSandbox {
  const { id, metadata = nobody, state, createdAt, labels, annotations, runtimeHandler } = sandbox;
  return {
    id,
    metadata,
    state: typeof state === 'number' ? 'notready' : sandboxStates[state],
    createdAt: milliseconds(createdAt),
    labels,
    annotations,
    runtimeHandler,
  };
}

export function sandboxStatusOf(status: Wire<'PodSandboxStatus'>): PodSandboxStatus {
  const { ip = '', additionalIps = [] } = status.network ?? {};
  return {
    ...sandboxOf(status),
    ips: [ip, ...additionalIps.map((other) => other.ip)].filter((one) => one !== ''),
    namespaces: ifKnown(() => namespacesOf(status.linux?.namespaces?.options)) ?? namespacesOf(undefined),
  };
}

const stateOf = (state: Wire<'Container'>['state']) =>
  typeof state === 'number' ? 'unknown' : containerStates[state];

export function containerOf(container: Wire<'Container'>): Container {
  const { id, podSandboxId, metadata = { name: '', attempt: 0 }, image, labels, annotations } = container;
  return {
    id,
    podSandboxId,
    metadata,
    image: image?.userSpecifiedImage || image?.image || '',
    // Older runtimes have only the reference, which is the id with some of them.
    imageRef: container.imageId || container.imageRef,
    state: stateOf(container.state),
    createdAt: milliseconds(container.createdAt),
    labels,
    annotations,
  };
}

/** `podSandboxId`: the message has none. Neither has it a pid: 0. */
export function containerStatusOf(status: Wire<'ContainerStatus'>, podSandboxId: string): ContainerStatus {
  const { id, metadata = { name: '', attempt: 0 }, image, user, resources } = status;
  return {
    id,
    podSandboxId,
    metadata,
    image: image?.userSpecifiedImage || image?.image || '',
    imageRef: status.imageId || status.imageRef,
    imageDigestRef: status.imageRef,
    state: stateOf(status.state),
    createdAt: milliseconds(status.createdAt),
    startedAt: milliseconds(status.startedAt),
    finishedAt: milliseconds(status.finishedAt),
    exitCode: status.exitCode,
    reason: status.reason,
    message: status.message,
    labels: status.labels,
    annotations: status.annotations,
    mounts: status.mounts.map((mount) => ifKnown(() => mountOf(mount))).filter(isMount),
    logPath: status.logPath,
    pid: 0,
    user: user?.linux && {
      uid: Number(user.linux.uid),
      gid: Number(user.linux.gid),
      supplementalGroups: user.linux.supplementalGroups.map(Number),
    },
    resources: resources?.linux && ifKnown(() => resourcesOf(resources.linux)),
    stopSignal: ifKnown(() => signalOf(status.stopSignal)),
  };
}

const isMount = (mount: Mount | undefined): mount is Mount => mount !== undefined;

export function imageOf(image: Wire<'Image'>): Image {
  const { id, repoTags, repoDigests, size, uid, username, pinned } = image;
  return {
    id,
    repoTags,
    repoDigests,
    size: Number(size),
    uid: uid && Number(uid.value),
    username: username || undefined,
    pinned,
  };
}

/** The two that everybody has; others, which some runtimes add, are no matter of pods. */
export function conditionsOf({ status }: Wire<'StatusResponse'>): RuntimeCondition[] {
  return (status?.conditions ?? []).flatMap(({ type, ...rest }) =>
    type === 'RuntimeReady' || type === 'NetworkReady' ? [{ type, ...rest }] : [],
  );
}

export function handlersOf({ runtimeHandlers }: Wire<'StatusResponse'>): RuntimeHandler[] {
  return runtimeHandlers.map(({ name, features }) => ({
    name,
    recursiveReadOnlyMounts: features?.recursiveReadOnlyMounts ?? false,
    userNamespaces: features?.userNamespaces ?? false,
  }));
}

export function featuresOf({ features }: Wire<'StatusResponse'>): RuntimeFeatures {
  return {
    supplementalGroupsPolicy: features?.supplementalGroupsPolicy ?? false,
    userNamespacesHostNetwork: features?.userNamespacesHostNetwork ?? false,
    mountOptions: features?.mountOptions ?? false,
  };
}

export function execResultOf({ stdout, stderr, exitCode }: Wire<'ExecSyncResponse'>): ExecSyncResult {
  return { stdout, stderr, exitCode };
}
