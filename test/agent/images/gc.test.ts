/** Garbage collection of images: what goes, what never goes, when it runs, and what the node's events say. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import type { Pod } from '../../../agent/apiserver/types.ts';
import { imagesOf, startImageGc } from '../../../agent/images/gc.ts';
import { type ImageGcThresholds, isOverThreshold, planImageGc } from '../../../agent/images/gc_plan.ts';
import type { ImageUse } from '../../../runtime/api.ts';
import { makeLogger } from '../../../runtime/host/log.ts';

const minute = 60_000;
const kubelets: ImageGcThresholds = {
  highPercent: 85,
  lowPercent: 80,
  minimumAgeMs: 2 * minute,
  maximumAgeMs: 0,
};
const now = 1_800_000_000_000;

function image(
  id: string,
  ageMs: number,
  size: number | [string, number][],
  over: Partial<ImageUse> = {},
): ImageUse {
  const layers = typeof size === 'number' ? [[`layer of ${id}`, size] as const] : size;
  return {
    id,
    pinned: false,
    inUse: false,
    lastUsedAt: now - ageMs,
    layers: layers.map(([diffId, bytes]) => ({ diffId, size: bytes })),
    ...over,
  };
}

const disk = (percent: number) => ({ capacityBytes: 1000, availableBytes: 1000 - percent * 10 });

test('below the high threshold nothing goes; at it the oldest go, down to the low one', () => {
  const images = [image('b', 20 * minute, 30), image('a', 30 * minute, 30), image('c', 10 * minute, 30)];
  const plan = (percent: number) => planImageGc(images, disk(percent), kubelets, now);
  assert.deepEqual(plan(84), { remove: [], wantedBytes: 0, freedBytes: 0 });
  assert.deepEqual(plan(85), { remove: ['a', 'b'], wantedBytes: 50, freedBytes: 60 });
  assert.deepEqual(plan(95), { remove: ['a', 'b', 'c'], wantedBytes: 150, freedBytes: 90 });
  // kubelet rounds what is available down: 84.1 percent count as 85.
  assert.equal(isOverThreshold({ capacityBytes: 1000, availableBytes: 159 }, kubelets), true);
  assert.equal(isOverThreshold({ capacityBytes: 1000, availableBytes: 160 }, kubelets), false);
  assert.equal(isOverThreshold({ capacityBytes: 0, availableBytes: 0 }, kubelets), false);
});

test('layers count once, and only when the last image that has them goes', () => {
  const base: [string, number] = ['base', 100];
  const images = [
    image('old', 30 * minute, [base, ['x', 5]]),
    image('older', 40 * minute, [base, ['y', 5]]),
    image('young', 1 * minute, [['z', 7]]),
    image('part of young', 50 * minute, [['z', 7]]),
  ];
  // All of its layers stay with `young`: nothing would be won.
  assert.deepEqual(planImageGc(images, disk(86), kubelets, now), {
    remove: ['older', 'old'],
    wantedBytes: 60,
    freedBytes: 110,
  });
});

test('the maximum age counts from the last use, whatever the disk says', () => {
  const thresholds = { ...kubelets, maximumAgeMs: 60 * minute };
  const images = [
    image('just', 60 * minute, 10),
    image('over', 60 * minute + 1, 10),
    image('pinned', 90 * minute, 10, { pinned: true }),
    image('used', 90 * minute, 10, { inUse: true }),
    image('empty', 90 * minute, []),
  ];
  assert.deepEqual(planImageGc(images, disk(10), thresholds, now).remove, ['empty', 'over']);
  assert.deepEqual(planImageGc(images, disk(10), kubelets, now).remove, []);
});

test('after the clock was set back nothing is old', () => {
  const thresholds = { ...kubelets, maximumAgeMs: 60 * minute };
  assert.deepEqual(planImageGc([image('a', -90 * minute, 10)], disk(99), thresholds, now).remove, []);
});

test('every small store: nothing that is needed goes, no more goes than must, and the oldest first', () => {
  const ages = [1, 3, 70].map((minutes) => minutes * minute);
  const kinds = ages.flatMap((age) => [
    ...[{}, { pinned: true }, { inUse: true }].map((over) => ({ age, over, shares: false })),
    { age, over: {}, shares: true },
  ]);
  let checked = 0;
  for (const first of kinds)
    for (const second of kinds)
      for (const third of kinds)
        for (const percent of [50, 85, 88, 99])
          for (const maximumAgeMs of [0, 60 * minute])
            for (const full of [false, true]) {
              const images = [first, second, third].map(({ age, over, shares }, at) =>
                image(
                  `${at}`,
                  age + at,
                  [[`own ${at}`, 20], ...(shares ? ([['shared', 30]] as [string, number][]) : [])],
                  over,
                ),
              );
              const thresholds = { ...kubelets, maximumAgeMs };
              const usage = { ...disk(percent), full };
              const { remove, wantedBytes, freedBytes } = planImageGc(images, usage, thresholds, now);
              const told = JSON.stringify({ images, usage, thresholds, remove });
              const gone = images.filter(({ id }) => remove.includes(id));
              const age = ({ lastUsedAt }: ImageUse) => now - lastUsedAt;
              const isOld = (one: ImageUse) => maximumAgeMs > 0 && age(one) > maximumAgeMs;
              const bytesOf = (ids: readonly string[]) => {
                const stay = new Set(
                  images
                    .filter(({ id }) => !ids.includes(id))
                    .flatMap(({ layers }) => layers.map(({ diffId }) => diffId)),
                );
                const go = new Map(
                  images.flatMap(({ layers }) => layers.map(({ diffId, size }) => [diffId, size])),
                );
                const mine = new Set(
                  images
                    .filter(({ id }) => ids.includes(id))
                    .flatMap(({ layers }) => layers.map(({ diffId }) => diffId)),
                );
                return [...mine]
                  .filter((diffId) => !stay.has(diffId))
                  .reduce((sum, diffId) => sum + go.get(diffId)!, 0);
              };
              assert.ok(
                gone.every(({ pinned, inUse }) => !pinned && !inUse),
                told,
              );
              assert.ok(
                gone.every((one) => age(one) >= 2 * minute),
                told,
              );
              assert.equal(freedBytes, bytesOf(remove), told);
              const may = images.filter((one) => !one.pinned && !one.inUse && age(one) >= 2 * minute);
              assert.ok(
                may.filter(isOld).every(({ id }) => remove.includes(id)),
                told,
              );
              const over = full || percent >= 85;
              assert.equal(wantedBytes, over ? Math.max(0, percent * 10 - 800) : 0, told);
              if (!over) assert.ok(gone.every(isOld), told);
              else if (full || freedBytes < wantedBytes) assert.equal(remove.length, may.length, told);
              else {
                const last = gone.filter((one) => !isOld(one)).at(-1);
                const before = remove.filter((id) => id !== remove.at(-1));
                if (last !== undefined && last.id === remove.at(-1))
                  assert.ok(bytesOf(before) < wantedBytes, told);
              }
              const times = remove
                .map((id) => images.find((one) => one.id === id)!)
                .map(({ lastUsedAt }) => lastUsedAt);
              assert.deepEqual(
                times,
                times.toSorted((a, b) => a - b),
                told,
              );
              checked++;
            }
  assert.equal(checked, 12 ** 3 * 16);
});

test('the images of a pod are those of all its containers and volumes, until it has ended', () => {
  const pod = {
    spec: {
      initContainers: [{ name: 'i', image: 'init' }],
      containers: [{ name: 'c', image: 'main' }, { name: 'd' }],
      ephemeralContainers: [{ name: 'e', image: 'debug' }],
      volumes: [
        { name: 'v', image: { reference: 'data' } },
        { name: 'w', emptyDir: {} },
      ],
    },
  } as unknown as Pod;
  assert.deepEqual(imagesOf(pod), ['init', 'main', 'debug', 'data']);
  assert.deepEqual(imagesOf({ ...pod, status: { phase: 'Failed' } } as Pod), []);
  assert.deepEqual(imagesOf({}), []);
});

/** A collector over a list, a clock by hand, and what was told. */
function setUp(images: ImageUse[], percent: number, thresholds = kubelets) {
  const state = { percent, images, leftovers: 0, reads: 0, failure: undefined as Error | undefined };
  const timers = new Set<{ ms: number; callback: () => void }>();
  const told: string[] = [];
  const wanted: string[] = [];
  const gc = startImageGc({
    images: {
      imageUse(refs) {
        wanted.push(...refs);
        return state.images.map((one) => ({ ...one, inUse: one.inUse || refs.includes(one.id) }));
      },
      collectImage(id) {
        const found = state.images.some((one) => one.id === id);
        state.images = state.images.filter((one) => one.id !== id);
        return found;
      },
      collectLayers: () => state.leftovers,
    },
    pods: () => [{ spec: { containers: [{ name: 'c', image: 'wanted' }] } } as unknown as Pod],
    async disk() {
      state.reads++;
      if (state.failure !== undefined) throw state.failure;
      return state.percent < 0 ? { capacityBytes: 0, availableBytes: 0 } : disk(state.percent);
    },
    thresholds,
    nodeName: 'edge-1',
    events: {
      event: (about, type, reason, message) =>
        void told.push(`${about.kind}/${about.metadata?.name} ${type} ${reason} ${message}`),
    },
    clock: {
      now: () => now,
      monotonic: () => 0,
      after(ms, callback) {
        const timer = { ms, callback };
        timers.add(timer);
        return () => void timers.delete(timer);
      },
    },
    log: makeLogger('silent'),
  });
  const settle = async () => {
    for (let i = 0; i < 10; i++) await turn();
  };
  return {
    gc,
    state,
    told,
    timers,
    settle,
    async tick() {
      const [timer] = timers;
      assert.equal(timers.size, 1);
      assert.equal(timer!.ms, 5 * minute);
      timers.delete(timer!);
      timer!.callback();
      await settle();
    },
    ids: () => state.images.map(({ id }) => id),
  };
}

