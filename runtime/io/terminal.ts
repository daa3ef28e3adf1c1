/**
 * Commands in containers on a terminal: by conmon, which takes the terminal from the OCI runtime, keeps it and tells
 * the exit code. The runtime in the foreground would do it, too, but it joins two terminals and changes what is written
 * (it switches the container's translation of line feeds off and its own on, each at some time after the start).
 *
 * When the caller leaves, the command's session is hung up, as when a line is cut. What ignores that goes on.
 */
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import type { Clock } from '../host/clock.ts';
import { KeelsonError } from '../host/errors.ts';
import { type Spawned, spawn } from '../host/spawn.ts';
import { lastError } from '../oci/runc.ts';
import { identify, type ProcessIdentity, signalProcess } from '../processes.ts';
import type { TerminalSize } from '../streaming/types.ts';
import { attachToMonitor } from './attach.ts';
import { checkCommand, type ExecOptions, untilLeft } from './exec.ts';
import { processSpec } from './process_spec.ts';
import { onAbort } from './pump.ts';

export interface TerminalOptions extends ExecOptions {
  readonly conmon: string;
  /** With a short path: the runtime's socket for the terminal is made there. */
  readonly temporaryDir: string;
  readonly clock: Clock;
}

/** Clients tell the size right after the beginning, on a stream of its own. */
const sizeWaitMs = 200;

/** Returns the exit code. Throws EXEC_FAILED where the command cannot be started, ABORTED when `signal` aborts first. */
export async function execOnTerminal(options: TerminalOptions): Promise<number> {
  const { streams, clock, signal, command } = options;
  checkCommand(options);
  const folder = join(options.bundle, `exec-${randomBytes(6).toString('hex')}`);
  await mkdir(folder, { mode: 0o700 });
  let working: Promise<unknown> = Promise.resolve();
  try {
    const size = await firstSize(options);
    checkCommand(options);
    await writeFile(join(folder, 'process.json'), await terminalSpec(options, size), { mode: 0o600 });
    const child = start(options, folder);
    const [attachable, starter] = child.more as [Readable, Spawned['more'][number]];
    const answers = readAnswers(child.answer!);
    for (const pipe of [child.stdout, child.stderr, starter]) pipe.on('error', () => {}).resume();
    let inside: ProcessIdentity | undefined;
    const close = () => {
      for (const pipe of [child.answer, starter, attachable, child.stdout, child.stderr]) pipe?.destroy();
    };
    const leave = () => {
      // Before it has begun there is nobody to tell; whoever waits for the beginning does it then.
      if (inside === undefined) return;
      signalProcess(inside, 'SIGHUP');
      close();
    };
    const work = async (): Promise<number> => {
      // The first byte lets conmon go, the second, once somebody is attached, the command.
      starter.write('0');
      if ((await readAnswers(attachable).next()) === undefined) throw failed(command, 'conmon ended');
      const attached = attachToMonitor({ bundle: folder, tty: true, streams, clock, signal });
      attached.catch(() => {});
      starter.end('0');
      const begun = await answers.next();
      if (begun === undefined || begun.data <= 1) {
        const said = lastError(await readFile(runtimeLog(folder), 'utf8').catch(() => ''));
        throw failed(command, said ?? begun?.message ?? 'conmon ended');
      }
      inside = identify(begun.data);
      if (signal?.aborted) leave();
      const ended = await answers.next();
      await attached;
      if (ended === undefined) throw failed(command, 'its monitor was killed');
      return ended.data;
    };
    const result = work().finally(close);
    working = result;
    return await untilLeft(result, signal, leave);
  } finally {
    const removed = working.catch(() => {}).then(() => rm(folder, { recursive: true, force: true }));
    // What was left behind half begun is not waited for.
    if (signal?.aborted) removed.catch(() => {});
    else await removed;
  }
}

const failed = (command: readonly string[], why: string) =>
  new KeelsonError('EXEC_FAILED', `cannot run ${command[0]} in the container: ${why}`);

const runtimeLog = (folder: string) => join(folder, 'runtime.log');

/** The size that the caller tells within a moment; undefined where it tells none. */
function firstSize({ streams, clock, signal }: TerminalOptions): Promise<TerminalSize | undefined> {
  const { onResize } = streams;
  if (onResize === undefined) return Promise.resolve(undefined);
  return new Promise((resolve) => {
    const cancel = clock.after(sizeWaitMs, () => resolve(undefined));
    onAbort(signal, () => resolve(undefined));
    onResize((size) => {
      cancel();
      resolve(size);
    });
  });
}

/** On a terminal. */
function terminalSpec({ bundle, command }: TerminalOptions, size: TerminalSize | undefined): Promise<string> {
  return processSpec(bundle, command, ({ env = [] }) => ({
    terminal: true,
    env: [...env.filter((entry) => !entry.startsWith('TERM=')), 'TERM=xterm'],
    ...(size === undefined ? {} : { consoleSize: { height: size.height, width: size.width } }),
  }));
}

function start({ runtime, conmon, id, temporaryDir }: TerminalOptions, folder: string): Spawned {
  const runtimeArgs = [...runtime.callArgs, `--log=${runtimeLog(folder)}`, '--log-format=json'];
  const args = [
    ...['--api-version', '1', '--exec', '--exec-attach', '--terminal', '--stdin', '--leave-stdin-open'],
    ...['--cid', id, '--cuuid', id, '--runtime', runtime.path, '--bundle', folder, '--full-attach'],
    ...['--exec-process-spec', join(folder, 'process.json'), '--container-pidfile', join(folder, 'pid')],
    ...['--log-path', 'off', '--log-level', 'error'],
    ...runtimeArgs.flatMap((arg) => ['--runtime-arg', arg]),
  ];
  const env = {
    PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin',
    TMPDIR: temporaryDir,
    LC_ALL: 'C.UTF-8',
    _OCI_SYNCPIPE: '3',
    _OCI_ATTACHPIPE: '4',
    _OCI_STARTPIPE: '5',
  };
  try {
    return spawn(conmon, args, {
      ...{ env, cwd: folder, input: false, answer: true, group: true },
      more: ['from', 'to'],
    });
  } catch (error) {
    throw new KeelsonError('EXEC_FAILED', `cannot start ${conmon}`, { cause: error });
  }
}

interface Answer {
  readonly data: number;
  readonly message?: string;
}

/** Lines like `{"data": 12}` one by one; undefined when conmon has closed the pipe. */
function readAnswers(pipe: Readable): { next(): Promise<Answer | undefined> } {
  let text = '';
  let closed = false;
  let look = () => {};
  pipe.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
    look();
  });
  pipe.on('error', () => {});
  pipe.on('close', () => {
    closed = true;
    look();
  });
  return {
    next: () =>
      new Promise((resolve) => {
        look = () => {
          const end = text.indexOf('\n');
          if (end < 0 && !closed) return;
          look = () => {};
          const line = text.slice(0, end < 0 ? undefined : end);
          text = end < 0 ? '' : text.slice(end + 1);
          const [, data] = /"(?:data|pid|exit_code)":\s*(-?\d+)/.exec(line) ?? [];
          const [, message] = /"message":\s*"(.*)"/.exec(line) ?? [];
          resolve(data === undefined ? undefined : { data: Number(data), message });
        };
        look();
      }),
  };
}
