/** Readings → the metrics of pods. Pure. */
import type { InterfaceStats, Metric, PodSandboxMetrics, PodSandboxStats, Pressure } from '../api.ts';
import type { ContainerRecord, SandboxRecord } from '../state.ts';
import { type MetricName, metricType } from './descriptors.ts';
import type { DiskFacts } from './disk.ts';
import type { ProcessFacts } from './process_facts.ts';
import { type Reading, type Usage, workingSetOf } from './usage.ts';

export interface MeasuredContainer {
  readonly record: ContainerRecord;
  readonly reading: Reading | undefined;
  /** Bytes that it wrote over its image. */
  readonly writtenBytes: number;
  readonly processes: ProcessFacts;
  readonly disk: DiskFacts;
  readonly oomKills: number;
}

export interface MeasuredSandbox {
  readonly record: SandboxRecord;
  /** Of the whole pod; '' where it has none. */
  readonly cgroup: string;
  readonly stats: PodSandboxStats;
  readonly containers: readonly MeasuredContainer[];
  /** Unix milliseconds. */
  readonly now: number;
}

type Add = (name: MetricName, value: number | undefined, ...labels: string[]) => void;

const seconds = (nanoseconds: number) => Math.floor(nanoseconds / 1e9);

/** Collects metrics that share the first labels and the time. */
function collect(base: readonly string[], at: number): { readonly metrics: Metric[]; readonly add: Add } {
  const metrics: Metric[] = [];
  return {
    metrics,
    add(name, value, ...labels) {
      if (value === undefined) return;
      metrics.push({ name, at, type: metricType(name), labelValues: [...base, ...labels], value });
    },
  };
}

export function sandboxMetrics({
  record,
  cgroup,
  stats,
  containers,
  now,
}: MeasuredSandbox): PodSandboxMetrics {
  const { namespace, name } = record.config.metadata;
  const pod = collect(['', cgroup, '', record.id, namespace, name], stats.network?.at ?? now);
  for (const counters of stats.network?.interfaces ?? []) addInterface(pod.add, counters);
  return {
    podSandboxId: record.id,
    metrics: pod.metrics,
    containers: containers.map((container) => ({
      id: container.record.id,
      metrics: containerMetrics(container, namespace, name, now),
    })),
  };
}

function addInterface(add: Add, counters: InterfaceStats): void {
  const { name } = counters;
  add('container_network_receive_bytes_total', counters.rxBytes, name);
  add('container_network_receive_packets_total', counters.rxPackets, name);
  add('container_network_receive_errors_total', counters.rxErrors, name);
  add('container_network_receive_packets_dropped_total', counters.rxDropped, name);
  add('container_network_transmit_bytes_total', counters.txBytes, name);
  add('container_network_transmit_packets_total', counters.txPackets, name);
  add('container_network_transmit_errors_total', counters.txErrors, name);
  add('container_network_transmit_packets_dropped_total', counters.txDropped, name);
}

function containerMetrics(
  container: MeasuredContainer,
  namespace: string,
  pod: string,
  now: number,
): Metric[] {
  const { record, reading, processes } = container;
  const { config, cgroup, id } = record;
  const image = config.userImage ?? config.image.image;
  const base = [config.metadata.name, cgroup, image, id, namespace, pod];
  const { metrics, add } = collect(base, reading?.at ?? now);
  add('container_last_seen', Math.floor(now / 1000));
  add('container_start_time_seconds', Math.floor(record.startedAt / 1000));
  add('container_oom_events_total', container.oomKills);
  add('container_processes', processes.processes);
  add('container_file_descriptors', processes.descriptors);
  add('container_sockets', processes.sockets);
  add('container_ulimits_soft', processes.openFilesLimit, 'max_open_files');
  addSpec(add, container);
  addDisk(add, container);
  if (reading !== undefined) {
    addCpu(add, reading.usage);
    addMemory(add, reading.usage);
    add('container_threads', reading.usage.tasks);
    add('container_threads_max', reading.usage.taskLimit ?? 0);
  }
  return metrics;
}

