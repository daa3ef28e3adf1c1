/**
 * What a cgroup has used, read from its files: v2 (Documentation/admin-guide/cgroup-v2.rst) and v1 (cgroup-v1/). The files
 * are read on Node's threads; a group that is gone gives undefined. Parsing is pure.
 */
import { readdir, readFile } from 'node:fs/promises';
import type { Pressure, PressureLine } from '../api.ts';

export interface CpuUsage {
  /** Nanoseconds. */
  readonly usageNs: number;
  readonly userNs: number;
  readonly systemNs: number;
  readonly periods: number;
  readonly throttledPeriods: number;
  readonly throttledNs: number;
}

/** Bytes, and counts. Limits are absent where there are none. */
export interface MemoryUsage {
  readonly usage: number;
  readonly limit?: number;
  readonly max: number;
  readonly cache: number;
  readonly rss: number;
  readonly mapped: number;
  readonly kernel: number;
  readonly inactiveFile: number;
  readonly pageFaults: number;
  readonly majorPageFaults: number;
  readonly failures: number;
  readonly swap: number;
  readonly swapLimit?: number;
}

export interface DeviceIo {
  /** `8:0`. */
  readonly device: string;
  readonly readBytes: number;
  readonly writeBytes: number;
  readonly reads: number;
  readonly writes: number;
}

export interface Usage {
  readonly cpu: CpuUsage;
  readonly memory: MemoryUsage;
  /** Tasks, which are threads. */
  readonly tasks: number;
  readonly taskLimit?: number;
  readonly io: readonly DeviceIo[];
  readonly hugepages: readonly { readonly size: string; readonly usage: number; readonly max: number }[];
  readonly pressure: { readonly cpu?: Pressure; readonly memory?: Pressure; readonly io?: Pressure };
}

/** `at`: Unix milliseconds. */
export interface Reading {
  readonly at: number;
  readonly usage: Usage;
}

/** Usage without what can be dropped at once, as kubelets judge by. Pure. */
export function workingSetOf({ usage, inactiveFile }: MemoryUsage): number {
  return Math.max(0, usage - inactiveFile);
}

/** `name value` lines. Pure. */
export function parseFlat(text: string): Readonly<Record<string, number>> {
  return Object.fromEntries(
    text
      .split('\n')
      .map((line) => line.split(' '))
      .filter((words) => words.length === 2)
      .map(([name, value]) => [name, Number(value)]),
  );
}

/** A limit: `max`, and v1's greatest page, are none. Pure. */
export function parseLimit(text: string | undefined): number | undefined {
  if (text === undefined || text.trim() === '' || text.trim() === 'max') return undefined;
  const value = Number(text);
  return Number.isFinite(value) && value < 2 ** 62 ? value : undefined;
}

/** v2's io.stat: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`. Pure. */
export function parseIoStat(text: string): DeviceIo[] {
  return text
    .split('\n')
    .filter((line) => line.includes('='))
    .map((line) => {
      const [device = '', ...pairs] = line.split(' ');
      const of = Object.fromEntries(pairs.map((pair) => pair.split('='))) as Record<string, string>;
      const value = (name: string) => Number(of[name] ?? 0);
      return {
        device,
        readBytes: value('rbytes'),
        writeBytes: value('wbytes'),
        reads: value('rios'),
        writes: value('wios'),
      };
    });
}

/** v1's blkio files: `8:0 Read 4096`. Pure. */
export function parseBlkio(bytes: string, operations: string): DeviceIo[] {
  const read = (text: string) => {
    const found = new Map<string, Record<string, number>>();
    for (const line of text.split('\n')) {
      const [device = '', operation = '', value] = line.split(' ');
      if (!/^\d+:\d+$/.test(device) || value === undefined) continue;
      found.set(device, { ...found.get(device), [operation]: Number(value) });
    }
    return found;
  };
  const moved = read(bytes);
  const done = read(operations);
  return [...new Set([...moved.keys(), ...done.keys()])].map((device) => ({
    device,
    readBytes: moved.get(device)?.['Read'] ?? 0,
    writeBytes: moved.get(device)?.['Write'] ?? 0,
    reads: done.get(device)?.['Read'] ?? 0,
    writes: done.get(device)?.['Write'] ?? 0,
  }));
}

