/** A stock kubelet on keelson's CRI socket, with a real control plane and no containerd. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Node, Pod } from 'kubernetes-types/core/v1.js';
import { kubeletProgram } from '../peers/binaries.ts';
import { type Cluster, startCluster } from '../peers/cluster.ts';
import { busyboxImage, pushImage } from '../peers/image.ts';
import { type Kubelet, startKubelet } from '../peers/kubelet.ts';
import { startNode, type TestNode } from '../peers/node.ts';
import { waitFor } from '../peers/process.ts';
import { startRegistry } from '../peers/registry.ts';
import { isReady, skip as noCluster, pageOf, webServer } from './stage.ts';

const kubelet = noCluster === false ? await kubeletProgram() : '';
const skip = noCluster || (typeof kubelet === 'string' ? false : kubelet.missing);

test('a stock kubelet runs a deployment on keelson', { skip }, async (t) => {
  assert.ok(typeof kubelet === 'string');
  const registry = await startRegistry(t);
  const image = `${registry.host}/test/web:1`;
  await pushImage(registry.host, 'test/web:1', busyboxImage({ page: 'one\n' }));
  let cluster: Cluster | undefined;
  let node: TestNode | undefined;
  let started: Kubelet | undefined;
  t.after(async () => {
    if (!t.passed) {
      t.diagnostic(`the end of kubelet's log:\n${await started?.daemon.tail(16_000)}`);
      t.diagnostic(`the end of the runtime's log:\n${await node?.log(8000)}`);
    }
    await started?.end();
    await node?.cleanup();
    await cluster?.close();
  });
  const plane = await startCluster();
  cluster = plane;
  const runtime = await startNode({ command: 'runtime' });
  node = runtime;
  const socket = join(runtime.paths.runDir, 'keelson.sock');
  await waitFor(
    'the runtime',
    async () => ((await runtime.log()).includes('the runtime is up') ? true : undefined),
    { deadlineMs: 30_000, daemon: runtime.agent },
  );
  started = await startKubelet({
    program: kubelet,
    node: runtime,
    kubeconfig: await plane.makeNodeKubeconfig(runtime.name),
    clientCaFile: plane.caFile,
    endpoint: `unix://${socket}`,
  });
  const running = started.daemon;
  const until = <T>(what: string, probe: () => Promise<T | undefined>, deadlineMs = 120_000) =>
    waitFor(what, probe, { deadlineMs, everyMs: 200, daemon: running });
  const found = await until('the node to be ready', async () => {
    const object = await plane.read<Node>(`/api/v1/nodes/${runtime.name}`);
    const conditions = object?.status?.conditions ?? [];
    return conditions.some(({ type, status }) => type === 'Ready' && status === 'True') ? object : undefined;
  });
  assert.match(found.status!.nodeInfo!.containerRuntimeVersion, /^keelson:\/\/\d/);
  assert.match(found.status!.nodeInfo!.kubeletVersion, /^v1\.\d+\.\d+$/);
  /** What of pods is on the machine, without the kubelet itself. */
  const traces = async () => (await runtime.traces()).filter((line) => !line.includes('--root-dir'));
  const nothing = await traces();

  const namespace = 'default';
  const labels = { app: 'web' };
  await plane.apply({
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: { name: 'web', namespace },
    spec: {
      replicas: 2,
      selector: { matchLabels: labels },
      template: {
        metadata: { labels },
        spec: {
          terminationGracePeriodSeconds: 2,
          containers: [
            {
              ...webServer(image),
              command: [
                'sh',
                '-c',
                'echo serving; httpd -p 8080 -h /www; trap "exit 0" TERM; sleep 100000 & wait',
              ],
              resources: { requests: { cpu: '10m', memory: '16Mi' }, limits: { memory: '64Mi' } },
              readinessProbe: { exec: { command: ['test', '-d', '/www'] }, periodSeconds: 1 },
            },
          ],
        },
      },
    },
  });
  const kubectl = (...args: string[]) => plane.kubectl(['-n', namespace, ...args], { deadlineMs: 200_000 });
  await kubectl('rollout', 'status', 'deployment/web', '--timeout=120s');
  const list = async () =>
    (await plane.read<{ items: Pod[] }>(`/api/v1/namespaces/${namespace}/pods`))!.items;
  const pods = await list();
  assert.equal(pods.filter(isReady).length, 2);
  for (const pod of pods) {
    assert.equal(await pageOf(pod), 'one');
    assert.match(pod.status!.containerStatuses![0]!.containerID!, /^keelson:\/\/[0-9a-f]{64}$/);
    assert.equal((await kubectl('logs', pod.metadata!.name!)).trim(), 'serving');
  }
  assert.equal(
    (await kubectl('exec', pods[0]!.metadata!.name!, '--', 'cat', '/www/index.html')).trim(),
    'one',
    'through kubelet to the streaming server',
  );

  await until('kubelet to know what the pods use', async () => {
    const metrics = await kubectl('get', '--raw', `/api/v1/nodes/${runtime.name}/proxy/metrics/resource`);
    const used = (pod: Pod) =>
      new RegExp(`^container_memory_working_set_bytes\\{.*pod="${pod.metadata!.name}".*\\} [1-9]`, 'm').test(
        metrics,
      );
    return pods.every(used) ? true : undefined;
  });

  // The runtime is killed and comes back: containers go on, kubelet goes on.
  const ids = pods.map((pod) => pod.status!.containerStatuses![0]!.containerID).sort();
  await runtime.restart9();
  await kubectl('scale', 'deployment/web', '--replicas=3');
  await kubectl('rollout', 'status', 'deployment/web', '--timeout=120s');
  const three = await list();
  assert.equal(three.filter(isReady).length, 3);
  const now = three.map((pod) => pod.status!.containerStatuses![0]!.containerID);
  assert.deepEqual(
    ids.filter((id) => !now.includes(id)),
    [],
    'the containers of before are still there',
  );

  await kubectl('delete', 'deployment/web', '--timeout=120s');
  await until('the pods to be gone', async () => ((await list()).length === 0 ? true : undefined));
  let left: string[] = [];
  await until('nothing to be left', async () => {
    left = (await traces()).filter((line) => !nothing.includes(line));
    return left.length === 0 ? true : undefined;
  }).catch((error: unknown) => assert.fail(`left behind:\n${left.join('\n')}\n${String(error)}`));
});
