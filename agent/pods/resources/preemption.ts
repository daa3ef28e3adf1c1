/**
 * Which pods must go so that a critical one can run (pkg/kubelet/preemption): the fewest, of the lowest QoS class,
 * with the smallest requests. Pure.
 */
import type { Pod } from '../../apiserver/types.ts';
import { type QosClass, qosClassOf } from '../spec/qos.ts';
import { requestOf, type Shortage } from './fit.ts';

/** scheduling.SystemCriticalPriority: of system-cluster-critical; system-node-critical is above it. */
const criticalPriority = 2_000_000_000;

/** Static pods always are. */
export function isCritical(pod: Pod, isStatic: boolean): boolean {
  return isStatic || (pod.spec?.priority ?? 0) >= criticalPriority;
}

export interface Candidate {
  readonly pod: Pod;
  readonly isStatic: boolean;
}

/** Whether `preemptor` may push `other` out. */
export function preemptable(preemptor: Candidate, other: Candidate): boolean {
  if (isCritical(preemptor.pod, preemptor.isStatic) && !isCritical(other.pod, other.isStatic)) return true;
  const [ours, theirs] = [preemptor.pod.spec?.priority, other.pod.spec?.priority];
  return ours !== undefined && theirs !== undefined && ours > theirs;
}

interface Need {
  readonly resource: string;
  readonly amount: number;
}

/** The pods to evict, or what could not be freed by evicting all. */
export function choosePreempted(
  preemptor: Candidate,
  running: readonly Candidate[],
  short: readonly Shortage[],
): { readonly victims: readonly Pod[] } | { readonly unmet: string } {
  const needs = short.map(({ resource, requested, used, capacity }) => ({
    resource,
    amount: requested - (capacity - used),
  }));
  const may = running.filter((other) => preemptable(preemptor, other)).map(({ pod }) => pod);
  const of = (qos: QosClass) => may.filter((pod) => qosClassOf(pod) === qos);
  const [best, burstable, guaranteed] = [of('BestEffort'), of('Burstable'), of('Guaranteed')];
  const unmet = subtract(needs, may);
  if (unmet.length > 0)
    return { unmet: `no set of running pods found to reclaim resources: ${format(unmet)}` };
  // Of each class only what the lower ones, were they all gone, would still leave open.
  const guaranteedGone = nearest(guaranteed, subtract(needs, [...best, ...burstable]));
  const burstableGone = nearest(burstable, subtract(needs, [...best, ...guaranteedGone]));
  const bestGone = nearest(best, subtract(needs, [...burstableGone, ...guaranteedGone]));
  return { victims: [...bestGone, ...burstableGone, ...guaranteedGone] };
}

/** What is still needed once `pods` are gone. */
function subtract(needs: readonly Need[], pods: readonly Pod[]): Need[] {
  return needs
    .map(({ resource, amount }) => ({
      resource,
      amount: pods.reduce((left, pod) => left - requestOf(pod, resource), amount),
    }))
    .filter(({ amount }) => amount > 0);
}

/** Again and again the pod that leaves least open; of equal ones the smaller. */
function nearest(pods: readonly Pod[], wanted: readonly Need[]): Pod[] {
  const left = [...pods];
  const chosen: Pod[] = [];
  for (let needs = wanted; needs.length > 0 && left.length > 0; ) {
    let best = left[0]!;
    let shortest = Number.POSITIVE_INFINITY;
    for (const pod of left) {
      const far = distance(needs, pod);
      if (far < shortest || (far === shortest && isSmaller(pod, best))) {
        shortest = far;
        best = pod;
      }
    }
    left.splice(left.indexOf(best), 1);
    chosen.push(best);
    needs = subtract(needs, [best]);
  }
  return chosen;
}

/** How far `pod` is from meeting the needs: each counts by the part that stays open, squared. */
function distance(needs: readonly Need[], pod: Pod): number {
  return needs.reduce((sum, { resource, amount }) => {
    const open = amount - requestOf(pod, resource);
    return open > 0 ? sum + (open / amount) ** 2 : sum;
  }, 0);
}

function isSmaller(one: Pod, other: Pod): boolean {
  for (const resource of ['memory', 'cpu']) {
    const difference = requestOf(one, resource) - requestOf(other, resource);
    if (difference !== 0) return difference < 0;
  }
  return true;
}

function format(needs: readonly Need[]): string {
  return `[${needs.map(({ resource, amount }) => `(res: ${resource}, q: ${amount}), `).join('')}]`;
}

export const preempted = {
  reason: 'Preempting',
  message: 'Preempted in order to admit critical pod',
  condition: 'Pod was preempted by Kubelet to accommodate a critical pod.',
} as const;
