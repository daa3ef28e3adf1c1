/** The beginning of a streaming connection: the HTTP request that asks for an upgrade, and its answer. */
import { type IncomingMessage, STATUS_CODES } from 'node:http';
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';

/** What a request asks to become. Pure. */
export type Wanted = 'websocket' | 'spdy' | 'neither';

export function wantedUpgrade({ headers }: Pick<IncomingMessage, 'headers'>): Wanted {
  const upgrade = headers.upgrade?.toLowerCase() ?? '';
  if (!(headers.connection ?? '').toLowerCase().includes('upgrade')) return 'neither';
  if (upgrade === 'websocket') return 'websocket';
  return upgrade.includes('spdy/3.1') ? 'spdy' : 'neither';
}

/** The values of a header that lists names, over all its lines and commas. Pure. */
export function listedNames(value: string | readonly string[] | undefined): string[] {
  return [value ?? []]
    .flat()
    .flatMap((line) => line.split(','))
    .map((name) => name.trim())
    .filter((name) => name !== '');
}

/**
 * The first of the client's protocols that we have. A client that names none speaks the oldest: ''. Undefined where
 * there is nothing in common. Pure.
 */
export function negotiate(client: readonly string[], ours: readonly string[]): string | undefined {
  if (client.length === 0) return '';
  return client.find((name) => ours.includes(name));
}

/** Answers with an error and closes the connection. `message` is plain text. */
export function refuse(
  socket: Duplex,
  status: number,
  message: string,
  headers: Readonly<Record<string, string>> = {},
): void {
  if (socket.destroyed || !socket.writable) return;
  const body = `${message}\n`;
  const fields = {
    'content-type': 'text/plain; charset=utf-8',
    'x-content-type-options': 'nosniff',
    'content-length': String(Buffer.byteLength(body)),
    connection: 'close',
    ...headers,
  };
  const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.on('error', () => {});
  socket.resume();
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\n${lines.join('')}\r\n${body}`, () =>
    socket.destroy(),
  );
}

/** Silent peers are noticed after about two minutes by the kernel. */
export function keepWatch(socket: Duplex): void {
  if (!(socket instanceof Socket)) return;
  socket.setTimeout(0);
  socket.setNoDelay(true);
  socket.setKeepAlive(true, 30_000);
}

/**
 * Answers a request for SPDY. Returns the protocol that was agreed on, after which the socket speaks SPDY; undefined
 * where the request was refused.
 */
export function upgradeToSpdy(
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
  protocols: readonly string[],
): string | undefined {
  const asked = listedNames(request.headers['x-stream-protocol-version']);
  const protocol = negotiate(asked, protocols);
  if (protocol === undefined) {
    refuse(
      socket,
      403,
      `unable to upgrade: unable to negotiate protocol: client supports ${asked.join(', ')}, server accepts ${protocols.join(', ')}`,
      { 'x-accepted-stream-protocol-versions': protocols.join(', ') },
    );
    return undefined;
  }
  const agreed = protocol === '' ? '' : `X-Stream-Protocol-Version: ${protocol}\r\n`;
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n${agreed}\r\n`,
  );
  if (head.length > 0) socket.unshift(head);
  keepWatch(socket);
  return protocol;
}
