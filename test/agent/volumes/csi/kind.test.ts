import assert from 'node:assert/strict';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeStorageReader } from '../../../../agent/api/stats/storage.ts';
import { volumeUsage } from '../../../../agent/volumes/csi/mount.ts';
import { attachmentName, globalMount, inlineHandle } from '../../../../agent/volumes/csi/paths.ts';
import { grpcError, never } from '../../../peers/plugin.ts';
import { asRoot } from '../cluster.ts';
import { addVolume, claimed, csiStage, driverName, inline, podWith } from './stage.ts';

const skip = asRoot;

const publishOf = (stage: Awaited<ReturnType<typeof csiStage>>) =>
  stage.driver.calls.filter(({ method }) => method === 'NodePublishVolume').at(-1)!.request;

test('a volume is staged, published, and taken away', { skip }, async (t) => {
  const stage = await csiStage(t);
  const { volumes, driver, kubeletDir } = stage;
  addVolume(stage, 'data', { mountOptions: ['noatime'], csi: { volumeAttributes: { tier: 'gold' } } });
  const pod = podWith('a', [claimed('data')]);
  const ready = await volumes.setUp(pod);
  const folder = join(kubeletDir, 'pods/a/volumes/kubernetes.io~csi/pv-data');
  const staging = globalMount(kubeletDir, driverName, 'handle-data');
  assert.deepEqual(ready.get('data'), { name: 'data', hostPath: join(folder, 'mount'), readOnly: false });
  await writeFile(join(folder, 'mount/hello'), 'x');
  assert.deepEqual(driver.names(), ['NodeStageVolume', 'NodePublishVolume']);
  const [{ request: staged }] = driver.calls.filter(({ method }) => method === 'NodeStageVolume') as [
    (typeof driver.calls)[0],
  ];
  assert.equal(staged.stagingTargetPath, staging);
  assert.deepEqual(staged.volumeContext, { tier: 'gold' });
  assert.deepEqual(staged.volumeCapability, {
    block: undefined,
    accessMode: { mode: 'SINGLE_NODE_WRITER' },
    mount: { fsType: 'ext4', mountFlags: ['noatime'], volumeMountGroup: '' },
  });
  assert.deepEqual(JSON.parse(await readFile(join(folder, 'vol_data.json'), 'utf8')), {
    attachmentID: attachmentName('handle-data', driverName, 'n'),
    driverName,
    nodeName: 'n',
    specVolID: 'pv-data',
    volumeHandle: 'handle-data',
    volumeLifecycleMode: 'Persistent',
  });
  assert.deepEqual(JSON.parse(await readFile(join(staging, '../vol_data.json'), 'utf8')), {
    driverName,
    volumeHandle: 'handle-data',
  });
  await volumes.setUp(pod);
  assert.equal(driver.names().length, 2, 'nothing is done again');
  await volumes.tearDown('a');
  assert.deepEqual(driver.names().slice(2), ['NodeUnpublishVolume', 'NodeUnstageVolume']);
  assert.deepEqual(await stage.mounts(), []);
  assert.deepEqual(await readdir(join(kubeletDir, 'pods')), []);
  assert.deepEqual(await readdir(join(kubeletDir, 'plugins/kubernetes.io/csi', driverName)), []);
  await volumes.tearDown('a');
  assert.equal(driver.names().length, 4);
});

test('two pods share a volume: it is staged once, and until the last has gone', { skip }, async (t) => {
  const stage = await csiStage(t);
  const { driver } = stage;
  addVolume(stage, 'data');
  await Promise.all(['a', 'b'].map((uid) => stage.volumes.setUp(podWith(uid, [claimed('data')]))));
  assert.deepEqual(driver.names().toSorted(), ['NodePublishVolume', 'NodePublishVolume', 'NodeStageVolume']);
  await stage.volumes.tearDown('a');
  await stage.restart();
  assert.equal(driver.names().at(-1), 'NodeUnpublishVolume');
  await stage.volumes.tearDown('b');
  assert.equal(driver.names().at(-1), 'NodeUnstageVolume');
  assert.deepEqual(await stage.mounts(), []);
});

