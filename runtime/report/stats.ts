/** What pods use of the node: statistics of containers and sandboxes, read when asked for. */
import { join } from 'node:path';
import type {
  ContainerStats,
  CpuStats,
  IoStats,
  MemoryStats,
  PodSandboxStats,
  RuntimeStats,
  SwapStats,
} from '../api.ts';
import type { Context } from '../context.ts';
import { slicePath } from '../host/cgroups.ts';
import { KeelsonError } from '../host/errors.ts';
import { isAlive } from '../processes.ts';
import { pinnedNetwork } from '../sandbox_namespaces.ts';
import type { ContainerRecord, SandboxRecord } from '../state.ts';
import { metricDescriptors } from './descriptors.ts';
import { diskFacts } from './disk.ts';
import { type MeasuredContainer, sandboxMetrics } from './metrics.ts';
import { readInterfaces } from './network.ts';
import { processFacts } from './process_facts.ts';
import { makeUsageReader, type Reading, workingSetOf } from './usage.ts';
import { makeWrittenSizes } from './written.ts';

/** Two readings that are closer give no speed. */
const shortestWindowMs = 500;

interface MeasuredStats extends ContainerStats {
  readonly reading: Reading | undefined;
}

/** Nanoseconds of processor time per second between two readings. Pure. */
export function nanoCoresBetween(
  before: { readonly at: number; readonly usageNs: number },
  now: { readonly at: number; readonly usageNs: number },
): number {
  return Math.max(0, Math.round(((now.usageNs - before.usageNs) * 1000) / (now.at - before.at)));
}

export function makeStats(context: Context): RuntimeStats {
  const { state, folders, clock, cgroupDriver } = context;
  const readUsage = makeUsageReader(context.cgroups.version);
  const written = makeWrittenSizes(clock);
  /** By cgroup: the reading that the next speed counts from, and the last speed. */
  const windows = new Map<string, { at: number; usageNs: number; nanoCores?: number }>();

  const cpuOf = (cgroup: string, { at, usage }: Reading): CpuStats => {
    const { usageNs } = usage.cpu;
    const monotonic = clock.monotonic();
    const before = windows.get(cgroup);
    let nanoCores = before?.nanoCores;
    if (before === undefined || monotonic - before.at >= shortestWindowMs) {
      if (before !== undefined) nanoCores = nanoCoresBetween(before, { at: monotonic, usageNs });
      windows.set(cgroup, { at: monotonic, usageNs, nanoCores });
    }
    return { at, usageNs, nanoCores, pressure: usage.pressure.cpu };
  };

  const read = async (cgroup: string): Promise<Reading | undefined> => {
    const usage = await readUsage(cgroup);
    return usage && { at: clock.now(), usage };
  };

  const forget = () => {
    const known = new Set([...state.containers.values()].map(({ cgroup }) => cgroup));
    for (const { config } of state.sandboxes.values()) {
      const cgroup = podCgroup(cgroupDriver, config.linux.cgroupParent);
      if (cgroup !== undefined) known.add(cgroup);
    }
    for (const cgroup of windows.keys()) if (!known.has(cgroup)) windows.delete(cgroup);
    written.keep((id) => state.containers.has(id));
  };

  const ofContainer = async (record: ContainerRecord): Promise<MeasuredStats> => {
    const { id, sandboxId, config, cgroup } = record;
    const [reading, writableLayer] = await Promise.all([
      record.state === 'running' ? read(cgroup) : undefined,
      written.of(id, join(folders.container(id).data, 'upper')),
    ]);
    return {
      id,
      podSandboxId: sandboxId,
      metadata: config.metadata,
      labels: config.labels,
      annotations: config.annotations,
      writableLayer,
      ...(reading && {
        cpu: cpuOf(cgroup, reading),
        memory: memoryOf(reading),
        swap: swapOf(reading),
        io: ioOf(reading),
      }),
      reading,
    };
  };

  const running = (sandboxId: string) =>
    state.containersOf(sandboxId).filter((record) => record.state === 'running');

  const networkOf = async (record: SandboxRecord, signal: AbortSignal | undefined) => {
    const path = pinnedNetwork(folders.sandbox(record.id));
    if (path === undefined) return undefined;
    const processes = [record.init, ...running(record.id).map(({ init }) => init)];
    const pids = processes.filter((one) => one !== undefined && isAlive(one)).map((one) => one!.pid);
    const interfaces = await readInterfaces(path, pids, signal);
    return interfaces && { at: clock.now(), interfaces };
  };

  const ofSandbox = async (record: SandboxRecord, signal: AbortSignal | undefined) => {
    const { id, config } = record;
    const cgroup = podCgroup(cgroupDriver, config.linux.cgroupParent);
    const [own, network, containers] = await Promise.all([
      cgroup === undefined ? undefined : read(cgroup),
      networkOf(record, signal),
      Promise.all(running(id).map(ofContainer)),
    ]);
    const readings = containers.map((one) => one.reading).filter((one) => one !== undefined);
    const reading = own ?? sumOf(readings);
    const stats: PodSandboxStats = {
      id,
      metadata: config.metadata,
      labels: config.labels,
      annotations: config.annotations,
      network,
      containers: containers.map(({ reading: _, ...one }) => one),
      ...(reading && {
        cpu: cpuOf(cgroup ?? `sandbox ${id}`, reading),
        memory: memoryOf(reading),
        io: ioOf(reading),
        processes: { at: reading.at, count: reading.usage.tasks },
      }),
    };
    return { stats, reading, containers };
  };

  const measure = async (stats: MeasuredStats): Promise<MeasuredContainer | undefined> => {
    const record = state.containers.get(stats.id);
    if (record === undefined) return undefined; // Removed meanwhile.
    const devices = stats.reading?.usage.io.map(({ device }) => device) ?? [];
    const pids = await context.cgroups.processes(record.cgroup);
    const first = record.init?.pid ?? 0;
    const [processes, disk, oomKills] = await Promise.all([
      processFacts(pids.includes(first) ? [first, ...pids.filter((pid) => pid !== first)] : pids),
      diskFacts(folders.container(record.id).data, devices),
      context.cgroups.oomKills(record.cgroup),
    ]);
    const writtenBytes = stats.writableLayer?.usedBytes ?? 0;
    return { record, reading: stats.reading, writtenBytes, processes, disk, oomKills };
  };

  const ready = () => [...state.sandboxes.values()].filter((record) => record.state === 'ready');
  const missing = (what: string, id: string) =>
    new KeelsonError('NOT_FOUND', `there is no ${what} ${JSON.stringify(id)}`);

  return {
    async containerStats(id) {
      const record = state.containers.get(id);
      if (record === undefined || record.state === 'creating') throw missing('container', id);
      const { reading, ...stats } = await ofContainer(record);
      return stats;
    },
    async listContainerStats({ id, podSandboxId, labels } = {}) {
      forget();
      const wanted = [...state.containers.values()].filter(
        (record) =>
          record.state === 'running' &&
          (id === undefined || record.id === id) &&
          (podSandboxId === undefined || record.sandboxId === podSandboxId) &&
          hasLabels(record.config.labels, labels),
      );
      return (await Promise.all(wanted.map(ofContainer))).map(({ reading, ...stats }) => stats);
    },
    async podSandboxStats(id, signal) {
      const record = state.sandboxes.get(id);
      if (record === undefined || record.state === 'creating') throw missing('sandbox', id);
      return (await ofSandbox(record, signal)).stats;
    },
    async listPodSandboxStats({ id, labels } = {}, signal) {
      forget();
      const wanted = ready().filter(
        (record) => (id === undefined || record.id === id) && hasLabels(record.config.labels, labels),
      );
      return (await Promise.all(wanted.map((record) => ofSandbox(record, signal)))).map(({ stats }) => stats);
    },
    metricDescriptors: () => metricDescriptors,
    async listPodSandboxMetrics(signal) {
      forget();
      return Promise.all(
        ready().map(async (record) => {
          const { stats, containers } = await ofSandbox(record, signal);
          const measured = await Promise.all(containers.map(measure));
          return sandboxMetrics({
            record,
            cgroup: podCgroup(cgroupDriver, record.config.linux.cgroupParent) ?? '',
            stats,
            containers: measured.filter((one) => one !== undefined),
            now: clock.now(),
          });
        }),
      );
    },
  };
}

