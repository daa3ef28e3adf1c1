/**
 * The line to a monitor: a fifo in its bundle whose writing end is conmon's sync pipe. conmon answers on it once and
 * then holds it open as long as it lives, so that whoever reads it learns at once that conmon has gone, however it
 * went. It lies in the file system, so a restarted agent takes it up again.
 */
import { closeSync, constants, openSync, readSync } from 'node:fs';
import { Socket } from 'node:net';
import { join } from 'node:path';
import { errnoOf } from '../host/errors.ts';
import { mkfifo } from '../host/syscalls.ts';

const { O_RDONLY, O_WRONLY, O_NONBLOCK } = constants;

function linePath(bundle: string): string {
  return join(bundle, 'sync');
}

export interface Line {
  /** What the monitor says; ends with it, or when no monitor has taken it up. */
  readonly said: Socket;
  /** The monitor's end: a descriptor that the caller closes once he has handed it over. */
  readonly end: number;
}

/** Makes the line of a new monitor. Throws SYSCALL_FAILED. */
export function makeLine(bundle: string): Line {
  const path = linePath(bundle);
  mkfifo(path, 0o600);
  const fd = openSync(path, O_RDONLY | O_NONBLOCK);
  const said = new Socket({ fd, readable: true, writable: false });
  try {
    return { said, end: openSync(path, O_WRONLY | O_NONBLOCK) };
  } catch (error) {
    said.destroy();
    throw error;
  }
}

/**
 * Calls `onGone` once, when the monitor of this bundle has gone or if it has already; not where the bundle has no
 * line. Returns the end of watching.
 */
export function watchLine(bundle: string, onGone: () => void): () => void {
  let fd: number;
  try {
    fd = openSync(linePath(bundle), O_RDONLY | O_NONBLOCK);
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    return () => {};
  }
  let watching = true;
  const gone = () => {
    if (!watching) return;
    watching = false;
    onGone();
  };
  if (nobodyHolds(fd)) {
    closeSync(fd);
    setImmediate(gone);
    return () => {
      watching = false;
    };
  }
  const socket = new Socket({ fd, readable: true, writable: false });
  socket.on('error', () => {});
  socket.once('close', gone);
  socket.resume();
  socket.unref();
  return () => {
    watching = false;
    socket.destroy();
  };
}

/** poll(2) tells only of a writer that goes while one watches; of one that had gone before, read(2) does. */
function nobodyHolds(fd: number): boolean {
  try {
    return readSync(fd, Buffer.alloc(1)) === 0;
  } catch {
    return false; // EAGAIN: somebody holds it and has nothing to say.
  }
}
