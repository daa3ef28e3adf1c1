/**
 * The runtime as everybody else sees it: the shape of the CRI v1 (k8s.io/cri-api, runtime/v1/api.proto) in TypeScript.
 * The embedded runtime implements it in process; the gRPC edge serves it and speaks it.
 *
 * Differences from the wire, kept here so that the edge can undo them: times are Unix milliseconds (fractions
 * allowed) instead of nanoseconds, enums are their lower-case names without the prefix, requests are plain
 * arguments, and every call takes an AbortSignal. All errors are KeelsonErrors.
 */
import type { Duplex } from 'node:stream';
import type { ProcessStreams } from './streaming/types.ts';

export interface PodSandboxMetadata {
  readonly name: string;
  readonly uid: string;
  readonly namespace: string;
  readonly attempt: number;
}

export interface PortMapping {
  readonly protocol: 'TCP' | 'UDP' | 'SCTP';
  readonly containerPort: number;
  /** 0 or absent: no host port. */
  readonly hostPort?: number;
  readonly hostIp?: string;
}

export interface DnsConfig {
  readonly servers: readonly string[];
  readonly searches: readonly string[];
  readonly options: readonly string[];
}

/** Where a namespace comes from. `container`: one of its own; `target`: that of container `targetId` (PID only). */
export type NamespaceMode = 'pod' | 'container' | 'node' | 'target';

/** `length` ids from `containerId` on are those from `hostId` on outside. */
export interface IdMapping {
  readonly hostId: number;
  readonly containerId: number;
  readonly length: number;
}

/** `node`: no user namespace of its own, the mappings are not looked at. */
export interface UserNamespace {
  readonly mode: 'pod' | 'node';
  readonly uids: readonly IdMapping[];
  readonly gids: readonly IdMapping[];
}

export interface NamespaceOption {
  readonly network: 'pod' | 'node';
  readonly pid: NamespaceMode;
  readonly ipc: 'pod' | 'node';
  readonly targetId?: string;
  /** Absent: the node's user namespace. A container's must be those of its sandbox. */
  readonly user?: UserNamespace;
}

/** Parts of an SELinux label; what is empty is taken from the runtime's own label for containers. */
export interface SelinuxOption {
  readonly user?: string;
  readonly role?: string;
  readonly type?: string;
  readonly level?: string;
}

export interface SecurityProfile {
  readonly type: 'RuntimeDefault' | 'Unconfined' | 'Localhost';
  /** Absolute path (seccomp) or profile name (AppArmor), for Localhost. */
  readonly localhostRef?: string;
}

export interface LinuxSandboxSecurityContext {
  readonly namespaces: NamespaceOption;
  /** Must be set where a container in it is to be privileged. */
  readonly privileged?: boolean;
  /** Of the first process of a shared PID namespace, where there is one. The same for the others. */
  readonly seccomp?: SecurityProfile;
  readonly apparmor?: SecurityProfile;
  /** Also of the containers that give none of their own. */
  readonly selinux?: SelinuxOption;
}

export interface PodSandboxConfig {
  readonly metadata: PodSandboxMetadata;
  /** Empty for the node's own name (host network). */
  readonly hostname: string;
  /** Folder of the pod's logs; containers' `logPath` is relative to it. */
  readonly logDirectory: string;
  /** Absent: the sandbox gets the host's resolv.conf. */
  readonly dns?: DnsConfig;
  readonly portMappings: readonly PortMapping[];
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  readonly linux: {
    /** Path in the cgroup hierarchy (`/kubepods/burstable/pod<uid>`), or a slice name for the systemd driver. */
    readonly cgroupParent: string;
    readonly sysctls: Readonly<Record<string, string>>;
    readonly security: LinuxSandboxSecurityContext;
  };
}

export type SandboxState = 'ready' | 'notready';

export interface PodSandbox {
  readonly id: string;
  readonly metadata: PodSandboxMetadata;
  readonly state: SandboxState;
  readonly createdAt: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  readonly runtimeHandler: string;
}

