/** errors, keyed, clock: the small parts of the floor. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Clock, rfc3339, rfc3339Micro, sleep, systemClock } from '../../runtime/host/clock.ts';
import {
  abortError,
  describe,
  errnoOf,
  grpcCodeOf,
  grpcStatus,
  isError,
  KeelsonError,
  reasonOf,
} from '../../runtime/host/errors.ts';
import { keyedQueue } from '../../runtime/host/keyed.ts';

test('errors: codes, their one mapping, what people read', () => {
  const error = new KeelsonError('IMAGE_NOT_FOUND', 'no image x', {
    hint: 'look at the name',
    cause: new Error('404', { cause: new Error('no image x') }),
  });
  assert.ok(isError(error) && isError(error, 'ABORTED', 'IMAGE_NOT_FOUND') && !isError(error, 'ABORTED'));
  assert.equal(grpcCodeOf(error), grpcStatus.NOT_FOUND);
  assert.equal(grpcCodeOf(new Error('x')), grpcStatus.INTERNAL);
  assert.equal(reasonOf(error, 'Other'), 'ErrImagePull');
  assert.equal(reasonOf(new KeelsonError('INTERNAL', 'x'), 'Other'), 'Other');
  assert.equal(reasonOf('x', 'Other'), 'Other');
  assert.equal(describe(error), 'no image x: 404 (look at the name)');
  assert.equal(describe('text'), 'text');
  const circle = new Error('a');
  circle.cause = circle;
  assert.equal(describe(circle), 'a');
});

test('aborts keep a reason of ours, and tell a deadline from a cancel', () => {
  const own = new KeelsonError('NOT_FOUND', 'gone');
  assert.equal(abortError(AbortSignal.abort(own), 'x'), own);
  assert.equal(abortError(AbortSignal.abort(), 'x').code, 'ABORTED');
  assert.equal(
    abortError(AbortSignal.abort(new DOMException('slow', 'TimeoutError')), 'x').code,
    'DEADLINE_EXCEEDED',
  );
});

test('errno of system errors only', () => {
  assert.equal(errnoOf(Object.assign(new Error('x'), { code: 'ENOENT' })), 'ENOENT');
  assert.equal(errnoOf(Object.assign(new Error('x'), { code: 'ERR_X' })), undefined);
  assert.equal(errnoOf({ code: 'ENOENT' }), undefined);
});

test('work for one key is done in turn, for others at once; failures do not stop the queue', async () => {
  const queue = keyedQueue();
  const done: string[] = [];
  const gates = new Map<string, () => void>();
  const work = (key: string, name: string, fail = false) =>
    queue.run(key, async () => {
      done.push(`start ${name}`);
      await new Promise<void>((resolve) => gates.set(name, resolve));
      done.push(`end ${name}`);
      if (fail) throw new Error(name);
      return name;
    });
  const a1 = work('a', 'a1', true);
  const a2 = work('a', 'a2');
  const b1 = work('b', 'b1');
  await new Promise(setImmediate);
  assert.deepEqual(done, ['start a1', 'start b1']);
  assert.equal(queue.size, 2);
  gates.get('a1')?.();
  await assert.rejects(a1, /a1/);
  await new Promise(setImmediate);
  assert.deepEqual(done.slice(2), ['end a1', 'start a2']);
  gates.get('a2')?.();
  gates.get('b1')?.();
  assert.deepEqual(await Promise.all([a2, b1]), ['a2', 'b1']);
  await new Promise(setImmediate);
  assert.equal(queue.size, 0, 'nothing is kept');
});

test('sleeping and being woken by an abort', async () => {
  const waiting: { ms: number; wake: () => void; cancelled: boolean }[] = [];
  const clock: Clock = {
    now: () => 0,
    monotonic: () => 0,
    after(ms, wake) {
      const entry = { ms, wake, cancelled: false };
      waiting.push(entry);
      return () => {
        entry.cancelled = true;
      };
    },
  };
  const first = sleep(clock, 5);
  waiting[0]?.wake();
  await first;
  const abort = new AbortController();
  const second = sleep(clock, 7, abort.signal);
  abort.abort();
  await assert.rejects(second, (error) => isError(error, 'ABORTED'));
  assert.deepEqual(
    waiting.map(({ ms, cancelled }) => [ms, cancelled]),
    [
      [5, false],
      [7, true],
    ],
  );
  await assert.rejects(sleep(clock, 1, AbortSignal.abort()), (error) => isError(error, 'ABORTED'));
  assert.equal(waiting.length, 2);
});

test('the system clock: cancelled timers do not fire, long ones do not fire at once', async () => {
  let fired = 0;
  const cancel = systemClock.after(5, () => fired++);
  cancel();
  const cancelLong = systemClock.after(2 ** 40, () => fired++);
  await sleep(systemClock, 30);
  cancelLong();
  assert.equal(fired, 0);
});

test('times as Kubernetes writes them', () => {
  const ms = Date.UTC(2026, 0, 2, 3, 4, 5, 678) + 0.912;
  assert.equal(rfc3339(ms), '2026-01-02T03:04:05Z');
  assert.match(rfc3339Micro(ms), /^2026-01-02T03:04:05\.67891[0-9]Z$/);
  assert.equal(rfc3339Micro(0), '1970-01-01T00:00:00.000000Z');
});