test('every five minutes, what a pod wants stays', async () => {
  const images = [
    image('wanted', 99 * minute, 100),
    image('a', 9 * minute, 100),
    image('b', 8 * minute, 100),
  ];
  const { tick, ids, told, state, gc } = setUp(images, 50);
  assert.equal(state.reads, 0, 'not before the pods are known');
  await tick();
  assert.deepEqual(ids(), ['wanted', 'a', 'b']);
  state.percent = 88;
  await tick();
  assert.deepEqual(ids(), ['wanted', 'b']);
  assert.deepEqual(told, []);
  await gc.close();
});

test('too little to free is an event at once, and a failure of garbage collection from the second time on', async () => {
  const { tick, told, state, gc } = setUp([image('a', 9 * minute, 30)], 90);
  await tick();
  const failed =
    'Failed to garbage collect required amount of images. Attempted to free 100 bytes, but only found';
  assert.deepEqual(told.splice(0), [
    `Node/edge-1 Warning FreeDiskSpaceFailed ${failed} 30 bytes eligible to free.`,
  ]);
  await tick();
  assert.deepEqual(told.splice(0), [
    `Node/edge-1 Warning FreeDiskSpaceFailed ${failed} 0 bytes eligible to free.`,
    `Node/edge-1 Warning ImageGCFailed ${failed} 0 bytes eligible to free.`,
  ]);
  state.percent = 50;
  await tick();
  state.percent = -1;
  await tick();
  assert.deepEqual(told.splice(0), [
    'Node/edge-1 Warning InvalidDiskCapacity invalid capacity 0 on image filesystem',
  ]);
  state.failure = new Error('no such disk');
  await tick();
  assert.deepEqual(told, ['Node/edge-1 Warning ImageGCFailed no such disk']);
  await gc.close();
});

