/** The OCI runtime's command line: runc, or what a handler names instead (crun and others speak the same). */
import { randomBytes } from 'node:crypto';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { ExecSyncResult } from '../api.ts';
import { describe, isError, KeelsonError } from '../host/errors.ts';
import { type ExecResult, exec } from '../host/exec.ts';
import { processSpec } from '../io/process_spec.ts';
import type { MountView } from '../monitor/view.ts';
import { identify, readPidFile, signalProcess } from '../processes.ts';
import { featuresOfVersion, noFeatures, type OciFeatures, parseFeatures } from './features.ts';

export interface OciRuntime {
  /** Absolute path of the program. */
  readonly path: string;
  /** Asked once; a runtime that does not answer has none. */
  features(): Promise<OciFeatures>;
  /** The options before the verb of every call. */
  readonly callArgs: readonly string[];
  /** Where it runs, unless it needs all of the host's mounts. */
  readonly view: MountView | undefined;
  /**
   * What follows `exec` and its options, so that `command` runs as the container's own process does. `specFile` may be
   * written for it; removing that is the caller's.
   */
  execArgs(options: {
    readonly id: string;
    readonly bundle: string;
    readonly command: readonly string[];
    readonly specFile: string;
  }): Promise<readonly string[]>;
  /** Lets the created container's process go. Throws CONTAINER_START_FAILED. */
  start(id: string, signal?: AbortSignal): Promise<void>;
  /** Makes and starts without a monitor; the process gets no standard streams. Throws SANDBOX_CREATE_FAILED. */
  runDetached(id: string, bundle: string, pidFile: string, signal?: AbortSignal): Promise<void>;
  /** Stops all processes of the container where they are, and lets them go on. Throws FAILED_PRECONDITION. */
  pause(id: string): Promise<void>;
  resume(id: string): Promise<void>;
  /**
   * Writes the state of its processes, which go on, into the folder `images`, and CRIU's report into `work`.
   * Throws FAILED_PRECONDITION with CRIU's words, DEADLINE_EXCEEDED, ABORTED.
   */
  checkpoint(
    id: string,
    options: {
      readonly images: string;
      readonly work: string;
      readonly deadlineMs: number;
      readonly signal?: AbortSignal;
    },
  ): Promise<void>;
  /** `created`, `running`, `stopped`…; undefined where the runtime does not know `id`. */
  state(id: string): Promise<string | undefined>;
  /** Sets the limits in `resourcesFile` (runtime-spec's `linux.resources`). Throws FAILED_PRECONDITION. */
  update(id: string, resourcesFile: string, signal?: AbortSignal): Promise<void>;
  /** Removes what the runtime keeps of `id`, and its cgroup; kills what runs. No error where there is nothing. */
  remove(id: string): Promise<void>;
  /**
   * Runs `command` in the container to its end. Output past 16 MiB a stream is thrown away.
   * Throws EXEC_FAILED where it cannot be started, DEADLINE_EXCEEDED, ABORTED.
   */
  exec(options: {
    readonly id: string;
    readonly bundle: string;
    readonly command: readonly string[];
    /** 0: none. */
    readonly timeoutMs: number;
    readonly signal?: AbortSignal;
  }): Promise<ExecSyncResult>;
}

const callDeadlineMs = 60_000;
const longestExecMs = 2 ** 31 - 1;
const execOutput = 16 << 20;

