/** What processes cost: proportional set size, as the kernel adds it up. */
import { readFile } from 'node:fs/promises';

/** PSS of a process in MiB (proc(5), smaps_rollup); 0 where it has ended. */
export async function pssMib(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8').catch(() => '');
  return Number(/^Pss:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) / 1024;
}
