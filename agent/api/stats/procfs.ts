/** What the whole machine and this process use, from the kernel's files. Parsing is pure. */
import { readFile } from 'node:fs/promises';
import type { CpuStats, InterfaceStats, MemoryStats, Pressure, SwapStats } from '../../../runtime/api.ts';
import type { Clock } from '../../../runtime/host/clock.ts';
import { parseDefaultRoutes4, parseDefaultRoutes6, parseMeminfo } from '../../node/procfs.ts';
import type { MeasuredNode } from './summary.ts';

/** USER_HZ: 100 on every architecture that Node.js runs on. */
const tickNs = 1e7;
/** Two readings that are closer give no speed. */
const shortestMs = 500;

/** Busy processor time in nanoseconds, and when the machine was booted, Unix milliseconds, from /proc/stat. */
export function parseStat(text: string): { readonly busyNs: number; readonly bootedAt: number } {
  const fields = /^cpu +([\d ]+)$/m.exec(text)?.[1]?.split(' ').map(Number) ?? [];
  // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = fields;
  const booted = Number(/^btime (\d+)$/m.exec(text)?.[1] ?? 0);
  return { busyNs: (user + nice + system + irq + softirq) * tickNs, bootedAt: booted * 1000 };
}

/** Counters of /proc/net/dev. */
export function parseNetDev(text: string): InterfaceStats[] {
  return [...text.matchAll(/^\s*([^\s:]+):\s*([\d ]+)$/gm)].map(([, name, rest]) => {
    const numbers = rest!.trim().split(/ +/).map(Number);
    const at = (index: number) => numbers[index] ?? 0;
    return {
      name: name!,
      rxBytes: at(0),
      rxPackets: at(1),
      rxErrors: at(2),
      rxDropped: at(3),
      txBytes: at(8),
      txPackets: at(9),
      txErrors: at(10),
      txDropped: at(11),
    };
  });
}

/** /proc/pressure/*; undefined where the kernel does not count it. */
export function parsePressure(text: string): Pressure | undefined {
  const line = (which: string) => {
    const [, avg10, avg60, avg300, total] =
      new RegExp(`^${which} avg10=([\\d.]+) avg60=([\\d.]+) avg300=([\\d.]+) total=(\\d+)$`, 'm').exec(
        text,
      ) ?? [];
    return total === undefined
      ? undefined
      : { avg10: Number(avg10), avg60: Number(avg60), avg300: Number(avg300), total: Number(total) };
  };
  const some = line('some');
  // Older kernels have no `full` for the processor.
  return some && { some, full: line('full') ?? { avg10: 0, avg60: 0, avg300: 0, total: 0 } };
}

/** Memory and swap of the machine, as cAdvisor counts the root cgroup, from /proc/meminfo and /proc/vmstat. */
export function machineMemory(
  meminfo: string,
  vmstat: string,
  hugepageBytes: number,
  at: number,
): { readonly memory: MemoryStats; readonly swap: SwapStats } {
  const of = parseMeminfo(meminfo);
  const value = (name: string) => of[name] ?? 0;
  const counter = (name: string) => Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(vmstat)?.[1] ?? 0);
  const usage = value('MemTotal') - value('MemFree');
  const workingSet = Math.max(0, usage - value('Inactive(file)'));
  return {
    memory: {
      at,
      usage,
      workingSet,
      // Huge pages are set aside: nobody else can have them.
      available: Math.max(0, value('MemTotal') - workingSet - hugepageBytes),
      rss: value('AnonPages'),
      pageFaults: counter('pgfault'),
      majorPageFaults: counter('pgmajfault'),
    },
    swap: { at, usage: value('SwapTotal') - value('SwapFree'), available: value('SwapFree') },
  };
}

export type Machine = Pick<MeasuredNode, 'bootedAt' | 'cpu' | 'memory' | 'swap' | 'io' | 'network' | 'agent'>;

/** `root`: where /proc is. Never throws: what cannot be read is 0. */
export function makeMachineReader(clock: Clock, root = '/'): (hugepageBytes: number) => Promise<Machine> {
  const text = (file: string) => readFile(`${root}proc/${file}`, 'utf8').catch(() => '');
  const windows = new Map<string, { at: number; usageNs: number; nanoCores?: number }>();
  const startedAt = clock.now() - process.uptime() * 1000;

  const speed = (who: string, usageNs: number): number | undefined => {
    const at = clock.monotonic();
    const before = windows.get(who);
    if (before !== undefined && at - before.at < shortestMs) return before.nanoCores;
    const nanoCores =
      before && Math.max(0, Math.round(((usageNs - before.usageNs) * 1000) / (at - before.at)));
    windows.set(who, { at, usageNs, nanoCores });
    return nanoCores;
  };

  return async (hugepageBytes) => {
    const [stat, meminfo, vmstat, netDev, routes4, routes6, cpuPsi, memoryPsi, ioPsi] = await Promise.all(
      [
        ...['stat', 'meminfo', 'vmstat', 'net/dev', 'net/route', 'net/ipv6_route'],
        ...['pressure/cpu', 'pressure/memory', 'pressure/io'],
      ].map(text),
    );
    const at = clock.now();
    const { busyNs, bootedAt } = parseStat(stat!);
    const { memory, swap } = machineMemory(meminfo!, vmstat!, hugepageBytes, at);
    const { user, system } = process.cpuUsage();
    const usageNs = (user + system) * 1000;
    const { minorPageFault, majorPageFault } = process.resourceUsage();
    const rss = process.memoryUsage.rss();
    const io = parsePressure(ioPsi!);
    const cpu: CpuStats = {
      at,
      usageNs: busyNs,
      nanoCores: speed('machine', busyNs),
      pressure: parsePressure(cpuPsi!),
    };
    return {
      bootedAt,
      cpu,
      memory: { ...memory, pressure: parsePressure(memoryPsi!) },
      swap,
      io: io && { at, pressure: io },
      network: {
        at,
        main: (parseDefaultRoutes4(routes4!)[0] ?? parseDefaultRoutes6(routes6!)[0])?.interface,
        interfaces: parseNetDev(netDev!).filter(({ name }) => name !== 'lo'),
      },
      agent: {
        startedAt,
        cpu: { at, usageNs, nanoCores: speed('agent', usageNs) },
        memory: {
          at,
          usage: rss,
          workingSet: rss,
          rss,
          pageFaults: minorPageFault + majorPageFault,
          majorPageFaults: majorPageFault,
        },
      },
    };
  };
}
