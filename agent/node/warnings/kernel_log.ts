/**
 * Follows the kernel's log from now on. A blocking read of /dev/kmsg would hold a thread of Node's small pool for ever,
 * so dmesg reads it, and ends with the agent however that ends (prctl(2), PR_SET_PDEATHSIG).
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { describe } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';

export interface KernelLog {
  close(): void;
}

/** Of a line that is never ended. */
const longestLine = 8192;

export function followKernelLog(options: {
  readonly onLine: (line: string) => void;
  readonly log: Logger;
  /** Prints the log line by line. Default dmesg. */
  readonly command?: readonly [string, ...string[]];
}): KernelLog {
  const { onLine, log } = options;
  const [program, ...args] = options.command ?? [
    'setpriv',
    ...['--pdeathsig', 'KILL', '--', 'dmesg', '--follow-new', '--raw'],
  ];
  const why = 'the kernel log cannot be followed: nobody is told when the machine runs out of memory';
  let closed = false;
  let child: ChildProcess | undefined;
  try {
    child = spawn(program, args, { stdio: ['ignore', 'pipe', 'ignore'] });
  } catch (error) {
    log.warn({ error: describe(error) }, why);
    return { close: () => {} };
  }
  let rest = '';
  child.stdout!.setEncoding('utf8').on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop()!.slice(-longestLine);
    for (const line of lines) if (!closed) onLine(line);
  });
  child.once('error', (error) => {
    if (!closed) log.warn({ error: describe(error) }, why);
  });
  child.once('exit', (code, signal) => {
    if (!closed) log.warn({ code, signal }, why);
  });
  // It is no reason to stay.
  child.unref();
  (child.stdout as unknown as { unref?: () => void }).unref?.();
  return {
    close() {
      closed = true;
      child.kill('SIGKILL');
    },
  };
}
