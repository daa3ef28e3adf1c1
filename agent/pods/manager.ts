/** All pods of the node: takes them from the sources, keeps a worker for each, writes their status. */
import { availableParallelism } from 'node:os';
import type { Pod, PodStatus } from '../apiserver/types.ts';
import { removeDeadLinks } from '../logs/links.ts';
import { criticality, isMirror } from '../manifests/mirror_plan.ts';
import { makeMirrors } from '../manifests/mirrors.ts';
import type { Shared } from './actions/context.ts';
import { makeHandlers } from './actions/handlers.ts';
import { makeUserIds } from './actions/user_ids.ts';
import { type ContainerLog, findContainer } from './lookup.ts';
import { nothingObserved } from './observe.ts';
import { findOrphans, findPredecessors } from './orphans.ts';
import { isTerminalPhase } from './plan/conditions.ts';
import type { Eviction } from './plan/memory.ts';
import { swapForbids } from './resources/kernel_limits.ts';
import { isCritical } from './resources/preemption.ts';
import { makeResizer } from './resources/resizer.ts';
import { makeRoom } from './resources/room.ts';
import { makeTurns } from './resources/turns.ts';
import { type NodeFacts, type Refusal, refusalOf } from './spec/admission.ts';
import { formatPod, labelNames, uidOf } from './spec/pod.ts';
import { makeStatusWriter, type StatusWriter } from './status_writer.ts';
import type { TimelineEntry } from './timeline.ts';
import type { PodSink, PodSourceKind } from './types.ts';
import { startWorker, type Worker } from './worker.ts';

export type { PodsConfig } from './actions/context.ts';
export type { ContainerLog } from './lookup.ts';
export type { TimelineEntry } from './timeline.ts';

export interface PodManagerOptions extends Shared {
  /** Sources that must have told everything before what is left of unknown pods is removed. */
  readonly sources: readonly PodSourceKind[];
  /** 0 to below 1. */
  readonly random: () => number;
  readonly nodeLabels: () => Readonly<Record<string, string>>;
  readonly nodeTaints?: () => NodeFacts['taints'];
  readonly hostSecurity?: () => NodeFacts['security'];
  /** Called when requests of the node's pods may have changed, with those that hold resources. */
  readonly onRequests?: (pods: readonly Pod[]) => void;
  /** Milliseconds between two looks at the whole runtime, for events that got lost. Default 60,000. */
  readonly relistMs?: number;
}

export interface PodManager extends PodSink {
  /** The pods with the status that they have now, whether or not it is written. */
  pods(): readonly Pod[];
  /** Where a container logs; `previous`: the one before. Undefined where there is no such pod or container. */
  containerLog(
    namespace: string,
    pod: string,
    container: string,
    previous?: boolean,
  ): ContainerLog | undefined;
  /** Where the running containers log. */
  runningLogs(): readonly { readonly id: string; readonly logPath: string }[];
  /** Ends a pod for the good of others, with an event; false where it is critical, not there or has ended. */
  evict(uid: string, eviction: Omit<Eviction, 'since'>): boolean;
  /** The uid under which a pod runs: for the apiserver's mirror of a static pod not the one that the mirror has. */
  runningUid(uid: string): string;
  /** The stages of a pod's start; kept while the pod is on the node. */
  timeline(uid: string): readonly TimelineEntry[];
  /** Ends the workers. Containers are left as they are. */
  close(): Promise<void>;
}

interface Held {
  readonly source: PodSourceKind;
  readonly worker: Worker;
  readonly refused: boolean;
  /** It holds no resources any more. */
  readonly ended: () => boolean;
  /** The source no longer has it: it is on its way out. */
  removed: boolean;
}

/** Some of them wait for the kernel or a disk. */
const heavyForEachProcessor = 4;

