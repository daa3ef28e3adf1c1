/** What pods ask for and get: resizes in place, what waits for room, critical pods that make room, pods as a whole. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import type { Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { isReady, makePod, setStage, skip, statusOf } from './stage.ts';

const namespace = 'resources';
type Amounts = Record<string, string>;
type Needs = { requests?: Amounts; limits?: Amounts };
type Now = { resources?: Needs; allocatedResources?: Amounts };
type Condition = { type: string; reason?: string; message?: string; observedGeneration?: number };

const unified = existsSync('/sys/fs/cgroup/cgroup.controllers');
const files = unified
  ? { memory: 'memory.max', cpu: 'cpu.max', weight: 'cpu.weight' }
  : { memory: 'memory.limit_in_bytes', cpu: 'cpu.cfs_quota_us', weight: 'cpu.shares' };

/** The first word of a file of a cgroup below the node's root. */
async function read(root: string, path: string, file: string): Promise<string> {
  const controller = unified ? '' : `/${file.split('.')[0]}`;
  return (await readFile(`/sys/fs/cgroup${controller}${root}${path}/${file}`, 'utf8')).trim().split(/\s/)[0]!;
}

const conditionOf = (pod: Pod, type: string): Condition | undefined =>
  (pod.status?.conditions as Condition[] | undefined)?.find((condition) => condition.type === type);
const nowOf = (pod: Pod) => statusOf(pod) as unknown as Now;
const settled = (pod: Pod) =>
  conditionOf(pod, 'PodResizePending') === undefined && conditionOf(pod, 'PodResizeInProgress') === undefined;

