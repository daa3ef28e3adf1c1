import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeEventRecorder } from '../../../agent/apiserver/events.ts';
import type { MetricFamily } from '../../../agent/metrics/source.ts';
import { fastClock, json, silent, startFake, statusBody, until } from './fake.ts';

const pod = { apiVersion: 'v1', kind: 'Pod', metadata: { name: 'p', namespace: 'a', uid: 'u' } };
const about = { apiVersion: 'v1', kind: 'Pod', namespace: 'a', name: 'p', uid: 'u' };

/** The recorder's metrics by name and reason. */
function numbersOf(recorder: ReturnType<typeof makeEventRecorder>): Record<string, number> {
  const families = recorder.source.families() as readonly MetricFamily[];
  return Object.fromEntries(
    families.flatMap(({ name, samples }) =>
      samples.map(({ labels, value }) => [labels ? `${name} ${labels['reason']}` : name, value]),
    ),
  );
}

test('an event is created, and the same again only counts up', async (t) => {
  const fake = await startFake(t, (_, response) => json(response, 200, {}));
  const recorder = makeEventRecorder({ client: fake.client(), host: 'n', clock: fastClock(), log: silent });
  t.after(() => recorder.close());
  recorder.event({ ...pod, fieldPath: 'spec.containers{c}' }, 'Warning', 'BackOff', 'again');
  await until(() => fake.asked.length === 1);
  recorder.event({ ...pod, fieldPath: 'spec.containers{c}' }, 'Warning', 'BackOff', 'again');
  await until(() => fake.asked.length === 2);
  const [create, patch] = fake.asked;
  const event = JSON.parse(create!.body);
  assert.equal(create!.path, '/api/v1/namespaces/a/events');
  assert.deepEqual(event.involvedObject, { ...about, fieldPath: 'spec.containers{c}' });
  assert.deepEqual(event.source, { component: 'kubelet', host: 'n' });
  assert.equal(event.count, 1);
  assert.equal(patch!.method, 'PATCH');
  assert.equal(patch!.path, `/api/v1/namespaces/a/events/${event.metadata.name}`);
  assert.equal(JSON.parse(patch!.body).count, 2);
});

test('events of the Node live in default, with its name as uid until that is known', async (t) => {
  const fake = await startFake(t, (_, response) => json(response, 200, {}));
  const recorder = makeEventRecorder({ client: fake.client(), host: 'n', clock: fastClock(), log: silent });
  t.after(() => recorder.close());
  recorder.event(
    { apiVersion: 'v1', kind: 'Node', metadata: { name: 'n', uid: 'real' } },
    'Normal',
    'Starting',
    'x',
  );
  recorder.event({ apiVersion: 'v1', kind: 'Node', metadata: { name: 'n' } }, 'Normal', 'Starting', 'x');
  await until(() => fake.asked.length === 2);
  const [known, unknown] = fake.asked.map(({ body }) => JSON.parse(body));
  assert.equal(known.metadata.namespace, 'default');
  assert.deepEqual(known.involvedObject, { apiVersion: 'v1', kind: 'Node', name: 'n', uid: 'real' });
  assert.deepEqual(unknown.involvedObject, { apiVersion: 'v1', kind: 'Node', name: 'n', uid: 'n' });
});

test('names are unique, and not longer than a name may be', async (t) => {
  const fake = await startFake(t, (_, response) => json(response, 200, {}));
  const recorder = makeEventRecorder({
    client: fake.client(),
    host: 'n',
    clock: { ...fastClock(), now: () => 1 },
    log: silent,
  });
  t.after(() => recorder.close());
  const name = 'p'.repeat(253);
  for (let i = 0; i < 5; i++)
    recorder.event({ ...pod, metadata: { ...pod.metadata, name } }, 'Normal', `R${i}`, 'x');
  await until(() => fake.asked.length === 5);
  const names = fake.asked.map(({ body }) => JSON.parse(body).metadata.name as string);
  assert.equal(new Set(names).size, 5);
  assert.ok(names.every((one) => one.length === 253));
});

