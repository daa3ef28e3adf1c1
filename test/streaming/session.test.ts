/** Sessions of SPDY, both ends in one process. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type Duplex, duplexPair } from 'node:stream';
import { test } from 'node:test';
import { isError } from '../../runtime/host/errors.ts';
import { type Frame, makeFrameReader, makeFrameWriter } from '../../runtime/streaming/frames.ts';
import { makeSpdySession, type SpdyStream } from '../../runtime/streaming/session.ts';
import { handClock } from '../agent/pods/fakes.ts';

const type = (name: string) => new Map([['streamtype', [name]]]);

function makePair(accept: (stream: SpdyStream) => boolean = () => true, idleMs = 60_000) {
  const [near, far] = duplexPair();
  const clock = handClock(0);
  const streams: SpdyStream[] = [];
  const server = makeSpdySession({
    ...{ carrier: near, server: true, clock, idleMs },
    onStream(stream) {
      streams.push(stream);
      return accept(stream);
    },
  });
  return { server, far, near, clock, streams };
}

/** A peer that speaks frames by hand. */
function makePeer(far: Duplex) {
  const write = makeFrameWriter();
  const read = makeFrameReader();
  const frames: Frame[] = [];
  const looks = new Set<() => void>();
  far.on('data', (bytes: Buffer) => {
    frames.push(...read(bytes));
    for (const look of looks) look();
  });
  far.on('error', () => {});
  return {
    frames,
    send: (...sent: Frame[]) => far.write(Buffer.concat(sent.flatMap(write))),
    open: (id: number, name = 'stdin'): Frame => ({
      ...{ type: 'syn-stream', id, associated: 0, priority: 0, fin: false, unidirectional: false },
      headers: type(name),
    }),
    until: (found: (frame: Frame) => boolean) =>
      new Promise<Frame>((resolve) => {
        const look = () => {
          const frame = frames.find(found);
          if (frame !== undefined) resolve(frame);
        };
        looks.add(look);
        look();
      }),
  };
}

async function collect(io: Duplex): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of io.iterator({ destroyOnReturn: false })) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

test('streams carry bytes both ways and end side by side', async () => {
  const { server, far, streams, clock } = makePair();
  const client = makeSpdySession({
    ...{ carrier: far, server: false, clock, idleMs: 60_000 },
    onStream: () => false,
  });
  const ours = [client.open(type('a')), client.open(type('b'))];
  const sent = ours.map((_, index) => Buffer.alloc(3 << 20, `${index} bytes `));
  for (const [index, { io }] of ours.entries()) io.end(sent[index]);
  while (streams.length < 2) await new Promise((resolve) => setImmediate(resolve));
  const theirs = await Promise.all(
    streams.map(async ({ io }) => {
      const bytes = await collect(io);
      io.end(bytes);
      return bytes;
    }),
  );
  assert.deepEqual(
    streams.map(({ headers }) => headers.get('streamtype')),
    [['a'], ['b']],
  );
  const back = await Promise.all(ours.map(({ io }) => collect(io)));
  for (const [index, bytes] of sent.entries()) {
    assert.ok(theirs[index]!.equals(bytes));
    assert.ok(back[index]!.equals(bytes));
  }
  await Promise.all([server.end(), client.closed]);
  assert.throws(
    () => client.open(type('c')),
    (error) => isError(error, 'ABORTED'),
  );
});

test('a reader that does not read holds the connection up, and reading lets it go', async () => {
  const { far, streams, near } = makePair();
  const peer = makePeer(far);
  peer.send(peer.open(1));
  const data = Buffer.alloc(16 << 10);
  let sent = 0;
  while (far.writableLength === 0 || sent < 1 << 20) {
    peer.send({ type: 'data', id: 1, fin: false, data });
    sent += data.length;
    await new Promise((resolve) => setImmediate(resolve));
    if (sent > 4 << 20) break;
  }
  const { io } = streams[0]!;
  assert.ok(near.isPaused());
  assert.ok(io.readableLength < 512 << 10, `${io.readableLength} of ${sent} bytes are kept`);
  peer.send({ type: 'data', id: 1, fin: true, data: Buffer.alloc(0) });
  assert.equal((await collect(io)).length, sent);
});

test('a held connection is probed, so that a peer that has gone is noticed', async () => {
  const { far, clock } = makePair();
  const peer = makePeer(far);
  peer.send(peer.open(1), { type: 'data', id: 1, fin: false, data: Buffer.alloc(600 << 10) });
  await peer.until((frame) => frame.type === 'syn-reply');
  await clock.advance(10_000);
  const ping = await peer.until((frame) => frame.type === 'ping');
  assert.equal(ping.type === 'ping' && ping.id % 2, 0);
});

test('a peer that does not read holds the writer up', async () => {
  const { far, streams } = makePair();
  const peer = makePeer(far);
  peer.send(peer.open(1, 'stdout'));
  await peer.until((frame) => frame.type === 'syn-reply');
  far.pause();
  const { io } = streams[0]!;
  let written = 0;
  while (io.write(Buffer.alloc(64 << 10)) && written < 64 << 20) written += 64 << 10;
  await new Promise((resolve) => setImmediate(resolve));
  assert.ok(io.writableNeedDrain && written < 1 << 20, `${written} bytes`);
  far.resume();
  await once(io, 'drain');
});

