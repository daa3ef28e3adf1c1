/**
 * conmon: the small monitor that keeps a container's log, terminal, attach socket and exit code while the agent may
 * come and go. Its command line and pipes are those of conmon 2.1 (conmon(8), src/cli.c, src/ctrl.c).
 *
 * Files in the bundle that conmon makes: `ctl` and `winsz` (fifos), `attach` (socket), `oom` (when memory ran out),
 * `pid` (by the OCI runtime), `conmon.pid`; outside: `<exits>/<id>` with the exit code.
 */
import { close, closeSync, statSync, watch } from 'node:fs';
import { chmod } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { abortError, describe, errnoOf, isError, KeelsonError } from '../host/errors.ts';
import { exec } from '../host/exec.ts';
import { tellMonitor } from '../io/monitor_control.ts';
import { makeLine } from '../monitor/line.ts';
import { identify, type ProcessIdentity, readPidFile } from '../processes.ts';
import type { OciRuntime } from './runc.ts';

export interface MountsAt {
  /** Folders of keelson's own. */
  readonly own: readonly string[];
  readonly others: readonly string[];
}

export interface MonitorOptions {
  readonly id: string;
  readonly name: string;
  readonly bundle: string;
  readonly exitDir: string;
  /** With a short path. */
  readonly temporaryDir: string;
  /** Undefined: nothing is logged. */
  readonly logPath?: string;
  readonly tty: boolean;
  readonly stdin: boolean;
  readonly stdinOnce: boolean;
  readonly runtime: Pick<OciRuntime, 'path' | 'callArgs' | 'view'>;
  /** What is mounted there, or below, is needed to create the container; undefined: it takes all of the host's mounts. */
  readonly mountsAt?: MountsAt;
}

export interface Monitored {
  /** The container's first process, waiting for `start`. */
  readonly init: ProcessIdentity;
  readonly monitor: ProcessIdentity;
}

const createDeadlineMs = 120_000;
const reopenDeadlineMs = 10_000;

/** Where conmon's daemon writes its pid. */
export function monitorPidFile(bundle: string): string {
  return join(bundle, 'conmon.pid');
}

/** The log of the OCI runtime's own messages: kept apart, since its stderr is the container's. */
function runtimeLog(bundle: string): string {
  return join(bundle, 'runtime.log');
}

/** Pure. `entry`: a program with its arguments that runs another one. */
export function monitorArguments(options: MonitorOptions, entry: readonly string[] = []): string[] {
  const { id, bundle, runtime } = options;
  const create = [runtime.path, ...runtime.callArgs, `--log=${runtimeLog(bundle)}`, '--log-format=json'];
  const [program, ...runtimeArgs] = [...entry, ...create];
  return [
    ['--api-version', '1'],
    ['--cid', id],
    ['--cuuid', id],
    ['--name', options.name],
    ['--runtime', program!],
    ['--bundle', bundle],
    ['--container-pidfile', join(bundle, 'pid')],
    ['--conmon-pidfile', monitorPidFile(bundle)],
    ['--exit-dir', options.exitDir],
    ['--log-path', options.logPath === undefined ? 'off' : `k8s-file:${options.logPath}`],
    ['--log-level', 'error'],
    // The attach socket goes into the bundle instead of a folder of links.
    ['--full-attach'],
    // Flash wears out and the exit would wait: containerd does not sync logs either.
    ['--no-sync-log'],
    options.tty ? ['--terminal'] : [],
    options.stdin ? ['--stdin'] : [],
    options.stdin && !options.stdinOnce ? ['--leave-stdin-open'] : [],
    runtimeArgs.flatMap((arg) => ['--runtime-arg', arg]),
  ].flat();
}

/**
 * Starts conmon, which creates the container in the bundle and then lives as long as it.
 * Throws CONTAINER_START_FAILED, DEPENDENCY_MISSING, DEADLINE_EXCEEDED, ABORTED. When it throws, conmon may go on: the
 * caller ends it and deletes what there is.
 */