export function makeOciRuntime(options: {
  readonly path: string;
  readonly root: string;
  readonly systemdCgroup: boolean;
  readonly view?: MountView;
}): OciRuntime {
  const { path, root, systemdCgroup, view } = options;
  const callArgs = [`--root=${root}`, ...(systemdCgroup ? ['--systemd-cgroup'] : [])];
  const call = (args: readonly string[], signal?: AbortSignal): Promise<ExecResult> =>
    exec(path, [...callArgs, ...args], { deadlineMs: callDeadlineMs, signal, within: view?.within });
  const refusable = async (verb: 'pause' | 'resume', id: string) => {
    try {
      await call([verb, id]);
    } catch (error) {
      if (isError(error, 'DEADLINE_EXCEEDED')) throw error;
      throw new KeelsonError('FAILED_PRECONDITION', `cannot ${verb} the container: ${runtimeWords(error)}`, {
        cause: error,
      });
    }
  };
  let asked: Promise<OciFeatures> | undefined;
  return {
    path,
    features() {
      asked ??= askFeatures(path).then(
        (said) => said,
        () => {
          // It could not be run at all: that may change.
          asked = undefined;
          return noFeatures;
        },
      );
      return asked;
    },
    async update(id, resourcesFile, signal) {
      try {
        await call(['update', '--resources', resourcesFile, id], signal);
      } catch (error) {
        if (isError(error, 'ABORTED', 'DEADLINE_EXCEEDED')) throw error;
        throw new KeelsonError('FAILED_PRECONDITION', `cannot update the container: ${runtimeWords(error)}`, {
          cause: error,
        });
      }
    },
    callArgs,
    view,
    async execArgs({ id, bundle, command, specFile }) {
      if (basename(path) === 'runc') return [id, ...command];
      // crun, for one, would run it as root.
      const spec = await processSpec(bundle, command, () => ({ terminal: false }));
      await writeFile(specFile, spec, { mode: 0o600 });
      return [`--process=${specFile}`, id];
    },
    async start(id, signal) {
      try {
        await call(['start', id], signal);
      } catch (error) {
        if (isError(error, 'ABORTED', 'DEADLINE_EXCEEDED')) throw error;
        throw new KeelsonError(
          'CONTAINER_START_FAILED',
          `cannot start the container: ${runtimeWords(error)}`,
          {
            cause: error,
          },
        );
      }
    },
    async runDetached(id, bundle, pidFile, signal) {
      const log = join(bundle, 'runtime.log');
      const args = [...callArgs, `--log=${log}`, '--log-format=json', 'run', '--detach'];
      try {
        // The process keeps the standard streams of `run`: they must not be pipes that somebody reads to the end.
        await exec(
          '/bin/sh',
          [
            ...['-c', 'exec "$@" >/dev/null 2>&1', 'sh', path, ...args],
            ...[`--bundle=${bundle}`, `--pid-file=${pidFile}`, id],
          ],
          { deadlineMs: callDeadlineMs, signal, cwd: bundle },
        );
      } catch (error) {
        if (isError(error, 'ABORTED', 'DEADLINE_EXCEEDED')) throw error;
        const said = lastError(await readText(log)) ?? describe(error);
        throw new KeelsonError('SANDBOX_CREATE_FAILED', `cannot start ${id}: ${said}`, { cause: error });
      }
    },
    pause: (id) => refusable('pause', id),
    resume: (id) => refusable('resume', id),
    async checkpoint(id, { images, work, deadlineMs, signal }) {
      const where = [`--image-path=${images}`, `--work-path=${work}`];
      try {
        await exec(path, [...callArgs, 'checkpoint', ...where, '--leave-running', id], {
          // criu lies in sbin, which services need not have on their PATH.
          env: { PATH: `${process.env['PATH'] ?? ''}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin` },
          deadlineMs,
          signal,
          // CRIU stands inside of the processes: it is to get out of them first.
          ...{ abortGraceMs: 10_000, killAfterMs: 10_000 },
        });
      } catch (error) {
        if (isError(error, 'ABORTED', 'DEADLINE_EXCEEDED')) throw error;
        const said = (await criuError(work)) ?? runtimeWords(error);
        throw new KeelsonError('FAILED_PRECONDITION', `the container cannot be checkpointed: ${said}`, {
          hint: '`criu check` on the node tells what CRIU lacks',
          cause: error,
        });
      }
    },
    async state(id) {
      const result = await exec(path, [...callArgs, 'state', id], {
        deadlineMs: callDeadlineMs,
        okCodes: 'any',
        within: view?.within,
      });
      if (result.code !== 0) return undefined;
      return /"status":\s*"(\w+)"/.exec(result.stdout.toString('utf8'))?.[1];
    },
    async remove(id) {
      await call(['delete', '--force', id]);
    },
    async exec({ id, bundle, command, timeoutMs, signal }) {
      const files = join(bundle, `exec-${randomBytes(6).toString('hex')}`);
      const pidFile = `${files}.pid`;
      const log = `${files}.log`;
      const specFile = `${files}.json`;
      const cancel = new AbortController();
      const killInside = () => {
        const pid = readPidFile(pidFile);
        const inside = pid === undefined ? undefined : identify(pid);
        if (inside !== undefined) signalProcess(inside, 'SIGKILL');
        cancel.abort();
      };
      const timer = timeoutMs > 0 ? setTimeout(killInside, Math.min(timeoutMs, longestExecMs)) : undefined;
      signal?.addEventListener('abort', killInside, { once: true });
      try {
        const what = await this.execArgs({ id, bundle, command, specFile });
        const args = [`--log=${log}`, '--log-format=json', 'exec', `--pid-file=${pidFile}`, ...what];
        const result = await exec(path, [...callArgs, ...args], {
          deadlineMs: longestExecMs,
          // TERM, which the runtime hands on: killed at once it could not say any more whom it has just started.
          killAfterMs: 1000,
          maxOutput: execOutput,
          onOverflow: 'discard',
          okCodes: 'any',
          within: view?.within,
          signal: signal === undefined ? cancel.signal : AbortSignal.any([signal, cancel.signal]),
        });
        const complaint = result.code === 0 ? undefined : lastError(await readText(log));
        if (complaint !== undefined) {
          throw new KeelsonError('EXEC_FAILED', `cannot run ${command[0]} in the container: ${complaint}`);
        }
        return {
          stdout: result.stdout,
          stderr: Buffer.from(result.stderr, 'utf8'),
          exitCode: result.code,
        };
      } catch (error) {
        if (!cancel.signal.aborted || signal?.aborted) throw error;
        throw new KeelsonError(
          'DEADLINE_EXCEEDED',
          `${command[0]} did not end within ${timeoutMs} ms and was killed`,
        );
      } finally {
        clearTimeout(timer);
        signal?.removeEventListener('abort', killInside);
        // It may have been started, and the file written, only after the first look.
        if (cancel.signal.aborted) killInside();
        await Promise.all([pidFile, log, specFile].map((file) => rm(file, { force: true })));
      }
    },
  };
}

