/**
 * A container's log as a stream: the options applied, followed through rotations until the container has ended.
 *
 * A follower waits for events only (the log's folder is watched, the container's exit is told) and holds nothing but
 * one file and one watch while it waits.
 */
import { type FSWatcher, watch } from 'node:fs';
import { realpath } from 'node:fs/promises';
import { dirname } from 'node:path';
import { abortError, errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { findTail, nextLogFile, openLog } from './log-file.ts';
import { makeLogFormatter } from './log-line.ts';
import type { LogOptions } from './log-options.ts';

/** The log of one container, of one attempt. */
export interface ContainerLog {
  /** Absolute path of the current file. */
  readonly logPath: string;
  /** Does the container still run (or is about to)? False only once its log is complete. */
  running(): boolean;
  /** Calls `listener` once after `running` became false; returns the function that ends it. */
  onExit(listener: () => void): () => void;
}

const blockSize = 65_536;
/** What a follower keeps while it waits, and what one line of output costs: a thousand of them must not hold much. */
const smallBlockSize = 4096;
/** Longer lines are not log lines (runtimes cut at 16 KiB): what a power cut leaves may be megabytes of zeroes. */
const maxLine = 1 << 20;

/**
 * Reads the log to its end, or follows it. `write` gets pieces of the output and resolves when it can take more.
 * Throws NOT_FOUND where the log is gone, ABORTED when `signal` aborts; whatever `write` throws ends it. When it
 * settles, no file and no watch is left open.
 */
export async function streamLog(options: {
  readonly log: ContainerLog;
  readonly options: LogOptions;
  readonly write: (chunk: Buffer) => Promise<void>;
  readonly signal: AbortSignal;
}): Promise<void> {
  const { log, write, signal } = options;
  const { follow, tailLines } = options.options;
  const formatter = makeLogFormatter(options.options);
  const alarm = makeAlarm(signal);
  const small = Buffer.allocUnsafeSlow(smallBlockSize);
  let watcher: FSWatcher | undefined;
  let stopExit: (() => void) | undefined;
  let file: Awaited<ReturnType<typeof openLog>>;
  let position = 0;
  /** The beginning of a line whose rest is not there yet. */
  let carry: Buffer = Buffer.alloc(0);

  /** Everything from `position` to `end` of the file, or to where it ends now. True when there was something. */
  const drain = async (end = Number.POSITIVE_INFINITY): Promise<boolean> => {
    const from = position;
    let block = small;
    while (!formatter.full && position < end) {
      if (signal.aborted) throw abortError(signal, 'reading of a log');
      const { bytesRead } = await file!.handle.read(
        block,
        0,
        Math.min(block.length, end - position),
        position,
      );
      if (bytesRead === 0) break;
      position += bytesRead;
      const fresh = block.subarray(0, bytesRead);
      if (block === small && bytesRead === small.length) block = Buffer.allocUnsafeSlow(blockSize); // There is more, for the next read.
      const data = carry.length === 0 ? fresh : Buffer.concat([carry, fresh]);
      const out: Buffer[] = [];
      let start = 0;
      for (let at = data.indexOf(10, carry.length); at >= 0; at = data.indexOf(10, start)) {
        formatter.line(data, start, at, out);
        start = at + 1;
        if (formatter.full) break;
      }
      // A copy: the block is used again.
      carry = data.length - start > maxLine ? Buffer.alloc(0) : Buffer.from(data.subarray(start));
      if (out.length > 0) await write(Buffer.concat(out));
    }
    return position > from;
  };
  /** What a writer left without an end of line. */
  const flush = async () => {
    const out: Buffer[] = [];
    if (carry.length > 0 && !formatter.full) formatter.line(carry, 0, carry.length, out);
    carry = Buffer.alloc(0);
    if (out.length > 0) await write(Buffer.concat(out));
  };
  /** Opens what is written after the open file. False while that is the newest. */
  const advance = async (path: string): Promise<boolean> => {
    const next = file === undefined ? path : await nextLogFile(path, file.inode);
    const opened = next === undefined ? undefined : await openLog(next);
    if (opened === undefined) return false;
    const old = file?.handle;
    try {
      if (old !== undefined) await drain(); // The writer has moved on, so this is the rest.
      await flush();
    } catch (error) {
      await opened.handle.close();
      throw error;
    }
    file = opened;
    position = 0;
    await old?.close();
    return true;
  };

  try {
    if (signal.aborted) throw abortError(signal, 'reading of a log');
    const path = await realpath(log.logPath).catch(() => log.logPath);
    if (follow) {
      // Before the first read, so that nothing written meanwhile is missed.
      watcher = watch(dirname(path), { persistent: false }, alarm.ring);
      watcher.on('error', alarm.ring);
      stopExit = log.onExit(alarm.ring);
    }
    file = await openLog(path);
    if (file === undefined && !log.running()) {
      throw gone(path);
    }
    const size = file === undefined ? 0 : (await file.handle.stat()).size;
    if (file !== undefined && tailLines !== undefined)
      position = await findTail(file.handle, size, tailLines);
    if (!follow) {
      // To the size of now: a container that writes faster than the reader reads must not keep this open.
      if (file !== undefined) await drain(size);
      await flush();
      return;
    }
    while (!formatter.full) {
      const over = !log.running();
      const more = file !== undefined && (await drain());
      if (formatter.full || more) continue;
      if (await advance(path)) continue;
      if (over) return await flush();
      await alarm.wait();
      // Cut off in place (`copytruncate`): what comes now is new.
      if (file !== undefined && (await file.handle.stat()).size < position) {
        position = 0;
        carry = Buffer.alloc(0);
      }
    }
  } catch (error) {
    if (error instanceof KeelsonError) throw error;
    if (errnoOf(error) === 'ENOENT') throw gone(log.logPath, error); // The folder, under the watch.
    throw new KeelsonError('UNAVAILABLE', `cannot read the log ${log.logPath}: ${(error as Error).message}`, {
      cause: error,
    });
  } finally {
    alarm.end();
    stopExit?.();
    watcher?.close();
    await file?.handle.close();
  }
}

function gone(path: string, cause?: unknown): KeelsonError {
  return new KeelsonError('NOT_FOUND', `the log file ${path} does not exist`, { cause });
}

/** Remembers one ring, so that none is lost between looking and waiting. */
function makeAlarm(signal: AbortSignal) {
  let rung = false;
  let wake: (() => void) | undefined;
  const ring = () => {
    rung = true;
    wake?.();
  };
  signal.addEventListener('abort', ring);
  return {
    ring,
    async wait(): Promise<void> {
      if (!rung) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
        wake = undefined;
      }
      rung = false;
      if (signal.aborted) throw abortError(signal, 'reading of a log');
    },
    end: () => signal.removeEventListener('abort', ring),
  };
}
