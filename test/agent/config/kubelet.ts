/** What Kubernetes 1.37 says of KubeletConfiguration v1beta1: written down here apart from keelson's own table. */

/** Fields by their JSON names, nested ones with dots; `[]` for what is inside a list. */
export const kubeletFields = `
enableServer staticPodPath podLogsDir syncFrequency fileCheckFrequency httpCheckFrequency staticPodURL
staticPodURLHeader address port readOnlyPort tlsCertFile tlsPrivateKeyFile tlsCipherSuites tlsCurvePreferences
tlsMinVersion rotateCertificates serverTLSBootstrap authentication authentication.x509
authentication.x509.clientCAFile authentication.webhook authentication.webhook.enabled
authentication.webhook.cacheTTL authentication.anonymous authentication.anonymous.enabled authorization
authorization.mode authorization.webhook authorization.webhook.cacheAuthorizedTTL
authorization.webhook.cacheUnauthorizedTTL registryPullQPS registryBurst imagePullCredentialsVerificationPolicy
preloadedImagesVerificationAllowlist eventRecordQPS eventBurst enableDebuggingHandlers enableContentionProfiling
healthzPort healthzBindAddress oomScoreAdj clusterDomain clusterDNS streamingConnectionIdleTimeout
nodeStatusUpdateFrequency nodeStatusReportFrequency nodeLeaseDurationSeconds imageMinimumGCAge imageMaximumGCAge
imageGCHighThresholdPercent imageGCLowThresholdPercent volumeStatsAggPeriod kubeletCgroups systemCgroups cgroupRoot
cgroupsPerQOS cgroupDriver cpuManagerPolicy singleProcessOOMKill cpuManagerPolicyOptions cpuManagerReconcilePeriod
memoryManagerPolicy topologyManagerPolicy topologyManagerScope topologyManagerPolicyOptions qosReserved
runtimeRequestTimeout hairpinMode maxPods podCIDR podPidsLimit resolvConf runOnce cpuCFSQuota cpuCFSQuotaPeriod
nodeStatusMaxImages maxOpenFiles contentType kubeAPIQPS kubeAPIBurst serializeImagePulls maxParallelImagePulls
evictionHard evictionSoft evictionSoftGracePeriod evictionPressureTransitionPeriod evictionMaxPodGracePeriod
evictionMinimumReclaim mergeDefaultEvictionSettings podsPerCore enableControllerAttachDetach protectKernelDefaults
makeIPTablesUtilChains iptablesMasqueradeBit iptablesDropBit featureGates failSwapOn memorySwap
memorySwap.swapBehavior containerLogMaxSize containerLogMaxFiles containerLogMaxWorkers containerLogMonitorInterval
configMapAndSecretChangeDetectionStrategy systemReserved kubeReserved reservedSystemCPUs showHiddenMetricsForVersion
systemReservedCgroup kubeReservedCgroup enforceNodeAllocatable allowedUnsafeSysctls defaultPodSysctls volumePluginDir
providerID kernelMemcgNotification logging logging.format logging.flushFrequency logging.verbosity logging.vmodule
logging.vmodule.filePattern logging.vmodule.verbosity logging.options logging.options.text
logging.options.text.splitStream logging.options.text.infoBufferSize logging.options.json
logging.options.json.splitStream logging.options.json.infoBufferSize enableSystemLogHandler enableSystemLogQuery
shutdownGracePeriod shutdownGracePeriodCriticalPods shutdownGracePeriodByPodPriority
shutdownGracePeriodByPodPriority.priority shutdownGracePeriodByPodPriority.shutdownGracePeriodSeconds
crashLoopBackOff crashLoopBackOff.maxContainerRestartPeriod reservedMemory reservedMemory.numaNode
reservedMemory.limits enableProfilingHandler enableDebugFlagsHandler seccompDefault memoryThrottlingFactor
memoryReservationPolicy registerWithTaints registerWithTaints.key registerWithTaints.value registerWithTaints.effect
registerWithTaints.timeAdded registerNode tracing tracing.endpoint tracing.samplingRatePerMillion
localStorageCapacityIsolation containerRuntimeEndpoint imageServiceEndpoint failCgroupV1 userNamespaces
userNamespaces.idsPerPod apiVersion kind
`
  .trim()
  .split(/\s+/);

const s = 1000;
const min = 60 * s;

