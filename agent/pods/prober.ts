/** The probes of one pod's running containers: when to ask, and what the answers amount to. */
import type { ContainerStatus, RuntimeService } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import type { Pod, PodContainer } from '../apiserver/types.ts';
import { type Probe, probeOnce } from './actions/probe.ts';
import type { ProbeResult } from './plan/memory.ts';
import { initContainers, isSidecar, regularContainers } from './spec/pod.ts';

export interface ProberOptions {
  readonly runtime: RuntimeService;
  readonly clock: Clock;
  /** Something is known that was not before. */
  readonly onResult: (id: string, result: ProbeResult) => void;
  readonly onUnhealthy: (container: string, message: string) => void;
}

export interface Prober {
  /**
   * Probes these containers from now on and no others. `wasStarted`: the startup probe of this container has
   * succeeded before, under another agent.
   */
  sync(
    pod: Pod,
    running: readonly ContainerStatus[],
    podIp: string,
    wasStarted: (status: ContainerStatus) => boolean,
  ): void;
  close(): void;
}

interface Watched {
  result: ProbeResult;
  readonly controller: AbortController;
  readonly cancels: Set<() => void>;
}

/** The API's defaults (core/v1 Probe). */
const thresholds = (probe: Probe) => ({
  periodMs: (probe.periodSeconds || 10) * 1000,
  delayMs: (probe.initialDelaySeconds ?? 0) * 1000,
  success: probe.successThreshold || 1,
  failure: probe.failureThreshold || 3,
});

export function makeProber(options: ProberOptions): Prober {
  const { clock, runtime } = options;
  const watched = new Map<string, Watched>();

  function end(id: string, one: Watched): void {
    watched.delete(id);
    one.controller.abort();
    for (const cancel of one.cancels) cancel();
  }

  function begin(container: PodContainer, status: ContainerStatus, podIp: string, started: boolean): void {
    const { startupProbe, readinessProbe, livenessProbe } = container;
    if (startupProbe === undefined && readinessProbe === undefined && livenessProbe === undefined) return;
    const { id } = status;
    const one: Watched = { result: {}, controller: new AbortController(), cancels: new Set() };
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
        repeat(readinessProbe, 'Readiness', (well) => {
          tell({ ready: well });
          return true;
        });
      if (livenessProbe !== undefined)
        repeat(livenessProbe, 'Liveness', (well) => {
          if (!well) tell({ failed: 'liveness' });
          return well;
        });
    };
    if (startupProbe === undefined || started) afterStart();
    else
      repeat(startupProbe, 'Startup', (well) => {
        if (well) afterStart();
        else tell({ failed: 'startup' });
        return false;
      });

    /** Asks every period; `decided` is told when enough answers in a row agree, and says whether to go on. */
    function repeat(probe: Probe, kind: string, decided: (well: boolean) => boolean): void {
      const { periodMs, delayMs, success, failure } = thresholds(probe);
      let row = 0;
      let last: boolean | undefined;
      const after = (ms: number) => {
        if (one.controller.signal.aborted) return;
        const cancel = clock.after(ms, () => {
          one.cancels.delete(cancel);
          void ask();
        });
        one.cancels.add(cancel);
      };
      const ask = async () => {
        try {
          const answer = await probeOnce(runtime, container, id, podIp, probe, one.controller.signal);
          if (one.controller.signal.aborted) return;
          row = answer.well === last ? row + 1 : 1;
          last = answer.well;
          if (!answer.well) options.onUnhealthy(container.name, `${kind} probe failed: ${answer.output}`);
          if (row >= (answer.well ? success : failure) && !decided(answer.well)) return;
        } catch {
          return; // Not wanted any more.
        }
        after(periodMs);
      };
      after(Math.max(0, status.startedAt + delayMs - clock.now()));
    }
  }

  return {
    sync(pod, running, podIp, wasStarted) {
      const ids = new Set(running.map(({ id }) => id));
      for (const [id, one] of watched) if (!ids.has(id)) end(id, one);
      const probed = [
        ...initContainers(pod).filter((container) => isSidecar(pod, container)),
        ...regularContainers(pod),
      ];
      for (const status of running) {
        const container = probed.find(({ name }) => name === status.metadata.name);
        if (container !== undefined && !watched.has(status.id))
          begin(container, status, podIp, wasStarted(status));
      }
    },
    close() {
      for (const [id, one] of watched) end(id, one);
    },
  };
}