test('a driver that does not stage is only told to publish', { skip }, async (t) => {
  const stage = await csiStage(t, { capabilities: [] });
  addVolume(stage, 'data');
  await stage.volumes.setUp(podWith('a', [claimed('data')]));
  assert.equal(publishOf(stage).stagingTargetPath, '');
  await stage.volumes.tearDown('a');
  assert.deepEqual(stage.driver.names(), ['NodePublishVolume', 'NodeUnpublishVolume']);
});

test('a volume that the pod declares itself', { skip }, async (t) => {
  const stage = await csiStage(t, { spec: { podInfoOnMount: true } });
  const volume = inline('scratch', {
    readOnly: true,
    fsType: 'xfs',
    volumeAttributes: { a: 'b' },
    nodePublishSecretRef: { name: 'key' },
  });
  stage.objects.set('/api/v1/namespaces/ns/secrets/key', {
    data: { password: Buffer.from('hush').toString('base64') },
  });
  const ready = await stage.volumes.setUp(podWith('a', [volume]));
  assert.equal(ready.get('scratch')?.readOnly, true);
  const request = publishOf(stage);
  assert.equal(request.volumeId, inlineHandle('a', 'scratch'));
  assert.equal(request.stagingTargetPath, '');
  assert.equal(request.readonly, true);
  assert.deepEqual(request.secrets, { password: 'hush' });
  assert.equal(request.volumeCapability?.mount?.fsType, 'xfs');
  assert.equal(request.volumeContext['a'], 'b');
  assert.equal(request.volumeContext['csi.storage.k8s.io/ephemeral'], 'true');
  assert.equal(request.volumeContext['csi.storage.k8s.io/pod.uid'], 'a');
  await stage.volumes.tearDown('a');
  assert.deepEqual(stage.driver.names(), ['NodePublishVolume', 'NodeUnpublishVolume']);
  assert.deepEqual(await stage.mounts(), []);
});

test('a volume of the pod itself needs a driver that is for it', { skip }, async (t) => {
  const stage = await csiStage(t, { spec: null });
  await assert.rejects(stage.volumes.setUp(podWith('a', [inline('scratch')])), {
    code: 'VOLUME_FAILED',
    message: `MountVolume.SetUp failed for volume "scratch" : volume mode "Ephemeral" not supported by driver ${driverName} (no CSIDriver object)`,
  });
  await stage.volumes.tearDown('a');
  assert.deepEqual(stage.driver.names(), []);
});

test('tokens that a driver asks for', { skip }, async (t) => {
  for (const serviceAccountTokenInSecrets of [false, true]) {
    const stage = await csiStage(t, {
      spec: {
        tokenRequests: [{ audience: '' }, { audience: 'vault', expirationSeconds: 7200 }],
        serviceAccountTokenInSecrets,
      },
    });
    await stage.volumes.setUp(podWith('a', [inline('scratch')]));
    const { secrets, volumeContext } = publishOf(stage);
    const key = 'csi.storage.k8s.io/serviceAccount.tokens';
    const [there, elsewhere] = serviceAccountTokenInSecrets
      ? [secrets, volumeContext]
      : [volumeContext, secrets];
    assert.equal(elsewhere[key], undefined);
    const tokens = JSON.parse(there[key]!);
    assert.deepEqual(Object.keys(tokens), ['', 'vault']);
    assert.equal(tokens.vault.expirationTimestamp, '2026-01-01T02:00:00Z');
    assert.match(tokens.vault.token, /^x\..+\.y$/);
  }
});