test('windows are kept with peers that use them', async () => {
  const { far, streams } = makePair();
  const peer = makePeer(far);
  peer.send({ type: 'settings', values: new Map([[7, 1000]]) }, peer.open(1, 'stdout'));
  await peer.until((frame) => frame.type === 'syn-reply');
  const size = () =>
    peer.frames.reduce((sum, frame) => sum + (frame.type === 'data' ? frame.data.length : 0), 0);
  streams[0]!.io.end(Buffer.alloc(100_000));
  await peer.until(() => size() >= 1000);

  assert.equal(size(), 1000);
  peer.send({ type: 'window', id: 1, delta: 50_000 });
  await peer.until(() => size() >= 51_000);
  assert.equal(size(), 51_000);
  // The session's own window, 64 KiB, is the narrower one now.
  peer.send({ type: 'window', id: 1, delta: 1_000_000 });
  await peer.until(() => size() >= 65_536);
  assert.equal(size(), 65_536);
  peer.send({ type: 'window', id: 0, delta: 1_000_000 });
  await peer.until((frame) => frame.type === 'data' && frame.fin);
  assert.equal(size(), 100_000);
  // And it is told what was taken.
  peer.send({ type: 'data', id: 1, fin: false, data: Buffer.alloc(60_000) });
  streams[0]!.io.resume();
  const window = await peer.until((frame) => frame.type === 'window' && frame.id === 1);
  assert.ok(window.type === 'window' && window.delta > 32_000);
});

test('streams that are refused, reset, unknown, or opened twice', async () => {
  const { far, streams, server } = makePair(({ headers }) => headers.get('streamtype')?.[0] !== 'bad');
  const peer = makePeer(far);
  peer.send(peer.open(1), peer.open(3, 'bad'), peer.open(3), peer.open(2));
  const reset = (id: number, status: number) =>
    peer.until((frame) => frame.type === 'reset' && frame.id === id && frame.status === status);
  await Promise.all([reset(3, 3), reset(3, 1), reset(2, 1)]);
  peer.send({ type: 'data', id: 99, fin: false, data: Buffer.from('x') });
  await reset(99, 2);
  // What comes for a stream that was, is no fault.
  peer.send({ type: 'data', id: 3, fin: false, data: Buffer.from('x') });
  const [first] = streams;
  const failed = once(first!.io, 'error');
  peer.send({ type: 'reset', id: 1, status: 5 });
  assert.ok(isError((await failed)[0], 'ABORTED'));
  peer.send(peer.open(5));
  await peer.until((frame) => frame.type === 'syn-reply' && frame.id === 5);
  streams.at(-1)!.io.destroy();
  await reset(5, 5);
  peer.send({ type: 'ping', id: 41 });
  await peer.until((frame) => frame.type === 'ping' && frame.id === 41);
  server.destroy();
  await server.closed;
});

test('garbage ends the session with a reason, and everything on it', async () => {
  const { far, streams, server } = makePair();
  const peer = makePeer(far);
  peer.send(peer.open(1));
  await peer.until((frame) => frame.type === 'syn-reply');
  const failed = once(streams[0]!.io, 'error');
  far.write(Buffer.from('GET / HTTP/1.1\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff', 'latin1'));
  far.write(Buffer.alloc(64, 0xff));
  // 'GET ' reads as a data frame of an unknown stream, of some MiB: the rest of it, then what follows.
  far.write(Buffer.alloc(0x2f2048 + 64, 0xff));
  const goodbye = await peer.until((frame) => frame.type === 'goaway');
  assert.equal(goodbye.type === 'goaway' && goodbye.status, 1);
  assert.ok(isError((await failed)[0], 'ABORTED'));
  far.end();
  await server.closed;
});

test('a peer that vanishes ends everything; a silent session ends by itself', async () => {
  for (const leave of ['end', 'destroy', 'idle'] as const) {
    const { far, streams, server, clock } = makePair(undefined, 5000);
    const peer = makePeer(far);
    peer.send(peer.open(1));
    await peer.until((frame) => frame.type === 'syn-reply');
    const failed = once(streams[0]!.io, 'error');
    if (leave === 'idle') {
      await clock.advance(4000);
      peer.send({ type: 'ping', id: 1 });
      await peer.until((frame) => frame.type === 'ping');
      await clock.advance(4000);
      assert.ok(!streams[0]!.io.destroyed);
      await clock.advance(6000);
    } else far[leave]();
    assert.ok(isError((await failed)[0], 'ABORTED'), leave);
    await server.closed;
  }
});

test('a client of a server that resets its streams in the end gets all that was sent', async () => {
  const [near, far] = duplexPair();
  const client = makeSpdySession({
    ...{ carrier: near, server: false, clock: handClock(0), idleMs: 60_000, endOnReset: true },
    onStream: () => false,
  });
  const peer = makePeer(far);
  const { io, id } = client.open(type('stdout'));
  const failed = new Promise<unknown>((resolve) => io.once('error', resolve));
  await peer.until((frame) => frame.type === 'syn-stream');
  const data = Buffer.alloc(150 << 10, 'x');
  peer.send(
    { type: 'syn-reply', id, fin: false, headers: new Map() },
    { type: 'data', id, fin: false, data },
    { type: 'reset', id, status: 5 },
    { type: 'goaway', last: id, status: 0 },
  );
  far.end();
  await client.closed;
  assert.ok((await collect(io)).equals(data));
  assert.ok(isError(await failed, 'ABORTED'));
});
