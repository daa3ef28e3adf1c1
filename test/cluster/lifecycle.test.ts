/** The life of a pod's containers: who starts when, who runs again, what is told of an end. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Container, Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { makePod, type Stage, setStage, skip, statusOf } from './stage.ts';

const namespace = 'life';

test('the life of containers', { skip }, async (t) => {
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  const part = (name: string, body: (stage: Stage) => Promise<void>) => t.test(name, () => body(stage));
  await part('kubectl debug looks into a running container, once', debug);
  await part('sidecars start in order, before the others, and end in reverse after them', sidecars);
  await part('sidecars that take too long are ended together', slowSidecars);
  await part('a rule of a container starts it again where its policy does not', rules);
  await part('a rule starts all containers anew', restartAll);
  await part('a deadline that is set on a running pod ends it', deadline);
  await part('last words: the file, cut, or the log', words);
  await part('a failed liveness probe has a grace of its own', probeGrace);
  await part('a new image restarts that container only', imageUpdate);
  await part('a corrected image does not wait for the wrong one', corrected);
  await part('a user namespace of its own, or why there is none', ownUsers);
  await stage.cluster.kubectl(['-n', namespace, 'delete', 'pods', '--all', '--wait', '--timeout=60s'], {
    deadlineMs: 70_000,
  });
  await t.test('nothing is left on the node', () => stage.node.tracesBecome(nothing));
});

const sh = (image: string, script: string, more: Partial<Container> & object = { name: 'main' }) => ({
  name: 'main',
  image,
  command: ['sh', '-c', script],
  ...more,
});
const forever = 'trap "exit 0" TERM; sleep 100000 & wait';
const isRunning = (pod: Pod) =>
  pod.status?.phase === 'Running' && statusOf(pod)?.state?.running !== undefined;
const isOver = (pod: Pod) => /^(Succeeded|Failed)$/.test(pod.status?.phase ?? '');
const ended = (pod: Pod, name: string) => {
  const all = [...(pod.status?.initContainerStatuses ?? []), ...(pod.status?.containerStatuses ?? [])];
  const { terminated } = all.find((status) => status.name === name)!.state!;
  return { code: terminated!.exitCode, at: Date.parse(terminated!.finishedAt!) };
};

async function run(stage: Stage, name: string, spec: object, wanted: (pod: Pod) => boolean): Promise<Pod> {
  await stage.cluster.apply(makePod(namespace, name, spec as PodSpec));
  return stage.pod(namespace, name, wanted);
}

async function debug(stage: Stage): Promise<void> {
  const { cluster, images } = stage;
  await run(stage, 'quiet', { containers: [sh(images.one, 'exec sleep 31536')] }, isRunning);
  const look = (name: string, more: string[], script: string) =>
    cluster.kubectl([
      '-n',
      namespace,
      'debug',
      'quiet',
      `--image=${images.two}`,
      '-c',
      name,
      ...more,
      '--',
      'sh',
      '-c',
      script,
    ]);
  const of = (pod: Pod, name: string) =>
    pod.status?.ephemeralContainerStatuses?.find((status) => status.name === name);
  await look('inside', ['--target=main'], 'ps; exit 3');
  const first = await stage.pod(
    namespace,
    'quiet',
    (pod) => of(pod, 'inside')?.state?.terminated !== undefined,
  );
  assert.equal(of(first, 'inside')!.state!.terminated!.exitCode, 3);
  const seen = await cluster.kubectl(['-n', namespace, 'logs', 'quiet', '-c', 'inside']);
  assert.match(seen, /\b1 .*sleep 31536/);

  await look('beside', [], 'ps; sleep 100000');
  const second = await stage.pod(
    namespace,
    'quiet',
    (pod) => of(pod, 'beside')?.state?.running !== undefined,
  );
  assert.doesNotMatch(await cluster.kubectl(['-n', namespace, 'logs', 'quiet', '-c', 'beside']), /31536/);
  assert.equal(of(second, 'inside')!.containerID, of(first, 'inside')!.containerID, 'it was started again');
  assert.equal(of(second, 'inside')!.restartCount, 0);
  assert.equal(statusOf(second)!.containerID, statusOf(first)!.containerID);
  assert.equal(second.status!.phase, 'Running');
  assert.deepEqual(
    second.status!.ephemeralContainerStatuses!.map(({ name, ready }) => [name, ready]),
    [
      ['beside', false],
      ['inside', false],
    ],
  );
  await stage.event(
    namespace,
    'quiet',
    ({ involvedObject, reason }) =>
      reason === 'Started' && involvedObject.fieldPath === 'spec.ephemeralContainers{beside}',
  );
}

const sidecar = (image: string, name: string, script: string, more: object = {}) => ({
  ...sh(image, script),
  name,
  restartPolicy: 'Always',
  ...more,
});

async function sidecars(stage: Stage): Promise<void> {
  const { one } = stage.images;
  const volumeMounts = [{ name: 'shared', mountPath: '/shared' }];
  const slowly = (name: string) =>
    `echo ${name} >> /shared/order; trap "sleep 1.2; exit 7" TERM; sleep 100000 & wait`;
  const pod = await run(
    stage,
    'order',
    {
      restartPolicy: 'Never',
      terminationGracePeriodSeconds: 20,
      volumes: [{ name: 'shared', emptyDir: {} }],
      initContainers: [
        { ...sh(one, 'echo first >> /shared/order'), name: 'first', volumeMounts },
        sidecar(one, 'early', `(sleep 2; touch /shared/ready) & ${slowly('early')}`, {
          volumeMounts,
          startupProbe: {
            exec: { command: ['test', '-e', '/shared/ready'] },
            periodSeconds: 1,
            failureThreshold: 30,
          },
        }),
        { ...sh(one, 'test -e /shared/ready && echo second >> /shared/order'), name: 'second', volumeMounts },
        sidecar(one, 'late', slowly('late'), { volumeMounts }),
      ],
      containers: [{ ...sh(one, 'sleep 1; echo main >> /shared/order; cat /shared/order'), volumeMounts }],
    },
    isOver,
  );
  assert.equal(pod.status!.phase, 'Succeeded');
  const order = await stage.cluster.kubectl(['-n', namespace, 'logs', 'order', '-c', 'main']);
  assert.deepEqual(order.trim().split('\n'), ['first', 'early', 'second', 'late', 'main']);
  const [main, late, early] = ['main', 'late', 'early'].map((name) => ended(pod, name));
  assert.deepEqual([main!.code, late!.code, early!.code], [0, 7, 7]);
  assert.ok(main!.at < late!.at && late!.at < early!.at, JSON.stringify([main, late, early]));
}

async function slowSidecars(stage: Stage): Promise<void> {
  const { one } = stage.images;
  const lifecycle = { preStop: { exec: { command: ['sleep', '100000'] } } };
  const deaf = 'trap "" TERM; while true; do sleep 1; done';
  const pod = await run(
    stage,
    'slow',
    {
      restartPolicy: 'Never',
      terminationGracePeriodSeconds: 3,
      initContainers: ['a', 'b', 'c'].map((name) => sidecar(one, name, deaf, { lifecycle })),
      containers: [sh(one, 'sleep 1')],
    },
    isOver,
  );
  const times = ['a', 'b', 'c'].map((name) => ended(pod, name).at);
  assert.ok(
    Math.max(...times) - Math.min(...times) <= 2000,
    JSON.stringify(pod.status!.initContainerStatuses),
  );
  assert.equal(pod.status!.phase, 'Succeeded');
}

async function rules(stage: Stage): Promise<void> {
  const { one } = stage.images;
  const pod = await run(
    stage,
    'ruled',
    {
      restartPolicy: 'Never',
      volumes: [{ name: 'shared', emptyDir: {} }],
      containers: [
        {
          ...sh(one, 'test -e /shared/ran && exit 43; touch /shared/ran; exit 42'),
          volumeMounts: [{ name: 'shared', mountPath: '/shared' }],
          restartPolicy: 'Never',
          restartPolicyRules: [{ action: 'Restart', exitCodes: { operator: 'In', values: [42] } }],
        },
      ],
    },
    isOver,
  );
  assert.equal(pod.status!.phase, 'Failed');
  assert.deepEqual([statusOf(pod)!.restartCount, ended(pod, 'main').code], [1, 43]);
}

async function restartAll(stage: Stage): Promise<void> {
  const { one } = stage.images;
  const volumeMounts = [{ name: 'shared', mountPath: '/shared' }];
  const count = (file: string) => `echo x >> /shared/${file}`;
  const pod = await run(
    stage,
    'anew',
    {
      nodeName: stage.node.name,
      restartPolicy: 'Never',
      volumes: [{ name: 'shared', emptyDir: {} }],
      initContainers: [{ ...sh(one, count('init')), name: 'init', volumeMounts }],
      containers: [
        {
          ...sh(
            one,
            `${count('main')}; test $(wc -l < /shared/main) = 2 && exec sleep 100000; sleep 1; exit 88`,
          ),
          volumeMounts,
          restartPolicy: 'Never',
          restartPolicyRules: [
            { action: 'RestartAllContainers', exitCodes: { operator: 'In', values: [88] } },
          ],
        },
        { ...sh(one, `${count('other')}; exec sleep 100000`), name: 'other', volumeMounts },
      ],
    },
    (now) =>
      now.status!.containerStatuses?.every(({ restartCount, ready }) => restartCount === 1 && ready) ?? false,
  );
  const shared = await stage.cluster.kubectl([
    ...[
      '-n',
      namespace,
      'get',
      'pod',
      'anew',
      '-o',
      'jsonpath={.status.initContainerStatuses[0].restartCount}',
    ],
  ]);
  assert.equal(shared, '1');
  const condition = pod.status!.conditions!.find(
    ({ type }) => type === ('AllContainersRestarting' as string),
  );
  assert.equal(condition?.status, 'False');
  for (const status of pod.status!.containerStatuses!)
    assert.equal(status.lastState!.terminated!.reason, 'RestartingAllContainers');
  assert.equal(pod.status!.phase, 'Running');
}

async function deadline(stage: Stage): Promise<void> {
  const { cluster, images } = stage;
  await run(stage, 'short', { containers: [sh(images.one, forever)] }, isRunning);
  await cluster.kubectl([
    '-n',
    namespace,
    'patch',
    'pod',
    'short',
    '-p',
    '{"spec":{"activeDeadlineSeconds":1}}',
  ]);
  const pod = await stage.pod(namespace, 'short', isOver);
  assert.deepEqual(
    [pod.status!.phase, pod.status!.reason, pod.status!.message],
    ['Failed', 'DeadlineExceeded', 'Pod was active on the node longer than the specified deadline'],
  );
}

async function words(stage: Stage): Promise<void> {
  const { one } = stage.images;
  const script = 'i=0; while [ $i -lt 500 ]; do echo -n 0123456789; i=$((i+1)); done > /tmp/words';
  const fallback = { terminationMessagePolicy: 'FallbackToLogsOnError' };
  const pod = await run(
    stage,
    'words',
    {
      restartPolicy: 'Never',
      containers: [
        { ...sh(one, `${script}; exit 1`), terminationMessagePath: '/tmp/words' },
        { ...sh(one, 'echo why; exit 1'), name: 'log', ...fallback },
        { ...sh(one, 'echo why; exit 0'), name: 'well', ...fallback },
      ],
    },
    isOver,
  );
  const said = (name: string) => statusOf(pod, name)!.state!.terminated!.message;
  assert.equal(said('main')?.length, 4096);
  assert.equal(said('log'), 'why\n');
  assert.equal(said('well') ?? '', '');
}

async function probeGrace(stage: Stage): Promise<void> {
  const { one } = stage.images;
  const pod = await run(
    stage,
    'stuck',
    {
      terminationGracePeriodSeconds: 500,
      containers: [
        {
          ...sh(one, 'trap "" TERM; while true; do sleep 1; done'),
          livenessProbe: {
            exec: { command: ['false'] },
            periodSeconds: 1,
            failureThreshold: 1,
            terminationGracePeriodSeconds: 2,
          },
        },
      ],
    },
    (now) => (statusOf(now)?.restartCount ?? 0) >= 1,
  );
  assert.equal(statusOf(pod)!.lastState!.terminated!.exitCode, 137);
  await stage.cluster.kubectl(['-n', namespace, 'delete', 'pod', 'stuck', '--grace-period=1']);
}

async function imageUpdate(stage: Stage): Promise<void> {
  const { cluster, images } = stage;
  const containers = [sh(images.one, forever), { ...sh(images.one, forever), name: 'other' }];
  const before = await run(
    stage,
    'changed',
    { containers },
    (pod) => isRunning(pod) && statusOf(pod, 'other')!.ready,
  );
  await cluster.kubectl(['-n', namespace, 'set', 'image', 'pod/changed', `main=${images.two}`]);
  const after = await stage.pod(
    namespace,
    'changed',
    (pod) => isRunning(pod) && statusOf(pod, 'main')!.restartCount === 1,
  );
  assert.equal(statusOf(after, 'main')!.image, images.two);
  assert.equal(statusOf(after, 'other')!.containerID, statusOf(before, 'other')!.containerID);
  const observed = (after.status as { observedGeneration?: number }).observedGeneration;
  assert.equal(observed, after.metadata!.generation);
}

async function corrected(stage: Stage): Promise<void> {
  const { cluster, images, registry } = stage;
  const containers = [sh(`${registry}/test/none:1`, forever)];
  await run(
    stage,
    'wrong',
    { containers },
    (pod) => statusOf(pod)?.state?.waiting?.reason === 'ImagePullBackOff',
  );
  await cluster.kubectl(['-n', namespace, 'set', 'image', 'pod/wrong', `main=${images.two}`]);
  const pod = await stage.pod(namespace, 'wrong', isRunning);
  assert.deepEqual([statusOf(pod)!.image, statusOf(pod)!.restartCount], [images.two, 0]);
}

/** Whether there can be one depends on the OCI runtime of the machine. */
async function ownUsers(stage: Stage): Promise<void> {
  const { cluster, images } = stage;
  const containers = [sh(images.one, `cat /proc/self/uid_map; ${forever}`)];
  await cluster.apply(makePod(namespace, 'users', { containers, hostUsers: false } as PodSpec));
  const { reason, message } = await stage.event(namespace, 'users', (event) =>
    ['FailedCreatePodSandBox', 'Started'].includes(event.reason!),
  );
  if (reason === 'Started') {
    await stage.pod(namespace, 'users', isRunning);
    assert.match(await cluster.kubectl(['-n', namespace, 'logs', 'users']), /^\s+0\s+[1-9]\d+\s+65536\n$/);
  } else {
    assert.match(message!, /can't set `spec\.hostUsers: false`, runtime does not support user namespaces/);
  }
}
