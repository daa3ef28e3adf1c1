import assert from 'node:assert/strict';
import type { ServerResponse } from 'node:http';
import { type TestContext, test } from 'node:test';
import type { EventRecorder } from '../../../agent/apiserver/types.ts';
import { keepLease } from '../../../agent/node/lease.ts';
import { startNode } from '../../../agent/node/node.ts';
import { makeRuntimeReporter } from '../../../agent/node/report.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { type Asked, fastClock, json, silent, startFake, statusBody, until } from '../apiserver/fake.ts';
import { config, facts, runtime } from './sample.ts';

interface Stored {
  metadata: Record<string, unknown> & { name?: string; uid?: string; resourceVersion?: string };
  status?: { conditions?: { type: string; status: string }[] } & Record<string, unknown>;
  [name: string]: unknown;
}

/** A very small apiserver: one Node, one Lease, merge patches, and faults before it answers. */
function cluster() {
  const objects = new Map<string, Stored>();
  const watches = new Set<ServerResponse>();
  let version = 10;
  let uids = 0;
  const state = {
    objects,
    fault: undefined as undefined | ((asked: Asked, response: ServerResponse) => boolean),
    change(path: string, next: Stored | undefined, type: string) {
      const old = objects.get(path);
      const object = next ?? old!;
      object.metadata.resourceVersion = String(++version);
      if (next === undefined) objects.delete(path);
      else objects.set(path, next);
      if (path.startsWith('/api/v1/nodes')) {
        for (const response of watches) response.write(`${JSON.stringify({ type, object })}\n`);
      }
    },
    handler(asked: Asked, response: ServerResponse): void {
      if (state.fault?.(asked, response)) return;
      const path = asked.path.replace(/\/status$/, '');
      const existing = objects.get(path);
      const body = asked.body === '' ? undefined : JSON.parse(asked.body);
      if (asked.query.has('watch')) {
        response.flushHeaders();
        watches.add(response);
        response.on('close', () => watches.delete(response));
      } else if (asked.method === 'GET' && asked.query.has('fieldSelector')) {
        json(response, 200, {
          kind: 'NodeList',
          metadata: { resourceVersion: String(version) },
          items: [...objects].filter(([key]) => key.startsWith(path)).map(([, value]) => value),
        });
      } else if (asked.method === 'POST') {
        const key = `${path}/${body.metadata.name}`;
        if (objects.has(key)) {
          json(response, 409, statusBody(409, 'AlreadyExists'));
          return;
        }
        body.metadata.uid = `uid-${++uids}`;
        state.change(key, body, 'ADDED');
        json(response, 201, body);
      } else if (existing === undefined) json(response, 404, statusBody(404, 'NotFound'));
      else if (asked.method === 'GET') json(response, 200, existing);
      else if (asked.method === 'PUT') {
        if (body.metadata.resourceVersion !== existing.metadata.resourceVersion) {
          json(response, 409, statusBody(409, 'Conflict'));
          return;
        }
        state.change(path, body, 'MODIFIED');
        json(response, 200, body);
      } else {
        const conditions = new Map(existing.status?.conditions?.map((one) => [one.type, one]));
        for (const one of body.status?.conditions ?? []) conditions.set(one.type, one);
        const next: Stored = {
          ...existing,
          metadata: { ...existing.metadata, ...body.metadata },
          status: { ...existing.status, ...body.status, conditions: [...conditions.values()] },
        };
        state.change(path, next, 'MODIFIED');
        json(response, 200, next);
      }
    },
  };
  return state;
}

const nodePath = '/api/v1/nodes/edge-1';
const leasePath = '/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1';

async function start(
  t: TestContext,
  more: { config?: Partial<typeof config>; before?: (state: ReturnType<typeof cluster>) => void } = {},
) {
  const state = cluster();
  more.before?.(state);
  const fake = await startFake(t, state.handler);
  const events: string[] = [];
  const recorder: EventRecorder = { event: (_, __, reason) => void events.push(reason) };
  let conditions = runtime.conditions;
  const node = startNode({
    client: fake.client(),
    config: { ...config, ...more.config },
    facts: { read: async () => facts },
    runtime: {
      status: async () => conditions,
      version: async () => ({ runtimeName: 'keelson', runtimeVersion: '0.1.0' }),
      handlers: async () => runtime.handlers!,
      features: async () => runtime.features!,
    },
    images: { listImages: async () => [] },
    events: recorder,
    clock: fastClock(9000),
    log: silent,
    kubeletVersion: 'v1.37.0-keelson.0.1.0',
    random: () => 0.5,
  });
  t.after(() => node.close());
  const ready = () =>
    (state.objects.get(nodePath)?.status?.conditions ?? []).find((one) => one.type === 'Ready')?.status;
  return {
    state,
    fake,
    events,
    node,
    ready,
    setNetwork(up: boolean) {
      conditions = runtime.conditions.map((one) =>
        one.type === 'NetworkReady' ? { ...one, status: up } : one,
      );
    },
    patches: () =>
      fake.asked.filter(({ path, method }) => method === 'PATCH' && path.endsWith('/status')).length,
  };
}

