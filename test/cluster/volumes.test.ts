/** Persistent volumes without a driver, claims, and images as volumes, on a real apiserver. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { exec } from '../../runtime/host/exec.ts';
import { isReady, makePod, type Stage, setStage, skip } from './stage.ts';

const namespace = 'volumes';

test('volumes', { skip }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-volumes-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  await t.test('a local folder: its group, shared, read-only, and in parts', () =>
    localFolder(stage, folder),
  );
  await t.test('a claim that is not bound yet, and one of another node', () => unbound(stage, folder));
  await t.test('a claim of the pod itself', () => ephemeral(stage, folder));
  await t.test('a local disk gets a file system, and is mounted once for two pods', (t) =>
    disk(t, stage, folder),
  );
  await t.test('a local disk as a device', (t) => device(t, stage, folder));
  await t.test('an image as a volume, whole and in part', () => image(stage));
  await t.test('an image that cannot be had is a reason to wait', () => missingImage(stage));
  await t.test('nothing is left on the node', () => stage.node.tracesBecome(nothing));
});

/** A volume bound to a claim of the same name. */
async function provide({ cluster }: Stage, name: string, source: object, rest: object = {}): Promise<void> {
  await cluster.apply(volume(name, source, rest));
  await cluster.apply(claim(name, rest));
  await bound(cluster, name);
}

const bound = (cluster: Stage['cluster'], name: string) =>
  cluster.kubectl(
    ['-n', namespace, 'wait', '--for=jsonpath={.status.phase}=Bound', `pvc/${name}`, '--timeout=60s'],
    { deadlineMs: 70_000 },
  );

const volume = (name: string, source: object, rest: object = {}) => ({
  apiVersion: 'v1',
  kind: 'PersistentVolume',
  metadata: { name },
  spec: {
    capacity: { storage: '10Mi' },
    accessModes: ['ReadWriteMany'],
    storageClassName: name,
    ...source,
    ...rest,
  },
});

const claim = (name: string, { volumeMode }: { volumeMode?: string } = {}) => ({
  apiVersion: 'v1',
  kind: 'PersistentVolumeClaim',
  metadata: { name, namespace },
  spec: {
    accessModes: ['ReadWriteMany'],
    storageClassName: name,
    resources: { requests: { storage: '10Mi' } },
    ...(volumeMode === undefined ? {} : { volumeMode }),
  },
});

const onNode = (node: string) => ({
  nodeAffinity: {
    required: {
      nodeSelectorTerms: [
        { matchExpressions: [{ key: 'kubernetes.io/hostname', operator: 'In', values: [node] }] },
      ],
    },
  },
});

const claimed = (name: string, readOnly = false) => ({
  name: 'v',
  persistentVolumeClaim: { claimName: name, readOnly },
});

/** A pod that runs `script` and then waits, ready when the script is done. */
function podOf({ images, node }: Stage, name: string, script: string, spec: Partial<PodSpec>): Pod {
  return makePod(namespace, name, {
    terminationGracePeriodSeconds: 1,
    nodeName: node.name,
    ...spec,
    containers: [
      {
        name: 'main',
        image: images.one,
        command: [
          'sh',
          '-c',
          `(${script}) > /tmp/said 2>&1; echo $? > /tmp/done; trap 'exit 0' TERM; sleep 1000 & wait`,
        ],
        readinessProbe: { exec: { command: ['cat', '/tmp/done'] }, periodSeconds: 1 },
        ...spec.containers?.[0],
      },
    ],
  });
}

const at = (mountPath: string, rest: object = {}) => ({ name: 'v', mountPath, ...rest });
const having = (...volumeMounts: object[]) => [{ volumeMounts }] as PodSpec['containers'];

/** What the script of the pod said, once it has. */
async function said(stage: Stage, pod: Pod): Promise<string> {
  await stage.cluster.apply(pod);
  const { name } = pod.metadata!;
  await stage.pod(namespace, name!, isReady);
  return stage.cluster.kubectl(['-n', namespace, 'exec', name!, '--', 'cat', '/tmp/said']);
}

