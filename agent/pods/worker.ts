/**
 * The worker of one pod: looks, plans, acts, and sleeps until something happens. Everything that decides is in
 * plan/; the worker only keeps the plan's memory and carries its actions out.
 */
import { isDeepStrictEqual } from 'node:util';
import { describe } from '../../runtime/host/errors.ts';
import type { Pod, PodStatus } from '../apiserver/types.ts';
import type { ReadyVolume } from '../volumes/types.ts';
import { type Made, type Shared, tell } from './actions/context.ts';
import { makeFlights } from './flights.ts';
import { nothingObserved, observe, someEnded } from './observe.ts';
import { isStarting } from './plan/actions.ts';
import { crashBackoff } from './plan/backoff.ts';
import { isTerminalPhase } from './plan/conditions.ts';
import { containerIdOf } from './plan/container_status.ts';
import {
  type Eviction,
  forgetContainers,
  newMemory,
  type PodMemory,
  withOverdue,
  withTermination,
} from './plan/memory.ts';
import { type Plan, plan } from './plan/plan.ts';
import { oldStatusOf } from './plan/view.ts';
import { makeProber } from './prober.ts';
import { type ResizeChange, type ResizeState, withChange } from './resources/resize_plan.ts';
import type { Refusal } from './spec/admission.ts';
import { formatPod, specGraceSeconds, uidOf } from './spec/pod.ts';
import { makeTimeline, type Timeline } from './timeline.ts';
import type { ObservedPod } from './types.ts';

export interface WorkerOptions extends Shared, Made {
  readonly pod: Pod;
  /** Why the node does not take the pod. */
  readonly refused?: Refusal;
  /** What is open of a resize that another run of the agent began. */
  readonly resize?: ResizeState;
  /** Only the remains of a pod that nobody knows: take it down, tell nobody. */
  readonly orphan?: boolean;
  /** Called with each status worth writing; latest wins. */
  readonly onStatus: (status: PodStatus) => void;
  /** Nothing is left on the node. Resolves when the object may be forgotten. */
  readonly onGone: (status: PodStatus) => Promise<void>;
  /** A container that was seen running is seen to have ended. */
  readonly onExit: () => void;
  /** The worker has ended. */
  readonly onDone: () => void;
}

export interface Worker {
  /** The pod's object changed. */
  update(pod: Pod, resize?: ResizeChange): void;
  /** The node needs the pod's place: it is ended with its grace. */
  evict(eviction: Omit<Eviction, 'since'>): void;
  /** The source no longer has the pod. */
  remove(): void;
  /** Something may have happened in the runtime. */
  runtimeChanged(type: 'created' | 'started' | 'stopped' | 'deleted'): void;
  /** Looks at the runtime anew, whatever was said to have happened. */
  wake(): void;
  readonly pod: Pod;
  readonly status: PodStatus | undefined;
  readonly observed: ObservedPod;
  readonly memory: PodMemory;
  readonly timeline: Timeline;
  /** Interrupts what is under way and ends; containers are left as they are. */
  close(): Promise<void>;
}

/** A start that is done within this time costs one status write, in milliseconds. */
const settleMs = 1000;
/** When the runtime cannot be asked, in milliseconds. */
const observeAgainMs = 1_000;
/** How long the end of an evicted pod may take at least, in milliseconds. */
const shortestPatienceMs = 10_000;