test('a node is created Ready in one request, with its lease, and is then quiet', async (t) => {
  const { state, node, events, ready, patches } = await start(t);
  await node.registered;
  await until(() => state.objects.has(leasePath));
  assert.equal(ready(), 'True');
  assert.deepEqual(events, [
    'Starting',
    'NodeHasSufficientMemory',
    'NodeHasNoDiskPressure',
    'NodeHasSufficientPID',
    'NodeReady',
  ]);
  const lease = state.objects.get(leasePath)!;
  assert.deepEqual(lease.metadata['ownerReferences'], [
    { apiVersion: 'v1', kind: 'Node', name: 'edge-1', uid: 'uid-1' },
  ]);
  const spec = lease['spec'] as Record<string, unknown>;
  assert.equal(spec['leaseDurationSeconds'], 40);
  assert.match(String(spec['renewTime']), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/);
  node.poke();
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.equal(patches(), 0);
  assert.deepEqual(node.addresses(), ['10.0.0.5']);
  assert.equal(node.current()?.metadata?.uid, 'uid-1');
  assert.equal(node.objectTtlMs(), 60_000);
});

test('a poke writes a changed condition at once, and events tell of it', async (t) => {
  const { node, events, ready, setNetwork } = await start(t);
  await node.registered;
  setNetwork(false);
  node.poke();
  await until(() => ready() === 'False');
  setNetwork(true);
  node.poke();
  await until(() => ready() === 'True' && events.at(-1) === 'NodeReady');
  assert.deepEqual(events.slice(-2), ['NodeNotReady', 'NodeReady']);
});

test('a controller that gave the node up is told otherwise at once', async (t) => {
  const { state, node, ready } = await start(t);
  await node.registered;
  await until(() => state.objects.has(leasePath));
  const given = structuredClone(state.objects.get(nodePath)!);
  given.status!.conditions!.find((one) => one.type === 'Ready')!.status = 'Unknown';
  state.change(nodePath, given, 'MODIFIED');
  await until(() => ready() === 'True');
});

test('a Node that somebody deleted is registered again', async (t) => {
  const { state, node } = await start(t);
  await node.registered;
  await until(() => state.objects.has(leasePath));
  state.change(nodePath, undefined, 'DELETED');
  await until(
    () =>
      state.objects.get(nodePath)?.metadata.uid !== undefined &&
      node.current()?.metadata?.uid !== 'uid-1' &&
      node.current() !== undefined,
  );
  assert.equal(state.objects.get(nodePath)!.metadata.uid, node.current()!.metadata!.uid);
});

test('an existing Node keeps its taints and gets its labels and status; a reboot is told', async (t) => {
  const { state, events, node, ready } = await start(t, {
    before: (cluster) => {
      const existing = {
        metadata: { name: 'edge-1', uid: 'old', labels: { theirs: 'x' } },
        spec: { taints: [{ key: 'theirs', effect: 'NoSchedule' }] },
        status: { nodeInfo: { bootID: 'boot-0' }, conditions: [{ type: 'Ready', status: 'Unknown' }] },
      };
      cluster.change(nodePath, existing, 'ADDED');
    },
    config: { registerWithTaints: [{ key: 'mine', effect: 'NoSchedule' }] } as never,
  });
  await node.registered;
  await until(() => ready() === 'True');
  const stored = state.objects.get(nodePath)!;
  assert.deepEqual((stored['spec'] as { taints: object[] }).taints, [
    { key: 'theirs', effect: 'NoSchedule' },
  ]);
  assert.equal((stored.metadata['labels'] as Record<string, string>)['kubernetes.io/hostname'], 'edge-1');
  await until(() => events.includes('Rebooted'));
});

