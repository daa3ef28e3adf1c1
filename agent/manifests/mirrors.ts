/** Keeps the mirror pods at the apiserver as mirror_plan.ts says. Nobody waits for it: static pods run without. */
import type { Clock } from '../../runtime/host/clock.ts';
import { describe, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { apiStatus } from '../apiserver/answers.ts';
import { backoffDelay } from '../apiserver/backoff.ts';
import type { ApiserverClient, Node, Pod, PodStatus } from '../apiserver/types.ts';
import { type Holder, isMirrorOf, mirrorOf, nextMirrorStep } from './mirror_plan.ts';

export interface MirrorsOptions {
  readonly client: ApiserverClient;
  readonly nodeName: string;
  /** A status of a static pod is to be written to its mirror; the latest wins. */
  readonly onStatus: (mirror: Pod, status: PodStatus) => void;
  /** Nothing is to be written to the mirror of this uid any more. */
  readonly onForget: (uid: string) => void;
  readonly clock: Clock;
  readonly log: Logger;
  /** 0 to below 1. */
  readonly random: () => number;
}

export interface Mirrors {
  /** A static pod runs or is to run, or remains of one are on their way out. */
  hold(pod: Pod, leaving?: boolean): void;
  /** The manifest of the static pod has gone. */
  leave(pod: Pod): void;
  /** Nothing of the static pod is left. */
  release(pod: Pod): void;
  status(pod: Pod, status: PodStatus): void;
  /** A mirror pod as the apiserver has it. */
  seen(mirror: Pod): void;
  /** The pod of this uid has gone from the apiserver. */
  gone(uid: string): void;
  /** All mirror pods of this node. */
  replaceAll(mirrors: readonly Pod[]): void;
  /** From now on a mirror that no static pod holds is deleted. */
  settled(): void;
  /** The uid of the static pod behind a mirror pod's; any other uid as it is. */
  staticUid(uid: string): string;
  close(): Promise<void>;
}

const retry = { baseMs: 250, maxMs: 10_000 };

interface Entry {
  holder: Holder | undefined;
  mirror: Pod | undefined;
  status: PodStatus | undefined;
  busy: boolean;
  failures: number;
  /** A failed step waits for its time. */
  waiting: boolean;
  cancelRetry: () => void;
}

export function makeMirrors(options: MirrorsOptions): Mirrors {
  const { client, nodeName, clock, log, random } = options;
  const entries = new Map<string, Entry>();
  /** From a mirror's uid to its entry. */
  const keys = new Map<string, string>();
  /** Uids that were deleted here, until the watch has told so too: what it tells before is old. */
  const deleted = new Set<string>();
  const running = new Set<Promise<void>>();
  const controller = new AbortController();
  const { signal } = controller;
  let listed = false;
  let settled = false;

  const keyOf = ({ metadata }: Pod) => `${metadata?.namespace ?? 'default'}/${metadata?.name}`;
  const folderOf = ({ metadata }: Pod) =>
    `/api/v1/namespaces/${encodeURIComponent(metadata?.namespace ?? 'default')}/pods`;

  function entryOf(pod: Pod): Entry {
    const key = keyOf(pod);
    let entry = entries.get(key);
    if (entry === undefined) {
      entry = {
        holder: undefined,
        mirror: undefined,
        status: undefined,
        busy: false,
        failures: 0,
        waiting: false,
        cancelRetry: () => {},
      };
      entries.set(key, entry);
    }
    return entry;
  }

  function pump(key: string): void {
    const entry = entries.get(key);
    // A retry that waits finds the newest state.
    if (entry === undefined || entry.busy || entry.waiting || signal.aborted) return;
    if (entry.holder === undefined && entry.mirror === undefined) {
      entries.delete(key);
      return;
    }
    entry.busy = true;
    const run = work(key, entry).finally(() => running.delete(run));
    running.add(run);
  }

  async function work(key: string, entry: Entry): Promise<void> {
    try {
      // What happens in one turn of the event loop is looked at together: a new manifest in an old one's place.
      await Promise.resolve();
      while (!signal.aborted) {
        const step = nextMirrorStep({ ...entry, listed, settled });
        if (step === 'create') await create(entry, entry.holder!.pod);
        else if (step === 'delete') await remove(entry, entry.mirror!);
        else break;
        entry.failures = 0;
      }
      tell(entry);
    } catch (error) {
      if (signal.aborted) return;
      entry.failures++;
      entry.waiting = true;
      log.warn({ err: error, pod: key }, `the mirror pod is not as it should be: ${describe(error)}`);
      entry.cancelRetry = clock.after(backoffDelay(entry.failures, random(), retry), () => {
        entry.waiting = false;
        pump(key);
      });
    } finally {
      entry.busy = false;
      if (!entry.waiting && entry.holder === undefined && entry.mirror === undefined) entries.delete(key);
    }
  }

  async function create(entry: Entry, pod: Pod): Promise<void> {
    const body = mirrorOf(pod, { name: nodeName, uid: await nodeUid() });
    let made: Pod;
    try {
      made = await client.create<Pod>(folderOf(pod), body, { signal });
      log.info({ pod: keyOf(pod) }, 'made the mirror pod');
    } catch (error) {
      if (apiStatus(error) !== 409) throw error;
      // Ours, when an answer got lost; or somebody else's pod of this name, which stays where it is.
      made = await client.get<Pod>(`${folderOf(pod)}/${encodeURIComponent(pod.metadata!.name!)}`, { signal });
      if (!isMirrorOf(made, pod)) throw error;
    }
    accept(entry, made);
  }

  async function remove(entry: Entry, mirror: Pod): Promise<void> {
    const { name = '', uid = '' } = mirror.metadata ?? {};
    const path = `${folderOf(mirror)}/${encodeURIComponent(name)}`;
    const body = {
      apiVersion: 'v1',
      kind: 'DeleteOptions',
      gracePeriodSeconds: 0,
      preconditions: { uid },
    };
    try {
      await client.delete(path, body, { signal });
      log.info({ pod: keyOf(mirror) }, 'deleted the mirror pod');
    } catch (error) {
      const code = apiStatus(error);
      // Gone, or another one by now, of which the watch tells.
      if (code !== 404 && code !== 409) throw error;
    }
    deleted.add(uid);
    drop(entry, uid);
  }

  /** Its owner in the cluster: without this uid the garbage collector would delete the mirror. */
  async function nodeUid(): Promise<string> {
    const node = await client.get<Node>(`/api/v1/nodes/${encodeURIComponent(nodeName)}`, { signal });
    const uid = node.metadata?.uid;
    if (uid === undefined) throw new KeelsonError('UNAVAILABLE', `node ${nodeName} has no uid`);
    return uid;
  }

  function accept(entry: Entry, mirror: Pod): void {
    const uid = mirror.metadata?.uid ?? '';
    if (entry.mirror !== undefined && entry.mirror.metadata?.uid !== uid)
      drop(entry, entry.mirror.metadata?.uid ?? '');
    entry.mirror = mirror;
    keys.set(uid, keyOf(mirror));
  }

  function drop(entry: Entry, uid: string): void {
    keys.delete(uid);
    options.onForget(uid);
    if (entry.mirror?.metadata?.uid === uid) entry.mirror = undefined;
  }

  function tell({ holder, mirror, status }: Entry): void {
    if (holder === undefined || mirror === undefined || status === undefined) return;
    if (mirror.metadata?.deletionTimestamp !== undefined || !isMirrorOf(mirror, holder.pod)) return;
    options.onStatus(mirror, status);
  }

  /** The entry of the static pod, as long as no other of its name has taken its place. */
  const heldBy = (pod: Pod): Entry | undefined => {
    const entry = entries.get(keyOf(pod));
    return entry?.holder?.pod.metadata?.uid === pod.metadata?.uid ? entry : undefined;
  };

  return {
    hold(pod, leaving = false) {
      const entry = entryOf(pod);
      if (heldBy(pod) === undefined) entry.status = undefined;
      entry.holder = { pod, leaving };
      pump(keyOf(pod));
    },
    leave(pod) {
      const entry = heldBy(pod);
      if (entry !== undefined) entry.holder = { pod, leaving: true };
    },
    release(pod) {
      const entry = heldBy(pod);
      if (entry === undefined) return;
      entry.holder = undefined;
      entry.status = undefined;
      pump(keyOf(pod));
    },
    status(pod, status) {
      const entry = heldBy(pod);
      if (entry === undefined) return;
      entry.status = status;
      if (!entry.busy) tell(entry);
    },
    seen(mirror) {
      if (deleted.has(mirror.metadata?.uid ?? '')) return;
      accept(entryOf(mirror), mirror);
      pump(keyOf(mirror));
    },
    gone(uid) {
      deleted.delete(uid);
      const key = keys.get(uid);
      const entry = key === undefined ? undefined : entries.get(key);
      if (key === undefined || entry === undefined) return;
      drop(entry, uid);
      pump(key);
    },
    replaceAll(mirrors) {
      listed = true;
      deleted.clear();
      const uids = new Set(mirrors.map(({ metadata }) => metadata?.uid ?? ''));
      for (const [uid, key] of [...keys]) {
        const entry = entries.get(key);
        if (!uids.has(uid) && entry !== undefined) drop(entry, uid);
      }
      for (const mirror of mirrors) accept(entryOf(mirror), mirror);
      for (const key of [...entries.keys()]) pump(key);
    },
    settled() {
      settled = true;
      for (const key of [...entries.keys()]) pump(key);
    },
    staticUid(uid) {
      const key = keys.get(uid);
      return (key && entries.get(key)?.holder?.pod.metadata?.uid) ?? uid;
    },
    async close() {
      controller.abort(new KeelsonError('ABORTED', 'the mirror pods are let go of'));
      for (const { cancelRetry } of entries.values()) cancelRetry();
      await Promise.all(running);
    },
  };
}
