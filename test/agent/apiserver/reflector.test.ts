import assert from 'node:assert/strict';
import type { ServerResponse } from 'node:http';
import { type TestContext, test } from 'node:test';
import { reflect } from '../../../agent/apiserver/reflector.ts';
import type { KubeObject } from '../../../agent/apiserver/types.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { type Asked, fastClock, json, seeded, silent, startFake, statusBody, until } from './fake.ts';

const object = (name: string, version: number, uid = `uid-${name}`) => ({
  metadata: { name, namespace: 'a', uid, resourceVersion: String(version) },
});
const list = (version: number, ...items: object[]) => ({
  kind: 'PodList',
  apiVersion: 'v1',
  metadata: { resourceVersion: String(version) },
  items,
});
const send = (response: ServerResponse, type: string, what: object) =>
  response.write(`${JSON.stringify({ type, object: what })}\n`);

/** `steps` answer the requests in their order; the last one is a watch that stays open. */
async function follow(t: TestContext, steps: ((response: ServerResponse, asked: Asked) => void)[]) {
  let next = 0;
  const fake = await startFake(t, (asked, response) => {
    const step = steps[next++];
    if (step !== undefined) step(response, asked);
    else response.flushHeaders();
  });
  const told: string[] = [];
  const errors: unknown[] = [];
  const clock = fastClock();
  const name = (item: KubeObject) => `${item.metadata?.name}@${item.metadata?.resourceVersion ?? ''}`;
  const reflector = reflect<KubeObject>({
    client: fake.client(),
    path: '/api/v1/pods',
    query: { fieldSelector: 'spec.nodeName=n' },
    onReplace: (items) => told.push(`replace ${items.map(name).join(',')}`),
    onUpsert: (item) => told.push(`upsert ${name(item)}`),
    onDelete: (item) => told.push(`delete ${name(item)}`),
    onError: (error) => errors.push(error),
    clock,
    log: silent,
    random: seeded(1),
  });
  t.after(() => reflector.close());
  const done = () => until(() => fake.asked.length > steps.length);
  return { fake, told, errors, clock, reflector, done };
}

test('lists, then watches from there with bookmarks, and resumes from the last version seen', async (t) => {
  const { fake, told, errors, reflector, done } = await follow(t, [
    (response) => json(response, 200, list(10, object('x', 3), object('y', 9))),
    (response) => {
      send(response, 'ADDED', object('z', 11));
      send(response, 'MODIFIED', object('x', 12));
      send(response, 'DELETED', object('y', 13));
      send(response, 'BOOKMARK', { metadata: { resourceVersion: '20' } });
      response.end();
    },
  ]);
  await reflector.synced;
  await done();
  assert.deepEqual(told, ['replace x@3,y@9', 'upsert z@11', 'upsert x@12', 'delete y@13']);
  const [first, watch, resumed] = fake.asked;
  assert.equal(first!.query.get('resourceVersion'), '0');
  assert.equal(first!.query.get('limit'), '500');
  assert.equal(first!.query.get('fieldSelector'), 'spec.nodeName=n');
  assert.equal(watch!.query.get('resourceVersion'), '10');
  assert.equal(watch!.query.get('allowWatchBookmarks'), 'true');
  const seconds = Number(watch!.query.get('timeoutSeconds'));
  assert.ok(seconds >= 300 && seconds <= 600, String(seconds));
  assert.equal(resumed!.query.get('resourceVersion'), '20');
  assert.deepEqual(errors, []);
});

test('pages are put together, without a resourceVersion beside continue', async (t) => {
  const { fake, told, done } = await follow(t, [
    (response) =>
      json(response, 200, {
        ...list(10, object('x', 3)),
        metadata: { resourceVersion: '10', continue: 'more' },
      }),
    (response) => json(response, 200, list(10, object('y', 4))),
  ]);
  await done();
  assert.deepEqual(told, ['replace x@3,y@4']);
  assert.equal(fake.asked[1]!.query.get('continue'), 'more');
  assert.equal(fake.asked[1]!.query.has('resourceVersion'), false);
});

test('pages that expired midway are read again in one piece', async (t) => {
  const { fake, told, done } = await follow(t, [
    (response) =>
      json(response, 200, {
        ...list(10, object('x', 3)),
        metadata: { resourceVersion: '10', continue: 'more' },
      }),
    (response) => json(response, 410, statusBody(410, 'Expired')),
    (response) => json(response, 200, list(15, object('x', 3), object('y', 14))),
  ]);
  await done();
  assert.deepEqual(told, ['replace x@3,y@14']);
  assert.equal(fake.asked[2]!.query.has('limit'), false);
  assert.equal(fake.asked[2]!.query.has('resourceVersion'), false);
});

