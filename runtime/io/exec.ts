/**
 * Commands in containers on the caller's streams, without a terminal: the OCI runtime's `exec` in the foreground.
 *
 * When the caller leaves, input ends and the output pipes are closed, so that who goes on writing gets SIGPIPE. A
 * command that neither reads nor writes goes on to its own end, as with containerd.
 */
import { randomBytes } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { abortError, KeelsonError } from '../host/errors.ts';
import { type Spawned, spawn } from '../host/spawn.ts';
import { lastError, type OciRuntime } from '../oci/runc.ts';
import type { ProcessStreams } from '../streaming/types.ts';
import { onAbort, pump } from './pump.ts';

export interface ExecOptions {
  readonly runtime: Pick<OciRuntime, 'path' | 'callArgs' | 'execArgs' | 'view'>;
  readonly id: string;
  readonly bundle: string;
  readonly command: readonly string[];
  readonly streams: ProcessStreams;
  readonly signal?: AbortSignal;
}

/** Returns the exit code. Throws EXEC_FAILED where the command cannot be started, ABORTED when `signal` aborts first. */
export async function execOnPipes(options: ExecOptions): Promise<number> {
  const { runtime, id, command, signal, streams } = options;
  const { stdin, stdout, stderr } = streams;
  checkCommand(options);
  const files = join(options.bundle, `exec-${randomBytes(6).toString('hex')}`);
  const log = `${files}.log`;
  const specFile = `${files}.json`;
  try {
    const what = await runtime.execArgs({ id, bundle: options.bundle, command, specFile });
    const args = [...runtime.callArgs, `--log=${log}`, '--log-format=json', 'exec', ...what];
    const child = start(runtime, args, stdin !== undefined);
    const output = Promise.all([pump(child.stdout, stdout, true), pump(child.stderr, stderr, true)]);
    // What comes after the command has closed its input is thrown away.
    if (stdin !== undefined && child.stdin !== undefined) void pump(stdin, child.stdin, false);
    const { code } = await untilLeft(child.ended, signal, () => {
      for (const pipe of [child.stdin, child.stdout, child.stderr]) pipe?.destroy();
    });
    await output;
    child.stdin?.destroy();
    // The runtime uses exit codes of the command for its own failures.
    const complaint = code === 0 ? undefined : lastError(await readFile(log, 'utf8').catch(() => ''));
    if (complaint === undefined) return code;
    throw new KeelsonError('EXEC_FAILED', `cannot run ${command[0]} in the container: ${complaint}`);
  } finally {
    await Promise.all([rm(log, { force: true }), rm(specFile, { force: true })]);
  }
}

/** Throws ABORTED, INVALID_ARGUMENT. */
export function checkCommand({ command, signal }: Pick<ExecOptions, 'command' | 'signal'>): void {
  if (signal?.aborted) throw abortError(signal, 'running the command');
  if (command.some((arg) => arg.includes('\0'))) {
    throw new KeelsonError('INVALID_ARGUMENT', 'an argument of the command contains a NUL byte');
  }
}

/** What `work` gives, or ABORTED as soon as the caller has left, whatever the command does then. */
export async function untilLeft<T>(
  work: Promise<T>,
  signal: AbortSignal | undefined,
  leave: () => void,
): Promise<T> {
  let forget = () => {};
  const left = new Promise<never>((_resolve, reject) => {
    forget = onAbort(signal, () => {
      leave();
      reject(abortError(signal!, 'running the command'));
    });
  });
  try {
    return await Promise.race([work, left]);
  } finally {
    forget();
  }
}

function start({ path, view }: ExecOptions['runtime'], args: readonly string[], input: boolean): Spawned {
  const env = { PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin' };
  try {
    return spawn(path, args, { env, input, answer: false, group: true, within: view?.within });
  } catch (error) {
    throw new KeelsonError('EXEC_FAILED', `cannot start ${path}`, { cause: error });
  }
}
