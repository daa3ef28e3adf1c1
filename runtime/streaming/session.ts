/**
 * A SPDY/3.1 session over any byte stream: many streams, each a Duplex, with back-pressure in both directions.
 *
 * Kubernetes' peers (moby/spdystream) know nothing of windows: they neither keep to them nor send updates. So all that
 * holds them back is the connection: when the reader of one stream is slow, the whole connection is not read. Windows
 * are kept, and updates sent, with peers that show that they use them (by SETTINGS or WINDOW_UPDATE).
 */
import { Duplex, finished } from 'node:stream';
import type { Clock } from '../host/clock.ts';
import { KeelsonError } from '../host/errors.ts';
import {
  type Frame,
  FrameError,
  goAwayStatus,
  initialWindowSetting,
  makeFrameReader,
  makeFrameWriter,
  resetStatus,
} from './frames.ts';
import type { Headers } from './headers.ts';

export interface SpdyStream {
  readonly id: number;
  readonly headers: Headers;
  /** Ends where the peer ended its side; destroying it resets the stream; it fails with ABORTED when the peer did. */
  readonly io: Duplex;
}

export interface SpdySession {
  /** Opens a stream to the peer. Throws ABORTED where the session is over. */
  open(headers: Headers): SpdyStream;
  /** Waits until what was written is on its way, says goodbye and closes; resolves when the carrier is closed. */
  end(): Promise<void>;
  /** Closes at once. */
  destroy(): void;
  /** Resolves when the carrier is closed, however that came about. */
  readonly closed: Promise<void>;
}

export interface SpdyOptions {
  /** Data that came with the upgrade is unshifted already. */
  readonly carrier: Duplex;
  readonly server: boolean;
  /** A new stream of the peer: true accepts it, false refuses it. */
  readonly onStream: (stream: SpdyStream) => boolean;
  readonly clock: Clock;
  /** The session is closed when no frame came or went for so long. */
  readonly idleMs: number;
  /**
   * A stream that the peer resets ends after what it has sent, and only then fails. Servers written in Go reset all
   * streams when they have said what they had to.
   */
  readonly endOnReset?: boolean;
}

interface Entry extends SpdyStream {
  /** What a `write` holds that is not sent yet. */
  pending: { bytes: Buffer; done: (error?: Error) => void } | undefined;
  sendWindow: number;
  /** Received, until the reader asks for it. */
  readonly queue: Buffer[];
  queued: number;
  asked: boolean;
  /** Taken by the reader and not yet announced. */
  taken: number;
  ended: { ours: boolean; theirs: boolean };
}

const defaultWindow = 64 << 10;
/** Of one data frame: small, so that the streams take turns. */
const frameSize = 32 << 10;
/** Unread bytes of one stream, past which the connection is not read. */
const mostUnread = 256 << 10;
const mostUnsent = 1 << 20;
const mostStreams = 1000;
/** While the connection is not read, a peer that has gone shows only when something is sent to it. */
const heartbeatMs = 10_000;
const farewellMs = 30_000;