test('layers of broken pulls count, and may be enough', async () => {
  const { tick, told, state, ids, gc } = setUp([image('a', 9 * minute, 30)], 88);
  state.leftovers = 90;
  await tick();
  assert.deepEqual([ids(), told], [['a'], []]);
  await gc.close();
});

test('where space ran out it runs at once, takes all that may go, and goes on as before', async () => {
  const images = [
    image('wanted', 99 * minute, 100),
    image('a', 9 * minute, 1),
    image('young', 1 * minute, 1),
  ];
  const { gc, ids, told, settle, timers, state } = setUp(images, 60);
  gc.spaceRanOut();
  gc.spaceRanOut();
  await settle();
  assert.deepEqual(ids(), ['wanted', 'young']);
  assert.equal(timers.size, 1);
  assert.equal(state.reads, 2, 'a call in the middle of a run makes another one');
  assert.match(told.join(), /FreeDiskSpaceFailed .* only found 0 bytes/);
  await gc.close();
  assert.equal(timers.size, 0);
  gc.spaceRanOut();
  await settle();
  assert.equal(state.reads, 2);
});

test('with a high threshold of 100 and no maximum age it is off', async () => {
  const { gc, timers, state, settle } = setUp([image('a', 9 * minute, 1)], 100, {
    ...kubelets,
    highPercent: 100,
  });
  gc.spaceRanOut();
  await settle();
  assert.deepEqual([timers.size, state.reads], [0, 0]);
  await gc.close();
});
