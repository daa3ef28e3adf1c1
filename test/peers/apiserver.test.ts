/** The development apiserver does what kube-apiserver does, and the faults that it is there for. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { get } from 'node:http';
import { type TestContext, test } from 'node:test';
import { type DevApiserver, type DevApiserverOptions, startDevApiserver } from './apiserver.ts';
import { checks, withApiserver } from './apiserver-conformance.ts';

async function start(t: TestContext, options?: DevApiserverOptions): Promise<DevApiserver> {
  const apiserver = await startDevApiserver(options);
  t.after(() => apiserver.close());
  return apiserver;
}

for (const [name, check] of Object.entries(checks)) {
  test(name, async (t) => {
    const { url } = await start(t);
    await withApiserver(url, undefined, check);
  });
}

const configMaps = '/api/v1/namespaces/default/configmaps';
const make = (apiserver: DevApiserver, name: string) =>
  apiserver.call('POST', configMaps, { metadata: { name } });

test('requests fail as often as asked, with Retry-After, and change nothing', async (t) => {
  const apiserver = await start(t);
  apiserver.faults.failNext(1, { status: 429, retryAfterSeconds: 3 });
  const answer = await fetch(`${apiserver.url}${configMaps}`, {
    method: 'POST',
    body: '{"metadata":{"name":"a"}}',
  });
  assert.deepEqual([answer.status, answer.headers.get('retry-after')], [429, '3']);
  await answer.body?.cancel();
  apiserver.faults.failNext(1, { status: 500 }, (method) => method === 'POST');
  await apiserver.call('GET', configMaps);
  await assert.rejects(make(apiserver, 'a'), /500/);
  await make(apiserver, 'a');
});

test('answers are garbage or break off after the work was done', async (t) => {
  const apiserver = await start(t);
  apiserver.faults.garbageNext(1);
  await assert.rejects(make(apiserver, 'a'), SyntaxError);
  apiserver.faults.breakNext(1);
  await assert.rejects(make(apiserver, 'b'), TypeError);
  await assert.rejects(make(apiserver, 'a'), /already exists/);
  await assert.rejects(make(apiserver, 'b'), /already exists/);
});

/** Opens a watch and collects what it sends until it ends. */
async function collect(apiserver: DevApiserver, query: string): Promise<{ text: Promise<string> }> {
  const request = get(`${apiserver.url}${configMaps}?watch=1&${query}`);
  const [response] = (await once(request, 'response')) as [import('node:http').IncomingMessage];
  const text = (async () => {
    let all = '';
    try {
      for await (const chunk of response) all += String(chunk);
    } catch {
      return `${all}(broken)`;
    }
    return all;
  })();
  return { text };
}

test('watches end, break and are garbled when told to', async (t) => {
  const apiserver = await start(t);
  for (const [act, expected] of [
    ['endWatches', /^$/],
    ['breakWatches', /^\(broken\)$/],
    ['garbleWatches', /^\{"type":"MODIFIED","object":\{"kind":$/],
  ] as const) {
    const { metadata } = await apiserver.call<{ metadata: { resourceVersion: string } }>('GET', configMaps);
    const { text } = await collect(apiserver, `resourceVersion=${metadata.resourceVersion}`);
    assert.equal(apiserver.watches, 1);
    apiserver.faults[act]();
    assert.match(await text, expected);
  }
});

test('a watch from before the history is told 410, one from within it what happened', async (t) => {
  const apiserver = await start(t, { historyLimit: 2 });
  const { metadata } = await apiserver.call<{ metadata: { resourceVersion: string } }>('GET', configMaps);
  const old = metadata.resourceVersion;
  await make(apiserver, 'a');
  const kept = await collect(apiserver, `resourceVersion=${old}&timeoutSeconds=1`);
  assert.match(await kept.text, /^\{"type":"ADDED"/);
  apiserver.faults.expire();
  const lost = await collect(apiserver, `resourceVersion=${old}`);
  const event = JSON.parse(await lost.text) as { type: string; object: { code: number; reason: string } };
  assert.deepEqual([event.type, event.object.code, event.object.reason], ['ERROR', 410, 'Expired']);
});

test('the history is bounded', async (t) => {
  const apiserver = await start(t, { historyLimit: 2 });
  const { metadata } = await apiserver.call<{ metadata: { resourceVersion: string } }>('GET', configMaps);
  for (let i = 0; i < 10; i++) await make(apiserver, `c${i}`);
  const lost = await collect(apiserver, `resourceVersion=${metadata.resourceVersion}`);
  assert.match(await lost.text, /"ERROR".*"code":410/);
});

test('bookmarks come to those who allow them', async (t) => {
  const apiserver = await start(t, { bookmarkMs: 10 });
  const { metadata } = await apiserver.call<{ metadata: { resourceVersion: string } }>('GET', configMaps);
  const from = `resourceVersion=${metadata.resourceVersion}&timeoutSeconds=1`;
  const [with_, without] = await Promise.all([
    collect(apiserver, `${from}&allowWatchBookmarks=true`),
    collect(apiserver, from),
  ]);
  assert.match(await with_.text, /"type":"BOOKMARK".*"resourceVersion":"\d+"/);
  assert.equal(await without.text, '');
});

test('a stopped server comes back on its port with its data', async (t) => {
  const apiserver = await start(t);
  await make(apiserver, 'a');
  const { text } = await collect(apiserver, '');
  await apiserver.faults.stop();
  assert.match(await text, /"name":"a".*\n\(broken\)$/s);
  await assert.rejects(apiserver.call('GET', configMaps), TypeError);
  await apiserver.faults.start();
  await apiserver.call('GET', `${configMaps}/a`);
});