test('while the apiserver is away events wait, the oldest go, and equal ones are written once', async (t) => {
  let away = true;
  const fake = await startFake(t, (_, response) => {
    if (away) response.destroy();
    else json(response, 200, {});
  });
  const warned: unknown[][] = [];
  const log = { ...silent, warn: (...args: unknown[]) => warned.push(args) } as unknown as typeof silent;
  const recorder = makeEventRecorder({
    client: fake.client(),
    host: 'n',
    clock: fastClock(),
    log,
    qps: 0,
  });
  t.after(() => recorder.close());
  const of = (uid: number) => ({ ...pod, metadata: { name: `p${uid}`, namespace: 'a', uid: String(uid) } });
  for (let i = 0; i < 1200; i++) {
    recorder.event(of(i), 'Normal', 'Started', 'x');
    recorder.event(of(i), 'Normal', 'Started', 'x');
  }
  await until(() => fake.asked.length >= 3);
  assert.ok(recorder.pending <= 1000);
  away = false;
  const before = fake.asked.length;
  await until(() => numbersOf(recorder)['keelson_events_written_total'] === 1000);
  const written = fake.asked.slice(before).map(({ body }) => JSON.parse(body));
  assert.ok(written.every(({ count }) => count === 2));
  assert.ok(written.some(({ involvedObject }) => involvedObject.name === 'p1199'));
  assert.ok(!written.some(({ involvedObject }) => involvedObject.name === 'p100'));
  const count = numbersOf(recorder);
  assert.equal(count['keelson_events_dropped_total spool_full'], 200);
  assert.equal(count['keelson_events_written_total'], 1000);
  assert.equal(count['keelson_events_pending'], 0);
  assert.deepEqual(
    warned.map(([fields]) => fields),
    [{ spoolLimit: 1000 }, { dropped: 200 }],
    'told when it begins, and how many when it is over',
  );
});

test('after hours without an apiserver there are the warnings, in order, with their counts', async (t) => {
  let away = true;
  const fake = await startFake(t, (_, response) => {
    if (away) response.destroy();
    else json(response, 200, {});
  });
  const clock = fastClock();
  const warned: unknown[] = [];
  const log = { ...silent, warn: (fields: unknown) => warned.push(fields) } as unknown as typeof silent;
  const recorder = makeEventRecorder({ client: fake.client(), host: 'n', clock, log, qps: 0 });
  t.after(() => recorder.close());
  const of = (name: string) => ({ ...pod, metadata: { name, namespace: 'a', uid: name } });
  const began = clock.now();
  for (let hour = 0; hour < 6; hour++) {
    recorder.event(of('waiting'), 'Warning', 'FailedScheduling', 'as ever');
    for (let i = 0; i < 100; i++) recorder.event(of(`bad-${hour}-${i}`), 'Warning', 'BackOff', 'x');
    for (let i = 0; i < 900; i++) recorder.event(of(`good-${hour}-${i}`), 'Normal', 'Started', 'x');
    assert.ok(recorder.pending <= 1000);
    clock.advance(3_600_000);
  }
  await until(() => fake.asked.length >= 3);
  assert.ok(recorder.pending <= 1000);
  away = false;
  const before = fake.asked.length;
  await until(() => recorder.pending === 0 && fake.asked.length - before >= 1000);
  const written = fake.asked.slice(before).map(({ body }) => JSON.parse(body));
  const names: string[] = written.map(({ involvedObject }) => involvedObject.name);
  const expected = Array.from({ length: 6 }, (_, hour) =>
    Array.from({ length: 100 }, (__, i) => `bad-${hour}-${i}`),
  ).flat();
  assert.deepEqual(
    names.filter((name) => name.startsWith('bad')),
    expected,
    'every warning, oldest first',
  );
  const [longest] = written.filter(({ involvedObject }) => involvedObject.name === 'waiting');
  assert.equal(longest.count, 6);
  assert.equal(Date.parse(longest.firstTimestamp), began);
  assert.ok(Date.parse(longest.lastTimestamp) - began >= 5 * 3_600_000);
  assert.deepEqual(
    names.filter((name) => name.startsWith('good')),
    Array.from({ length: 399 }, (_, i) => `good-5-${501 + i}`),
    'and the newest of the rest',
  );
  assert.deepEqual(warned, [{ spoolLimit: 1000 }, { dropped: 6001 - 1000 }], 'told once');
});

