/** Nonsense gets an error of the client's making (4xx), never a crash, a hang or a 500. */
import assert from 'node:assert/strict';
import { request } from 'node:http';
import { test } from 'node:test';
import { startDevApiserver } from './apiserver.ts';

/** mulberry32: the same numbers in every run. */
function makeRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let value = Math.imul(state ^ (state >>> 15), 1 | state);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
  };
}

const pod = {
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name: 'a', labels: { a: 'b' }, finalizers: ['x/y'] },
  spec: {
    nodeName: 'n',
    volumes: [{ name: 'v', configMap: { name: 'c' } }],
    containers: [
      { name: 'm', image: 'i:1', ports: [{ containerPort: 80 }], env: [{ name: 'A', value: 'b' }] },
    ],
  },
  status: { phase: 'Running', conditions: [{ type: 'Ready', status: 'True' }], podIPs: [{ ip: '10.0.0.1' }] },
};
const steps = [
  { op: 'add', path: '/metadata/labels/x', value: 'y' },
  { op: 'replace', path: '/spec/containers/0/image', value: 'i:2' },
  { op: 'copy', from: '/metadata/labels', path: '/metadata/annotations' },
];

test('mutated requests', async (t) => {
  const apiserver = await startDevApiserver();
  t.after(() => apiserver.close());
  const random = makeRandom(20_260_723);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;
  const junk = [
    null,
    '',
    'a',
    0,
    -1,
    1e99,
    true,
    [],
    {},
    [null],
    { $patch: 'replace' },
    { $patch: 'delete' },
    '../..',
  ];

  /** Replaces, removes or adds one thing somewhere in a copy of `value`. */
  const mutate = (value: unknown): unknown => {
    if (random() < 0.25 || typeof value !== 'object' || value === null) return pick(junk);
    const copy = structuredClone(value) as Record<string, unknown>;
    const key = pick([...Object.keys(copy), '$retainKeys', '$setElementOrder/conditions', '__proto__', 'x']);
    if (random() < 0.2) delete copy[key];
    else Object.defineProperty(copy, key, { value: mutate(copy[key]), enumerable: true, configurable: true });
    return copy;
  };
  const send = (method: string, path: string, type: string, body: string) =>
    new Promise<number>((resolve, reject) => {
      const url = new URL(apiserver.url);
      const headers = { 'content-type': type };
      const sent = request({ host: url.hostname, port: url.port, method, path, headers }, (response) => {
        // A watch does not end by itself.
        if (path.includes('watch')) response.destroy();
        response.resume().once('close', () => resolve(response.statusCode!));
      });
      sent.on('error', reject).end(method === 'GET' ? undefined : body);
    });
  const pods = '/api/v1/namespaces/default/pods';
  const paths = [
    pods,
    `${pods}/a`,
    `${pods}/a/status`,
    `${pods}/a/binding`,
    '/api/v1/namespaces',
    '/%',
    '//',
    '/api',
  ];
  const queries = [
    '',
    '?limit=x',
    '?continue=9.9',
    '?watch=1&resourceVersion=x',
    '?watch=1&timeoutSeconds=1',
  ];
  const selectors = [
    '?labelSelector=%28%28',
    '?labelSelector=a+in',
    '?fieldSelector=%21',
    '?labelSelector=a%3D%3Db',
  ];
  const types = ['json', 'json-patch+json', 'merge-patch+json', 'strategic-merge-patch+json'];
  const seen = new Set<number>();
  for (let round = 0; round < 1500; round++) {
    if (round % 20 === 0) seen.add(await send('POST', pods, 'application/json', JSON.stringify(pod)));
    const method = pick(['GET', 'POST', 'PUT', 'PATCH', 'PATCH', 'PATCH', 'DELETE']);
    const path = pick(paths) + pick([...queries, '', '', ...selectors]);
    let body = JSON.stringify(random() < 0.3 ? mutate(steps) : mutate(pod)) ?? '';
    if (random() < 0.1) body = body.slice(0, Math.floor(random() * body.length));
    const status = await send(method, path, `application/${pick(types)}`, body);
    assert.ok(status < 500, `${status} for ${method} ${path} with ${body}`);
    seen.add(status);
  }
  for (const status of [200, 201, 400, 404, 422]) assert.ok(seen.has(status), `${status} was never seen`);
});
