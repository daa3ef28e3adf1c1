/**
 * Writes the status of pods to the apiserver, and deletes objects of pods that are gone. Per pod one write at a
 * time, the latest status wins, failures are retried with backoff; nobody waits for it but `finish`.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Clock } from '../../runtime/host/clock.ts';
import { describe } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { apiStatus } from '../apiserver/client.ts';
import type { ApiserverClient, Pod, PodCondition, PodStatus } from '../apiserver/types.ts';
import { namespaceOf, uidOf } from './spec/pod.ts';

export interface StatusWriterOptions {
  readonly client: ApiserverClient;
  readonly log: Logger;
  readonly clock: Clock;
  /** 0 to below 1. */
  readonly random: () => number;
  /** A status reached the apiserver. */
  readonly onWritten: (uid: string, status: PodStatus) => void;
}

export interface StatusWriter {
  /** The object as the apiserver has it: what others changed of ours is written again. */
  seen(pod: Pod): void;
  submit(pod: Pod, status: PodStatus): void;
  /** Writes `status`, then deletes the object for good. Resolves when it is gone; retries until then. */
  finish(pod: Pod, status: PodStatus): Promise<void>;
  /** Nothing is to be written for the pod any more. */
  forget(uid: string): void;
  close(): Promise<void>;
}

const firstRetryMs = 200;
const longestRetryMs = 30_000;

/** The fields of the status that are ours; conditions are compared by type. */
const owned = [
  'observedGeneration',
  'phase',
  'reason',
  'message',
  'hostIP',
  'hostIPs',
  'podIP',
  'podIPs',
  'startTime',
  'qosClass',
  'resources',
  'allocatedResources',
  'initContainerStatuses',
  'containerStatuses',
  'ephemeralContainerStatuses',
] as const;
/** Conditions of ours that go again. */
const passing: readonly string[] = ['PodResizePending', 'PodResizeInProgress'];
type Fields = Readonly<Record<string, unknown>>;

/** As it goes over the wire: without undefined fields. */
function plain<T>(value: T): T {
  return JSON.parse(JSON.stringify(value)) as T;
}

/**
 * The strategic merge patch of /status that makes `known` into `wanted`, or undefined where nothing differs.
 * Conditions merge by type, so those of others stay; addresses are replaced as a whole.
 */
export function statusPatch(uid: string, known: PodStatus, wanted: PodStatus): object | undefined {
  const before = plain(known) as Fields;
  const after = plain(wanted) as Fields;
  const status: Record<string, unknown> = {};
  for (const field of owned) {
    if (isDeepStrictEqual(before[field], after[field])) continue;
    if (after[field] === undefined) {
      // An address or list that is not known now is no reason to take back what was told.
      if (field === 'reason' || field === 'message') status[field] = null;
      continue;
    }
    const replace = field === 'podIPs' || field === 'hostIPs';
    status[field] = replace ? [...(after[field] as object[]), { $patch: 'replace' }] : after[field];
  }
  const conditions = (wanted.conditions ?? []).flatMap((condition) => {
    const old = known.conditions?.find(({ type }) => type === condition.type);
    return old !== undefined && sameCondition(old, condition) ? [] : [conditionPatch(old, condition)];
  });
  for (const { type } of known.conditions ?? []) {
    const over = passing.includes(type) && !wanted.conditions?.some((condition) => condition.type === type);
    if (over) conditions.push({ type, $patch: 'delete' });
  }
  if (conditions.length > 0) status['conditions'] = conditions;
  if (Object.keys(status).length === 0) return undefined;
  return { metadata: { uid }, status };
}

type Observed = PodCondition & { observedGeneration?: number };

function sameCondition(a: Observed, b: Observed): boolean {
  return (
    a.status === b.status &&
    (a.reason ?? '') === (b.reason ?? '') &&
    (a.message ?? '') === (b.message ?? '') &&
    a.observedGeneration === b.observedGeneration
  );
}

function conditionPatch(old: PodCondition | undefined, condition: PodCondition): object {
  const gone = (['reason', 'message'] as const).filter(
    (field) => old?.[field] !== undefined && condition[field] === undefined,
  );
  return { ...plain(condition), ...Object.fromEntries(gone.map((field) => [field, null])) };
}

/** `status` as we wrote it, where it is what our last write became. */
function asWritten(status: PodStatus, last: Entry['last']): PodStatus {
  if (last === undefined) return status;
  const { written, answered } = last as unknown as Record<'written' | 'answered', Fields>;
  const now = status as Fields;
  const same = owned.filter((field) => field in written && isDeepStrictEqual(now[field], answered[field]));
  return { ...status, ...Object.fromEntries(same.map((field) => [field, written[field]])) };
}

interface Entry {
  pod: Pod;
  wanted: PodStatus | undefined;
  /** What the apiserver has of ours, as far as is known. */
  known: PodStatus;
  knownVersion: number;
  /** Our last write and what the apiserver made of it: an older one drops fields that it does not know. */
  last: { readonly written: PodStatus; readonly answered: PodStatus } | undefined;
  failures: number;
  busy: boolean;
  cancelRetry: () => void;
  /** The object is to be deleted. */
  finishing: { resolve: () => void } | undefined;
  readonly controller: AbortController;
}