/** A pressure file; undefined where the kernel has none. Pure. */
export function parsePressure(text: string | undefined): Pressure | undefined {
  const line = (kind: string): PressureLine => {
    const match = new RegExp(`^${kind} avg10=([\\d.]+) avg60=([\\d.]+) avg300=([\\d.]+) total=(\\d+)`, 'm');
    const [avg10 = 0, avg60 = 0, avg300 = 0, total = 0] = (match.exec(text ?? '') ?? []).slice(1).map(Number);
    return { avg10, avg60, avg300, total };
  };
  return text?.startsWith('some ') ? { some: line('some'), full: line('full') } : undefined;
}

type Read = (controller: string, file: string) => Promise<string | undefined>;

/** The reader for `root`, where the tree of this version is mounted. */
export function makeUsageReader(
  version: 1 | 2,
  root = '/sys/fs/cgroup',
): (path: string) => Promise<Usage | undefined> {
  const read = (file: string) => readFile(file, 'latin1').catch(() => undefined);
  let sizes: Promise<readonly string[]> | undefined;
  return async (path) => {
    // Hierarchies that are mounted together have links of each one's name.
    const of: Read = (controller, file) =>
      read(version === 2 ? `${root}${path}/${file}` : `${root}/${controller}${path}/${file}`);
    sizes ??= hugepageSizes();
    return version === 2 ? unifiedUsage(of, await sizes) : hierarchyUsage(of, await sizes);
  };
}

async function unifiedUsage(read: Read, sizes: readonly string[]): Promise<Usage | undefined> {
  const files = ['cpu.stat', 'memory.current', 'memory.max', 'memory.peak', 'memory.stat', 'memory.events'];
  const [cpuText, current, limit, peak, stat, events] = await Promise.all(
    files.map((file) => read('', file)),
  );
  if (cpuText === undefined) return undefined;
  const others = ['memory.swap.current', 'memory.swap.max', 'pids.current', 'pids.max', 'io.stat'];
  const pressures = ['cpu.pressure', 'memory.pressure', 'io.pressure'];
  const [swap, swapLimit, tasks, taskLimit, io, ...stalls] = await Promise.all(
    [...others, ...pressures].map((file) => read('', file)),
  );
  const cpu = parseFlat(cpuText);
  const memory = parseFlat(stat ?? '');
  const micro = (name: string) => (cpu[name] ?? 0) * 1000;
  return {
    cpu: {
      usageNs: micro('usage_usec'),
      userNs: micro('user_usec'),
      systemNs: micro('system_usec'),
      periods: cpu['nr_periods'] ?? 0,
      throttledPeriods: cpu['nr_throttled'] ?? 0,
      throttledNs: micro('throttled_usec'),
    },
    memory: {
      usage: Number(current ?? 0),
      limit: parseLimit(limit),
      max: Number(peak ?? current ?? 0),
      cache: memory['file'] ?? 0,
      rss: memory['anon'] ?? 0,
      mapped: memory['file_mapped'] ?? 0,
      kernel: memory['kernel'] ?? 0,
      inactiveFile: memory['inactive_file'] ?? 0,
      pageFaults: memory['pgfault'] ?? 0,
      majorPageFaults: memory['pgmajfault'] ?? 0,
      failures: parseFlat(events ?? '')['max'] ?? 0,
      swap: Number(swap ?? 0),
      swapLimit: parseLimit(swapLimit),
    },
    tasks: Number(tasks ?? 0),
    taskLimit: parseLimit(taskLimit),
    io: parseIoStat(io ?? ''),
    hugepages: await hugepages(read, sizes, 'current', 'max'),
    pressure: {
      cpu: parsePressure(stalls[0]),
      memory: parsePressure(stalls[1]),
      io: parsePressure(stalls[2]),
    },
  };
}

/** USER_HZ, in which cpuacct.stat counts: 100 on every architecture that Node.js runs on. */
const tickNs = 10_000_000;

