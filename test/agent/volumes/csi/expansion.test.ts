import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Claim, patches, wantedExpansion } from '../../../../agent/volumes/csi/expansion.ts';
import { grpcError } from '../../../peers/plugin.ts';
import { asRoot } from '../cluster.ts';
import { addVolume, type CsiStage, claimed, csiStage, podWith } from './stage.ts';

const gi = 2 ** 30;
const volume = { spec: { capacity: { storage: '2Gi' } } };
const claim = (status: object, changes: object = {}): Claim => ({ status, ...changes }) as Claim;
const shared = { spec: { accessModes: ['ReadWriteMany'] } };

test('when a volume is to be grown at the node', () => {
  const grown = { size: '2Gi', bytes: 2 * gi };
  const rows: readonly (readonly [object | undefined, Claim, number | undefined])[] = [
    // Controllers that know no steps: the sizes say it.
    [{ ...grown, told: true, steps: false }, claim({ capacity: { storage: '1Gi' } }), undefined],
    [undefined, claim({ capacity: { storage: '2Gi' } }), undefined],
    // Steps: only when it is the node's turn.
    ...(['NodeResizePending', 'NodeResizeInProgress'] as const).map(
      (state) =>
        [
          { ...grown, told: true, steps: true },
          claim({
            capacity: { storage: '1Gi' },
            allocatedResources: { storage: '2Gi' },
            allocatedResourceStatuses: { storage: state },
          }),
          undefined,
        ] as const,
    ),
    ...['ControllerResizeInProgress', 'NodeResizeInfeasible', ''].map(
      (state) =>
        [
          undefined,
          claim({
            capacity: { storage: '1Gi' },
            allocatedResources: { storage: '2Gi' },
            allocatedResourceStatuses: state === '' ? {} : { storage: state },
          }),
          undefined,
        ] as const,
    ),
    // Another node has told already, and this one has not grown it.
    [{ ...grown, told: false, steps: false }, claim({ capacity: { storage: '2Gi' } }, shared), gi],
    [undefined, claim({ capacity: { storage: '2Gi' } }, shared), 2 * gi],
    [undefined, claim({ capacity: { storage: '2Gi' } }), gi],
    [
      undefined,
      claim(
        { capacity: { storage: '2Gi' } },
        { ...shared, metadata: { annotations: { 'volume.kubernetes.io/node-expansion-not-required': '' } } },
      ),
      gi,
    ],
  ];
  for (const [expected, one, known] of rows)
    assert.deepEqual(wantedExpansion(one, volume, known), expected, JSON.stringify(one));
  assert.equal(wantedExpansion(claim({}), {}, undefined), undefined);
});

test('what the claim is told', () => {
  const own = { type: 'ModifyingVolume', status: 'True' };
  const one = claim(
    { conditions: [own, { type: 'FileSystemResizePending', status: 'True' }] },
    { metadata: { resourceVersion: '7' } },
  );
  assert.deepEqual(patches.begun(one), {
    metadata: { resourceVersion: '7' },
    status: { allocatedResourceStatuses: { storage: 'NodeResizeInProgress' } },
  });
  assert.deepEqual(patches.done(one, '2Gi'), {
    status: {
      capacity: { storage: '2Gi' },
      allocatedResourceStatuses: { storage: null },
      conditions: [own],
    },
  });
  const failed = patches.failed(one, 'boom', true, 0);
  assert.deepEqual(failed.status.conditions.at(-1), {
    type: 'NodeResizeError',
    status: 'True',
    lastTransitionTime: '1970-01-01T00:00:00Z',
    message: 'failed to expand pvc with boom',
  });
  assert.deepEqual(failed.status.allocatedResourceStatuses, { storage: 'NodeResizeInfeasible' });
  assert.equal('allocatedResourceStatuses' in patches.failed(one, 'boom', false, 0).status, false);
});

const capabilities = ['STAGE_UNSTAGE_VOLUME', 'EXPAND_VOLUME'] as const;

