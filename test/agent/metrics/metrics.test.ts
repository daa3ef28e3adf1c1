import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fetchMetrics } from '../../../agent/metrics/fetches.ts';
import { processMetrics } from '../../../agent/metrics/process.ts';
import { countPulls, sizeLabel } from '../../../agent/metrics/pulls.ts';
import { type MetricsSource, makeHistogram } from '../../../agent/metrics/source.ts';
import { contentType, metricsText } from '../../../agent/metrics/text.ts';
import type { PullProgress } from '../../../runtime/api.ts';
import { type Clock, systemClock } from '../../../runtime/host/clock.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { busybox, fakeImages, layer, untilAborted } from '../control/fake-images.ts';

/** Samples by `name{labels}`. Throws on what is not the text format. */
async function scrape(...sources: MetricsSource[]): Promise<Record<string, number>> {
  const found: Record<string, number> = {};
  for (const line of (await metricsText(sources)).split('\n')) {
    if (line === '' || /^# (HELP [a-z_]+ .+|TYPE [a-z_]+ (counter|gauge|histogram))$/.test(line)) continue;
    const match =
      /^([a-z_]+(?:\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})?) (\d+(?:\.\d+)?(?:e[+-]?\d+)?)$/.exec(line);
    assert.ok(match, line);
    assert.ok(!(match[1]! in found), `${match[1]} twice`);
    found[match[1]!] = Number(match[2]);
  }
  return found;
}

function stage() {
  let now = 0;
  const clock: Clock = { ...systemClock, monotonic: () => now };
  const images = fakeImages();
  const counted = countPulls(images, clock);
  return { images, counted, pass: (seconds: number) => (now += seconds * 1000) };
}

const step = (digit: string, phase: PullProgress['phase'], bytes: number) => layer(digit, { phase, bytes });

test('a pull is counted while it runs and when it has ended', async () => {
  const { images, counted, pass } = stage();
  const paused = Promise.withResolvers<void>();
  const go = Promise.withResolvers<void>();
  images.script = async (tell) => {
    for (const digit of '123') tell(step(digit, 'waiting', 0));
    tell(step('1', 'downloading', 400_000));
    tell(step('2', 'present', 1_000_000));
    paused.resolve();
    await go.promise;
    tell(step('1', 'downloading', 900_000));
    tell(step('1', 'verifying', 1_000_000));
    tell(step('1', 'done', 1_000_000));
    tell(step('3', 'downloading', 1_000_000));
    tell(step('3', 'done', 1_000_000));
    pass(7);
    return busybox.id;
  };
  const heard: string[] = [];
  const pull = counted.images.pullImage(
    { image: 'busybox' },
    { onProgress: ({ phase }) => heard.push(phase) },
  );
  await paused.promise;
  const during = await scrape(counted.source);
  assert.equal(during['keelson_image_pulls_in_flight'], 1);
  assert.equal(during['keelson_image_pull_layers_in_flight{phase="downloading"}'], 1);
  assert.equal(during['keelson_image_pull_layers_in_flight{phase="waiting"}'], 1);
  assert.equal(during['keelson_image_pull_layers_total{result="present"}'], 1);
  assert.equal(during['keelson_image_pull_pending_bytes'], 1_600_000);
  go.resolve();
  assert.equal(await pull, busybox.id);
  assert.equal(heard.length, 10);
  const after = await scrape(counted.source);
  assert.equal(after['keelson_image_pulls_in_flight'], 0);
  assert.equal(after['keelson_image_pull_layers_in_flight{phase="downloading"}'], 0);
  assert.equal(after['keelson_image_pull_layers_total{result="fetched"}'], 2);
  assert.equal(after['keelson_image_pull_layers_total{result="failed"}'], 0);
  assert.equal(after['keelson_image_pull_pending_bytes'], 0);
  assert.equal(after['keelson_image_pulls_total{result="succeeded"}'], 1);
  const duration = 'kubelet_image_pull_duration_seconds';
  assert.equal(after[`${duration}_bucket{image_size_in_bytes="0-10MB",le="5"}`], 0);
  assert.equal(after[`${duration}_bucket{image_size_in_bytes="0-10MB",le="10"}`], 1);
  assert.equal(after[`${duration}_bucket{image_size_in_bytes="0-10MB",le="+Inf"}`], 1);
  assert.equal(after[`${duration}_sum{image_size_in_bytes="0-10MB"}`], 7);
  assert.equal(after[`${duration}_count{image_size_in_bytes="0-10MB"}`], 1);
});