test('a driver that wants it publishes again, and what fails then changes nothing', { skip }, async (t) => {
  const stage = await csiStage(t, { spec: { requiresRepublish: true } });
  const pod = podWith('a', [inline('scratch')]);
  await stage.volumes.setUp(pod);
  assert.equal(stage.volumes.refreshAfterMs(pod), 60_000);
  stage.clock.advance(60_001);
  await stage.volumes.setUp(pod);
  assert.deepEqual(stage.driver.names(), ['NodePublishVolume', 'NodePublishVolume']);
  stage.driver.behave.set('NodePublishVolume', () => {
    throw grpcError('INTERNAL', 'not now');
  });
  stage.clock.advance(60_001);
  await stage.volumes.setUp(pod);
  assert.equal(stage.volumes.refreshAfterMs(pod), 10_000);
  assert.equal((await stage.mounts()).length, 1);
  assert.deepEqual(stage.events, [
    'Pod Warning FailedMount MountVolume.SetUp failed for volume "scratch" : rpc error: code = Internal desc = not now',
  ]);
  await stage.volumes.tearDown('a');
});

test('files are given to the pod’s group, by us or by the driver', { skip }, async (t) => {
  const security = { securityContext: { fsGroup: 4321 } };
  const ours = await csiStage(t);
  addVolume(ours, 'data');
  const ready = await ours.volumes.setUp(podWith('a', [claimed('data')], security));
  const facts = await stat(ready.get('data')!.hostPath);
  assert.equal(facts.gid, 4321);
  assert.equal(facts.mode & 0o2070, 0o2070);
  await ours.volumes.tearDown('a');
  const theirs = await csiStage(t, { capabilities: ['STAGE_UNSTAGE_VOLUME', 'VOLUME_MOUNT_GROUP'] });
  addVolume(theirs, 'data');
  const left = await theirs.volumes.setUp(podWith('a', [claimed('data')], security));
  assert.notEqual((await stat(left.get('data')!.hostPath)).gid, 4321);
  assert.equal(publishOf(theirs).volumeCapability?.mount?.volumeMountGroup, '4321');
  await theirs.volumes.tearDown('a');
});

test('a volume is waited for until it is attached', { skip }, async (t) => {
  const stage = await csiStage(t, { spec: { attachRequired: true } });
  addVolume(stage, 'data');
  const pod = podWith('a', [claimed('data')]);
  const path = `/apis/storage.k8s.io/v1/volumeattachments/${attachmentName('handle-data', driverName, 'n')}`;
  const failure = (why: string, step = 'MountVolume.SetUp') => ({
    code: 'VOLUME_FAILED',
    message: `${step} failed for volume "pv-data" : ${why}`,
  });
  await assert.rejects(
    stage.volumes.setUp(pod),
    failure(
      `timed out waiting for external-attacher of ${driverName} CSI driver to attach volume handle-data`,
      'MountVolume.WaitForAttach',
    ),
  );
  stage.objects.set(path, { status: { attached: false, attachError: { message: 'no such disk' } } });
  await assert.rejects(stage.volumes.setUp(pod), failure('no such disk'));
  stage.objects.set(path, { metadata: { deletionTimestamp: 'x' }, status: { attached: true } });
  await assert.rejects(stage.volumes.setUp(pod), failure('volume attachment is being deleted'));
  assert.deepEqual(stage.driver.names(), []);
  const told = () =>
    stage.patches.map(({ body }) => (body as { status: { volumesInUse: string[] } }).status.volumesInUse);
  const inUse = [`kubernetes.io/csi/${driverName}^handle-data`];
  assert.deepEqual(told(), [inUse, null, inUse, null, inUse, null]);
  stage.objects.set(path, { status: { attached: true, attachmentMetadata: { device: 'sdx' } } });
  await stage.volumes.setUp(pod);
  assert.deepEqual(publishOf(stage).publishContext, { device: 'sdx' });
  await stage.volumes.setUp(podWith('b', [claimed('data')]));
  assert.deepEqual(told().slice(6), [inUse]);
  await stage.restart();
  await stage.volumes.tearDown('a');
  assert.deepEqual(told().slice(7), []);
  await stage.volumes.tearDown('b');
  assert.deepEqual(await stage.mounts(), []);
  await stage.volumes.setUp(podWith('c', []));
  assert.deepEqual(told().slice(7), [null]);
});

