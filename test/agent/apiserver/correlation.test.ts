/** Which events become which objects: by example, and for any sequence of events. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type EventRecord, makeCorrelator, type Occurrence } from '../../../agent/apiserver/correlation.ts';

const about = { apiVersion: 'v1', kind: 'Pod', namespace: 'a', name: 'p', uid: 'u' };

test('one object may make 25 events of each type, then one every five minutes; others are not cut off', () => {
  const correlator = makeCorrelator();
  const tell = (name: string, i: number, at: number, type: 'Normal' | 'Warning' = 'Normal') =>
    correlator.add({ about: { ...about, name }, type, reason: `R${i}`, message: 'x' }, at, at);
  let told = 0;
  for (let i = 0; i < 100; i++) if (tell('p', i, 0) !== undefined) told++;
  assert.equal(told, 25);
  assert.notEqual(tell('other', 0, 0), undefined);
  assert.notEqual(tell('p', 0, 0, 'Warning'), undefined);
  assert.equal(tell('p', 200, 299_000), undefined);
  assert.notEqual(tell('p', 201, 300_001), undefined);
});

test('what is cut off is counted all the same', () => {
  const correlator = makeCorrelator();
  const tell = (at: number) =>
    correlator.add({ about, type: 'Warning', reason: 'BackOff', message: 'x' }, at, at);
  for (let i = 0; i < 100; i++) tell(0);
  assert.equal(tell(300_001)?.count, 101);
});

test('ten similar events become one, until they have been quiet for ten minutes', () => {
  const correlator = makeCorrelator();
  const tell = (message: string, at: number) =>
    correlator.add({ about, type: 'Warning', reason: 'Failed', message }, at, at);
  for (let i = 0; i < 9; i++) assert.equal(tell(`m${i}`, 0)?.message, `m${i}`);
  const combined = tell('m9', 0);
  assert.equal(combined?.message, '(combined from similar events): m9');
  assert.equal(tell('m10', 1), combined);
  assert.equal(combined!.count, 2);
  assert.equal(combined!.message, '(combined from similar events): m10');
  assert.equal(tell('m3', 2)?.count, 2, 'a known message keeps its own event');
  // Each one is the last of ten minutes.
  assert.match(tell('late', 599_000)!.message, /^\(combined/);
  assert.match(tell('later', 1_199_000)!.message, /^\(combined/);
  assert.equal(tell('fresh', 1_800_000)?.message, 'fresh');
});

test('containers of a pod have events of their own, and are similar to each other', () => {
  const correlator = makeCorrelator();
  const tell = (container: string, message: string) =>
    correlator.add(
      {
        about: { ...about, fieldPath: `spec.containers{${container}}` },
        type: 'Warning',
        reason: 'Unhealthy',
        message,
      },
      0,
      0,
    );
  const first = tell('a', 'same');
  assert.notEqual(tell('b', 'same'), first);
  assert.equal(tell('a', 'same'), first);
  for (let i = 0; i < 4; i++) for (const container of ['a', 'b']) tell(container, `${container}${i}`);
  assert.equal(tell('b', 'one more')?.message, '(combined from similar events): one more');
});

/** A repeatable source of whole numbers below `bound` (a linear congruence, as good as needed here). */
function numbers(seed: number): (bound: number) => number {
  let state = seed;
  return (bound) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * bound);
  };
}

interface Told {
  readonly occurrence: Occurrence;
  readonly at: number;
}

/** Events of some pods over a few hours, in bursts and with long pauses. */
function story(next: (bound: number) => number, pods: readonly string[]): Told[] {
  let at = 0;
  return Array.from({ length: 400 }, () => {
    at += [0, 1, 1000, 60_000, 400_000, 700_000][next(6)]! * (next(4) === 0 ? 1 : 0);
    const name = pods[next(pods.length)]!;
    const fieldPath = [undefined, 'spec.containers{a}', 'spec.containers{b}'][next(3)];
    const occurrence: Occurrence = {
      about: { ...about, name, uid: name, fieldPath },
      type: next(2) === 0 ? 'Normal' : 'Warning',
      reason: ['Failed', 'BackOff'][next(2)]!,
      message: `m${next(20)}`,
    };
    return { occurrence, at };
  });
}