test('an event that is refused is dropped, one that has expired is made anew, one that is there is enough', async (t) => {
  const answers = [
    [422, 'Invalid'],
    [409, 'AlreadyExists'],
    [404, 'NotFound'],
    [200, ''],
    [403, 'Forbidden'],
  ] as const;
  let next = 0;
  const fake = await startFake(t, (_, response) => {
    const [code, reason] = answers[next++] ?? [200, ''];
    json(response, code, code === 200 ? {} : statusBody(code, reason));
  });
  const recorder = makeEventRecorder({ client: fake.client(), host: 'n', clock: fastClock(), log: silent });
  t.after(() => recorder.close());
  const tell = async (reason: string, requests: number) => {
    recorder.event(pod, 'Normal', reason, 'x');
    await until(() => fake.asked.length === requests && recorder.pending === 0);
  };
  await tell('Refused', 1);
  await tell('There', 2);
  await tell('There', 4);
  await tell('Forbidden', 5);
  await tell('There', 6);
  assert.deepEqual(
    fake.asked.map(({ method }) => method),
    ['POST', 'POST', 'PATCH', 'POST', 'POST', 'PATCH'],
  );
  assert.equal(JSON.parse(fake.asked[3]!.body).count, 2);
  assert.equal(numbersOf(recorder)['keelson_events_dropped_total refused'], 2);
});

test('an event that the apiserver fails on does not hold up the others for ever', async (t) => {
  const fake = await startFake(t, ({ body }, response) => {
    if (body.includes('"Poison"')) json(response, 500, statusBody(500, 'InternalError'));
    else json(response, 200, {});
  });
  const recorder = makeEventRecorder({ client: fake.client(), host: 'n', clock: fastClock(), log: silent });
  t.after(() => recorder.close());
  recorder.event(pod, 'Normal', 'Poison', 'x');
  recorder.event(pod, 'Normal', 'Started', 'x');
  await until(() => fake.asked.some(({ body }) => body.includes('"Started"')) || fake.asked.length > 20);
  assert.equal(fake.asked.length, 13);
});

test('without a client events are only logged', async () => {
  const lines: unknown[] = [];
  const log = { ...silent, info: (fields: unknown) => lines.push(fields) } as unknown as typeof silent;
  const recorder = makeEventRecorder({ host: 'n', clock: fastClock(), log });
  recorder.event(pod, 'Normal', 'Started', 'x');
  assert.equal(lines.length, 1);
  assert.equal(recorder.pending, 0);
  await recorder.close();
});

/** A clock that stands still but for `pass`, which lets what is due happen. */
function slowClock() {
  let elapsed = 0;
  const timers = new Set<{ readonly at: number; readonly callback: () => void }>();
  return {
    now: () => 1_700_000_000_000 + elapsed,
    monotonic: () => elapsed,
    after(ms: number, callback: () => void) {
      const timer = { at: elapsed + ms, callback };
      timers.add(timer);
      return () => void timers.delete(timer);
    },
    async pass(ms: number) {
      elapsed += ms;
      for (const timer of [...timers]) {
        if (timer.at > elapsed || !timers.delete(timer)) continue;
        timer.callback();
      }
      await new Promise((resolve) => setImmediate(resolve));
    },
  };
}

test('events wait until no more come, but not for long, and warnings hardly at all', async (t) => {
  const written: string[] = [];
  const client = {
    create: async (_: string, { reason }: { reason: string }) => {
      written.push(reason);
    },
  } as unknown as NonNullable<Parameters<typeof makeEventRecorder>[0]['client']>;
  const clock = slowClock();
  const recorder = makeEventRecorder({ client, host: 'n', clock, log: silent });
  t.after(() => recorder.close());
  const one = (type: 'Normal' | 'Warning', reason: string) => recorder.event(pod, type, reason, reason);
  one('Normal', 'alone');
  await clock.pass(499);
  assert.deepEqual(written, []);
  await clock.pass(1);
  assert.deepEqual(written, ['alone']);
  for (let ms = 0; ms < 5000; ms += 250) {
    one('Normal', `n${ms}`);
    await clock.pass(250);
    if (ms < 4750) assert.equal(written.length, 1, `after ${ms} ms more are still coming`);
  }
  assert.equal(written.length, 21);
  one('Normal', 'before');
  await clock.pass(250);
  one('Warning', 'bad');
  await clock.pass(250);
  assert.deepEqual(written.slice(21), ['before', 'bad']);
});