async function hierarchyUsage(read: Read, sizes: readonly string[]): Promise<Usage | undefined> {
  const usage = await read('cpuacct', 'cpuacct.usage');
  if (usage === undefined) return undefined;
  const memoryFile = (name: string) => read('memory', `memory.${name}`);
  const [ticksText, cpuText, current, limit, max, stat, kernel, failures, both, bothLimit] =
    await Promise.all([
      read('cpuacct', 'cpuacct.stat'),
      read('cpu', 'cpu.stat'),
      ...['usage_in_bytes', 'limit_in_bytes', 'max_usage_in_bytes', 'stat'].map(memoryFile),
      ...['kmem.usage_in_bytes', 'failcnt', 'memsw.usage_in_bytes', 'memsw.limit_in_bytes'].map(memoryFile),
    ]);
  const [tasks, taskLimit, moved, done] = await Promise.all([
    read('pids', 'pids.current'),
    read('pids', 'pids.max'),
    read('blkio', 'blkio.throttle.io_service_bytes_recursive'),
    read('blkio', 'blkio.throttle.io_serviced_recursive'),
  ]);
  const ticks = parseFlat(ticksText ?? '');
  const cpu = parseFlat(cpuText ?? '');
  const memory = parseFlat(stat ?? '');
  const memoryLimit = parseLimit(limit);
  const withSwap = parseLimit(bothLimit);
  return {
    cpu: {
      usageNs: Number(usage),
      userNs: (ticks['user'] ?? 0) * tickNs,
      systemNs: (ticks['system'] ?? 0) * tickNs,
      periods: cpu['nr_periods'] ?? 0,
      throttledPeriods: cpu['nr_throttled'] ?? 0,
      throttledNs: cpu['throttled_time'] ?? 0,
    },
    memory: {
      usage: Number(current ?? 0),
      limit: memoryLimit,
      max: Number(max ?? 0),
      cache: memory['total_cache'] ?? 0,
      rss: memory['total_rss'] ?? 0,
      mapped: memory['total_mapped_file'] ?? 0,
      kernel: Number(kernel ?? 0),
      inactiveFile: memory['total_inactive_file'] ?? 0,
      pageFaults: memory['total_pgfault'] ?? 0,
      majorPageFaults: memory['total_pgmajfault'] ?? 0,
      failures: Number(failures ?? 0),
      swap: memory['total_swap'] ?? Math.max(0, Number(both ?? 0) - Number(current ?? 0)),
      swapLimit:
        withSwap === undefined || memoryLimit === undefined ? undefined : Math.max(0, withSwap - memoryLimit),
    },
    tasks: Number(tasks ?? 0),
    taskLimit: parseLimit(taskLimit),
    io: parseBlkio(moved ?? '', done ?? ''),
    hugepages: await hugepages(read, sizes, 'usage_in_bytes', 'max_usage_in_bytes'),
    pressure: {},
  };
}

/** `2MB` and the like, as the files of cgroups are named. */
async function hugepageSizes(): Promise<readonly string[]> {
  const names = await readdir('/sys/kernel/mm/hugepages').catch(() => []);
  return names.map((name) => {
    const kilobytes = Number(/(\d+)kB$/.exec(name)?.[1] ?? 0);
    if (kilobytes >= 1 << 20) return `${kilobytes >> 20}GB`;
    return kilobytes >= 1 << 10 ? `${kilobytes >> 10}MB` : `${kilobytes}KB`;
  });
}

async function hugepages(read: Read, sizes: readonly string[], now: string, most: string) {
  const found = await Promise.all(
    sizes.map(async (size) => {
      const [usage, max] = await Promise.all([
        read('hugetlb', `hugetlb.${size}.${now}`),
        read('hugetlb', `hugetlb.${size}.${most}`),
      ]);
      // v2 keeps no peak; its `max` is the limit.
      const peak = most === 'max' ? usage : max;
      return usage === undefined ? undefined : { size, usage: Number(usage), max: Number(peak ?? usage) };
    }),
  );
  return found.filter((one) => one !== undefined);
}