async function remove({ cluster }: Stage, ...names: string[]): Promise<void> {
  const pods = names.map((name) => `pod/${name}`);
  await cluster.kubectl(['-n', namespace, 'delete', ...pods, '--timeout=60s'], { deadlineMs: 70_000 });
}

async function localFolder(stage: Stage, folder: string): Promise<void> {
  const path = join(folder, 'local');
  await mkdir(join(path, 'inner'), { recursive: true });
  await writeFile(join(path, 'inner/file'), 'kept\n', { mode: 0o600 });
  await provide(stage, 'folder', { local: { path } }, onNode(stage.node.name));
  const writer = podOf(
    stage,
    'writer',
    'cat /data/inner/file; echo new > /data/inner/new; ls -ln /data | tail -1',
    {
      volumes: [claimed('folder')],
      securityContext: { runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000 },
      containers: having(at('/data')),
    },
  );
  const text = await said(stage, writer);
  assert.match(text, /^kept\ndrwxrwsr-x.* 2000 .*inner\n$/);
  const reader = podOf(
    stage,
    'reader',
    'cat /data/inner/new /part/new; touch /data/x; touch /part/x; touch /claim/x',
    {
      volumes: [claimed('folder'), { ...claimed('folder', true), name: 'readonly' }],
      containers: having(at('/data', { readOnly: true }), at('/part', { subPath: 'inner' }), {
        name: 'readonly',
        mountPath: '/claim',
      }),
    },
  );
  assert.equal(
    await said(stage, reader),
    'new\nnew\ntouch: /data/x: Read-only file system\ntouch: /claim/x: Read-only file system\n',
  );
  await stage.node.restart9();
  await remove(stage, 'writer', 'reader');
  assert.equal(await readFile(join(path, 'inner/new'), 'utf8'), 'new\n', 'the volume outlives its pods');
  assert.equal((await stat(join(path, 'inner/x'))).size, 0);
}

async function unbound(stage: Stage, folder: string): Promise<void> {
  const path = join(folder, 'late');
  await mkdir(path);
  await stage.cluster.apply(claim('late'));
  await stage.cluster.apply(
    podOf(stage, 'late', 'echo > /data/x', { volumes: [claimed('late')], containers: having(at('/data')) }),
  );
  await stage.event(
    namespace,
    'late',
    ({ reason, message }) =>
      reason === 'FailedMount' &&
      message!.includes(`error processing PVC ${namespace}/late: PVC is not bound`),
  );
  await stage.cluster.apply(volume('late', { hostPath: { path, type: 'Directory' } }));
  await stage.pod(namespace, 'late', isReady, 120_000);
  assert.ok(await stat(join(path, 'x')));

  await provide(stage, 'elsewhere', { local: { path } }, onNode('another'));
  await stage.cluster.apply(
    podOf(stage, 'elsewhere', 'true', { volumes: [claimed('elsewhere')], containers: having(at('/data')) }),
  );
  await stage.event(namespace, 'elsewhere', ({ message }) =>
    message!.includes(
      'MountVolume.NodeAffinity check failed for volume "elsewhere" : no matching NodeSelectorTerms',
    ),
  );
  await remove(stage, 'late', 'elsewhere');
}

async function ephemeral(stage: Stage, folder: string): Promise<void> {
  const path = join(folder, 'own');
  await mkdir(path);
  await stage.cluster.apply(volume('own', { hostPath: { path } }));
  const pod = podOf(stage, 'own', 'echo mine > /data/x; cat /data/x', {
    volumes: [{ name: 'v', ephemeral: { volumeClaimTemplate: { spec: claim('own').spec } } }],
    containers: having(at('/data')),
  });
  assert.equal(await said(stage, pod), 'mine\n');
  // A claim of that name that somebody else made is not the pod's.
  await mkdir(join(folder, 'foreign'));
  await provide(stage, 'foreign-v', { hostPath: { path: join(folder, 'foreign') } });
  const foreign = { ...pod, metadata: { ...pod.metadata, name: 'foreign' } };
  await stage.cluster.apply(foreign);
  await stage.event(namespace, 'foreign', ({ source, message }) =>
    Boolean(source?.component !== 'ephemeral_volume' && message!.includes('(pod is not owner)')),
  );
  await remove(stage, 'own', 'foreign');
}

