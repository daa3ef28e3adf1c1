/** What processes cost: proportional set size, as the kernel adds it up. */
import { readFile } from 'node:fs/promises';
import { processesNaming } from '../peers/machine.ts';

/** PSS of a process in MiB (proc(5), smaps_rollup); 0 where it has ended. */
export async function pssMib(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8').catch(() => '');
  return Number(/^Pss:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) / 1024;
}

/** PSS in MiB of the agent and of all its conmons, which carry `folder` in their arguments. */
export async function nodePss(
  agentPid: number,
  folder: string,
): Promise<{ agent: number; conmons: number[] }> {
  const monitors = (await processesNaming(folder)).filter(({ command }) => /(^|\/)conmon /.test(command));
  return {
    agent: await pssMib(agentPid),
    conmons: await Promise.all(monitors.map(({ pid }) => pssMib(pid))),
  };
}
