/** What pods use, and details for people, as another runtime tells them. */
import type {
  ContainerStats,
  CpuStats,
  InterfaceStats,
  IoStats,
  MemoryStats,
  Metric,
  PodSandboxStats,
  Pressure,
  RuntimeDetails,
  RuntimeStats,
} from '../../api.ts';
import type { Wire } from '../wire/types.ts';
import { answered, milliseconds } from './answers.ts';
import type { CallLimits, Channel } from './channel.ts';

export type RemoteStats = RuntimeStats & Pick<RuntimeDetails, 'containerInfo' | 'sandboxInfo'>;

const countOf = (value: Wire<'UInt64Value'> | undefined) =>
  value === undefined ? undefined : Number(value.value);
const count = (value: Wire<'UInt64Value'> | undefined) => countOf(value) ?? 0;

function pressureOf(psi: Wire<'PsiStats'> | undefined): Pressure | undefined {
  if (psi?.Some === undefined || psi.Full === undefined) return undefined;
  const line = ({ Total, Avg10, Avg60, Avg300 }: Wire<'PsiData'>) => ({
    total: Number(Total),
    avg10: Avg10,
    avg60: Avg60,
    avg300: Avg300,
  });
  return { some: line(psi.Some), full: line(psi.Full) };
}

function cpuOf(cpu: Wire<'CpuUsage'> | undefined): CpuStats | undefined {
  return (
    cpu && {
      at: milliseconds(cpu.timestamp),
      usageNs: count(cpu.usageCoreNanoSeconds),
      nanoCores: countOf(cpu.usageNanoCores),
      pressure: pressureOf(cpu.psi),
    }
  );
}

function memoryOf(memory: Wire<'MemoryUsage'> | undefined): MemoryStats | undefined {
  return (
    memory && {
      at: milliseconds(memory.timestamp),
      usage: count(memory.usageBytes),
      workingSet: count(memory.workingSetBytes),
      available: countOf(memory.availableBytes),
      rss: count(memory.rssBytes),
      pageFaults: count(memory.pageFaults),
      majorPageFaults: count(memory.majorPageFaults),
      pressure: pressureOf(memory.psi),
    }
  );
}

function ioOf(io: Wire<'IoUsage'> | undefined): IoStats | undefined {
  return io && { at: milliseconds(io.timestamp), pressure: pressureOf(io.psi) };
}

const nobody = { name: '', attempt: 0 };

/** `podSandboxId`: the message has none. Pure. */
export function containerStatsOf(stats: Wire<'ContainerStats'>, podSandboxId: string): ContainerStats {
  const { attributes, swap, writableLayer } = stats;
  return {
    id: attributes?.id ?? '',
    podSandboxId,
    metadata: attributes?.metadata ?? nobody,
    labels: attributes?.labels ?? {},
    annotations: attributes?.annotations ?? {},
    cpu: cpuOf(stats.cpu),
    memory: memoryOf(stats.memory),
    io: ioOf(stats.io),
    swap: swap && {
      at: milliseconds(swap.timestamp),
      usage: count(swap.swapUsageBytes),
      available: countOf(swap.swapAvailableBytes),
    },
    writableLayer: writableLayer && {
      at: milliseconds(writableLayer.timestamp),
      mountpoint: writableLayer.fsId?.mountpoint ?? '',
      usedBytes: count(writableLayer.usedBytes),
      usedInodes: count(writableLayer.inodesUsed),
    },
  };
}

function interfaceOf(counters: Wire<'NetworkInterfaceUsage'>): InterfaceStats {
  return {
    name: counters.name,
    rxBytes: count(counters.rxBytes),
    rxErrors: count(counters.rxErrors),
    txBytes: count(counters.txBytes),
    txErrors: count(counters.txErrors),
    // The CRI does not tell these.
    ...{ rxPackets: 0, rxDropped: 0, txPackets: 0, txDropped: 0 },
  };
}

