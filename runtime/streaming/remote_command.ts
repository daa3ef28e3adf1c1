/**
 * exec and attach, as clients see them: the streams stdin, stdout, stderr, error and resize, over SPDY (protocols v4 to
 * v1) or as channels of a WebSocket (v5 to v1).
 */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Clock } from '../host/clock.ts';
import { type ChannelKind, channelProtocol, makeChannels } from './channels.ts';
import { makeResizeReader, makeResizes } from './resize.ts';
import { makeSpdySession, type SpdySession } from './session.ts';
import { type Outcome, writeStatus } from './status.ts';
import type { AttachRequest, ProcessStreams } from './types.ts';
import { refuse, upgradeToSpdy, wantedUpgrade } from './upgrade.ts';
import { acceptWebSocket } from './websocket.ts';

export interface RemoteCommand {
  readonly request: IncomingMessage;
  readonly socket: Duplex;
  readonly head: Buffer;
  readonly wanted: Pick<AttachRequest, 'stdin' | 'stdout' | 'stderr' | 'tty'>;
  /** Runs it to its end; `gone` aborts when the client has left. Does not reject. */
  readonly run: (streams: ProcessStreams, gone: AbortSignal) => Promise<Outcome>;
  readonly clock: Clock;
  readonly idleMs: number;
  readonly creationMs: number;
  /** Ends it from our side. */
  readonly signal: AbortSignal;
}

const spdyProtocols = ['v4.channel.k8s.io', 'v3.channel.k8s.io', 'v2.channel.k8s.io', 'channel.k8s.io'];
const webSocketProtocols = [
  ...['v5.channel.k8s.io', 'v4.channel.k8s.io', 'v4.base64.channel.k8s.io', 'v3.channel.k8s.io'],
  ...['v2.channel.k8s.io', 'channel.k8s.io', 'base64.channel.k8s.io'],
];

/** `v4.channel.k8s.io` is 4; those without a number are 1. Pure. */
export function protocolVersion(name: string): number {
  return Number(/^v(\d)\./.exec(name)?.[1] ?? 1);
}

/** Answers the request and serves it to its end. Does not reject. */
export async function serveRemoteCommand(command: RemoteCommand): Promise<void> {
  const { request, socket } = command;
  // Until somebody else listens.
  socket.on('error', () => {});
  if (command.signal.aborted) return void socket.destroy();
  switch (wantedUpgrade(request)) {
    case 'spdy':
      return serveSpdy(command);
    case 'websocket':
      return serveWebSocket(command);
    default:
      refuse(socket, 400, 'unable to upgrade: missing upgrade headers in request');
  }
}

interface Wire {
  readonly stdin?: Duplex;
  readonly stdout?: Duplex;
  readonly stderr?: Duplex;
  readonly resize?: Duplex;
  readonly error: Duplex;
}

/** Runs it on streams that stand. `connection` is closed in the end. */
async function serveStreams(
  command: RemoteCommand,
  wire: Wire,
  version: number,
  connection: Pick<SpdySession, 'end' | 'destroy' | 'closed'>,
): Promise<void> {
  const { wanted } = command;
  const gone = new AbortController();
  const leave = () => gone.abort();
  void connection.closed.then(leave);
  command.signal.addEventListener('abort', leave, { once: true });
  const resizes = makeResizes();
  if (wire.resize !== undefined) {
    const read = makeResizeReader();
    wire.resize.on('data', (bytes: Buffer) => {
      for (const size of read(bytes)) resizes.push(size);
    });
  }
  // What was not asked for but opened all the same must not stop up the connection.
  if (!wanted.stdin) wire.stdin?.resume();
  for (const io of [wire.stdout, wire.stderr, wire.error]) io?.resume();
  try {
    const outcome = await command.run(
      {
        stdin: wanted.stdin ? wire.stdin : undefined,
        stdout: wanted.stdout ? wire.stdout : undefined,
        stderr: wanted.stderr && !wanted.tty ? wire.stderr : undefined,
        onResize: resizes.onResize,
      },
      gone.signal,
    );
    if (command.signal.aborted) return connection.destroy();
    const status = writeStatus(outcome, version);
    wire.error.end(status);
    for (const io of [wire.stdout, wire.stderr, wire.stdin]) io?.end();
    wire.stdin?.resume();
    await connection.end();
  } finally {
    command.signal.removeEventListener('abort', leave);
    connection.destroy();
  }
}

const streamTypes = ['stdin', 'stdout', 'stderr', 'error', 'resize'] as const;

async function serveSpdy(command: RemoteCommand): Promise<void> {
  const { wanted, clock } = command;
  const protocol = upgradeToSpdy(command.request, command.socket, command.head, spdyProtocols);
  if (protocol === undefined) return;
  const version = protocolVersion(protocol);
  const missing = new Set<string>(['error']);
  for (const name of ['stdin', 'stdout', 'stderr'] as const) if (wanted[name]) missing.add(name);
  if (wanted.tty) missing.delete('stderr');
  if (wanted.tty && version >= 3) missing.add('resize');
  const streams: { -readonly [name in keyof Wire]?: Duplex } = {};
  let complete = () => {};
  const completed = new Promise<boolean>((resolve) => {
    complete = () => resolve(true);
  });
  const session = makeSpdySession({
    carrier: command.socket,
    server: true,
    clock,
    idleMs: command.idleMs,
    onStream({ headers, io }) {
      const name = streamTypes.find((type) => type === headers.get('streamtype')?.[0]);
      if (name === undefined || streams[name] !== undefined) return false;
      streams[name] = io;
      missing.delete(name);
      if (missing.size === 0) complete();
      return true;
    },
  });
  let cancel = () => {};
  const late = new Promise<boolean>((resolve) => {
    cancel = clock.after(command.creationMs, () => resolve(false));
    void session.closed.then(() => resolve(false));
    command.signal.addEventListener('abort', () => resolve(false), { once: true });
  });
  const inTime = await Promise.race([completed, late]);
  cancel();
  const { error, ...others } = streams;
  if (!inTime || error === undefined) return session.destroy();
  await serveStreams(command, { error, ...others }, version, session);
}

async function serveWebSocket(command: RemoteCommand): Promise<void> {
  const { wanted, clock, idleMs } = command;
  const accepted = await acceptWebSocket(command.request, command.socket, command.head, webSocketProtocols);
  if (accepted === undefined) return;
  const stderr = wanted.stderr && !wanted.tty;
  const kinds: ChannelKind[] = [
    wanted.stdin ? 'read' : 'none',
    wanted.stdout ? 'write' : 'none',
    stderr ? 'write' : 'none',
    'write',
    'read',
  ];
  const connection = makeChannels({
    ws: accepted.ws,
    protocol: channelProtocol(accepted.protocol),
    kinds,
    clock,
    idleMs,
  });
  connection.greet(kinds.indexOf('write'));
  const [stdin, out, err, error, resize] = connection.channels as [Duplex, Duplex, Duplex, Duplex, Duplex];
  await serveStreams(
    command,
    {
      stdin: wanted.stdin ? stdin : undefined,
      stdout: wanted.stdout ? out : undefined,
      stderr: stderr ? err : undefined,
      resize,
      error,
    },
    protocolVersion(accepted.protocol),
    connection,
  );
}
