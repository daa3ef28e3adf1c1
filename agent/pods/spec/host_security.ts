/** What the host and its runtime can do, and the pods that want more (lifecycle/predicate.go, handlers.go). Pure. */
import type { Pod } from '../../apiserver/types.ts';
import { allContainers, type ContainerExtras, everyContainer, isHostNetwork } from './pod.ts';
import type { SysctlAllowlist } from './sysctls.ts';

export interface HostSecurity {
  readonly sysctls: SysctlAllowlist;
  /** The kernel has AppArmor switched on. */
  readonly appArmor: boolean;
  /** The runtime acts on the policy of supplemental groups. */
  readonly supplementalGroupsPolicy: boolean;
  /** What the node declares (`status.declaredFeatures`). */
  readonly declaredFeatures: readonly string[];
}

interface Refused {
  readonly reason: string;
  readonly message: string;
}

/** A runtime that cannot would give the container groups of the image that it must not have. */
export function groupsPolicyRefusal(pod: Pod, host: HostSecurity): Refused | undefined {
  const { supplementalGroupsPolicy: policy } = (pod.spec?.securityContext ?? {}) as {
    supplementalGroupsPolicy?: string;
  };
  return policy === 'Strict' && !host.supplementalGroupsPolicy
    ? {
        reason: 'SupplementalGroupsPolicyNotSupported',
        message: 'SupplementalGroupsPolicy=Strict is not supported in this node',
      }
    : undefined;
}

/** The declared features that a pod depends on, sorted (InferForScheduling of each, KEP-5328). */
export function neededFeatures(pod: Pod): readonly string[] {
  const needed: string[] = [];
  const restartsAll = allContainers(pod).some((container) =>
    (container as ContainerExtras).restartPolicyRules?.some(
      ({ action }) => action === 'RestartAllContainers',
    ),
  );
  if (restartsAll) needed.push('RestartAllContainersOnContainerExits');
  if (isHostNetwork(pod) && (pod.spec as { hostUsers?: boolean } | undefined)?.hostUsers === false)
    needed.push('UserNamespacesHostNetworkSupport');
  const hasOptions = everyContainer(pod).some(({ volumeMounts }) =>
    volumeMounts?.some(
      (mount) => ((mount as { bindMountOptions?: readonly string[] }).bindMountOptions ?? []).length > 0,
    ),
  );
  if (hasOptions) needed.push('VolumeBindMountOptions');
  return needed;
}

export function featureRefusal(pod: Pod, { declaredFeatures }: HostSecurity): Refused | undefined {
  const missing = neededFeatures(pod).filter((name) => !declaredFeatures.includes(name));
  return missing.length === 0
    ? undefined
    : {
        reason: 'PodFeatureUnsupported',
        message: `Pod requires node features that are not available: ${missing.join(', ')}`,
      };
}
