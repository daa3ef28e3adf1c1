/** When a registry is asked again, how long one that does not answer is left alone, and what is said in the end. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { combine } from '../../images/registry/failures.ts';
import { deadFor, makeHealth, saysDead } from '../../images/registry/health.ts';
import {
  longestWait,
  mostTries,
  parseRetryAfter,
  retryDelay,
  withRetries,
} from '../../images/registry/retry.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';

test('waits grow four times each, half of them by chance, and end', () => {
  const at = (random: number) =>
    Array.from({ length: mostTries }, (_, failures) => retryDelay(failures + 1, random));
  assert.deepEqual(at(0), [50, 200, 800, undefined]);
  assert.deepEqual(at(1), [100, 400, 1600, undefined]);
  for (const random of [0, 0.3, 0.999]) {
    assert.ok(retryDelay(1, random)! >= 50 && retryDelay(1, random)! <= 100);
  }
});

test('a registry is asked no earlier than it said, and not again where it said too long', () => {
  assert.equal(retryDelay(1, 0, 2000), 2050);
  assert.equal(retryDelay(1, 0, 0), 50);
  assert.equal(retryDelay(1, 0, longestWait), longestWait + 50);
  assert.equal(retryDelay(1, 0, longestWait + 1), undefined);
  assert.equal(retryDelay(mostTries, 0, 1), undefined);
});

test('Retry-After is seconds or an HTTP date', () => {
  const now = Date.UTC(1994, 10, 6, 8, 49, 7);
  const cases: readonly (readonly [string | undefined, number | undefined])[] = [
    ['120', 120_000],
    [' 0 ', 0],
    ['Sun, 06 Nov 1994 08:49:37 GMT', 30_000],
    ['Sun, 06 Nov 1994 08:49:00 GMT', 0],
    ['Sunday, 06-Nov-94 08:49:37 GMT', 30_000],
    ['Sun Nov  6 08:49:37 1994', 30_000],
    ['1.5', undefined],
    ['-1', undefined],
    ['soon', undefined],
    ['99999999999999', undefined],
    ['1994', 1_994_000],
    ['', undefined],
    [undefined, undefined],
    [`Sun, ${'9'.repeat(1000)}`, undefined],
  ];
  for (const [text, ms] of cases) assert.equal(parseRetryAfter(text, now), ms, String(text));
});

/** A clock whose waits are over at once, and that remembers them. */
function quickClock(): Clock & { readonly waits: number[]; time: number } {
  const clock = {
    waits: [] as number[],
    time: 0,
    now: () => clock.time,
    monotonic: () => clock.time,
    after(ms: number, callback: () => void) {
      clock.waits.push(ms);
      clock.time += ms;
      queueMicrotask(callback);
      return () => {};
    },
  };
  return clock;
}

const unavailable = (details: Record<string, unknown> = {}) =>
  new KeelsonError('REGISTRY_UNAVAILABLE', 'no', { details });

test('only what may be different the next time is tried again, a bounded number of times', async () => {
  const tries = async (error: KeelsonError) => {
    const clock = quickClock();
    let count = 0;
    await assert.rejects(
      withRetries(clock, undefined, async () => {
        count++;
        throw error;
      }),
      error,
    );
    assert.equal(clock.waits.length, count - 1);
    return { count, waits: clock.waits };
  };
  for (const status of [undefined, 408, 425, 429, 500, 502, 503, 504]) {
    assert.equal((await tries(unavailable({ status }))).count, mostTries, String(status));
  }
  for (const status of [400, 405, 410, 416, 451]) {
    assert.equal((await tries(unavailable({ status }))).count, 1, String(status));
  }
  assert.equal((await tries(new KeelsonError('IMAGE_NOT_FOUND', 'no'))).count, 1);
  assert.equal((await tries(unavailable({ status: 429, retryAfterMs: longestWait + 1 }))).count, 1);
  assert.equal((await tries(unavailable({ code: 'UND_ERR_CONNECT_TIMEOUT' }))).count, 1);
  assert.equal((await tries(unavailable({ code: 'ECONNREFUSED' }))).count, mostTries);
  const { waits } = await tries(unavailable({ status: 429, retryAfterMs: 5000 }));
  assert.ok(waits.every((ms) => ms >= 5000));
});

