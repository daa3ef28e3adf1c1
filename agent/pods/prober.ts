/** The probes of one pod's running containers: when to ask, and what the answers amount to. */
import type { ContainerStatus, RuntimeService } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import type { Pod, PodContainer } from '../apiserver/types.ts';
import { type Probe, type ProbeAnswer, probeOnce } from './actions/probe.ts';
import type { ProbeResult } from './plan/memory.ts';
import { makeProbeCounts, type ProbeCount, type ProbeCounts, type ProbeKind } from './probes/counts.ts';
import { initContainers, isSidecar, namespaceOf, regularContainers, uidOf } from './spec/pod.ts';

/** What the probers of all pods share. */
export interface ProbeRoom {
  readonly counts: ProbeCounts;
  /** When the agent started, in monotonic and wall clock milliseconds. */
  readonly since: number;
  readonly startedAt: number;
  /** 0 to below 1. */
  readonly random: () => number;
}

export function makeProbeRoom(clock: Clock, random: () => number = Math.random): ProbeRoom {
  return { counts: makeProbeCounts(), since: clock.monotonic(), startedAt: clock.now(), random };
}

export interface ProberOptions {
  readonly runtime: RuntimeService;
  readonly clock: Clock;
  /** Default: one of its own. */
  readonly room?: ProbeRoom;
  /** Something is known that was not before. */
  readonly onResult: (id: string, result: ProbeResult) => void;
  /** What is to be told of a probe that was not simply well: an event, always a warning. */
  readonly onTell: (container: string, reason: 'Unhealthy' | 'ProbeWarning', message: string) => void;
}

export interface Prober {
  /**
   * Probes these containers from now on and no others. `wasStarted`: the startup probe of this container has
   * succeeded before, under another agent. `terminating`: the pod is on its way out: only readiness matters any more.
   */
  sync(
    pod: Pod,
    running: readonly ContainerStatus[],
    podIp: string,
    wasStarted: (status: ContainerStatus) => boolean,
    terminating?: boolean,
  ): void;
  close(): void;
}

interface Watched {
  result: ProbeResult;
  readonly controller: AbortController;
  /** Ends the liveness and startup probes only. */
  readonly quiet: AbortController;
  readonly cancels: Set<() => void>;
}

/**
 * Questions after the first come at multiples of this, in milliseconds: those of many containers then wake the agent
 * together, and each costs it half.
 */
const beatMs = 50;
const onBeat = (due: number) => Math.ceil(due / beatMs) * beatMs;

/** The API's defaults (core/v1 Probe). */
const thresholds = (probe: Probe) => ({
  periodMs: (probe.periodSeconds || 10) * 1000,
  delayMs: (probe.initialDelaySeconds ?? 0) * 1000,
  success: probe.successThreshold || 1,
  failure: probe.failureThreshold || 3,
});

