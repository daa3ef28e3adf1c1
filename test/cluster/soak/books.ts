/** What the books, the logs and the status of a container of the soak must say of each other. */
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ContainerStatus } from 'kubernetes-types/core/v1.js';
import { lines } from './pods.ts';

interface Run {
  readonly id: string;
  /** It said itself that it was to be ended. */
  readonly bad: boolean;
  /** It was told to end. */
  readonly term: boolean;
  /** Undefined: it runs, or was killed. */
  readonly code: number | undefined;
}

/** The runs of one container, in their order. Fails where two ran at once. */
export function runsOf(book: string, about: string): Run[] {
  const runs: Run[] = [];
  for (const line of book.split('\n').filter(Boolean)) {
    const [word, id, code] = line.split(' ');
    const last = runs.at(-1);
    if (word === 'start') {
      assert.ok(!runs.some((run) => run.id === id), `one run twice: ${about}\n${book}`);
      runs.push({ id: id!, bad: false, term: false, code: undefined });
      continue;
    }
    assert.equal(last?.id, id, `"${line}" after the next run began: ${about}\n${book}`);
    assert.equal(last!.code, undefined, `"${line}" after its end: ${about}\n${book}`);
    runs[runs.length - 1] = {
      ...last!,
      bad: last!.bad || word === 'bad',
      term: last!.term || word === 'term',
      code: word === 'end' ? Number(code) : undefined,
    };
  }
  return runs;
}

/** What was done to the pod that may end a container. */
export interface Deeds {
  /** Changes of its image. */
  readonly images: number;
  /** Simulated reboots of the node. */
  readonly reboots: number;
  /** Kills of the agent: one between the making and the start of a container may cost a number. */
  readonly kills: number;
}

/** Every run but the last has ended for a reason, and the restarts are as many as the ends. */
export function checkRuns(runs: readonly Run[], status: ContainerStatus, deeds: Deeds, about: string): void {
  const told = `${about} ${JSON.stringify({ runs, deeds, status })}`;
  const before = runs.slice(0, -1);
  const forced = before.filter(({ bad, term, code }) => !bad && (term || code === undefined));
  assert.ok(
    forced.length <= deeds.images + deeds.reboots,
    `${forced.length} runs were ended without a reason: ${told}`,
  );
  assert.ok(runs.length <= status.restartCount + 1, `more runs than restarts: ${told}`);
  assert.ok(
    status.restartCount + 1 - runs.length <= deeds.images + deeds.reboots + deeds.kills,
    `more restarts than runs: ${told}`,
  );
}

/** The text that the container wrote, by restart count, of those logs that are kept. */
export async function logsOf(folder: string): Promise<ReadonlyMap<number, string>> {
  const names = await readdir(folder).catch(() => [] as string[]);
  const logs = new Map<number, string>();
  for (const name of names.filter((one) => /^\d+\.log$/.test(one))) {
    const text = await readFile(join(folder, name), 'utf8').catch(() => undefined);
    if (text === undefined) continue;
    const written = text.split('\n').map((line) => line.replace(/^\S+ \S+ [FP] /, ''));
    logs.set(Number.parseInt(name, 10), written.join('\n'));
  }
  return logs;
}

/** The log of each run that is kept is whole, the newest and the one before are kept, and no exit code is lost. */
export function checkLogs(
  runs: readonly Run[],
  logs: ReadonlyMap<number, string>,
  status: ContainerStatus,
  about: string,
): void {
  const told = `${about} ${JSON.stringify({ runs, status, logs: [...logs.keys()] })}`;
  const starts = new Map<number, string>();
  for (const [count, text] of logs) {
    const ids = [...text.matchAll(/^start (\S+)/gm)].map(([, id]) => id!);
    assert.ok(ids.length <= 1, `${ids.length} runs in ${count}.log: ${told}\n${text}`);
    const run = runs.find(({ id }) => id === ids[0]);
    if (run === undefined) {
      assert.equal(ids.length, 0, `${count}.log has a run that is not in the book: ${told}`);
      continue;
    }
    starts.set(count, run.id);
    if (run.code === undefined) continue;
    const found = [...text.matchAll(/^line (\S+) (\d+)/gm)].filter(([, id]) => id === run.id).length;
    assert.equal(found, lines, `lines of ${count}.log: ${told}`);
    assert.match(text, new RegExp(`^end ${run.id} ${run.code}$`, 'm'), `the end of ${count}.log: ${told}`);
  }
  const last = runs.at(-1);
  const kept = [...starts.values()];
  for (const run of runs.slice(-2)) {
    // The last two numbers are kept, and one may have been lost before its run began.
    const must = run === last || runs.length === status.restartCount + 1;
    if (must) assert.ok(kept.includes(run.id), `no log of run ${run.id}: ${told}`);
  }
  assert.ok(logs.size <= 3, `${logs.size} logs: ${told}`);
  const codes = [
    { end: status.state?.terminated, run: starts.get(status.restartCount) },
    {
      end: status.lastState?.terminated,
      run: starts.get(status.state?.waiting === undefined ? status.restartCount - 1 : status.restartCount),
    },
  ];
  for (const { end, run: id } of codes) {
    const run = runs.find((one) => one.id === id);
    if (end === undefined || run?.code === undefined) continue;
    assert.equal(end.exitCode, run.code, `the exit code of run ${run.id}: ${told}`);
  }
}
