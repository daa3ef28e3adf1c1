/** Static pods from a server: what is good is told, what is wrong leaves everything as it is. */
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type TestContext, test } from 'node:test';
import type { Pod } from '../../../agent/apiserver/types.ts';
import { decodeManifests } from '../../../agent/manifests/decode.ts';
import { watchManifestUrl } from '../../../agent/manifests/url.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { handClock, until } from '../pods/fakes.ts';

const item = (name: string) => ({
  metadata: { name, namespace: 'ns' },
  spec: { containers: [{ name: 'c', image: 'i' }] },
});
const pod = (name: string) => ({ apiVersion: 'v1', kind: 'Pod', ...item(name) });
const list = (...names: string[]) =>
  JSON.stringify({ apiVersion: 'v1', kind: 'PodList', items: names.map(item) });

interface Answer {
  readonly status?: number;
  readonly body?: string;
  readonly location?: string;
}

async function serve(t: TestContext) {
  const state = { answer: {} as Answer, requests: [] as (string | undefined)[] };
  const server = createServer((request, response) => {
    state.requests.push(request.headers['metadata-flavor'] as string | undefined);
    const {
      status = 200,
      body = '',
      location,
    } = request.url === '/elsewhere' ? { body: list('moved') } : state.answer;
    response.writeHead(status, location === undefined ? {} : { location });
    response.end(body);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const told: (readonly Pod[])[] = [];
  const clock = handClock(Date.parse('2026-01-01T00:00:00Z'));
  state.answer = { status: 503 };
  const watch = watchManifestUrl({
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/pods?token=x`,
    headers: { 'Metadata-Flavor': ['Google'] },
    everyMs: 20_000,
    nodeName: 'Node-1',
    sink: {
      replaceAll: (source, pods) => {
        assert.equal(source, 'url');
        told.push(pods);
      },
      upsert: assert.fail,
      remove: assert.fail,
    },
    log: makeLogger('silent'),
    clock,
  });
  t.after(async () => {
    await watch.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  const names = () => told.map((pods) => pods.map(({ metadata }) => metadata!.name).join(' '));
  /** The next look, with this answer; the request after it proves that it was dealt with. */
  const look = async (answer: Answer) => {
    state.answer = answer;
    for (let round = 0; round < 2; round++) {
      const before = state.requests.length;
      await until(() => {
        void clock.advance(20_000);
        return state.requests.length > before;
      }, 'a request');
    }
  };
  return { state, told, names, look };
}

test('lists and single pods, JSON and YAML, are told when they change; trouble changes nothing', async (t) => {
  const { state, told, names, look } = await serve(t);
  await until(() => state.requests.length > 0, 'the first request');
  assert.equal(told.length, 0);
  await look({ body: list('a', 'b') });
  await until(() => told.length === 1, 'the list');
  assert.deepEqual(names(), ['a-node-1 b-node-1']);
  const { annotations, uid } = told[0]![0]!.metadata!;
  assert.equal(annotations!['kubernetes.io/config.source'], 'http');
  assert.equal(annotations!['kubernetes.io/config.hash'], uid);
  assert.equal(told[0]![0]!.spec!.nodeName, 'Node-1');
  for (const bad of [
    { status: 404 },
    { body: '' },
    { body: '{' },
    { body: list('a', 'a') },
    { body: 'kind: Node' },
  ])
    await look(bad);
  await look({ body: list('a', 'b') });
  assert.equal(told.length, 1, 'nothing new');
  await look({
    body: 'apiVersion: v1\nkind: Pod\nmetadata: {name: one}\nspec: {containers: [{name: c, image: i}]}\n',
  });
  await until(() => told.length === 2, 'the single pod');
  await look({ status: 302, location: '/elsewhere' });
  await until(() => told.length === 3, 'the redirect');
  await look({ body: list() });
  await until(() => told.length === 4, 'the empty list');
  assert.deepEqual(names().slice(1), ['one-node-1', 'moved-node-1', '']);
  assert.ok(state.requests.every((header) => header === 'Google'));
});

test('a list of pods: each is checked, and none may be there twice', async () => {
  const origin = { url: 'http://x/', nodeName: 'n', seen: '' };
  const uids = async (text: string, url = origin.url) =>
    (await decodeManifests(text, { ...origin, url })).map(({ metadata }) => metadata!.uid);
  const [first] = await uids(list('a'));
  assert.deepEqual(await uids(JSON.stringify(pod('a'))), [first], 'the same pod');
  assert.notDeepEqual(await uids(list('a'), 'http://y/'), [first]);
  for (const bad of [
    list('a', 'a'),
    JSON.stringify({ apiVersion: 'v1', kind: 'PodList', items: [7] }),
    list('A_'),
  ])
    await assert.rejects(uids(bad), (error) => isError(error, 'POD_INVALID'));
});