for (const [name, gone] of [
  ['as an HTTP status', (response: ServerResponse) => json(response, 410, statusBody(410, 'Gone'))],
  [
    'as an ERROR event',
    (response: ServerResponse) => {
      send(response, 'ERROR', statusBody(410, 'Expired'));
      response.end();
    },
  ],
] as const) {
  test(`410 ${name} lists again and delivers only the differences`, async (t) => {
    const { fake, told, done } = await follow(t, [
      (response) =>
        json(
          response,
          200,
          list(10, object('same', 3), object('old', 4), object('gone', 5), object('again', 6, 'u1')),
        ),
      gone,
      (response) =>
        json(
          response,
          200,
          list(50, object('same', 3), object('old', 44), object('new', 45), object('again', 46, 'u2')),
        ),
    ]);
    await done();
    assert.deepEqual(told, [
      'replace same@3,old@4,gone@5,again@6',
      'delete gone@',
      'delete again@',
      'upsert old@44',
      'upsert new@45',
      'upsert again@46',
    ]);
    assert.equal(fake.asked[2]!.query.has('resourceVersion'), false, 'the newest state is asked for');
    assert.equal(fake.asked[3]!.query.get('resourceVersion'), '50');
  });
}

test('what was seen already is not delivered again, and an unknown deletion not at all', async (t) => {
  const { told, done } = await follow(t, [
    (response) => json(response, 200, list(10, object('x', 3))),
    (response) => {
      send(response, 'ADDED', object('x', 3));
      send(response, 'DELETED', object('never', 4));
      send(response, 'MODIFIED', object('x', 5));
      response.end();
    },
  ]);
  await done();
  assert.deepEqual(told, ['replace x@3', 'upsert x@5']);
});

test('errors, garbage and breaks of every kind are survived without losing a place', async (t) => {
  const { fake, told, errors, clock, done } = await follow(t, [
    (response) => json(response, 500, statusBody(500, 'InternalError')),
    (response) => response.end('<html>'),
    (response) => response.destroy(),
    (response) => json(response, 200, { kind: 'PodList', metadata: {}, items: [] }),
    (response) => json(response, 200, list(10, object('x', 3))),
    (response) => {
      send(response, 'MODIFIED', object('x', 11));
      response.write('{"type":"MODIF');
      setTimeout(() => response.destroy(), 10);
    },
    (response) => {
      send(response, 'MODIFIED', object('x', 12));
      response.end('garbage\n');
    },
    (response) => json(response, 429, statusBody(429, 'TooManyRequests'), { 'retry-after': '1' }),
    (response) => json(response, 503, statusBody(503, 'ServiceUnavailable')),
    (response) => {
      send(response, 'ERROR', statusBody(500, 'InternalError'));
      response.end();
    },
    (response) => {
      send(response, 'ADDED', { metadata: {} });
      response.end();
    },
    (response) => {
      send(response, 'MODIFIED', object('x', 13));
      response.end();
    },
  ]);
  await done();
  assert.deepEqual(told, ['replace x@3', 'upsert x@11', 'upsert x@12', 'upsert x@13']);
  assert.deepEqual(
    fake.asked.slice(5).map(({ query }) => query.get('resourceVersion')),
    ['10', '11', '12', '12', '12', '12', '12', '13'],
  );
  assert.deepEqual(
    errors.map((error) => isError(error) && error.code),
    [
      'API_STATUS',
      'API_GARBAGE',
      'API_UNREACHABLE',
      'API_GARBAGE',
      'API_UNREACHABLE',
      'API_GARBAGE',
      'API_STATUS',
      'API_STATUS',
      'API_STATUS',
      'API_GARBAGE',
    ],
  );
  assert.ok(clock.waits.every((ms) => ms <= 30_000));
  assert.ok(clock.waits[0]! >= 800 && clock.waits[1]! > clock.waits[0]!, String(clock.waits));
});

test('an event that cannot be read, each time that it is asked for, is passed by a new list', async (t) => {
  const poison = (response: ServerResponse) => {
    response.write('{"type":"MODIFIED","object":');
    response.end('\n');
  };
  const { told, done } = await follow(t, [
    (response) => json(response, 200, list(10, object('x', 3))),
    poison,
    poison,
    poison,
    (response, { query }) => {
      assert.equal(query.has('watch'), false);
      assert.equal(query.has('resourceVersion'), false);
      json(response, 200, list(12, object('x', 11)));
    },
  ]);
  await done();
  assert.deepEqual(told, ['replace x@3', 'upsert x@11']);
});