function versionOf(pod: Pod): number {
  const version = Number(pod.metadata?.resourceVersion);
  return Number.isSafeInteger(version) ? version : 0;
}

export function makeStatusWriter(options: StatusWriterOptions): StatusWriter {
  const { client, log, clock } = options;
  const entries = new Map<string, Entry>();
  const running = new Set<Promise<void>>();
  let closed = false;

  function entryOf(pod: Pod): Entry {
    const uid = uidOf(pod);
    let entry = entries.get(uid);
    if (entry === undefined) {
      entry = {
        pod,
        wanted: undefined,
        known: pod.status ?? {},
        knownVersion: versionOf(pod),
        last: undefined,
        failures: 0,
        busy: false,
        cancelRetry: () => {},
        finishing: undefined,
        controller: new AbortController(),
      };
      entries.set(uid, entry);
    }
    return entry;
  }

  function pump(uid: string, entry: Entry): void {
    if (entry.busy || closed || entries.get(uid) !== entry) return;
    entry.busy = true;
    const run = work(uid, entry).finally(() => {
      running.delete(run);
    });
    running.add(run);
  }

  async function work(uid: string, entry: Entry): Promise<void> {
    try {
      while (!closed && entries.get(uid) === entry) {
        absorb(entry);
        const { wanted } = entry;
        const patch = wanted === undefined ? undefined : statusPatch(uid, entry.known, wanted);
        if (patch !== undefined) await write(uid, entry, wanted!, patch);
        else if (entry.finishing !== undefined) await erase(uid, entry);
        else break;
        entry.failures = 0;
      }
    } catch (error) {
      entry.failures++;
      const delay = Math.min(longestRetryMs, firstRetryMs * 2 ** Math.min(entry.failures - 1, 10));
      if (entries.get(uid) === entry && !closed) {
        log.warn(
          { error: describe(error), pod: entry.pod.metadata?.name },
          'cannot write the status of a pod, trying again',
        );
        entry.cancelRetry();
        entry.cancelRetry = clock.after(delay * (0.5 + options.random() / 2), () => pump(uid, entry));
      }
    } finally {
      entry.busy = false;
    }
  }

  /** Takes over what the apiserver has, unless it is older than our last write. */
  function absorb(entry: Entry): void {
    if (versionOf(entry.pod) <= entry.knownVersion) return;
    entry.knownVersion = versionOf(entry.pod);
    entry.known = asWritten(entry.pod.status ?? {}, entry.last);
  }

  function pathOf({ metadata }: Pod, namespace: string): string {
    return `/api/v1/namespaces/${encodeURIComponent(namespace)}/pods/${encodeURIComponent(metadata?.name ?? '')}`;
  }

  async function write(uid: string, entry: Entry, wanted: PodStatus, patch: object): Promise<void> {
    const path = `${pathOf(entry.pod, namespaceOf(entry.pod))}/status`;
    try {
      const answer = await client.patch<Pod>(path, 'strategic', patch, { signal: entry.controller.signal });
      entry.knownVersion = Math.max(entry.knownVersion, versionOf(answer));
      entry.last = answer?.status === undefined ? undefined : { written: wanted, answered: answer.status };
    } catch (error) {
      const code = apiStatus(error);
      // Gone, or another pod of the same name: there is nothing to write to. Invalid: writing it again is no use.
      const settled = code === 404 || code === 422 || (code === 409 && /uid/i.test(describe(error)));
      if (!settled) throw error;
      if (code === 422)
        log.error(
          { error: describe(error), pod: entry.pod.metadata?.name },
          'the apiserver refuses the status of a pod',
        );
      entry.known = wanted;
      return;
    }
    entry.known = wanted;
    options.onWritten(uid, wanted);
  }

  async function erase(uid: string, entry: Entry): Promise<void> {
    const body = {
      apiVersion: 'v1',
      kind: 'DeleteOptions',
      gracePeriodSeconds: 0,
      preconditions: { uid },
    };
    try {
      await client.delete(pathOf(entry.pod, namespaceOf(entry.pod)), body, {
        signal: entry.controller.signal,
      });
    } catch (error) {
      const code = apiStatus(error);
      if (code !== 404 && code !== 409) throw error;
    }
    entries.delete(uid);
    entry.finishing?.resolve();
  }

  return {
    seen(pod) {
      const entry = entries.get(uidOf(pod));
      if (entry === undefined) return;
      entry.pod = pod;
      if (entry.failures === 0) pump(uidOf(pod), entry);
    },
    submit(pod, status) {
      const entry = entryOf(pod);
      entry.pod = pod;
      entry.wanted = status;
      // A retry that waits takes the newest along.
      if (entry.failures === 0) pump(uidOf(pod), entry);
    },
    finish(pod, status) {
      const entry = entryOf(pod);
      entry.wanted = status;
      return new Promise((resolve) => {
        entry.finishing = { resolve };
        if (entry.failures === 0) pump(uidOf(pod), entry);
      });
    },
    forget(uid) {
      const entry = entries.get(uid);
      if (entry === undefined) return;
      entries.delete(uid);
      entry.cancelRetry();
      entry.controller.abort();
      entry.finishing?.resolve();
    },
    async close() {
      closed = true;
      for (const entry of entries.values()) {
        entry.cancelRetry();
        entry.controller.abort();
      }
      await Promise.all(running);
    },
  };
}