/** The cgroup that holds all of a pod; undefined where nobody named one. Pure. */
export function podCgroup(driver: 'cgroupfs' | 'systemd', parent: string): string | undefined {
  if (parent.replace(/\/+$/, '') === '') return undefined;
  return driver === 'systemd' ? slicePath(parent) : parent.replace(/\/+$/, '');
}

function memoryOf({ at, usage: { memory, pressure } }: Reading): MemoryStats {
  const workingSet = workingSetOf(memory);
  return {
    at,
    usage: memory.usage,
    workingSet,
    available: memory.limit === undefined ? undefined : Math.max(0, memory.limit - workingSet),
    rss: memory.rss,
    pageFaults: memory.pageFaults,
    majorPageFaults: memory.majorPageFaults,
    pressure: pressure.memory,
  };
}

function swapOf({ at, usage: { memory } }: Reading): SwapStats {
  const { swap, swapLimit } = memory;
  return {
    at,
    usage: swap,
    available: swapLimit === undefined ? undefined : Math.max(0, swapLimit - swap),
  };
}

function ioOf({ at, usage }: Reading): IoStats {
  return { at, pressure: usage.pressure.io };
}

/** For a pod without a cgroup of its own. Pure. */
export function sumOf(readings: readonly Reading[]): Reading | undefined {
  const [first, ...others] = readings;
  return others.reduce<Reading | undefined>((sum, { at, usage }) => {
    if (sum === undefined) return undefined;
    const { cpu, memory } = sum.usage;
    const added = <T extends object>(a: T, b: T): T =>
      Object.fromEntries(
        Object.entries(a).map(([name, value]) => [name, (value ?? 0) + (b[name as keyof T] ?? 0)]),
      ) as T;
    return {
      at,
      usage: {
        cpu: added(cpu, usage.cpu),
        memory: { ...added(memory, usage.memory), limit: undefined, swapLimit: undefined },
        tasks: sum.usage.tasks + usage.tasks,
        io: [],
        hugepages: [],
        pressure: {},
      },
    };
  }, first);
}

function hasLabels(
  labels: Readonly<Record<string, string>>,
  wanted: Readonly<Record<string, string>> = {},
): boolean {
  return Object.entries(wanted).every(([name, value]) => labels[name] === value);
}
