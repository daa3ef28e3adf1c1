/** exec and attach from this terminal: its keys, its size, and the exit code of what runs. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { connectStreams } from '../../../runtime/streaming/client/connect.ts';
import { exitCodeOf } from '../../../runtime/streaming/client/status.ts';
import type { SpdySession } from '../../../runtime/streaming/session.ts';
import { makeDetach } from './detach.ts';

export interface RemoteCommand {
  readonly url: string;
  readonly stdin: boolean;
  /** The other side has a terminal: where this one is one, too, every key goes there, Ctrl-C as well. */
  readonly tty: boolean;
  /** Ctrl-P Ctrl-Q leaves. */
  readonly detachable: boolean;
  readonly signal: AbortSignal;
}

const protocol = 'v4.channel.k8s.io';

/**
 * Joins this process' streams with those of `url` until the command ends; returns its exit code, or undefined where the
 * user has detached. Throws EXEC_FAILED, UNAVAILABLE, ABORTED.
 */
export async function runRemoteCommand(command: RemoteCommand): Promise<number | undefined> {
  const { stdin: wanted, tty, signal } = command;
  const session = await connectStreams(command.url, protocol, signal);
  const raw = wanted && tty && process.stdin.isTTY;
  let detached = false;
  const endings: (() => void)[] = [];
  try {
    const error = openStream(session, 'error');
    error.end();
    const status = text(error).catch(() => '');
    const stdin = wanted ? openStream(session, 'stdin') : undefined;
    const stdout = openStream(session, 'stdout');
    const stderr = tty ? undefined : openStream(session, 'stderr');
    if (tty) endings.push(followSize(openStream(session, 'resize')));
    if (raw) {
      process.stdin.setRawMode(true);
      // Node leaves on that line feeds get a carriage return, which the terminal on the other side does already.
      spawnSync('stty', ['-opost'], { stdio: ['inherit', 'ignore', 'ignore'] });
      endings.push(() => process.stdin.setRawMode(false));
    }
    if (stdin !== undefined) {
      const leave = () => {
        detached = true;
        session.destroy();
      };
      const filters = raw && command.detachable ? [makeDetach(leave)] : [];
      // A command that ends before its input does closes this first.
      pipeline([process.stdin, ...filters, stdin]).catch(() => {});
      endings.push(() => process.stdin.destroy());
      stdin.resume();
    }
    await Promise.all([passOn(stdout, process.stdout), stderr && passOn(stderr, process.stderr)]);
    const ended = await status;
    if (detached) return undefined;
    signal.throwIfAborted();
    return exitCodeOf(ended);
  } finally {
    for (const end of endings) end();
    session.destroy();
  }
}

function openStream(session: SpdySession, streamtype: string): Duplex {
  const { io } = session.open(new Map([['streamtype', [streamtype]]]));
  io.on('error', () => {}); // Whoever reads it sees that, too.
  return io;
}

/** Copies until `from` ends, in whatever way, and holds it back while `to` is slow. */
async function passOn(from: Duplex, to: NodeJS.WriteStream): Promise<void> {
  from.end();
  try {
    for await (const chunk of from) if (!to.write(chunk)) await once(to, 'drain');
  } catch {
    // Reset: the status, or that there is none, says why.
  }
}

/** Tells the size of this terminal, and every change of it. */
function followSize(resize: Duplex): () => void {
  resize.resume();
  const tell = () => {
    const { columns, rows } = process.stdout;
    if (columns && rows) resize.write(JSON.stringify({ Width: columns, Height: rows }));
  };
  process.stdout.on('resize', tell);
  tell();
  return () => process.stdout.off('resize', tell);
}
