/**
 * Channels in a WebSocket, the protocols `*.channel.k8s.io`: each message begins with the number of its channel, as a
 * byte or, in the base64 ones, as a digit before base64 text. In v5 a message of 255 and a number ends that channel.
 */
import { Duplex, finished } from 'node:stream';
import type { Clock } from '../host/clock.ts';
import { KeelsonError } from '../host/errors.ts';
import { closeCode, type WebSocket } from './websocket.ts';

/** A message from the client: data for a channel, the end of one, or nothing that can be understood. Pure. */
export type Message =
  | { readonly channel: number; readonly data: Buffer }
  | { readonly closes: number }
  | 'garbage';

const closeSignal = 255;

export interface ChannelProtocol {
  readonly base64: boolean;
  /** Knows the message that ends a channel. */
  readonly halfClose: boolean;
}

/** Pure. */
export function channelProtocol(name: string): ChannelProtocol {
  return { base64: name.includes('base64'), halfClose: name === 'v5.channel.k8s.io' };
}

/** Pure. An empty message says nothing and is garbage that does no harm. */
export function readMessage(message: Buffer, { base64, halfClose }: ChannelProtocol): Message {
  const first = message[0];
  if (first === undefined) return 'garbage';
  if (halfClose && first === closeSignal) return message.length === 2 ? { closes: message[1]! } : 'garbage';
  if (!base64) return { channel: first, data: message.subarray(1) };
  const text = message.toString('latin1', 1);
  if (!/^[0-9]$/.test(String.fromCharCode(first)) || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return 'garbage';
  return { channel: first - 0x30, data: Buffer.from(text, 'base64') };
}

/** Pure. */
export function writeMessage(channel: number, data: Buffer, { base64 }: ChannelProtocol): Buffer | string {
  if (base64) return `${channel}${data.toString('base64')}`;
  return Buffer.concat([Buffer.from([channel]), data]);
}

export interface Channels {
  /** By number. One that the client may not write to ends at once; one that we may not write to swallows. */
  readonly channels: readonly Duplex[];
  /** Sends an empty message, by which clients see that the channel stands. */
  greet(channel: number): void;
  /** Waits until what was written is on its way, and closes. */
  end(): Promise<void>;
  readonly closed: Promise<void>;
  destroy(): void;
}

export type ChannelKind = 'read' | 'write' | 'both' | 'none';

const mostUnread = 256 << 10;
const messageSize = 32 << 10;
const heartbeatMs = 10_000;

export function makeChannels(options: {
  readonly ws: WebSocket;
  readonly protocol: ChannelProtocol;
  readonly kinds: readonly ChannelKind[];
  readonly clock: Clock;
  /** The connection is closed when no message came or went for so long. */
  readonly idleMs: number;
}): Channels {
  const { ws, protocol, kinds, clock } = options;
  const held = new Set<number>();
  let stopHeartbeat: (() => void) | undefined;
  let lastMessage = clock.monotonic();

  const hold = (channel: number) => {
    held.add(channel);
    ws.pause();
    // Unasked pongs keep a client from taking us for dead while its pings are not read, and find out if it is.
    const beat = () => {
      ws.pong();
      stopHeartbeat = clock.after(heartbeatMs, beat);
    };
    stopHeartbeat ??= clock.after(heartbeatMs, beat);
  };
  const letGo = (channel: number) => {
    if (!held.delete(channel) || held.size > 0) return;
    stopHeartbeat?.();
    stopHeartbeat = undefined;
    if (ws.readyState === ws.OPEN) ws.resume();
  };

  const send = (channel: number, data: Buffer, done?: (error?: Error | null) => void) => {
    lastMessage = clock.monotonic();
    ws.send(writeMessage(channel, data, protocol), done);
  };

  const make = (kind: ChannelKind, channel: number): Duplex => {
    const io = new Duplex({
      readableHighWaterMark: 64 << 10,
      writableHighWaterMark: 64 << 10,
      read: () => letGo(channel),
      write(bytes: Buffer, _encoding, done) {
        if (kind !== 'write' && kind !== 'both') return done();
        const next = (at: number) => {
          const piece = bytes.subarray(at, at + messageSize);
          const end = at + piece.length;
          send(channel, piece, (error) => (error || end >= bytes.length ? done(error ?? null) : next(end)));
        };
        next(0);
      },
      destroy(error, done) {
        letGo(channel);
        done(error);
      },
    });
    io.on('error', () => {});
    if (kind !== 'read' && kind !== 'both') io.push(null);
    return io;
  };
  const channels = kinds.map(make);
  const readable = (channel: number) => {
    const io = channels[channel];
    const ours = kinds[channel] === 'read' || kinds[channel] === 'both';
    return io !== undefined && ours && !io.destroyed && !ended.has(channel) ? io : undefined;
  };
  const ended = new Set<number>();

  ws.on('message', (raw: Buffer) => {
    lastMessage = clock.monotonic();
    const message = readMessage(raw, protocol);
    if (message === 'garbage') {
      if (raw.length > 0 && protocol.halfClose && raw[0] === closeSignal) ws.close(closeCode.PROTOCOL_ERROR);
      return;
    }
    if ('closes' in message) {
      readable(message.closes)?.push(null);
      ended.add(message.closes);
      letGo(message.closes);
      return;
    }
    const io = readable(message.channel);
    if (io === undefined || message.data.length === 0) return;
    if (!io.push(message.data) && io.readableLength > mostUnread) hold(message.channel);
  });

  const closed = new Promise<void>((resolve) => {
    ws.on('close', () => {
      stopIdle();
      stopHeartbeat?.();
      stopHeartbeat = undefined;
      held.clear();
      const gone = new KeelsonError('ABORTED', 'the streaming connection is closed');
      for (const io of channels) io.destroy(gone);
      resolve();
    });
  });
  const watchIdle = (): (() => void) => {
    const left = options.idleMs - (clock.monotonic() - lastMessage);
    if (left > 0) {
      return clock.after(left, () => {
        stopIdle = watchIdle();
      });
    }
    ws.terminate();
    return () => {};
  };
  let stopIdle = () => {};
  stopIdle = watchIdle();
  ws.resume();

  return {
    channels,
    greet: (channel) => send(channel, Buffer.alloc(0)),
    async end() {
      await Promise.all(
        channels.map(
          (io) =>
            new Promise<void>((resolve) => {
              if (!io.writableEnded || io.destroyed) resolve();
              else finished(io, { readable: false }, () => resolve());
            }),
        ),
      );
      held.clear();
      ws.close(closeCode.NORMAL);
      ws.resume();
      await closed;
    },
    closed,
    destroy: () => ws.terminate(),
  };
}