export interface PodSandboxStatus extends PodSandbox {
  /** The pod's addresses, primary first; empty for the host network. */
  readonly ips: readonly string[];
  readonly namespaces: NamespaceOption;
  /** Path of the pinned network namespace; undefined for the host network. */
  readonly networkNamespace?: string;
}

export interface ImageSpec {
  /** The reference as the user wrote it, or an image id. */
  readonly image: string;
  readonly runtimeHandler?: string;
}

export interface AuthConfig {
  readonly username?: string;
  readonly password?: string;
  /** base64 of `user:password`, as in a dockerconfigjson. */
  readonly auth?: string;
  readonly serverAddress?: string;
  readonly identityToken?: string;
  readonly registryToken?: string;
}

export interface Image {
  /** The config digest, `sha256:…`: the one image id everywhere. */
  readonly id: string;
  /** `docker.io/library/busybox:1.36` and the like. */
  readonly repoTags: readonly string[];
  /** `docker.io/library/busybox@sha256:…`. */
  readonly repoDigests: readonly string[];
  /** Bytes on disk. */
  readonly size: number;
  /** The numeric user of the image's USER, where it is a number. */
  readonly uid?: number;
  /** USER where it is a name. */
  readonly username?: string;
  readonly pinned: boolean;
}

export interface KeyValue {
  readonly key: string;
  readonly value: string;
}

export interface Mount {
  readonly containerPath: string;
  /** Empty where `image` is given. Made as a folder where it is missing. */
  readonly hostPath: string;
  readonly readonly: boolean;
  readonly propagation: 'private' | 'host-to-container' | 'bidirectional';
  /** Mounts below it, too. Only with `readonly` and `private`, and where the handler can (RROUnsupported). */
  readonly recursiveReadonly?: boolean;
  /** Relabels the host path for the container, where the host has SELinux. */
  readonly selinuxRelabel?: boolean;
  /** An idmapped mount; both or neither. */
  readonly uidMappings?: readonly IdMapping[];
  readonly gidMappings?: readonly IdMapping[];
  /** An image that is present, mounted instead of a host path; always read-only. */
  readonly image?: ImageSpec;
  /** A folder or file in the image instead of its root. */
  readonly imageSubPath?: string;
  /** Of noexec, nodev, nosuid and their like. */
  readonly mountOptions?: readonly string[];
}

export interface LinuxContainerResources {
  /** Microseconds; 0 or absent: unset. The same for the others. */
  readonly cpuPeriod?: number;
  readonly cpuQuota?: number;
  readonly cpuShares?: number;
  readonly memoryLimitBytes?: number;
  /** Of memory and swap together; absent: as much as `memoryLimitBytes`, so none of it is swap. */
  readonly memorySwapLimitBytes?: number;
  readonly oomScoreAdj?: number;
  readonly cpusetCpus?: string;
  readonly cpusetMems?: string;
  readonly pidsLimit?: number;
  readonly hugepageLimits?: readonly { readonly pageSize: string; readonly limit: number }[];
  /** Raw cgroup v2 files. */
  readonly unified?: Readonly<Record<string, string>>;
}

export interface LinuxContainerSecurityContext {
  readonly namespaces: NamespaceOption;
  readonly privileged?: boolean;
  /** Names with or without CAP_; ALL. Ambient ones are added, and kept by processes that are not root. */
  readonly capabilities?: {
    readonly add: readonly string[];
    readonly drop: readonly string[];
    readonly addAmbient?: readonly string[];
  };
  /** At most one of `runAsUser` and `runAsUsername`; neither: the image's user. */
  readonly runAsUser?: number;
  readonly runAsUsername?: string;
  /** Only with one of the two. */
  readonly runAsGroup?: number;
  readonly supplementalGroups?: readonly number[];
  /** Default merge: the groups of the user in the image's /etc/group are added. */
  readonly supplementalGroupsPolicy?: 'merge' | 'strict';
  readonly readonlyRootfs?: boolean;
  readonly noNewPrivs?: boolean;
  readonly maskedPaths?: readonly string[];
  readonly readonlyPaths?: readonly string[];
  readonly seccomp?: SecurityProfile;
  readonly apparmor?: SecurityProfile;
  /** Absent: the sandbox's. */
  readonly selinux?: SelinuxOption;
}

