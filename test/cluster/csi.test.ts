/** Volumes of a CSI driver on a real apiserver, whose controllers bind, attach and detach; the attacher is played here. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Node, PersistentVolumeClaim, Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import type { CSINode, VolumeAttachment } from 'kubernetes-types/storage/v1.js';
import { exec } from '../../runtime/host/exec.ts';
import { type CsiProgram, csiProgram, startCsiProgram } from '../peers/csi-program.ts';
import { waitFor } from '../peers/process.ts';
import { isReady, makePod, type Stage, setStage, skip } from './stage.ts';

const namespace = 'csi';
const driver = 'disks.test.example';
const built = await csiProgram();
const absent = skip || (typeof built === 'string' ? false : built.missing);

interface Csi extends Stage {
  readonly folder: string;
  program: CsiProgram;
  startDriver(): Promise<void>;
  registered(): Promise<void>;
}

test('CSI', { skip: absent }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-csi-'));
  const stage = await setStage(t);
  const nothing = await stage.node.traces();
  const startDriver = () =>
    startCsiProgram({
      program: built as string,
      kubeletDir: stage.node.paths.kubeletDir,
      folder,
      name: driver,
      nodeId: `id-of-${stage.node.name}`,
    });
  const csi: Csi = {
    ...stage,
    folder,
    program: await startDriver(),
    async startDriver() {
      csi.program = await startDriver();
    },
    registered: () => until('the driver is not in the CSINode', async () => hasDriver(await csiNode(csi))),
  };
  t.after(async () => {
    if (!t.passed)
      t.diagnostic(`calls of the driver: ${JSON.stringify((await csi.program.calls()).slice(-20))}`);
    await csi.program.stop();
  });
  t.after(async () => {
    const { stdout } = await exec('losetup', ['-n', '-O', 'NAME,BACK-FILE'], { deadlineMs: 10_000 });
    for (const line of stdout.toString('utf8').split('\n')) {
      const [device, file] = line.trim().split(/\s+/);
      if (file?.startsWith(folder)) await exec('losetup', ['-d', device!], { deadlineMs: 10_000 });
    }
    await rm(folder, { recursive: true, force: true });
  });
  await stage.makeNamespace(namespace);
  await stage.cluster.apply({
    apiVersion: 'storage.k8s.io/v1',
    kind: 'CSIDriver',
    metadata: { name: driver },
    spec: {
      attachRequired: true,
      podInfoOnMount: true,
      volumeLifecycleModes: ['Persistent', 'Ephemeral'],
    },
  });
  await t.test('the driver is registered, and the cluster knows of it', () => registered(csi));
  await t.test('a file system: attached, staged, given to the group, shared', () => filesystem(csi));
  await t.test('a new start of the agent, and a driver that is away', () => restart(csi));
  await t.test('a volume grows while it is used, and tells how full it is', () => growing(csi));
  await t.test('a device', () => device(csi));
  await t.test('a volume that the pod declares itself', () => inline(csi));
  await t.test('a pod waits for its driver, and goes when it is back', () => away(csi));
  await t.test('the driver goes, and the cluster knows of that', () => gone(csi));
  await t.test('nothing is left on the node', async () => {
    await stage.node.tracesBecome(nothing);
    const { stdout } = await exec('losetup', ['-n', '-O', 'BACK-FILE'], { deadlineMs: 10_000 });
    assert.ok(!stdout.toString('utf8').includes(folder), 'a device is still attached');
  });
});

const until = async (what: string, probe: () => Promise<boolean>) => {
  await waitFor(what, async () => ((await probe()) ? true : undefined), {
    deadlineMs: 60_000,
    everyMs: 100,
  });
};
const csiNode = ({ cluster, node }: Csi) =>
  cluster.read<CSINode>(`/apis/storage.k8s.io/v1/csinodes/${node.name}`);
const hasDriver = (object: CSINode | undefined) =>
  // The apiserver writes an empty list as null.
  object?.spec.drivers?.some(({ name }) => name === driver) === true;

async function registered(csi: Csi): Promise<void> {
  await csi.registered();
  const id = `id-of-${csi.node.name}`;
  const object = await csiNode(csi);
  assert.deepEqual(object?.spec.drivers, [
    {
      name: driver,
      nodeID: id,
      topologyKeys: ['topology.test.example/node'],
      allocatable: { count: 16 },
    },
  ]);
  const node = await csi.cluster.read<Node>(`/api/v1/nodes/${csi.node.name}`);
  assert.equal(object.metadata?.ownerReferences?.[0]?.uid, node?.metadata?.uid);
  assert.equal(node?.metadata?.labels?.['topology.test.example/node'], id);
  assert.equal(
    node?.metadata?.annotations?.['csi.volume.kubernetes.io/nodeid'],
    JSON.stringify({ [driver]: id }),
  );
  await until('the driver is not told', async () =>
    (await csi.program.calls()).some(
      ({ method, request }) =>
        method === 'NotifyRegistrationStatus' &&
        (request as { plugin_registered?: boolean }).plugin_registered === true,
    ),
  );
}

const mebi = 2 ** 20;

/** A volume of so many MiB, bound to a claim of the same name. */
async function provide(
  { cluster }: Csi,
  name: string,
  size: number,
  { volumeMode = 'Filesystem', ...attributes }: Readonly<Record<string, string>> = {},
): Promise<void> {
  const common = { accessModes: ['ReadWriteOnce'], storageClassName: 'none', volumeMode };
  await cluster.apply(
    {
      apiVersion: 'v1',
      kind: 'PersistentVolume',
      metadata: { name },
      spec: {
        ...common,
        capacity: { storage: `${size}Mi` },
        claimRef: { namespace, name },
        csi: {
          driver,
          volumeHandle: `disk-${name}`,
          ...(volumeMode === 'Block' ? {} : { fsType: 'ext4' }),
          volumeAttributes: { bytes: `${size * mebi}`, ...attributes },
        },
      },
    },
    {
      apiVersion: 'v1',
      kind: 'PersistentVolumeClaim',
      metadata: { name, namespace },
      spec: { ...common, volumeName: name, resources: { requests: { storage: `${size}Mi` } } },
    },
  );
  await cluster.kubectl(
    ['-n', namespace, 'wait', '--for=jsonpath={.status.phase}=Bound', `pvc/${name}`, '--timeout=60s'],
    { deadlineMs: 70_000 },
  );
}

