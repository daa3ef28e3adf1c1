/** Whether the node can run a pod at all: kubelet's admission (pkg/kubelet/lifecycle/predicate.go). Pure. */
import type { Pod } from '../../apiserver/types.ts';
import { isHostNetwork } from './pod.ts';
import { milliOf, podRequestMilli } from './qos.ts';
import { portMappings } from './sandbox_config.ts';

export interface NodeFacts {
  readonly name: string;
  /** Empty while they are not known: then they are not asked about. */
  readonly labels: Readonly<Record<string, string>>;
  /** Quantities by resource: `cpu`, `memory`, `pods`, … */
  readonly allocatable: Readonly<Record<string, string | number>>;
}

export interface Refusal {
  readonly reason: string;
  readonly message: string;
}

/** Why `pod` cannot run beside `others` (the pods that hold resources), or undefined. */
export function refusalOf(pod: Pod, others: readonly Pod[], node: NodeFacts): Refusal | undefined {
  return unsupported(pod) ?? resources(pod, others, node) ?? hostPorts(pod, others) ?? affinity(pod, node);
}

function unsupported(pod: Pod): Refusal | undefined {
  const refuse = (what: string) => ({
    reason: 'PodFeatureUnsupported',
    message: `this node does not support ${what}`,
  });
  if ((pod.spec?.os?.name ?? 'linux') !== 'linux')
    return { reason: 'PodOSNotSupported', message: `pods for ${pod.spec?.os?.name} do not run on Linux` };
  if ((pod.spec?.resourceClaims?.length ?? 0) > 0)
    return refuse('resourceClaims (dynamic resource allocation)');
  return undefined;
}

function resources(pod: Pod, others: readonly Pod[], node: NodeFacts): Refusal | undefined {
  const short = (resource: string, requested: number, used: number, capacity: number) => ({
    reason: `OutOf${resource}`,
    message: `Node didn't have enough resource: ${resource}, requested: ${requested}, used: ${used}, capacity: ${capacity}`,
  });
  const podsAllowed = node.allocatable['pods'];
  if (podsAllowed !== undefined && others.length + 1 > Number(podsAllowed))
    return short('pods', 1, others.length, Number(podsAllowed));
  const named = [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? [])].flatMap((container) =>
    Object.keys({ ...container.resources?.limits, ...container.resources?.requests }),
  );
  for (const resource of new Set(['cpu', 'memory', 'ephemeral-storage', ...named])) {
    const requested = podRequestMilli(pod, resource);
    const extended = !['cpu', 'memory', 'ephemeral-storage'].includes(resource);
    if (requested === 0 || (node.allocatable[resource] === undefined && !extended)) continue;
    const capacity = milliOf(node.allocatable[resource]);
    const used = others.reduce((sum, other) => sum + podRequestMilli(other, resource), 0);
    if (requested + used <= capacity) continue;
    const unit = resource === 'cpu' ? 1 : 1000;
    return short(resource, requested / unit, used / unit, capacity / unit);
  }
  return undefined;
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
    : {
        reason: 'NodePorts',
        message: `Predicate NodePorts failed: node port ${clash.port}/${clash.protocol} is taken by another pod`,
      };
}

interface Requirement {
  readonly key: string;
  readonly operator: string;
  readonly values?: readonly string[];
}

/** One term of a node selector (core/v1 NodeSelectorRequirement). */
function matches(
  { key, operator, values = [] }: Requirement,
  facts: Readonly<Record<string, string>>,
): boolean {
  const value = facts[key];
  switch (operator) {
    case 'In':
      return value !== undefined && values.includes(value);
    case 'NotIn':
      return value === undefined || !values.includes(value);
    case 'Exists':
      return value !== undefined;
    case 'DoesNotExist':
      return value === undefined;
    case 'Gt':
      return value !== undefined && Number(value) > Number(values[0]);
    case 'Lt':
      return value !== undefined && Number(value) < Number(values[0]);
    default:
      return false;
  }
}

function affinity(pod: Pod, node: NodeFacts): Refusal | undefined {
  const refusal = {
    reason: 'NodeAffinity',
    message: "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
  };
  if (Object.keys(node.labels).length === 0) return undefined;
  const selector = Object.entries(pod.spec?.nodeSelector ?? {});
  if (selector.some(([key, value]) => node.labels[key] !== value)) return refusal;
  const required = pod.spec?.affinity?.nodeAffinity?.requiredDuringSchedulingIgnoredDuringExecution;
  if (required === undefined) return undefined;
  const fields = { 'metadata.name': node.name };
  const met = required.nodeSelectorTerms.some((term) => {
    const expressions = term.matchExpressions ?? [];
    const matchFields = term.matchFields ?? [];
    return (
      expressions.length + matchFields.length > 0 &&
      expressions.every((requirement) => matches(requirement, node.labels)) &&
      matchFields.every((requirement) => matches(requirement, fields))
    );
  });
  return met ? undefined : refusal;
}
