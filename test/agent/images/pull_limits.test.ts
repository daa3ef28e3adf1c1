/** Pull starts in time, and pulls at once. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makePullLimits } from '../../../agent/images/pull_limits.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { handClock, turn } from '../pods/fakes.ts';

const { signal } = new AbortController();
const exceeded = (error: unknown) => isError(error, 'UNAVAILABLE') && error.message === 'pull QPS exceeded';

test('so many pulls at once, then so many a second; the others fail at once', async () => {
  const clock = handClock(0);
  const limits = makePullLimits({ qps: 5, burst: 10, parallel: undefined, clock });
  for (let at = 0; at < 10; at++) await limits.enter(`image-${at}`, signal);
  await assert.rejects(limits.enter('more', signal), exceeded);
  await assert.rejects(limits.enter('more', signal), exceeded);
  await clock.advance(200);
  await limits.enter('more', signal);
  await assert.rejects(limits.enter('another', signal), exceeded);
  const free = makePullLimits({ qps: 0, burst: 1, parallel: undefined, clock });
  for (let at = 0; at < 100; at++) await free.enter(`image-${at}`, signal);
});

test('a pull that is under way is shared: it costs no token and no place', async () => {
  const limits = makePullLimits({ qps: 1, burst: 1, parallel: 1, clock: handClock(0) });
  const leave = await Promise.all(Array.from({ length: 30 }, () => limits.enter('same', signal)));
  for (const one of leave) one();
  await assert.rejects(limits.enter('same', signal), exceeded, 'the next one is a pull of its own');
});

test('one after the other, in order; who gives up does not hold the others up', async () => {
  const limits = makePullLimits({ qps: 0, burst: 1, parallel: 1, clock: handClock(0) });
  const order: string[] = [];
  const enter = async (key: string, by = signal) => {
    const leave = await limits.enter(key, by);
    order.push(key);
    return leave;
  };
  const leaveA = await enter('a');
  const given = new AbortController();
  const b = enter('b', given.signal);
  const c = enter('c');
  const d = enter('d');
  await turn();
  assert.deepEqual(order, ['a']);
  given.abort();
  await assert.rejects(b, (error) => isError(error, 'ABORTED'));
  leaveA();
  leaveA();
  (await c)();
  (await d)();
  assert.deepEqual(order, ['a', 'c', 'd']);
  await assert.rejects(limits.enter('b', given.signal), (error) => isError(error, 'ABORTED'));
  (await enter('b'))();
});
