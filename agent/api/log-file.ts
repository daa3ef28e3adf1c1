/** One log file on disk: finding the last lines from its end, and what follows it after a rotation. */
import { type FileHandle, open, readdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { errnoOf } from '../../runtime/host/errors.ts';
import { maxHeader, parseLogLine } from './log-line.ts';

const newlineByte = 10;

/**
 * Where the last `count` lines of the container's output begin. Reads backwards in blocks. Pieces (`P`) count with
 * the line that they are part of; what is no log line does not count.
 */
export async function findTail(
  handle: FileHandle,
  size: number,
  count: number,
  blockSize = 65_536,
): Promise<number> {
  if (count === 0) return size;
  const buffer = Buffer.allocUnsafe(blockSize + maxHeader);
  let found = 0;
  let start = size;
  /** True when `at` begins a line that is not wanted any more. */
  const passes = (from: number, to: number, at: number): boolean => {
    const line = parseLogLine(buffer, from, to);
    if (line !== undefined && !line.partial && ++found > count) return true;
    start = at;
    return false;
  };
  for (let right = size; right > 0; right -= blockSize) {
    const left = Math.max(0, right - blockSize);
    // With the beginning of the block after it, for a header that is cut by the border.
    const { bytesRead } = await handle.read(buffer, 0, Math.min(size, right + maxHeader) - left, left);
    let lineEnd = bytesRead;
    for (
      let at = buffer.lastIndexOf(newlineByte, right - left - 1);
      at >= 0;
      at = at === 0 ? -1 : buffer.lastIndexOf(newlineByte, at - 1)
    ) {
      if (at + 1 < bytesRead && passes(at + 1, lineEnd, left + at + 1)) return start;
      lineEnd = at;
    }
    if (left === 0 && passes(0, lineEnd, 0)) return start;
  }
  return 0;
}

/**
 * The file that was written after the open one, once the writer has moved on: the next rotated one
 * (`0.log.20261006-001709`), else the one at `path`. Undefined while the open one is the newest.
 */
export async function nextLogFile(path: string, inode: bigint): Promise<string | undefined> {
  const current = await inodeOf(path);
  if (current === undefined || current === inode) return undefined;
  const prefix = `${basename(path)}.`;
  const rotated = (await readdir(dirname(path)).catch(() => []))
    .filter((name) => name.startsWith(prefix) && /\.\d{8}-\d{6}$/.test(name))
    .sort();
  const inodes = await Promise.all(rotated.map((name) => inodeOf(join(dirname(path), name))));
  const ours = inodes.indexOf(inode);
  const next = ours < 0 ? undefined : rotated[ours + 1];
  return next === undefined ? path : join(dirname(path), next);
}

async function inodeOf(path: string): Promise<bigint | undefined> {
  return stat(path, { bigint: true }).then(
    ({ ino }) => ino,
    () => undefined,
  );
}

/** Opens a log for reading; undefined where there is none. */
export async function openLog(path: string): Promise<{ handle: FileHandle; inode: bigint } | undefined> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, 'r');
    return { handle, inode: (await handle.stat({ bigint: true })).ino };
  } catch (error) {
    await handle?.close();
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}
