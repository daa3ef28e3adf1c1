/** Connections to this machine, each as a pair of streams to a pod. */
import { createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { text } from 'node:stream/consumers';
import { abortError, describe, KeelsonError } from '../../../runtime/host/errors.ts';
import { connectStreams } from '../../../runtime/streaming/client/connect.ts';
import type { SpdySession } from '../../../runtime/streaming/session.ts';

export interface Forward {
  readonly ports: readonly { readonly local: number; readonly remote: number }[];
  readonly address: string;
  /** A URL that is good for one session. */
  readonly urlOf: () => Promise<string>;
  readonly onListening: (local: number, remote: number) => void;
  /** A connection could not be made. */
  readonly onFailure: (message: string) => void;
  readonly signal: AbortSignal;
}

const protocol = 'portforward.k8s.io';

/** Listens until `signal` aborts; throws ABORTED then, and UNAVAILABLE where it cannot listen. */
export async function listenForward(forward: Forward): Promise<never> {
  const { ports, address, signal } = forward;
  let open: Promise<SpdySession> | undefined;
  let requests = 0;
  /** One session for all connections; a new one where it broke, as when the agent was restarted. */
  const session = (): Promise<SpdySession> => {
    if (open !== undefined) return open;
    const opening = forward.urlOf().then((url) => connectStreams(url, protocol, signal));
    const forget = () => {
      if (open === opening) open = undefined;
    };
    opening.then(({ closed }) => closed.then(forget), forget);
    open = opening;
    return opening;
  };
  const connections = new Set<Socket>();
  const servers = await Promise.all(
    ports.map(async ({ local, remote }) => {
      const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
        connections.add(socket);
        socket.on('error', () => {});
        socket.on('close', () => connections.delete(socket));
        carry(session, socket, remote, String(requests++)).catch((error: unknown) => {
          socket.destroy();
          if (!signal.aborted) forward.onFailure(describe(error));
        });
      });
      const port = await listen(server, address, local);
      forward.onListening(port, remote);
      return server;
    }),
  );
  await new Promise<void>((resolve) => {
    signal.addEventListener('abort', () => resolve(), { once: true });
    if (signal.aborted) resolve();
  });
  for (const server of servers) server.close();
  for (const socket of connections) socket.destroy();
  throw abortError(signal, 'forwarding');
}

function listen(server: Server, address: string, port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause) =>
      reject(new KeelsonError('UNAVAILABLE', `cannot listen on ${address}:${port}`, { cause })),
    );
    server.listen(port, address, () => {
      const bound = server.address();
      resolve(typeof bound === 'object' && bound !== null ? bound.port : port);
    });
  });
}

/** Resolves when the connection is over. Throws UNAVAILABLE with what the other side says. */
async function carry(
  session: () => Promise<SpdySession>,
  socket: Socket,
  port: number,
  requestid: string,
): Promise<void> {
  const streams = await session();
  const open = (streamtype: string): Duplex => {
    const { io } = streams.open(
      new Map(Object.entries({ streamtype: [streamtype], port: [String(port)], requestid: [requestid] })),
    );
    io.on('error', () => {});
    return io;
  };
  const error = open('error');
  error.end();
  const data = open('data');
  data.on('error', () => socket.destroy());
  data.on('close', () => socket.end());
  socket.on('close', (broken) => (broken ? data.destroy() : undefined));
  socket.pipe(data).pipe(socket);
  const said = await text(error).catch(() => '');
  if (said !== '') throw new KeelsonError('UNAVAILABLE', said);
}
