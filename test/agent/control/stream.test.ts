import assert from 'node:assert/strict';
import { test } from 'node:test';
import { thinStream } from '../../../agent/control/stream.ts';
import { type Clock, systemClock } from '../../../runtime/host/clock.ts';
import { layer } from './fake-images.ts';

function stage() {
  let now = 0;
  const clock: Clock = { ...systemClock, monotonic: () => now };
  const written: string[] = [];
  const reader = { takesMore: true };
  const stream = thinStream(clock, (progress) => {
    const { digest, phase, bytes } = progress as ReturnType<typeof layer>;
    written.push(`${digest[7]} ${phase} ${bytes}`);
    return reader.takesMore;
  });
  const tell = (digit: string, phase: 'downloading' | 'verifying' | 'done', bytes: number) =>
    stream.tell(layer(digit, { phase, bytes }));
  return { stream, written, reader, tell, pass: (ms: number) => (now += ms) };
}

test('phases pass at once, numbers ten times a second, the last one always', () => {
  const { stream, written, tell, pass } = stage();
  tell('1', 'downloading', 1);
  tell('1', 'downloading', 2);
  tell('2', 'downloading', 3);
  pass(99);
  tell('1', 'downloading', 4);
  pass(1);
  tell('1', 'downloading', 5);
  tell('1', 'downloading', 6);
  tell('1', 'verifying', 7);
  tell('2', 'downloading', 8);
  tell('2', 'downloading', 9);
  stream.end();
  assert.deepEqual(written, [
    '1 downloading 1',
    '2 downloading 3',
    '1 downloading 5',
    '1 verifying 7',
    '2 downloading 8',
    '2 downloading 9',
  ]);
});

test('a reader that is behind gets the newest of each layer, when it takes more', () => {
  const { stream, written, reader, tell, pass } = stage();
  reader.takesMore = false;
  tell('1', 'downloading', 1);
  for (let bytes = 2; bytes < 100; bytes++) {
    pass(200);
    tell('1', 'downloading', bytes);
    tell('2', 'downloading', bytes);
  }
  tell('1', 'done', 100);
  assert.deepEqual(written, ['1 downloading 1']);
  stream.drained();
  assert.deepEqual(written.slice(1), ['1 done 100'], 'it is behind again');
  reader.takesMore = true;
  stream.drained();
  assert.deepEqual(written.slice(2), ['2 downloading 99']);
  tell('2', 'done', 100);
  stream.end();
  assert.deepEqual(written.slice(3), ['2 done 100']);
});
