/**
 * Volumes that are given to a group in their own time: a volume with millions of files takes longer than one attempt to
 * set a pod up may. The walk goes on meanwhile, the next attempt finds it under way, and people are told of it.
 */
import type { Clock } from '../../../runtime/host/clock.ts';
import { abortError } from '../../../runtime/host/errors.ts';
import { abortable } from '../../apiserver/credentials.ts';
import type { Pod } from '../../apiserver/types.ts';
import { setOwnership } from './ownership.ts';

export interface Gift {
  readonly pod: Pod;
  /** What is walked. */
  readonly folder: string;
  /** The volume's folder of the pod, for people: all from the pod's uid on is shown. */
  readonly shown: string;
  readonly gid: number;
  readonly changePolicy?: string | undefined;
  readonly readOnly?: boolean;
  readonly signal: AbortSignal | undefined;
}

export interface Giving {
  /**
   * `setOwnership`, with kubelet's events where it takes longer. An abort ends the wait, not the walk, which the next
   * call for the same pod and folder joins. Throws ABORTED, else the error of the file system.
   */
  give(gift: Gift): Promise<void>;
  /** The pod is going: its walks end. Resolves when they hold nothing any more; throws ABORTED. */
  forget(podUid: string, signal?: AbortSignal): Promise<void>;
}

/** kubelet's firstEventReportDuration and progressReportDuration, in milliseconds. */
const firstMs = 30_000;
const nextMs = 60_000;
const reason = 'VolumePermissionChangeInProgress';
const what = 'giving a volume to its group';
const advice =
  'consider using OnRootMismatch - https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods';

export function makeGiving(options: {
  readonly clock: Clock;
  /** A warning event about a pod. */
  readonly warn: (pod: Pod, reason: string, message: string) => void;
}): Giving {
  const { clock, warn } = options;
  /** By pod uid, then by folder. */
  const running = new Map<string, Map<string, { readonly work: Promise<void>; stop(): void }>>();

  function start({ pod, folder, shown, gid, changePolicy, readOnly = false }: Gift) {
    const stopping = new AbortController();
    const uid = pod.metadata?.uid ?? '';
    const volume = shown.slice(Math.max(0, shown.indexOf(uid)));
    let files = 0;
    const tellAgain = () => {
      warn(pod, reason, `Setting volume ownership for ${volume}, processed ${files} files.`);
      cancel = clock.after(nextMs, tellAgain);
    };
    let cancel = clock.after(firstMs, () => {
      warn(pod, reason, `Setting volume ownership for ${volume} is taking longer than expected, ${advice}`);
      cancel = clock.after(nextMs, tellAgain);
    });
    const work = setOwnership(folder, gid, {
      changePolicy,
      readOnly,
      signal: stopping.signal,
      onEntry: () => {
        files++;
      },
    }).finally(() => {
      cancel();
      const own = running.get(uid);
      own?.delete(folder);
      if (own?.size === 0) running.delete(uid);
    });
    // Somebody waits, or nobody does any more: then the next call tells.
    work.catch(() => {});
    const walk = { work, stop: () => stopping.abort(new Error('the pod is going')) };
    running.set(uid, (running.get(uid) ?? new Map()).set(folder, walk));
    return walk;
  }

  return {
    give(gift) {
      const { signal, folder, pod } = gift;
      if (signal?.aborted) return Promise.reject(abortError(signal, what));
      const { work } = running.get(pod.metadata?.uid ?? '')?.get(folder) ?? start(gift);
      return abortable(work, signal, what);
    },
    async forget(podUid, signal) {
      const walks = [...(running.get(podUid)?.values() ?? [])];
      for (const { stop } of walks) stop();
      if (signal?.aborted) throw abortError(signal, what);
      await abortable(Promise.allSettled(walks.map(({ work }) => work)), signal, what);
    },
  };
}
