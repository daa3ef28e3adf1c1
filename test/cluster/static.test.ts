/** Static pods at a real apiserver: their mirrors, and that nothing but the manifest decides over them. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import type { Node, Pod } from 'kubernetes-types/core/v1.js';
import { clusterPrograms } from '../peers/binaries.ts';
import { freePorts } from '../peers/process.ts';
import { isReady, makePod, pageOf, type Stage, setStage, skip, statusOf, webServer } from './stage.ts';

const namespace = 'static';
const hashOf = ({ metadata }: Pod) => metadata?.annotations?.['kubernetes.io/config.mirror'];

test('static pods', { skip }, async (t) => {
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  await t.test('a manifest has a mirror with status, owner and logs', () => appears(stage));
  await t.test('exec, attach, logs, port-forward and run reach the static pod by its mirror', () =>
    streams(stage),
  );
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

/** With the mirror's name, and with its uid where the node's API takes one. */
async function streams(stage: Stage): Promise<void> {
  const { cluster, node, images } = stage;
  const echo = {
    name: 'echo',
    image: images.one,
    stdin: true,
    command: ['sh', '-c', 'echo ready; while read line; do echo "got $line"; done; sleep 100000'],
  };
  await put(stage, 'talks.json', makePod(namespace, 'talks', { containers: [webServer(images.one), echo] }));
  const name = mirrorName(stage, 'talks');
  const { metadata } = await stage.pod(namespace, name, isReady);
  const kubectl = (...args: string[]) => cluster.kubectl(['-n', namespace, ...args]);
  assert.equal(await kubectl('exec', name, '-c', 'web', '--', 'cat', '/www/index.html'), 'one\n');
  await assert.rejects(kubectl('exec', name, '-c', 'web', '--', 'sh', '-c', 'exit 7'), /exit code 7/);
  assert.equal(await kubectl('logs', name, '-c', 'echo'), 'ready\n');

  const programs = await clusterPrograms();
  assert.ok(!('missing' in programs));
  const env = { PATH: process.env['PATH']!, HOME: cluster.folder, KUBECONFIG: cluster.adminKubeconfig };
  /** Runs kubectl until `wanted` is among its lines. */
  const until = async (args: string[], wanted: RegExp, input = '', then = async () => {}) => {
    const child = spawn(programs.kubectl, ['-n', namespace, ...args], { env });
    const late = setTimeout(() => child.kill('SIGKILL'), 30_000);
    try {
      child.stdin.write(input);
      let said = '';
      for await (const line of createInterface(child.stdout)) {
        said += `${line}\n`;
        if (wanted.test(line)) return await then();
      }
      assert.fail(`kubectl ${args[0]} ended without ${wanted}: ${said}`);
    } finally {
      clearTimeout(late);
      child.kill('SIGKILL');
    }
  };
  await until(['attach', '-i', name, '-c', 'echo'], /^got word$/, 'word\n');
  assert.equal(await kubectl('logs', name, '-c', 'echo', '--tail=1'), 'got word\n');
  const [port] = (await freePorts(1)) as [number];
  await until(['port-forward', `pod/${name}`, `${port}:8080`], /^Forwarding from 127/, '', async () => {
    const response = await fetch(`http://127.0.0.1:${port}/index.html`, {
      headers: { connection: 'close' },
      signal: AbortSignal.timeout(20_000),
    });
    assert.equal((await response.text()).trim(), 'one');
  });

  const run = (uid: string) => {
    const path = `/api/v1/nodes/${node.name}/proxy/run/${namespace}/${name}/${uid}/web?cmd=hostname`;
    return cluster.kubectl(['create', '--raw', path, '-f', '-'], { input: '{}' });
  };
  assert.equal((await run(metadata!.uid!)).trim(), name);
  await assert.rejects(run('00000000-0000-0000-0000-000000000000'), /BadRequest|not found/);
  await rm(join(node.paths.staticPodPath, 'talks.json'));
  await gone(stage, 'talks');
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
