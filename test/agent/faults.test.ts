/**
 * The whole agent, as a process, under what goes wrong around it: an apiserver that is slow, refuses, answers
 * nonsense, loses its history or is away; its own death; a machine that lacks conmon or a network.
 */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { get } from 'node:https';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { Node, Pod } from '../../agent/apiserver/types.ts';
import { type DevApiserver, startDevApiserver } from '../peers/apiserver.ts';
import { busyboxImage, pushImage } from '../peers/image.ts';
import { startNode, type TestNode, type TestNodeOptions } from '../peers/node.ts';
import { waitFor } from '../peers/process.ts';
import { hasRegistry, type Registry, startRegistry } from '../peers/registry.ts';

const lacking = [
  ...(process.getuid?.() === 0 ? [] : ['root']),
  ...(hasRegistry() ? [] : ['docker-registry']),
  ...['/usr/bin/conmon', '/usr/lib/cni/bridge', '/usr/share/doc/busybox-static'].filter(
    (path) => !existsSync(path),
  ),
];
const skip = lacking.length === 0 ? false : `needs ${lacking.join(', ')}`;

let registry: Registry;
let image: string;

async function kubeconfigFor(apiserver: DevApiserver, folder: string): Promise<string> {
  const file = join(folder, 'kubeconfig');
  const text = JSON.stringify({
    apiVersion: 'v1',
    kind: 'Config',
    clusters: [{ name: 'test', cluster: { server: apiserver.url } }],
    users: [{ name: 'node', user: {} }],
    contexts: [{ name: 'test', context: { cluster: 'test', user: 'node' } }],
    'current-context': 'test',
  });
  await writeFile(file, text, { mode: 0o600 });
  return file;
}

interface Stage {
  readonly apiserver: DevApiserver;
  readonly node: TestNode;
}

async function setStage(t: TestContext, options: TestNodeOptions = {}): Promise<Stage> {
  const apiserver = await startDevApiserver({ bookmarkMs: 500 });
  t.after(() => apiserver.close());
  const node = await startNode({
    kubeconfig: ({ folder }) => kubeconfigFor(apiserver, folder),
    ...options,
  });
  t.after(() => node.cleanup());
  return { apiserver, node };
}

/** Waits for what has no event here; a dead agent ends the wait at once. */
function until<T>(node: TestNode, what: string, probe: () => Promise<T | undefined>): Promise<T> {
  return waitFor(what, probe, { deadlineMs: 40_000, everyMs: 50, daemon: node.agent });
}

function makePod(name: string, nodeName: string): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace: 'default' },
    spec: {
      nodeName,
      terminationGracePeriodSeconds: 1,
      containers: [{ name: 'main', image, command: ['sh', '-c', 'echo here; exec sleep 100000'] }],
    },
  };
}

const podsPath = '/api/v1/namespaces/default/pods';
const conditionOf = (object: Pod | Node | undefined, wanted: string) =>
  object?.status?.conditions?.find(({ type }) => type === wanted);
const isReady = (object: Pod | Node | undefined) => conditionOf(object, 'Ready')?.status === 'True';

/** The Node; undefined while there is none. */
const nodeOf = async ({ apiserver, node }: Stage) =>
  (await apiserver.call<{ items: Node[] }>('GET', `/api/v1/nodes${byTest}`)).items.find(
    ({ metadata }) => metadata?.name === node.name,
  );

async function podsOf({ apiserver }: Stage): Promise<Map<string, Pod>> {
  const { items } = await apiserver.call<{ items: Pod[] }>('GET', podsPath + byTest);
  return new Map(items.map((pod) => [pod.metadata!.name!, pod]));
}

/** The one container of a pod that runs, as `id restartCount`. */
function running(pod: Pod | undefined): string {
  const status = pod?.status?.containerStatuses?.[0];
  assert.ok(status?.state?.running, `${pod?.metadata?.name}: ${JSON.stringify(pod?.status)}`);
  return `${status.containerID} ${status.restartCount}`;
}

/** What a pod's status amounts to, for messages. */
const summary = (pods: ReadonlyMap<string, Pod>) =>
  [...pods].map(([name, { status, metadata }]) =>
    [name, status?.phase, metadata?.deletionTimestamp === undefined ? '' : 'deleting'].join(' '),
  );

