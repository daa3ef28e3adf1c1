/**
 * Commands in containers with the caller's streams: the OCI runtime's `exec` in the foreground, on pipes, or on a
 * pseudo-terminal of ours that it joins to the container's.
 *
 * When the caller leaves, input ends and a terminal is hung up; output pipes are closed, so that who goes on writing
 * gets SIGPIPE. A command that neither reads nor writes goes on to its own end, as with containerd.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, constants, openSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { ReadStream } from 'node:tty';
import { abortError, KeelsonError } from '../host/errors.ts';
import { type Spawned, spawn, spawnOnTerminal } from '../host/spawn.ts';
import { preparePseudoTerminal, setTerminalSize } from '../host/syscalls.ts';
import { lastError, type OciRuntime } from '../oci/runc.ts';
import type { ProcessStreams } from '../streaming/types.ts';
import { onAbort, pump } from './pump.ts';

export interface ExecOptions {
  readonly runtime: Pick<OciRuntime, 'path' | 'callArgs'>;
  readonly id: string;
  readonly bundle: string;
  readonly command: readonly string[];
  readonly tty: boolean;
  readonly streams: ProcessStreams;
  readonly signal?: AbortSignal;
}

type Child = Pick<Spawned, 'pid' | 'ended'>;

/** Returns the exit code. Throws EXEC_FAILED where the command cannot be started, ABORTED when `signal` aborts first. */
export async function execWithStreams(options: ExecOptions): Promise<number> {
  const { runtime, id, command, signal } = options;
  if (signal?.aborted) throw abortError(signal, 'running the command');
  if (command.some((arg) => arg.includes('\0'))) {
    throw new KeelsonError('INVALID_ARGUMENT', 'an argument of the command contains a NUL byte');
  }
  const log = join(options.bundle, `exec-${randomBytes(6).toString('hex')}.log`);
  const terminal = options.tty ? ['--tty', '--env', 'TERM=xterm'] : [];
  const args = [
    ...runtime.callArgs,
    `--log=${log}`,
    '--log-format=json',
    'exec',
    ...terminal,
    id,
    ...command,
  ];
  try {
    const run = options.tty ? runOnTerminal : runOnPipes;
    const code = await run(options, runtime.path, args);
    // The runtime uses exit codes of the command for its own failures.
    const complaint = code === 0 ? undefined : lastError(await readFile(log, 'utf8').catch(() => ''));
    if (complaint !== undefined) {
      throw new KeelsonError('EXEC_FAILED', `cannot run ${command[0]} in the container: ${complaint}`);
    }
    return code;
  } finally {
    await rm(log, { force: true });
  }
}

const env = (): Record<string, string> => ({
  PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin',
});

/** The exit code, or ABORTED as soon as the caller has left, whatever the command does then. */
async function ending({ ended }: Child, signal: AbortSignal | undefined, leave: () => void): Promise<number> {
  let forget = () => {};
  const left = new Promise<never>((_resolve, reject) => {
    forget = onAbort(signal, () => {
      leave();
      reject(abortError(signal!, 'running the command'));
    });
  });
  try {
    return (await Promise.race([ended, left])).code;
  } finally {
    forget();
  }
}

async function runOnPipes({ streams, signal }: ExecOptions, path: string, args: string[]): Promise<number> {
  const { stdin, stdout, stderr } = streams;
  const child = start(path, () =>
    spawn(path, args, { env: env(), input: stdin !== undefined, answer: false, group: true }),
  );
  const output = Promise.all([pump(child.stdout, stdout, true), pump(child.stderr, stderr, true)]);
  // What comes after the command has closed its input is thrown away.
  if (stdin !== undefined && child.stdin !== undefined) void pump(stdin, child.stdin, false);
  const leave = () => {
    for (const pipe of [child.stdin, child.stdout, child.stderr]) pipe?.destroy();
  };
  const code = await ending(child, signal, leave);
  await output;
  child.stdin?.destroy();
  return code;
}

async function runOnTerminal(
  { streams, signal }: ExecOptions,
  path: string,
  args: string[],
): Promise<number> {
  const { stdin, stdout } = streams;
  const master = openSync('/dev/ptmx', constants.O_RDWR | constants.O_NOCTTY);
  let child: Child;
  let sizes = true;
  try {
    const name = preparePseudoTerminal(master);
    let started: Child | undefined;
    streams.onResize?.(({ width, height }) => {
      if (!sizes) return;
      setTerminalSize(master, width, height);
      // It does not control the runtime's session, so the kernel tells nobody.
      if (started !== undefined) process.kill(started.pid, 'SIGWINCH');
    });
    const slave = openSync(name, constants.O_RDWR | constants.O_NOCTTY);
    try {
      started = start(path, () => spawnOnTerminal(path, args, { env: env(), fd: slave }));
      child = started;
    } finally {
      closeSync(slave);
    }
  } catch (error) {
    sizes = false;
    closeSync(master);
    throw error;
  }
  void child.ended.then(() => {
    sizes = false;
  });
  // It owns the descriptor from now on.
  const io = new ReadStream(master);
  io.once('close', () => {
    sizes = false;
  });
  const output = pump(io, stdout, true);
  if (stdin !== undefined) {
    // The end of the caller's input is not the end of a terminal.
    stdin.pipe(io, { end: false });
    io.once('close', () => {
      stdin.unpipe(io);
      stdin.resume();
    });
  }
  const leave = () => {
    if (sizes) process.kill(child.pid, 'SIGHUP');
    io.destroy();
  };
  const code = await ending(child, signal, leave);
  await output;
  io.destroy();
  return code;
}

function start<T>(path: string, spawning: () => T): T {
  try {
    return spawning();
  } catch (error) {
    throw new KeelsonError('EXEC_FAILED', `cannot start ${path}`, { cause: error });
  }
}
