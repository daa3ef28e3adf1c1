/**
 * The messages of runtime.v1 that say what is: lists, status, statistics, metrics. Field: [number, type].
 * Held against the published api.proto by test/cri/wire.test.ts; what is only for Windows is left out.
 */
// biome-ignore format: one message, one entry
export const states = {
  PodIP: { ip: [1, 'string'] },
  PodSandboxNetworkStatus: { ip: [1, 'string'], additionalIps: [2, 'PodIP[]'] },
  Namespace: { options: [2, 'NamespaceOption'] },
  LinuxPodSandboxStatus: { namespaces: [1, 'Namespace'] },
  PodSandboxStatus: {
    id: [1, 'string'], metadata: [2, 'PodSandboxMetadata'], state: [3, 'PodSandboxState'],
    createdAt: [4, 'int64'], network: [5, 'PodSandboxNetworkStatus'], linux: [6, 'LinuxPodSandboxStatus'],
    labels: [7, 'map'], annotations: [8, 'map'], runtimeHandler: [9, 'string'],
  },
  PodSandbox: {
    id: [1, 'string'], metadata: [2, 'PodSandboxMetadata'], state: [3, 'PodSandboxState'],
    createdAt: [4, 'int64'], labels: [5, 'map'], annotations: [6, 'map'], runtimeHandler: [7, 'string'],
  },
  PodSandboxAttributes: {
    id: [1, 'string'], metadata: [2, 'PodSandboxMetadata'], labels: [3, 'map'], annotations: [4, 'map'],
  },
  PodSandboxStats: { attributes: [1, 'PodSandboxAttributes'], linux: [2, 'LinuxPodSandboxStats'] },
  LinuxPodSandboxStats: {
    cpu: [1, 'CpuUsage'], memory: [2, 'MemoryUsage'], network: [3, 'NetworkUsage'],
    process: [4, 'ProcessUsage'], containers: [5, 'ContainerStats[]'], io: [6, 'IoUsage'],
  },
  NetworkUsage: {
    timestamp: [1, 'int64'], defaultInterface: [2, 'NetworkInterfaceUsage'],
    interfaces: [3, 'NetworkInterfaceUsage[]'],
  },
  NetworkInterfaceUsage: {
    name: [1, 'string'], rxBytes: [2, 'UInt64Value'], rxErrors: [3, 'UInt64Value'],
    txBytes: [4, 'UInt64Value'], txErrors: [5, 'UInt64Value'],
  },
  ProcessUsage: { timestamp: [1, 'int64'], processCount: [2, 'UInt64Value'] },
  LinuxContainerUser: { uid: [1, 'int64'], gid: [2, 'int64'], supplementalGroups: [3, 'int64[]'] },
  Container: {
    id: [1, 'string'], podSandboxId: [2, 'string'], metadata: [3, 'ContainerMetadata'],
    image: [4, 'ImageSpec'], imageRef: [5, 'string'], state: [6, 'ContainerState'], createdAt: [7, 'int64'],
    labels: [8, 'map'], annotations: [9, 'map'], imageId: [10, 'string'],
  },
  ContainerStatus: {
    id: [1, 'string'], metadata: [2, 'ContainerMetadata'], state: [3, 'ContainerState'],
    createdAt: [4, 'int64'], startedAt: [5, 'int64'], finishedAt: [6, 'int64'], exitCode: [7, 'int32'],
    image: [8, 'ImageSpec'], imageRef: [9, 'string'], reason: [10, 'string'], message: [11, 'string'],
    labels: [12, 'map'], annotations: [13, 'map'], mounts: [14, 'Mount[]'], logPath: [15, 'string'],
    resources: [16, 'ContainerResources'], imageId: [17, 'string'], user: [18, 'ContainerUser'],
    stopSignal: [19, 'Signal'],
  },
  ContainerResources: { linux: [1, 'LinuxContainerResources'] },
  ContainerUser: { linux: [1, 'LinuxContainerUser'] },
  Image: {
    id: [1, 'string'], repoTags: [2, 'string[]'], repoDigests: [3, 'string[]'], size: [4, 'uint64'],
    uid: [5, 'Int64Value'], username: [6, 'string'], spec: [7, 'ImageSpec'], pinned: [8, 'bool'],
  },
  RuntimeCondition: {
    type: [1, 'string'], status: [2, 'bool'], reason: [3, 'string'], message: [4, 'string'],
  },
  RuntimeStatus: { conditions: [1, 'RuntimeCondition[]'] },
  RuntimeHandlerFeatures: { recursiveReadOnlyMounts: [1, 'bool'], userNamespaces: [2, 'bool'] },
  RuntimeHandler: { name: [1, 'string'], features: [2, 'RuntimeHandlerFeatures'] },
  RuntimeFeatures: {
    supplementalGroupsPolicy: [1, 'bool'], userNamespacesHostNetwork: [2, 'bool'],
    mountOptions: [3, 'bool'],
  },
  UInt64Value: { value: [1, 'uint64'] },
  FilesystemIdentifier: { mountpoint: [1, 'string'] },
  FilesystemUsage: {
    timestamp: [1, 'int64'], fsId: [2, 'FilesystemIdentifier'], usedBytes: [3, 'UInt64Value'],
    inodesUsed: [4, 'UInt64Value'],
  },
  ContainerAttributes: {
    id: [1, 'string'], metadata: [2, 'ContainerMetadata'], labels: [3, 'map'], annotations: [4, 'map'],
  },
  ContainerStats: {
    attributes: [1, 'ContainerAttributes'], cpu: [2, 'CpuUsage'], memory: [3, 'MemoryUsage'],
    writableLayer: [4, 'FilesystemUsage'], swap: [5, 'SwapUsage'], io: [6, 'IoUsage'],
  },
  PsiStats: { Full: [1, 'PsiData'], Some: [2, 'PsiData'] },
  PsiData: { Total: [1, 'uint64'], Avg10: [2, 'double'], Avg60: [3, 'double'], Avg300: [4, 'double'] },
  CpuUsage: {
    timestamp: [1, 'int64'], usageCoreNanoSeconds: [2, 'UInt64Value'], usageNanoCores: [3, 'UInt64Value'],
    psi: [4, 'PsiStats'],
  },
  MemoryUsage: {
    timestamp: [1, 'int64'], workingSetBytes: [2, 'UInt64Value'], availableBytes: [3, 'UInt64Value'],
    usageBytes: [4, 'UInt64Value'], rssBytes: [5, 'UInt64Value'], pageFaults: [6, 'UInt64Value'],
    majorPageFaults: [7, 'UInt64Value'], psi: [8, 'PsiStats'],
  },
  IoUsage: { timestamp: [1, 'int64'], psi: [2, 'PsiStats'] },
  SwapUsage: {
    timestamp: [1, 'int64'], swapAvailableBytes: [2, 'UInt64Value'], swapUsageBytes: [3, 'UInt64Value'],
  },
  RestoredContainer: { name: [1, 'string'], containerId: [2, 'string'] },
  MetricDescriptor: { name: [1, 'string'], help: [2, 'string'], labelKeys: [3, 'string[]'] },
  PodSandboxMetrics: {
    podSandboxId: [1, 'string'], metrics: [2, 'Metric[]'], containerMetrics: [3, 'ContainerMetrics[]'],
  },
  ContainerMetrics: { containerId: [1, 'string'], metrics: [2, 'Metric[]'] },
  Metric: {
    name: [1, 'string'], timestamp: [2, 'int64'], metricType: [3, 'MetricType'],
    labelValues: [4, 'string[]'], value: [5, 'UInt64Value'],
  },
  LinuxRuntimeConfiguration: { cgroupDriver: [1, 'CgroupDriver'] },
} as const;
