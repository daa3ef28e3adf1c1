/** The last words of a container: its message file, else the end of its log. */
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import type { ContainerStatus } from '../../../runtime/api.ts';
import { describe, errnoOf } from '../../../runtime/host/errors.ts';
import { annotationNames } from '../spec/pod.ts';

const messageBytes = 4096;
const logBytes = 2048;
const logLines = 80;
/** Enough of the file's end for `logLines` usual lines, with their time stamps. */
const logWindow = 64 * 1024;

/** What to report as the container's message beside the runtime's own. Never throws. */
export async function terminationMessage(container: ContainerStatus): Promise<string> {
  const path = container.annotations[annotationNames.terminationMessagePath];
  const mount = container.mounts.find(({ containerPath }) => path !== undefined && containerPath === path);
  try {
    const said = mount === undefined ? '' : await readStart(mount.hostPath, messageBytes);
    const fallback =
      container.annotations[annotationNames.terminationMessagePolicy] === 'FallbackToLogsOnError';
    if (said !== '' || !fallback || container.exitCode === 0 || container.startedAt === 0) return said;
    return lastLines(await readEnd(container.logPath, logWindow));
  } catch (error) {
    return errnoOf(error) === 'ENOENT' ? '' : `Error on reading termination message: ${describe(error)}`;
  }
}

/** Never waits: the container may have put a pipe or a link in the file's place. */
async function openSafely(path: string) {
  return open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW);
}

async function readStart(path: string, bytes: number): Promise<string> {
  const handle = await openSafely(path);
  try {
    if (!(await handle.stat()).isFile()) return '';
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(bytes), 0, bytes, 0);
    return buffer.subarray(0, bytesRead).toString('utf8');
  } finally {
    await handle.close();
  }
}

async function readEnd(path: string, bytes: number): Promise<string> {
  const handle = await openSafely(path);
  try {
    const { size } = await handle.stat();
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(bytes), 0, bytes, Math.max(0, size - bytes));
    return buffer.subarray(0, bytesRead).toString('utf8');
  } finally {
    await handle.close();
  }
}

/** The content of the last lines of a log in the CRI format (`time stream tag content`). */
export function lastLines(log: string): string {
  const lines = log.split('\n').filter((line) => /^\S+ (stdout|stderr) [FP](:\S+)? ?/.test(line));
  const text = lines
    .slice(-logLines)
    .map((line) => {
      const [, , tag = 'F'] = line.split(' ', 3);
      const content = line.split(' ').slice(3).join(' ');
      return tag.startsWith('P') ? content : `${content}\n`;
    })
    .join('');
  return Buffer.from(text).subarray(-logBytes).toString('utf8').replace(/^�+/, '');
}
