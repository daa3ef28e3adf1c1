/** `keelson stats`: what containers and pods use. */
import { parseArgs } from 'node:util';
import type { ContainerStats, CpuStats, PodSandboxMetadata, PodSandboxStats } from '../../../runtime/api.ts';
import { sleep, systemClock } from '../../../runtime/host/clock.ts';
import { withAgent } from '../session.ts';
import { formatBytes, formatTable, printJson } from '../terminal/text.ts';
import { sharedOptions, sharedUsage } from '../usage.ts';

export const usage = `keelson stats [--json] [--config FILE] [CONTAINER...]
keelson stats --pods [--json] [--config FILE] [POD...]

Show what running containers, or pods, use: of the processors in percent of one, of memory without what the kernel can
drop at once, of the disk what was written over the image. Without names: all of them.

  --pods          pods instead of containers
  --json          one document: {"stats": [{id, metadata, cpu, memory, …}]}; times in ms, processor time in ns
${sharedUsage}`;

/** Between two readings, where there was none before. */
const readingMs = 1000;

type Listed = ContainerStats & { readonly pod: PodSandboxMetadata };

export async function run(args: string[]): Promise<void> {
  const { values, positionals: names } = parseArgs({
    args,
    allowPositionals: true,
    options: { ...sharedOptions, pods: { type: 'boolean', default: false } },
  });
  const text = await withAgent(values.config, async (control, signal) => {
    /** A rate needs two readings. */
    const twice = async <T extends { readonly cpu?: CpuStats }>(read: () => Promise<readonly T[]>) => {
      const first = await read();
      if (first.every(({ cpu }) => cpu === undefined || cpu.nanoCores !== undefined)) return first;
      await sleep(systemClock, readingMs, signal);
      return read();
    };
    if (values.pods) {
      const stats = await twice(() => control.call('runtime/pod-stats', { names }, { signal }));
      return values.json ? printJson({ stats }) : formatPodStats(stats);
    }
    const stats = await twice(() => control.call('runtime/container-stats', { names }, { signal }));
    return values.json ? printJson({ stats }) : formatContainerStats(stats);
  });
  process.stdout.write(values.json ? `${text}\n` : text);
}

const percent = (cpu: CpuStats | undefined) =>
  cpu?.nanoCores === undefined ? '-' : `${(cpu.nanoCores / 1e7).toFixed(1)}%`;
const bytes = (amount: number | undefined) => (amount === undefined ? '-' : formatBytes(amount));

/** Pure. */
export function formatContainerStats(stats: readonly Listed[]): string {
  const rows = stats.map(({ id, metadata, pod, cpu, memory, writableLayer }) => [
    id.slice(0, 12),
    metadata.name,
    `${pod.namespace}/${pod.name}`,
    percent(cpu),
    bytes(memory?.workingSet),
    bytes(memory?.available === undefined ? undefined : memory.available + memory.workingSet),
    bytes(writableLayer?.usedBytes),
  ]);
  return formatTable(['CONTAINER ID', 'NAME', 'POD', 'CPU', 'MEMORY', 'LIMIT', 'DISK'], rows);
}

/** Pure. */
export function formatPodStats(stats: readonly PodSandboxStats[]): string {
  const rows = stats.map(({ id, metadata, cpu, memory, network, processes, containers }) => {
    const sum = (side: 'rxBytes' | 'txBytes') =>
      network?.interfaces.reduce((total, one) => total + one[side], 0);
    return [
      id.slice(0, 12),
      metadata.name,
      metadata.namespace,
      percent(cpu),
      bytes(memory?.workingSet),
      `${processes?.count ?? '-'}`,
      bytes(sum('rxBytes')),
      bytes(sum('txBytes')),
      `${containers.length}`,
    ];
  });
  const head = [
    'POD ID',
    'NAME',
    'NAMESPACE',
    'CPU',
    'MEMORY',
    'PROCESSES',
    'RECEIVED',
    'SENT',
    'CONTAINERS',
  ];
  return formatTable(head, rows);
}