/** What external-attacher does: the volume is with the node from now on. */
async function attach({ cluster, node }: Csi, name: string): Promise<void> {
  const found = await waitFor(
    `the controller does not want ${name} attached`,
    async () =>
      (
        await cluster.read<{ items: VolumeAttachment[] }>('/apis/storage.k8s.io/v1/volumeattachments')
      )?.items.find(({ spec }) => spec.source.persistentVolumeName === name && spec.nodeName === node.name),
    { deadlineMs: 60_000, everyMs: 100 },
  );
  await cluster.kubectl([
    'patch',
    'volumeattachment',
    found.metadata!.name!,
    '--subresource=status',
    '--type=merge',
    '-p',
    JSON.stringify({ status: { attached: true, attachmentMetadata: { port: '7' } } }),
  ]);
}

const isAttached = async ({ cluster }: Csi, name: string) =>
  (await cluster.read<{ items: VolumeAttachment[] }>(
    '/apis/storage.k8s.io/v1/volumeattachments',
  ))!.items.some(({ spec }) => spec.source.persistentVolumeName === name);

/** A pod that runs `script` and then waits, ready when the script is done. */
function podOf(
  { images, node }: Csi,
  name: string,
  script: string,
  spec: object,
  container: object = {},
): Pod {
  const command = `(${script}) > /tmp/said 2>&1; echo $? > /tmp/done; trap 'exit 0' TERM; sleep 1000 & wait`;
  return makePod(namespace, name, {
    terminationGracePeriodSeconds: 1,
    nodeName: node.name,
    ...spec,
    containers: [
      {
        name: 'main',
        image: images.one,
        command: ['sh', '-c', command],
        readinessProbe: { exec: { command: ['cat', '/tmp/done'] }, periodSeconds: 1 },
        volumeMounts: [{ name: 'v', mountPath: '/v' }],
        ...container,
      },
    ],
  } as PodSpec);
}
const claimed = (claimName: string) => ({
  volumes: [{ name: 'v', persistentVolumeClaim: { claimName } }],
});

async function said(csi: Csi, name: string): Promise<string> {
  await csi.pod(namespace, name, isReady);
  return run(csi, name, 'cat', '/tmp/said');
}
const run = ({ cluster }: Csi, name: string, ...command: string[]) =>
  cluster.kubectl(['-n', namespace, 'exec', name, '--', ...command]);
const remove = ({ cluster }: Csi, ...names: string[]) =>
  cluster.kubectl(['-n', namespace, 'delete', ...names.map((name) => `pod/${name}`), '--timeout=60s'], {
    deadlineMs: 70_000,
  });