/**
 * What is hidden of /proc and /sys in containers that are not privileged: what kubelets ask for, unless procMount is
 * Unmasked, and what a runtime does when nothing is asked.
 */
export const defaultMaskedPaths: readonly string[] = [
  '/proc/asound',
  '/proc/acpi',
  '/proc/interrupts',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/timer_list',
  '/proc/timer_stats',
  '/proc/sched_debug',
  '/proc/scsi',
  '/sys/firmware',
  '/sys/devices/virtual/powercap',
];
export const defaultReadonlyPaths: readonly string[] = [
  '/proc/bus',
  '/proc/fs',
  '/proc/irq',
  '/proc/sys',
  '/proc/sysrq-trigger',
];

export interface ContainerMetadata {
  readonly name: string;
  readonly attempt: number;
}

export interface ContainerConfig {
  readonly metadata: ContainerMetadata;
  /** `image` is an image id or reference that is present. */
  readonly image: ImageSpec;
  /** What the user wrote as the image: reported back in status. */
  readonly userImage?: string;
  /** Replaces the image's entrypoint when not empty. */
  readonly command: readonly string[];
  /** Replaces the image's cmd when not empty, or when `command` is given. */
  readonly args: readonly string[];
  /** Empty: the image's. */
  readonly workingDir: string;
  /** Added over the image's. */
  readonly envs: readonly KeyValue[];
  readonly mounts: readonly Mount[];
  readonly devices?: readonly {
    readonly containerPath: string;
    readonly hostPath: string;
    readonly permissions: string;
  }[];
  /** Qualified names of the Container Device Interface, `vendor/class=name`; also read from `cdi.k8s.io/` annotations. */
  readonly cdiDevices?: readonly { readonly name: string }[];
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  /** Relative to the sandbox's `logDirectory`. */
  readonly logPath: string;
  readonly stdin?: boolean;
  readonly stdinOnce?: boolean;
  readonly tty?: boolean;
  /** `SIGTERM` and the like; absent: the image's, then SIGTERM. */
  readonly stopSignal?: string;
  readonly linux: {
    readonly resources: LinuxContainerResources;
    readonly security: LinuxContainerSecurityContext;
  };
}

export type ContainerState = 'created' | 'running' | 'exited' | 'unknown';

export interface Container {
  readonly id: string;
  readonly podSandboxId: string;
  readonly metadata: ContainerMetadata;
  /** As the user wrote it. */
  readonly image: string;
  /** The image id (config digest); the same as `imageId` (KEP-4020 and CRI 1.36: they must be equal). */
  readonly imageRef: string;
  readonly state: ContainerState;
  readonly createdAt: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
}

export interface ContainerStatus extends Container {
  /** 0 while it has not happened. */
  readonly startedAt: number;
  readonly finishedAt: number;
  readonly exitCode: number;
  /** `Completed`, `Error`, `OOMKilled`, `ContainerStatusUnknown`, `StartError`… for exited ones. */
  readonly reason: string;
  readonly message: string;
  /** Absolute path of the log. */
  readonly logPath: string;
  readonly mounts: readonly Mount[];
  /** As last updated. */
  readonly resources?: LinuxContainerResources;
  /** The one in force: the container's, the image's, or SIGTERM. */
  readonly stopSignal?: string;
  /** The repo digest it was made from where one is known, else the image id: for the pod status `imageID`. */
  readonly imageDigestRef: string;
  /** The first process on the host; 0 when not running. */
  readonly pid: number;
  readonly user?: {
    readonly uid: number;
    readonly gid: number;
    readonly supplementalGroups: readonly number[];
  };
}

