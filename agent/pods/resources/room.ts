/** Whether the node has room for a pod, and who makes room for a critical one. */
import type { Logger } from '../../../runtime/host/log.ts';
import type { EventRecorder, Pod } from '../../apiserver/types.ts';
import type { Eviction } from '../plan/memory.ts';
import { judge, type NodeFacts, type Refusal, refusalOf } from '../spec/admission.ts';
import { formatPod, uidOf } from '../spec/pod.ts';
import { type Candidate, choosePreempted, isCritical, preempted } from './preemption.ts';

/** A pod that holds resources, as they were given. */
export interface Holder extends Candidate {
  evict(eviction: Omit<Eviction, 'since'>): void;
}

export interface Room {
  /** Why the node does not take the pod; `wait`: others were told to go for it. */
  refusal(pod: Pod, isStatic: boolean): Refusal | 'wait' | undefined;
  /** Others are still on their way out for this pod. */
  waits(uid: string): boolean;
  /** The pods for which all others have gone by now; each is named once. */
  freed(): string[];
  forget(uid: string): void;
  /** The pods that hold resources but for one. */
  others(uid: string): Pod[];
  node(): NodeFacts;
}

export function makeRoom(options: {
  readonly node: () => NodeFacts;
  readonly holders: () => readonly Holder[];
  readonly events: EventRecorder;
  readonly log: Logger;
}): Room {
  const { events, log, node } = options;
  /** Those that must go, by the pod that waits for it. */
  const leaving = new Map<string, readonly string[]>();

  function others(uid: string): Pod[] {
    return options
      .holders()
      .map(({ pod }) => pod)
      .filter((pod) => uidOf(pod) !== uid);
  }

  /** Ends lesser pods for a critical one, which comes when they have gone. */
  function preempt(critical: Candidate, short: Parameters<typeof choosePreempted>[2]): Refusal | 'wait' {
    const running = options.holders();
    const chosen = choosePreempted(critical, running, short);
    if ('unmet' in chosen)
      return {
        reason: 'UnexpectedAdmissionError',
        message: `Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: ${chosen.unmet}`,
      };
    leaving.set(uidOf(critical.pod), chosen.victims.map(uidOf));
    for (const { pod, evict } of running) {
      if (!chosen.victims.includes(pod)) continue;
      log.info({ pod: formatPod(pod), for: formatPod(critical.pod) }, 'preempting a pod for a critical one');
      const { reason, message } = preempted;
      events.event({ apiVersion: 'v1', kind: 'Pod', metadata: pod.metadata }, 'Warning', reason, message);
      evict(preempted);
    }
    return 'wait';
  }

  return {
    node,
    others,
    refusal(pod, isStatic) {
      const rest = others(uidOf(pod));
      const { short, other } = judge(pod, rest, node(), isStatic);
      if (short.length === 0 || !isCritical(pod, isStatic)) return refusalOf(pod, rest, node(), isStatic);
      return other ?? preempt({ pod, isStatic }, short);
    },
    waits: (uid) => leaving.has(uid),
    freed() {
      const holding = new Set(options.holders().map(({ pod }) => uidOf(pod)));
      const free = [...leaving].filter(([, victims]) => !victims.some((uid) => holding.has(uid)));
      for (const [uid] of free) leaving.delete(uid);
      return free.map(([uid]) => uid);
    },
    forget: (uid) => void leaving.delete(uid),
  };
}