export function makeSpdySession(options: SpdyOptions): SpdySession {
  const { carrier, server, clock } = options;
  const read = makeFrameReader();
  const write = makeFrameWriter();
  const streams = new Map<number, Entry>();
  /** Who keeps the connection from being read: streams by id, 'replies'. */
  const held = new Set<number | 'replies'>();
  const waiting = new Set<Entry>();
  let nextId = server ? 2 : 1;
  let nextPing = server ? 2 : 1;
  let lastTheirs = 0;
  let windows = false;
  let initialWindow = defaultWindow;
  let sessionWindow = defaultWindow;
  let over = false;
  let saidGoodbye = false;
  let lastFrame = clock.monotonic();
  let stopHeartbeat: (() => void) | undefined;
  let stopFarewell = () => {};

  const gone = () => new KeelsonError('ABORTED', 'the streaming connection is closed');

  const send = (frame: Frame): boolean => {
    if (over || carrier.destroyed || carrier.writableEnded) return true;
    lastFrame = clock.monotonic();
    const parts = write(frame);
    carrier.cork();
    const more = parts.map((part) => carrier.write(part)).every(Boolean);
    carrier.uncork();
    return more;
  };

  const hold = (who: number | 'replies') => {
    held.add(who);
    carrier.pause();
    const beat = () => {
      send({ type: 'ping', id: nextPing });
      nextPing += 2;
      stopHeartbeat = clock.after(heartbeatMs, beat);
    };
    stopHeartbeat ??= clock.after(heartbeatMs, beat);
  };
  const letGo = (who: number | 'replies') => {
    if (!held.delete(who) || held.size > 0) return;
    stopHeartbeat?.();
    stopHeartbeat = undefined;
    carrier.resume();
  };

  const forget = (entry: Entry) => {
    streams.delete(entry.id);
    waiting.delete(entry);
    letGo(entry.id);
  };
  const endedSide = (entry: Entry, side: 'ours' | 'theirs') => {
    entry.ended[side] = true;
    if (entry.ended.ours && entry.ended.theirs) forget(entry);
  };

  /** Sends what a stream has as far as carrier and windows let it. */
  const flush = (entry: Entry) => {
    const { pending } = entry;
    if (pending === undefined) return;
    while (pending.bytes.length > 0) {
      const room = windows ? Math.min(entry.sendWindow, sessionWindow) : frameSize;
      if (carrier.writableNeedDrain || room <= 0) {
        waiting.add(entry);
        return;
      }
      const data = pending.bytes.subarray(0, Math.min(room, frameSize));
      pending.bytes = pending.bytes.subarray(data.length);
      if (windows) {
        entry.sendWindow -= data.length;
        sessionWindow -= data.length;
      }
      send({ type: 'data', id: entry.id, fin: false, data });
    }
    if (carrier.writableNeedDrain) {
      waiting.add(entry);
      return;
    }
    waiting.delete(entry);
    entry.pending = undefined;
    pending.done();
  };
  const flushWaiting = () => {
    for (const entry of [...waiting]) {
      waiting.delete(entry);
      flush(entry);
    }
  };

  const announce = (entry: Entry) => {
    if (!windows || entry.taken < defaultWindow / 2) return;
    if (!entry.ended.theirs) send({ type: 'window', id: entry.id, delta: entry.taken });
    send({ type: 'window', id: 0, delta: entry.taken });
    entry.taken = 0;
  };
  /** Hands the reader what it asks for. */
  const deliver = (entry: Entry) => {
    while (entry.asked && entry.queue.length > 0) {
      const data = entry.queue.shift()!;
      entry.queued -= data.length;
      entry.taken += data.length;
      entry.asked = entry.io.push(data);
    }
    if (entry.queue.length > 0) return;
    letGo(entry.id);
    if (entry.ended.theirs) entry.io.push(null);
    announce(entry);
  };

  const add = (id: number, headers: Headers): Entry => {
    const entry: Entry = {
      id,
      headers,
      pending: undefined,
      sendWindow: initialWindow,
      queue: [],
      queued: 0,
      asked: false,
      taken: 0,
      ended: { ours: false, theirs: false },
      io: new Duplex({
        readableHighWaterMark: defaultWindow,
        writableHighWaterMark: defaultWindow,
        read() {
          entry.asked = true;
          deliver(entry);
        },
        write(bytes: Buffer, _encoding, done) {
          entry.pending = { bytes, done };
          flush(entry);
        },
        final(done) {
          send({ type: 'data', id, fin: true, data: Buffer.alloc(0) });
          endedSide(entry, 'ours');
          done();
        },
        destroy(error, done) {
          if (streams.get(id) === entry) send({ type: 'reset', id, status: resetStatus.CANCEL });
          forget(entry);
          const { pending } = entry;
          entry.pending = undefined;
          pending?.done(error ?? gone());
          done(error);
        },
      }),
    };
    // Who uses a stream listens too; a reset that nobody waits for must not end the process.
    entry.io.on('error', () => {});
    streams.set(id, entry);
    return entry;
  };

  const endTheirs = (entry: Entry) => {
    endedSide(entry, 'theirs');
    deliver(entry);
  };

  const take: { [T in Frame['type']]: (frame: Extract<Frame, { type: T }>) => void } = {
    'syn-stream'({ id, headers, fin, unidirectional }) {
      const ours = id % 2 === (server ? 0 : 1);
      if (ours || id <= lastTheirs) {
        send({ type: 'reset', id, status: resetStatus.PROTOCOL_ERROR });
        return;
      }
      lastTheirs = id;
      if (saidGoodbye) return;
      if (streams.size >= mostStreams) {
        send({ type: 'reset', id, status: resetStatus.REFUSED_STREAM });
        return;
      }
      const entry = add(id, headers);
      if (!options.onStream(entry)) {
        streams.delete(id);
        send({ type: 'reset', id, status: resetStatus.REFUSED_STREAM });
        entry.io.destroy();
        return;
      }
      send({ type: 'syn-reply', id, fin: unidirectional, headers: new Map() });
      if (unidirectional) endedSide(entry, 'ours');
      if (fin) endTheirs(entry);
    },
    'syn-reply'({ id, fin }) {
      const entry = streams.get(id);
      if (entry !== undefined && fin && !entry.ended.theirs) endTheirs(entry);
    },
    headers({ id, fin }) {
      const entry = streams.get(id);
      if (entry !== undefined && fin && !entry.ended.theirs) endTheirs(entry);
    },
    reset({ id }) {
      const entry = streams.get(id);
      if (entry === undefined) return;
      const broken = () => entry.io.destroy(new KeelsonError('ABORTED', 'the peer broke the stream off'));
      forget(entry);
      if (options.endOnReset !== true || entry.io.readableEnded) return void broken();
      entry.io.once('end', broken);
      if (!entry.ended.theirs) endTheirs(entry);
    },
    settings({ values }) {
      const size = values.get(initialWindowSetting);
      if (size === undefined) return;
      windows = true;
      for (const entry of streams.values()) entry.sendWindow += size - initialWindow;
      initialWindow = size;
      flushWaiting();
    },
    ping(frame) {
      // Those of ours come back as they went.
      if (frame.id % 2 !== (server ? 0 : 1)) send(frame);
    },
    goaway() {
      saidGoodbye = true;
      if (streams.size === 0) carrier.end();
    },
    window({ id, delta }) {
      windows = true;
      if (id === 0) sessionWindow += delta;
      const entry = streams.get(id);
      if (entry !== undefined) entry.sendWindow += delta;
      flushWaiting();
    },
    data({ id, fin, data }) {
      const entry = streams.get(id);
      if (entry === undefined || entry.ended.theirs) {
        // What was under way when a stream was reset is no fault of the peer.
        const known = id % 2 === (server ? 0 : 1) ? id < nextId : id <= lastTheirs;
        if (!known) send({ type: 'reset', id, status: resetStatus.INVALID_STREAM });
        else if (entry?.ended.theirs) send({ type: 'reset', id, status: resetStatus.STREAM_ALREADY_CLOSED });
        return;
      }
      if (data.length > 0) {
        entry.queue.push(data);
        entry.queued += data.length;
        deliver(entry);
        if (entry.queued > mostUnread) hold(id);
      }
      if (fin) endTheirs(entry);
    },
  };

  const shut = () => {
    if (over) return;
    over = true;
    stopIdle();
    stopHeartbeat?.();
    stopFarewell();
    for (const entry of [...streams.values()]) {
      streams.delete(entry.id);
      entry.io.destroy(gone());
    }
    carrier.destroy();
  };

  carrier.on('data', (bytes: Buffer) => {
    if (over) return;
    lastFrame = clock.monotonic();
    try {
      for (const frame of read(bytes)) (take[frame.type] as (frame: Frame) => void)(frame);
    } catch (error) {
      if (!(error instanceof FrameError)) {
        shut();
        throw error;
      }
      send({ type: 'goaway', last: lastTheirs, status: goAwayStatus.PROTOCOL_ERROR });
      // The goodbye goes out first; nothing that is still read matters.
      carrier.removeAllListeners('data');
      carrier.end();
      carrier.resume();
      for (const entry of [...streams.values()]) {
        streams.delete(entry.id);
        entry.io.destroy(new KeelsonError('ABORTED', error.message, { cause: error }));
      }
      startFarewell();
    }
    if (carrier.writableLength > mostUnsent) hold('replies');
  });
  carrier.on('drain', () => {
    letGo('replies');
    flushWaiting();
  });
  carrier.on('end', shut);
  carrier.on('error', shut);
  const closed = new Promise<void>((resolve) => {
    finished(carrier, () => {
      shut();
      resolve();
    });
  });

  const watchIdle = (): (() => void) => {
    const left = options.idleMs - (clock.monotonic() - lastFrame);
    if (left <= 0) {
      shut();
      return () => {};
    }
    return clock.after(left, () => {
      stopIdle = watchIdle();
    });
  };
  let stopIdle = () => {};
  stopIdle = watchIdle();

  /** A peer that does not close its side, or does not read any more, is not waited for without end. */
  const startFarewell = () => {
    stopFarewell();
    let left = carrier.writableLength;
    const look = () => {
      if (carrier.writableLength === 0 || carrier.writableLength === left) return shut();
      left = carrier.writableLength;
      stopFarewell = clock.after(farewellMs, look);
    };
    stopFarewell = clock.after(farewellMs, look);
  };

  return {
    open(headers) {
      if (over || saidGoodbye) throw gone();
      const entry = add(nextId, headers);
      nextId += 2;
      send({
        type: 'syn-stream',
        id: entry.id,
        associated: 0,
        priority: 0,
        fin: false,
        unidirectional: false,
        headers,
      });
      return entry;
    },
    async end() {
      await Promise.all(
        [...streams.values()].map(
          ({ io }) =>
            new Promise<void>((resolve) => {
              if (!io.writableEnded || io.destroyed) resolve();
              else finished(io, { readable: false }, () => resolve());
            }),
        ),
      );
      if (!over && !carrier.writableEnded) {
        send({ type: 'goaway', last: lastTheirs, status: goAwayStatus.OK });
        saidGoodbye = true;
        for (const entry of [...streams.values()]) {
          streams.delete(entry.id);
          entry.io.destroy();
        }
        held.clear();
        carrier.end();
        carrier.resume();
        startFarewell();
      }
      await closed;
    },
    destroy: shut,
    closed,
  };
}
