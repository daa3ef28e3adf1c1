/** What was measured → kubelet's Summary API (k8s.io/kubelet, pkg/apis/stats/v1alpha1). Pure. */
import type {
  ContainerStats,
  CpuStats,
  InterfaceStats,
  IoStats,
  MemoryStats,
  PodSandboxStats,
  Pressure,
  SwapStats,
} from '../../../runtime/api.ts';
import { rfc3339 } from '../../../runtime/host/clock.ts';

/** Bytes and inodes of a file system, and what one user has of it. Unix milliseconds. */
export interface Storage {
  readonly at: number;
  readonly capacityBytes: number;
  readonly availableBytes: number;
  readonly usedBytes: number;
  readonly inodes: number;
  readonly inodesFree: number;
  readonly inodesUsed: number;
}

export interface MeasuredVolume {
  readonly name: string;
  readonly claim?: { readonly name: string; readonly namespace: string };
  /** It takes from the node's own storage, and is gone with the pod. */
  readonly ephemeral: boolean;
  readonly storage: Storage;
}

export interface MeasuredPod {
  readonly stats: PodSandboxStats;
  readonly createdAt: number;
  readonly containers: readonly {
    readonly stats: ContainerStats;
    readonly createdAt: number;
    readonly rootfs?: Storage;
    readonly logs?: Storage;
  }[];
  readonly volumes: readonly MeasuredVolume[];
}

export interface MeasuredNode {
  readonly name: string;
  readonly bootedAt: number;
  readonly cpu: CpuStats;
  readonly memory: MemoryStats;
  readonly swap: SwapStats;
  readonly io?: IoStats;
  readonly network?: {
    readonly at: number;
    /** Of the default route. */
    readonly main?: string;
    readonly interfaces: readonly InterfaceStats[];
  };
  readonly tasks: { readonly at: number; readonly count: number; readonly most: number };
  readonly nodefs: Storage;
  readonly imagefs: Storage;
  /** This process. */
  readonly agent: { readonly startedAt: number; readonly cpu: CpuStats; readonly memory: MemoryStats };
  /** All pods together. */
  readonly pods?: { readonly startedAt: number; readonly cpu: CpuStats; readonly memory: MemoryStats };
}

type Fields = Readonly<Record<string, unknown>>;

export interface Summary {
  readonly node: Fields;
  readonly pods: readonly Fields[];
}

/** `brief`: processor and memory only. */
export function summaryOf(node: MeasuredNode, pods: readonly MeasuredPod[], brief: boolean): Summary {
  return { node: nodeOf(node, brief), pods: pods.map((pod) => podOf(pod, brief)) };
}

/** Counts are whole numbers that are not negative. */
const whole = (value: number | undefined) =>
  value === undefined ? undefined : Math.max(0, Math.round(value));

function psiOf(pressure: Pressure | undefined): Fields | undefined {
  // Microseconds from the kernel, nanoseconds in this API.
  const line = ({ total, ...averages }: Pressure['some']) => ({ total: total * 1000, ...averages });
  return pressure && { full: line(pressure.full), some: line(pressure.some) };
}

function cpuOf(cpu: CpuStats | undefined): Fields | undefined {
  return (
    cpu && {
      time: rfc3339(cpu.at),
      usageNanoCores: whole(cpu.nanoCores),
      usageCoreNanoSeconds: whole(cpu.usageNs),
      psi: psiOf(cpu.pressure),
    }
  );
}

function memoryOf(memory: MemoryStats | undefined): Fields | undefined {
  return (
    memory && {
      time: rfc3339(memory.at),
      availableBytes: whole(memory.available),
      usageBytes: whole(memory.usage),
      workingSetBytes: whole(memory.workingSet),
      rssBytes: whole(memory.rss),
      pageFaults: whole(memory.pageFaults),
      majorPageFaults: whole(memory.majorPageFaults),
      psi: psiOf(memory.pressure),
    }
  );
}

function ioOf(io: IoStats | undefined): Fields | undefined {
  return io && { time: rfc3339(io.at), psi: psiOf(io.pressure) };
}

function swapOf(swap: SwapStats | undefined): Fields | undefined {
  return (
    swap && {
      time: rfc3339(swap.at),
      swapAvailableBytes: whole(swap.available),
      swapUsageBytes: whole(swap.usage),
    }
  );
}

function storageOf(storage: Storage | undefined): Fields | undefined {
  if (storage === undefined) return undefined;
  const { at, ...counts } = storage;
  return {
    time: rfc3339(at),
    ...Object.fromEntries(Object.entries(counts).map(([name, value]) => [name, whole(value)])),
  };
}