test('an apiserver that fails in every way is outlived', async (t) => {
  const faults: ((response: ServerResponse) => void)[] = [
    (response) => response.destroy(),
    (response) => response.end('<html>'),
    (response) => json(response, 500, statusBody(500, 'InternalError')),
    (response) => json(response, 429, statusBody(429, 'TooManyRequests')),
    (response) => json(response, 403, statusBody(403, 'Forbidden')),
    (response) => response.end('{"kind":"Nonsense"}'),
  ];
  let next = 0;
  const { state, node, ready, setNetwork } = await start(t, {
    before: (cluster) => {
      cluster.fault = (asked, response) => {
        if (asked.method === 'GET' && asked.path === nodePath && next < 5) {
          faults[next++]!(response);
          return true;
        }
        return false;
      };
    },
  });
  await node.registered;
  assert.equal(next, 5);
  await until(() => state.objects.has(leasePath));
  let failed = 0;
  state.fault = (asked, response) => {
    if (asked.method !== 'PATCH' || failed >= faults.length - 1) return false;
    faults[failed++]!(response);
    return true;
  };
  setNetwork(false);
  node.poke();
  await until(() => ready() === 'False');
  assert.equal(failed, faults.length - 1);
});

test('with registerNode false it waits for somebody to make the Node', async (t) => {
  const { state, fake, node, ready } = await start(t, { config: { registerNode: false } });
  await until(() => fake.asked.length >= 3);
  assert.ok(fake.asked.every(({ method }) => method === 'GET'));
  state.change(nodePath, { metadata: { name: 'edge-1', uid: 'theirs' } }, 'ADDED');
  await node.registered;
  await until(() => ready() === 'True');
});

test('close ends everything, and registered rejects when it was not', async (t) => {
  const { node } = await start(t, {
    before: (cluster) => {
      cluster.fault = (_, response) => void response.flushHeaders() === undefined;
    },
  });
  await node.close();
  await assert.rejects(node.registered, (error) => isError(error, 'ABORTED'));
});

test('a lease is made, renewed, taken back after a conflict, and made again when it is gone', async (t) => {
  const state = cluster();
  const fake = await startFake(t, state.handler);
  const lease = keepLease({
    client: fake.client(),
    nodeName: 'edge-1',
    nodeUid: () => 'u',
    durationSeconds: 4,
    clock: fastClock(30_001),
    log: silent,
    random: () => 0,
  });
  t.after(() => lease.close());
  const puts = () => fake.asked.filter(({ method }) => method === 'PUT').length;
  await until(() => puts() >= 3);
  const gets = () => fake.asked.filter(({ method }) => method === 'GET').length;
  assert.equal(gets(), 1);
  state.change(leasePath, structuredClone(state.objects.get(leasePath)!), 'MODIFIED');
  await until(() => gets() === 2);
  const before = puts();
  await until(() => puts() > before);
  state.change(leasePath, undefined, 'DELETED');
  await until(() => state.objects.has(leasePath));
});

test('a lease that is not answered is tried again, and dead connections are broken', async (t) => {
  const state = cluster();
  let silentCalls = 0;
  /** Deadlines are over when a call has got to the server that keeps silent, and for no other call. */
  const deadlines = new Set<() => void>();
  const fake = await startFake(t, (asked, response) => {
    if (silentCalls >= 3) return state.handler(asked, response);
    silentCalls++;
    for (const end of [...deadlines]) end();
  });
  let resets = 0;
  let recovered = 0;
  const lease = keepLease({
    client: fake.client({
      clock: {
        ...fastClock(),
        after: (_, callback) => {
          deadlines.add(callback);
          return () => void deadlines.delete(callback);
        },
      },
    }),
    nodeName: 'edge-1',
    nodeUid: () => undefined,
    durationSeconds: 40,
    clock: fastClock(9000),
    log: silent,
    random: () => 0,
    onRepeatedTimeout: () => resets++,
    onRecovered: () => recovered++,
  });
  t.after(() => lease.close());
  await until(() => recovered === 1);
  assert.equal(resets, 2);
  assert.ok(state.objects.has(leasePath));
});

test('a runtime that hangs or throws is reported, not waited for', async () => {
  let mode: 'hang' | 'throw' | 'fine' = 'throw';
  let calls = 0;
  const report = makeRuntimeReporter({
    runtime: {
      status: () => {
        calls++;
        if (mode === 'hang') return new Promise(() => {});
        return mode === 'fine' ? Promise.resolve(runtime.conditions) : Promise.reject(new Error('broken'));
      },
      version: () => Promise.reject(new Error('broken')),
      handlers: async () => runtime.handlers!,
      features: () =>
        mode === 'fine' ? Promise.resolve(runtime.features!) : Promise.reject(new Error('broken')),
    },
    images: { listImages: () => Promise.reject(new Error('broken')) },
    clock: fastClock(),
  });
  assert.equal((await report()).failure, 'broken');
  mode = 'hang';
  calls = 0;
  assert.equal((await report()).failure, 'its status did not answer within 5000 ms');
  mode = 'fine';
  assert.match((await report()).failure!, /did not answer/);
  assert.equal(calls, 1, 'a call that hangs is not made again');
});
