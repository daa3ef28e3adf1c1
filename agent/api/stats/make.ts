/** Measures the node and its pods for the node's API. */
import type { RuntimeService, RuntimeStats } from '../../../runtime/api.ts';
import type { Clock } from '../../../runtime/host/clock.ts';
import { isError } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import type { Pod } from '../../apiserver/types.ts';
import type { FactsReader, FilesystemFacts } from '../../node/facts.ts';
import { podLogFolder } from '../../pods/spec/pod.ts';
import { makeMachineReader } from './procfs.ts';
import { makeStorageReader, type StorageOptions } from './storage.ts';
import { type MeasuredNode, type MeasuredPod, type Storage, summaryOf } from './summary.ts';
import { failedResourceText, podMetricsText, resourceText } from './text.ts';
import type { NodeStats } from './types.ts';

export interface NodeStatsOptions {
  readonly nodeName: string;
  readonly runtime: Pick<RuntimeService, 'listContainers' | 'listPodSandbox'> & RuntimeStats;
  readonly facts: FactsReader;
  readonly pods: () => readonly Pod[];
  readonly kubeletDir: string;
  readonly podLogsDir: string;
  /** What the driver of a CSI volume says of the volume in that folder; undefined: nothing. */
  readonly csiUsage?: StorageOptions['csiUsage'];
  readonly clock: Clock;
  readonly log: Logger;
}

export function makeNodeStats(options: NodeStatsOptions): NodeStats {
  const { runtime, clock, log, podLogsDir } = options;
  const readMachine = makeMachineReader(clock);
  const storage = makeStorageReader(options);
  /** For the first speeds. */
  void readMachine(0);

  const measurePods = async (brief: boolean, signal: AbortSignal): Promise<MeasuredPod[]> => {
    const [stats, sandboxes, containers] = await Promise.all([
      runtime.listPodSandboxStats({}, signal),
      runtime.listPodSandbox(),
      runtime.listContainers(),
    ]);
    const madeAt = new Map([...sandboxes, ...containers].map(({ id, createdAt }) => [id, createdAt]));
    const pods = new Map(options.pods().map((pod) => [pod.metadata?.uid ?? '', pod]));
    storage.forget();
    return Promise.all(
      stats.map(async (one) => {
        const pod = pods.get(one.metadata.uid);
        const all = one.containers.map(async (container) => {
          const basic = { stats: container, createdAt: madeAt.get(container.id) ?? 0 };
          if (brief) return basic;
          const layer = container.writableLayer;
          const logs = pod && `${podLogFolder(podLogsDir, pod)}/${container.metadata.name}`;
          return {
            ...basic,
            rootfs:
              layer &&
              (await storage.filesystem(layer.mountpoint, {
                bytes: layer.usedBytes,
                inodes: layer.usedInodes,
              })),
            logs: logs === undefined ? undefined : await storage.folder(logs),
          };
        });
        return {
          stats: one,
          createdAt: madeAt.get(one.id) ?? 0,
          containers: await Promise.all(all),
          volumes: brief || pod === undefined ? [] : await storage.volumes(pod),
        };
      }),
    );
  };

  const measureNode = async (pods: readonly MeasuredPod[]): Promise<MeasuredNode> => {
    const facts = await options.facts.read();
    const hugepages = Object.values(facts.hugepages).reduce((sum, bytes) => sum + bytes, 0);
    const machine = await readMachine(hugepages);
    const at = clock.now();
    return {
      ...machine,
      name: options.nodeName,
      tasks: { at, count: facts.tasks, most: facts.maxTasks },
      nodefs: storageOf(facts.nodefs, at),
      imagefs: storageOf(facts.imagefs, at),
      pods: podsTogether(pods, facts.memoryBytes, machine.agent.startedAt, at),
    };
  };

  return {
    async summary(brief, signal) {
      const pods = await measurePods(brief, signal);
      return summaryOf(await measureNode(pods), pods, brief);
    },
    async resourceMetrics(signal) {
      try {
        const pods = await measurePods(true, signal);
        return resourceText(await measureNode(pods), pods);
      } catch (error) {
        // The scraper learns that from the metrics, too, as with kubelet.
        log.warn({ err: error }, 'what pods use could not be measured');
        return failedResourceText;
      }
    },
    async podMetrics(signal) {
      const machine = await options.facts.read();
      try {
        const [descriptors, sandboxes] = await Promise.all([
          runtime.metricDescriptors(),
          runtime.listPodSandboxMetrics(signal),
        ]);
        return podMetricsText(descriptors, sandboxes, machine);
      } catch (error) {
        // Other runtimes, older than the calls.
        if (isError(error, 'UNIMPLEMENTED')) return podMetricsText([], [], machine);
        throw error;
      }
    },
  };
}

function storageOf(facts: FilesystemFacts, at: number): Storage {
  const { capacityBytes, availableBytes, inodes, inodesFree } = facts;
  return {
    at,
    capacityBytes,
    availableBytes,
    usedBytes: capacityBytes - availableBytes,
    inodes,
    inodesFree,
    inodesUsed: inodes - inodesFree,
  };
}

/** The sum over the pods that run, as the system container `pods` has it. */
function podsTogether(
  pods: readonly MeasuredPod[],
  memoryBytes: number,
  startedAt: number,
  at: number,
): MeasuredNode['pods'] {
  const cpus = pods.flatMap(({ stats }) => (stats.cpu ? [stats.cpu] : []));
  const memories = pods.flatMap(({ stats }) => (stats.memory ? [stats.memory] : []));
  const sum = <T>(things: readonly T[], of: (thing: T) => number) =>
    things.reduce((total, thing) => total + of(thing), 0);
  const workingSet = sum(memories, (memory) => memory.workingSet);
  return {
    startedAt,
    cpu: {
      at,
      usageNs: sum(cpus, (cpu) => cpu.usageNs),
      nanoCores: sum(cpus, (cpu) => cpu.nanoCores ?? 0),
    },
    memory: {
      at,
      usage: sum(memories, (memory) => memory.usage),
      workingSet,
      available: Math.max(0, memoryBytes - workingSet),
      rss: sum(memories, (memory) => memory.rss),
      pageFaults: sum(memories, (memory) => memory.pageFaults),
      majorPageFaults: sum(memories, (memory) => memory.majorPageFaults),
    },
  };
}
