/**
 * The messages of runtime.v1 that say what is wanted: sandboxes, containers, images. Field: [number, type].
 * Held against the published api.proto by test/cri/wire.test.ts; what is only for Windows is left out.
 */
// biome-ignore format: one message, one entry
export const configs = {
  DNSConfig: { servers: [1, 'string[]'], searches: [2, 'string[]'], options: [3, 'string[]'] },
  PortMapping: {
    protocol: [1, 'Protocol'], containerPort: [2, 'int32'], hostPort: [3, 'int32'], hostIp: [4, 'string'],
  },
  Mount: {
    containerPath: [1, 'string'], hostPath: [2, 'string'], readonly: [3, 'bool'],
    selinuxRelabel: [4, 'bool'], propagation: [5, 'MountPropagation'], uidMappings: [6, 'IDMapping[]'],
    gidMappings: [7, 'IDMapping[]'], recursiveReadOnly: [8, 'bool'], image: [9, 'ImageSpec'],
    imageSubPath: [10, 'string'], mountOptions: [11, 'string[]'],
  },
  IDMapping: { hostId: [1, 'uint32'], containerId: [2, 'uint32'], length: [3, 'uint32'] },
  UserNamespace: { mode: [1, 'NamespaceMode'], uids: [2, 'IDMapping[]'], gids: [3, 'IDMapping[]'] },
  NamespaceOption: {
    network: [1, 'NamespaceMode'], pid: [2, 'NamespaceMode'], ipc: [3, 'NamespaceMode'],
    targetId: [4, 'string'], usernsOptions: [5, 'UserNamespace'],
  },
  Int64Value: { value: [1, 'int64'] },
  LinuxSandboxSecurityContext: {
    namespaceOptions: [1, 'NamespaceOption'], selinuxOptions: [2, 'SELinuxOption'],
    runAsUser: [3, 'Int64Value'], runAsGroup: [8, 'Int64Value'], readonlyRootfs: [4, 'bool'],
    supplementalGroups: [5, 'int64[]'], supplementalGroupsPolicy: [11, 'SupplementalGroupsPolicy'],
    privileged: [6, 'bool'], seccomp: [9, 'SecurityProfile'], apparmor: [10, 'SecurityProfile'],
    seccompProfilePath: [7, 'string'],
  },
  SecurityProfile: { profileType: [1, 'ProfileType'], localhostRef: [2, 'string'] },
  LinuxPodSandboxConfig: {
    cgroupParent: [1, 'string'], securityContext: [2, 'LinuxSandboxSecurityContext'], sysctls: [3, 'map'],
    overhead: [4, 'LinuxContainerResources'], resources: [5, 'LinuxContainerResources'],
  },
  PodSandboxMetadata: {
    name: [1, 'string'], uid: [2, 'string'], namespace: [3, 'string'], attempt: [4, 'uint32'],
  },
  PodSandboxConfig: {
    metadata: [1, 'PodSandboxMetadata'], hostname: [2, 'string'], logDirectory: [3, 'string'],
    dnsConfig: [4, 'DNSConfig'], portMappings: [5, 'PortMapping[]'], labels: [6, 'map'],
    annotations: [7, 'map'], linux: [8, 'LinuxPodSandboxConfig'],
  },
  ImageSpec: {
    image: [1, 'string'], annotations: [2, 'map'], userSpecifiedImage: [18, 'string'],
    runtimeHandler: [19, 'string'], imageRef: [20, 'string'],
  },
  KeyValue: { key: [1, 'string'], value: [2, 'bytes'] },
  LinuxContainerResources: {
    cpuPeriod: [1, 'int64'], cpuQuota: [2, 'int64'], cpuShares: [3, 'int64'],
    memoryLimitInBytes: [4, 'int64'], oomScoreAdj: [5, 'int64'], cpusetCpus: [6, 'string'],
    cpusetMems: [7, 'string'], hugepageLimits: [8, 'HugepageLimit[]'], unified: [9, 'map'],
    memorySwapLimitInBytes: [10, 'int64'],
  },
  HugepageLimit: { pageSize: [1, 'string'], limit: [2, 'uint64'] },
  SELinuxOption: { user: [1, 'string'], role: [2, 'string'], type: [3, 'string'], level: [4, 'string'] },
  Capability: {
    addCapabilities: [1, 'string[]'], dropCapabilities: [2, 'string[]'],
    addAmbientCapabilities: [3, 'string[]'],
  },
  LinuxContainerSecurityContext: {
    capabilities: [1, 'Capability'], privileged: [2, 'bool'], namespaceOptions: [3, 'NamespaceOption'],
    selinuxOptions: [4, 'SELinuxOption'], runAsUser: [5, 'Int64Value'], runAsGroup: [12, 'Int64Value'],
    runAsUsername: [6, 'string'], readonlyRootfs: [7, 'bool'], supplementalGroups: [8, 'int64[]'],
    supplementalGroupsPolicy: [17, 'SupplementalGroupsPolicy'], noNewPrivs: [11, 'bool'],
    maskedPaths: [13, 'string[]'], readonlyPaths: [14, 'string[]'], seccomp: [15, 'SecurityProfile'],
    apparmor: [16, 'SecurityProfile'], apparmorProfile: [9, 'string'], seccompProfilePath: [10, 'string'],
  },
  LinuxContainerConfig: {
    resources: [1, 'LinuxContainerResources'], securityContext: [2, 'LinuxContainerSecurityContext'],
  },
  ContainerMetadata: { name: [1, 'string'], attempt: [2, 'uint32'] },
  Device: { containerPath: [1, 'string'], hostPath: [2, 'string'], permissions: [3, 'string'] },
  CDIDevice: { name: [1, 'string'] },
  ContainerConfig: {
    metadata: [1, 'ContainerMetadata'], image: [2, 'ImageSpec'], command: [3, 'string[]'],
    args: [4, 'string[]'], workingDir: [5, 'string'], envs: [6, 'KeyValue[]'], mounts: [7, 'Mount[]'],
    devices: [8, 'Device[]'], labels: [9, 'map'], annotations: [10, 'map'], logPath: [11, 'string'],
    stdin: [12, 'bool'], stdinOnce: [13, 'bool'], tty: [14, 'bool'], linux: [15, 'LinuxContainerConfig'],
    CDIDevices: [17, 'CDIDevice[]'], stopSignal: [18, 'Signal'],
  },
  AuthConfig: {
    username: [1, 'string'], password: [2, 'string'], auth: [3, 'string'], serverAddress: [4, 'string'],
    identityToken: [5, 'string'], registryToken: [6, 'string'],
  },
  NetworkConfig: { podCidr: [1, 'string'] },
  RuntimeConfig: { networkConfig: [1, 'NetworkConfig'] },
} as const;
