/**
 * What is to become of a mirror pod: the apiserver's image of a static pod, by which people and controllers see it
 * (pkg/kubelet/pod/mirror_client.go and Kubelet.tryReconcileMirrorPods). Pure.
 */
import type { Pod } from '../apiserver/types.ts';

export const mirrorAnnotation = 'kubernetes.io/config.mirror';
const hashAnnotation = 'kubernetes.io/config.hash';

export function isMirror(pod: Pod): boolean {
  return pod.metadata?.annotations?.[mirrorAnnotation] !== undefined;
}

const classes: Readonly<Record<string, number>> = {
  'system-node-critical': 2_000_001_000,
  'system-cluster-critical': 2_000_000_000,
};

/** The priority of a static pod: its own, or that of the class that it names where Kubernetes knows the class itself. */
export function criticality({ spec }: Pod): number {
  return spec?.priority ?? classes[spec?.priorityClassName ?? ''] ?? 0;
}

/** A static pod as far as mirrors go. */
export interface Holder {
  readonly pod: Pod;
  /** Its manifest has gone, and what runs of it is on its way out. */
  readonly leaving: boolean;
}

export type MirrorStep = 'create' | 'delete' | 'keep' | 'wait';

/**
 * The next step for the mirror of one name. `keep`: it is as it should be, statuses may be written to it. `wait`:
 * something else has to happen first. An old pod keeps its mirror until nothing of it runs any more, so that whoever
 * looks at the apiserver does not think its ports and files free (as kubelet's mirror_pod_grace_period_test wants).
 */
export function nextMirrorStep(view: {
  readonly holder: Holder | undefined;
  readonly mirror: Pod | undefined;
  /** The apiserver's list of pods has been read: what is not known does not exist. */
  readonly listed: boolean;
  /** All sources and the runtime have been read: a mirror that nobody holds is nobody's. */
  readonly settled: boolean;
}): MirrorStep {
  const { holder, mirror, listed, settled } = view;
  if (holder === undefined) return mirror === undefined ? 'keep' : settled ? 'delete' : 'wait';
  if (holder.leaving) return mirror === undefined ? 'keep' : 'wait';
  if (mirror === undefined) return listed ? 'create' : 'wait';
  // Also one that somebody deletes: nobody but the node ends the grace of a bound pod.
  if (mirror.metadata?.deletionTimestamp !== undefined || !isMirrorOf(mirror, holder.pod)) return 'delete';
  return 'keep';
}

export function isMirrorOf(mirror: Pod, pod: Pod): boolean {
  return mirror.metadata?.annotations?.[mirrorAnnotation] === hashOf(pod);
}

/** The object to create; the node as its owner is what the NodeRestriction admission asks for (KEP-1314). */
export function mirrorOf(pod: Pod, node: { readonly name: string; readonly uid: string }): Pod {
  const { uid: _, resourceVersion: __, ...metadata } = pod.metadata ?? {};
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      ...metadata,
      annotations: { ...metadata.annotations, [mirrorAnnotation]: hashOf(pod) },
      ownerReferences: [{ apiVersion: 'v1', kind: 'Node', name: node.name, uid: node.uid, controller: true }],
    },
    spec: pod.spec,
  };
}

function hashOf(pod: Pod): string {
  return pod.metadata?.annotations?.[hashAnnotation] ?? pod.metadata?.uid ?? '';
}