test('a block volume is a device, and goes with its last pod', { skip }, async (t) => {
  const stage = await csiStage(t);
  const { driver, kubeletDir } = stage;
  addVolume(stage, 'disk', { volumeMode: 'Block' });
  const pods = ['a', 'b'].map((uid) => podWith(uid, [claimed('disk')], {}, ['disk']));
  const ready = await stage.volumes.setUp(pods[0]!);
  const publish = join(kubeletDir, 'plugins/kubernetes.io/csi/volumeDevices/publish/pv-disk/a');
  assert.deepEqual(ready.get('disk'), { name: 'disk', hostPath: publish, readOnly: false, device: true });
  assert.ok((await stat(publish)).isBlockDevice());
  const link = join(kubeletDir, 'pods/a/volumeDevices/kubernetes.io~csi/pv-disk');
  assert.ok((await stat(link)).isBlockDevice());
  await stage.volumes.setUp(pods[1]!);
  assert.deepEqual(driver.names(), ['NodeStageVolume', 'NodePublishVolume', 'NodePublishVolume']);
  driver.behave.set('NodeUnpublishVolume', async (_, proper) => {
    await proper().catch(() => {});
  });
  await stage.volumes.tearDown('a');
  assert.equal(driver.names().at(-1), 'NodeUnpublishVolume');
  await stage.restart();
  await stage.volumes.tearDown('b');
  assert.equal(driver.names().at(-1), 'NodeUnstageVolume');
  assert.deepEqual(await stage.mounts(), []);
  assert.deepEqual(await readdir(join(kubeletDir, 'pods')), []);
  assert.deepEqual(await readdir(join(kubeletDir, 'plugins/kubernetes.io/csi/volumeDevices')), [
    'publish',
    'staging',
  ]);
});

test('without its driver a pod goes on after a new start, and a new pod waits', { skip }, async (t) => {
  const stage = await csiStage(t);
  addVolume(stage, 'data');
  const pod = podWith('a', [claimed('data')]);
  const before = await stage.volumes.setUp(pod);
  await stage.restart({ registered: false });
  assert.deepEqual(await stage.volumes.setUp(pod), before);
  assert.ok(stage.volumes.refreshAfterMs(pod)! > 0, 'the driver is told when it is back');
  const missing = `driver name ${driverName} not found in the list of registered CSI drivers (is the driver running on this node, with its node-driver-registrar?)`;
  await assert.rejects(stage.volumes.setUp(podWith('b', [claimed('data')])), {
    message: `MountVolume.SetUp failed for volume "pv-data" : ${missing}`,
  });
  await stage.volumes.tearDown('b');
  await assert.rejects(stage.volumes.tearDown('a'), { code: 'VOLUME_FAILED' });
  assert.equal((await stage.mounts()).length, 2, 'nothing is taken away behind the back of the driver');
  await stage.register();
  await stage.volumes.setUp(pod);
  assert.deepEqual(stage.driver.names().slice(2), ['NodeStageVolume', 'NodePublishVolume']);
  await stage.volumes.tearDown('a');
  assert.deepEqual(await stage.mounts(), []);
});

test('what a driver certainly did not do leaves nothing behind', { skip }, async (t) => {
  for (const method of ['NodeStageVolume', 'NodePublishVolume']) {
    const stage = await csiStage(t, method === 'NodeStageVolume' ? {} : { capabilities: [] });
    addVolume(stage, 'data');
    stage.driver.behave.set(method, () => {
      throw grpcError('INVALID_ARGUMENT', 'no such volume');
    });
    await assert.rejects(stage.volumes.setUp(podWith('a', [claimed('data')])), {
      message:
        'MountVolume.SetUp failed for volume "pv-data" : rpc error: code = InvalidArgument desc = no such volume',
    });
    await stage.restart({ registered: false });
    await stage.volumes.tearDown('a');
    assert.ok(!stage.driver.names().includes('NodeUnpublishVolume'));
  }
});

