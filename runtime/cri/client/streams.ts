/**
 * exec, attach and port-forward in another runtime, as kubelet does it: the runtime is asked for a URL, which is good once,
 * and the streams go there over SPDY/3.1.
 */
import type { Duplex } from 'node:stream';
import { text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import type { RuntimeService } from '../../api.ts';
import { abortError, KeelsonError } from '../../host/errors.ts';
import { connectStreams } from '../../streaming/client/connect.ts';
import { exitCodeOf } from '../../streaming/client/status.ts';
import type { SpdySession } from '../../streaming/session.ts';
import type { ProcessStreams } from '../../streaming/types.ts';
import type { CallLimits, Channel } from './channel.ts';

const commandProtocol = 'v4.channel.k8s.io';
const forwardProtocol = 'portforward.k8s.io';

export type RemoteStreams = Pick<RuntimeService, 'exec' | 'attach' | 'portForward'>;

export function makeRemoteStreams(
  call: Channel['call'],
  within: (signal?: AbortSignal) => CallLimits,
): RemoteStreams {
  return {
    async exec(id, command, streams, signal) {
      const request = { containerId: id, cmd: command, ...asked(streams) };
      const { url } = await call('Exec', request, within(signal));
      return carryCommand(url, streams, signal);
    },
    async attach(id, streams, signal) {
      const { url } = await call('Attach', { containerId: id, ...asked(streams) }, within(signal));
      await carryCommand(url, streams, signal);
    },
    async portForward(sandboxId, port, io, signal) {
      const { url } = await call('PortForward', { podSandboxId: sandboxId, port: [port] }, within(signal));
      await carryConnection(url, port, io, signal);
    },
  };
}

type Streams = ProcessStreams & { readonly tty?: boolean };

function asked({ stdin, stdout, stderr, tty = false }: Streams) {
  return {
    tty,
    stdin: stdin !== undefined,
    stdout: stdout !== undefined,
    stderr: stderr !== undefined && !tty,
  };
}

function open(session: SpdySession, headers: Readonly<Record<string, string>>): Duplex {
  const { io } = session.open(new Map(Object.entries(headers).map(([name, value]) => [name, [value]])));
  io.on('error', () => {}); // Whoever reads or writes it sees that, too.
  return io;
}

/** Returns the exit code. Throws EXEC_FAILED, UNAVAILABLE, ABORTED. */
async function carryCommand(url: string, streams: Streams, signal = new AbortController().signal) {
  const session = await connectStreams(url, commandProtocol, signal, { endOnReset: true });
  const { stdin, stdout, stderr, tty = false, onResize } = streams;
  try {
    const error = open(session, { streamtype: 'error' });
    error.end();
    const status = text(error).catch(() => '');
    const input = stdin && open(session, { streamtype: 'stdin' });
    const out = stdout && open(session, { streamtype: 'stdout' });
    const err = stderr && !tty ? open(session, { streamtype: 'stderr' }) : undefined;
    if (tty) {
      const resize = open(session, { streamtype: 'resize' });
      resize.resume();
      onResize?.(({ width, height }) => {
        if (resize.writable) resize.write(JSON.stringify({ Width: width, Height: height }));
      });
    }
    if (stdin !== undefined && input !== undefined) {
      input.resume();
      // A command that ends before its input does closes this first; the caller's stream stays the caller's.
      stdin.pipe(input);
      stdin.once('error', () => input.destroy());
      input.once('close', () => stdin.resume());
    }
    const passed = [
      [out, stdout],
      [err, stderr],
    ] as const;
    await Promise.all(passed.map(async ([from, to]) => from && to && passOn(from, to)));
    const said = await status;
    if (signal.aborted) throw abortError(signal, 'the stream');
    return exitCodeOf(said);
  } finally {
    session.destroy();
  }
}

/** To the end of `from`; a caller that leaves ends it, and a reset says no more than that. */
async function passOn(from: Duplex, to: NodeJS.WritableStream): Promise<void> {
  from.end();
  await pipeline(from, to).catch(() => from.destroy());
}

/** One TCP connection. Throws UNAVAILABLE with what the runtime says. */
async function carryConnection(
  url: string,
  port: number,
  io: Duplex,
  signal = new AbortController().signal,
): Promise<void> {
  const session = await connectStreams(url, forwardProtocol, signal, { endOnReset: true });
  const leave = () => session.destroy();
  try {
    const of = (streamtype: string) => open(session, { streamtype, port: String(port), requestid: '0' });
    const error = of('error');
    error.end();
    const said = text(error).catch(() => '');
    const data = of('data');
    io.on('error', () => {});
    io.once('close', leave);
    if (io.destroyed) leave();
    io.pipe(data);
    data.pipe(io);
    const over = new Promise<void>((resolve) => data.once('close', () => resolve()));
    const complaint = await said;
    if (complaint !== '') throw new KeelsonError('UNAVAILABLE', complaint);
    await Promise.race([over, session.closed]);
    if (signal.aborted) throw abortError(signal, 'forwarding');
    if (!io.destroyed && !io.writableEnded) io.end();
  } finally {
    io.off('close', leave);
    session.destroy();
  }
}