/** A loop device of the node, gone after the test. */
async function loop(t: TestContext, folder: string, name: string): Promise<string> {
  const file = join(folder, name);
  await writeFile(file, '');
  await truncate(file, 32 << 20);
  const { stdout } = await exec('losetup', ['--find', '--show', file], { deadlineMs: 10_000 });
  const path = stdout.toString('utf8').trim();
  t.after(() => exec('losetup', ['--detach', path], { deadlineMs: 10_000 }));
  return path;
}

async function disk(t: TestContext, stage: Stage, folder: string): Promise<void> {
  const path = await loop(t, folder, 'disk');
  await provide(stage, 'disk', { local: { path, fsType: '' } }, onNode(stage.node.name));
  const spec = { volumes: [claimed('disk')], containers: having(at('/data')) };
  const mountsOf = async () =>
    (await readFile('/proc/self/mountinfo', 'utf8')).split('\n').filter((line) => line.includes(` ${path} `));
  const first = await said(stage, podOf(stage, 'first', 'stat -f -c %T /data; echo one > /data/x', spec));
  assert.match(first, /^ext2\/ext3/);
  assert.equal(await said(stage, podOf(stage, 'second', 'cat /data/x', spec)), 'one\n');
  assert.equal((await mountsOf()).length, 3, 'the disk itself and one for each pod');
  await remove(stage, 'first');
  assert.equal((await mountsOf()).length, 2);
  await remove(stage, 'second');
  assert.deepEqual(await mountsOf(), []);
  assert.equal(await said(stage, podOf(stage, 'third', 'cat /data/x', spec)), 'one\n', 'not formatted again');
  await remove(stage, 'third');
}

async function device(t: TestContext, stage: Stage, folder: string): Promise<void> {
  const path = await loop(t, folder, 'device');
  await provide(stage, 'device', { local: { path } }, { ...onNode(stage.node.name), volumeMode: 'Block' });
  const volumeDevices = [{ name: 'v', devicePath: '/dev/mine' }];
  const pod = podOf(
    stage,
    'device',
    'test -b /dev/mine && printf written | dd of=/dev/mine conv=fsync 2> /dev/null && head -c 7 /dev/mine',
    { volumes: [claimed('device')], containers: [{ volumeDevices }] as PodSpec['containers'] },
  );
  assert.equal(await said(stage, pod), 'written');
  assert.equal((await readFile(join(folder, 'device'))).subarray(0, 7).toString(), 'written');
  await stage.cluster.apply(
    podOf(stage, 'mounted', 'true', { volumes: [claimed('device')], containers: having(at('/data')) }),
  );
  await stage.event(namespace, 'mounted', ({ message }) =>
    message!.includes('volume v has volumeMode Block, but is specified in volumeMounts'),
  );
  await remove(stage, 'device', 'mounted');
}

async function image(stage: Stage): Promise<void> {
  const pod = podOf(stage, 'image', 'cat /whole/www/index.html /part/index.html; touch /whole/x', {
    volumes: [{ name: 'v', image: { reference: stage.images.two, pullPolicy: 'Always' } } as never],
    containers: having(at('/whole'), at('/part', { subPath: 'www' })),
  });
  assert.equal(await said(stage, pod), 'two\ntwo\ntouch: /whole/x: Read-only file system\n');
  await stage.event(
    namespace,
    'image',
    ({ reason, message, involvedObject }) =>
      reason === 'Pulled' && involvedObject.fieldPath === undefined && message!.includes(stage.images.two),
  );
  await remove(stage, 'image');
}

async function missingImage(stage: Stage): Promise<void> {
  const reference = `${stage.registry}/test/none:1`;
  await stage.cluster.apply(
    podOf(stage, 'missing', 'true', {
      volumes: [{ name: 'v', image: { reference } } as never],
      containers: having(at('/whole')),
    }),
  );
  const pod = await stage.pod(namespace, 'missing', ({ status }) =>
    ['ErrImagePull', 'ImagePullBackOff'].includes(
      status?.containerStatuses?.[0]?.state?.waiting?.reason ?? '',
    ),
  );
  assert.ok(pod.status!.containerStatuses![0]!.state!.waiting!.message!.includes(reference));
  await remove(stage, 'missing');
}
