/**
 * Port forwarding, as clients see it: over SPDY, also inside a WebSocket, each connection is a pair of streams, error
 * and data, with the same request id; over a WebSocket with channels each port has a pair of them.
 */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Clock } from '../host/clock.ts';
import { describe } from '../host/errors.ts';
import { channelProtocol, makeChannels } from './channels.ts';
import type { Headers } from './headers.ts';
import { makeSpdySession } from './session.ts';
import { listedNames, refuse, upgradeToSpdy, wantedUpgrade } from './upgrade.ts';
import { acceptWebSocket, makeTunnel } from './websocket.ts';

export interface PortForward {
  readonly request: IncomingMessage;
  readonly socket: Duplex;
  readonly head: Buffer;
  /** For error messages. */
  readonly sandbox: string;
  /** For WebSockets with channels. */
  readonly ports: readonly number[];
  /** Carries one connection to its end. Rejects where it cannot be made or broke. */
  readonly forward: (port: number, io: Duplex, gone: AbortSignal) => Promise<void>;
  readonly clock: Clock;
  readonly idleMs: number;
  readonly creationMs: number;
  readonly signal: AbortSignal;
}

const protocol = 'portforward.k8s.io';
const tunnelProtocol = `SPDY/3.1+${protocol}`;
const channelProtocols = ['v4.channel.k8s.io', 'v4.base64.channel.k8s.io'];

/** Answers the request and serves it to its end. Does not reject. */
export async function servePortForward(options: PortForward): Promise<void> {
  const { request, socket, head } = options;
  socket.on('error', () => {});
  if (options.signal.aborted) return void socket.destroy();
  switch (wantedUpgrade(request)) {
    case 'spdy':
      if (upgradeToSpdy(request, socket, head, [protocol]) !== undefined) await servePairs(options, socket);
      return;
    case 'websocket': {
      const asked = listedNames(request.headers['sec-websocket-protocol']);
      if (!asked.includes(tunnelProtocol)) return serveChannels(options);
      const accepted = await acceptWebSocket(request, socket, head, [tunnelProtocol]);
      if (accepted !== undefined) await servePairs(options, makeTunnel(accepted.ws));
      return;
    }
    default:
      refuse(socket, 400, 'unable to upgrade: missing upgrade headers in request');
  }
}

/** What the headers of a stream say; undefined for a stream that is none of port forwarding. Pure. */
export function readStreamHeaders(
  headers: Headers,
  id: number,
): { readonly type: 'data' | 'error'; readonly port: number; readonly requestId: string } | undefined {
  const [type] = headers.get('streamtype') ?? [];
  const [port = ''] = headers.get('port') ?? [];
  if (type !== 'data' && type !== 'error') return undefined;
  if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65_535) return undefined;
  // Clients before request ids open the error stream first and the data stream right after it.
  const requestId = headers.get('requestid')?.[0] || String(type === 'data' ? id - 2 : id);
  return { type, port: Number(port), requestId };
}

interface Pair {
  data?: Duplex;
  error?: Duplex;
  port: number;
  stopWaiting: () => void;
}

async function servePairs(options: PortForward, carrier: Duplex): Promise<void> {
  const { clock } = options;
  const pairs = new Map<string, Pair>();
  const gone = new AbortController();
  const session = makeSpdySession({
    carrier,
    server: true,
    clock,
    idleMs: options.idleMs,
    onStream({ id, headers, io }) {
      const said = readStreamHeaders(headers, id);
      if (said === undefined) return false;
      const { type, port, requestId } = said;
      let pair = pairs.get(requestId);
      if (pair === undefined) {
        const late = () => {
          pairs.delete(requestId);
          pair!.error?.end(`request ${requestId}: timed out waiting for its streams`);
          pair!.data?.destroy();
        };
        pair = { port, stopWaiting: clock.after(options.creationMs, late) };
        pairs.set(requestId, pair);
      }
      if (pair[type] !== undefined) return false;
      pair[type] = io;
      if (pair.data === undefined || pair.error === undefined) return true;
      pair.stopWaiting();
      pairs.delete(requestId);
      const { data, error } = pair;
      // The reply goes out before the first bytes.
      setImmediate(() => void forwardOne(options, port, data, error, gone.signal));
      return true;
    },
  });
  const stop = () => session.destroy();
  options.signal.addEventListener('abort', stop, { once: true });
  await session.closed;
  options.signal.removeEventListener('abort', stop);
  gone.abort();
  for (const pair of pairs.values()) pair.stopWaiting();
}

async function forwardOne(
  options: PortForward,
  port: number,
  data: Duplex,
  error: Duplex,
  gone: AbortSignal,
): Promise<void> {
  error.resume();
  try {
    await options.forward(port, data, gone);
    error.end();
  } catch (failure) {
    error.end(`error forwarding port ${port} to pod ${options.sandbox}: ${describe(failure)}`);
    data.destroy();
  }
}

async function serveChannels(options: PortForward): Promise<void> {
  const { ports, clock, idleMs, socket } = options;
  if (ports.length === 0) return refuse(socket, 400, 'query parameter "port" is required');
  const accepted = await acceptWebSocket(options.request, socket, options.head, channelProtocols);
  if (accepted === undefined) return;
  const connection = makeChannels({
    ws: accepted.ws,
    protocol: channelProtocol(accepted.protocol),
    kinds: ports.flatMap(() => ['both', 'write'] as const),
    clock,
    idleMs,
  });
  const gone = new AbortController();
  void connection.closed.then(() => gone.abort());
  const stop = () => connection.destroy();
  options.signal.addEventListener('abort', stop, { once: true });
  await Promise.all(
    ports.map(async (port, index) => {
      const data = connection.channels[index * 2]!;
      const error = connection.channels[index * 2 + 1]!;
      const name = Buffer.alloc(2);
      name.writeUInt16LE(port);
      data.write(name);
      error.write(name);
      await forwardOne(options, port, data, error, gone.signal);
    }),
  );
  await connection.end();
  options.signal.removeEventListener('abort', stop);
}