/** Pure. */
export function sandboxStatsOf({ attributes, linux }: Wire<'PodSandboxStats'>): PodSandboxStats {
  const { network, process } = linux ?? {};
  const id = attributes?.id ?? '';
  return {
    id,
    metadata: attributes?.metadata ?? { name: '', uid: '', namespace: '', attempt: 0 },
    labels: attributes?.labels ?? {},
    annotations: attributes?.annotations ?? {},
    cpu: cpuOf(linux?.cpu),
    memory: memoryOf(linux?.memory),
    io: ioOf(linux?.io),
    network: network && {
      at: milliseconds(network.timestamp),
      interfaces: [network.defaultInterface, ...network.interfaces]
        .filter((one) => one !== undefined)
        .map(interfaceOf),
    },
    processes: process && { at: milliseconds(process.timestamp), count: count(process.processCount) },
    containers: (linux?.containers ?? []).map((one) => containerStatsOf(one, id)),
  };
}

function metricOf({ name, timestamp, metricType, labelValues, value }: Wire<'Metric'>): Metric {
  return {
    name,
    at: milliseconds(timestamp),
    type: metricType === 'COUNTER' ? 'counter' : 'gauge',
    labelValues,
    value: count(value),
  };
}

/** Of verbose information the part that runtimes give as JSON. Pure. */
export function infoOf(info: Readonly<Record<string, string>>): Readonly<Record<string, unknown>> {
  const all: Record<string, unknown> = {};
  for (const [name, text] of Object.entries(info)) {
    try {
      const value: unknown = JSON.parse(text);
      if (name === 'info' && typeof value === 'object' && value !== null) Object.assign(all, value);
      else all[name] = value;
    } catch {
      all[name] = text;
    }
  }
  return all;
}

export function makeRemoteStats(
  call: Channel['call'],
  within: (signal?: AbortSignal) => CallLimits,
  /** Throws NOT_FOUND. */
  sandboxIdOf: (containerId: string) => Promise<string>,
): RemoteStats {
  return {
    async containerStats(id, signal) {
      const { stats } = await call('ContainerStats', { containerId: id }, within(signal));
      return containerStatsOf(answered(stats, 'stats'), await sandboxIdOf(id));
    },
    async listContainerStats({ id, podSandboxId, labels } = {}, signal) {
      const filter = { id, podSandboxId, labelSelector: labels };
      const { stats } = await call('ListContainerStats', { filter }, within(signal));
      const found = await Promise.all(
        stats.map(async (one) => {
          const sandbox =
            podSandboxId ?? (await sandboxIdOf(one.attributes?.id ?? '').catch(() => undefined));
          return sandbox === undefined ? undefined : containerStatsOf(one, sandbox);
        }),
      );
      return found.filter((one) => one !== undefined);
    },
    async podSandboxStats(id, signal) {
      const { stats } = await call('PodSandboxStats', { podSandboxId: id }, within(signal));
      return sandboxStatsOf(answered(stats, 'stats'));
    },
    async listPodSandboxStats({ id, labels } = {}, signal) {
      const filter = { id, labelSelector: labels };
      const { stats } = await call('ListPodSandboxStats', { filter }, within(signal));
      return stats.map(sandboxStatsOf);
    },
    metricDescriptors: async () => (await call('ListMetricDescriptors', {}, within())).descriptors,
    async listPodSandboxMetrics(signal) {
      const { podMetrics } = await call('ListPodSandboxMetrics', {}, within(signal));
      return podMetrics.map(({ podSandboxId, metrics, containerMetrics }) => ({
        podSandboxId,
        metrics: metrics.map(metricOf),
        containers: containerMetrics.map((one) => ({
          id: one.containerId,
          metrics: one.metrics.map(metricOf),
        })),
      }));
    },
    async containerInfo(id) {
      return infoOf((await call('ContainerStatus', { containerId: id, verbose: true }, within())).info);
    },
    async sandboxInfo(id) {
      return infoOf((await call('PodSandboxStatus', { podSandboxId: id, verbose: true }, within())).info);
    },
  };
}