export interface ContainerEvent {
  readonly type: 'created' | 'started' | 'stopped' | 'deleted';
  /** Id of the container, or of the sandbox for events of a sandbox. */
  readonly containerId: string;
  readonly at: number;
  readonly sandbox: PodSandboxMetadata;
}

export interface RuntimeCondition {
  readonly type: 'RuntimeReady' | 'NetworkReady';
  readonly status: boolean;
  readonly reason: string;
  readonly message: string;
}

export interface RuntimeVersion {
  readonly runtimeName: string;
  readonly runtimeVersion: string;
}

/** What a RuntimeClass may name. A handler whose program is missing can do nothing. */
export interface RuntimeHandler {
  readonly name: string;
  readonly recursiveReadOnlyMounts: boolean;
  /** With idmapped mounts. */
  readonly userNamespaces: boolean;
}

/** What a runtime can do whatever the handler. */
export interface RuntimeFeatures {
  /** It acts on the policy of supplemental groups; one that is older merges in any case. */
  readonly supplementalGroupsPolicy: boolean;
  /** Pods of the host's network may have user namespaces of their own. */
  readonly userNamespacesHostNetwork: boolean;
  /** It acts on the options of mounts. */
  readonly mountOptions: boolean;
}

export interface ExecSyncResult {
  readonly stdout: Buffer;
  readonly stderr: Buffer;
  readonly exitCode: number;
}