/** What each event became, as far as anybody sees it at that moment. */
function play(told: readonly Told[]): (Pick<EventRecord, 'message' | 'count'> | undefined)[] {
  const correlator = makeCorrelator();
  return told.map(({ occurrence, at }) => {
    const record = correlator.add(occurrence, at, at);
    return record && { message: record.message, count: record.count };
  });
}

const seeds = Array.from({ length: 200 }, (_, seed) => seed + 1);

test('property: no object has more events than its bucket gives, and none loses more than it must', () => {
  for (const seed of seeds) {
    const told = story(numbers(seed), ['p', 'q']);
    const became = play(told);
    // The bucket over again, in another way: what was taken, less what has come back since, never above the brim.
    const taken = new Map<string, { level: number; at: number }>();
    told.forEach(({ occurrence, at }, index) => {
      const key = `${occurrence.about.name} ${occurrence.type}`;
      const before = taken.get(key) ?? { level: 0, at };
      const level = Math.max(0, before.level - (at - before.at) / 300_000);
      const allowed = level <= 24 + 1e-9;
      assert.equal(became[index] !== undefined, allowed, `seed ${seed}, event ${index}`);
      taken.set(key, { level: level + (allowed ? 1 : 0), at });
    });
  }
});

test('property: between pauses of ten minutes nine messages of a reason are shown, the others are combined', () => {
  for (const seed of seeds) {
    const correlator = makeCorrelator();
    const own = new Map<string, { messages: Set<string>; at: number }>();
    for (const { occurrence, at } of story(numbers(seed), ['p'])) {
      const { type, reason, message } = occurrence;
      const record = correlator.add(occurrence, at, at);
      const group = `${type} ${reason}`;
      const before = own.get(group);
      const messages = before === undefined || at - before.at > 600_000 ? new Set<string>() : before.messages;
      own.set(group, { messages, at });
      const shown = messages.has(message) || messages.size < 9;
      if (shown) messages.add(message);
      if (record === undefined) continue;
      assert.equal(record.message, shown ? message : `(combined from similar events): ${message}`);
      assert.equal(record.lastMs, at);
      assert.ok(record.firstMs <= at);
    }
  }
});

test('property: a count is how often it happened, whether or not that was written', () => {
  for (const seed of seeds) {
    const correlator = makeCorrelator();
    const happened = new Map<string, number>();
    // Few messages: nothing is combined.
    for (const { occurrence, at } of story(numbers(seed), ['p', 'q'])) {
      const few = { ...occurrence, message: `m${occurrence.message.length}` };
      const { about: object, type, reason, message } = few;
      const key = [object.name, object.fieldPath, type, reason, message].join();
      happened.set(key, (happened.get(key) ?? 0) + 1);
      const record = correlator.add(few, at, at);
      if (record !== undefined) assert.equal(record.count, happened.get(key));
    }
  }
});

test('property: objects do not disturb each other', () => {
  for (const seed of seeds) {
    const told = story(numbers(seed), ['p', 'q', 'r']);
    const together = play(told);
    for (const name of ['p', 'q', 'r']) {
      const mine = (one: Told) => one.occurrence.about.name === name;
      assert.deepEqual(
        play(told.filter(mine)),
        together.filter((_, index) => mine(told[index]!)),
      );
    }
  }
});

test('only so many objects are remembered', () => {
  const correlator = makeCorrelator();
  const tell = (name: string) =>
    correlator.add({ about: { ...about, name }, type: 'Normal', reason: 'R', message: 'x' }, 0, 0);
  const first = tell('first');
  for (let i = 0; i < 5000; i++) tell(`p${i}`);
  assert.notEqual(tell('first'), first);
  assert.equal(tell('p4999')?.count, 2);
});