export function makeProber(options: ProberOptions): Prober {
  const { clock, runtime, room = makeProbeRoom(clock) } = options;
  const watched = new Map<string, Watched>();
  /** By kind and container: they outlive the container, as the counts of kubelet do. */
  const counts = new Map<string, ProbeCount>();

  function end(id: string, one: Watched): void {
    watched.delete(id);
    one.quiet.abort();
    one.controller.abort();
    for (const cancel of one.cancels) cancel();
  }

  function countOf(pod: Pod, container: string, kind: ProbeKind): ProbeCount {
    const key = `${kind}/${container}`;
    let count = counts.get(key);
    if (count === undefined) {
      const labels = {
        probe_type: kind,
        container,
        pod: pod.metadata?.name ?? '',
        namespace: namespaceOf(pod),
      };
      count = room.counts.open(labels, uidOf(pod));
      counts.set(key, count);
    }
    return count;
  }

  function begin(
    pod: Pod,
    container: PodContainer,
    status: ContainerStatus,
    podIp: string,
    wasStarted: boolean,
    terminating: boolean,
  ): void {
    const { startupProbe, readinessProbe, livenessProbe } = container;
    if (startupProbe === undefined && readinessProbe === undefined && livenessProbe === undefined) return;
    const { id } = status;
    const one: Watched = {
      result: {},
      controller: new AbortController(),
      quiet: new AbortController(),
      cancels: new Set(),
    };
    if (terminating) one.quiet.abort();
    watched.set(id, one);
    const tell = (change: ProbeResult) => {
      const next = { ...one.result, ...change };
      const same =
        next.started === one.result.started &&
        next.ready === one.result.ready &&
        next.failed === one.result.failed;
      one.result = next;
      if (!same) options.onResult(id, next);
    };
    const afterStart = () => {
      tell({ started: true });
      if (readinessProbe !== undefined)
        repeat(readinessProbe, 'Readiness', one.controller.signal, (well) => {
          tell({ ready: well });
          return true;
        });
      if (livenessProbe !== undefined)
        repeat(livenessProbe, 'Liveness', one.quiet.signal, (well) => {
          if (!well) tell({ failed: 'liveness' });
          return well;
        });
    };
    if (startupProbe === undefined || wasStarted) afterStart();
    else
      repeat(startupProbe, 'Startup', one.quiet.signal, (well) => {
        if (well) afterStart();
        else tell({ failed: 'startup' });
        return false;
      });

    /**
     * Asks every period, at the beat of the first question; one that takes longer than the period is followed by
     * the next at once. `decided` is told when enough answers in a row agree, and says whether to go on.
     */
    function repeat(
      probe: Probe,
      kind: ProbeKind,
      signal: AbortSignal,
      decided: (well: boolean) => boolean,
    ): void {
      if (signal.aborted) return;
      const { periodMs, delayMs, success, failure } = thresholds(probe);
      const count = countOf(pod, container.name, kind);
      let row = 0;
      let last: boolean | undefined;
      const at = (due: number) => {
        if (signal.aborted) return;
        const cancel = clock.after(due - clock.monotonic(), () => {
          one.cancels.delete(cancel);
          void ask(due);
        });
        one.cancels.add(cancel);
      };
      const ask = async (due: number) => {
        if (signal.aborted) return;
        const begun = clock.monotonic();
        let answer: ProbeAnswer;
        try {
          answer = await probeOnce(runtime, container, id, podIp, probe, signal);
        } catch {
          return; // Not wanted any more.
        }
        if (signal.aborted) return;
        const well = answer.result === 'success' || answer.result === 'warning';
        say(kind, answer);
        // What could not be asked says nothing about the container.
        if (answer.result !== 'unknown') {
          count.add(well, (clock.monotonic() - begun) / 1000);
          row = well === last ? row + 1 : 1;
          last = well;
          if (row >= (well ? success : failure) && !decided(well)) return;
        }
        at(onBeat(Math.max(due + periodMs, clock.monotonic())));
      };
      const now = clock.monotonic();
      const initial = Math.max(0, status.startedAt + delayMs - clock.now());
      // After a start of the agent the probes of all containers must not come at once.
      const adopted = status.startedAt < room.startedAt && now - room.since < periodMs;
      at(now + Math.max(initial, adopted ? room.random() * periodMs : 0));
    }

    function say(kind: ProbeKind, { result, output }: ProbeAnswer): void {
      if (result === 'success') return;
      if (result === 'warning')
        options.onTell(container.name, 'ProbeWarning', `${kind} probe warning: ${output}`);
      else if (result === 'failure')
        options.onTell(container.name, 'Unhealthy', `${kind} probe failed: ${output}`);
      else
        options.onTell(
          container.name,
          'Unhealthy',
          `${kind} probe errored and resulted in unknown state: ${output}`,
        );
    }
  }

  return {
    sync(pod, running, podIp, wasStarted, terminating = false) {
      const ids = new Set(running.map(({ id }) => id));
      for (const [id, one] of watched) if (!ids.has(id)) end(id, one);
      if (terminating) for (const one of watched.values()) one.quiet.abort();
      const probed = [
        ...initContainers(pod).filter((container) => isSidecar(pod, container)),
        ...regularContainers(pod),
      ];
      for (const status of running) {
        const container = probed.find(({ name }) => name === status.metadata.name);
        if (container !== undefined && !watched.has(status.id))
          begin(pod, container, status, podIp, wasStarted(status), terminating);
      }
    },
    close() {
      for (const [id, one] of watched) end(id, one);
      for (const count of counts.values()) count.forget();
      counts.clear();
    },
  };
}
