/** Rotates the logs of running containers that have grown too big; those that have ended go with their containers. */
import { createReadStream, createWriteStream } from 'node:fs';
import { readdir, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import type { RuntimeService } from '../../runtime/api.ts';
import { type Clock, sleep } from '../../runtime/host/clock.ts';
import { errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { planRotation } from './rotation_plan.ts';

export interface LogRotationOptions {
  readonly runtime: Pick<RuntimeService, 'reopenContainerLog'>;
  /** The running containers and where they log. */
  readonly logs: () => readonly { readonly id: string; readonly logPath: string }[];
  /** containerLogMaxSize, bytes. */
  readonly maxBytes: number;
  /** containerLogMaxFiles, at least 2. */
  readonly maxFiles: number;
  /** containerLogMaxWorkers. */
  readonly workers: number;
  /** containerLogMonitorInterval, milliseconds. */
  readonly everyMs: number;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface LogRotation {
  close(): Promise<void>;
}

export function startLogRotation(options: LogRotationOptions): LogRotation {
  const { clock, log, everyMs } = options;
  const controller = new AbortController();
  const { signal } = controller;

  async function round(): Promise<void> {
    const queue = [...options.logs()];
    const worker = async () => {
      for (let next = queue.shift(); next !== undefined && !signal.aborted; next = queue.shift()) {
        try {
          await look(options, next.id, next.logPath, signal);
        } catch (error) {
          // Ended and removed meanwhile.
          if (signal.aborted || isError(error, 'NOT_FOUND') || errnoOf(error) === 'ENOENT') continue;
          log.warn({ err: error, file: next.logPath }, 'cannot rotate the log of a container');
        }
      }
    };
    await Promise.all(Array.from({ length: Math.max(1, options.workers) }, worker));
  }

  async function run(): Promise<void> {
    while (!signal.aborted) {
      await sleep(clock, everyMs, signal).catch(() => {});
      if (!signal.aborted) await round();
    }
  }

  const running = run();
  return {
    async close() {
      controller.abort(new KeelsonError('ABORTED', 'logs are not rotated any more'));
      await running;
    },
  };
}

async function look(
  options: LogRotationOptions,
  id: string,
  path: string,
  signal: AbortSignal,
): Promise<void> {
  const { runtime, maxBytes, maxFiles, clock } = options;
  const facts = await stat(path).catch((error: unknown) => {
    if (errnoOf(error) !== 'ENOENT') throw error;
    return undefined;
  });
  // A crash between the two steps of a rotation, or somebody removed it: its output would go nowhere.
  if (facts === undefined) return runtime.reopenContainerLog(id, signal);
  if (facts.size < maxBytes) return;
  const folder = dirname(path);
  const plan = planRotation(basename(path), await readdir(folder), maxFiles, clock.now());
  for (const name of plan.remove) await rm(join(folder, name), { force: true });
  for (const name of plan.compress) await compress(join(folder, name), signal);
  const rotated = join(folder, plan.rotated);
  await rename(path, rotated);
  try {
    await runtime.reopenContainerLog(id, signal);
  } catch (error) {
    // The writer has the old file open still: its name stays the one that is read.
    await rename(rotated, path).catch(() => {});
    throw error;
  }
}

async function compress(path: string, signal: AbortSignal): Promise<void> {
  const { createGzip } = await import('node:zlib');
  const { mode } = await stat(path);
  const partial = `${path}.tmp`;
  try {
    await pipeline(createReadStream(path), createGzip(), createWriteStream(partial, { mode }), { signal });
    await rename(partial, `${path}.gz`);
  } finally {
    await rm(partial, { force: true });
  }
  await rm(path, { force: true });
}
