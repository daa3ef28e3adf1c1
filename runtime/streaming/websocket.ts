/** WebSockets (RFC 6455), by the package ws, which is loaded when the first one comes: it costs about 1 MiB. */
import type { IncomingMessage } from 'node:http';
import { Duplex } from 'node:stream';
import type { WebSocket, WebSocketServer } from 'ws';
import { keepWatch, listedNames, negotiate, refuse } from './upgrade.ts';

export type { WebSocket } from 'ws';

/** Of one message, as in golang.org/x/net/websocket; some clients send all they have in one. */
const largestMessage = 32 << 20;
/** WebSocket close codes. */
export const closeCode = { NORMAL: 1000, PROTOCOL_ERROR: 1002, UNSUPPORTED: 1003, INTERNAL: 1011 } as const;

let acceptor: Promise<WebSocketServer> | undefined;
const agreed = new WeakMap<IncomingMessage, string>();

function loadAcceptor(): Promise<WebSocketServer> {
  acceptor ??= import('ws').then(({ WebSocketServer: Server }) => {
    const server = new Server({
      noServer: true,
      clientTracking: false,
      perMessageDeflate: false,
      maxPayload: largestMessage,
    });
    server.on('headers', (lines, request) => {
      const protocol = agreed.get(request);
      if (protocol) lines.push(`Sec-WebSocket-Protocol: ${protocol}`);
    });
    return server;
  });
  return acceptor;
}

/** Answers the request. Undefined where it was refused; else the socket, which reads nothing until it is resumed. */
export async function acceptWebSocket(
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
  protocols: readonly string[],
): Promise<{ readonly ws: WebSocket; readonly protocol: string } | undefined> {
  const asked = listedNames(request.headers['sec-websocket-protocol']);
  const protocol = negotiate(asked, protocols);
  if (protocol === undefined) {
    refuse(
      socket,
      403,
      `unable to upgrade: requested protocols are not supported: ${asked.join(', ')}; supports ${protocols.join(', ')}`,
    );
    return undefined;
  }
  const server = await loadAcceptor();
  agreed.set(request, protocol);
  // Negotiated here: ws refuses names like SPDY/3.1+portforward.k8s.io, which are no tokens of HTTP.
  delete request.headers['sec-websocket-protocol'];
  return new Promise((resolve) => {
    // A request that is no proper handshake is answered by ws, which then closes.
    socket.once('close', () => resolve(undefined));
    server.handleUpgrade(request, socket, head, (ws) => {
      keepWatch(socket);
      ws.on('error', () => {});
      ws.pause();
      resolve({ ws, protocol });
    });
  });
}

/** The bytes of all messages as one stream: how SPDY is carried in a WebSocket. */
export function makeTunnel(ws: WebSocket): Duplex {
  const tunnel = new Duplex({
    read() {
      if (ws.readyState === ws.OPEN) ws.resume();
    },
    write(bytes: Buffer, _encoding, done) {
      ws.send(bytes, { binary: true }, done);
    },
    writev(pieces, done) {
      ws.send(Buffer.concat(pieces.map(({ chunk }) => chunk as Buffer)), { binary: true }, done);
    },
    final(done) {
      ws.close(closeCode.NORMAL);
      done();
    },
    destroy(error, done) {
      if (ws.readyState === ws.CLOSED || ws.readyState === ws.CLOSING) ws.terminate();
      else ws.close(closeCode.NORMAL);
      done(error);
    },
  });
  ws.on('message', (data: Buffer, binary: boolean) => {
    if (!binary) {
      ws.close(closeCode.UNSUPPORTED);
      tunnel.destroy();
      return;
    }
    if (!tunnel.push(data)) ws.pause();
  });
  ws.on('close', () => tunnel.push(null));
  return tunnel;
}
