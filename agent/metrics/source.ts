/** Where the numbers of `/metrics` come from. Types only: an agent that nobody scrapes pays for nothing else. */

export interface Sample {
  readonly value: number;
  readonly labels?: Readonly<Record<string, string>>;
  /** Of a histogram: `_bucket` (with the label `le`), `_sum` and `_count`. */
  readonly suffix?: '_bucket' | '_sum' | '_count';
}

/** One metric with all its samples, as the Prometheus text format has it. */
export interface MetricFamily {
  readonly name: string;
  readonly help: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly samples: readonly Sample[];
}

/** Somebody who counts. Asked at each scrape; names are of one source only. */
export interface MetricsSource {
  families(): readonly MetricFamily[] | Promise<readonly MetricFamily[]>;
}

/** Observations in buckets, which are upper bounds in rising order. */
export interface Histogram {
  observe(value: number): void;
  samples(labels?: Readonly<Record<string, string>>): readonly Sample[];
}

export function makeHistogram(buckets: readonly number[]): Histogram {
  const counts = buckets.map(() => 0);
  let sum = 0;
  let count = 0;
  return {
    observe(value) {
      const at = buckets.findIndex((bound) => value <= bound);
      if (at >= 0) counts[at]!++;
      sum += value;
      count++;
    },
    samples(labels = {}) {
      let below = 0;
      const bucket = (le: string, value: number): Sample => ({
        suffix: '_bucket',
        labels: { ...labels, le },
        value,
      });
      return [
        ...buckets.map((bound, at) => {
          below += counts[at]!;
          return bucket(String(bound), below);
        }),
        bucket('+Inf', count),
        { suffix: '_sum', labels, value: sum },
        { suffix: '_count', labels, value: count },
      ];
    },
  };
}