export async function startMonitor(
  conmon: string,
  options: MonitorOptions,
  signal?: AbortSignal,
): Promise<Monitored> {
  const { bundle } = options;
  const line = makeLine(bundle);
  let view: Awaited<ReturnType<typeof viewFor>>;
  let answer: Promise<string> = Promise.resolve('');
  let started: Promise<unknown> = Promise.resolve();
  try {
    view = await viewFor(options, signal);
    started = exec(conmon, monitorArguments(options, view?.entry), {
      cwd: bundle,
      env: {
        PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin',
        // The console socket is made there; the bundle's path would be too long for a socket's name.
        TMPDIR: options.temporaryDir,
        _OCI_SYNCPIPE: '3',
        // Its option parser refuses names and paths that the locale cannot spell.
        LC_ALL: 'C.UTF-8',
      },
      deadlineMs: createDeadlineMs,
      signal,
      answerTo: line.end,
    });
    closeSync(line.end);
    answer = firstLine(line.said, signal);
    const [, said] = await Promise.all([started, answer]);
    const pid = readAnswer(said, options.name);
    const init = identify(pid);
    const daemon = readPidFile(monitorPidFile(bundle));
    const monitor = daemon === undefined ? undefined : identify(daemon);
    if (init === undefined || monitor === undefined) {
      throw new KeelsonError(
        'CONTAINER_START_FAILED',
        `container ${options.name}: it or its monitor was killed while it was created`,
      );
    }
    return { init, monitor };
  } catch (error) {
    answer.catch(() => {});
    // Until the first conmon has ended, its daemon, or the file with the daemon's pid, may be yet to come.
    await started.catch(() => {});
    if (isError(error, 'EXEC_NOT_FOUND')) throw missingProgram('conmon', error);
    if (isError(error, 'EXEC_FAILED')) {
      throw new KeelsonError('CONTAINER_START_FAILED', `container ${options.name}: ${describe(error)}`, {
        cause: error,
      });
    }
    throw error;
  } finally {
    if (view !== undefined) close(view.namespace);
  }
}

/**
 * How `create` gets into a view with the container's own mounts: nsenter(1), by a descriptor of ours, so that the
 * namespace goes with the programs in it. Undefined where it takes the host's mounts: they are always right.
 */
async function viewFor(
  { runtime, bundle, mountsAt }: MonitorOptions,
  signal: AbortSignal | undefined,
): Promise<{ entry: string[]; namespace: number } | undefined> {
  if (runtime.view === undefined || mountsAt === undefined) return undefined;
  try {
    const namespace = await runtime.view.extend([bundle, ...mountsAt.own], mountsAt.others, signal);
    return { entry: [runtime.view.nsenter, `--mount=/proc/${process.pid}/fd/${namespace}`], namespace };
  } catch (error) {
    if (isError(error, 'SYSCALL_FAILED')) return undefined;
    throw error;
  }
}

/** conmon answers once, by one line on the sync pipe; the pipe itself stays open as long as conmon lives. */
function firstLine(pipe: Readable, signal: AbortSignal | undefined): Promise<string> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    const settle = (line: string) => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      pipe.destroy();
      resolve(line);
    };
    const onAbort = () => {
      reject(abortError(signal!, 'creating the container'));
      settle('');
    };
    const timer = setTimeout(() => {
      reject(new KeelsonError('DEADLINE_EXCEEDED', `conmon said nothing for ${createDeadlineMs} ms`));
      settle('');
    }, createDeadlineMs);
    signal?.addEventListener('abort', onAbort, { once: true });
    pipe.on('data', (chunk: Buffer) => {
      chunks.push(chunk);
      if (chunk.includes(0x0a)) settle(Buffer.concat(chunks).toString('utf8'));
    });
    pipe.on('error', () => {});
    pipe.on('close', () => settle(Buffer.concat(chunks).toString('utf8')));
  });
}