/** Waits until exactly `wanted` pods are there and all of them are Ready. */
async function settle(stage: Stage, after: string, wanted: readonly string[]): Promise<Map<string, Pod>> {
  let last: string[] = [];
  try {
    return await until(stage.node, `the pods after ${after}`, async () => {
      const pods = await podsOf(stage);
      last = summary(pods);
      const right = [...pods].every(
        ([name, pod]) =>
          wanted.includes(name) && isReady(pod) && pod.metadata?.deletionTimestamp === undefined,
      );
      return right && pods.size === wanted.length ? pods : undefined;
    });
  } catch (error) {
    throw new Error(`wanted ${wanted.join(', ')}; there are ${last.join(', ')}`, { cause: error });
  }
}

/** What the test's own requests end in, so that faults are for the agent's only. */
const byTest = '?by=test';
const ofAgent = (_method: string, path: string) => !path.endsWith(byTest);

/** Each begins a fault; what it returns ends it. The apiserver can be told of new and deleted pods meanwhile. */
const troubles: Readonly<Record<string, (apiserver: DevApiserver) => Promise<() => Promise<void>>>> = {
  async 'slow answers'({ faults }) {
    faults.delayMs = 300;
    return async () => {
      faults.delayMs = 0;
    };
  },
  async '429 with Retry-After'({ faults }) {
    faults.failNext(6, { status: 429, retryAfterSeconds: 1 }, ofAgent);
    return async () => {};
  },
  async '500'({ faults }) {
    faults.failNext(12, { status: 500 }, ofAgent);
    return async () => {};
  },
  async 'garbage bodies'({ faults }) {
    faults.garbageNext(8, ofAgent);
    faults.breakWatches();
    return async () => {};
  },
  async 'broken connections'({ faults }) {
    faults.breakNext(8, ofAgent);
    faults.breakWatches();
    return async () => {};
  },
  async 'broken, garbled and ended watches'({ faults }) {
    for (const hurt of [faults.breakWatches, faults.garbleWatches, faults.endWatches]) {
      hurt();
      await delay(150);
    }
    return async () => faults.garbleWatches();
  },
  async 'a history that has expired'({ faults }) {
    // Nothing of what happens until the next list is told by a watch.
    faults.failNext(1, { status: 500 }, (_method, path) => path.includes('watch='));
    faults.breakWatches();
    return async () => faults.expire();
  },
  async 'an apiserver that is away'({ faults }) {
    return async () => {
      await faults.stop();
      await delay(1500);
      await faults.start();
    };
  },
};

/** On nodes side by side: after many broken watches in a row, a reflector waits for long before its next try. */
const groups = [
  ['slow answers', '429 with Retry-After', '500', 'broken, garbled and ended watches'],
  ['a history that has expired', 'garbage bodies'],
  ['broken connections', 'an apiserver that is away'],
];

async function throughTroubles(t: TestContext, group: readonly string[]): Promise<void> {
  const stage = await setStage(t);
  const { apiserver, node } = stage;
  await until(node, 'the node to be Ready', async () => isReady(await nodeOf(stage)) || undefined);
  const { pid } = node.agent;
  const create = (name: string) => apiserver.call('POST', podsPath + byTest, makePod(name, node.name));
  const remove = (name: string) => apiserver.call('DELETE', `${podsPath}/${name}${byTest}`);
  await create('rock');
  await create('pebble-0');
  const rock = running((await settle(stage, 'the start', ['rock', 'pebble-0'])).get('rock'));
  assert.match(rock, / 0$/);

  for (const [round, what] of group.entries()) {
    const [old, next] = [`pebble-${round}`, `pebble-${round + 1}`];
    await t.test(what, async () => {
      const end = await troubles[what]!(apiserver);
      await create(next);
      await remove(old);
      // Came and went while nobody may have seen it.
      await create('mayfly');
      await remove('mayfly');
      await end();
      const pods = await settle(stage, what, ['rock', next]);
      assert.equal(running(pods.get('rock')), rock);
      assert.match(running(pods.get(next)), / 0$/);
    });
  }

  assert.equal(node.agent.endedBy, undefined);
  assert.equal(node.agent.pid, pid);
  await remove('rock');
  await remove(`pebble-${group.length}`);
  await settle(stage, 'the end', []);
  await node.tracesBecome([]);
  assert.doesNotMatch(await node.log(1 << 22), /a failure that nobody handled|failed unexpectedly/);
}

