/** TCP connections into a sandbox: a socket stays in the network namespace in which it was made. */
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { type Clock, sleep } from '../host/clock.ts';
import { abortError, isError, KeelsonError } from '../host/errors.ts';
import { closeDescriptor, connectLoopback, tcpSocket } from '../host/syscalls.ts';
import { onAbort } from './pump.ts';

export interface ForwardOptions {
  readonly port: number;
  readonly io: Duplex;
  /** Calls its argument where the socket shall be made; synchronous. */
  readonly inNetwork: <T>(work: () => T) => T;
  readonly clock: Clock;
  readonly signal?: AbortSignal;
}

const connectDeadlineMs = 30_000;
const slowConnectMs = 50;

/** As RuntimeService.portForward. */
export async function forwardPort(options: ForwardOptions): Promise<void> {
  const { io, port, signal } = options;
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new KeelsonError('INVALID_ARGUMENT', `${port} is no port`);
  }
  if (signal?.aborted) throw abortError(signal, 'forwarding');
  const socket = await connect(options);
  const forget = onAbort(signal, () => socket.destroy());
  let failure: Error | undefined;
  socket.on('error', (error) => {
    failure = error;
  });
  io.on('error', () => {});
  // Each end is handed on alone: the other direction may still have much to say.
  io.pipe(socket);
  socket.pipe(io);
  const broken = () => {
    if (!io.readableEnded || !io.writableFinished) socket.resetAndDestroy();
  };
  if (io.destroyed) socket.destroy();
  io.once('close', broken);
  await new Promise<void>((resolve) => socket.once('close', () => resolve()));
  forget();
  io.off('close', broken);
  if (failure !== undefined) {
    throw new KeelsonError('UNAVAILABLE', `the connection to port ${port} broke: ${failure.message}`, {
      cause: failure,
    });
  }
  if (!io.destroyed && !io.writableEnded) io.end();
  if (!io.destroyed) io.resume();
}

async function connect(options: ForwardOptions): Promise<Socket> {
  let first: unknown;
  for (const family of [4, 6] as const) {
    try {
      return await connectTo(family, options);
    } catch (error) {
      if (options.signal?.aborted) throw error;
      first ??= error;
    }
  }
  const errno = isError(first) ? first.details['errno'] : undefined;
  throw new KeelsonError(
    'UNAVAILABLE',
    errno === 'ECONNREFUSED'
      ? `nobody listens on port ${options.port} of the pod's loopback`
      : `cannot connect to port ${options.port} in the pod`,
    { cause: first },
  );
}

async function connectTo(family: 4 | 6, { port, inNetwork, clock, signal }: ForwardOptions): Promise<Socket> {
  const fd = inNetwork(() => tcpSocket(family));
  try {
    // On the loopback the answer is there when the call returns; only a listener whose queue is full gives none.
    const deadline = clock.monotonic() + connectDeadlineMs;
    for (let tries = 0; !connectLoopback(fd, family, port); tries++) {
      if (clock.monotonic() > deadline) {
        throw new KeelsonError('DEADLINE_EXCEEDED', `port ${port} did not accept the connection in time`);
      }
      if (tries > 0) await sleep(clock, slowConnectMs, signal);
    }
    return new Socket({ fd, allowHalfOpen: true, readable: true, writable: true });
  } catch (error) {
    closeDescriptor(fd);
    throw error;
  }
}