function interfaceOf({ name, rxBytes, rxErrors, txBytes, txErrors }: InterfaceStats): Fields {
  return { name, rxBytes, rxErrors, txBytes, txErrors };
}

function networkOf(network: MeasuredNode['network']): Fields | undefined {
  if (network === undefined) return undefined;
  const { at, main, interfaces } = network;
  const found = interfaces.find(({ name }) => name === main);
  return {
    time: rfc3339(at),
    ...(found ? interfaceOf(found) : { name: '' }),
    interfaces: interfaces.map(interfaceOf),
  };
}

function nodeOf(node: MeasuredNode, brief: boolean): Fields {
  const { tasks, agent, pods } = node;
  const system = (name: string, { startedAt, cpu, memory }: MeasuredNode['agent']) => ({
    name,
    startTime: rfc3339(startedAt),
    cpu: cpuOf(cpu),
    memory: memoryOf(memory),
  });
  const most = {
    nodeName: node.name,
    systemContainers: [system('kubelet', agent), ...(pods ? [system('pods', pods)] : [])],
    startTime: rfc3339(node.bootedAt),
    cpu: cpuOf(node.cpu),
    memory: memoryOf(node.memory),
    swap: swapOf(node.swap),
  };
  if (brief) return most;
  return {
    ...most,
    io: ioOf(node.io),
    network: networkOf(node.network),
    fs: storageOf(node.nodefs),
    runtime: { imageFs: storageOf(node.imagefs), containerFs: storageOf(node.imagefs) },
    rlimit: { time: rfc3339(tasks.at), maxpid: tasks.most, curproc: tasks.count },
  };
}

function podOf({ stats, createdAt, containers, volumes }: MeasuredPod, brief: boolean): Fields {
  const { name, namespace, uid } = stats.metadata;
  const swaps = containers.map((one) => one.stats.swap).filter((swap) => swap !== undefined);
  const most = {
    podRef: { name, namespace, uid },
    startTime: rfc3339(createdAt),
    containers: containers.map((one) => ({
      name: one.stats.metadata.name,
      startTime: rfc3339(one.createdAt),
      cpu: cpuOf(one.stats.cpu),
      memory: memoryOf(one.stats.memory),
      swap: swapOf(one.stats.swap),
      ...(brief ? {} : { io: ioOf(one.stats.io), rootfs: storageOf(one.rootfs), logs: storageOf(one.logs) }),
    })),
    cpu: cpuOf(stats.cpu),
    memory: memoryOf(stats.memory),
    swap: swaps.length === 0 ? undefined : swapOf(sumOfSwap(swaps)),
  };
  if (brief) return most;
  const { network, processes } = stats;
  return {
    ...most,
    io: ioOf(stats.io),
    network: network && networkOf({ ...network, main: 'eth0' }),
    volume: volumes.map((volume) => ({
      name: volume.name,
      pvcRef: volume.claim,
      ...storageOf(volume.storage),
    })),
    'ephemeral-storage': storageOf(ephemeralOf(containers, volumes)),
    process_stats: processes && { process_count: processes.count },
  };
}

function sumOfSwap(swaps: readonly SwapStats[]): SwapStats {
  const limited = swaps.every(({ available }) => available !== undefined);
  return {
    at: Math.min(...swaps.map(({ at }) => at)),
    usage: swaps.reduce((sum, { usage }) => sum + usage, 0),
    available: limited ? swaps.reduce((sum, { available = 0 }) => sum + available, 0) : undefined,
  };
}

/** What a pod has of the node's own storage: written layers, logs, and volumes that are gone with it. */
export function ephemeralOf(
  containers: MeasuredPod['containers'],
  volumes: readonly MeasuredVolume[],
): Storage | undefined {
  const parts = [
    ...containers.flatMap(({ rootfs, logs }) => [rootfs, logs]),
    ...volumes.filter(({ ephemeral }) => ephemeral).map(({ storage }) => storage),
  ].filter((part) => part !== undefined);
  const [first] = containers.map(({ logs, rootfs }) => logs ?? rootfs).filter((part) => part !== undefined);
  const base = first ?? parts[0];
  return (
    base && {
      ...base,
      usedBytes: parts.reduce((sum, { usedBytes }) => sum + usedBytes, 0),
      inodesUsed: parts.reduce((sum, { inodesUsed }) => sum + inodesUsed, 0),
    }
  );
}
