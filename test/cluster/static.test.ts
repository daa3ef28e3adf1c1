/** Static pods at a real apiserver: their mirrors, and that nothing but the manifest decides over them. */
import assert from 'node:assert/strict';
import { rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Node, Pod } from 'kubernetes-types/core/v1.js';
import { isReady, makePod, pageOf, type Stage, setStage, skip, statusOf, webServer } from './stage.ts';

const namespace = 'static';
const hashOf = ({ metadata }: Pod) => metadata?.annotations?.['kubernetes.io/config.mirror'];

test('static pods', { skip }, async (t) => {
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  await t.test('a manifest has a mirror with status, owner and logs', () => appears(stage));
  await t.test('a mirror that is deleted comes back, and the static pod runs on', () => deletedMirror(stage));
  await t.test('a changed manifest restarts only its pod, after the old one has ended', () => changed(stage));
  await t.test('a manifest that changes, or goes, while the agent is away', () => away(stage));
  await t.test('nothing is left on the node', () => stage.node.tracesBecome(nothing));
});

async function put({ node }: Stage, file: string, pod: Pod): Promise<void> {
  const path = join(node.paths.staticPodPath, file);
  // As careful tools do; the half-written file has a name that is no manifest's.
  await writeFile(`${path}.tmp`, JSON.stringify(pod));
  await rename(`${path}.tmp`, path);
}

const web = (image: string) =>
  makePod(namespace, 'web', { containers: [webServer(image)], terminationGracePeriodSeconds: 2 });
const mirrorName = ({ node }: Stage, name: string) => `${name}-${node.name.toLowerCase()}`;

async function gone(stage: Stage, name: string): Promise<void> {
  await stage.cluster.kubectl(
    ['-n', namespace, 'wait', '--for=delete', `pod/${mirrorName(stage, name)}`, '--timeout=60s'],
    { deadlineMs: 70_000 },
  );
}

async function appears(stage: Stage): Promise<void> {
  const { cluster, node, images } = stage;
  await put(stage, 'web.json', web(images.one));
  await put(stage, '.hidden.json', makePod(namespace, 'hidden', { containers: [webServer(images.one)] }));
  await put(stage, 'other.yaml', makePod(namespace, 'other', { containers: [webServer(images.one)] }));
  await stage.readyPods(namespace, 2);
  const pod = await stage.pod(namespace, mirrorName(stage, 'web'), isReady);
  assert.equal(await pageOf(pod), 'one');
  const { annotations, ownerReferences } = pod.metadata!;
  assert.equal(annotations!['kubernetes.io/config.source'], 'file');
  assert.equal(annotations!['kubernetes.io/config.mirror'], annotations!['kubernetes.io/config.hash']);
  assert.ok(annotations!['kubernetes.io/config.seen']);
  const object = await cluster.read<Node>(`/api/v1/nodes/${node.name}`);
  assert.deepEqual(ownerReferences, [
    { apiVersion: 'v1', kind: 'Node', name: node.name, uid: object!.metadata!.uid, controller: true },
  ]);
  assert.equal(await cluster.kubectl(['-n', namespace, 'logs', pod.metadata!.name!]), '');
}

async function deletedMirror(stage: Stage): Promise<void> {
  const name = mirrorName(stage, 'web');
  const before = await stage.pod(namespace, name, isReady);
  for (const args of [['--wait=false'], ['--force', '--grace-period=0']]) {
    const { uid } = (await stage.pod(namespace, name, isReady)).metadata!;
    await stage.cluster.kubectl(['-n', namespace, 'delete', 'pod', name, ...args]);
    const again = await stage.pod(namespace, name, (pod) => pod.metadata?.uid !== uid && isReady(pod));
    assert.deepEqual(statusOf(again), statusOf(before), 'the same container');
    assert.equal(hashOf(again), hashOf(before));
  }
}

async function changed(stage: Stage): Promise<void> {
  const name = mirrorName(stage, 'web');
  const before = await stage.pod(namespace, name, isReady);
  const other = await stage.pod(namespace, mirrorName(stage, 'other'), isReady);
  await put(stage, 'web.json', web(stage.images.two));
  const after = await stage.pod(namespace, name, (pod) => hashOf(pod) !== hashOf(before) && isReady(pod));
  assert.equal(await pageOf(after), 'two');
  const beside = await stage.pod(namespace, mirrorName(stage, 'other'), isReady);
  assert.deepEqual([beside.metadata!.uid, beside.status], [other.metadata!.uid, other.status]);
}

async function away(stage: Stage): Promise<void> {
  const { node, images } = stage;
  const name = mirrorName(stage, 'web');
  const before = await stage.pod(namespace, name, isReady);
  const other = await stage.pod(namespace, mirrorName(stage, 'other'), isReady);
  await node.kill9();
  await put(stage, 'web.json', web(images.one));
  await node.start();
  const after = await stage.pod(namespace, name, (pod) => hashOf(pod) !== hashOf(before) && isReady(pod));
  assert.equal(await pageOf(after), 'one');
  const beside = await stage.pod(namespace, mirrorName(stage, 'other'), isReady);
  assert.equal(statusOf(beside)!.containerID, statusOf(other)!.containerID);
  assert.equal(beside.metadata!.uid, other.metadata!.uid);
  await node.kill9();
  await rm(join(node.paths.staticPodPath, 'web.json'));
  await node.start();
  await gone(stage, 'web');
  await rm(join(node.paths.staticPodPath, 'other.yaml'));
  await gone(stage, 'other');
  assert.deepEqual(await stage.pods(namespace), []);
}
