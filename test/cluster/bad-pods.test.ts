/** Pods that cannot run say why, in the words that users know, and do not disturb those that can. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Container, Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { freePorts } from '../peers/process.ts';
import { assertSameContainers, makePod, pageOf, setStage, skip, statusOf, webServer } from './stage.ts';

const namespace = 'bad';

interface BadPod {
  readonly spec: PodSpec;
  /** Reasons of the waiting container, any of which is right. */
  readonly waiting: readonly string[];
  /** What its message, or the message of the event, must say. */
  readonly message: RegExp;
  /** Default Pending. */
  readonly phase?: RegExp;
  /** Reason of the event about it, and what that says. */
  readonly event: readonly [string, RegExp];
}

function badPods(registry: string, image: string): Readonly<Record<string, BadPod>> {
  const one = (more: Partial<Container>): PodSpec => ({
    containers: [{ name: 'main', image, command: ['sleep', '100000'], ...more }],
  });
  const env = (valueFrom: object) => one({ env: [{ name: 'X', valueFrom }] });
  return {
    'unknown-image': {
      spec: one({ image: `${registry}/test/none:1` }),
      waiting: ['ErrImagePull', 'ImagePullBackOff'],
      message: /test\/none:1/,
      event: ['Failed', /test\/none:1/],
    },
    'unknown-registry': {
      spec: one({ image: '127.0.0.1:1/test/none:1' }),
      waiting: ['ErrImagePull', 'ImagePullBackOff', 'RegistryUnavailable'],
      message: /127\.0\.0\.1:1/,
      event: ['Failed', /127\.0\.0\.1:1/],
    },
    'invalid-image-name': {
      spec: one({ image: 'Not/A:Valid:Name' }),
      waiting: ['InvalidImageName'],
      message: /Not\/A:Valid:Name/,
      event: ['InspectFailed', /Not\/A:Valid:Name/],
    },
    'never-pulled': {
      spec: one({ image: `${registry}/test/none:1`, imagePullPolicy: 'Never' }),
      waiting: ['ErrImageNeverPull'],
      message: /test\/none:1.* is not present/,
      event: ['ErrImageNeverPull', /test\/none:1.* is not present/],
    },
    'no-such-command': {
      spec: one({ command: ['/no/such/command'] }),
      waiting: ['RunContainerError', 'CreateContainerError', 'CrashLoopBackOff'],
      message: /\/no\/such\/command|back-off/,
      // A container that was made and did not start has ended, as far as the phase is concerned.
      phase: /^(Pending|Running)$/,
      event: ['Failed', /\/no\/such\/command/],
    },
    'no-such-configmap': {
      spec: env({ configMapKeyRef: { name: 'none', key: 'k' } }),
      waiting: ['CreateContainerConfigError'],
      message: /configmap "none" not found/,
      event: ['Failed', /configmap "none" not found/],
    },
    'no-such-key': {
      spec: env({ configMapKeyRef: { name: 'settings', key: 'nokey' } }),
      waiting: ['CreateContainerConfigError'],
      message: /couldn't find key nokey in ConfigMap bad\/settings/,
      event: ['Failed', /couldn't find key nokey/],
    },
    'no-such-secret': {
      spec: env({ secretKeyRef: { name: 'none', key: 'k' } }),
      waiting: ['CreateContainerConfigError'],
      message: /secret "none" not found/,
      event: ['Failed', /secret "none" not found/],
    },
    'root-not-allowed': {
      spec: { ...one({}), securityContext: { runAsNonRoot: true } },
      waiting: ['CreateContainerConfigError'],
      message: /runAsNonRoot/,
      event: ['Failed', /runAsNonRoot/],
    },
    'no-such-volume': {
      spec: {
        ...one({ volumeMounts: [{ name: 'v', mountPath: '/v' }] }),
        volumes: [{ name: 'v', configMap: { name: 'none' } }],
      },
      waiting: ['ContainerCreating'],
      message: /^$/,
      event: ['FailedMount', /configmap "none" not found/],
    },
  };
}

test('pods that cannot run', { skip }, async (t) => {
  const stage = await setStage(t);
  const { cluster, images, node, registry } = stage;
  await stage.makeNamespace(namespace);
  const nothing = await node.traces();
  await cluster.apply(
    {
      apiVersion: 'v1',
      kind: 'ConfigMap',
      metadata: { name: 'settings', namespace },
      data: { key: 'value' },
    },
    makePod(namespace, 'good', { containers: [webServer(images.one)] }),
  );
  const good = await stage.pod(namespace, 'good', (pod) => statusOf(pod)?.ready === true);
  const before = await stage.containers(namespace);

  const all = badPods(registry, images.one);
  await cluster.apply(...Object.entries(all).map(([name, { spec }]) => makePod(namespace, name, spec)));
  for (const [name, { waiting, message, event, phase = /^Pending$/ }] of Object.entries(all)) {
    await t.test(name, async () => {
      const reason = (pod: Pod) => statusOf(pod)?.state?.waiting?.reason ?? '';
      const pod = await stage.pod(namespace, name, (now) => waiting.includes(reason(now)));
      assert.match(statusOf(pod)!.state!.waiting!.message ?? '', message);
      assert.match(pod.status!.phase!, phase);
      assert.equal(statusOf(pod)!.ready, false);
      const told = await stage.event(
        namespace,
        name,
        (one) => one.reason === event[0] && event[1].test(one.message!),
      );
      assert.equal(told.type, 'Warning');
      assert.equal(told.involvedObject.uid, pod.metadata!.uid);
    });
  }

  await t.test('a command that is not there: what its container ended with', async () => {
    const ended = { exitCode: 128, reason: 'StartError' };
    const facts = (state: { exitCode?: number; reason?: string } | undefined) =>
      state && { exitCode: state.exitCode, reason: state.reason };
    const pod = await stage.pod(
      namespace,
      'no-such-command',
      (now) => statusOf(now)?.lastState?.terminated !== undefined,
    );
    assert.deepEqual(facts(statusOf(pod)!.lastState!.terminated), ended);
    assert.match(statusOf(pod)!.lastState!.terminated!.message!, /\/no\/such\/command.*no such file/);
    const { spec } = all['no-such-command']!;
    await cluster.apply(makePod(namespace, 'never-again', { ...spec, restartPolicy: 'Never' }));
    const failed = await stage.pod(namespace, 'never-again', ({ status }) => status?.phase === 'Failed');
    assert.deepEqual(facts(statusOf(failed)!.state!.terminated), ended);
    assert.equal(statusOf(failed)!.restartCount, 0);
  });

  await t.test('an image that is not there is asked for less and less often', async () => {
    const pod = await stage.pod(
      namespace,
      'unknown-image',
      (now) => statusOf(now)?.state?.waiting?.reason === 'ImagePullBackOff',
    );
    assert.match(statusOf(pod)!.state!.waiting!.message!, /Back-off pulling image/);
    await stage.event(namespace, 'unknown-image', ({ reason }) => reason === 'BackOff');
  });

  await t.test('a host port that is taken', async () => {
    const [hostPort] = await freePorts(1);
    const ports = [{ containerPort: 8080, hostPort }];
    const spec = { nodeName: node.name, containers: [{ ...webServer(images.one), ports }] };
    await cluster.apply(makePod(namespace, 'port-holder', spec));
    await stage.pod(namespace, 'port-holder', (pod) => statusOf(pod)?.ready === true);
    await cluster.apply(makePod(namespace, 'port-wanter', spec));
    const refused = await stage.pod(namespace, 'port-wanter', ({ status }) => status?.phase === 'Failed');
    assert.equal(refused.status!.reason, 'NodePorts');
    assert.match(refused.status!.message!, /port/);
  });

  await t.test('others run on, and new ones start', async () => {
    assertSameContainers(before, await stage.containers(namespace));
    assert.equal(await pageOf(good), 'one');
    await cluster.apply(makePod(namespace, 'late', { containers: [webServer(images.two)] }));
    const late = await stage.pod(namespace, 'late', (pod) => statusOf(pod)?.ready === true);
    assert.equal(await pageOf(late), 'two');
  });

  await t.test('what was missing comes, and the pod runs', async () => {
    const data = { k: 'v' };
    await cluster.apply({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'none', namespace }, data });
    for (const name of ['no-such-configmap', 'no-such-volume']) {
      // kubelet tries a failed mount again after up to two minutes.
      await stage.pod(namespace, name, (pod) => statusOf(pod)?.ready === true, 180_000);
    }
  });

  await t.test('all of them are deleted without a trace', async () => {
    await cluster.kubectl(['-n', namespace, 'delete', 'pods', '--all', '--wait', '--timeout=90s'], {
      deadlineMs: 100_000,
    });
    await node.tracesBecome(nothing);
  });
});
