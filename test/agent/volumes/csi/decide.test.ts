import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { failureOf } from '../../../../agent/plugins/channel.ts';
import {
  accessMode,
  type CsiDriverObject,
  type CsiVolume,
  capabilityOf,
  checkLifecycle,
  isFinal,
  needsAttachment,
  podInfo,
  weSetGroup,
} from '../../../../agent/volumes/csi/decide.ts';
import { highestVersion } from '../../../../agent/volumes/csi/drivers.ts';
import {
  attachmentName,
  blockPaths,
  globalMount,
  inlineHandle,
  parseData,
} from '../../../../agent/volumes/csi/paths.ts';
import { abortError } from '../../../../runtime/host/errors.ts';
import { persistent } from './example.ts';

const inline: CsiVolume = { ...persistent, mode: 'Ephemeral', accessModes: undefined, mountOptions: [] };
const can =
  (...names: string[]) =>
  (name: string) =>
    names.includes(name);
const object = (spec: CsiDriverObject['spec']): CsiDriverObject => ({
  spec: { fsGroupPolicy: 'ReadWriteOnceWithFSType', ...spec },
});

test('names and places are those of kubelet', () => {
  const sum = (text: string) => createHash('sha256').update(text).digest('hex');
  assert.equal(attachmentName('vol', 'drv', 'node'), `csi-${sum('voldrvnode')}`);
  assert.equal(inlineHandle('uid', 'data'), `csi-${sum('uiddata')}`);
  assert.equal(
    globalMount('/var/lib/kubelet', 'drv', 'vol'),
    `/var/lib/kubelet/plugins/kubernetes.io/csi/drv/${sum('vol')}/globalmount`,
  );
  assert.deepEqual(blockPaths('/k', 'pv', 'uid'), {
    folder: '/k/plugins/kubernetes.io/csi/volumeDevices/pv',
    data: '/k/plugins/kubernetes.io/csi/volumeDevices/pv/data',
    staging: '/k/plugins/kubernetes.io/csi/volumeDevices/staging/pv',
    publish: '/k/plugins/kubernetes.io/csi/volumeDevices/publish/pv/uid',
    link: '/k/pods/uid/volumeDevices/kubernetes.io~csi/pv',
  });
});

test('a data file is read, whatever is in it', () => {
  assert.deepEqual(parseData('{"driverName":"d","volumeHandle":"h"}\n'), {
    driverName: 'd',
    volumeHandle: 'h',
  });
  for (const text of [
    '',
    '{',
    'null',
    '[]',
    '"x"',
    '{"driverName":"d"}',
    '{"driverName":1,"volumeHandle":"h"}',
  ])
    assert.equal(parseData(text), undefined, text);
});

test('what must be attached', () => {
  assert.equal(needsAttachment(persistent, undefined), true);
  assert.equal(needsAttachment(persistent, object({})), true);
  assert.equal(needsAttachment(persistent, object({ attachRequired: true })), true);
  assert.equal(needsAttachment(persistent, object({ attachRequired: false })), false);
  assert.equal(needsAttachment(inline, undefined), false);
});

test('volumes of pods themselves need a driver that says it is for them', () => {
  const refused = (why: string) => ({
    code: 'VOLUME_FAILED',
    message: `volume mode "Ephemeral" not supported by driver d (${why})`,
  });
  checkLifecycle(persistent, undefined);
  checkLifecycle(inline, object({ volumeLifecycleModes: ['Persistent', 'Ephemeral'] }));
  assert.throws(() => checkLifecycle(inline, undefined), refused('no CSIDriver object'));
  assert.throws(
    () => checkLifecycle(inline, object({ volumeLifecycleModes: ['Persistent'] })),
    refused('only supports ["Persistent"]'),
  );
  assert.throws(() => checkLifecycle(persistent, object({ volumeLifecycleModes: ['Ephemeral'] })));
});

test('access modes', () => {
  const plain = can();
  const fine = can('SINGLE_NODE_MULTI_WRITER');
  for (const [mode, first, second] of [
    ['ReadWriteOnce', 'SINGLE_NODE_WRITER', 'SINGLE_NODE_MULTI_WRITER'],
    ['ReadWriteOncePod', 'SINGLE_NODE_WRITER', 'SINGLE_NODE_SINGLE_WRITER'],
    ['ReadOnlyMany', 'MULTI_NODE_READER_ONLY', 'MULTI_NODE_READER_ONLY'],
    ['ReadWriteMany', 'MULTI_NODE_MULTI_WRITER', 'MULTI_NODE_MULTI_WRITER'],
    ['Sometimes', 'UNKNOWN', 'UNKNOWN'],
  ] as const) {
    assert.equal(accessMode(mode, plain), first);
    assert.equal(accessMode(mode, fine), second);
  }
});

