/** The command line as child processes, against the real control server over a real runtime on this machine. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { TestContext } from 'node:test';
import { runtimeVerbs } from '../../../agent/control/runtime.ts';
import { startControl } from '../../../agent/control/server.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { makeStreaming } from '../../../runtime/streaming/server.ts';
import { type Machine, makeMachine } from '../../runtime/machine.ts';

const root = resolve(import.meta.dirname, '../../..');
export const cli = [process.execPath, '--disable-warning=ExperimentalWarning', join(root, 'agent/cli.ts')];

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Stage {
  readonly machine: Machine;
  readonly configFile: string;
  /** Ends the agent's side of the socket. */
  closeControl(): Promise<void>;
  start(verb: string, ...args: string[]): ChildProcess;
  run(verb: string, ...args: string[]): Promise<Ended>;
  /** In a pseudo-terminal of 100 columns and 30 rows. */
  onTerminal(verb: string, ...args: string[]): ChildProcess;
}

/** What a child says until its end. */
export function ended(child: ChildProcess): Promise<Ended> {
  const texts = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]?.setEncoding('utf8').on('data', (text: string) => (texts[name] += text));
  }
  return once(child, 'close').then(([code, signal]) => ({ code, signal, ...texts }));
}

/** Resolves when standard output has matched; rejects when it ends before. Decodes it as text. */
export function said(child: ChildProcess, pattern: RegExp): Promise<RegExpExecArray> {
  return new Promise((found, reject) => {
    let all = '';
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      all += text;
      const match = pattern.exec(all);
      if (match !== null) found(match);
    });
    child.stdout!.on('close', () => reject(new Error(`ended without ${pattern}: ${JSON.stringify(all)}`)));
  });
}

export async function stage(t: TestContext): Promise<Stage> {
  const machine = await makeMachine(t);
  const log = makeLogger('silent');
  const streaming = makeStreaming({ runtime: machine.runtime, clock: systemClock, log });
  const runDir = join(machine.root, 'control');
  mkdirSync(runDir);
  const control = await startControl({
    runDir,
    handlers: runtimeVerbs({ runtime: () => machine.runtime, streaming: async () => streaming }),
    log,
    clock: systemClock,
  });
  let closing: Promise<void> | undefined;
  const closeControl = () => {
    closing ??= control.close();
    return closing;
  };
  t.after(async () => {
    await streaming.close();
    await closeControl();
  });
  const configFile = join(machine.root, 'config.yaml');
  writeFileSync(
    configFile,
    `apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nkeelson: {runDir: ${runDir}, stateDir: ${join(runDir, 'none')}}\n`,
  );
  const start = (command: string[], env?: NodeJS.ProcessEnv) => {
    const child = spawn(command[0]!, command.slice(1), { stdio: ['pipe', 'pipe', 'pipe'], env });
    t.after(() => void child.kill('SIGKILL'));
    child.stdin.on('error', () => {});
    return child;
  };
  const words = (verb: string, args: string[]) => [...cli, verb, '--config', configFile, ...args];
  const quoted = (word: string) => `'${word.replaceAll("'", "'\\''")}'`;
  return {
    machine,
    configFile,
    closeControl,
    start: (verb, ...args) => start(words(verb, args)),
    run(verb, ...args) {
      const child = start(words(verb, args));
      child.stdin!.end();
      return ended(child);
    },
    onTerminal: (verb, ...args) =>
      start(
        [
          'script',
          '-qec',
          `stty cols 100 rows 30; exec ${words(verb, args).map(quoted).join(' ')}`,
          '/dev/null',
        ],
        { ...process.env, TERM: 'xterm' },
      ),
  };
}

export const lastLine = (text: string) => text.trimEnd().split('\n').at(-1)!;