test('what a driver may have done is undone with the pod', { skip }, async (t) => {
  for (const method of ['NodeStageVolume', 'NodePublishVolume']) {
    const stage = await csiStage(t);
    addVolume(stage, 'data');
    stage.driver.behave.set(method, async (_, proper) => {
      await proper();
      throw grpcError('DEADLINE_EXCEEDED', 'too slow');
    });
    await assert.rejects(stage.volumes.setUp(podWith('a', [claimed('data')])), { code: 'VOLUME_FAILED' });
    await stage.restart();
    await stage.volumes.tearDown('a');
    assert.deepEqual(stage.driver.names().slice(-2), ['NodeUnpublishVolume', 'NodeUnstageVolume']);
    assert.deepEqual(await stage.mounts(), []);
  }
});

test('a driver that hangs is given up with the pod', { skip }, async (t) => {
  const stage = await csiStage(t);
  addVolume(stage, 'data');
  const stop = new AbortController();
  stage.driver.behave.set('NodeStageVolume', () => {
    stop.abort();
    return never;
  });
  await assert.rejects(stage.volumes.setUp(podWith('a', [claimed('data')]), stop.signal), {
    code: 'ABORTED',
  });
  stage.driver.behave.clear();
  await stage.volumes.tearDown('a');
  assert.deepEqual(await stage.mounts(), []);
});

test('a driver that vanishes in the middle of a call', { skip }, async (t) => {
  const stage = await csiStage(t);
  addVolume(stage, 'data');
  stage.driver.behave.set('NodePublishVolume', async () => {
    await stage.driver.close();
    return never;
  });
  await assert.rejects(
    stage.volumes.setUp(podWith('a', [claimed('data')])),
    /rpc error: code = (Unavailable|Canceled)/,
  );
  await assert.rejects(stage.volumes.tearDown('a'), /rpc error: code = Unavailable/);
  assert.equal((await stage.mounts()).length, 1, 'what is staged stays for when it is back');
});

test('teardown that fails is done again from where it failed', { skip }, async (t) => {
  const stage = await csiStage(t);
  addVolume(stage, 'data');
  await stage.volumes.setUp(podWith('a', [claimed('data')]));
  stage.driver.behave.set('NodeUnstageVolume', () => {
    throw grpcError('INTERNAL', 'busy');
  });
  await assert.rejects(stage.volumes.tearDown('a'), /busy/);
  await stage.restart();
  stage.driver.behave.clear();
  await stage.volumes.tearDown('a');
  assert.deepEqual(stage.driver.names().slice(-2), ['NodeUnpublishVolume', 'NodeUnstageVolume']);
  assert.deepEqual(await stage.mounts(), []);
});

test('a device that is none is refused', { skip }, async (t) => {
  const stage = await csiStage(t);
  addVolume(stage, 'disk', { volumeMode: 'Block' });
  stage.driver.behave.set(
    'NodePublishVolume',
    async ({ targetPath }) => void (await writeFile(targetPath, '')),
  );
  await assert.rejects(
    stage.volumes.setUp(podWith('a', [claimed('disk')], {}, ['disk'])),
    /not a block device/,
  );
  await stage.volumes.tearDown('a');
  assert.deepEqual(await stage.mounts(), []);
});

test('a secret that is not there is named, never shown', { skip }, async (t) => {
  const stage = await csiStage(t);
  addVolume(stage, 'data', { csi: { nodeStageSecretRef: { name: 'key', namespace: 'vault' } } });
  await assert.rejects(stage.volumes.setUp(podWith('a', [claimed('data')])), /NodeStageSecretRef vault\/key/);
});