const methods = async ({ program }: Csi) => (await program.calls()).map(({ method }) => method);
const count = (list: readonly string[], name: string) => list.filter((one) => one === name).length;

async function filesystem(csi: Csi): Promise<void> {
  await provide(csi, 'fs', 16);
  await csi.cluster.apply(
    podOf(csi, 'one', 'echo kept > /v/file; ls -ldn /v; df /v | tail -1', {
      ...claimed('fs'),
      securityContext: { runAsUser: 1000, fsGroup: 2000 },
    }),
  );
  const inUse = [`kubernetes.io/csi/${driver}^disk-fs`];
  await until('the volume is not in use before it is attached', async () => {
    const found = await volumesInUse(csi);
    return found?.join() === inUse.join();
  });
  await attach(csi, 'fs');
  assert.match(await said(csi, 'one'), /^drwxrwsr-x .* 2000 .*\n\/dev\/loop/);
  await csi.cluster.apply(podOf(csi, 'two', 'cat /v/file', claimed('fs')));
  assert.equal(await said(csi, 'two'), 'kept\n');
  const calls = await csi.program.calls();
  const publish = calls.findLast(({ method }) => method === 'NodePublishVolume')!.request as {
    request?: { publish_context?: object; volume_context?: Record<string, string> };
  };
  assert.deepEqual(publish.request?.publish_context, { port: '7' });
  assert.equal(publish.request?.volume_context?.['csi.storage.k8s.io/pod.name'], 'two');
  assert.equal(count(await methods(csi), 'NodeStageVolume'), 1);
  await remove(csi, 'one');
  assert.equal(await run(csi, 'two', 'cat', '/v/file'), 'kept\n');
  assert.equal(count(await methods(csi), 'NodeUnstageVolume'), 0);
}

async function volumesInUse({ cluster, node }: Csi): Promise<readonly string[] | undefined> {
  return (await cluster.read<Node>(`/api/v1/nodes/${node.name}`))?.status?.volumesInUse;
}

/** Goes on with the pod `two` of before. */
async function restart(csi: Csi): Promise<void> {
  const [before] = [...(await csi.containers(namespace)).values()];
  await csi.node.kill9();
  await csi.program.stop();
  await csi.node.start();
  await csi.nodeReports();
  assert.equal(await run(csi, 'two', 'cat', '/v/file'), 'kept\n');
  await csi.startDriver();
  await csi.registered();
  assert.deepEqual([...(await csi.containers(namespace)).values()], [before]);
  await csi.node.kill9();
  await csi.cluster.kubectl(['-n', namespace, 'delete', 'pod', 'two', '--wait=false']);
  await csi.node.start();
  await csi.cluster.kubectl(['-n', namespace, 'wait', '--for=delete', 'pod/two', '--timeout=60s'], {
    deadlineMs: 70_000,
  });
  await until('the volume is not given back', async () => (await methods(csi)).includes('NodeUnstageVolume'));
  await until('the volume stays in use', async () => (await volumesInUse(csi)) === undefined);
  await until('the volume stays attached', async () => !(await isAttached(csi, 'fs')));
}

async function growing(csi: Csi): Promise<void> {
  await provide(csi, 'more', 16, { medium: 'memory' });
  await csi.cluster.apply(podOf(csi, 'grows', 'df -k /v | tail -1', claimed('more')));
  await attach(csi, 'more');
  await said(csi, 'grows');
  const blocks = async () =>
    Number((await run(csi, 'grows', 'df', '-k', '/v')).split('\n').at(-2)!.split(/\s+/)[1]);
  const before = await blocks();
  // What external-resizer does once its driver has grown the volume.
  await csi.cluster.kubectl(['patch', 'pv', 'more', '-p', '{"spec":{"capacity":{"storage":"32Mi"}}}']);
  await csi.cluster.kubectl([
    ...['-n', namespace, 'patch', 'pvc', 'more', '--subresource=status', '--type=merge', '-p'],
    JSON.stringify({
      status: {
        allocatedResources: { storage: '32Mi' },
        allocatedResourceStatuses: { storage: 'NodeResizePending' },
        conditions: [{ type: 'FileSystemResizePending', status: 'True' }],
      },
    }),
  ]);
  const claim = await waitFor(
    'the claim does not say that the volume has grown',
    async () => {
      const path = `/api/v1/namespaces/${namespace}/persistentvolumeclaims/more`;
      const found = await csi.cluster.read<PersistentVolumeClaim>(path);
      return found?.status?.capacity?.['storage'] === '32Mi' ? found : undefined;
    },
    { deadlineMs: 150_000, everyMs: 200 },
  );
  const conditions = claim.status?.conditions ?? [];
  assert.deepEqual(
    conditions.filter(({ type }) => /Resiz/.test(type)),
    [],
  );
  assert.equal('allocatedResourceStatuses' in claim.status!, false);
  assert.ok((await blocks()) > before * 1.8);
  const summary = JSON.parse(
    await csi.cluster.kubectl(['get', '--raw', `/api/v1/nodes/${csi.node.name}/proxy/stats/summary`]),
  ) as { pods: { podRef: { name: string }; volume?: { name: string; capacityBytes: number }[] }[] };
  const pod = summary.pods.find(({ podRef }) => podRef.name === 'grows');
  assert.equal(pod?.volume?.find(({ name }) => name === 'v')?.capacityBytes, 32 * mebi);
  assert.ok((await methods(csi)).includes('NodeGetVolumeStats'));
  await csi.event(namespace, 'grows', ({ reason }) => reason === 'FileSystemResizeSuccessful');
  await remove(csi, 'grows');
}

