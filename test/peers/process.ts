/** Long-running programs that tests start: their output goes to a file, they end with the test run, whatever ends it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { KeelsonError } from '../../runtime/host/errors.ts';

export interface Daemon {
  readonly pid: number;
  readonly logFile: string;
  /** Resolves when the program has ended, with what ended it (`exit code 1`, `SIGKILL`). */
  readonly ended: Promise<string>;
  /** What ended it; undefined while it runs. */
  readonly endedBy: string | undefined;
  /** TERM, then KILL after `killAfterMs` (default 10,000). Returns when it has ended. */
  stop(killAfterMs?: number): Promise<void>;
  /** KILL at once. Returns when it has ended. */
  kill(): Promise<void>;
  /** The last `bytes` of its output (default 4,000). */
  tail(bytes?: number): Promise<string>;
}

export interface DaemonOptions {
  /** Standard output and error are appended to it. */
  readonly logFile: string;
  /** Added to the environment of this process. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

/**
 * Starts `program`. It gets KILL when this process dies (setpriv --pdeathsig), so that a test run that is itself
 * killed leaves no server behind. Throws EXEC_NOT_FOUND or EXEC_FAILED.
 */
export async function startDaemon(
  program: string,
  args: readonly string[],
  options: DaemonOptions,
): Promise<Daemon> {
  const log = await open(options.logFile, 'a', 0o600);
  let endedBy: string | undefined;
  try {
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', program, ...args], {
      stdio: ['ignore', log.fd, log.fd],
      env: { ...process.env, ...options.env },
      cwd: options.cwd,
    });
    const ended = once(child, 'exit').then(([code, signal]) => {
      endedBy = signal === null ? `exit code ${code}` : String(signal);
      return endedBy;
    });
    // Without this, an 'error' event (no such program) would reject `ended` before anybody waits for it.
    ended.catch(() => {});
    await once(child, 'spawn').catch((error: unknown) => {
      throw new KeelsonError('EXEC_NOT_FOUND', `cannot start setpriv for ${program}`, {
        cause: error,
        hint: "install util-linux ('apt-get install util-linux')",
      });
    });
    const pid = child.pid!;
    const end = async (signal: NodeJS.Signals) => {
      if (endedBy === undefined) child.kill(signal);
    };
    return {
      pid,
      logFile: options.logFile,
      ended,
      get endedBy() {
        return endedBy;
      },
      async stop(killAfterMs = 10_000) {
        await end('SIGTERM');
        const timer = setTimeout(() => child.kill('SIGKILL'), killAfterMs);
        await ended;
        clearTimeout(timer);
      },
      async kill() {
        await end('SIGKILL');
        await ended;
      },
      tail: async (bytes = 4000) => (await readFile(options.logFile)).subarray(-bytes).toString('utf8'),
    };
  } finally {
    await log.close();
  }
}

/**
 * Repeats `probe` every `everyMs` until it gives something other than undefined. For what sends no event of its
 * own, such as a server that is starting. What the probe throws counts as "not yet".
 * Throws DEADLINE_EXCEEDED naming `what`, with the last failure and the end of the daemon's log; FAILED_PRECONDITION
 * at once where the daemon has ended.
 */
export async function waitFor<T>(
  what: string,
  probe: () => Promise<T | undefined>,
  options: { readonly deadlineMs: number; readonly everyMs?: number; readonly daemon?: Daemon },
): Promise<T> {
  const { daemon } = options;
  const until = performance.now() + options.deadlineMs;
  let last: unknown;
  for (;;) {
    try {
      const value = await probe();
      if (value !== undefined) return value;
      last = undefined;
    } catch (error) {
      last = error;
    }
    const log = async () => (daemon === undefined ? '' : `\n${daemon.logFile}:\n${await daemon.tail()}`);
    if (daemon?.endedBy !== undefined) {
      throw new KeelsonError(
        'FAILED_PRECONDITION',
        `${what}: the program ended with ${daemon.endedBy}${await log()}`,
      );
    }
    if (performance.now() > until) {
      throw new KeelsonError(
        'DEADLINE_EXCEEDED',
        `${what}: not within ${options.deadlineMs} ms${await log()}`,
        {
          cause: last,
        },
      );
    }
    await delay(options.everyMs ?? 50);
  }
}

/**
 * `count` TCP ports of the loopback that are free now, for programs that cannot be told to choose one themselves.
 * They lie below the range from which the kernel gives ports to clients, so that nothing takes them meanwhile.
 */
export async function freePorts(count: number): Promise<number[]> {
  const found = new Set<number>();
  for (let tries = 0; found.size < count; tries++) {
    if (tries > 1000) throw new KeelsonError('UNAVAILABLE', 'no free ports between 10000 and 32000');
    const port = 10_000 + Math.floor(Math.random() * 22_000);
    if (!found.has(port) && (await isFree(port))) found.add(port);
  }
  return [...found];
}

/** Bound on all addresses, as some servers do, so that a port taken on one of them is not free. */
function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ port, host: '0.0.0.0', exclusive: true }, () => server.close(() => resolve(true)));
  });
}
