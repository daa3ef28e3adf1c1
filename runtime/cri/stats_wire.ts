/** Stats and metrics of runtime/api.ts → the messages of the wire. Pure. */
import type {
  ContainerStats,
  CpuStats,
  InterfaceStats,
  IoStats,
  MemoryStats,
  Metric,
  PodSandboxMetrics,
  PodSandboxStats,
  Pressure,
  PressureLine,
} from '../api.ts';
import { nanoseconds } from './to_wire.ts';
import type { WireInput } from './wire/types.ts';

/** A number that may be absent, in the message that keeps 0 and absent apart. */
function wrapped(value: number | undefined): WireInput<'UInt64Value'> | undefined {
  return value === undefined ? undefined : { value: Math.max(0, Math.round(value)) };
}

function psiTo(pressure: Pressure | undefined): WireInput<'PsiStats'> | undefined {
  const line = ({ total, avg10, avg60, avg300 }: PressureLine) => ({
    Total: total,
    Avg10: avg10,
    Avg60: avg60,
    Avg300: avg300,
  });
  return pressure && { Full: line(pressure.full), Some: line(pressure.some) };
}

function cpuTo(cpu: CpuStats | undefined): WireInput<'CpuUsage'> | undefined {
  return (
    cpu && {
      timestamp: nanoseconds(cpu.at),
      usageCoreNanoSeconds: wrapped(cpu.usageNs),
      usageNanoCores: wrapped(cpu.nanoCores),
      psi: psiTo(cpu.pressure),
    }
  );
}

function memoryTo(memory: MemoryStats | undefined): WireInput<'MemoryUsage'> | undefined {
  return (
    memory && {
      timestamp: nanoseconds(memory.at),
      workingSetBytes: wrapped(memory.workingSet),
      availableBytes: wrapped(memory.available),
      usageBytes: wrapped(memory.usage),
      rssBytes: wrapped(memory.rss),
      pageFaults: wrapped(memory.pageFaults),
      majorPageFaults: wrapped(memory.majorPageFaults),
      psi: psiTo(memory.pressure),
    }
  );
}

function ioTo(io: IoStats | undefined): WireInput<'IoUsage'> | undefined {
  return io && { timestamp: nanoseconds(io.at), psi: psiTo(io.pressure) };
}

export function containerStatsTo(stats: ContainerStats): WireInput<'ContainerStats'> {
  const { id, metadata, labels, annotations, swap, writableLayer } = stats;
  return {
    attributes: { id, metadata, labels, annotations },
    cpu: cpuTo(stats.cpu),
    memory: memoryTo(stats.memory),
    io: ioTo(stats.io),
    swap: swap && {
      timestamp: nanoseconds(swap.at),
      swapAvailableBytes: wrapped(swap.available),
      swapUsageBytes: wrapped(swap.usage),
    },
    writableLayer: writableLayer && {
      timestamp: nanoseconds(writableLayer.at),
      fsId: { mountpoint: writableLayer.mountpoint },
      usedBytes: wrapped(writableLayer.usedBytes),
      inodesUsed: wrapped(writableLayer.usedInodes),
    },
  };
}

function interfaceTo(counters: InterfaceStats): WireInput<'NetworkInterfaceUsage'> {
  return {
    name: counters.name,
    rxBytes: wrapped(counters.rxBytes),
    rxErrors: wrapped(counters.rxErrors),
    txBytes: wrapped(counters.txBytes),
    txErrors: wrapped(counters.txErrors),
  };
}

export function sandboxStatsTo(stats: PodSandboxStats): WireInput<'PodSandboxStats'> {
  const { id, metadata, labels, annotations, network, processes } = stats;
  const main = network?.interfaces.find(({ name }) => name === 'eth0');
  return {
    attributes: { id, metadata, labels, annotations },
    linux: {
      cpu: cpuTo(stats.cpu),
      memory: memoryTo(stats.memory),
      io: ioTo(stats.io),
      network: network && {
        timestamp: nanoseconds(network.at),
        defaultInterface: main && interfaceTo(main),
        interfaces: network.interfaces.filter((one) => one !== main).map(interfaceTo),
      },
      process: processes && {
        timestamp: nanoseconds(processes.at),
        processCount: wrapped(processes.count),
      },
      containers: stats.containers.map(containerStatsTo),
    },
  };
}

function metricTo({ name, at, type, labelValues, value }: Metric): WireInput<'Metric'> {
  return {
    name,
    timestamp: nanoseconds(at),
    metricType: type === 'counter' ? 'COUNTER' : 'GAUGE',
    labelValues,
    value: wrapped(value),
  };
}

export function metricsTo({
  podSandboxId,
  metrics,
  containers,
}: PodSandboxMetrics): WireInput<'PodSandboxMetrics'> {
  return {
    podSandboxId,
    metrics: metrics.map(metricTo),
    containerMetrics: containers.map((one) => ({ containerId: one.id, metrics: one.metrics.map(metricTo) })),
  };
}
