import assert from 'node:assert/strict';
import { test } from 'node:test';
import { backoffDelay, reflectorBackoff } from '../../../agent/apiserver/backoff.ts';
import { makeLineSplitter } from '../../../agent/apiserver/lines.ts';
import { makeTokenBucket } from '../../../agent/apiserver/rates.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { seeded } from './fake.ts';

test('lines come out the same however the bytes are cut', () => {
  const random = seeded(11);
  for (let round = 0; round < 400; round++) {
    const bytes = Buffer.from(
      Array.from({ length: Math.floor(random() * 200) }, () =>
        random() < 0.15 ? 10 : Math.floor(random() * 256),
      ),
    );
    const splitter = makeLineSplitter(1 << 20);
    const lines: Buffer[] = [];
    for (let at = 0; at < bytes.length; ) {
      const size = 1 + Math.floor(random() * 20);
      lines.push(...splitter.push(bytes.subarray(at, at + size)));
      at += size;
    }
    const rest = splitter.end();
    if (rest !== undefined) lines.push(rest);
    const wanted = bytes
      .toString('latin1')
      .split('\n')
      .filter((line) => line !== '');
    assert.deepEqual(
      lines.map((line) => line.toString('latin1')),
      wanted,
    );
    assert.equal(splitter.end(), undefined);
  }
});

test('a line over the bound is an error, whole or in pieces; one at the bound is not', () => {
  const garbage = (error: unknown) => isError(error, 'API_GARBAGE');
  assert.equal(makeLineSplitter(4).push(Buffer.from('abcd\n')).length, 1);
  assert.throws(() => makeLineSplitter(4).push(Buffer.from('abcde\n')), garbage);
  const splitter = makeLineSplitter(4);
  splitter.push(Buffer.from('abc'));
  assert.throws(() => splitter.push(Buffer.from('de')), garbage);
});

test('backoff doubles from its base to its bound, and is never past it', () => {
  const at = (failures: number, random: number) => backoffDelay(failures, random, reflectorBackoff);
  assert.equal(at(1, 0), 800);
  assert.equal(at(2, 0), 1600);
  assert.equal(at(1, 0.5), 1200);
  assert.equal(at(1000, 0), 15_000);
  for (let failures = 0; failures < 100; failures++) {
    assert.ok(at(failures, 0.999999) <= 30_000);
    assert.ok(at(failures + 1, 0) >= at(failures, 0));
  }
});

test('a token bucket gives its burst, then its rate, and time that runs backwards gives nothing', () => {
  const bucket = makeTokenBucket({ perSecond: 10, burst: 3 });
  assert.deepEqual(
    [0, 0, 0, 0].map((now) => bucket.tryTake(now)),
    [true, true, true, false],
  );
  assert.equal(bucket.tryTake(-5000), false);
  assert.equal(bucket.tryTake(99), false);
  assert.equal(bucket.tryTake(100), true);
  assert.deepEqual(
    [1_000_000, 1_000_000, 1_000_000, 1_000_000, 1_000_000].map((now) => bucket.reserve(now)),
    [0, 0, 0, 100, 200],
  );
});
