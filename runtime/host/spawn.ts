/**
 * Starting a process by posix_spawn(3) instead of child_process: the latter forks, which copies the page tables of
 * the whole agent and keeps its main thread for 1.7 ms a time (measured at 80 MiB; posix_spawn: 0.15 ms). A pod's
 * start runs four programs, so a burst of pods is held up by it.
 */
import { Socket } from 'node:net';
import { closeDescriptor, makePipe, reap, type SpawnDescriptor, spawnProcess } from './syscalls.ts';

export interface SpawnOptions {
  readonly env: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Standard input is a pipe; else /dev/null. */
  readonly input: boolean;
  /** Descriptor 3 is a pipe that the program writes to; a number: this descriptor of the caller's instead. */
  readonly answer: boolean | number;
  /** Descriptors 4, 5, … are pipes too, which the program writes to (`from`) or reads (`to`). Needs `answer`. */
  readonly more?: readonly ('from' | 'to')[];
  /** A session, and so a process group, of its own. */
  readonly group: boolean;
  /** Calls the start itself, as in another namespace that the program gets. */
  readonly within?: <T>(start: () => T) => T;
}

export interface Spawned {
  readonly pid: number;
  readonly stdin: Socket | undefined;
  readonly stdout: Socket;
  readonly stderr: Socket;
  readonly answer: Socket | undefined;
  readonly more: readonly Socket[];
  /** The exit code; 128 + the signal's number when a signal ended it. The process is reaped by then. */
  readonly ended: Promise<{ readonly code: number; readonly signal: number | undefined }>;
}

type End = Awaited<Spawned['ended']>;

/** Started and not yet reaped, with who waits. One process has one SIGCHLD, so it has one such table. */
const running = new Map<number, (end: End) => void>();
/** While something runs: keeps the process up, and looks itself should a signal ever get lost. */
let lookout: NodeJS.Timeout | undefined;
const lookoutMs = 1000;

/** A child that somebody else has reaped (ECHILD) counts as ended with an unknown code: nobody may wait for it. */
function reapOne(pid: number): number | undefined {
  try {
    return reap(pid);
  } catch {
    return 255 << 8;
  }
}

function reapEnded(): void {
  for (const [pid, resolve] of running) {
    const status = reapOne(pid);
    if (status === undefined) continue;
    running.delete(pid);
    const signal = status & 0x7f;
    resolve(
      signal === 0 ? { code: (status >> 8) & 0xff, signal: undefined } : { code: 128 + signal, signal },
    );
  }
  if (running.size > 0) return;
  clearInterval(lookout);
  lookout = undefined;
}

/** Throws SYSCALL_FAILED with `details.errno` (ENOENT: no such program or folder). Not for worker threads. */
export function spawn(program: string, args: readonly string[], options: SpawnOptions): Spawned {
  /** Ours and the program's ends; all are closed on exec where they are not passed on. */
  const opened: number[] = [];
  const pipe = () => {
    const ends = makePipe();
    opened.push(...ends);
    return ends;
  };
  try {
    const stdin = options.input ? pipe() : undefined;
    const stdout = pipe();
    const stderr = pipe();
    const answer = options.answer === true ? pipe() : undefined;
    const descriptors: SpawnDescriptor[] = [stdin?.[0] ?? '/dev/null', stdout[1], stderr[1]];
    if (answer !== undefined) descriptors.push(answer[1]);
    else if (typeof options.answer === 'number') descriptors.push(options.answer);
    const more = (options.more ?? []).map((way) => ({ way, ends: pipe() }));
    for (const { way, ends } of more) descriptors.push(ends[way === 'from' ? 1 : 0]);
    // Before the start: a program that ends at once must find somebody listening.
    if (process.listenerCount('SIGCHLD', reapEnded) === 0) process.on('SIGCHLD', reapEnded);
    const start = () =>
      spawnProcess(program, [program, ...args], {
        env: Object.entries(options.env).map(([name, value]) => `${name}=${value}`),
        cwd: options.cwd,
        descriptors,
        session: options.group,
      });
    const pid = options.within === undefined ? start() : options.within(start);
    const ended = new Promise<End>((resolve) => running.set(pid, resolve));
    lookout ??= setInterval(reapEnded, lookoutMs);
    const theirs = more.map(({ way, ends }) => ends[way === 'from' ? 1 : 0]);
    for (const end of [stdin?.[0], stdout[1], stderr[1], answer?.[1], ...theirs]) {
      if (end !== undefined) closeDescriptor(end);
    }
    const reader = (fd: number) => new Socket({ fd, readable: true, writable: false });
    const writer = (fd: number) => new Socket({ fd, readable: false, writable: true });
    return {
      pid,
      stdin: stdin && writer(stdin[1]),
      stdout: reader(stdout[0]),
      stderr: reader(stderr[0]),
      answer: answer && reader(answer[0]),
      more: more.map(({ way, ends }) => (way === 'from' ? reader(ends[0]) : writer(ends[1]))),
      ended,
    };
  } catch (error) {
    for (const fd of opened) closeDescriptor(fd);
    throw error;
  }
}
