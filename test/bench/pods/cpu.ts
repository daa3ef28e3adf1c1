/** Processor time of a node: its daemons and what they start, in a cgroup of their own, and its pods. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { cgroupHierarchies } from '../../peers/machine.ts';

export interface CpuMeter {
  /** Milliseconds since the beginning, of all processors together. */
  used(): Promise<number>;
  /** The part of the daemons themselves, to 10 ms. */
  usedByDaemons(): Promise<number>;
  /** Resolves when it has used almost nothing for a second: what goes on after the last pod is over. Gives up after a minute. */
  quiet(): Promise<void>;
}

const quietMs = 1000;
/** Of one processor. */
const quietShare = 0.05;

/** Moves the daemons into a cgroup beside `podsCgroup`; what they have started before stays where it is. */
export async function meterCpu(podsCgroup: string, pids: readonly number[]): Promise<CpuMeter> {
  const { hierarchy, read } = await accounting();
  const daemons = join(hierarchy, `${podsCgroup}-daemons`);
  const pods = join(hierarchy, podsCgroup);
  for (const folder of [daemons, pods]) await mkdir(folder, { recursive: true });
  for (const pid of pids) await writeFile(join(daemons, 'cgroup.procs'), String(pid));
  const used = async () => (await read(daemons)) + (await read(pods));
  return {
    used,
    usedByDaemons: async () => (await Promise.all(pids.map(ownTime))).reduce((sum, one) => sum + one, 0),
    async quiet() {
      for (let tries = 0; tries < 60; tries++) {
        const before = await used();
        await delay(quietMs);
        if ((await used()) - before < quietMs * quietShare) return;
      }
    },
  };
}

/** User and system time of a process (proc(5), `stat`, fields 14 and 15, in the 100 Hz that Linux tells everywhere). */
async function ownTime(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8');
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

/** The hierarchy that counts processor time, and how it is read, in milliseconds. */
async function accounting() {
  for (const hierarchy of await cgroupHierarchies()) {
    const v1 = async (folder: string) =>
      Number(await readFile(join(folder, 'cpuacct.usage'), 'utf8')) / 1_000_000;
    if (Number.isFinite(await v1(hierarchy).catch(() => Number.NaN))) return { hierarchy, read: v1 };
  }
  const [hierarchy] = await cgroupHierarchies();
  const v2 = async (folder: string) =>
    Number(/^usage_usec (\d+)$/m.exec(await readFile(join(folder, 'cpu.stat'), 'utf8'))![1]) / 1000;
  return { hierarchy: hierarchy!, read: v2 };
}
