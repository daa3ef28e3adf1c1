/**
 * Lines of the CRI log format: `2026-10-06T00:17:09.669794202Z stdout P content`. Pure.
 * `F` ends a line of the container's output; `P` is a piece of one that was too long for a line of the log.
 */
import type { LogOptions } from './log-options.ts';

export interface LogLine {
  /** Unix milliseconds, rounded down. */
  readonly time: number;
  /** As in the file. */
  readonly timestamp: string;
  readonly stream: 'stdout' | 'stderr';
  readonly partial: boolean;
  /** Where the content begins. */
  readonly contentStart: number;
}

/** Bytes that hold the header of any line. */
export const maxHeader = 96;
const headerPattern =
  /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([A-Z]+)(?::[^ \n]*)?(?: |$)/;

/** Reads the header of the line that begins at `start`; undefined for what is no CRI log line. */
export function parseLogLine(buffer: Buffer, start: number, end: number): LogLine | undefined {
  const header = buffer.toString('latin1', start, Math.min(end, start + maxHeader));
  const match = headerPattern.exec(header);
  if (match === null) return undefined;
  const [whole, timestamp, stream, tag] = match;
  const time = Date.parse(timestamp!);
  if (Number.isNaN(time)) return undefined;
  return {
    time,
    timestamp: timestamp!,
    stream: stream as LogLine['stream'],
    partial: tag === 'P',
    contentStart: start + whole.length,
  };
}

/** The time with nine digits of fraction, in UTC where the offset is zero: as kubelet prints it. */
export function printTimestamp(timestamp: string): string {
  const match = /^(.{19})(?:\.(\d+))?(.+)$/.exec(timestamp)!;
  const zone = match[3] === '+00:00' || match[3] === '-00:00' ? 'Z' : match[3];
  return `${match[1]}.${(match[2] ?? '').padEnd(9, '0')}${zone}`;
}

export interface LogFormatter {
  /** What of a line of the file, between `start` and `end` (its newline left out), goes to the reader; appended to `out`. */
  line(buffer: Buffer, start: number, end: number, out: Buffer[]): void;
  /** `limitBytes` are through. */
  readonly full: boolean;
}

const newline = Buffer.from('\n');

/** Applies the options to lines, one after the other. Pieces of a line are put together again. */
export function makeLogFormatter(options: LogOptions): LogFormatter {
  const { since = Number.NEGATIVE_INFINITY, stream, timestamps } = options;
  let left = options.limitBytes ?? Number.POSITIVE_INFINITY;
  let atLineStart = true;
  const give = (piece: Buffer, out: Buffer[]) => {
    const given = piece.length > left ? piece.subarray(0, left) : piece;
    left -= given.length;
    if (given.length > 0) out.push(given);
  };
  return {
    line(buffer, start, end, out) {
      const found = parseLogLine(buffer, start, end);
      if (found === undefined || found.time < since) return;
      if (stream !== 'all' && stream !== found.stream) return;
      if (timestamps && atLineStart) give(Buffer.from(`${printTimestamp(found.timestamp)} `), out);
      give(buffer.subarray(found.contentStart, end), out);
      if (!found.partial) give(newline, out);
      atLineStart = !found.partial;
    },
    get full() {
      return left <= 0;
    },
  };
}
