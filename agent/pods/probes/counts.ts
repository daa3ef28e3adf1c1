/** What probes have come to: kubelet's prober_probe_total and prober_probe_duration_seconds, for the scrape. */
import { type Histogram, type MetricsSource, makeHistogram, type Sample } from '../../metrics/source.ts';

export type ProbeKind = 'Liveness' | 'Readiness' | 'Startup';

export interface ProbeLabels {
  readonly probe_type: ProbeKind;
  readonly container: string;
  readonly pod: string;
  readonly namespace: string;
}

/** The counts of one probe of one container; they go with the pod. */
export interface ProbeCount {
  add(well: boolean, seconds: number): void;
  forget(): void;
}

export interface ProbeCounts {
  readonly source: MetricsSource;
  open(labels: ProbeLabels, podUid: string): ProbeCount;
}

/** Prometheus' default buckets, in seconds. */
const buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

interface Counted {
  readonly labels: ProbeLabels;
  readonly podUid: string;
  readonly results: { successful: number; failed: number };
  readonly durations: Histogram;
}

export function makeProbeCounts(): ProbeCounts {
  const all = new Set<Counted>();
  return {
    source: {
      families: () => [
        {
          name: 'prober_probe_total',
          help: 'Cumulative number of a liveness, readiness or startup probe for a container by result.',
          type: 'counter',
          samples: [...all].flatMap(({ labels, podUid, results }) =>
            Object.entries(results)
              .filter(([, value]) => value > 0)
              .map(([result, value]): Sample => ({ labels: { ...labels, pod_uid: podUid, result }, value })),
          ),
        },
        {
          name: 'prober_probe_duration_seconds',
          help: 'Duration in seconds for a probe response.',
          type: 'histogram',
          samples: [...all]
            .filter(({ results }) => results.successful > 0)
            .flatMap(({ labels, durations }) => durations.samples({ ...labels })),
        },
      ],
    },
    open(labels, podUid) {
      const one: Counted = {
        labels,
        podUid,
        results: { successful: 0, failed: 0 },
        durations: makeHistogram(buckets),
      };
      all.add(one);
      return {
        add(well, seconds) {
          one.results[well ? 'successful' : 'failed']++;
          // Only those that went well, as kubelet has it.
          if (well) one.durations.observe(seconds);
        },
        forget: () => all.delete(one),
      };
    },
  };
}