test('how a volume is wanted', () => {
  assert.deepEqual(capabilityOf(persistent, can('VOLUME_MOUNT_GROUP'), 7), {
    accessMode: { mode: 'SINGLE_NODE_WRITER' },
    mount: { fsType: 'ext4', mountFlags: ['noatime'], volumeMountGroup: '7' },
  });
  assert.deepEqual(capabilityOf(inline, can(), 7), {
    accessMode: { mode: 'SINGLE_NODE_WRITER' },
    mount: { fsType: 'ext4', mountFlags: [], volumeMountGroup: '' },
  });
  assert.deepEqual(capabilityOf({ ...persistent, block: true }, can('VOLUME_MOUNT_GROUP'), 7), {
    accessMode: { mode: 'SINGLE_NODE_WRITER' },
    block: {},
  });
});

test('who gives the volume to the group of the pod', () => {
  const rows: readonly [boolean, CsiVolume, CsiDriverObject | undefined, string[], number | undefined][] = [
    [true, persistent, undefined, [], 5],
    [false, persistent, undefined, [], undefined],
    [false, persistent, undefined, ['VOLUME_MOUNT_GROUP'], 5],
    [false, { ...persistent, fsType: '' }, undefined, [], 5],
    [false, { ...persistent, accessModes: undefined }, undefined, [], 5],
    [false, { ...persistent, accessModes: ['ReadWriteMany'] }, undefined, [], 5],
    [true, { ...persistent, accessModes: ['ReadWriteOncePod'] }, undefined, [], 5],
    [false, { ...persistent, readOnly: true }, undefined, [], 5],
    [false, { ...persistent, block: true }, undefined, [], 5],
    [true, inline, object({}), [], 5],
    [false, { ...inline, fsType: '' }, object({}), [], 5],
    [false, persistent, object({ fsGroupPolicy: 'None' }), [], 5],
    [true, { ...persistent, fsType: '', accessModes: undefined }, object({ fsGroupPolicy: 'File' }), [], 5],
    [false, { ...persistent, readOnly: true }, object({ fsGroupPolicy: 'File' }), [], 5],
  ];
  for (const [expected, volume, driver, capabilities, group] of rows) {
    assert.equal(weSetGroup(volume, driver, can(...capabilities), group), expected);
  }
  assert.throws(() => weSetGroup(persistent, { spec: {} }, can(), 5), { code: 'VOLUME_FAILED' });
});

test('drivers learn of the pod only where they ask', () => {
  const pod = {
    metadata: { name: 'n', namespace: 'ns', uid: 'u' },
    spec: { containers: [], serviceAccountName: 'sa' },
  };
  assert.deepEqual(podInfo(pod, inline, undefined), {});
  assert.deepEqual(podInfo(pod, inline, object({ podInfoOnMount: false })), {});
  assert.deepEqual(podInfo(pod, inline, object({ podInfoOnMount: true })), {
    'csi.storage.k8s.io/pod.name': 'n',
    'csi.storage.k8s.io/pod.namespace': 'ns',
    'csi.storage.k8s.io/pod.uid': 'u',
    'csi.storage.k8s.io/serviceAccount.name': 'sa',
    'csi.storage.k8s.io/ephemeral': 'true',
  });
  assert.equal(
    podInfo(pod, persistent, object({ podInfoOnMount: true }))['csi.storage.k8s.io/ephemeral'],
    'false',
  );
});

test('after which failures a call may still be going on', () => {
  const final = Array.from({ length: 17 }, (_, code) => code).filter((code) =>
    isFinal(failureOf({ code, details: '' })),
  );
  assert.deepEqual(final, [0, 2, 3, 5, 6, 7, 9, 11, 12, 13, 15, 16]);
  assert.equal(isFinal(new Error('x')), false);
  assert.equal(isFinal(abortError(AbortSignal.abort(), 'x')), false);
});

test('versions of CSI', () => {
  assert.deepEqual(highestVersion(['1.0.0', '1.3.0', '1.10']), [1, 10]);
  assert.deepEqual(highestVersion(['v1.2.0']), [1, 2]);
  for (const versions of [[], ['0.3.0'], ['2.0.0'], ['one'], ['1']])
    assert.equal(highestVersion(versions), undefined);
});
