/** Whether the node can run a pod at all: kubelet's admission (pkg/kubelet/lifecycle/predicate.go). Pure. */

import type { Pod } from '../../apiserver/types.ts';
import { matchesNode } from '../../node/selector.ts';
import {
  nodeName,
  operatingSystem,
  predicateRefusal,
  type Shortage,
  shortageRefusal,
  shortages,
  type Taint,
  taints,
} from '../resources/fit.ts';
import { appArmorRefusal } from './apparmor.ts';
import { featureRefusal, groupsPolicyRefusal, type HostSecurity } from './host_security.ts';
import { isHostNetwork } from './pod.ts';
import { portMappings } from './sandbox_config.ts';
import { sysctlRefusal } from './sysctls.ts';

export interface NodeFacts {
  readonly name: string;
  /** Empty while they are not known: then they are not asked about. */
  readonly labels: Readonly<Record<string, string>>;
  /** Quantities by resource: `cpu`, `memory`, `pods`, … */
  readonly allocatable: Readonly<Record<string, string | number>>;
  /** Absent while they are not known. */
  readonly taints?: readonly Taint[];
  /** What pods may do and have on this host. Absent: not asked about. */
  readonly security?: HostSecurity;
}

export interface Refusal {
  readonly reason: string;
  readonly message: string;
}

/** What stands against a pod: resources that are short, which preemption can free, and the rest, which it cannot. */
export interface Findings {
  readonly short: readonly Shortage[];
  readonly other: Refusal | undefined;
}

/** All that is against `pod` beside `others` (the pods that hold resources). */
export function judge(pod: Pod, others: readonly Pod[], node: NodeFacts, isStatic = false): Findings {
  const { security } = node;
  const early =
    (security && sysctlRefusal(pod, security.sysctls)) ??
    unsupported(pod) ??
    (security && groupsPolicyRefusal(pod, security));
  if (early !== undefined) return { short: [], other: early };
  return {
    short: shortages(pod, others, node),
    other:
      affinity(pod, node) ??
      nodeName(pod, node) ??
      hostPorts(pod, others) ??
      (isStatic ? undefined : taints(pod, node.taints)) ??
      (security && (appArmorRefusal(pod, security.appArmor) ?? featureRefusal(pod, security))),
  };
}

/** Why `pod` cannot run beside `others`, or undefined. */
export function refusalOf(
  pod: Pod,
  others: readonly Pod[],
  node: NodeFacts,
  isStatic = false,
): Refusal | undefined {
  const { short, other } = judge(pod, others, node, isStatic);
  return short[0] === undefined ? other : shortageRefusal(short[0]);
}

function unsupported(pod: Pod): Refusal | undefined {
  const refuse = (what: string) => ({
    reason: 'PodFeatureUnsupported',
    message: `this node does not support ${what}`,
  });
  if ((pod.spec?.resourceClaims?.length ?? 0) > 0)
    return refuse('resourceClaims (dynamic resource allocation)');
  return operatingSystem(pod);
}

function hostPortsOf(pod: Pod): { protocol: string; port: number; ip: string }[] {
  return portMappings(pod)
    .map(({ protocol, hostPort, containerPort, hostIp }) => ({
      protocol,
      port: hostPort ?? (isHostNetwork(pod) ? containerPort : 0),
      ip: hostIp || '0.0.0.0',
    }))
    .filter(({ port }) => port !== 0);
}

function hostPorts(pod: Pod, others: readonly Pod[]): Refusal | undefined {
  const wanted = hostPortsOf(pod);
  if (wanted.length === 0) return undefined;
  const any = (ip: string) => ip === '0.0.0.0' || ip === '::';
  const held = others.flatMap(hostPortsOf);
  const clash = wanted.find((want) =>
    held.some(
      (other) =>
        other.port === want.port &&
        other.protocol === want.protocol &&
        (any(other.ip) || any(want.ip) || other.ip === want.ip),
    ),
  );
  return clash === undefined
    ? undefined
    : predicateRefusal('NodePorts', "node(s) didn't have free ports for the requested pod ports");
}

function affinity(pod: Pod, node: NodeFacts): Refusal | undefined {
  const refusal = predicateRefusal('NodeAffinity', "node(s) didn't match Pod's node affinity/selector");
  if (Object.keys(node.labels).length === 0) return undefined;
  const selector = Object.entries(pod.spec?.nodeSelector ?? {});
  if (selector.some(([key, value]) => node.labels[key] !== value)) return refusal;
  const required = pod.spec?.affinity?.nodeAffinity?.requiredDuringSchedulingIgnoredDuringExecution;
  if (required === undefined) return undefined;
  const met = matchesNode(required.nodeSelectorTerms, node.labels, { 'metadata.name': node.name });
  return met ? undefined : refusal;
}
