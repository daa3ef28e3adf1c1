/** Rules between the fields of a configuration that is right field by field. Pure. */
import { isIP } from 'node:net';
import { allowlistFault } from '../images/verification.ts';
import { sysctlPatternFault } from '../pods/spec/sysctls.ts';
import type { Findings } from './field.ts';
import type { ConfigValues } from './schema.ts';

/** Tells `findings` what does not fit together, after kubelet's ValidateKubeletConfiguration. */
export function checkRules(config: ConfigValues, findings: Findings): void {
  const must = (holds: boolean, path: readonly (string | number)[], message: string) => {
    if (!holds) findings.fault(path, message);
  };
  must(
    config.apiVersion === 'kubelet.config.k8s.io/v1beta1',
    ['apiVersion'],
    `expected kubelet.config.k8s.io/v1beta1, got ${config.apiVersion}`,
  );
  must(config.kind === 'KubeletConfiguration', ['kind'], `expected KubeletConfiguration, got ${config.kind}`);
  must(!config.runOnce, ['runOnce'], 'run-once mode does not exist any more');
  must(
    config.imageGCLowThresholdPercent < config.imageGCHighThresholdPercent,
    ['imageGCLowThresholdPercent'],
    `must be less than imageGCHighThresholdPercent (${config.imageGCHighThresholdPercent})`,
  );
  must(
    config.imageMaximumGCAge === 0 || config.imageMaximumGCAge > config.imageMinimumGCAge,
    ['imageMaximumGCAge'],
    'must be greater than imageMinimumGCAge',
  );
  must(
    !(config.serializeImagePulls && (config.maxParallelImagePulls ?? 1) > 1),
    ['maxParallelImagePulls'],
    'must not be greater than 1 while serializeImagePulls is true',
  );
  const allowlist = config.preloadedImagesVerificationAllowlist;
  must(
    allowlist.length === 0 ||
      config.imagePullCredentialsVerificationPolicy === 'NeverVerifyAllowlistedImages',
    ['preloadedImagesVerificationAllowlist'],
    'needs imagePullCredentialsVerificationPolicy NeverVerifyAllowlistedImages',
  );
  allowlist.forEach((pattern, index) => {
    const fault = allowlistFault(pattern);
    must(fault === undefined, ['preloadedImagesVerificationAllowlist', index], fault ?? '');
  });
  const { imageCredentialProviderConfig, imageCredentialProviderBinDir } = config.keelson;
  must(
    (imageCredentialProviderConfig === undefined) === (imageCredentialProviderBinDir === undefined),
    [
      'keelson',
      imageCredentialProviderConfig === undefined
        ? 'imageCredentialProviderConfig'
        : 'imageCredentialProviderBinDir',
    ],
    'imageCredentialProviderConfig and imageCredentialProviderBinDir belong together: set both or none',
  );
  must(
    config.shutdownGracePeriodCriticalPods <= config.shutdownGracePeriod,
    ['shutdownGracePeriodCriticalPods'],
    'must not be greater than shutdownGracePeriod',
  );
  const restart = config.crashLoopBackOff.maxContainerRestartPeriod;
  must(
    restart >= 1000 && restart <= 300_000,
    ['crashLoopBackOff', 'maxContainerRestartPeriod'],
    'must be from 1s to 300s',
  );
  const stall = config.keelson.downloadStallTimeout;
  must(stall >= 1000 && stall <= 600_000, ['keelson', 'downloadStallTimeout'], 'must be from 1s to 10m');
  must(
    config.cpuCFSQuotaPeriod >= 1 && config.cpuCFSQuotaPeriod <= 1000,
    ['cpuCFSQuotaPeriod'],
    'must be from 1ms to 1s',
  );
  must(
    (config.tlsCertFile === undefined) === (config.tlsPrivateKeyFile === undefined),
    [config.tlsCertFile === undefined ? 'tlsCertFile' : 'tlsPrivateKeyFile'],
    'tlsCertFile and tlsPrivateKeyFile belong together: set both or none',
  );
  must(isIP(config.address) !== 0, ['address'], `expected an IP address, got ${config.address}`);
  must(
    isIP(config.healthzBindAddress) !== 0,
    ['healthzBindAddress'],
    `expected an IP address, got ${config.healthzBindAddress}`,
  );
  config.clusterDNS.forEach((address, index) => {
    must(isIP(address) !== 0, ['clusterDNS', index], `expected an IP address, got ${address}`);
  });
  config.registerWithTaints.forEach((taint, index) => {
    must(taint.key !== '', ['registerWithTaints', index, 'key'], 'a taint needs a key');
    must(
      taint.timeAdded === undefined,
      ['registerWithTaints', index, 'timeAdded'],
      'must not be set: keelson sets it',
    );
  });
  config.allowedUnsafeSysctls.forEach((entry, index) => {
    const fault = sysctlPatternFault(entry);
    must(fault === undefined, ['allowedUnsafeSysctls', index], fault ?? '');
  });
  for (const name of Object.keys(config.defaultPodSysctls)) {
    const fault = name.includes('*') ? 'a default is of one sysctl, without *' : sysctlPatternFault(name);
    must(fault === undefined, ['defaultPodSysctls', name], fault ?? '');
  }
  const nodeIPs = config.keelson.nodeIP?.split(',') ?? [];
  must(
    nodeIPs.length <= 2 && nodeIPs.every((address) => isIP(address.trim()) !== 0),
    ['keelson', 'nodeIP'],
    'expected an IP address, or one of each family separated by a comma',
  );
}
