/** What is decided about a fetch from numbers alone. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  countTries,
  defaultPolicy,
  expiredPartials,
  type LinkSeen,
  policyFor,
  spoolDecision,
} from '../../images/fetch/policy.ts';
import { byteWindow, type LayerStep, tellProgress, throughputFloor } from '../../images/fetch/speed.ts';

test('a window forgets what is older than it, to a slot', () => {
  const window = byteWindow(1000, 10);
  window.add(50, 5);
  window.add(950, 7);
  assert.equal(window.sum(999), 12);
  assert.equal(window.sum(1000), 7);
  assert.equal(window.sum(1899), 7);
  assert.equal(window.sum(1900), 0);
  window.add(1_000_000, 3);
  assert.equal(window.sum(1_000_000), 3);
  assert.equal(window.sum(5_000_000), 0);
});

test('a window agrees with a plain list at every moment', () => {
  const window = byteWindow(100, 10);
  const all: { at: number; bytes: number }[] = [];
  let seed = 7;
  for (let at = 0; at < 5000; at += seed % 40) {
    seed = (seed * 1103515245 + 12345) % 2 ** 31;
    const bytes = seed % 1000;
    window.add(at, bytes);
    all.push({ at, bytes });
    const oldest = (Math.floor(at / 10) - 9) * 10;
    const expected = all.reduce((sum, each) => (each.at >= oldest ? sum + each.bytes : sum), 0);
    assert.equal(window.sum(at), expected, `at ${at}`);
  }
});

test('a stall is too little over the whole time, silence included', () => {
  const policy = { minBytesPerSecond: 100, stallMs: 10_000 };
  const silent = throughputFloor(policy, 5000);
  assert.equal(silent.stalled(14_999), false);
  assert.equal(silent.stalled(15_000), true);

  const trickle = throughputFloor(policy, 0);
  const enough = throughputFloor(policy, 0);
  for (let now = 500; now <= 60_000; now += 500) {
    trickle.add(now, 40);
    enough.add(now, 60);
    assert.equal(trickle.stalled(now), now >= 10_000, `trickle at ${now}`);
    assert.equal(enough.stalled(now), false, `enough at ${now}`);
  }
  // A burst does not excuse what comes long after it.
  const burst = throughputFloor(policy, 0);
  burst.add(1, 10_000_000);
  assert.equal(burst.stalled(9000), false);
  assert.equal(burst.stalled(11_000), true);
});

test('without a floor only silence is a stall', () => {
  const floor = throughputFloor({ minBytesPerSecond: 0, stallMs: 1000 }, 0);
  floor.add(900, 1);
  assert.equal(floor.stalled(1800), false);
  assert.equal(floor.stalled(2000), true);
});

test('the time in which we do not read is not held against the network', () => {
  const floor = throughputFloor({ minBytesPerSecond: 100, stallMs: 1000 }, 0);
  floor.hold(500);
  floor.hold(600);
  assert.equal(floor.stalled(100_000), false);
  assert.equal(floor.elapsed(100_000), 500);
  floor.resume(100_000);
  floor.resume(100_000);
  assert.equal(floor.stalled(100_499), false);
  assert.equal(floor.stalled(100_500), true);
});

test('progress is told at every phase, else five times a second, with the speed of the last seconds', () => {
  const steps: LayerStep[] = [];
  const teller = tellProgress((step) => steps.push(step));
  teller.phase(1000, 'waiting', 0);
  teller.phase(1001, 'downloading', 0);
  for (let at = 1, bytes = 0; at <= 1000; at++) {
    bytes += 1000;
    teller.bytes(1001 + at, bytes, 1000);
  }
  assert.equal(steps.length, 2 + 5);
  assert.deepEqual(
    steps.slice(0, 2).map(({ bytesPerSecond }) => bytesPerSecond),
    [0, 0],
  );
  for (const { bytesPerSecond } of steps.slice(2)) {
    assert.ok(bytesPerSecond > 900_000 && bytesPerSecond < 1_100_000, String(bytesPerSecond));
  }
  teller.bytes(20_000, 1_000_000, 0);
  assert.equal(steps.at(-1)?.bytesPerSecond, 0);
  teller.phase(20_001, 'verifying', 1_000_000);
  assert.deepEqual(steps.at(-1), { phase: 'verifying', bytes: 1_000_000, bytesPerSecond: 0 });
});

test('bytes from the disk are no speed', () => {
  const steps: LayerStep[] = [];
  const teller = tellProgress((step) => steps.push(step));
  teller.phase(0, 'downloading', 0);
  teller.bytes(500, 1_000_000, 0);
  assert.deepEqual(steps.at(-1), { phase: 'downloading', bytes: 1_000_000, bytesPerSecond: 0 });
});

test('tries without progress are few, are counted anew after progress, and wait longer each time', () => {
  const policy = { ...defaultPolicy, retryDelaysMs: [100, 400], progressBytes: 1000 };
  const least = countTries(policy, () => 0);
  assert.deepEqual([least.next(0), least.next(10), least.next(20)], [50, 200, undefined]);
  const most = countTries(policy, () => 1);
  assert.deepEqual([most.next(0), most.next(999), most.next(1000), most.next(1000)], [100, 400, 100, 400]);
  assert.equal(most.next(1999), undefined);
  // Crumbs add up.
  const crumbs = countTries(policy, () => 1, 5000);
  assert.deepEqual([crumbs.next(5600), crumbs.next(6000), crumbs.next(6600)], [100, 100, 400]);
});

test('what is written down: kept blobs, broken and slow links; never on a fast link', () => {
  const policy = {
    ...defaultPolicy,
    decideAfterBytes: 4 << 20,
    decideAfterMs: 2000,
    fastBytesPerSecond: 40e6,
  };
  const seen: LinkSeen = { keep: false, bytes: 0, ms: 0, bytesPerSecond: 0, broken: false };
  const cases: [Partial<LinkSeen>, ReturnType<typeof spoolDecision>][] = [
    [{}, 'wait'],
    [{ keep: true }, 'write'],
    [{ broken: true, bytesPerSecond: 1e9 }, 'write'],
    [{ bytes: (4 << 20) - 1, ms: 1999 }, 'wait'],
    [{ bytes: 4 << 20, ms: 50, bytesPerSecond: 80e6 }, 'drop'],
    [{ bytes: 4 << 20, ms: 1000, bytesPerSecond: 4e6 }, 'write'],
    [{ bytes: 1000, ms: 2000, bytesPerSecond: 500 }, 'write'],
    [{ bytes: 1000, ms: 2000, bytesPerSecond: 40e6 }, 'drop'],
  ];
  for (const [change, expected] of cases) {
    assert.equal(spoolDecision(policy, { ...seen, ...change }), expected, JSON.stringify(change));
  }
});

test('many fetches at once keep less each', () => {
  for (const parallel of [1, 3, 4, 5, 64]) {
    const { decideAfterBytes, spoolPendingBytes } = policyFor(defaultPolicy, parallel);
    assert.ok(decideAfterBytes * parallel <= 16 << 20 && spoolPendingBytes * parallel <= 16 << 20);
    assert.ok(decideAfterBytes <= defaultPolicy.decideAfterBytes && decideAfterBytes >= 256 << 10);
  }
});

test('parts of layers go when nobody wanted them for long, and the longest unused when there are too many', () => {
  const policy = { ...defaultPolicy, partialMaxAgeMs: 100, partialMaxBytes: 10 };
  const file = (name: string, size: number, usedAt: number) => ({ name, size, usedAt });
  assert.deepEqual(expiredPartials(policy, [], 1000), []);
  assert.deepEqual(expiredPartials(policy, [file('old', 1, 899), file('new', 1, 900)], 1000), ['old']);
  assert.deepEqual(expiredPartials(policy, [file('a', 6, 990), file('b', 6, 995), file('c', 4, 999)], 1000), [
    'a',
  ]);
  assert.deepEqual(expiredPartials(policy, [file('huge', 11, 1000)], 1000), ['huge']);
});
