/**
 * Looking at paths of the host that may never answer: a network file system whose server is gone holds whoever asks
 * in the kernel, and with it one of Node's few threads for files. So few such questions are under way at once, and a
 * mount that owes an answer is not asked again until it has given it.
 */
import { readFile } from 'node:fs/promises';
import type { Clock } from '../clock.ts';
import { abortError, KeelsonError } from '../errors.ts';
import { mountPoints } from './mountinfo.ts';

export interface Patience {
  /**
   * `question` about `path`. Throws VOLUME_FAILED when there is no answer in time, at once where the path's mount
   * still owes one; ABORTED. What was asked goes on in the background; `onLate` gets an answer that nobody waits for.
   */
  ask<T>(
    path: string,
    question: () => Promise<T>,
    signal?: AbortSignal,
    onLate?: (answer: T) => void,
  ): Promise<T>;
}

export interface PatienceOptions {
  readonly clock: Clock;
  /** Milliseconds to wait for an answer. Default 5,000. */
  readonly answerMs?: number;
  /** Milliseconds after which an unanswered question makes room for the next one. Default 500. */
  readonly suspiciousMs?: number;
  /** The kernel's mounts, as `/proc/self/mountinfo` has them. Reading them never waits for a file system. */
  readonly mounts?: () => Promise<string>;
}

export function makePatience(options: PatienceOptions): Patience {
  const { clock, answerMs = 5_000, suspiciousMs = 500 } = options;
  const mounts = options.mounts ?? (() => readFile('/proc/self/mountinfo', 'utf8'));
  /** Paths of questions that have taken too long already. */
  const owed = new Map<symbol, string>();
  let line: Promise<void> = Promise.resolve();

  /** One question at a time, for as long as they are answered at once: an unanswered one holds one thread only. */
  async function turn(): Promise<() => void> {
    const before = line;
    const { promise, resolve } = Promise.withResolvers<void>();
    line = before.then(() => promise);
    await before;
    return resolve;
  }

  async function refuseWhereOwed(path: string): Promise<void> {
    if (owed.size === 0) return;
    const points = mountPoints(await mounts());
    const own = mountPointOf(path, points);
    for (const other of owed.values()) {
      // A path on the root file system may have led through a link: that says nothing of the others there.
      const isSibling = own !== '/' && mountPointOf(other, points) === own;
      if (isSibling || `${path}/`.startsWith(`${other}/`)) throw silent(path);
    }
  }

  async function asked<T>(path: string, question: () => Promise<T>, onTurn: () => void): Promise<T> {
    const next = await turn();
    onTurn();
    const key = Symbol(path);
    let cancel = () => {};
    try {
      await refuseWhereOwed(path);
      cancel = clock.after(suspiciousMs, () => {
        owed.set(key, path);
        next();
      });
      return await question();
    } finally {
      cancel();
      owed.delete(key);
      next();
    }
  }

  return {
    ask(path, question, signal, onLate = () => {}) {
      return new Promise((resolve, reject) => {
        let waiting = true;
        const giveUp = (error: KeelsonError) => {
          waiting = false;
          reject(error);
        };
        const abort = () => giveUp(abortError(signal!, `looking at ${path}`));
        if (signal?.aborted) return abort();
        signal?.addEventListener('abort', abort, { once: true });
        let cancel = () => {};
        const onTurn = () => {
          if (waiting) cancel = clock.after(answerMs, () => giveUp(silent(path)));
        };
        asked(path, question, onTurn)
          .then((answer) => (waiting ? resolve(answer) : onLate(answer)), reject)
          .finally(() => {
            cancel();
            signal?.removeEventListener('abort', abort);
          });
      });
    },
  };
}

function silent(path: string): KeelsonError {
  return new KeelsonError('VOLUME_FAILED', `the file system of ${path} does not answer`, {
    hint: 'see whether the server of that mount can be reached',
  });
}

/** The longest mount point that the path is on or below; links in it are not looked at. Pure. */
export function mountPointOf(path: string, points: readonly string[]): string {
  const full = `${path.replace(/\/+$/, '')}/`;
  let best = '/';
  for (const point of points) {
    if (point.length > best.length && full.startsWith(`${point}/`)) best = point;
  }
  return best;
}
