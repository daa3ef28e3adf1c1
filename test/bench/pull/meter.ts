/** What the processes of one puller cost: a cgroup counts their CPU time, their high-water marks tell the memory. */
import { existsSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { detectCgroups } from '../../../runtime/host/cgroups.ts';
import { cgroupHierarchies, processesOf } from '../../peers/machine.ts';

const sampleMs = 50;

export interface Meter {
  /** A program and arguments that put themselves into the cgroup, then become `program`; killed with this process. */
  inside(program: string, args: readonly string[]): [string, string[]];
  /** Seconds of CPU time, user and system, of all that ever ran in the cgroup. */
  cpuSeconds(): Promise<number>;
  /**
   * The greatest sum of the high-water marks (VmHWM) of processes that were seen together, in MiB. Looks 20 times a
   * second, so that short processes may be missed; pages that processes share count for each.
   */
  peakMib(): number;
  /** Kills what is left in the cgroup, and removes it. */
  close(): Promise<void>;
}

export async function startMeter(name: string): Promise<Meter> {
  const cgroups = detectCgroups();
  const path = `/${name}`;
  await cgroups.ensure(path);
  const folder = await accountingFolder(path);
  let peak = 0;
  const sample = async () => {
    const marks = await Promise.all((await processesOf(folder)).map(highWaterMib));
    peak = Math.max(
      peak,
      marks.reduce((sum, mark) => sum + mark, 0),
    );
  };
  const timer = setInterval(() => void sample().catch(() => {}), sampleMs);
  return {
    inside: (program, args) => [
      'setpriv',
      ['--pdeathsig', 'KILL', 'sh', '-c', 'echo $$ > "$0" && exec "$@"', join(folder, 'cgroup.procs')].concat(
        program,
        args,
      ),
    ],
    cpuSeconds: () => cpuSeconds(folder),
    peakMib: () => peak,
    async close() {
      clearInterval(timer);
      await cgroups.kill(path);
      await cgroups.remove(path);
    },
  };
}

/** The folder of the cgroup `path` in the hierarchy that counts CPU time. */
async function accountingFolder(path: string): Promise<string> {
  const roots = await cgroupHierarchies();
  const v1 = roots.find((root) => existsSync(join(root, 'cpuacct.usage')));
  const v2 = roots.find((root) => existsSync(join(root, 'cgroup.controllers')));
  const root = v1 ?? v2;
  if (root === undefined) throw new Error('no cgroup hierarchy that counts CPU time is mounted');
  const folder = join(root, path);
  await mkdir(folder, { recursive: true });
  return folder;
}

async function cpuSeconds(folder: string): Promise<number> {
  if (existsSync(join(folder, 'cpuacct.usage'))) {
    return Number(await readFile(join(folder, 'cpuacct.usage'), 'utf8')) / 1e9;
  }
  const text = await readFile(join(folder, 'cpu.stat'), 'utf8');
  return Number(/^usage_usec (\d+)$/m.exec(text)?.[1] ?? 0) / 1e6;
}

async function highWaterMib(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) / 1024;
}
