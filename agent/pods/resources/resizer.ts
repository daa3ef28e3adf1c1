/**
 * Decides which wanted resizes the node gives (kubelet's allocation manager): now, later when there is room (Deferred),
 * or never (Infeasible). What was given is recorded before anything is done for it.
 */
import { describe } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import type { EventRecorder, Pod } from '../../apiserver/types.ts';
import type { Refusal } from '../spec/admission.ts';
import { formatPod, uidOf } from '../spec/pod.ts';
import {
  type Allocation,
  allocationFromStatus,
  allocationOf,
  inTurn,
  isAllocated,
  resizeMessage,
  withAllocation,
} from './allocation.ts';
import { readAllocation, writeAllocation } from './record.ts';
import { type ResizeChange, type ResizeState, stateFromStatus } from './resize_plan.ts';

export interface ResizerOptions {
  readonly kubeletDir: string;
  readonly events: EventRecorder;
  readonly log: Logger;
  /** Milliseconds of the wall clock. */
  readonly now: () => number;
  /** All sources have told what they have, so that it is known what is free. */
  readonly ready: () => boolean;
  /** Why the node has no room for the pod as it is wanted. */
  readonly refusal: (wanted: Pod) => Refusal | undefined;
  /** Why the pod can never be resized so. */
  readonly infeasible?: (wanted: Pod, given: Pod) => string | undefined;
  /** The pod is to be run so. */
  readonly apply: (uid: string, pod: Pod, change: ResizeChange) => void;
}

export interface Resizer {
  /** A pod comes to the node or is taken over: as it is to be run, and what is open of its resize. */
  take(pod: Pod): { readonly pod: Pod; readonly resize?: ResizeState };
  /** The object changed: `apply` is called for it. */
  update(pod: Pod): void;
  /** Something may have become free. */
  retry(): void;
  forget(uid: string): void;
}

interface Entry {
  wanted: Pod;
  given: Allocation;
  pending: ResizeState['pending'];
  /** `pending` is this agent's judgement, not that of the one before. */
  judged: boolean;
  since: number | undefined;
}

export function makeResizer(options: ResizerOptions): Resizer {
  const { events, log, kubeletDir } = options;
  const entries = new Map<string, Entry>();

  function tell(pod: Pod, type: 'Normal' | 'Warning', reason: string, message: string): void {
    events.event({ apiVersion: 'v1', kind: 'Pod', metadata: pod.metadata }, type, reason, message);
  }

  function generationOf(pod: Pod): number {
    return pod.metadata?.generation ?? 0;
  }

  /** Gives the pod what it wants, or says why not. */
  function evaluate(uid: string, entry: Entry): void {
    const { wanted } = entry;
    const given = withAllocation(wanted, entry.given);
    const never = options.infeasible?.(wanted, given);
    const refused = never === undefined ? options.refusal(wanted) : undefined;
    if (never !== undefined || refused !== undefined) {
      const reason = never === undefined ? ('Deferred' as const) : ('Infeasible' as const);
      const message = never ?? refused!.message;
      const generation = generationOf(wanted);
      const before = entry.pending;
      entry.pending = { reason, message, generation };
      entry.judged = true;
      entry.since ??= options.now();
      if (before?.reason !== reason || before.generation !== generation)
        tell(
          wanted,
          'Warning',
          `Resize${reason}`,
          resizeMessage(`Pod resize ${reason}`, wanted, generation, message),
        );
      options.apply(uid, given, { pending: entry.pending });
      return;
    }
    const allocation = allocationOf(wanted);
    const generation = generationOf(wanted);
    try {
      writeAllocation(kubeletDir, uid, { allocation, generation, completed: false });
    } catch (error) {
      log.error(
        { error: describe(error), pod: formatPod(wanted) },
        'cannot record a resize, trying again later',
      );
      options.apply(uid, given, { pending: entry.pending });
      return;
    }
    entry.given = allocation;
    entry.pending = undefined;
    entry.since = undefined;
    tell(wanted, 'Normal', 'ResizeStarted', resizeMessage('Pod resize started', wanted, generation));
    options.apply(uid, wanted, { pending: undefined, begun: generation });
  }

  function retry(): void {
    if (!options.ready()) return;
    const open = [...entries.values()].filter(
      ({ wanted, given, pending, judged }) =>
        !isAllocated(wanted, given) &&
        !(judged && pending?.reason === 'Infeasible' && pending.generation === generationOf(wanted)),
    );
    for (const { pod } of inTurn(open.map((one) => ({ ...one, pod: one.wanted })))) {
      const entry = entries.get(uidOf(pod));
      if (entry !== undefined) evaluate(uidOf(pod), entry);
    }
  }

  return {
    take(pod) {
      const uid = uidOf(pod);
      const known = pod.status?.startTime !== undefined;
      const record = known ? readAllocation(kubeletDir, uid) : undefined;
      const given = record?.allocation ?? (known ? allocationFromStatus(pod, pod.status) : allocationOf(pod));
      const told = known ? stateFromStatus(pod.status) : {};
      // Still told until it is judged anew: it shall not flicker.
      const pending = isAllocated(pod, given) ? undefined : told.pending;
      entries.set(uid, { wanted: pod, given, pending, judged: false, since: undefined });
      const recorded = record && (record.completed ? undefined : { generation: record.generation });
      const progress = record === undefined ? told.progress : recorded;
      const resize: ResizeState = {
        ...(progress === undefined ? {} : { progress }),
        ...(pending === undefined ? {} : { pending }),
      };
      return {
        pod: withAllocation(pod, given),
        ...(progress === undefined && pending === undefined ? {} : { resize }),
      };
    },
    update(pod) {
      const uid = uidOf(pod);
      const entry = entries.get(uid);
      if (entry === undefined) return;
      entry.wanted = pod;
      const given = withAllocation(pod, entry.given);
      if (given === pod) {
        entry.pending = undefined;
        entry.since = undefined;
      }
      options.apply(uid, given, { pending: entry.pending });
      if (given !== pod && pod.metadata?.deletionTimestamp === undefined) retry();
    },
    retry,
    forget: (uid) => void entries.delete(uid),
  };
}
