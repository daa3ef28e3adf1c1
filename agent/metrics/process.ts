/** What Prometheus' clients tell of their own process, by the names that they all use (process_*). */
import { readdir, readFile } from 'node:fs/promises';
import type { MetricFamily, MetricsSource } from './source.ts';

export const processMetrics: MetricsSource = {
  async families() {
    const [status, limits, descriptors] = await Promise.all([
      readFile('/proc/self/status', 'utf8'),
      readFile('/proc/self/limits', 'utf8'),
      readdir('/proc/self/fd'),
    ]);
    const kilobytes = (name: string) =>
      Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? 0);
    const files = /^Max open files\s+(\d+)/m.exec(limits)?.[1];
    const { user, system } = process.cpuUsage();
    return [
      counter('process_cpu_seconds_total', 'User and system CPU time in seconds.', (user + system) / 1e6),
      gauge('process_resident_memory_bytes', 'Resident memory in bytes.', kilobytes('VmRSS') * 1024),
      gauge('process_virtual_memory_bytes', 'Virtual memory in bytes.', kilobytes('VmSize') * 1024),
      gauge('process_open_fds', 'Open file descriptors.', descriptors.length),
      ...(files === undefined
        ? []
        : [gauge('process_max_fds', 'Most file descriptors that may be open.', Number(files))]),
      gauge(
        'process_start_time_seconds',
        'Start of the process, in seconds since the Unix epoch.',
        performance.timeOrigin / 1000,
      ),
    ];
  },
};

function counter(name: string, help: string, value: number): MetricFamily {
  return { name, help, type: 'counter', samples: [{ value }] };
}

function gauge(name: string, help: string, value: number): MetricFamily {
  return { name, help, type: 'gauge', samples: [{ value }] };
}