/** The pods as the node's own API tells them. */
async function ownPods(node: TestNode): Promise<Pod[]> {
  const text = await new Promise<string>((resolve, reject) => {
    const url = `https://127.0.0.1:${node.ports.api}/pods`;
    get(url, { rejectUnauthorized: false }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (chunk) => {
        body += chunk;
      });
      response.on('end', () =>
        response.statusCode === 200 ? resolve(body) : reject(new Error(`${response.statusCode} ${body}`)),
      );
    }).on('error', reject);
  });
  return (JSON.parse(text) as { items: Pod[] }).items;
}

describe('an agent and its troubles', { skip, concurrency: true }, () => {
  before(async () => {
    registry = await startRegistry();
    image = `${registry.host}/test/box:1`;
    await pushImage(registry.host, 'test/box:1', busyboxImage());
  });
  after(async () => registry?.close());

  for (const group of groups)
    test(`containers run on, the agent lives, all ends as wanted: ${group.join(', ')}`, (t) =>
      throughTroubles(t, group));

  test('a static pod outlives its agent, without an apiserver', async (t) => {
    const open = {
      authentication: { anonymous: { enabled: true }, webhook: { enabled: false } },
      authorization: { mode: 'AlwaysAllow' },
    };
    const node = await startNode({ config: open });
    t.after(() => node.cleanup());
    const manifest = join(node.paths.staticPodPath, 'clock.json');
    await writeFile(manifest, JSON.stringify(makePod('clock', node.name)));
    const isUp = async () => {
      const pods = await ownPods(node);
      return pods.length === 1 && isReady(pods[0]) ? running(pods[0]) : undefined;
    };
    const first = await until(node, 'the static pod', isUp);
    for (let round = 0; round < 2; round++) {
      await node.restart9();
      assert.equal(await until(node, 'the static pod after a kill', isUp), first);
    }
    assert.match(first, / 0$/);
    await rm(manifest);
    await node.tracesBecome([]);
  });

  test('a missing conmon and a missing network are said at the start and in Ready', async (t) => {
    const stage = await setStage(t, {
      network: false,
      config: { keelson: { conmon: '/nonexistent/conmon' } },
    });
    const message = await until(stage.node, 'the node to say why it is not Ready', async () => {
      const ready = conditionOf(await nodeOf(stage), 'Ready');
      return ready?.status === 'False' ? ready.message : undefined;
    });
    const log = await stage.node.log();
    for (const said of [message, log]) {
      assert.match(said, /\/nonexistent\/conmon/);
      assert.match(said, /install[^"]*\bconmon\b/);
      assert.match(said, /install[^"]*\bcontainernetworking-plugins\b/);
    }
  });

  test('a node becomes Ready when its network configuration appears', async (t) => {
    const stage = await setStage(t, { network: false });
    const { node, apiserver } = stage;
    await until(node, 'the node not to be Ready', async () => {
      const ready = conditionOf(await nodeOf(stage), 'Ready');
      return ready?.status === 'False' && ready.message?.includes('containernetworking-plugins')
        ? true
        : undefined;
    });
    await apiserver.call('POST', podsPath, makePod('early', node.name));
    await until(node, 'the pod to say why it waits', async () => {
      const { items } = await apiserver.call<{ items: { reason?: string; message?: string }[] }>(
        'GET',
        '/api/v1/namespaces/default/events',
      );
      return items.find(
        ({ reason, message }) =>
          reason === 'NetworkNotReady' && message?.includes('containernetworking-plugins'),
      );
    });
    await mkdir(node.paths.cniConfDir, { recursive: true });
    const staged = join(node.paths.folder, 'net.conflist');
    await writeFile(
      staged,
      JSON.stringify({
        cniVersion: '1.0.0',
        name: `late-${node.name}`,
        plugins: [
          {
            type: 'bridge',
            bridge: node.bridge,
            isGateway: true,
            ipam: {
              type: 'host-local',
              dataDir: node.paths.ipamDir,
              ranges: [[{ subnet: `${node.subnet}.0/24` }]],
            },
          },
        ],
      }),
    );
    await rename(staged, join(node.paths.cniConfDir, '10-late.conflist'));
    await until(node, 'the node to be Ready', async () => isReady(await nodeOf(stage)) || undefined);
    const pods = await settle(stage, 'the network came', ['early']);
    assert.match(running(pods.get('early')), / 0$/);
    await apiserver.call('DELETE', `${podsPath}/early`);
    await settle(stage, 'the deletion', []);
  });
});
