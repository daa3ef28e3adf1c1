/**
 * Running programs: the one way in which keelson starts runc, conmon, CNI plugins, mount(8) and the like.
 * Every run has a deadline, a bounded output, an abort signal and a certain end: TERM, then KILL.
 */
import { existsSync } from 'node:fs';
import { constants } from 'node:os';
import type { Readable } from 'node:stream';
import { abortError, KeelsonError } from './errors.ts';
import { type Spawned, type SpawnOptions, spawn } from './spawn.ts';

export interface ExecOptions {
  /** The whole environment of the program. Default: PATH and nothing else. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Written to standard input, which is then closed. Default: standard input is /dev/null. */
  readonly input?: string | Buffer;
  /** Milliseconds until the program is told to end. */
  readonly deadlineMs: number;
  /** Milliseconds between TERM and KILL. Default 1,000; 0 kills at once. */
  readonly killAfterMs?: number;
  /** Bytes kept of standard output, and of standard error. Default 1 MiB. */
  readonly maxOutput?: number;
  /** What happens past `maxOutput`: an error (default), or the rest is read and thrown away. */
  readonly onOverflow?: 'fail' | 'discard';
  readonly signal?: AbortSignal;
  /** Milliseconds that the program may go on after an abort, to end by itself. Default 0. */
  readonly abortGraceMs?: number;
  /** Run in a process group of its own, so that its children end with it. Default true. */
  readonly group?: boolean;
  /** A descriptor that the program gets as its descriptor 3; it may be closed here once `exec` has been called. */
  readonly answerTo?: number;
  /** Calls the start itself, as in another namespace that the program gets. */
  readonly within?: SpawnOptions['within'];
  /** Exit codes that are not an error. Default [0]; 'any' for all. */
  readonly okCodes?: readonly number[] | 'any';
}

export interface ExecResult {
  readonly stdout: Buffer;
  readonly stderr: string;
  /** Exit code; 128 + signal number when a signal ended it. */
  readonly code: number;
  readonly durationMs: number;
}

const defaultPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/**
 * Runs `program` with `args` to its end.
 * Throws INVALID_ARGUMENT (a NUL byte in `args`), EXEC_NOT_FOUND, EXEC_FAILED (exit code not in `okCodes`; `details.code`, `details.stderr`),
 * EXEC_OUTPUT_TOO_LARGE, DEADLINE_EXCEEDED or ABORTED. When it throws, the program has ended.
 */
export async function exec(
  program: string,
  args: readonly string[],
  options: ExecOptions,
): Promise<ExecResult> {
  const { signal, maxOutput = 1 << 20, killAfterMs = 1000, group = true, okCodes = [0] } = options;
  if (signal?.aborted) throw abortError(signal, `run of ${program}`);
  const started = performance.now();
  const child = start(program, args, options, group);
  let reaped = false;
  void child.ended.then(() => {
    reaped = true;
  });
  let failure: KeelsonError | undefined;
  let killTimer: NodeJS.Timeout | undefined;

  const send = (name: 'SIGTERM' | 'SIGKILL') => {
    try {
      // Once the program is reaped its pid may be another's: then, and only then, somebody has it while the group of
      // that number, if there is one, is not ours either.
      if (reaped && (!group || exists(child.pid))) return;
      process.kill(group ? -child.pid : child.pid, name);
    } catch {
      // Already gone.
    }
  };
  const stop = (error: KeelsonError) => {
    if (failure !== undefined) return;
    failure = error;
    send(killAfterMs === 0 ? 'SIGKILL' : 'SIGTERM');
    // A grandchild that keeps our pipes open must not keep us waiting: after the kill, let go of them.
    killTimer = setTimeout(() => {
      send('SIGKILL');
      for (const pipe of [child.stdout, child.stderr]) pipe.destroy();
    }, killAfterMs);
  };
  let graceTimer: NodeJS.Timeout | undefined;
  const onAbort = () => {
    const aborted = () => stop(abortError(signal!, `run of ${program}`));
    if (options.abortGraceMs === undefined) aborted();
    else graceTimer = setTimeout(aborted, options.abortGraceMs);
  };
  const deadline = setTimeout(
    () =>
      stop(new KeelsonError('DEADLINE_EXCEEDED', `${program} did not end within ${options.deadlineMs} ms`)),
    options.deadlineMs,
  );
  signal?.addEventListener('abort', onAbort, { once: true });

  const collect = (stream: Readable) => {
    const chunks: Buffer[] = [];
    let size = 0;
    stream.on('data', (chunk: Buffer) => {
      if (size < maxOutput)
        chunks.push(chunk.length > maxOutput - size ? chunk.subarray(0, maxOutput - size) : chunk);
      size += chunk.length;
      if (size > maxOutput && options.onOverflow !== 'discard') {
        stop(new KeelsonError('EXEC_OUTPUT_TOO_LARGE', `${program} wrote more than ${maxOutput} bytes`));
      }
    });
    stream.on('error', () => {});
    return new Promise<Buffer>((resolve) => stream.once('close', () => resolve(Buffer.concat(chunks))));
  };
  child.stdin?.on('error', () => {}); // EPIPE: the program did not want its input.
  if (options.input !== undefined) child.stdin?.end(options.input);
  const [{ code, signal: endedBy }, stdout, stderrBytes] = await Promise.all([
    child.ended,
    collect(child.stdout),
    collect(child.stderr),
  ]);
  clearTimeout(deadline);
  clearTimeout(graceTimer);
  clearTimeout(killTimer);
  signal?.removeEventListener('abort', onAbort);
  child.stdin?.destroy();
  if (failure !== undefined) throw failure;
  const stderr = stderrBytes.toString('utf8');
  const result: ExecResult = { stdout, stderr, code, durationMs: performance.now() - started };
  if (okCodes === 'any' || okCodes.includes(code)) return result;
  const said = (stderr.trim() || stdout.toString('utf8').trim()).slice(-2000);
  const how = endedBy === undefined ? `exit code ${code}` : (signalNames.get(endedBy) ?? `signal ${endedBy}`);
  throw new KeelsonError('EXEC_FAILED', `${program} ended with ${how}${said === '' ? '' : `: ${said}`}`, {
    details: { code, stderr, stdout },
  });
}

function exists(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

const signalNames = new Map(Object.entries(constants.signals).map(([name, number]) => [number, name]));

function start(program: string, args: readonly string[], options: ExecOptions, group: boolean): Spawned {
  if ([program, ...args].some((arg) => arg.includes('\0'))) {
    throw new KeelsonError('INVALID_ARGUMENT', `cannot start ${program}: an argument contains a NUL byte`);
  }
  try {
    return spawn(program, args, {
      env: options.env ?? { PATH: process.env['PATH'] ?? defaultPath },
      cwd: options.cwd,
      input: options.input !== undefined,
      answer: options.answerTo ?? false,
      group,
      within: options.within,
    });
  } catch (error) {
    const errno = error instanceof KeelsonError ? error.details['errno'] : undefined;
    const noFolder = options.cwd !== undefined && !existsSync(options.cwd);
    const missing = errno === 'ENOENT' && !noFolder;
    const why = noFolder ? `there is no folder ${options.cwd}` : missing ? 'no such program' : errno;
    throw new KeelsonError(
      missing ? 'EXEC_NOT_FOUND' : 'EXEC_FAILED',
      `cannot start ${program}: ${why ?? String(error)}`,
      { cause: error },
    );
  }
}