/** Rejects where the program cannot be run. */
async function askFeatures(path: string): Promise<OciFeatures> {
  const ask = async (args: readonly string[]) => {
    const { code, stdout } = await exec(path, args, { deadlineMs: callDeadlineMs, okCodes: 'any' });
    return code === 0 ? stdout.toString('utf8') : undefined;
  };
  const said = await ask(['features']);
  return said === undefined ? featuresOfVersion((await ask(['--version'])) ?? '') : parseFeatures(said);
}

async function readText(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '');
}

/** The last error in a log of JSON lines as runc writes it; undefined where there is none. Pure. */
export function lastError(log: string): string | undefined {
  for (const line of log.split('\n').reverse()) {
    try {
      const entry: unknown = JSON.parse(line);
      if (typeof entry === 'object' && entry !== null && 'level' in entry && 'msg' in entry) {
        if (entry.level === 'error' || entry.level === 'fatal') return String(entry.msg).trim();
      }
    } catch {
      // Not a line of the log's own.
    }
  }
  return undefined;
}

/** What the runtime said, without logrus' decoration: `time="…" level=error msg="…"`. */
function runtimeWords(error: unknown): string {
  const said = isError(error, 'EXEC_FAILED') ? String(error.details['stderr'] ?? '') : '';
  const message = /level=(?:error|fatal) msg="((?:[^"\\]|\\.)*)"/.exec(said)?.[1]?.replaceAll('\\"', '"');
  return message ?? (said.trim() || describe(error));
}

/** The errors in CRIU's log, in their order: some are not why it failed, and which is not told. Undefined without any. */
async function criuError(workFolder: string): Promise<string | undefined> {
  const text = await readText(join(workFolder, 'dump.log'));
  const errors = [...text.matchAll(/Error \([^)]*\): (.+)$/gm)].map(([, said]) => said);
  const some = errors.filter((said) => said !== 'Dumping FAILED.').slice(0, 5);
  return some.length === 0 ? undefined : some.join('; ');
}
