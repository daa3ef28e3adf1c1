/** Metrics with times as the Prometheus text format (0.0.4) has them, which prom-client does not write. Pure. */
import type {
  CpuStats,
  MemoryStats,
  Metric,
  MetricDescriptor,
  PodSandboxMetrics,
} from '../../../runtime/api.ts';
import type { MeasuredNode, MeasuredPod } from './summary.ts';

interface Line {
  readonly labels?: Readonly<Record<string, string>>;
  readonly value: number;
  /** Unix milliseconds; absent: the time of the scrape. */
  readonly at?: number;
}

function family(name: string, type: 'counter' | 'gauge', help: string, lines: readonly Line[]): string {
  if (lines.length === 0) return '';
  const rows = lines.map(({ labels = {}, value, at }) => {
    const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escapeLabel(text)}"`);
    const shown = pairs.length === 0 ? '' : `{${pairs.join(',')}}`;
    return `${name}${shown} ${value}${at === undefined ? '' : ` ${Math.round(at)}`}\n`;
  });
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${rows.join('')}`;
}

function escapeLabel(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}

/** `/metrics/resource`: kubelet's names (pkg/kubelet/metrics/collectors/resource_metrics.go), for metrics-server. */
export function resourceText(node: MeasuredNode, pods: readonly MeasuredPod[]): string {
  const of = ({ stats }: MeasuredPod) => ({ pod: stats.metadata.name, namespace: stats.metadata.namespace });
  const containers = pods.flatMap((pod) =>
    pod.containers.map(({ stats, createdAt }) => ({
      stats,
      createdAt,
      labels: { container: stats.metadata.name, ...of(pod) },
    })),
  );
  const each = <T, M extends { readonly at: number }>(
    things: readonly T[],
    measured: (thing: T) => M | undefined,
    value: (found: M) => number | undefined,
    labels: (thing: T) => Readonly<Record<string, string>>,
  ): Line[] =>
    things.flatMap((thing) => {
      const found = measured(thing);
      const number = found && value(found);
      return found === undefined || number === undefined
        ? []
        : [{ labels: labels(thing), value: number, at: found.at }];
    });
  const seconds = ({ usageNs }: CpuStats) => usageNs / 1e9;
  const workingSet = ({ workingSet: bytes }: MemoryStats) => bytes;
  const own = (one: (typeof containers)[number]) => one.labels;
  return [
    family(
      'node_cpu_usage_seconds_total',
      'counter',
      'Cumulative cpu time consumed by the node in core-seconds',
      [{ value: seconds(node.cpu), at: node.cpu.at }],
    ),
    family('node_memory_working_set_bytes', 'gauge', 'Current working set of the node in bytes', [
      { value: node.memory.workingSet, at: node.memory.at },
    ]),
    family('node_swap_usage_bytes', 'gauge', 'Current swap usage of the node in bytes', [
      { value: node.swap.usage, at: node.swap.at },
    ]),
    family(
      'container_start_time_seconds',
      'gauge',
      'Start time of the container since unix epoch in seconds',
      containers
        .filter(({ createdAt }) => createdAt > 0)
        .map(({ labels, createdAt }) => ({ labels, value: createdAt / 1000 })),
    ),
    family(
      'container_cpu_usage_seconds_total',
      'counter',
      'Cumulative cpu time consumed by the container in core-seconds',
      each(containers, ({ stats }) => stats.cpu, seconds, own),
    ),
    family(
      'container_memory_working_set_bytes',
      'gauge',
      'Current working set of the container in bytes',
      each(containers, ({ stats }) => stats.memory, workingSet, own),
    ),
    family(
      'container_swap_usage_bytes',
      'gauge',
      'Current amount of the container swap usage in bytes',
      each(
        containers,
        ({ stats }) => stats.swap,
        ({ usage }) => usage,
        own,
      ),
    ),
    family(
      'container_swap_limit_bytes',
      'gauge',
      'Current amount of the container swap limit in bytes',
      each(
        containers,
        ({ stats }) => stats.swap,
        ({ usage, available }) => (available === undefined ? undefined : usage + available),
        own,
      ),
    ),
    family(
      'pod_cpu_usage_seconds_total',
      'counter',
      'Cumulative cpu time consumed by the pod in core-seconds',
      each(pods, ({ stats }) => stats.cpu, seconds, of),
    ),
    family(
      'pod_memory_working_set_bytes',
      'gauge',
      'Current working set of the pod in bytes',
      each(pods, ({ stats }) => stats.memory, workingSet, of),
    ),
    ...['scrape_error', 'resource_scrape_error'].map((name) =>
      family(name, 'gauge', '1 if there was an error while getting container metrics, 0 otherwise', [
        { value: 0 },
      ]),
    ),
  ].join('');
}

/** What is left of `/metrics/resource` when nothing could be measured. */
export const failedResourceText: string = ['scrape_error', 'resource_scrape_error']
  .map((name) =>
    family(name, 'gauge', '1 if there was an error while getting container metrics, 0 otherwise', [
      { value: 1 },
    ]),
  )
  .join('');

/** `/metrics/cadvisor`: the runtime's metrics of pods, and the machine's size. */
export function podMetricsText(
  descriptors: readonly MetricDescriptor[],
  sandboxes: readonly PodSandboxMetrics[],
  machine: { readonly cpus: number; readonly memoryBytes: number },
): string {
  const known = new Map(descriptors.map((descriptor) => [descriptor.name, descriptor]));
  const families = new Map<string, Metric[]>();
  for (const { metrics, containers } of sandboxes) {
    for (const metric of [...metrics, ...containers.flatMap((one) => one.metrics)]) {
      const found = families.get(metric.name);
      if (found === undefined) families.set(metric.name, [metric]);
      else found.push(metric);
    }
  }
  const texts = [...families].flatMap(([name, metrics]) => {
    const descriptor = known.get(name);
    if (descriptor === undefined || metrics[0] === undefined) return [];
    const lines = metrics.map(({ labelValues, value, at }) => ({
      labels: Object.fromEntries(descriptor.labelKeys.map((key, index) => [key, labelValues[index] ?? ''])),
      value,
      at,
    }));
    return [family(name, metrics[0].type, descriptor.help, lines)];
  });
  return [
    ...texts,
    family('machine_cpu_cores', 'gauge', 'Number of logical CPU cores', [{ value: machine.cpus }]),
    family('machine_memory_bytes', 'gauge', 'Amount of memory installed on the machine', [
      { value: machine.memoryBytes },
    ]),
  ].join('');
}