/** SetDefaults_KubeletConfiguration of Kubernetes 1.37, and eviction.DefaultEvictionHard; milliseconds. */
export const kubeletDefaults: Readonly<Record<string, unknown>> = {
  enableServer: true,
  syncFrequency: min,
  fileCheckFrequency: 20 * s,
  httpCheckFrequency: 20 * s,
  address: '0.0.0.0',
  port: 10250,
  'authentication.anonymous.enabled': false,
  'authentication.webhook.enabled': true,
  'authentication.webhook.cacheTTL': 2 * min,
  'authorization.mode': 'Webhook',
  'authorization.webhook.cacheAuthorizedTTL': 5 * min,
  'authorization.webhook.cacheUnauthorizedTTL': 30 * s,
  registryPullQPS: 5,
  registryBurst: 10,
  eventRecordQPS: 50,
  eventBurst: 100,
  enableDebuggingHandlers: true,
  healthzPort: 10248,
  healthzBindAddress: '127.0.0.1',
  oomScoreAdj: -999,
  streamingConnectionIdleTimeout: 240 * min,
  nodeStatusReportFrequency: 5 * min,
  nodeStatusUpdateFrequency: 10 * s,
  nodeLeaseDurationSeconds: 40,
  imageMinimumGCAge: 2 * min,
  imageMaximumGCAge: 0,
  imageGCHighThresholdPercent: 85,
  imageGCLowThresholdPercent: 80,
  volumeStatsAggPeriod: min,
  cgroupsPerQOS: true,
  cgroupDriver: 'cgroupfs',
  cpuManagerPolicy: 'none',
  cpuManagerReconcilePeriod: 10 * s,
  memoryManagerPolicy: 'None',
  topologyManagerPolicy: 'none',
  topologyManagerScope: 'container',
  runtimeRequestTimeout: 2 * min,
  hairpinMode: 'promiscuous-bridge',
  maxPods: 110,
  podPidsLimit: -1,
  resolvConf: '/etc/resolv.conf',
  cpuCFSQuota: true,
  cpuCFSQuotaPeriod: 100,
  nodeStatusMaxImages: 50,
  maxOpenFiles: 1000000,
  contentType: 'application/vnd.kubernetes.protobuf',
  kubeAPIQPS: 50,
  kubeAPIBurst: 100,
  serializeImagePulls: true,
  evictionHard: {
    'memory.available': '100Mi',
    'nodefs.available': '10%',
    'nodefs.inodesFree': '5%',
    'imagefs.available': '15%',
    'imagefs.inodesFree': '5%',
  },
  evictionPressureTransitionPeriod: 5 * min,
  mergeDefaultEvictionSettings: false,
  enableControllerAttachDetach: true,
  makeIPTablesUtilChains: true,
  iptablesMasqueradeBit: 14,
  iptablesDropBit: 15,
  failSwapOn: true,
  containerLogMaxSize: '10Mi',
  containerLogMaxFiles: 5,
  containerLogMaxWorkers: 1,
  containerLogMonitorInterval: 10 * s,
  configMapAndSecretChangeDetectionStrategy: 'Watch',
  enforceNodeAllocatable: ['pods'],
  volumePluginDir: '/usr/libexec/kubernetes/kubelet-plugins/volume/exec/',
  'logging.format': 'text',
  'logging.verbosity': 0,
  'logging.options.text.splitStream': false,
  'logging.options.json.splitStream': false,
  enableSystemLogHandler: true,
  enableProfilingHandler: true,
  enableDebugFlagsHandler: true,
  seccompDefault: false,
  failCgroupV1: true,
  memoryReservationPolicy: 'None',
  registerNode: true,
  localStorageCapacityIsolation: true,
  containerRuntimeEndpoint: 'unix:///run/containerd/containerd.sock',
  podLogsDir: '/var/log/pods',
  'crashLoopBackOff.maxContainerRestartPeriod': 5 * min,
  imagePullCredentialsVerificationPolicy: 'NeverVerifyPreloadedImages',
  // Plain Go zero values.
  rotateCertificates: false,
  serverTLSBootstrap: false,
  enableContentionProfiling: false,
  runOnce: false,
  protectKernelDefaults: false,
  kernelMemcgNotification: false,
  shutdownGracePeriod: 0,
  shutdownGracePeriodCriticalPods: 0,
};

/** What `kubeadm init` leaves in /var/lib/kubelet/config.yaml: unset fields are written out as zeros. */
export const kubeadmFile = `apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous:
    enabled: false
  webhook:
    cacheTTL: 0s
    enabled: true
  x509:
    clientCAFile: /etc/kubernetes/pki/ca.crt
authorization:
  mode: Webhook
  webhook:
    cacheAuthorizedTTL: 0s
    cacheUnauthorizedTTL: 0s
cgroupDriver: systemd
clusterDNS:
- 10.96.0.10
clusterDomain: cluster.local
containerRuntimeEndpoint: ""
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
kind: KubeletConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
resolvConf: /run/systemd/resolve/resolv.conf
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
`;
