/**
 * Every field of the configuration file, with its type and its default: the fields of KubeletConfiguration
 * (kubelet.config.k8s.io/v1beta1, as of Kubernetes 1.37) by their own names, and keelson's own under `keelson:`.
 * Durations are milliseconds once read. Defaults are kubelet's, except `deliberateDefaults`.
 */
import { verificationPolicies } from '../images/verification.ts';
import {
  boolean,
  duration,
  type Field,
  float,
  integer,
  list,
  map,
  object,
  quantityPattern,
  string,
} from './field.ts';

const acted = true;
const keepZero = true;
const port = { min: 1, max: 65535 };
const count = { min: 0 };
const percent = { min: 0, max: 100, keepZero };
const quantity = string({ pattern: quantityPattern, expects: 'quantity such as "100Mi" or "500m"' });
const threshold = string({
  pattern: new RegExp(`${quantityPattern.source}|^\\d+(\\.\\d+)?%$`),
  expects: 'quantity or percentage such as "100Mi" or "10%"',
});
const period = string({
  pattern: /^([\d.]+(ns|us|µs|μs|ms|s|m|h))+$/,
  expects: 'duration such as "1m30s"',
});
const absolute = { pattern: /^\//, expects: 'absolute path' };
const unixSocket = {
  pattern: /^(unix:(\/\/)?)?\/[^/]/,
  expects: 'unix socket such as "unix:///run/containerd/containerd.sock"',
};
const outputRouting = () =>
  object({ splitStream: boolean({ default: false }), infoBufferSize: orNumber(quantity) });

/** Some types of Go may also be written as a bare number; their zero is "not set" as elsewhere. */
function orNumber(field: Field<string | undefined, string>): Field<string | undefined, string | number> {
  return {
    ...field,
    read(raw, path, findings) {
      const text = typeof raw === 'number' ? String(raw) : raw;
      return field.read(text === '0' || text === '0s' ? undefined : text, path, findings);
    },
  };
}

const kubeletFields = {
  enableServer: boolean({ default: true, acted }),
  staticPodPath: string({ acted, ...absolute }),
  podLogsDir: string({ default: '/var/log/pods', acted, ...absolute }),
  syncFrequency: duration({ default: '1m' }),
  // The folder is watched, so a period has nothing to say.
  fileCheckFrequency: duration({ default: '20s', acted }),
  httpCheckFrequency: duration({ default: '20s', acted }),
  staticPodURL: string({ acted, pattern: /^https?:\/\/[^/]/, expects: 'http or https URL' }),
  staticPodURLHeader: map(list(string()), { acted }),
  address: string({ default: '0.0.0.0', acted }),
  port: integer({ default: 10250, ...port, acted }),
  readOnlyPort: integer(port),
  tlsCertFile: string({ acted, ...absolute }),
  tlsPrivateKeyFile: string({ acted, ...absolute }),
  tlsCipherSuites: list(string()),
  tlsCurvePreferences: list(integer()),
  tlsMinVersion: string({ oneOf: ['VersionTLS10', 'VersionTLS11', 'VersionTLS12', 'VersionTLS13'] }),
  rotateCertificates: boolean({ default: false }),
  serverTLSBootstrap: boolean({ default: false }),
  authentication: object({
    x509: object({ clientCAFile: string({ acted, ...absolute }) }),
    webhook: object({
      enabled: boolean({ default: true, acted }),
      cacheTTL: duration({ default: '2m' }),
    }),
    anonymous: object({ enabled: boolean({ default: false, acted }) }),
  }),
  authorization: object({
    mode: string({ default: 'Webhook', oneOf: ['AlwaysAllow', 'Webhook'], acted }),
    webhook: object({
      cacheAuthorizedTTL: duration({ default: '5m' }),
      cacheUnauthorizedTTL: duration({ default: '30s' }),
    }),
  }),
  registryPullQPS: integer({ default: 5, ...count, keepZero, acted }),
  registryBurst: integer({ default: 10, ...count, acted }),
  imagePullCredentialsVerificationPolicy: string({
    default: 'NeverVerifyPreloadedImages',
    oneOf: verificationPolicies,
    acted,
  }),
  preloadedImagesVerificationAllowlist: list(string(), { acted }),
  eventRecordQPS: integer({ default: 50, ...count, keepZero, acted }),
  eventBurst: integer({ default: 100, ...count, acted }),
  enableDebuggingHandlers: boolean({ default: true, acted }),
  enableContentionProfiling: boolean({ default: false }),
  healthzPort: integer({ default: 10248, min: 0, max: 65535, keepZero, acted }),
  healthzBindAddress: string({ default: '127.0.0.1', acted }),
  oomScoreAdj: integer({ default: -999, min: -1000, max: 1000, keepZero }),
  clusterDomain: string({ acted }),
  clusterDNS: list(string(), { acted }),
  streamingConnectionIdleTimeout: duration({ default: '4h', acted }),
  nodeStatusUpdateFrequency: duration({ default: '10s', acted }),
  nodeStatusReportFrequency: duration({ default: '5m', acted }),
  nodeLeaseDurationSeconds: integer({ default: 40, min: 1, acted }),
  imageMinimumGCAge: duration({ default: '2m', acted }),
  imageMaximumGCAge: duration({ default: '0s', acted }),
  imageGCHighThresholdPercent: integer({ default: 85, ...percent, acted }),
  imageGCLowThresholdPercent: integer({ default: 80, ...percent, acted }),
  volumeStatsAggPeriod: duration({ default: '1m' }),
  kubeletCgroups: string(),
  systemCgroups: string(),
  cgroupRoot: string({ acted }),
  cgroupsPerQOS: boolean({ default: true }),
  /** Unset: systemd where systemd runs on a pure cgroup v2 host, else cgroupfs. */
  cgroupDriver: string({ oneOf: ['cgroupfs', 'systemd'], acted }),
  cpuManagerPolicy: string({ default: 'none' }),
  singleProcessOOMKill: boolean({ acted }),
  cpuManagerPolicyOptions: map(string()),
  cpuManagerReconcilePeriod: duration({ default: '10s' }),
  memoryManagerPolicy: string({ default: 'None' }),
  topologyManagerPolicy: string({
    default: 'none',
    oneOf: ['none', 'best-effort', 'restricted', 'single-numa-node'],
  }),
  topologyManagerScope: string({ default: 'container', oneOf: ['container', 'pod'] }),
  topologyManagerPolicyOptions: map(string()),
  qosReserved: map(string()),
  runtimeRequestTimeout: duration({ default: '2m', acted }),
  hairpinMode: string({
    default: 'promiscuous-bridge',
    oneOf: ['promiscuous-bridge', 'hairpin-veth', 'none'],
  }),
  maxPods: integer({ default: 110, ...count, acted }),
  podCIDR: string({ acted }),
  podPidsLimit: integer({ default: -1, bits: 64, keepZero, acted }),
  /** An explicit `""` gives pods no resolver configuration of the host. */
  resolvConf: string({ default: '/etc/resolv.conf', keepZero, acted }),
  runOnce: boolean({ default: false }),
  cpuCFSQuota: boolean({ default: true, acted }),
  cpuCFSQuotaPeriod: duration({ default: '100ms', keepZero, acted }),
  nodeStatusMaxImages: integer({ default: 50, min: -1, keepZero, acted }),
  maxOpenFiles: integer({ default: 1_000_000, ...count, bits: 64 }),
  contentType: string({ default: 'application/vnd.kubernetes.protobuf' }),
  kubeAPIQPS: integer({ default: 50, ...count, keepZero, acted }),
  kubeAPIBurst: integer({ default: 100, ...count, acted }),
  serializeImagePulls: boolean({ default: false, acted }),
  maxParallelImagePulls: integer({ min: 1, keepZero, acted }),
  evictionHard: map(threshold, {
    default: {
      'memory.available': '100Mi',
      'nodefs.available': '10%',
      'nodefs.inodesFree': '5%',
      'imagefs.available': '15%',
      'imagefs.inodesFree': '5%',
    },
    acted,
  }),
  evictionSoft: map(threshold),
  evictionSoftGracePeriod: map(period),
  evictionPressureTransitionPeriod: duration({ default: '5m' }),
  evictionMaxPodGracePeriod: integer(),
  evictionMinimumReclaim: map(threshold),
  mergeDefaultEvictionSettings: boolean({ default: false }),
  podsPerCore: integer({ ...count, acted }),
  enableControllerAttachDetach: boolean({ default: true }),
  protectKernelDefaults: boolean({ default: false }),
  makeIPTablesUtilChains: boolean({ default: true }),
  iptablesMasqueradeBit: integer({ default: 14, min: 0, max: 31, keepZero }),
  iptablesDropBit: integer({ default: 15, min: 0, max: 31, keepZero }),
  featureGates: map(boolean()),
  failSwapOn: boolean({ default: false, acted }),
  memorySwap: object({ swapBehavior: string({ oneOf: ['NoSwap', 'LimitedSwap'], acted }) }),
  containerLogMaxSize: string({
    default: '10Mi',
    pattern: quantityPattern,
    expects: 'quantity such as "10Mi"',
    acted,
  }),
  containerLogMaxFiles: integer({ default: 5, min: 2, keepZero, acted }),
  containerLogMaxWorkers: integer({ default: 1, min: 1, keepZero, acted }),
  containerLogMonitorInterval: duration({ default: '10s', keepZero, acted }),
  configMapAndSecretChangeDetectionStrategy: string({
    default: 'Watch',
    oneOf: ['Get', 'Cache', 'Watch'],
  }),
  systemReserved: map(quantity, { acted }),
  kubeReserved: map(quantity, { acted }),
  reservedSystemCPUs: string(),
  showHiddenMetricsForVersion: string(),
  systemReservedCgroup: string({ acted }),
  kubeReservedCgroup: string({ acted }),
  enforceNodeAllocatable: list(string(), { default: ['pods'], acted }),
  allowedUnsafeSysctls: list(string(), { acted }),
  defaultPodSysctls: map(string(), { acted }),
  volumePluginDir: string({ default: '/usr/libexec/kubernetes/kubelet-plugins/volume/exec/' }),
  providerID: string({ acted }),
  kernelMemcgNotification: boolean({ default: false }),
  logging: object({
    format: string({ default: 'text', oneOf: ['text', 'json'] }),
    flushFrequency: orNumber(string()),
    verbosity: integer({ default: 0, min: 0, keepZero, acted }),
    vmodule: list(object({ filePattern: string(), verbosity: integer({ min: 0 }) })),
    options: object({ text: outputRouting(), json: outputRouting() }),
  }),
  enableSystemLogHandler: boolean({ default: true, acted }),
  enableSystemLogQuery: boolean(),
  shutdownGracePeriod: duration({ default: '0s' }),
  shutdownGracePeriodCriticalPods: duration({ default: '0s' }),
  shutdownGracePeriodByPodPriority: list(
    object({
      priority: integer({ default: 0, keepZero }),
      shutdownGracePeriodSeconds: integer({ default: 0, min: 0, bits: 64, keepZero }),
    }),
  ),
  crashLoopBackOff: object({ maxContainerRestartPeriod: duration({ default: '5m', keepZero, acted }) }),
  reservedMemory: list(
    object({ numaNode: integer({ default: 0, min: 0, keepZero }), limits: map(quantity) }),
  ),
  enableProfilingHandler: boolean({ default: true }),
  enableDebugFlagsHandler: boolean({ default: true }),
  seccompDefault: boolean({ default: false, acted }),
  memoryThrottlingFactor: float({ min: 0, max: 1, keepZero }),
  memoryReservationPolicy: string({ default: 'None', oneOf: ['None', 'TieredReservation'] }),
  registerWithTaints: list(
    object({
      key: string({ default: '', keepZero, acted }),
      value: string({ acted }),
      effect: string({
        default: 'NoSchedule',
        oneOf: ['NoSchedule', 'PreferNoSchedule', 'NoExecute'],
        acted,
      }),
      timeAdded: string(),
    }),
    { acted },
  ),
  registerNode: boolean({ default: true, acted }),
  tracing: object({
    endpoint: string({ keepZero }),
    samplingRatePerMillion: integer({ min: 0, max: 1_000_000, keepZero }),
  }),
  localStorageCapacityIsolation: boolean({ default: true }),
  /** Unset: the embedded runtime. */
  containerRuntimeEndpoint: string({ acted, ...unixSocket }),
  /** Unset: as containerRuntimeEndpoint. */
  imageServiceEndpoint: string({ acted, ...unixSocket }),
  failCgroupV1: boolean({ default: false }),
  userNamespaces: object({ idsPerPod: integer({ bits: 64, min: 65536, keepZero }) }),
};

const nodeName = {
  pattern: /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/,
  expects: 'lower-case RFC 1123 name such as "edge-1"',
};
const ownFields = {
  /** Images, containers and `state.db`. */
  stateDir: string({ default: '/var/lib/keelson', acted, ...absolute }),
  /** Sockets, namespaces and what a reboot may forget. */
  runDir: string({ default: '/run/keelson', acted, ...absolute }),
  /** Where the CRI is served. Unset: `keelson.sock` in runDir; an explicit `""`: nowhere. */
  criSocket: string({ pattern: /^(\/.*)?$/, expects: 'absolute path, or ""', keepZero, acted }),
  /** kubelet's root folder: pods' volumes, plugins, certificates. */
  kubeletDir: string({ default: '/var/lib/kubelet', acted, ...absolute }),
  containerLogsDir: string({ default: '/var/log/containers', acted, ...absolute }),
  cniConfDirs: list(string(absolute), { default: ['/etc/cni/net.d'], acted }),
  cniBinDirs: list(string(absolute), {
    default: ['/opt/cni/bin', '/usr/lib/cni', '/usr/libexec/cni'],
    acted,
  }),
  /** Where there is no network, one is made of this file with the node's pod CIDRs: containerd's `conf_template`. */
  cniConfTemplate: string({ acted, ...absolute }),
  cniCacheDir: string({ default: '/var/lib/cni', acted, ...absolute }),
  /** OCI runtimes by the handler names of RuntimeClass. */
  runtimes: map(object({ path: string({ default: 'runc', acted }) }), {
    default: { runc: { path: 'runc' } },
    acted,
  }),
  /** Containers get SELinux labels, on hosts with SELinux. */
  selinux: boolean({ default: false, acted }),
  /** Program name or path. */
  conmon: string({ default: 'conmon', acted }),
  /** Layers fetched at once, for the whole node. Unset: the image service's own default. */
  parallelDownloads: integer({ min: 1, max: 64, acted }),
  /** MiB of layers received and not yet taken by an unpacker, for the whole node. Unset: the image service's own default. */
  downloadBytesInFlight: integer({ min: 1, max: 1024, acted }),
  /** KiB a second: a download below it over `downloadStallTimeout` is broken off and taken up again. 0: only silence counts. */
  downloadMinSpeed: integer({ default: 1, min: 0, max: 1 << 20, keepZero, acted }),
  downloadStallTimeout: duration({ default: '30s', acted }),
  /** Keep compressed layers, so that damaged ones can be repaired and images exported without the network. */
  keepBlobs: boolean({ default: false, acted }),
  /** `host[:port]` that are spoken to over plain http. */
  insecureRegistries: list(string(), { acted }),
  /** Folders in containerd's layout with a `hosts.toml` or certificates for each registry, the first one first. */
  registryFolders: list(string(absolute), {
    default: ['/etc/keelson/certs.d', '/etc/containerd/certs.d'],
    acted,
  }),
  /** A registry with mirrors is never asked itself, whatever its `hosts.toml` says. */
  registryMirrorsOnly: boolean({ default: false, acted }),
  /** Image archives put here are imported and pinned. Unset: `images` in the stateDir. */
  imagesDir: string({ acted, ...absolute }),
  /** As kubelet's flags of these names: a CredentialProviderConfig (file or folder), and where its programs are. */
  imageCredentialProviderConfig: string({ acted, ...absolute }),
  imageCredentialProviderBinDir: string({ acted, ...absolute }),
  /** With imagePullPolicy Always: the copy on the node is used, with a warning, when no registry can be reached. */
  pullAlwaysFallback: boolean({ default: false, acted }),
  nodeName: string({ acted, ...nodeName }),
  hostnameOverride: string({ acted, ...nodeName }),
  /** One address, or one of each family separated by a comma. */
  nodeIP: string({ acted }),
  nodeLabels: map(string({ default: '', keepZero }), { acted }),
  /** As kubelet's flags of these names: how many dead containers are kept besides the newest, and how long at least. */
  maximumDeadContainersPerContainer: integer({ default: 1, min: 0, max: 100, keepZero, acted }),
  minimumContainerTTLDuration: duration({ default: '0s', acted }),
};

/** Where keelson's default differs from kubelet's, and why. */
export const deliberateDefaults: Readonly<Record<string, string>> = {
  serializeImagePulls: 'layers of all images go through one bounded queue, so parallel pulls do no harm',
  failSwapOn: 'small machines often have swap',
  failCgroupV1: 'cgroup v1 is supported',
  cgroupDriver: 'follows the host',
  containerRuntimeEndpoint: 'the runtime is inside keelson',
};

/** The whole file. */
export const schema = object({
  apiVersion: string({ default: 'kubelet.config.k8s.io/v1beta1', acted }),
  kind: string({ default: 'KubeletConfiguration', acted }),
  ...kubeletFields,
  keelson: object(ownFields),
});

export type ConfigValues = ReturnType<typeof schema.read>;
/** What a file may hold, for overrides by the command line. */
export type RawConfig = NonNullable<(typeof schema)['raw']>;