test('what several pulls share is counted once', async () => {
  const { images, counted } = stage();
  const tells: ((progress: PullProgress) => void)[] = [];
  const go = Promise.withResolvers<void>();
  images.script = async (tell) => {
    tells.push(tell);
    await go.promise;
    return busybox.id;
  };
  const pulls = [1, 2, 3].map(() => counted.images.pullImage({ image: 'busybox' }));
  for (const [phase, bytes] of [
    ['waiting', 0],
    ['downloading', 500_000],
    ['downloading', 0], // The connection broke: the bytes of the second try are bytes too.
    ['downloading', 1_000_000],
    ['done', 1_000_000],
  ] as const) {
    for (const tell of tells) tell(step('1', phase, bytes));
  }
  go.resolve();
  await Promise.all(pulls);
  const after = await scrape(counted.source);
  assert.equal(after['keelson_image_pull_layers_total{result="fetched"}'], 1);
  assert.equal(after['keelson_image_pulls_total{result="succeeded"}'], 3);
});

test('failed and aborted pulls', async () => {
  const { images, counted } = stage();
  images.script = async (tell) => {
    tell(step('1', 'downloading', 10));
    tell(step('2', 'done', 1_000_000));
    throw new KeelsonError('REGISTRY_UNAVAILABLE', 'gone');
  };
  await assert.rejects(counted.images.pullImage({ image: 'x' }), { code: 'REGISTRY_UNAVAILABLE' });
  images.script = (_tell, signal) => untilAborted(signal);
  await assert.rejects(counted.images.pullImage({ image: 'x' }, { signal: AbortSignal.abort() }), {
    code: 'ABORTED',
  });
  const after = await scrape(counted.source);
  assert.equal(after['keelson_image_pulls_total{result="failed"}'], 1);
  assert.equal(after['keelson_image_pulls_total{result="aborted"}'], 1);
  assert.equal(after['keelson_image_pull_layers_total{result="failed"}'], 1);
  assert.equal(after['keelson_image_pull_layers_total{result="fetched"}'], 1);
  assert.equal(after['keelson_image_pulls_in_flight'], 0);
});

test('the other calls of the image service are its own', async () => {
  const { images, counted } = stage();
  assert.equal(counted.images.listImages, images.listImages);
  assert.equal(counted.images.verifyImages, images.verifyImages);
});

for (const [bytes, label] of [
  [0, 'N/A'],
  [1, '0-10MB'],
  [10 * 1024 * 1024, '0-10MB'],
  [10 * 1024 * 1024 + 1, '10MB-100MB'],
  [2 * 1024 ** 3, '1GB-5GB'],
  [200 * 1024 ** 3, 'GT100GB'],
] as const) {
  test(`an image of ${bytes} bytes counts as ${label}`, () => assert.equal(sizeLabel(bytes), label));
}

test('a histogram counts what is at most its bound', async () => {
  const histogram = makeHistogram([1, 2]);
  for (const value of [0.5, 1, 1.5, 2.5]) histogram.observe(value);
  const samples = await scrape({
    families: () => [{ name: 'x', help: 'X.', type: 'histogram', samples: histogram.samples() }],
  });
  assert.deepEqual(samples, {
    'x_bucket{le="1"}': 2,
    'x_bucket{le="2"}': 3,
    'x_bucket{le="+Inf"}': 4,
    x_sum: 5.5,
    x_count: 4,
  });
});

test('the process tells of itself, labels are quoted', async () => {
  const found = await scrape(processMetrics);
  assert.ok(found['process_resident_memory_bytes']! > 10e6);
  assert.ok(found['process_virtual_memory_bytes']! > found['process_resident_memory_bytes']!);
  assert.ok(found['process_cpu_seconds_total']! > 0);
  assert.ok(found['process_open_fds']! >= 3);
  assert.ok(Math.abs(found['process_start_time_seconds']! - Date.now() / 1000) < 3600);
  assert.match(contentType, /^text\/plain; version=0\.0\.4/);
  const odd = await metricsText([
    {
      families: () => [
        { name: 'x', help: 'a\nb', type: 'gauge', samples: [{ value: 1, labels: { l: 'q"\n\\' } }] },
      ],
    },
  ]);
  assert.ok(odd.includes('x{l="q\\"\\n\\\\"} 1'), odd);
});

test('what fetching has come to is told as it is counted', async () => {
  const counts = { bytesFetched: 0, layersResumed: 0, retries: 0 };
  const source = fetchMetrics(() => counts);
  Object.assign(counts, { bytesFetched: 2_000_000, layersResumed: 2, retries: 5 });
  const families = await source.families();
  assert.deepEqual(
    families.map(({ name, type, samples }) => [name, type, samples[0]?.value]),
    [
      ['keelson_image_pull_bytes_total', 'counter', 2_000_000],
      ['keelson_image_pull_layers_resumed_total', 'counter', 2],
      ['keelson_image_pull_retries_total', 'counter', 5],
    ],
  );
});
