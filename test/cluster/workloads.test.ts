/** Deployments, jobs and daemon sets on a keelson node, with the agent killed and the apiserver away in the middle. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { waitFor } from '../peers/process.ts';
import { assertSameContainers, pageOf, type Stage, setStage, skip, webServer } from './stage.ts';

test('workloads', { skip }, async (t) => {
  const stage = await setStage(t);
  const nothing = await stage.node.traces();
  await t.test('a deployment becomes available, is scaled and rolled', () => deployment(stage));
  await t.test('nothing of it is left on the node', () => stage.node.tracesBecome(nothing));
  await t.test('a job completes', () => job(stage));
  await t.test('a daemon set runs', () => daemonSet(stage));
  await t.test('nothing of them is left on the node', () => stage.node.tracesBecome(nothing));
});

const labels = { app: 'web' };
const selector = { matchLabels: labels };
const template = (image: string) => ({
  metadata: { labels },
  spec: { terminationGracePeriodSeconds: 2, containers: [webServer(image)] },
});

async function deployment({ cluster, node, images, ...stage }: Stage): Promise<void> {
  const namespace = 'deployment';
  await stage.makeNamespace(namespace);
  const kubectl = (...args: string[]) => cluster.kubectl(['-n', namespace, ...args], { deadlineMs: 200_000 });
  const rolledOut = () => kubectl('rollout', 'status', 'deployment/web', '--timeout=180s');
  await cluster.apply({
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: { name: 'web', namespace },
    spec: { replicas: 3, selector, template: template(images.one) },
  });
  await rolledOut();
  const three = await stage.readyPods(namespace, 3);
  for (const pod of three) assert.equal(await pageOf(pod), 'one');
  assert.equal(
    new Set(three.map(({ status }) => status!.podIP)).size,
    3,
    'every pod has an address of its own',
  );

  // Scaled, and the agent killed while the new pods start.
  const first = await stage.containers(namespace);
  await kubectl('scale', 'deployment/web', '--replicas=10');
  await node.restart9();
  await rolledOut();
  const ten = await stage.readyPods(namespace, 10);
  assertSameContainers(first, await stage.containers(namespace));
  for (const pod of ten) assert.equal(await pageOf(pod), 'one');

  // The apiserver goes, the agent dies meanwhile and starts without it: what runs goes on running.
  const before = await stage.containers(namespace);
  await cluster.stopApiserver();
  await node.restart9();
  for (const pod of ten) assert.equal(await pageOf(pod), 'one');
  await cluster.startApiserver();
  await stage.nodeReports();
  await stage.readyPods(namespace, 10);
  assertSameContainers(before, await stage.containers(namespace));

  // Rolled, and the agent killed in the middle.
  await kubectl('set', 'image', 'deployment/web', `web=${images.two}`);
  await waitFor(
    'a pod of the new image',
    async () => {
      const pods = await stage.pods(namespace);
      return (
        pods.some(({ spec, status }) => spec!.containers[0]!.image === images.two && status?.podIP) ||
        undefined
      );
    },
    { deadlineMs: 60_000 },
  );
  await node.restart9();
  await rolledOut();
  for (const pod of await stage.readyPods(namespace, 10)) {
    assert.equal(await pageOf(pod), 'two');
    assert.equal(pod.status!.containerStatuses![0]!.restartCount, 0);
  }

  await kubectl('scale', 'deployment/web', '--replicas=0');
  await stage.readyPods(namespace, 0);
  await kubectl('delete', 'deployment/web');
}

async function job({ cluster, node, images, ...stage }: Stage): Promise<void> {
  const namespace = 'job';
  await stage.makeNamespace(namespace);
  const script = 'for i in $(seq 1 40); do echo "$NAME line $i"; sleep 0.1; done';
  const env = [{ name: 'NAME', valueFrom: { fieldRef: { fieldPath: 'metadata.name' } } }];
  const containers = [{ name: 'main', image: images.one, command: ['sh', '-c', script], env }];
  await cluster.apply({
    apiVersion: 'batch/v1',
    kind: 'Job',
    metadata: { name: 'count', namespace },
    spec: { completions: 3, parallelism: 3, template: { spec: { restartPolicy: 'Never', containers } } },
  });
  const running = await waitFor(
    'three running pods',
    async () => {
      const pods = await stage.pods(namespace);
      return pods.filter(({ status }) => status?.phase === 'Running').length === 3 ? pods : undefined;
    },
    { deadlineMs: 60_000 },
  );
  // Their containers end while the agent is away.
  await node.kill9();
  await new Promise((resolve) => setTimeout(resolve, 5000));
  await node.start();
  await cluster.kubectl(
    ['-n', namespace, 'wait', '--for=condition=complete', 'job/count', '--timeout=120s'],
    {
      deadlineMs: 130_000,
    },
  );
  const pods = await stage.pods(namespace);
  assert.deepEqual(
    pods.map(({ metadata }) => metadata!.uid).sort(),
    running.map(({ metadata }) => metadata!.uid).sort(),
    'no pod was made twice',
  );
  for (const pod of pods) {
    const { restartCount, state } = pod.status!.containerStatuses![0]!;
    assert.equal(restartCount, 0);
    assert.deepEqual([state!.terminated!.exitCode, state!.terminated!.reason], [0, 'Completed']);
    const log = await cluster.kubectl(['-n', namespace, 'logs', pod.metadata!.name!]);
    const wanted = Array.from({ length: 40 }, (_, index) => `${pod.metadata!.name} line ${index + 1}`);
    assert.deepEqual(log.trimEnd().split('\n'), wanted, 'every line once');
  }
  await cluster.kubectl(['-n', namespace, 'delete', 'job/count', '--wait']);
  await stage.readyPods(namespace, 0);
}

async function daemonSet({ cluster, node, images, ...stage }: Stage): Promise<void> {
  const namespace = 'daemonset';
  await stage.makeNamespace(namespace);
  await cluster.apply({
    apiVersion: 'apps/v1',
    kind: 'DaemonSet',
    metadata: { name: 'web', namespace },
    spec: { selector, template: template(images.one) },
  });
  const status = ['-n', namespace, 'rollout', 'status', 'daemonset/web', '--timeout=120s'];
  await cluster.kubectl(status, { deadlineMs: 130_000 });
  const [pod] = await stage.readyPods(namespace, 1);
  assert.equal(pod!.spec!.nodeName, node.name);
  const before = await stage.containers(namespace);
  await node.restart9();
  await stage.nodeReports();
  await stage.readyPods(namespace, 1);
  assertSameContainers(before, await stage.containers(namespace));
  await cluster.kubectl(['-n', namespace, 'delete', 'daemonset/web', '--wait']);
  await stage.readyPods(namespace, 0);
}