/** runtime.v1.RuntimeService. Calls with an id that is not known throw NOT_FOUND unless said otherwise. */
export interface RuntimeService {
  version(): Promise<RuntimeVersion>;
  /** What must be true before pods can run; tells of missing programs and CNI configuration. */
  status(): Promise<readonly RuntimeCondition[]>;
  /**
   * Namespaces, network, resolv.conf, shm; returns the sandbox id. On failure everything is undone.
   * The same metadata again, after an answer that got lost, returns the same sandbox.
   */
  runPodSandbox(config: PodSandboxConfig, runtimeHandler: string, signal?: AbortSignal): Promise<string>;
  /** Kills what runs, releases the network. Idempotent; no error for an unknown id. */
  stopPodSandbox(id: string, signal?: AbortSignal): Promise<void>;
  /** Removes the sandbox and its containers without a trace. Idempotent; no error for an unknown id. */
  removePodSandbox(id: string, signal?: AbortSignal): Promise<void>;
  podSandboxStatus(id: string): Promise<PodSandboxStatus>;
  /** AND of what the filter gives. */
  listPodSandbox(filter?: {
    id?: string;
    state?: SandboxState;
    labels?: Readonly<Record<string, string>>;
  }): Promise<readonly PodSandbox[]>;
  /**
   * Root file system and bundle. The image must be present (IMAGE_NOT_PRESENT). What only the OCI runtime finds out
   * (no such command or folder, what cannot be mounted, limits that the kernel refuses) shows at the start.
   */
  createContainer(sandboxId: string, config: ContainerConfig, signal?: AbortSignal): Promise<string>;
  /**
   * Once only: FAILED_PRECONDITION unless `created`. CONTAINER_START_FAILED where there can be no process: the container
   * has then `exited` with 128 and the reason `StartError`, as in containerd.
   */
  startContainer(id: string, signal?: AbortSignal): Promise<void>;
  /** Stop signal, then KILL after `timeoutMs` (0: at once). Idempotent; no error for an unknown id. */
  stopContainer(id: string, timeoutMs: number, signal?: AbortSignal): Promise<void>;
  /** Forces a running one. Idempotent; no error for an unknown id. Logs stay. */
  removeContainer(id: string, signal?: AbortSignal): Promise<void>;
  listContainers(filter?: {
    id?: string;
    podSandboxId?: string;
    state?: ContainerState;
    labels?: Readonly<Record<string, string>>;
  }): Promise<readonly Container[]>;
  containerStatus(id: string): Promise<ContainerStatus>;
  /** Runs to the end in the container; output capped at 16 MiB each; a timeout (0: none) kills it with DEADLINE_EXCEEDED. */
  execSync(
    id: string,
    command: readonly string[],
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<ExecSyncResult>;
  /**
   * Sets what is given (not 0, not empty) and leaves the rest. Applies all of it or nothing.
   * INVALID_ARGUMENT for values that make no sense, FAILED_PRECONDITION for those that the kernel refuses.
   */
  updateContainerResources(
    id: string,
    resources: LinuxContainerResources,
    signal?: AbortSignal,
  ): Promise<void>;
  /**
   * Runs `command` in the container with the caller's streams and returns its exit code. `signal` says that the caller
   * has left: a terminal is hung up, pipes are closed; what survives that goes on (as with containerd).
   * Throws FAILED_PRECONDITION (not running), EXEC_FAILED (cannot be started), ABORTED.
   */
  exec(
    id: string,
    command: readonly string[],
    streams: ProcessStreams & { readonly tty: boolean },
    signal?: AbortSignal,
  ): Promise<number>;
  /**
   * Connects the caller to the container's own streams, from now on, until it ends or the caller leaves. A caller that
   * does not read for 30 s is let go of (ABORTED), since the container waits for it meanwhile.
   * Throws FAILED_PRECONDITION (not running, no monitor), ABORTED.
   */
  attach(
    id: string,
    streams: ProcessStreams & {
      /** The container was made with a terminal. Other runtimes want to be told; ours knows. */
      readonly tty?: boolean;
    },
    signal?: AbortSignal,
  ): Promise<void>;
  /**
   * Joins `io` with a TCP connection to `port` on the sandbox's loopback, IPv4 before IPv6, until both have ended.
   * Throws FAILED_PRECONDITION (not ready), UNAVAILABLE (nobody listens, or the connection broke), ABORTED.
   */
  portForward(sandboxId: string, port: number, io: Duplex, signal?: AbortSignal): Promise<void>;
  /**
   * Writes the state of a running container, which goes on, as an archive to `location`, an absolute path. `timeoutMs` 0:
   * two minutes. Throws DEPENDENCY_MISSING (no criu), FAILED_PRECONDITION (not running, or CRIU cannot: its words).
   */
  checkpointContainer(id: string, location: string, timeoutMs: number, signal?: AbortSignal): Promise<void>;
  /** After a rotation: the monitor opens the log path again. */
  reopenContainerLog(id: string, signal?: AbortSignal): Promise<void>;
  /** Calls `listener` for every event from now on; returns the function that ends it. */
  containerEvents(listener: (event: ContainerEvent) => void): () => void;
  /** The handlers of this node and what they can do, the default one (with the name '') first. */
  handlers(): Promise<readonly RuntimeHandler[]>;
  features(): Promise<RuntimeFeatures>;
}

/** Pressure stall information (Documentation/accounting/psi.rst): shares of the time in percent, total in microseconds. */
export interface PressureLine {
  readonly total: number;
  readonly avg10: number;
  readonly avg60: number;
  readonly avg300: number;
}
export interface Pressure {
  /** Some task waited. */
  readonly some: PressureLine;
  /** All waited. */
  readonly full: PressureLine;
}

/** `at` of these and the following: when it was read, Unix milliseconds. */
export interface CpuStats {
  readonly at: number;
  /** Processor time since the beginning, nanoseconds. */
  readonly usageNs: number;
  /** Nanoseconds of processor time per second over the last seconds; absent before there are two readings. */
  readonly nanoCores?: number;
  readonly pressure?: Pressure;
}

/** Bytes. */
export interface MemoryStats {
  readonly at: number;
  readonly usage: number;
  /** Usage without what the kernel can drop at once: the inactive file pages. */
  readonly workingSet: number;
  /** Limit without working set; absent without a limit. */
  readonly available?: number;
  readonly rss: number;
  readonly pageFaults: number;
  readonly majorPageFaults: number;
  readonly pressure?: Pressure;
}

export interface SwapStats {
  readonly at: number;
  readonly usage: number;
  /** Absent without a limit. */
  readonly available?: number;
}

export interface IoStats {
  readonly at: number;
  readonly pressure?: Pressure;
}

export interface FilesystemStats {
  readonly at: number;
  /** A folder in the file system that holds it. */
  readonly mountpoint: string;
  readonly usedBytes: number;
  readonly usedInodes: number;
}

/** Counters since the interface was made. */
export interface InterfaceStats {
  readonly name: string;
  readonly rxBytes: number;
  readonly rxPackets: number;
  readonly rxErrors: number;
  readonly rxDropped: number;
  readonly txBytes: number;
  readonly txPackets: number;
  readonly txErrors: number;
  readonly txDropped: number;
}

/** What cannot be known, as of a container that has exited, is absent. */
export interface ContainerStats {
  readonly id: string;
  readonly podSandboxId: string;
  readonly metadata: ContainerMetadata;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  readonly cpu?: CpuStats;
  readonly memory?: MemoryStats;
  readonly swap?: SwapStats;
  readonly io?: IoStats;
  /** What the container wrote over its image. */
  readonly writableLayer?: FilesystemStats;
}

export interface PodSandboxStats {
  readonly id: string;
  readonly metadata: PodSandboxMetadata;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  /** Of the pod's cgroup, or the sum of its containers where it has none. */
  readonly cpu?: CpuStats;
  readonly memory?: MemoryStats;
  readonly io?: IoStats;
  /** Absent for the host network. */
  readonly network?: { readonly at: number; readonly interfaces: readonly InterfaceStats[] };
  readonly processes?: { readonly at: number; readonly count: number };
  /** The running ones. */
  readonly containers: readonly ContainerStats[];
}

export interface MetricDescriptor {
  readonly name: string;
  readonly help: string;
  readonly labelKeys: readonly string[];
}

export interface Metric {
  readonly name: string;
  readonly at: number;
  readonly type: 'counter' | 'gauge';
  /** In the order of the descriptor's keys. */
  readonly labelValues: readonly string[];
  /** A whole number: the CRI has no other. */
  readonly value: number;
}

export interface PodSandboxMetrics {
  readonly podSandboxId: string;
  readonly metrics: readonly Metric[];
  readonly containers: readonly { readonly id: string; readonly metrics: readonly Metric[] }[];
}

/** What pods use of the node. Calls with an id that is not known throw NOT_FOUND. */
export interface RuntimeStats {
  containerStats(id: string, signal?: AbortSignal): Promise<ContainerStats>;
  /** Of running ones. AND of what the filter gives. */
  listContainerStats(
    filter?: { id?: string; podSandboxId?: string; labels?: Readonly<Record<string, string>> },
    signal?: AbortSignal,
  ): Promise<readonly ContainerStats[]>;
  podSandboxStats(id: string, signal?: AbortSignal): Promise<PodSandboxStats>;
  /** Of ready ones. */
  listPodSandboxStats(
    filter?: { id?: string; labels?: Readonly<Record<string, string>> },
    signal?: AbortSignal,
  ): Promise<readonly PodSandboxStats[]>;
  /** The same for the life of the process. */
  metricDescriptors(): readonly MetricDescriptor[] | Promise<readonly MetricDescriptor[]>;
  /** cAdvisor's metrics of all ready sandboxes. */
  listPodSandboxMetrics(signal?: AbortSignal): Promise<readonly PodSandboxMetrics[]>;
}

/** What the runtime can do and is, for kubelets and for people. */
export interface RuntimeDetails {
  readonly cgroupDriver: 'cgroupfs' | 'systemd';
  /** For people who look closer: pid, configuration, OCI specification. Throws NOT_FOUND. */
  containerInfo(id: string): Promise<Readonly<Record<string, unknown>>>;
  sandboxInfo(id: string): Promise<Readonly<Record<string, unknown>>>;
}

export interface PullProgress {
  readonly image: string;
  readonly digest: string;
  readonly phase: 'waiting' | 'downloading' | 'verifying' | 'done' | 'present';
  readonly bytes: number;
  readonly totalBytes: number;
  /** Over the last seconds; 0 where nothing is downloaded. */
  readonly bytesPerSecond: number;
}

/** runtime.v1.ImageService. */
export interface ImageService {
  listImages(filter?: { image?: string }): Promise<readonly Image[]>;
  /** Undefined where it is not present. Takes references and ids. Throws IMAGE_NAME_INVALID. */
  imageStatus(image: ImageSpec): Promise<Image | undefined>;
  /** Returns the image id. Many callers share one pull; `signal` ends only this caller's wait, and the pull with the last. */
  pullImage(
    image: ImageSpec,
    options?: {
      /** Tried in order, then anonymously. */
      auths?: readonly AuthConfig[];
      signal?: AbortSignal;
      onProgress?: (progress: PullProgress) => void;
    },
  ): Promise<string>;
  /** Removes all tags of the image. Idempotent. FAILED_PRECONDITION while a container uses it. */
  removeImage(image: ImageSpec): Promise<void>;
  imageFsInfo(): Promise<{
    readonly mountpoint: string;
    readonly usedBytes: number;
    readonly usedInodes: number;
  }>;
}

export type ArchiveFormat = 'docker-archive' | 'oci-archive' | 'oci-layout';

/** One layer of the store, as it was found. */
export interface LayerReport {
  readonly diffId: string;
  /** Names or ids of the images that have it. */
  readonly images: readonly string[];
  readonly state: 'good' | 'damaged' | 'repaired';
  /** What is wrong, for a layer that is or was damaged; for a good one empty, or why it could not be checked fully. */
  readonly message: string;
}

/** What the CRI lacks of images: for the command line and for air-gapped sites. */
export interface ImageArchives {
  /**
   * Takes in every image of an archive (tar, gzip, zstd) or layout folder at the absolute `path`. `pin` keeps what it
   * brings from garbage collection. Throws NOT_FOUND, IMAGE_INVALID, IMAGE_UNSUPPORTED, IMAGE_DIGEST_MISMATCH, LAYER_UNSAFE,
   * STORAGE_FULL, ABORTED.
   */
  importImages(
    path: string,
    options?: { pin?: boolean; signal?: AbortSignal; onProgress?: (progress: PullProgress) => void },
  ): Promise<readonly Image[]>;
  /** Writes images (names or ids) to `path`, which must not exist. Throws IMAGE_NOT_PRESENT, ALREADY_EXISTS, STORAGE_FULL, ABORTED. */
  exportImages(
    images: readonly string[],
    path: string,
    options: { format: ArchiveFormat; signal?: AbortSignal },
  ): Promise<void>;
  /** Checks every layer on disk against its diffID; with `repair`, damaged ones are made anew where their blob is kept. */
  verifyImages(options?: {
    repair?: boolean;
    signal?: AbortSignal;
    onLayer?: (report: LayerReport) => void;
  }): Promise<readonly LayerReport[]>;
}

/** What garbage collection wants to know of an image. */
export interface ImageUse {
  readonly id: string;
  readonly pinned: boolean;
  /** A container has it, or it is wanted. */
  readonly inUse: boolean;
  /** When it was pulled, or a container that has it was made or removed last. Unix milliseconds; survives restarts. */
  readonly lastUsedAt: number;
  /** Each once, with the bytes that go with it: 0 while a pull needs it too. */
  readonly layers: readonly { readonly diffId: string; readonly size: number }[];
}

/** What the CRI lacks for garbage collection. Synchronous: nothing comes between a look and a removal. */
export interface ImageCollector {
  /** Every image on disk. Those that `wanted` (references or ids, valid or not) means are in use. */
  imageUse(wanted: readonly string[]): readonly ImageUse[];
  /** Removes an image and the layers that only it has; false, and nothing, while a container has it or it is pinned. */
  collectImage(id: string): boolean;
  /** Removes layers that have been without an image for so many milliseconds, and that no pull needs. Returns bytes. */
  collectLayers(unneededForMs: number): number;
}