async function device(csi: Csi): Promise<void> {
  await provide(csi, 'raw', 4, { volumeMode: 'Block' });
  const script =
    'echo written | dd of=/dev/disk conv=notrunc 2>/dev/null; head -c 8 /dev/disk; test -b /dev/disk';
  await csi.cluster.apply(
    podOf(csi, 'raw', script, claimed('raw'), {
      volumeMounts: [],
      volumeDevices: [{ name: 'v', devicePath: '/dev/disk' }],
    }),
  );
  await attach(csi, 'raw');
  assert.equal(await said(csi, 'raw'), 'written\n');
  assert.equal(await run(csi, 'raw', 'cat', '/tmp/done'), '0\n');
  const summary = JSON.parse(
    await csi.cluster.kubectl(['get', '--raw', `/api/v1/nodes/${csi.node.name}/proxy/stats/summary`]),
  ) as { pods: { podRef: { name: string }; volume?: { name: string; capacityBytes: number }[] }[] };
  const told = summary.pods.find(({ podRef }) => podRef.name === 'raw')?.volume;
  assert.ok(told?.some(({ name, capacityBytes }) => name === 'v' && capacityBytes > 0));
  await remove(csi, 'raw');
}

async function inline(csi: Csi): Promise<void> {
  await csi.cluster.apply(
    podOf(csi, 'inline', 'cat /v/pod; echo x > /v/own && echo ok', {
      volumes: [{ name: 'v', csi: { driver } }],
    }),
  );
  assert.equal(await said(csi, 'inline'), 'inlineok\n');
  await remove(csi, 'inline');
}

async function away(csi: Csi): Promise<void> {
  await csi.program.stop();
  await until('the driver is still announced', async () => !hasDriver(await csiNode(csi)));
  await csi.cluster.apply(podOf(csi, 'waits', 'echo ok', { volumes: [{ name: 'v', csi: { driver } }] }));
  const event = await csi.event(namespace, 'waits', ({ reason }) => reason === 'FailedMount');
  assert.match(
    event.message!,
    /MountVolume\.SetUp failed for volume "v" : .*driver name disks\.test\.example not found in the list of registered CSI drivers/,
  );
  await csi.startDriver();
  await csi.pod(namespace, 'waits', isReady, 180_000);
  await csi.program.stop();
  await until('the driver is still announced', async () => !hasDriver(await csiNode(csi)));
  await csi.cluster.kubectl(['-n', namespace, 'delete', 'pod', 'waits', '--wait=false']);
  await csi.startDriver();
  await csi.cluster.kubectl(['-n', namespace, 'wait', '--for=delete', 'pod/waits', '--timeout=180s'], {
    deadlineMs: 190_000,
  });
  await until('the volume is not given back', async () => {
    const list = await methods(csi);
    return list.lastIndexOf('NodeUnpublishVolume') > list.lastIndexOf('NodePublishVolume');
  });
}

async function gone(csi: Csi): Promise<void> {
  await csi.program.stop();
  await until('the driver is still announced', async () => !hasDriver(await csiNode(csi)));
  await until('the Node still has an id', async () => {
    const node = await csi.cluster.read<Node>(`/api/v1/nodes/${csi.node.name}`);
    return node?.metadata?.annotations?.['csi.volume.kubernetes.io/nodeid'] === undefined;
  });
}
