/** The names, types and labels of the metrics of pods: those of cAdvisor that kubelets take from a CRI. */
import type { Metric, MetricDescriptor } from '../api.ts';

/** What every metric tells, in this order; the labels of cAdvisor in a kubelet. */
const baseLabels = ['container', 'id', 'image', 'name', 'namespace', 'pod'] as const;

type Entry = readonly [Metric['type'], string, ...string[]];

const c = 'counter';
const g = 'gauge';
const device = 'device';
const network = 'interface';

/** Type, help, further labels. Seconds are whole ones: the CRI has whole numbers only. */
const table = {
  container_blkio_device_usage_total: [
    c,
    'Bytes moved by block devices',
    device,
    'major',
    'minor',
    'operation',
  ],
  container_cpu_cfs_periods_total: [c, 'Periods of the processor quota that went by'],
  container_cpu_cfs_throttled_periods_total: [c, 'Periods in which the processor quota was used up'],
  container_cpu_cfs_throttled_seconds_total: [c, 'Seconds spent waiting for the next period of the quota'],
  container_cpu_system_seconds_total: [c, 'Processor seconds in the kernel'],
  container_cpu_usage_seconds_total: [c, 'Processor seconds', 'cpu'],
  container_cpu_user_seconds_total: [c, 'Processor seconds in programs'],
  container_file_descriptors: [g, 'Open file descriptors'],
  container_fs_inodes_free: [g, 'Free inodes of the file system', device],
  container_fs_inodes_total: [g, 'Inodes of the file system', device],
  container_fs_limit_bytes: [g, 'Bytes that the file system holds', device],
  container_fs_reads_bytes_total: [c, 'Bytes read', device],
  container_fs_reads_total: [c, 'Reads', device],
  container_fs_usage_bytes: [g, 'Bytes that the container wrote over its image', device],
  container_fs_writes_bytes_total: [c, 'Bytes written', device],
  container_fs_writes_total: [c, 'Writes', device],
  container_hugetlb_max_usage_bytes: [g, 'Most bytes in huge pages', 'pagesize'],
  container_hugetlb_usage_bytes: [g, 'Bytes in huge pages', 'pagesize'],
  container_last_seen: [g, 'When this was read, Unix seconds'],
  container_memory_cache: [g, 'Bytes of the page cache'],
  container_memory_failcnt: [c, 'How often the memory limit was hit'],
  container_memory_failures_total: [c, 'Page faults', 'failure_type', 'scope'],
  container_memory_kernel_usage: [g, 'Bytes of the kernel'],
  container_memory_mapped_file: [g, 'Bytes of mapped files'],
  container_memory_max_usage_bytes: [g, 'Most bytes used'],
  container_memory_rss: [g, 'Bytes that are not of files'],
  container_memory_swap: [g, 'Bytes swapped out'],
  container_memory_usage_bytes: [g, 'Bytes used, page cache included'],
  container_memory_working_set_bytes: [g, 'Bytes used without the inactive page cache'],
  container_network_receive_bytes_total: [c, 'Bytes received', network],
  container_network_receive_errors_total: [c, 'Errors while receiving', network],
  container_network_receive_packets_dropped_total: [c, 'Packets dropped while receiving', network],
  container_network_receive_packets_total: [c, 'Packets received', network],
  container_network_transmit_bytes_total: [c, 'Bytes sent', network],
  container_network_transmit_errors_total: [c, 'Errors while sending', network],
  container_network_transmit_packets_dropped_total: [c, 'Packets dropped while sending', network],
  container_network_transmit_packets_total: [c, 'Packets sent', network],
  container_oom_events_total: [c, 'Processes killed for want of memory'],
  container_pressure_cpu_stalled_seconds_total: [
    c,
    'Seconds in which no task could run for want of a processor',
  ],
  container_pressure_cpu_waiting_seconds_total: [c, 'Seconds in which some task waited for a processor'],
  container_pressure_io_stalled_seconds_total: [c, 'Seconds in which no task could run for want of I/O'],
  container_pressure_io_waiting_seconds_total: [c, 'Seconds in which some task waited for I/O'],
  container_pressure_memory_stalled_seconds_total: [
    c,
    'Seconds in which no task could run for want of memory',
  ],
  container_pressure_memory_waiting_seconds_total: [c, 'Seconds in which some task waited for memory'],
  container_processes: [g, 'Processes'],
  container_sockets: [g, 'Open sockets'],
  container_spec_cpu_period: [g, 'Period of the processor quota, microseconds'],
  container_spec_cpu_quota: [g, 'Processor quota for each period, microseconds'],
  container_spec_cpu_shares: [g, 'Processor shares'],
  container_spec_memory_limit_bytes: [g, 'Memory limit; 0: none'],
  container_spec_memory_reservation_limit_bytes: [g, 'Memory that is held back for it; 0: none'],
  container_spec_memory_swap_limit_bytes: [g, 'Limit of memory and swap; 0: none'],
  container_start_time_seconds: [g, 'When it started, Unix seconds'],
  container_threads: [g, 'Threads'],
  container_threads_max: [g, 'Limit of threads; 0: none'],
  container_ulimits_soft: [g, 'Soft limits of the first process', 'ulimit'],
} as const satisfies Readonly<Record<string, Entry>>;

export type MetricName = keyof typeof table;

export const metricDescriptors: readonly MetricDescriptor[] = Object.entries(table).map(
  ([name, [, help, ...labels]]) => ({ name, help, labelKeys: [...baseLabels, ...labels] }),
);

export function metricType(name: MetricName): Metric['type'] {
  return table[name][0];
}