export function startWorker(options: WorkerOptions): Worker {
  const { clock, runtime, config } = options;
  const uid = uidOf(options.pod);
  const log = options.log.child({ pod: formatPod(options.pod) });
  const timeline = makeTimeline(clock);
  const crash = {
    ...crashBackoff,
    maxMs: config.maxContainerRestartPeriodMs ?? crashBackoff.maxMs,
  };

  let pod = options.pod;
  let removed = options.orphan ?? false;
  let memory: PodMemory = { ...newMemory(clock.now()), refused: options.refused, resize: options.resize };
  let observed = nothingObserved;
  let status: PodStatus | undefined = pod.status?.phase === undefined ? undefined : pod.status;
  let ready: ReadonlyMap<string, ReadyVolume> = new Map();
  const flights = makeFlights({
    clock,
    log,
    turns: options.turns,
    onEnd(key) {
      // These change nothing that the runtime tells of.
      if (!/^(image|cgroup|volumes|note)/.test(key)) mustObserve = true;
      wake();
    },
  });
  const prober = makeProber({
    runtime,
    clock,
    onResult(id, result) {
      memory = { ...memory, probes: { ...memory.probes, [id]: result } };
      wake();
    },
    room: options.probes,
    onTell: (container, reason, message) =>
      tell({ events: options.events, pod }, container, 'Warning', reason, message),
  });

  let dirty = false;
  let mustObserve = true;
  let looping: Promise<void> | undefined;
  let closed = false;
  let settlingSince: number | undefined;
  /** The last look at the pod failed. */
  let lost = false;
  let cancelGrace = () => {};
  let reported: PodStatus | undefined;
  let finishing = false;
  let cancelTimer = () => {};

  function wake(): void {
    dirty = true;
    if (looping === undefined && !closed) looping = loop();
  }

  async function loop(): Promise<void> {
    // What happens in one turn of the event loop is looked at together.
    await Promise.resolve();
    while (dirty && !closed) {
      dirty = false;
      try {
        await step();
        lost = false;
      } catch (error) {
        log.warn({ err: error }, 'cannot look after the pod, trying again');
        if (!lost) warn('FailedSync', `error determining status: ${describe(error)}`);
        lost = true;
        mustObserve = true;
        wakeAfter(observeAgainMs);
      }
    }
    looping = undefined;
  }

  function warn(reason: string, message: string): void {
    if (!options.orphan) tell({ events: options.events, pod }, undefined, 'Warning', reason, message);
  }

  /** Tells where an evicted pod is not at its end in a time that is beyond its grace (killPodNow). */
  function watchGrace(): void {
    const grace = specGraceSeconds(pod);
    const limitMs = Math.max(shortestPatienceMs, grace * 1500);
    cancelGrace = clock.after(limitMs, () => {
      if (closed || isTerminalPhase(status?.phase)) return;
      warn('ExceededGracePeriod', 'Container runtime did not kill the pod within specified grace period.');
    });
  }

  function wakeAfter(ms: number): void {
    cancelTimer();
    cancelTimer = clock.after(ms, wake);
  }

  async function step(): Promise<void> {
    // Results first, then the look: what they did must be in what is seen. Later ones wait for the next step.
    for (const update of flights.take()) memory = update(memory);
    if (mustObserve) {
      mustObserve = false;
      const before = observed;
      observed = await observe(runtime, uid, before, (error) => {
        if (!lost) warn('FailedPodSandBoxStatus', `Unable to get pod sandbox status: ${describe(error)}`);
      });
      if (someEnded(before, observed)) options.onExit();
      memory = forgetContainers(memory, new Set(observed.containers.map(({ id }) => id)));
    }
    if (closed) return;
    const now = clock.now();
    memory = withOverdue(withTermination(memory, pod, removed, now), pod, observed, now);
    const next = plan({
      pod,
      observed,
      memory,
      inFlight: flights.inFlight,
      old: status,
      hostIps: options.hostIps(),
      now,
      crash,
      dead: config.dead,
      runtimeName: config.runtimeName,
    });
    status = next.status;
    if (next.final && memory.termination !== undefined && memory.final === undefined)
      memory = { ...memory, final: next.status };
    probe();
    act(next);
    report(next, now);
    if (next.gone) {
      finish(next.status);
      return;
    }
    const wakeAt = Math.min(next.wakeAt ?? Number.POSITIVE_INFINITY, settleEnd() ?? Number.POSITIVE_INFINITY);
    if (wakeAt === Number.POSITIVE_INFINITY) cancelTimer();
    // A millisecond more, so that the clock has really got there.
    else wakeAfter(Math.max(0, wakeAt - now) + 1);
  }

  /** Only containers whose start is done: before, the postStart hook runs. */
  function probe(): void {
    const running = observed.containers.filter(
      ({ state, metadata }) => state === 'running' && !flights.inFlight.has(`start/${metadata.name}`),
    );
    const ip = observed.sandboxes[0]?.ips[0] ?? options.hostIps()[0] ?? '127.0.0.1';
    const wasStarted = ({ id, metadata }: (typeof running)[number]) => {
      const written = oldStatusOf(pod.status, metadata.name);
      return written?.started === true && written.containerID === containerIdOf({ id }, config.runtimeName);
    };
    const wanted = memory.termination?.kind === 'removed' ? [] : running;
    prober.sync(pod, wanted, ip, wasStarted, memory.termination !== undefined);
  }

  function act(next: Plan): void {
    if (next.interruptStarts) flights.interruptStarts();
    const begun = flights.begin(next.actions, {
      ...options,
      log,
      pod,
      observed,
      memory,
      ready,
      orphan: options.orphan ?? false,
      stage: timeline.mark,
      setReady: (volumes) => {
        ready = volumes;
      },
    });
    for (const action of begun) {
      if (action.kind === 'create' && action.crash !== undefined)
        memory = { ...memory, crash: { ...memory.crash, [action.container]: action.crash } };
    }
  }

  function settleEnd(): number | undefined {
    return settlingSince === undefined || clock.now() >= settlingSince + settleMs
      ? undefined
      : settlingSince + settleMs;
  }

  function report(next: Plan, now: number): void {
    if (memory.termination?.kind === 'removed') return;
    if (next.settling) {
      if (isDeepStrictEqual(next.status, reported)) return;
      settlingSince ??= now;
      if (now < settlingSince + settleMs) return;
    }
    // What changes from now on is kept back anew.
    settlingSince = undefined;
    reported = next.status;
    options.onStatus(next.status);
  }

  function finish(last: PodStatus): void {
    if (memory.termination?.kind === 'removed') {
      end();
      return;
    }
    if (finishing) return;
    finishing = true;
    options.onGone(last).then(end, (error: unknown) => {
      finishing = false;
      log.warn({ error: describe(error) }, 'cannot delete the object of a pod that is gone, trying again');
      wakeAfter(observeAgainMs);
    });
  }

  function end(): void {
    if (closed) return;
    closed = true;
    cancelTimer();
    cancelGrace();
    prober.close();
    options.onDone();
  }

  wake();
  return {
    update(next, change) {
      pod = next;
      if (change !== undefined) memory = { ...memory, resize: withChange(memory.resize, change) };
      wake();
    },
    evict(eviction) {
      if (memory.evicted !== undefined) return;
      memory = { ...memory, evicted: { ...eviction, since: clock.now() } };
      watchGrace();
      wake();
    },
    remove() {
      removed = true;
      wake();
    },
    runtimeChanged(type) {
      // Our own creating and starting tell of themselves when they are done.
      if ((type === 'created' || type === 'started') && [...flights.inFlight.keys()].some(isStarting)) return;
      mustObserve = true;
      wake();
    },
    wake() {
      mustObserve = true;
      wake();
    },
    get pod() {
      return pod;
    },
    get status() {
      return status;
    },
    get observed() {
      return observed;
    },
    get memory() {
      return memory;
    },
    timeline,
    async close() {
      closed = true;
      cancelTimer();
      cancelGrace();
      prober.close();
      await flights.close();
      await looping;
    },
  };
}
