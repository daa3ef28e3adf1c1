/** The codec of SPDY/3.1, against bytes of moby/spdystream 0.5.1 and against noise. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Frame, FrameError, makeFrameReader, makeFrameWriter } from '../../runtime/streaming/frames.ts';
import { makeHeaderReader, makeHeaderWriter } from '../../runtime/streaming/headers.ts';

/** Written by one spdystream framer one after the other; their headers are one zlib stream. */
const golden: readonly (readonly [hex: string, frame: Frame])[] = [
  [
    '80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff',
    {
      ...{ type: 'syn-stream', id: 1, associated: 0, priority: 0, fin: false, unidirectional: false },
      headers: new Map([['streamtype', ['error']]]),
    },
  ],
  [
    '800300010000001700000003000000000000c22e555c92929907000000ffff',
    {
      ...{ type: 'syn-stream', id: 3, associated: 0, priority: 0, fin: false, unidirectional: false },
      headers: new Map([['streamtype', ['stdin']]]),
    },
  ],
  [
    '800300010100002200000005000000006000824ab114e417815238a78581850183a581a501000000ffff',
    {
      ...{ type: 'syn-stream', id: 5, associated: 0, priority: 3, fin: true, unidirectional: false },
      headers: new Map([['port', ['8080', '9090']]]),
    },
  ],
  [
    '800300020000000e000000016260606000000000ffff',
    { type: 'syn-reply', id: 1, fin: false, headers: new Map() },
  ],
  [
    '800300080000001100000001824a3282f20a6312000000ffff',
    { type: 'headers', id: 1, fin: false, headers: new Map([['a', ['b']]]) },
  ],
  ['000000030000000568656c6c6f', { type: 'data', id: 3, fin: false, data: Buffer.from('hello') }],
  ['0000000301000000', { type: 'data', id: 3, fin: true, data: Buffer.alloc(0) }],
  ['80030003000000080000000300000005', { type: 'reset', id: 3, status: 5 }],
  ['800300060000000400000007', { type: 'ping', id: 7 }],
  ['80030007000000080000000500000000', { type: 'goaway', last: 5, status: 0 }],
  ['80030009000000080000000300010000', { type: 'window', id: 3, delta: 65_536 }],
  ['800300040000000c000000010000000700020000', { type: 'settings', values: new Map([[7, 131_072]]) }],
];
const goldenBytes = Buffer.from(golden.map(([hex]) => hex).join(''), 'hex');
const goldenFrames = golden.map(([, frame]) => frame);

/** A reader may hand out data in pieces. */
function joinData(frames: readonly Frame[]): Frame[] {
  const joined: Frame[] = [];
  for (const frame of frames) {
    const last = joined.at(-1);
    if (frame.type === 'data' && last?.type === 'data' && last.id === frame.id && !last.fin) {
      joined[joined.length - 1] = { ...frame, data: Buffer.concat([last.data, frame.data]) };
    } else joined.push(frame);
  }
  return joined;
}

test('the bytes of spdystream are read, in pieces of every size', () => {
  for (let size = 1; size <= goldenBytes.length; size++) {
    const read = makeFrameReader();
    const frames: Frame[] = [];
    for (let at = 0; at < goldenBytes.length; at += size) {
      frames.push(...read(goldenBytes.subarray(at, at + size)));
    }
    assert.deepEqual(joinData(frames), joinData(goldenFrames), `pieces of ${size}`);
  }
});

test('frames without headers are written as spdystream writes them', () => {
  const write = makeFrameWriter();
  for (const [hex, frame] of golden) {
    if ('headers' in frame) continue;
    assert.equal(Buffer.concat(write(frame)).toString('hex'), hex);
  }
});

test('what is written is read again, also large headers and many blocks', () => {
  const write = makeFrameWriter();
  const read = makeFrameReader();
  const large = new Map([
    ['x', ['y'.repeat(30_000), 'z'.repeat(30_000)]],
    ['empty', ['']],
  ]);
  for (let index = 0; index < 50; index++) {
    const frames: Frame[] = [
      ...goldenFrames,
      {
        type: 'syn-reply',
        id: 9,
        fin: true,
        headers: index % 7 === 0 ? large : new Map([[`n${index}`, ['v']]]),
      },
    ];
    const bytes = Buffer.concat(frames.flatMap(write));
    assert.deepEqual(joinData(read(bytes)), joinData(frames));
  }
});

test('broken frames are refused with a reason', () => {
  const cases: readonly (readonly [hex: string, reason: RegExp])[] = [
    ['0000000000000000', /stream 0/],
    ['80020006000000040000000100', /version 2/],
    ['8003000100ffffff', /16777215 bytes/],
    ['80030006000000030000000000', /type 6 has 3 bytes/],
    ['800300030000000400000001', /type 3 has 4 bytes/],
    ['80030003000000080000000000000001', /stream 0/],
    ['8003000400000004ffffffff', /4294967295 settings/],
    ['80030001000000040000000100', /type 1 has 4 bytes/],
    ['800300020000000400000001', /zlib header/],
    ['800300020000000a0000000178f900000000', /zlib header/],
    ['800300020000000d0000000178f9e3c6a7c2ffffff', /cannot be decompressed/],
  ];
  for (const [hex, reason] of cases) {
    assert.throws(
      () => makeFrameReader()(Buffer.from(hex, 'hex')),
      (error) => error instanceof FrameError && reason.test(error.message),
      hex,
    );
  }
  // A type that is not known is passed over.
  assert.deepEqual(makeFrameReader()(Buffer.from(`8003000b0000000201${'02'}${golden[8]![0]}`, 'hex')), [
    goldenFrames[8],
  ]);
});

test('a header block that grows without bound is refused', () => {
  const write = makeHeaderWriter();
  const read = makeHeaderReader();
  assert.throws(() => read(write(new Map([['x', ['y'.repeat(70_000)]]]))), /cannot be decompressed/);
});

/** mulberry32: the same noise in every run. */
function noise(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let value = Math.imul(state ^ (state >>> 15), state | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32;
  };
}

test('noise and damaged frames give frames or a FrameError, never anything else', () => {
  const random = noise(31);
  let refused = 0;
  let read = 0;
  for (let round = 0; round < 3000; round++) {
    const bytes =
      round % 3 === 0
        ? Buffer.from(Array.from({ length: 1 + random() * 200 }, () => random() * 256))
        : Buffer.from(goldenBytes);
    if (round % 3 !== 0) {
      for (let changes = 1 + random() * 4; changes > 0; changes--) {
        bytes[Math.floor(random() * bytes.length)] = random() * 256;
      }
    }
    const reader = makeFrameReader();
    try {
      for (let at = 0; at < bytes.length; ) {
        const size = 1 + Math.floor(random() * 64);
        read += reader(bytes.subarray(at, at + size)).length;
        at += size;
      }
    } catch (error) {
      assert.ok(error instanceof FrameError, String(error));
      refused++;
    }
  }
  assert.ok(refused > 500 && read > 500, `${refused} refused, ${read} read`);
});
