/** Traffic of a network namespace: /proc/PID/net/dev of somebody in it. */
import { readFile } from 'node:fs/promises';
import type { InterfaceStats } from '../api.ts';
import { exec } from '../host/exec.ts';

/** proc_pid_net(5): two lines of heads, then `name: 8 numbers received, 8 sent`; without the loopback. Pure. */
export function parseNetDev(text: string): InterfaceStats[] {
  return text
    .split('\n')
    .slice(2)
    .map((line) => /^\s*([^\s]+):\s*(.*)$/.exec(line))
    .filter((match) => match !== null)
    .map(([, name = '', rest = '']) => {
      const values = rest.trim().split(/\s+/).map(Number);
      const at = (index: number) => values[index] ?? 0;
      return {
        name,
        rxBytes: at(0),
        rxPackets: at(1),
        rxErrors: at(2),
        rxDropped: at(3),
        txBytes: at(8),
        txPackets: at(9),
        txErrors: at(10),
        txDropped: at(11),
      };
    })
    .filter(({ name }) => name !== 'lo');
}

/**
 * Of the namespace pinned at `path`, in which the processes `pids` are, if any are; undefined where it is gone. A pod
 * without a process is entered by a program, which takes some milliseconds.
 */
export async function readInterfaces(
  path: string,
  pids: readonly number[],
  signal?: AbortSignal,
): Promise<InterfaceStats[] | undefined> {
  for (const pid of pids) {
    const text = await readFile(`/proc/${pid}/net/dev`, 'latin1').catch(() => undefined);
    if (text !== undefined) return parseNetDev(text);
  }
  try {
    const { stdout } = await exec('nsenter', [`--net=${path}`, 'cat', '/proc/self/net/dev'], {
      deadlineMs: 5000,
      signal,
    });
    return parseNetDev(stdout.toString('latin1'));
  } catch {
    return undefined;
  }
}