/** The claim is asked for 2Gi, and it is the node's turn. */
function grow(stage: CsiStage): void {
  addVolume(stage, 'data', {
    capacity: { storage: '2Gi' },
    claim: {
      status: {
        phase: 'Bound',
        capacity: { storage: '1Gi' },
        allocatedResources: { storage: '2Gi' },
        allocatedResourceStatuses: { storage: 'NodeResizePending' },
        conditions: [{ type: 'FileSystemResizePending', status: 'True' }],
      },
    },
  });
}

test('a volume grows while a pod has it, and its claim is told', { skip: asRoot }, async (t) => {
  const stage = await csiStage(t, { capabilities });
  addVolume(stage, 'data');
  const pod = podWith('a', [claimed('data')]);
  const ready = await stage.volumes.setUp(pod);
  assert.equal(stage.volumes.refreshAfterMs(pod), 60_000);
  assert.ok(!stage.driver.names().includes('NodeExpandVolume'));
  grow(stage);
  await stage.volumes.setUp(pod);
  const { request } = stage.driver.calls.at(-1)!;
  assert.equal(request.volumePath, ready.get('data')!.hostPath);
  assert.match(request.stagingTargetPath, /globalmount$/);
  assert.equal(request.capacityRange?.requiredBytes, BigInt(2 * gi));
  const path = '/api/v1/namespaces/ns/persistentvolumeclaims/data/status';
  assert.deepEqual(
    stage.patches.map((patch) => patch.path),
    [path, path],
  );
  assert.deepEqual((stage.patches[1]!.body as { status: object }).status, {
    capacity: { storage: '2Gi' },
    allocatedResourceStatuses: { storage: null },
    conditions: [],
  });
  const message =
    'Normal FileSystemResizeSuccessful MountVolume.NodeExpandVolume succeeded for volume "pv-data" ';
  assert.deepEqual(stage.events, [`Pod ${message}`, `PersistentVolumeClaim ${message}`]);
  await stage.volumes.tearDown('a');
});

test('a driver that cannot grow it keeps no pod from running', { skip: asRoot }, async (t) => {
  const stage = await csiStage(t, { capabilities });
  grow(stage);
  let calls = 0;
  stage.driver.behave.set('NodeExpandVolume', () => {
    calls++;
    throw grpcError('OUT_OF_RANGE', 'too large');
  });
  const pod = podWith('a', [claimed('data')]);
  await stage.volumes.setUp(pod);
  assert.deepEqual((stage.patches.at(-1)!.body as { status: object }).status, {
    conditions: [
      { type: 'FileSystemResizePending', status: 'True' },
      {
        type: 'NodeResizeError',
        status: 'True',
        lastTransitionTime: '2026-01-01T00:00:00Z',
        message: 'failed to expand pvc with rpc error: code = OutOfRange desc = too large',
      },
    ],
    allocatedResourceStatuses: { storage: 'NodeResizeInfeasible' },
  });
  assert.match(stage.events[0]!, /^Pod Warning VolumeResizeFailed .*too large/);
  stage.driver.behave.set('NodeExpandVolume', () => {
    calls++;
    throw grpcError('FAILED_PRECONDITION', 'in use');
  });
  await stage.volumes.setUp(pod);
  await stage.volumes.setUp(pod);
  assert.equal(calls, 2, 'one that cannot grow what is in use is not asked again');
  await stage.volumes.tearDown('a');
});

test('a volume that is read-only is not grown', { skip: asRoot }, async (t) => {
  const stage = await csiStage(t, { capabilities });
  grow(stage);
  const pod = podWith('a', [claimed('data', true)]);
  await stage.volumes.setUp(pod);
  await stage.volumes.setUp(pod);
  assert.ok(!stage.driver.names().includes('NodeExpandVolume'));
  assert.equal(stage.events.length, 2);
  await stage.volumes.tearDown('a');
});

test('a driver that grows nothing is not asked, nor the apiserver', { skip: asRoot }, async (t) => {
  const stage = await csiStage(t);
  grow(stage);
  const pod = podWith('a', [claimed('data')]);
  await stage.volumes.setUp(pod);
  assert.equal(stage.volumes.refreshAfterMs(pod), undefined);
  assert.deepEqual(stage.patches, []);
  await stage.volumes.tearDown('a');
});