export function makePodManager(options: PodManagerOptions): PodManager {
  const { runtime, objects, client, clock, log } = options;
  const made = {
    handlers: makeHandlers(options),
    userIds: makeUserIds(options.config.kubeletDir),
    turns: makeTurns(clock, availableParallelism() * heavyForEachProcessor),
  };
  const held = new Map<string, Held>();
  /** Taken down already; their objects may still come along until the source forgets them. */
  const finished = new Map<string, PodSourceKind>();
  /** Wanted, but what is left of the one before has to go first. */
  const waiting = new Map<string, { readonly source: PodSourceKind; readonly pod: Pod }>();
  const awaited = new Set(options.sources);
  /** The first list of a source of static pods, while remains of pods of the same names are looked for. */
  const firstLists = new Map<PodSourceKind, readonly Pod[]>();
  const begun = new Set<PodSourceKind>(['api']);
  const exitListeners = new Set<() => void>();
  let closed = false;

  const room = makeRoom({
    node: () => ({
      name: options.nodeName,
      labels: options.nodeLabels(),
      allocatable: options.allocatable(),
      taints: options.nodeTaints?.(),
      security: options.hostSecurity?.(),
    }),
    holders: () =>
      [...held.values()]
        .filter(({ refused, removed, ended }) => !refused && !removed && !ended())
        .map(({ source, worker }) => ({
          pod: worker.pod,
          isStatic: source !== 'api',
          evict: worker.evict,
        })),
    events: options.events,
    log,
  });
  const resizer = makeResizer({
    kubeletDir: options.config.kubeletDir,
    events: options.events,
    log,
    now: () => clock.now(),
    ready: () => awaited.size === 0,
    refusal: (wanted) => refusalOf(wanted, room.others(uidOf(wanted)), room.node()),
    infeasible: (wanted, given) => swapForbids(wanted, given, options.config.kernel),
    apply: (uid, pod, change) => held.get(uid)?.worker.update(pod, change),
  });

  let telling = false;
  /** Told once for all that comes together: a burst of pods changes them with every event. */
  function requestsChanged(): void {
    if (telling) return;
    telling = true;
    setImmediate(() => {
      telling = false;
      if (!closed) options.onRequests?.(room.others(''));
    });
  }

  /** Something was given back: those that wait for it are looked at again. */
  function freed(): void {
    for (const uid of room.freed()) {
      const one = waiting.get(uid);
      waiting.delete(uid);
      if (one !== undefined) upsert(one.source, one.pod);
    }
    resizer.retry();
    requestsChanged();
  }

  const writer: StatusWriter | undefined =
    client === undefined
      ? undefined
      : makeStatusWriter({
          client,
          log,
          clock,
          random: options.random,
          onWritten(uid, status) {
            const worker = held.get(uid)?.worker;
            if (worker === undefined || !started(status)) return;
            const first = worker.timeline.entries().every(({ stage }) => stage !== 'statusWritten');
            worker.timeline.mark('statusWritten');
            if (first)
              log.info({ pod: formatPod(worker.pod), stages: worker.timeline.entries() }, 'pod started');
          },
        });

  const mirrors =
    client === undefined
      ? undefined
      : makeMirrors({
          client,
          log,
          clock,
          random: options.random,
          nodeName: options.nodeName,
          onStatus: (mirror, status) => writer?.submit(mirror, status),
          onForget: (uid) => writer?.forget(uid),
        });

  function started(status: PodStatus): boolean {
    return status.phase !== 'Pending';
  }

  const endEvents = runtime.containerEvents((event) => {
    held.get(event.sandbox.uid)?.worker.runtimeChanged(event.type);
  });
  const relistMs = options.relistMs ?? 60_000;
  let cancelRelist = clock.after(relistMs, relist);
  let cancelOrphans = () => {};

  /** Wakes the workers whose sandboxes or containers are not as they think. */
  function relist(): void {
    void (async () => {
      try {
        const [sandboxes, containers] = await Promise.all([
          runtime.listPodSandbox(),
          runtime.listContainers(),
        ]);
        const seen = new Map<string, string[]>();
        for (const { id, state, labels } of [...sandboxes, ...containers]) {
          const uid = labels[labelNames.podUid];
          if (uid !== undefined) seen.set(uid, [...(seen.get(uid) ?? []), `${id} ${state}`]);
        }
        for (const [uid, { worker }] of held) {
          const { sandboxes: boxes, containers: own } = worker.observed;
          const thought = [...boxes, ...own].map(({ id, state }) => `${id} ${state}`).sort();
          if (thought.join() !== (seen.get(uid) ?? []).sort().join()) worker.wake();
        }
      } catch (error) {
        log.warn({ err: error }, 'cannot list what the runtime has');
      }
      resizer.retry();
      if (!closed) cancelRelist = clock.after(relistMs, relist);
    })();
  }

  function add(source: PodSourceKind, wanted: Pod, orphan = false): void {
    const uid = uidOf(wanted);
    const { pod, resize } = orphan ? { pod: wanted, resize: undefined } : resizer.take(wanted);
    const refused = orphan ? undefined : refusal(source, pod);
    if (refused === 'wait') {
      resizer.forget(uid);
      waiting.set(uid, { source, pod: wanted });
      return;
    }
    let over = false;
    if (refused !== undefined)
      options.events.event(
        { apiVersion: 'v1', kind: 'Pod', metadata: pod.metadata },
        'Warning',
        refused.reason,
        refused.message,
      );
    const written = source === 'api' && !orphan ? writer : undefined;
    // The remains may be a static pod's: its mirror goes when they have gone.
    const mirrored = source !== 'api' || orphan ? mirrors : undefined;
    mirrored?.hold(pod, orphan);
    objects.retain(uid, pod.metadata?.namespace ?? 'default');
    const worker = startWorker({
      ...options,
      ...made,
      pod,
      refused,
      resize,
      orphan,
      onStatus: (status) => {
        written?.submit(held.get(uid)?.worker.pod ?? pod, status);
        mirrored?.status(pod, status);
        if (over || !isTerminalPhase(status.phase)) return;
        over = true;
        // Not within the worker's own turn.
        queueMicrotask(freed);
      },
      onGone: async (status) => written?.finish(held.get(uid)?.worker.pod ?? pod, status),
      onExit: () => {
        for (const listener of exitListeners) listener();
      },
      onDone: () => {
        const known = held.get(uid);
        held.delete(uid);
        objects.release(uid);
        resizer.forget(uid);
        options.imageAccess.forget(uid);
        writer?.forget(uid);
        mirrored?.release(pod);
        // A source that has forgotten the pod already would never take the note back.
        if (known?.removed === false) finished.set(uid, source);
        for (const [next, one] of [...waiting]) {
          waiting.delete(next);
          upsert(one.source, one.pod);
        }
        if (!closed) freed();
      },
    });
    const ended = () => over || isTerminalPhase(worker.status?.phase);
    held.set(uid, { source, worker, refused: refused !== undefined, removed: orphan, ended });
    requestsChanged();
  }

  /**
   * The same pod is on its way out (its manifest went and came back), or, for a static pod, one of the same name
   * (its manifest was changed): they would be in each other's way, and host ports are not free yet.
   */
  function mustWait(source: PodSourceKind, pod: Pod): boolean {
    const { name, namespace } = pod.metadata ?? {};
    const same = held.get(uidOf(pod));
    if (same !== undefined) return same.removed;
    return (
      source !== 'api' &&
      [...held.values()].some(
        ({ removed, worker: { pod: other } }) =>
          removed && other.metadata?.name === name && other.metadata?.namespace === namespace,
      )
    );
  }

  /** Pods that were taken in before stay: only new ones are judged. */
  function refusal(source: PodSourceKind, pod: Pod): Refusal | 'wait' | undefined {
    const { status, metadata } = pod;
    if (
      status?.startTime !== undefined ||
      metadata?.deletionTimestamp !== undefined ||
      isTerminalPhase(status?.phase)
    )
      return undefined;
    return room.refusal(pod, source !== 'api');
  }

  function upsert(source: PodSourceKind, pod: Pod): void {
    const uid = uidOf(pod);
    if (closed || uid === '' || finished.has(uid)) return;
    // The apiserver's image of a static pod, which runs from its file.
    if (source === 'api' && isMirror(pod)) {
      mirrors?.seen(pod);
      writer?.seen(pod);
      return;
    }
    if (mustWait(source, pod) || room.waits(uid)) {
      waiting.set(uid, { source, pod });
      return;
    }
    const known = held.get(uid);
    if (known === undefined) {
      add(source, pod);
      return;
    }
    if (known.source === 'api') writer?.seen(pod);
    else mirrors?.hold(pod);
    resizer.update(pod);
    requestsChanged();
  }

  function remove(source: PodSourceKind, uid: string): void {
    if (source === 'api') mirrors?.gone(uid);
    if (finished.get(uid) === source) finished.delete(uid);
    if (waiting.get(uid)?.source === source) {
      waiting.delete(uid);
      room.forget(uid);
    }
    const known = held.get(uid);
    if (known?.source !== source) return;
    known.removed = true;
    mirrors?.leave(known.worker.pod);
    writer?.forget(uid);
    known.worker.remove();
  }

  async function removeOrphans(): Promise<void> {
    try {
      const known = (uid: string) => held.has(uid);
      const pods = await findOrphans(options, known);
      for (const pod of pods) {
        if (closed || held.has(uidOf(pod))) continue;
        log.info({ pod: formatPod(pod) }, 'removing what is left of a pod that is not wanted any more');
        add('api', pod, true);
      }
      mirrors?.settled();
      const { containerLogsDir, podLogsDir } = options.config;
      const containers = await runtime.listContainers();
      await removeDeadLinks(containerLogsDir, podLogsDir, new Set(containers.map(({ id }) => id)));
    } catch (error) {
      log.warn({ err: error }, 'cannot look for what is left of unknown pods, trying again');
      if (!closed) cancelOrphans = clock.after(relistMs, () => void removeOrphans());
    }
  }

  /** Static pods that were changed while the agent was away wait for what is left of the ones before. */
  async function beginSource(source: PodSourceKind): Promise<void> {
    try {
      const before = await findPredecessors(options, firstLists.get(source) ?? [], (uid) => held.has(uid));
      for (const pod of before) if (!closed && !held.has(uidOf(pod))) add('api', pod, true);
    } catch (error) {
      log.warn({ err: error }, 'cannot look for what is left of earlier static pods');
    }
    begun.add(source);
    const pods = firstLists.get(source) ?? [];
    firstLists.delete(source);
    replaceAll(source, pods);
  }

  function replaceAll(source: PodSourceKind, pods: readonly Pod[]): void {
    if (closed) return;
    if (!begun.has(source)) {
      const looking = firstLists.has(source);
      firstLists.set(source, pods);
      if (!looking) void beginSource(source);
      return;
    }
    const listed = new Set(pods.map(uidOf));
    if (source === 'api') mirrors?.replaceAll(pods.filter(isMirror));
    for (const [uid, one] of held) if (one.source === source && !listed.has(uid)) remove(source, uid);
    for (const [uid, from] of finished) if (from === source && !listed.has(uid)) finished.delete(uid);
    for (const [uid, one] of waiting) if (one.source === source && !listed.has(uid)) waiting.delete(uid);
    // Those that hold their place already come before those that have to be judged.
    const inPlace = (pod: Pod) => Number(pod.status?.startTime === undefined);
    // What the cluster stands on comes before what stands on it: among static pods nobody has judged that.
    const urgency = (pod: Pod) => (source === 'api' ? 0 : criticality(pod));
    for (const pod of [...pods].sort((a, b) => inPlace(a) - inPlace(b) || urgency(b) - urgency(a)))
      upsert(source, pod);
    if (awaited.delete(source) && awaited.size === 0) {
      resizer.retry();
      void removeOrphans();
    }
  }

  return {
    replaceAll,
    upsert,
    remove,
    pods: () =>
      [...held.values()].map(({ worker }) =>
        worker.status === undefined
          ? worker.pod
          : { ...worker.pod, status: { ...worker.pod.status, ...worker.status } },
      ),
    containerLog(namespace, pod, container, previous = false) {
      // The newest: one of the same name may still be on its way out.
      const found = [...held.values()].findLast(
        ({ worker }) => worker.pod.metadata?.name === pod && worker.pod.metadata.namespace === namespace,
      );
      return findContainer(
        found?.worker.observed ?? nothingObserved,
        container,
        previous,
        exitListeners,
        () => found?.worker.observed ?? nothingObserved,
      );
    },
    runningLogs: () =>
      [...held.values()].flatMap(({ worker }) =>
        worker.observed.containers
          .filter(({ state, logPath }) => state === 'running' && logPath !== '')
          .map(({ id, logPath }) => ({ id, logPath })),
      ),
    evict(uid, eviction) {
      const one = held.get(uid);
      if (one === undefined || one.removed || one.ended()) return false;
      const { worker } = one;
      if (worker.memory.evicted !== undefined || isCritical(worker.pod, one.source !== 'api')) return false;
      const object = { apiVersion: 'v1', kind: 'Pod', metadata: worker.pod.metadata };
      options.events.event(object, 'Warning', eviction.reason, eviction.message);
      worker.evict(eviction);
      return true;
    },
    runningUid: (uid) => mirrors?.staticUid(uid) ?? uid,
    timeline: (uid) => held.get(uid)?.worker.timeline.entries() ?? [],
    async close() {
      closed = true;
      cancelRelist();
      cancelOrphans();
      endEvents();
      await Promise.all([...held.values()].map(({ worker }) => worker.close()));
      await mirrors?.close();
      await writer?.close();
    },
  };
}