/** The pid in conmon's answer, `{"data": 12}`, or the error in it, `{"data": -1, "message": "…"}`. Pure. */
export function readAnswer(line: string, name: string): number {
  let data: unknown;
  let message: unknown;
  try {
    const parsed: unknown = JSON.parse(line);
    if (typeof parsed === 'object' && parsed !== null) {
      const fields = parsed as { data?: unknown; pid?: unknown; message?: unknown };
      data = fields.data ?? fields.pid;
      message = fields.message;
    }
  } catch {
    // conmon escapes by hand and cuts at 8 KiB, so the line need not be JSON.
    message = /"message":\s*"(.*)/s.exec(line)?.[1];
  }
  if (typeof data === 'number' && Number.isSafeInteger(data) && data > 1) return data;
  const said = typeof message === 'string' ? message.trim() : '';
  if (said === '') {
    throw new KeelsonError('CONTAINER_START_FAILED', `container ${name}: conmon ended without an answer`, {
      hint: 'look for messages of conmon and of the kernel (dmesg) on the node',
    });
  }
  throw createError(said, name);
}

/** The error for what the OCI runtime said of a `create` that failed; the container's command is most often why. Pure. */
export function createError(said: string, name: string): KeelsonError {
  const own =
    /unable to start container process: (?:error during container init: )?(exec: |chdir to cwd)|executable file/;
  const hint = own.test(said) ? 'check command, args and workingDir against what the image holds' : undefined;
  const message = `container ${name}: OCI runtime create failed: ${said}`;
  return new KeelsonError('CONTAINER_START_FAILED', message, hint === undefined ? {} : { hint });
}

const packages: Readonly<Record<string, string>> = {
  runc: 'runc',
  crun: 'crun',
  conmon: 'conmon',
  catatonit: 'catatonit',
};

/** DEPENDENCY_MISSING for a program that is not on the PATH, with the package to install. */
export function missingProgram(program: string, cause?: unknown): KeelsonError {
  const name = basename(program);
  return new KeelsonError('DEPENDENCY_MISSING', `${program} is not installed`, {
    hint: `install the package ${packages[name] ?? name} of your distribution`,
    cause,
  });
}

/**
 * Lets conmon open the log path anew, after a rotation moved the file away; resolves when the new file is there.
 * Throws FAILED_PRECONDITION where conmon does not run, DEADLINE_EXCEEDED, ABORTED.
 */
export async function reopenLog(bundle: string, logPath: string, signal?: AbortSignal): Promise<void> {
  const failed = new AbortController();
  const ends = [AbortSignal.timeout(reopenDeadlineMs), failed.signal];
  const cancel = AbortSignal.any(signal === undefined ? ends : [...ends, signal]);
  if (cancel.aborted) throw abortError(cancel, 'reopening the log');
  const inode = () => statSync(logPath, { throwIfNoEntry: false })?.ino;
  const before = inode();
  const appeared = new Promise<void>((resolve, reject) => {
    const watcher = watch(dirname(logPath), () => {
      // conmon opens `<path>.tmp` and renames it to the path.
      const now = inode();
      if (now === undefined || now === before) return;
      end();
      resolve();
    });
    const end = () => {
      cancel.removeEventListener('abort', onAbort);
      watcher.close();
    };
    const onAbort = () => {
      end();
      reject(abortError(cancel, 'reopening the log'));
    };
    watcher.on('error', onAbort);
    cancel.addEventListener('abort', onAbort, { once: true });
  });
  appeared.catch(() => {});
  try {
    await tellMonitor(bundle, '2 0 0', cancel);
  } catch (error) {
    failed.abort();
    const errno = errnoOf(error);
    if (errno !== 'ENXIO' && errno !== 'ENOENT') throw error;
    throw new KeelsonError('FAILED_PRECONDITION', 'the container has no running monitor to reopen its log');
  }
  await appeared;
  await chmod(logPath, 0o640);
}