test('a mirror that did not answer is left alone for a minute, and an answer clears it', () => {
  const clock = quickClock();
  const health = makeHealth(clock);
  assert.equal(health.deadBecause('a'), undefined);
  health.failed('a', 'connect ECONNREFUSED');
  clock.time = 5000;
  assert.match(health.deadBecause('a')!, /5 s ago \(connect ECONNREFUSED\)/);
  assert.equal(health.deadBecause('b'), undefined);
  clock.time = deadFor;
  assert.equal(health.deadBecause('a'), undefined);
  health.failed('a', 'x');
  health.answered('a');
  assert.equal(health.deadBecause('a'), undefined);
  for (let at = 0; at < 3000; at++) health.failed(`host ${at}`, 'x');
  assert.equal(health.deadBecause('host 0'), undefined);
  assert.notEqual(health.deadBecause('host 2999'), undefined);
});

test('only a host that nobody is at counts as dead', () => {
  const failed = (code: string) => new KeelsonError('UNAVAILABLE', 'x', { details: { code } });
  for (const code of ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'UND_ERR_CONNECT_TIMEOUT']) {
    assert.ok(saysDead(failed(code)), code);
  }
  for (const code of ['ECONNRESET', 'UND_ERR_BODY_TIMEOUT', 'CERT_HAS_EXPIRED', 'undefined']) {
    assert.ok(!saysDead(failed(code)), code);
  }
  assert.ok(!saysDead(new KeelsonError('ABORTED', 'x')));
  assert.ok(!saysDead(new Error('x')));
});

test('one error for all endpoints: the code, and whether anybody answered', () => {
  const what = 'manifest r.example/a:1';
  const failure = (name: string, isRegistry: boolean, error: KeelsonError) => ({
    endpoint: { name, isRegistry },
    error,
  });
  const missing = new KeelsonError('IMAGE_NOT_FOUND', `${what}: not found`, { details: { status: 404 } });
  const denied = new KeelsonError('IMAGE_PULL_DENIED', `${what}: refused`, { details: { status: 403 } });
  const busy = new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: answered 503`, {
    details: { status: 503 },
  });
  const away = new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: cannot be reached`, {
    cause: new KeelsonError('UNAVAILABLE', 'connect ECONNREFUSED'),
  });
  const skipped = new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: x`, { details: { answered: false } });
  const [mirror, other] = [
    (error: KeelsonError) => failure('https://m', false, error),
    (error: KeelsonError) => failure('https://n', false, error),
  ];
  const registry = (error: KeelsonError) => failure('https://r', true, error);
  const cases: readonly (readonly [ReturnType<typeof failure>[], string, boolean])[] = [
    [[mirror(missing), registry(away)], 'REGISTRY_UNAVAILABLE', false],
    [[mirror(away), registry(missing)], 'IMAGE_NOT_FOUND', true],
    [[mirror(skipped), registry(away)], 'REGISTRY_UNAVAILABLE', false],
    [[mirror(denied), registry(away)], 'REGISTRY_UNAVAILABLE', true],
    [[mirror(away), registry(busy)], 'REGISTRY_UNAVAILABLE', true],
    [[mirror(missing)], 'IMAGE_NOT_FOUND', true],
    [[mirror(away), other(missing)], 'REGISTRY_UNAVAILABLE', true],
    [[mirror(away), other(skipped)], 'REGISTRY_UNAVAILABLE', false],
    [[mirror(denied), other(missing)], 'IMAGE_NOT_FOUND', true],
  ];
  for (const [failures, code, answered] of cases) {
    const error = combine(what, failures);
    assert.deepEqual([error.code, error.details['answered']], [code, answered], error.message);
  }
  assert.equal(combine(what, [registry(missing)]), missing);
  assert.equal(
    combine(what, [mirror(missing), registry(away)]).message,
    `${what}: https://m: not found; https://r: cannot be reached: connect ECONNREFUSED`,
  );
});