test('resources', { skip, timeout: 600_000 }, async (t) => {
  const stage = await setStage(t);
  const { cluster, node, images } = stage;
  await stage.makeNamespace(namespace);
  const sleeper = (resources: Needs, more: object = {}): PodSpec => ({
    nodeName: node.name,
    containers: [{ name: 'main', image: images.one, command: ['sleep', '100000'], resources, ...more }],
  });
  const resize = (name: string, resources: Needs) =>
    cluster.kubectl([
      ...['patch', 'pod', name, '-n', namespace, '--subresource', 'resize', '-p'],
      JSON.stringify({ spec: { containers: [{ name: 'main', resources }] } }),
    ]);
  const remove = (name: string) =>
    cluster.kubectl(['delete', 'pod', name, '-n', namespace, '--wait=true'], { deadlineMs: 60_000 });
  const needs = (cpu: string, memory: string): Needs => ({
    requests: { cpu, memory },
    limits: { cpu, memory },
  });

  await t.test('a resize up and down is done in place, on the pod and its container', async () => {
    await cluster.apply(makePod(namespace, 'inplace', sleeper(needs('100m', '64Mi'))));
    const first = await stage.pod(namespace, 'inplace', isReady);
    assert.deepEqual(nowOf(first).resources, needs('100m', '64Mi'));
    assert.deepEqual(nowOf(first).allocatedResources, { cpu: '100m', memory: '64Mi' });
    const group = `/kubepods/pod${first.metadata!.uid}`;
    const id = statusOf(first)!.containerID!;
    const own = `${group}/${id.replace(/^.*\/\//, '')}`;
    const steps: [string, string, number, number][] = [
      ['200m', '128Mi', 20_000, 128 * 2 ** 20],
      ['50m', '96Mi', 5000, 96 * 2 ** 20],
      ['300m', '32Mi', 30_000, 32 * 2 ** 20],
    ];
    for (const [cpu, memory, quota, bytes] of steps) {
      await resize('inplace', needs(cpu, memory));
      const done = await stage.pod(
        namespace,
        'inplace',
        (pod) => nowOf(pod).allocatedResources?.['cpu'] === cpu && settled(pod),
      );
      assert.deepEqual(nowOf(done).resources, needs(cpu, memory));
      for (const path of [group, own]) {
        assert.equal(Number(await read(node.cgroupRoot, path, files.cpu)), quota, path);
        assert.equal(Number(await read(node.cgroupRoot, path, files.memory)), bytes, path);
      }
      assert.equal(statusOf(done)!.containerID, id);
      assert.equal(statusOf(done)!.restartCount, 0);
    }
    await stage.event(namespace, 'inplace', ({ reason }) => reason === 'ResizeStarted');
    await stage.event(
      namespace,
      'inplace',
      ({ reason, message }) =>
        reason === 'ResizeCompleted' && message!.startsWith('Pod resize completed: {"containers":[{'),
    );
  });

  await t.test('a memory limit below what is in use is an error until it fits', async () => {
    const hungry = [
      'sh',
      '-c',
      'dd if=/dev/zero of=/dev/shm/x bs=1M count=24; touch /tmp/full; sleep 100000',
    ];
    await cluster.apply(
      makePod(
        namespace,
        'full',
        sleeper(needs('100m', '64Mi'), {
          command: hungry,
          readinessProbe: { exec: { command: ['test', '-f', '/tmp/full'] }, periodSeconds: 1 },
        }),
      ),
    );
    await stage.pod(namespace, 'full', isReady);
    await resize('full', needs('100m', '16Mi'));
    const failed = await stage.pod(
      namespace,
      'full',
      (pod) => conditionOf(pod, 'PodResizeInProgress')?.reason === 'Error',
    );
    assert.match(
      conditionOf(failed, 'PodResizeInProgress')!.message!,
      /cannot decrease memory limits: .*below current usage/,
    );
    assert.equal(nowOf(failed).resources?.limits?.['memory'], '64Mi');
    assert.equal(nowOf(failed).allocatedResources?.['memory'], '16Mi');
    await stage.event(namespace, 'full', ({ reason }) => reason === 'ResizeError');
    await cluster.kubectl(['delete', 'pod', 'full', '-n', namespace, '--wait=false']);
  });

  await t.test('a resizePolicy restarts its container, once', async () => {
    const resizePolicy = [
      { resourceName: 'cpu', restartPolicy: 'NotRequired' },
      { resourceName: 'memory', restartPolicy: 'RestartContainer' },
    ];
    await cluster.apply(makePod(namespace, 'anew', sleeper(needs('100m', '64Mi'), { resizePolicy })));
    const first = await stage.pod(namespace, 'anew', isReady);
    await resize('anew', needs('150m', '64Mi'));
    const same = await stage.pod(
      namespace,
      'anew',
      (pod) => nowOf(pod).allocatedResources?.['cpu'] === '150m' && settled(pod),
    );
    assert.equal(statusOf(same)!.containerID, statusOf(first)!.containerID);
    await resize('anew', needs('150m', '96Mi'));
    const restarted = await stage.pod(
      namespace,
      'anew',
      (pod) => statusOf(pod)?.restartCount === 1 && isReady(pod) && settled(pod),
    );
    assert.deepEqual(nowOf(restarted).resources, needs('150m', '96Mi'));
    const group = `/kubepods/pod${first.metadata!.uid}`;
    assert.equal(Number(await read(node.cgroupRoot, group, files.memory)), 96 * 2 ** 20);
    await node.restart9();
    await stage.nodeReports();
    const later = await stage.pod(namespace, 'anew', isReady);
    assert.equal(statusOf(later)!.restartCount, 1, 'another agent restarts nothing');
    assert.ok(settled(later));
    await remove('anew');
  });

  await t.test(
    'a resize without room is deferred, over a restart of the agent too, and done once there is room',
    async () => {
      await cluster.apply(
        makePod(namespace, 'holder', sleeper({ requests: { cpu: '1' } })),
        makePod(namespace, 'waiter', sleeper({ requests: { cpu: '100m' } })),
      );
      await stage.pod(namespace, 'holder', isReady);
      const first = await stage.pod(namespace, 'waiter', isReady);
      await resize('waiter', { requests: { cpu: '1200m' } });
      const pending = (pod: Pod) => conditionOf(pod, 'PodResizePending')?.reason === 'Deferred';
      const deferred = await stage.pod(namespace, 'waiter', pending);
      const condition = conditionOf(deferred, 'PodResizePending')!;
      assert.match(
        condition.message!,
        /^Node didn't have enough resource: cpu, requested: 1200, used: \d+, capacity: \d+$/,
      );
      assert.equal(condition.observedGeneration, 2);
      assert.deepEqual(nowOf(deferred).allocatedResources, { cpu: '100m' });
      await stage.event(namespace, 'waiter', ({ reason }) => reason === 'ResizeDeferred');
      await node.restart9();
      await stage.nodeReports();
      const kept = await stage.pod(namespace, 'waiter', (pod) => pending(pod) && isReady(pod));
      assert.deepEqual(nowOf(kept).allocatedResources, { cpu: '100m' });
      assert.equal(statusOf(kept)!.containerID, statusOf(first)!.containerID);
      await remove('holder');
      const given = await stage.pod(
        namespace,
        'waiter',
        (pod) => nowOf(pod).allocatedResources?.['cpu'] === '1200m' && settled(pod),
      );
      assert.equal(statusOf(given)!.restartCount, 0);
      const group = `/kubepods/burstable/pod${first.metadata!.uid}`;
      if (!unified)
        assert.equal(await read(node.cgroupRoot, group, files.weight), String(Math.floor(1200 * 1.024)));
      await remove('waiter');
    },
  );

  await t.test('a Burstable pod counts in the shares of its class', async () => {
    if (unified) return;
    const shares = (path: string) => read(node.cgroupRoot, path, files.weight);
    const before = Number(await shares('/kubepods/burstable'));
    await cluster.apply(makePod(namespace, 'counted', sleeper({ requests: { cpu: '500m' } })));
    await stage.pod(namespace, 'counted', isReady);
    const after = Number(await shares('/kubepods/burstable'));
    assert.ok(after >= 512 && after - (before <= 2 ? 0 : before) === 512, `${before} and then ${after}`);
    assert.equal(await shares('/kubepods/besteffort'), '2');
    await remove('counted');
  });

  await t.test(
    'a pod as a whole: its limits are those of its cgroup and of containers without own',
    async () => {
      const resources = {
        requests: { cpu: '100m', memory: '64Mi' },
        limits: { cpu: '200m', memory: '128Mi' },
      };
      await cluster.apply(makePod(namespace, 'whole', { ...sleeper({}), resources } as PodSpec));
      const pod = await stage.pod(namespace, 'whole', isReady);
      assert.equal(pod.status!.qosClass, 'Burstable');
      const group = `/kubepods/burstable/pod${pod.metadata!.uid}`;
      const own = `${group}/${statusOf(pod)!.containerID!.replace(/^.*\/\//, '')}`;
      for (const path of [group, own]) {
        assert.equal(Number(await read(node.cgroupRoot, path, files.cpu)), 20_000);
        assert.equal(Number(await read(node.cgroupRoot, path, files.memory)), 128 * 2 ** 20);
      }
      const told = pod.status as unknown as Now;
      assert.deepEqual(told.resources, resources);
      assert.deepEqual(told.allocatedResources, resources.requests);
      await remove('whole');
    },
  );

  await t.test(
    'a RuntimeClass: its overhead is the pod’s, and a handler that the node lacks is told of',
    async () => {
      const classOf = (name: string, handler: string, more: object = {}) => ({
        apiVersion: 'node.k8s.io/v1',
        kind: 'RuntimeClass',
        metadata: { name },
        handler,
        ...more,
      });
      const overhead = { podFixed: { cpu: '50m', memory: '16Mi' } };
      await cluster.apply(classOf('heavy', 'runc', { overhead }), classOf('unknown', 'no-such-handler'));
      await cluster.apply(
        makePod(namespace, 'heavy', { ...sleeper(needs('100m', '64Mi')), runtimeClassName: 'heavy' }),
        makePod(namespace, 'unknown', { ...sleeper({}), runtimeClassName: 'unknown' }),
      );
      const pod = await stage.pod(namespace, 'heavy', isReady);
      assert.deepEqual(pod.spec!.overhead, overhead.podFixed);
      const group = `/kubepods/pod${pod.metadata!.uid}`;
      assert.equal(Number(await read(node.cgroupRoot, group, files.cpu)), 15_000);
      assert.equal(Number(await read(node.cgroupRoot, group, files.memory)), 80 * 2 ** 20);
      await stage.event(
        namespace,
        'unknown',
        ({ reason, message }) =>
          reason === 'FailedCreatePodSandBox' &&
          message!.startsWith('Failed to create pod sandbox: ') &&
          message!.includes('no-such-handler'),
      );
      const stuck = await stage.pod(namespace, 'unknown', () => true);
      assert.equal(stuck.status!.phase, 'Pending');
      await remove('heavy');
      await remove('unknown');
    },
  );

  await t.test('what the node cannot hold is refused with the words of kubelet', async () => {
    await cluster.apply(makePod(namespace, 'huge', sleeper({ requests: { cpu: '500' } })));
    const refused = await stage.pod(namespace, 'huge', ({ status }) => status?.phase === 'Failed');
    assert.equal(refused.status!.reason, 'OutOfcpu');
    assert.match(
      refused.status!.message!,
      /^Pod was rejected: Node didn't have enough resource: cpu, requested: 500000, used: \d+, capacity: \d+$/,
    );
    await stage.event(namespace, 'huge', ({ reason }) => reason === 'OutOfcpu');
  });

  await t.test('a critical pod pushes the least out that it needs', async () => {
    await cluster.apply(
      makePod(namespace, 'small', sleeper({ requests: { cpu: '300m' } })),
      makePod(namespace, 'large', sleeper({ requests: { cpu: '1' } })),
    );
    await stage.pod(namespace, 'small', isReady);
    await stage.pod(namespace, 'large', isReady);
    const spec = { ...sleeper({ requests: { cpu: '1200m' } }), priorityClassName: 'system-cluster-critical' };
    await cluster.apply(makePod(namespace, 'critical', spec));
    await stage.pod(namespace, 'critical', isReady);
    const gone = await stage.pod(namespace, 'large', ({ status }) => status?.phase === 'Failed');
    assert.equal(gone.status!.reason, 'Preempting');
    assert.equal(gone.status!.message, 'Preempted in order to admit critical pod');
    assert.equal(conditionOf(gone, 'DisruptionTarget')?.reason, 'TerminationByKubelet');
    await stage.event(namespace, 'large', ({ reason }) => reason === 'Preempting');
    const small = await stage.pod(namespace, 'small', () => true);
    assert.equal(small.status!.phase, 'Running', 'what need not go stays');
  });
});