function addSpec(add: Add, { record, reading }: MeasuredContainer): void {
  const { resources } = record.config.linux;
  const limit = reading?.usage.memory;
  add('container_spec_cpu_period', resources.cpuPeriod ?? 100_000);
  if ((resources.cpuQuota ?? 0) > 0) add('container_spec_cpu_quota', resources.cpuQuota);
  add('container_spec_cpu_shares', resources.cpuShares ?? 1024);
  add('container_spec_memory_limit_bytes', limit?.limit ?? Math.max(0, resources.memoryLimitBytes ?? 0));
  add('container_spec_memory_reservation_limit_bytes', 0);
  const withSwap =
    limit?.limit === undefined || limit.swapLimit === undefined ? 0 : limit.limit + limit.swapLimit;
  add('container_spec_memory_swap_limit_bytes', withSwap);
}

function addCpu(add: Add, { cpu, pressure }: Usage): void {
  add('container_cpu_usage_seconds_total', seconds(cpu.usageNs), 'total');
  add('container_cpu_user_seconds_total', seconds(cpu.userNs));
  add('container_cpu_system_seconds_total', seconds(cpu.systemNs));
  add('container_cpu_cfs_periods_total', cpu.periods);
  add('container_cpu_cfs_throttled_periods_total', cpu.throttledPeriods);
  add('container_cpu_cfs_throttled_seconds_total', seconds(cpu.throttledNs));
  const stalls = (which: 'cpu' | 'memory' | 'io', found: Pressure | undefined) => {
    // Microseconds on the kernel's side.
    add(`container_pressure_${which}_waiting_seconds_total`, found && seconds(found.some.total * 1000));
    add(`container_pressure_${which}_stalled_seconds_total`, found && seconds(found.full.total * 1000));
  };
  stalls('cpu', pressure.cpu);
  stalls('memory', pressure.memory);
  stalls('io', pressure.io);
}

function addMemory(add: Add, { memory, hugepages }: Usage): void {
  add('container_memory_usage_bytes', memory.usage);
  add('container_memory_working_set_bytes', workingSetOf(memory));
  add('container_memory_max_usage_bytes', memory.max);
  add('container_memory_cache', memory.cache);
  add('container_memory_rss', memory.rss);
  add('container_memory_mapped_file', memory.mapped);
  add('container_memory_kernel_usage', memory.kernel);
  add('container_memory_swap', memory.swap);
  add('container_memory_failcnt', memory.failures);
  // The counters of a group have those of the groups below in them.
  for (const scope of ['container', 'hierarchy']) {
    add('container_memory_failures_total', memory.pageFaults, 'pgfault', scope);
    add('container_memory_failures_total', memory.majorPageFaults, 'pgmajfault', scope);
  }
  for (const { size, usage, max } of hugepages) {
    add('container_hugetlb_usage_bytes', usage, size);
    add('container_hugetlb_max_usage_bytes', max, size);
  }
}

function addDisk(add: Add, { disk, writtenBytes, reading }: MeasuredContainer): void {
  const { device } = disk;
  add('container_fs_usage_bytes', writtenBytes, device);
  add('container_fs_limit_bytes', disk.totalBytes, device);
  add('container_fs_inodes_total', disk.totalInodes, device);
  add('container_fs_inodes_free', disk.freeInodes, device);
  for (const moved of reading?.usage.io ?? []) {
    const [major = '', minor = ''] = moved.device.split(':');
    const name = disk.names.get(moved.device) ?? moved.device;
    add('container_fs_reads_bytes_total', moved.readBytes, name);
    add('container_fs_reads_total', moved.reads, name);
    add('container_fs_writes_bytes_total', moved.writeBytes, name);
    add('container_fs_writes_total', moved.writes, name);
    add('container_blkio_device_usage_total', moved.readBytes, name, major, minor, 'Read');
    add('container_blkio_device_usage_total', moved.writeBytes, name, major, minor, 'Write');
  }
}