test('how full a volume is, is asked of the driver', { skip }, async (t) => {
  const stage = await csiStage(t, { capabilities: ['STAGE_UNSTAGE_VOLUME', 'GET_VOLUME_STATS'] });
  addVolume(stage, 'data');
  const ready = await stage.volumes.setUp(podWith('a', [claimed('data')]));
  const folder = join(ready.get('data')!.hostPath, '..');
  const signal = AbortSignal.timeout(20_000);
  assert.deepEqual(await volumeUsage(stage.drivers, folder, stage.kubeletDir, signal), {
    capacityBytes: 100,
    availableBytes: 60,
    usedBytes: 40,
    inodes: 10,
    inodesFree: 6,
    inodesUsed: 4,
  });
  assert.equal(stage.driver.calls.at(-1)?.request.volumePath, ready.get('data')!.hostPath);
  assert.equal(await volumeUsage(stage.drivers, join(folder, 'none'), stage.kubeletDir, signal), undefined);
  await stage.volumes.tearDown('a');
});

test('how big a device is, is asked of the driver too', { skip }, async (t) => {
  const stage = await csiStage(t, { capabilities: ['STAGE_UNSTAGE_VOLUME', 'GET_VOLUME_STATS'] });
  addVolume(stage, 'disk', { volumeMode: 'Block' });
  const ready = await stage.volumes.setUp(podWith('a', [claimed('disk')], {}, ['disk']));
  const link = join(stage.kubeletDir, 'pods/a/volumeDevices/kubernetes.io~csi/pv-disk');
  const signal = AbortSignal.timeout(20_000);
  const usage = await volumeUsage(stage.drivers, link, stage.kubeletDir, signal);
  assert.equal(usage?.capacityBytes, 100);
  assert.equal(stage.driver.calls.at(-1)?.request.volumePath, ready.get('disk')!.hostPath);
  const reader = makeStorageReader({
    kubeletDir: stage.kubeletDir,
    clock: stage.clock,
    csiUsage: (folder) => volumeUsage(stage.drivers, folder, stage.kubeletDir, signal),
  });
  const [measured, ...others] = await reader.volumes(podWith('a', [claimed('disk')], {}, ['disk']));
  assert.deepEqual(others, []);
  assert.equal(measured?.name, 'disk');
  assert.equal(measured?.claim?.name, 'disk');
  assert.equal(measured?.ephemeral, false);
  assert.equal(measured?.storage.capacityBytes, 100);
  await stage.volumes.tearDown('a');
});

test('a file system is staged and published with the label of the pod, where the driver can', {
  skip,
}, async (t) => {
  const flags = async (spec: object, fileContext?: string) => {
    const stage = await csiStage(t, {
      spec,
      ...(fileContext === undefined ? {} : { fileContext }),
    });
    addVolume(stage, 'data');
    const pod = podWith('a', [claimed('data')], {
      securityContext: { seLinuxOptions: { level: 's0:c1,c2' } },
    });
    // The kernel here has no SELinux to mount with.
    const seen: unknown[] = [];
    for (const method of ['NodeStageVolume', 'NodePublishVolume'])
      stage.driver.behave.set(method, async (request) => {
        seen.push(request.volumeCapability?.mount?.mountFlags);
      });
    await stage.volumes.setUp(pod);
    await stage.volumes.tearDown('a');
    return seen;
  };
  const context = 'system_u:object_r:container_file_t:s0';
  const label = 'context="system_u:object_r:container_file_t:s0:c1,c2"';
  const [staged, published] = (await flags({ seLinuxMount: true }, context)) as string[][];
  assert.equal(staged?.at(-1), label);
  assert.equal(published?.at(-1), label);
  for (const without of [await flags({ seLinuxMount: true }), await flags({}, context)])
    assert.ok((without as string[][]).every((one) => !one.some((flag) => flag.startsWith('context='))));
});
