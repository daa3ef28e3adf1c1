import assert from 'node:assert/strict';
import { test } from 'node:test';
import { apiStatus, resourceOf, retryAfterMs } from '../../../agent/apiserver/client.ts';
import { isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { json, startFake, statusBody, until } from './fake.ts';

const code = (wanted: string) => (error: unknown) => error instanceof KeelsonError && error.code === wanted;

test('a call sends what it should and counts itself', async (t) => {
  const fake = await startFake(t, (asked, response) => json(response, 200, { kind: 'Pod', got: asked.body }));
  const client = fake.client();
  await client.get('/api/v1/namespaces/a/pods/b', { query: { x: 'ä &' } });
  await client.patch('/api/v1/namespaces/a/pods/b/status', 'strategic', { status: { phase: 'Running' } });
  await client.create('/api/v1/nodes', {});
  await client.replace('/apis/coordination.k8s.io/v1/namespaces/k/leases/n', {});
  await client.delete('/api/v1/namespaces/a/pods/b', { gracePeriodSeconds: 0 });
  const [get, patch, , , remove] = fake.asked;
  assert.equal(get!.query.get('x'), 'ä &');
  assert.equal(get!.headers['user-agent'], 'keelson-test');
  assert.equal(get!.headers.authorization, undefined);
  assert.equal(patch!.headers['content-type'], 'application/strategic-merge-patch+json');
  assert.equal(patch!.body, '{"status":{"phase":"Running"}}');
  assert.equal(remove!.body, '{"gracePeriodSeconds":0}');
  assert.deepEqual(Object.fromEntries(client.requests), {
    'GET pods': 1,
    'PATCH pods/status': 1,
    'CREATE nodes': 1,
    'REPLACE leases': 1,
    'DELETE pods': 1,
  });
});

test('resourceOf finds the resource in every form of path', () => {
  assert.equal(resourceOf('/api/v1/namespaces'), 'namespaces');
  assert.equal(resourceOf('/api/v1/namespaces/a'), 'namespaces');
  assert.equal(resourceOf('/api/v1/namespaces/a/serviceaccounts/b/token'), 'serviceaccounts/token');
  assert.equal(resourceOf('/apis/storage.k8s.io/v1/csinodes/n'), 'csinodes');
  assert.equal(resourceOf('/'), 'other');
});

test('a Status body becomes API_STATUS with its reason', async (t) => {
  const fake = await startFake(t, (_, response) =>
    json(response, 409, { ...statusBody(409, 'Conflict', 'changed'), details: { retryAfterSeconds: 2 } }),
  );
  const error = await fake
    .client()
    .get('/api/v1/nodes/n')
    .then(
      () => assert.fail(),
      (caught: unknown) => caught,
    );
  assert.ok(isError(error, 'API_STATUS'));
  assert.equal(apiStatus(error), 409);
  assert.equal(error.details['reason'], 'Conflict');
  assert.equal(retryAfterMs(error), 2000);
  assert.match(error.message, /changed \(409 Conflict\)/);
});

test("a proxy's HTML error is an API_STATUS too, and HTML as a success is garbage", async (t) => {
  const fake = await startFake(t, (asked, response) => {
    response.writeHead(asked.path.endsWith('bad') ? 502 : 200, { 'content-type': 'text/html' });
    response.end('<html>oops');
  });
  const client = fake.client();
  await assert.rejects(client.get('/api/v1/nodes/bad'), (error) => apiStatus(error) === 502);
  await assert.rejects(client.get('/api/v1/nodes/good'), code('API_GARBAGE'));
});

test('garbage of every kind is API_GARBAGE', async (t) => {
  const bodies = [
    '',
    'null',
    '[]',
    '3',
    '"x"',
    '{',
    '{"items":[null],"metadata":{}}',
    '{"items":{},"metadata":{}}',
    '{"items":[]}',
  ];
  let next = '';
  const fake = await startFake(t, (_, response) => response.end(next));
  const client = fake.client();
  for (next of bodies) await assert.rejects(client.list('/api/v1/pods'), code('API_GARBAGE'), next);
});

test('an answer that is too large is given up', async (t) => {
  const fake = await startFake(t, (_, response) => {
    response.writeHead(200);
    const more = () => {
      while (!response.destroyed && response.write('x'.repeat(65536)));
    };
    response.on('drain', more);
    more();
  });
  await assert.rejects(
    fake.client({ maxAnswerBytes: 1 << 20 }).get('/api/v1/nodes/n'),
    /larger than 1048576/,
  );
});

test('429 with Retry-After is waited for, within the deadline only', async (t) => {
  let times = 0;
  const fake = await startFake(t, (asked, response) => {
    if (asked.path.endsWith('/never'))
      return json(response, 429, statusBody(429, 'TooManyRequests'), { 'retry-after': '30' });
    if (times++ < 2) return json(response, 429, statusBody(429, 'TooManyRequests'), { 'retry-after': '0' });
    return json(response, 200, { ok: true });
  });
  const client = fake.client();
  assert.deepEqual(await client.get('/api/v1/nodes/later'), { ok: true });
  assert.equal(times, 3);
  const error = await client.get('/api/v1/nodes/never', { deadlineMs: 5000 }).then(
    () => assert.fail(),
    (caught: unknown) => caught,
  );
  assert.equal(apiStatus(error), 429);
  assert.equal(retryAfterMs(error), 30_000);
});

for (const [name, answer] of [
  ['headers', () => {}],
  ['body', (response: import('node:http').ServerResponse) => response.write('{"a":')],
] as const) {
  test(`a server that is slow with its ${name} meets the deadline, and an abort ends the call`, async (t) => {
    const fake = await startFake(t, (_, response) => answer(response));
    const client = fake.client();
    await assert.rejects(client.get('/api/v1/nodes/slow', { deadlineMs: 50 }), code('DEADLINE_EXCEEDED'));
    const controller = new AbortController();
    const asked = (node: string) => fake.asked.some(({ path }) => path.endsWith(node));
    const call = client.get('/api/v1/nodes/ended', { signal: controller.signal });
    // Of the first call nobody knows whether it got there within its deadline.
    await until(() => asked('/ended'));
    controller.abort();
    await assert.rejects(call, code('ABORTED'));
    await assert.rejects(client.get('/api/v1/nodes/never', { signal: controller.signal }), code('ABORTED'));
    assert.ok(!asked('/never'));
  });
}

test('a broken connection is API_UNREACHABLE', async (t) => {
  const fake = await startFake(t, (asked, response) => {
    if (asked.path.endsWith('late')) response.write('{"a"');
    setImmediate(() => response.destroy());
  });
  const client = fake.client();
  await assert.rejects(client.get('/api/v1/nodes/early'), code('API_UNREACHABLE'));
  await assert.rejects(client.get('/api/v1/nodes/late'), code('API_UNREACHABLE'));
  await client.close();
  await assert.rejects(client.get('/api/v1/nodes/n'), code('ABORTED'));
});

test('watches and slow calls do not keep a lease from being renewed', async (t) => {
  const fake = await startFake(t, (asked, response) => {
    if (asked.path.includes('leases')) json(response, 200, {});
    else if (asked.query.has('watch')) response.writeHead(200).flushHeaders();
  });
  const client = fake.client();
  const controller = new AbortController();
  const { signal } = controller;
  const busy: Promise<unknown>[] = [];
  for (let i = 0; i < 20; i++) {
    busy.push(client.watch('/api/v1/pods', { signal })[Symbol.asyncIterator]().next());
    busy.push(client.get(`/api/v1/namespaces/a/pods/${i}`, { signal }));
  }
  const settled = Promise.allSettled(busy);
  await until(() => fake.asked.length >= 28);
  await client.replace('/apis/coordination.k8s.io/v1/namespaces/k/leases/n', {});
  controller.abort();
  await settled;
});

test("neither a hanging status of the Node nor its list keeps a lease, nor reviews a pod's status", async (t) => {
  const fake = await startFake(t, (asked, response) => {
    if (/leases|status$/.test(asked.path)) json(response, 200, {});
  });
  const client = fake.client({ clientQps: 1, clientBurst: 1 });
  const controller = new AbortController();
  const { signal } = controller;
  const busy: Promise<unknown>[] = [
    client.patch('/api/v1/nodes/n', 'strategic', {}, { signal }),
    client.list('/api/v1/nodes', { signal }),
  ];
  for (let i = 0; i < 20; i++) {
    busy.push(client.create('/apis/authentication.k8s.io/v1/tokenreviews', {}, { signal }));
    busy.push(client.create('/apis/authorization.k8s.io/v1/subjectaccessreviews', {}, { signal }));
  }
  const settled = Promise.allSettled(busy);
  await until(() => fake.asked.length >= 6);
  await client.replace('/apis/coordination.k8s.io/v1/namespaces/k/leases/n', {}, { deadlineMs: 5000 });
  await client.patch('/api/v1/namespaces/a/pods/p/status', 'strategic', {}, { deadlineMs: 5000 });
  controller.abort();
  await settled;
});

test('list items get the kind of their list', async (t) => {
  const fake = await startFake(t, (_, response) =>
    json(response, 200, {
      kind: 'PodList',
      apiVersion: 'v1',
      metadata: { resourceVersion: '5' },
      items: [{ metadata: {} }],
    }),
  );
  const list = await fake.client().list('/api/v1/pods');
  assert.deepEqual(list, {
    metadata: { resourceVersion: '5' },
    items: [{ metadata: {}, kind: 'Pod', apiVersion: 'v1' }],
  });
});

test('a watch yields events whatever way their bytes are cut', async (t) => {
  const event = { type: 'ADDED', object: { metadata: { name: 'ä€𝄞' } } };
  const bytes = Buffer.from(
    `${JSON.stringify(event)}\n\n${JSON.stringify(event)}\r\n${JSON.stringify(event)}`,
  );
  const fake = await startFake(t, async (_, response) => {
    response.socket?.setNoDelay(true);
    for (const byte of bytes) {
      response.write(Buffer.from([byte]));
      await new Promise((resolve) => setImmediate(resolve));
    }
    response.end();
  });
  const seen = await Array.fromAsync(
    fake.client().watch('/api/v1/pods', { query: { resourceVersion: '1' } }),
  );
  assert.deepEqual(seen, [event, event, event]);
  assert.equal(fake.asked[0]!.query.get('watch'), '1');
});

test('a watch tells a refusal, garbage, a line without end and a break apart', async (t) => {
  const line = `${JSON.stringify({ type: 'ADDED', object: {} })}\n`;
  const fake = await startFake(t, (asked, response) => {
    const how = asked.query.get('how');
    if (how === 'refused') return json(response, 410, statusBody(410, 'Expired'));
    response.write(line);
    if (how === 'garbage') response.end('{"type":"ADD');
    if (how === 'unknown') response.end('{"type":"NEWER","object":{}}\n');
    if (how === 'broken') setTimeout(() => response.destroy(), 20);
    if (how === 'huge') {
      const more = () => {
        while (!response.destroyed && response.write('x'.repeat(1 << 20)));
      };
      response.on('drain', more);
      more();
    }
  });
  const client = fake.client();
  const read = async (how: string, signal?: AbortSignal) => {
    let events = 0;
    try {
      for await (const _ of client.watch('/api/v1/pods', { query: { how }, signal })) events++;
      return assert.fail('no error');
    } catch (error) {
      return { events, code: (error as KeelsonError).code, status: apiStatus(error) };
    }
  };
  assert.deepEqual(await read('refused'), { events: 0, code: 'API_STATUS', status: 410 });
  assert.deepEqual(await read('garbage'), { events: 1, code: 'API_GARBAGE', status: undefined });
  assert.deepEqual(await read('unknown'), { events: 1, code: 'API_GARBAGE', status: undefined });
  assert.deepEqual(await read('broken'), { events: 1, code: 'API_UNREACHABLE', status: undefined });
  assert.deepEqual(await read('huge'), { events: 1, code: 'API_GARBAGE', status: undefined });
  assert.deepEqual(await read('silent', AbortSignal.timeout(50)), {
    events: 1,
    code: 'DEADLINE_EXCEEDED',
    status: undefined,
  });
});

test('resetConnections breaks what hangs, and the client goes on', async (t) => {
  const fake = await startFake(t, (asked, response) => {
    if (asked.path.endsWith('fine')) json(response, 200, {});
  });
  const client = fake.client();
  const hanging = client.get('/api/v1/nodes/hangs');
  await until(() => fake.asked.length === 1);
  client.resetConnections();
  await assert.rejects(hanging, code('API_UNREACHABLE'));
  await client.get('/api/v1/nodes/fine');
});
