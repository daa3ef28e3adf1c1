/** What is kept of pods that have ended, what goes, and what is left of pods by a crash. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readlink, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { waitFor } from '../peers/process.ts';
import { isReady, makePod, type Stage, setStage, skip, statusOf, webServer } from './stage.ts';

const namespace = 'remains';

test('remains', { skip }, async (t) => {
  const stage = await setStage(t, { crashLoopBackOff: { maxContainerRestartPeriod: '1s' } });
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  await t.test('of a container that restarts often the newest two and their logs are kept', () =>
    restarts(stage),
  );
  await t.test('a pod that has ended keeps its logs until it is deleted, and nothing else', () =>
    ended(stage, nothing),
  );
  await t.test('a pod with a finalizer goes from the node though its object stays', () =>
    finalizer(stage, nothing),
  );
  await t.test('what a crash leaves of unknown pods goes at the next start; what is not ours stays', () =>
    leftovers(stage, nothing),
  );
  await t.test('nothing is left on the node', () => stage.node.tracesBecome(nothing));
});

const remove = ({ cluster }: Stage, name: string, ...more: string[]) =>
  cluster.kubectl(['-n', namespace, 'delete', 'pod', name, '--timeout=60s', ...more], { deadlineMs: 70_000 });

async function restarts(stage: Stage): Promise<void> {
  const { cluster, node, images } = stage;
  const container = (name: string) => ({
    name,
    image: images.one,
    command: ['sh', '-c', `echo ${name} runs; exit 1`],
  });
  await cluster.apply(makePod(namespace, 'often', { containers: [container('a'), container('b')] }));
  const many = (name: string) =>
    stage.pod(namespace, 'often', (pod) => (statusOf(pod, name)?.restartCount ?? 0) >= 4);
  const pod = await many('a').then(() => many('b'));
  const links = async () =>
    (await readdir(node.paths.containerLogsDir)).filter((name) => /^often_/.test(name));
  const folder = join(node.paths.podLogsDir, `${namespace}_often_${pod.metadata!.uid}`);
  const kept = async () => ({
    containers: (await readdir(join(node.paths.stateDir, 'containers'))).length,
    links: (await links()).length,
    a: (await readdir(join(folder, 'a'))).length,
    b: (await readdir(join(folder, 'b'))).length,
  });
  // The third of each is there while the next is made.
  const { containers, links: linked, a, b } = await kept();
  assert.ok(containers <= 6 && linked <= 6 && a <= 3 && b <= 3, JSON.stringify(await kept()));
  assert.equal(
    await cluster.kubectl(['-n', namespace, 'logs', 'often', '-c', 'a', '--previous']),
    'a runs\n',
  );
  for (const name of await links()) {
    const target = await readlink(join(node.paths.containerLogsDir, name)).catch(() => undefined);
    if (target !== undefined) assert.ok(target.startsWith(folder), target);
  }
  await remove(stage, 'often');
}

async function ended(stage: Stage, nothing: readonly string[]): Promise<void> {
  const { cluster, node, images } = stage;
  const script = 'echo the last words; exit 4';
  await cluster.apply(
    makePod(namespace, 'ended', {
      restartPolicy: 'Never',
      volumes: [{ name: 'data', emptyDir: { medium: 'Memory' } }],
      containers: [
        {
          name: 'main',
          image: images.one,
          command: ['sh', '-c', script],
          volumeMounts: [{ name: 'data', mountPath: '/data' }],
        },
      ],
    }),
  );
  const pod = await stage.pod(namespace, 'ended', ({ status }) => status?.phase === 'Failed');
  const mine = async () => (await node.traces()).filter((trace) => !nothing.includes(trace));
  const given = /^(mount|process|link|address|firewall|cni result)/;
  const logsOnly = () =>
    waitFor(
      'the pod to give back all but its logs',
      async () => ((await mine()).some((trace) => given.test(trace)) ? undefined : true),
      { deadlineMs: 30_000, everyMs: 100 },
    );
  const words = () => cluster.kubectl(['-n', namespace, 'logs', 'ended']);
  await logsOnly();
  assert.equal(await words(), 'the last words\n');
  await node.restart9();
  await stage.nodeReports();
  await logsOnly();
  assert.equal(await words(), 'the last words\n');
  const again = await stage.pod(namespace, 'ended', () => true);
  assert.deepEqual(again.status!.containerStatuses, pod.status!.containerStatuses);
  // Deleted while nobody is there to see it.
  await node.kill9();
  await remove(stage, 'ended', '--force', '--grace-period=0');
  await node.start();
  await node.tracesBecome(nothing, 60_000);
}

async function finalizer(stage: Stage, nothing: readonly string[]): Promise<void> {
  const { cluster, node, images } = stage;
  const pod = makePod(namespace, 'held', { containers: [webServer(images.one)] });
  await cluster.apply({ ...pod, metadata: { ...pod.metadata, finalizers: ['example.com/held'] } });
  await stage.pod(namespace, 'held', isReady);
  await remove(stage, 'held', '--wait=false');
  await node.tracesBecome(nothing, 60_000);
  const left = await stage.pod(
    namespace,
    'held',
    ({ status }) => statusOf({ status })?.state?.terminated !== undefined,
  );
  assert.notEqual(left.metadata?.deletionTimestamp, undefined);
  // The next agent has nothing to do for it either, and says nothing else of it.
  await node.restart9();
  await stage.nodeReports();
  await node.tracesBecome(nothing, 60_000);
  const told = await stage.pod(namespace, 'held', () => true);
  assert.equal(told.status?.phase, left.status?.phase);
  assert.deepEqual(told.status?.containerStatuses, left.status?.containerStatuses);
  await cluster.kubectl([
    ...['-n', namespace, 'patch', 'pod', 'held', '--type=merge', '-p'],
    '{"metadata":{"finalizers":null}}',
  ]);
  await stage.readyPods(namespace, 0);
}

async function leftovers(stage: Stage, nothing: readonly string[]): Promise<void> {
  const { node, cluster, images } = stage;
  const { kubeletDir, podLogsDir, containerLogsDir } = node.paths;
  await cluster.apply(makePod(namespace, 'stays', { containers: [webServer(images.one)] }));
  await stage.pod(namespace, 'stays', isReady);
  const before = await stage.containers(namespace);
  await node.kill9();
  const uid = '11111111-2222-3333-4444-555555555555';
  const logs = join(podLogsDir, `${namespace}_gone_${uid}`, 'main');
  const volume = join(kubeletDir, 'pods', uid, 'volumes/kubernetes.io~empty-dir/data');
  for (const folder of [logs, volume]) await mkdir(folder, { recursive: true });
  await writeFile(join(logs, '0.log'), '');
  execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', volume]);
  await writeFile(join(volume, 'file'), 'x');
  const link = (name: string) => join(containerLogsDir, name);
  await symlink(join(logs, '0.log'), link(`gone_${namespace}_main-0123.log`));
  await symlink(
    join(podLogsDir, `${namespace}_older_x-y/main/0.log`),
    link(`older_${namespace}_main-4567.log`),
  );
  const foreign = [link('somebody-else.log'), join(podLogsDir, 'not-a-pod')];
  for (const path of foreign) await writeFile(path, '');
  await node.start();
  await stage.nodeReports();
  await waitFor(
    'the remains to go',
    async () => {
      const left = [join(kubeletDir, 'pods', uid), join(podLogsDir, `${namespace}_gone_${uid}`)].filter(
        existsSync,
      );
      const links = (await readdir(containerLogsDir)).filter((name) => /^(gone|older)_/.test(name));
      return left.length + links.length === 0 ? true : undefined;
    },
    { deadlineMs: 60_000, everyMs: 100, daemon: node.agent },
  );
  for (const path of foreign) {
    assert.ok(existsSync(path), path);
    await rm(path);
  }
  assert.deepEqual(await stage.containers(namespace), before, 'those of the pod that is wanted stay');
  await remove(stage, 'stays');
  await node.tracesBecome(nothing, 60_000);
}
