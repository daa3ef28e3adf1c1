/**
 * Attaching to a running container through its monitor: conmon's socket in the bundle, of packets. From conmon each
 * packet begins with a byte for the stream (2 stdout, 3 stderr); to conmon they are plain input.
 *
 * conmon writes to all that are attached before it does anything else, and it waits for them. So a caller that does not
 * read would hold the container up, and hide its end: it is let go of after a while.
 */
import { closeSync, constants, openSync } from 'node:fs';
import { Socket } from 'node:net';
import type { Readable } from 'node:stream';
import type { Clock } from '../host/clock.ts';
import { abortError, KeelsonError } from '../host/errors.ts';
import { connectPackets, replaceDescriptor } from '../host/syscalls.ts';
import type { ProcessStreams, TerminalSize } from '../streaming/types.ts';
import { tellMonitor } from './monitor_control.ts';
import { onAbort } from './pump.ts';

/** conmon sends up to 8 KiB and the first byte. */
const packetSize = 16 << 10;
/** conmon takes 32 KiB, and cuts what is longer. */
const inputSize = 8 << 10;
const stderrPipe = 3;
const resizeEvent = 1;

/** Connects before it returns; resolves when the container has ended or the caller has left. */
export async function attachToMonitor(options: {
  readonly bundle: string;
  readonly tty: boolean;
  readonly streams: ProcessStreams;
  readonly clock: Clock;
  /** For how long a caller may leave output unread; absent: without end. */
  readonly stallMs?: number;
  readonly signal?: AbortSignal;
}): Promise<void> {
  const { bundle, tty, streams, clock, stallMs, signal } = options;
  if (signal?.aborted) throw abortError(signal, 'attaching');
  const { stdin } = streams;
  const [packets, standIn] = connect(bundle);
  let over: KeelsonError | undefined;
  let cancelStall = () => {};
  const socket = new Socket({
    fd: standIn,
    allowHalfOpen: true,
    readable: true,
    writable: true,
    // One read, one packet: no buffer in between that could join them.
    onread: {
      buffer: Buffer.allocUnsafe(packetSize),
      callback: (size, buffer) => deliver(Buffer.from(buffer.subarray(0, size))),
    },
  });
  replaceDescriptor(packets, standIn);

  const end = (error?: KeelsonError) => {
    over ??= error;
    socket.destroy();
  };
  const deliver = (packet: Buffer): boolean => {
    const to = packet[0] === stderrPipe ? streams.stderr : streams.stdout;
    if (to === undefined || to.destroyed || to.writableEnded || to.write(packet.subarray(1))) return true;
    if (stallMs !== undefined) {
      cancelStall = clock.after(stallMs, () =>
        end(new KeelsonError('ABORTED', `nobody read the container's output for ${stallMs / 1000} s`)),
      );
    }
    to.once('drain', () => {
      cancelStall();
      socket.resume();
    });
    return false;
  };
  for (const to of [streams.stdout, streams.stderr]) {
    to?.on('error', () => {});
    to?.once('close', () => end());
  }
  const closed = new AbortController();
  if (tty) streams.onResize?.(makeResize(bundle, closed.signal));
  if (stdin !== undefined) void feed(stdin, socket);
  const forget = onAbort(signal, () => end(abortError(signal!, 'attaching')));
  await new Promise<void>((resolve) => {
    socket.on('error', () => {});
    socket.once('end', () => socket.destroy());
    socket.once('close', () => resolve());
  });
  forget();
  closed.abort();
  cancelStall();
  if (over !== undefined) throw over;
  for (const to of [streams.stdout, streams.stderr]) if (!to?.destroyed) to?.end();
}

function connect(bundle: string): [number, number] {
  // A bundle's path may be longer than the name of a socket can be.
  const folder = openSync(bundle, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    return connectPackets(`/proc/self/fd/${folder}/attach`);
  } catch (error) {
    throw new KeelsonError('FAILED_PRECONDITION', 'the container has no running monitor to attach to', {
      cause: error,
    });
  } finally {
    closeSync(folder);
  }
}

/** Input, packet by packet; a socket of packets takes each whole or not at all. Its end is the end of the input. */
async function feed(stdin: Readable, socket: Socket): Promise<void> {
  try {
    for await (const chunk of stdin.iterator({ destroyOnReturn: false })) {
      const bytes = chunk as Buffer;
      for (let at = 0; at < bytes.length; at += inputSize) {
        const piece = bytes.subarray(at, at + inputSize);
        await new Promise<void>((resolve, reject) => {
          socket.write(piece, (error) => (error ? reject(error) : resolve()));
        });
      }
    }
    socket.end();
  } catch {
    // The caller has left, or the container does not take input any more: what still comes is thrown away.
    stdin.resume();
  }
}

/** Tells conmon the newest size; what came while it was being told is left out but for the last. */
function makeResize(bundle: string, signal: AbortSignal): (size: TerminalSize) => void {
  let newest: TerminalSize | undefined;
  let telling = false;
  const tell = async () => {
    telling = true;
    while (newest !== undefined) {
      const { width, height } = newest;
      newest = undefined;
      // It fails where conmon has ended, and the session is about to.
      await tellMonitor(bundle, `${resizeEvent} ${height} ${width}`, signal).catch(() => {});
    }
    telling = false;
  };
  return (size) => {
    newest = size;
    if (!telling) void tell();
  };
}
