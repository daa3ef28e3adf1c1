import assert from 'node:assert/strict';
import { test } from 'node:test';
import { apiStatus } from '../../../agent/apiserver/client.ts';
import { makeObjectCache } from '../../../agent/apiserver/objects.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { fastClock, json, silent, startFake, statusBody, until } from './fake.ts';

test('thirty pods at once make one request for each object', async (t) => {
  const fake = await startFake(t, (asked, response) => json(response, 200, { data: { path: asked.path } }));
  const cache = makeObjectCache({ client: fake.client(), clock: fastClock(10_000), log: silent });
  t.after(() => cache.close());
  const objects = await Promise.all(
    Array.from({ length: 30 }, (_, i) => {
      cache.retain(`pod${i}`, 'a');
      return cache.get<{ data: object }>('configmaps', 'a', 'kube-root-ca.crt');
    }),
  );
  assert.deepEqual(objects[29]!.data, { path: '/api/v1/namespaces/a/configmaps/kube-root-ca.crt' });
  await cache.get('secrets', 'a', 'kube-root-ca.crt');
  assert.equal(fake.asked.length, 2);
});

test('an object is fresh for its time to live, and until a new pod of its namespace comes', async (t) => {
  const fake = await startFake(t, (_, response) => json(response, 200, { data: {} }));
  const clock = fastClock(10_000);
  const cache = makeObjectCache({ client: fake.client(), clock, log: silent, ttlMs: () => 60_000 });
  t.after(() => cache.close());
  const requestsAfterGet = async () => {
    await cache.get('configmaps', 'a', 'c');
    return fake.asked.length;
  };
  cache.retain('one', 'a');
  assert.equal(await requestsAfterGet(), 1);
  clock.advance(59_000);
  cache.retain('one', 'a');
  cache.retain('elsewhere', 'b');
  assert.equal(await requestsAfterGet(), 1);
  cache.retain('two', 'a');
  assert.equal(await requestsAfterGet(), 2);
  clock.advance(60_001);
  assert.equal(await requestsAfterGet(), 3);
  cache.release('one');
  assert.equal(await requestsAfterGet(), 3);
  cache.release('two');
  cache.release('unknown');
  assert.equal(await requestsAfterGet(), 4, 'what nobody needs is let go of');
});

test('when the apiserver is away the last state is used; when the object is gone it is not', async (t) => {
  let answer: 'fine' | 'away' | 'error' | 'gone' = 'fine';
  const fake = await startFake(t, (_, response) => {
    if (answer === 'away') response.destroy();
    else if (answer === 'error') json(response, 500, statusBody(500, 'InternalError'));
    else if (answer === 'gone') json(response, 404, statusBody(404, 'NotFound'));
    else json(response, 200, { data: { a: 'b' } });
  });
  const clock = fastClock(10_000);
  const cache = makeObjectCache({ client: fake.client(), clock, log: silent });
  t.after(() => cache.close());
  const first = await cache.get('secrets', 'a', 's');
  for (answer of ['away', 'error'] as const) {
    clock.advance(70_000);
    assert.deepEqual(await cache.get('secrets', 'a', 's'), first);
    await assert.rejects(cache.get('secrets', 'a', 'never-seen'));
  }
  answer = 'gone';
  clock.advance(70_000);
  await assert.rejects(cache.get('secrets', 'a', 's'), (error) => apiStatus(error) === 404);
  answer = 'away';
  await assert.rejects(cache.get('secrets', 'a', 's'), (error) => isError(error, 'API_UNREACHABLE'));
});

test('an abort ends one wait, not the fetch that others share', async (t) => {
  let release = () => {};
  const fake = await startFake(t, (_, response) => {
    release = () => json(response, 200, { data: {} });
  });
  const cache = makeObjectCache({ client: fake.client(), clock: fastClock(10_000), log: silent });
  t.after(() => cache.close());
  const controller = new AbortController();
  const one = cache.get('configmaps', 'a', 'c', controller.signal);
  const two = cache.get('configmaps', 'a', 'c');
  await until(() => fake.asked.length === 1);
  controller.abort();
  await assert.rejects(one, (error) => isError(error, 'ABORTED'));
  await assert.rejects(cache.get('configmaps', 'a', 'c', controller.signal), (error) =>
    isError(error, 'ABORTED'),
  );
  release();
  assert.deepEqual(await two, { data: {} });
});

test('services are followed from the first question on, and slimmed', async (t) => {
  const service = (namespace: string, name: string, version: string) => ({
    metadata: {
      name,
      namespace,
      uid: `${namespace}/${name}`,
      resourceVersion: version,
      annotations: { big: 'x' },
    },
    spec: {
      type: 'ClusterIP',
      clusterIP: '10.0.0.1',
      ports: [{ port: 443, targetPort: 6443 }],
      selector: {},
    },
  });
  const fake = await startFake(t, (asked, response) => {
    if (!asked.query.has('watch')) {
      return json(response, 200, {
        kind: 'ServiceList',
        apiVersion: 'v1',
        metadata: { resourceVersion: '5' },
        items: [
          service('default', 'kubernetes', '1'),
          service('default', 'other', '2'),
          service('a', 'web', '3'),
        ],
      });
    }
    return response.write(
      `${JSON.stringify({ type: 'DELETED', object: service('a', 'web', '6') })}\n${JSON.stringify({ type: 'ADDED', object: service('a', 'db', '7') })}\n`,
    );
  });
  const cache = makeObjectCache({ client: fake.client(), clock: fastClock(10_000), log: silent });
  t.after(() => cache.close());
  assert.equal(fake.asked.length, 0, 'nothing before it is needed');
  const names = async (namespace: string) =>
    (await cache.services(namespace)).map((one) => one.metadata!.name).sort();
  await cache.services('a');
  await until(() => fake.asked.length === 2);
  for (let found = await names('a'); found.join() !== 'db,kubernetes'; found = await names('a')) {
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  assert.deepEqual(await names('default'), ['kubernetes', 'other']);
  const [db] = (await cache.services('a')).filter((one) => one.metadata!.name === 'db');
  assert.deepEqual(JSON.parse(JSON.stringify(db)), {
    metadata: { name: 'db', namespace: 'a', uid: 'a/db' },
    spec: { type: 'ClusterIP', clusterIP: '10.0.0.1', ports: [{ port: 443 }] },
  });
  assert.equal(fake.asked[0]!.query.get('labelSelector'), '!service.kubernetes.io/headless');
});

test('without an apiserver there are no services, and objects are NOT_FOUND', async () => {
  const cache = makeObjectCache({ clock: fastClock(10_000), log: silent });
  assert.deepEqual(await cache.services('a'), []);
  await assert.rejects(cache.get('configmaps', 'a', 'c'), (error) => isError(error, 'NOT_FOUND'));
  await cache.close();
});
