/** Parts of the configuration in the words of the rooms that they are for. Pure. */
import { join } from 'node:path';
import type { VerificationPolicy } from '../images/verification.ts';
import type { PodsConfig } from '../pods/manager.ts';
import type { AgentConfig } from './load.ts';

/** The part of the configuration that is about pulling images. */
export function accessConfig(config: AgentConfig) {
  const { kubeletDir, pullAlwaysFallback, ...own } = config.keelson;
  const { imageCredentialProviderConfig: file, imageCredentialProviderBinDir: binDir } = own;
  return {
    kubeletDir,
    verification: config.imagePullCredentialsVerificationPolicy as VerificationPolicy,
    allowlist: config.preloadedImagesVerificationAllowlist,
    qps: config.registryPullQPS,
    burst: config.registryBurst,
    parallelPulls: config.serializeImagePulls ? 1 : config.maxParallelImagePulls,
    pullAlwaysFallback,
    providers: file === undefined || binDir === undefined ? undefined : { config: file, binDir },
  };
}

/** The part of the configuration that is about pods, in the words of their room. */
export function podsConfig(config: AgentConfig): PodsConfig {
  const { keelson } = config;
  return {
    kubeletDir: keelson.kubeletDir,
    podLogsDir: config.podLogsDir,
    containerLogsDir: keelson.containerLogsDir,
    clusterDns: config.clusterDNS ?? [],
    clusterDomain: config.clusterDomain ?? '',
    resolvConf: config.resolvConf,
    cgroup: {
      driver: config.cgroupDriver,
      root: config.cgroupRoot ?? '/',
      cpuCfsQuota: config.cpuCFSQuota,
      cpuCfsPeriodUs: config.cpuCFSQuotaPeriod * 1000,
      podPidsLimit: config.podPidsLimit > 0 ? config.podPidsLimit : undefined,
    },
    security: {
      seccompRoot: join(keelson.kubeletDir, 'seccomp'),
      seccompDefault: config.seccompDefault,
    },
    defaultSysctls: config.defaultPodSysctls,
    maxContainerRestartPeriodMs: config.crashLoopBackOff.maxContainerRestartPeriod,
    dead: {
      perContainer: keelson.maximumDeadContainersPerContainer,
      minAgeMs: keelson.minimumContainerTTLDuration,
    },
  };
}
