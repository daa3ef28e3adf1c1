import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { makeTurns } from '../../../agent/pods/resources/turns.ts';

/** A clock whose timers all fire when told. */
function stoppedClock() {
  const timers = new Set<() => void>();
  return {
    now: () => 0,
    monotonic: () => 0,
    after(_: number, callback: () => void) {
      timers.add(callback);
      return () => void timers.delete(callback);
    },
    fire() {
      for (const callback of [...timers]) callback();
    },
    timers,
  };
}

function makeLab(places: number) {
  const clock = stoppedClock();
  const turns = makeTurns(clock, places);
  const begun: string[] = [];
  const begin = (name: string, signal = new AbortController().signal, finishes = false) => {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const done = turns.run(
      () => {
        begun.push(name);
        return promise;
      },
      signal,
      finishes,
    );
    return { done, end: () => resolve(name), fail: () => reject(new Error(name)) };
  };
  return { clock, begun, begin };
}

test('so many at once, the next in order, whether they end well or not', async () => {
  const { clock, begun, begin } = makeLab(2);
  const [a, b, c, d] = [begin('a'), begin('b'), begin('c'), begin('d')];
  await turn();
  assert.deepEqual(begun, ['a', 'b']);
  b.fail();
  await assert.rejects(b.done, /b/);
  await turn();
  assert.deepEqual(begun, ['a', 'b', 'c']);
  a.end();
  assert.equal(await a.done, 'a');
  await turn();
  assert.deepEqual(begun, ['a', 'b', 'c', 'd']);
  c.end();
  d.end();
  await Promise.all([c.done, d.done]);
  assert.equal(clock.timers.size, 0);
  const [e, f] = [begin('e'), begin('f')];
  assert.deepEqual(begun.slice(4), ['e', 'f'], 'all places are free again, and nobody waits for one');
  e.end();
  f.end();
  await Promise.all([e.done, f.done]);
});

test('what hangs makes room, once', async () => {
  const { clock, begun, begin } = makeLab(1);
  const [stuck, a, b] = [begin('stuck'), begin('a'), begin('b')];
  clock.fire();
  await turn();
  assert.deepEqual(begun, ['stuck', 'a']);
  stuck.end();
  await stuck.done;
  await turn();
  assert.deepEqual(begun, ['stuck', 'a'], 'its place was given away already');
  a.end();
  await a.done;
  await turn();
  assert.deepEqual(begun, ['stuck', 'a', 'b']);
  b.end();
  await b.done;
});

test('who is aborted does not wait, and leaves the others their order', async () => {
  const { begun, begin } = makeLab(1);
  const abort = new AbortController();
  const [a, b, c] = [begin('a'), begin('b', abort.signal), begin('c')];
  abort.abort();
  await turn();
  assert.deepEqual(begun, ['a', 'b']);
  b.end();
  await b.done;
  await turn();
  assert.deepEqual(begun, ['a', 'b'], 'one place is taken as before');
  a.end();
  await a.done;
  await turn();
  assert.deepEqual(begun, ['a', 'b', 'c']);
  c.end();
  await c.done;
});

test('what finishes something goes before what begins something', async () => {
  const { begun, begin } = makeLab(1);
  const { signal } = new AbortController();
  const all = [begin('a'), begin('b'), begin('c'), begin('A', signal, true), begin('B', signal, true)];
  for (const { done, end } of [all[0]!, all[3]!, all[4]!, all[1]!, all[2]!]) {
    end();
    await done;
    await turn();
  }
  assert.deepEqual(begun, ['a', 'A', 'B', 'b', 'c']);
});
