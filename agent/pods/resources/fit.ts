/** What keeps a pod off this node, all of it, in kubelet's words (lifecycle/predicate.go, scheduler.AdmissionCheck). Pure. */
import type { Pod } from '../../apiserver/types.ts';
import type { NodeFacts, Refusal } from '../spec/admission.ts';
import { milliOf, podRequestMilli } from '../spec/qos.ts';

/** A resource of which too little is free; amounts in the unit of messages (millicores, bytes, pieces). */
export interface Shortage {
  readonly resource: string;
  readonly requested: number;
  readonly used: number;
  readonly capacity: number;
}

export interface Taint {
  readonly key: string;
  readonly value?: string;
  readonly effect: string;
}

const ordinary = ['cpu', 'memory', 'ephemeral-storage'];

/** Millicores of cpu, whole units of everything else: what messages and preemption count in. */
export function requestOf(pod: Pod, resource: string): number {
  if (resource === 'pods') return 1;
  const amount = podRequestMilli(pod, resource);
  return resource === 'cpu' ? amount : Math.ceil(amount / 1000);
}

function capacityOf(node: NodeFacts, resource: string): number {
  const amount = milliOf(node.allocatable[resource]);
  return resource === 'cpu' ? amount : Math.floor(amount / 1000);
}

/** Everything that is short for `pod` beside `others` (noderesources.Fits). */
export function shortages(pod: Pod, others: readonly Pod[], node: NodeFacts): Shortage[] {
  const found: Shortage[] = [];
  const allowed = node.allocatable['pods'];
  if (allowed !== undefined && others.length + 1 > Number(allowed))
    found.push({ resource: 'pods', requested: 1, used: others.length, capacity: Number(allowed) });
  for (const resource of new Set([...ordinary, ...named(pod)])) {
    const requested = requestOf(pod, resource);
    // An extended resource that the node does not know belongs to the cluster (removeMissingExtendedResources); an
    // ordinary one is not known yet.
    const asked = node.allocatable[resource] !== undefined || resource.startsWith('hugepages-');
    if (requested === 0 || !asked) continue;
    const capacity = capacityOf(node, resource);
    const used = others.reduce((sum, other) => sum + requestOf(other, resource), 0);
    if (requested + used > capacity) found.push({ resource, requested, used, capacity });
  }
  return found;
}

/** The resources that the pod names anywhere. */
function named(pod: Pod): string[] {
  const containers = [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? [])];
  const own = (pod.spec as { resources?: (typeof containers)[0]['resources'] } | undefined)?.resources;
  return [own, ...containers.map(({ resources }) => resources)].flatMap((needs) =>
    Object.keys({ ...needs?.limits, ...needs?.requests }),
  );
}

export function shortageRefusal({ resource, requested, used, capacity }: Shortage): Refusal {
  return {
    reason: `OutOf${resource}`,
    message: `Node didn't have enough resource: ${resource}, requested: ${requested}, used: ${used}, capacity: ${capacity}`,
  };
}

export function predicateRefusal(predicate: string, why: string): Refusal {
  return { reason: predicate, message: `Predicate ${predicate} failed: ${why}` };
}

/** Wrong operating system, by field or by label. */
export function operatingSystem(pod: Pod): Refusal | undefined {
  const label = pod.metadata?.labels?.['kubernetes.io/os'];
  if (label !== undefined && label !== 'linux')
    return {
      reason: 'PodOSSelectorNodeLabelDoesNotMatch',
      message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
    };
  if ((pod.spec?.os?.name ?? 'linux') !== 'linux')
    return {
      reason: 'PodOSNotSupported',
      message: "Failed to admit pod as the OS field doesn't match node OS",
    };
  return undefined;
}

export function nodeName(pod: Pod, node: NodeFacts): Refusal | undefined {
  const wanted = pod.spec?.nodeName;
  return !wanted || wanted === node.name
    ? undefined
    : predicateRefusal('NodeName', "node(s) didn't match the requested node name");
}

/** Only NoExecute taints count on the node itself, and not for static pods. */
export function taints(pod: Pod, found: readonly Taint[] | undefined): Refusal | undefined {
  const untolerated = (found ?? []).some((taint) => taint.effect === 'NoExecute' && !tolerates(pod, taint));
  return untolerated
    ? predicateRefusal('TaintToleration', "node(s) had taints that the pod didn't tolerate")
    : undefined;
}

/** core/v1 Toleration.ToleratesTaint; `Lt` and `Gt` compare whole numbers. */
function tolerates(pod: Pod, taint: Taint): boolean {
  return (pod.spec?.tolerations ?? []).some(({ key, operator, value, effect }) => {
    if (effect && effect !== taint.effect) return false;
    if (key && key !== taint.key) return false;
    const kind = operator || 'Equal';
    if (kind === 'Exists') return true;
    if (!key) return false;
    if (kind === 'Equal') return (value ?? '') === (taint.value ?? '');
    if (!/^-?\d+$/.test(value ?? '') || !/^-?\d+$/.test(taint.value ?? '')) return false;
    const [wanted, actual] = [BigInt(value!), BigInt(taint.value!)];
    return kind === 'Lt' ? actual < wanted : kind === 'Gt' && actual > wanted;
  });
}