test('retryNow ends a wait before the next try', async (t) => {
  let away = true;
  const fake = await startFake(t, (_, response) => {
    if (away) response.destroy();
    else json(response, 200, list(10));
  });
  let failures = 0;
  const reflector = reflect<KubeObject>({
    client: fake.client(),
    path: '/api/v1/pods',
    onReplace: () => {},
    onUpsert: () => {},
    onDelete: () => {},
    onError: () => failures++,
    // Nobody but retryNow ends a wait.
    clock: { ...fastClock(), after: () => () => {} },
    log: silent,
  });
  t.after(() => reflector.close());
  await until(() => failures === 1);
  away = false;
  setImmediate(() => reflector.retryNow());
  await reflector.synced;
  assert.equal(fake.asked.length >= 2, true);
});

test('a consumer that throws does not stop the watch', async (t) => {
  const fake = await startFake(t, (asked, response) => {
    if (!asked.query.has('watch')) return json(response, 200, list(1));
    send(response, 'ADDED', object('x', 2));
    return send(response, 'ADDED', object('y', 3));
  });
  const told: string[] = [];
  const reflector = reflect<KubeObject>({
    client: fake.client(),
    path: '/api/v1/pods',
    onReplace: () => assert.fail('as a consumer would'),
    onUpsert: (item) => {
      told.push(item.metadata!.name!);
      throw new Error('as a consumer would');
    },
    onDelete: () => {},
    clock: fastClock(),
    log: silent,
  });
  t.after(() => reflector.close());
  await reflector.synced;
  await until(() => told.length === 2);
});

test('close ends it in every phase, and synced rejects when there was no list', async (t) => {
  const fake = await startFake(t, () => {});
  const outer = new AbortController();
  const start = () =>
    reflect<KubeObject>({
      client: fake.client(),
      path: '/api/v1/pods',
      onReplace: () => assert.fail(),
      onUpsert: () => assert.fail(),
      onDelete: () => assert.fail(),
      clock: fastClock(),
      log: silent,
      signal: outer.signal,
    });
  const one = start();
  await until(() => fake.asked.length === 1);
  await one.close();
  await assert.rejects(one.synced, (error) => isError(error, 'ABORTED'));
  const two = start();
  outer.abort();
  await assert.rejects(two.synced, (error) => isError(error, 'ABORTED'));
  await assert.rejects(start().synced, (error) => isError(error, 'ABORTED'));
});

test('whatever a server does at random, the view converges and nothing is delivered twice', async (t) => {
  const random = seeded(7);
  const truth = new Map<string, number>();
  const history: { version: number; type: string; object: object }[] = [];
  let version = 100;
  let chaos = true;
  const change = () => {
    version++;
    const name = `p${Math.floor(random() * 6)}`;
    const had = truth.get(name);
    if (had !== undefined && random() < 0.4) {
      truth.delete(name);
      history.push({ version, type: 'DELETED', object: object(name, version) });
    } else {
      truth.set(name, version);
      history.push({
        version,
        type: had === undefined ? 'ADDED' : 'MODIFIED',
        object: object(name, version),
      });
    }
  };
  const fake = await startFake(t, (asked, response) => {
    if (chaos) for (let i = 0; i < 3; i++) change();
    const fault = chaos ? random() : 1;
    if (fault < 0.1) return json(response, 500, statusBody(500, 'InternalError'));
    if (fault < 0.15) return response.destroy();
    if (!asked.query.has('watch'))
      return json(response, 200, list(version, ...[...truth].map(([name, at]) => object(name, at))));
    const from = Number(asked.query.get('resourceVersion'));
    if (fault < 0.3) return json(response, 410, statusBody(410, 'Gone'));
    for (const event of history.filter((one) => one.version > from)) {
      send(response, event.type, event.object);
      if (chaos && random() < 0.3) return void response.end(random() < 0.5 ? '{"type"' : '');
    }
    return chaos ? void response.end() : undefined;
  });
  const view = new Map<string, string>();
  const upsert = (item: KubeObject) => {
    const { uid, resourceVersion } = item.metadata!;
    assert.notEqual(view.get(uid!), resourceVersion, 'delivered twice');
    view.set(uid!, resourceVersion!);
  };
  let failures = 0;
  const reflector = reflect<KubeObject>({
    client: fake.client(),
    path: '/api/v1/pods',
    onReplace: (items) => items.forEach(upsert),
    onUpsert: (item) => {
      try {
        upsert(item);
      } catch {
        failures++;
      }
    },
    onDelete: (item) => void view.delete(item.metadata!.uid!),
    clock: fastClock(),
    log: silent,
    random,
  });
  t.after(() => reflector.close());
  await until(() => fake.asked.length > 150);
  chaos = false;
  const wanted = () => JSON.stringify([...truth].map(([name, at]) => [`uid-${name}`, String(at)]).sort());
  await until(() => JSON.stringify([...view].sort()) === wanted());
  assert.equal(failures, 0);
});
