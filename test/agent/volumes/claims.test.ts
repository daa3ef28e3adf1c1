/** Following claims: the rules, kubelet's words, and what a node knows while the apiserver is away. */
import assert from 'node:assert/strict';
import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { PersistentVolume, PersistentVolumeClaim, Pod, Volume } from '../../../agent/apiserver/types.ts';
import { checkClaim, checkNode, checkVolume, claimNameOf } from '../../../agent/volumes/claims/claim.ts';
import { makeClaims } from '../../../agent/volumes/claims/resolve.ts';
import { makeVolumes } from '../../../agent/volumes/manager.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { fakeClient, fakeObjects, handClock, podOf, scratch, unreachable } from './cluster.ts';

const claim: PersistentVolumeClaim = {
  metadata: { name: 'c', namespace: 'ns', uid: 'claim-1' },
  spec: { volumeName: 'pv' },
  status: { phase: 'Bound' },
};
const volume: PersistentVolume = {
  metadata: { name: 'pv' },
  spec: { claimRef: { uid: 'claim-1' }, hostPath: { path: '/x' } },
};
const byClaim: Volume = { name: 'v', persistentVolumeClaim: { claimName: 'c' } };
const own: Volume = { name: 'v', ephemeral: {} };
const pod = podOf({ volumes: [byClaim] });

test('which claim a volume stands for', () => {
  assert.equal(claimNameOf(pod, byClaim), 'c');
  assert.equal(claimNameOf(pod, own), 'web-v');
  assert.equal(claimNameOf(pod, { name: 'v', emptyDir: {} }), undefined);
});

test('claims that cannot be followed, in the words of kubelet', () => {
  const refused = (changes: object, message: RegExp, wanted: Volume = byClaim) =>
    assert.throws(() => checkClaim(pod, wanted, { ...claim, ...changes }), {
      code: 'VOLUME_FAILED',
      message,
    });
  checkClaim(pod, byClaim, claim);
  const deletionTimestamp = '2026-01-01T00:00:00Z';
  refused({ metadata: { ...claim.metadata, deletionTimestamp } }, /PVC ns\/c: PVC is being deleted$/);
  const finalizers = ['kubernetes.io/pvc-protection'];
  checkClaim(pod, byClaim, { ...claim, metadata: { ...claim.metadata, deletionTimestamp, finalizers } });
  refused({ status: { phase: 'Pending' } }, /^error processing PVC ns\/c: PVC is not bound$/);
  refused({ status: undefined }, /PVC is not bound/);
  refused({ spec: {} }, /PVC has empty pvc.Spec.VolumeName/);
  refused({}, /^PVC ns\/c was not created for pod ns\/web \(pod is not owner\)$/, own);
  const owner = { apiVersion: 'v1', kind: 'Pod', name: 'web', uid: 'uid-1' };
  const owned = (controller: boolean) => ({
    metadata: { ...claim.metadata, ownerReferences: [{ ...owner, controller }] },
  });
  checkClaim(pod, own, { ...claim, ...owned(true) });
  refused(owned(false), /pod is not owner/, own);
});

test('volumes that are bound elsewhere, or used as what they are not', () => {
  const refused = (spec: PersistentVolume['spec'], message: RegExp, of: Pod = pod) =>
    assert.throws(() => checkVolume(of, 'v', { claim, volume: { ...volume, spec } }), { message });
  refused({}, /found PV object pv but it has a nil pv.Spec.ClaimRef/);
  refused({ claimRef: { uid: 'other' } }, /ClaimRef.UID other does not point to claim.UID claim-1$/);
  const mounting = podOf({
    containers: [{ name: 'main', image: 'i', volumeMounts: [{ name: 'v', mountPath: '/x' }] }],
  });
  const using = podOf({
    containers: [{ name: 'main', image: 'i', volumeDevices: [{ name: 'v', devicePath: '/dev/x' }] }],
  });
  checkVolume(mounting, 'v', { claim, volume });
  refused(
    { ...volume.spec, volumeMode: 'Block' },
    /^volume v has volumeMode Block, but is specified in volumeMounts$/,
    mounting,
  );
  refused(volume.spec, /^volume v has volumeMode Filesystem, but is specified in volumeDevices$/, using);
});

test('the node that a volume wants', () => {
  const on = (...matchExpressions: { key: string; operator: string; values?: string[] }[]) => ({
    claim,
    volume: {
      spec: { nodeAffinity: { required: { nodeSelectorTerms: [{ matchExpressions }] } } },
    },
  });
  const labels = { 'kubernetes.io/hostname': 'a' };
  checkNode({ claim, volume }, labels);
  checkNode(on({ key: 'kubernetes.io/hostname', operator: 'In', values: ['b', 'a'] }), labels);
  for (const wrong of [on({ key: 'kubernetes.io/hostname', operator: 'In', values: ['b'] }), on()])
    assert.throws(() => checkNode(wrong, labels), { message: 'no matching NodeSelectorTerms' });
});

test('a claim is asked for once, and known to the next process while nobody answers', async (t) => {
  const podsDir = await scratch(t);
  const asked: string[] = [];
  let failure: Error | undefined;
  const client = {
    ...fakeClient(handClock()),
    async get<T>(path: string): Promise<T> {
      asked.push(path);
      if (failure !== undefined) throw failure;
      return (path.includes('claims') ? claim : volume) as T;
    },
  };
  const claims = makeClaims({ client, podsDir });
  const bound = await claims.follow(pod, byClaim, undefined);
  assert.deepEqual(bound, { claim, volume });
  assert.equal(await claims.follow(pod, byClaim, undefined), bound);
  assert.deepEqual(asked, ['/api/v1/namespaces/ns/persistentvolumeclaims/c', '/api/v1/persistentvolumes/pv']);
  claims.forget('uid-1');
  failure = unreachable;
  assert.deepEqual(await claims.follow(pod, byClaim, undefined), bound, 'what is on disk counts');
  // Another pod was never told.
  await assert.rejects(claims.follow(podOf({}, 'uid-2'), byClaim, undefined), {
    message: /error processing PVC ns\/c: failed to fetch PVC from API server: .*connection refused/,
  });
  const next = () => makeClaims({ client, podsDir }).follow(pod, byClaim, undefined);
  failure = new KeelsonError('API_STATUS', 'not found', { details: { status: 404 } });
  await assert.rejects(next(), { message: /failed to fetch PVC/ }, 'an answer counts more');
  failure = unreachable;
  assert.deepEqual(
    await makeClaims({ podsDir })
      .follow(pod, byClaim, undefined)
      .catch(() => 'none'),
    'none',
  );
  const [file] = await readdir(join(podsDir, 'uid-1/claims'));
  await writeFile(join(podsDir, 'uid-1/claims', file!), '{"claim":');
  await assert.rejects(next(), { code: 'VOLUME_FAILED' }, 'half a record is none');
});

test('each volume that fails has a message of its own, those without a claim one together', async (t) => {
  const kubeletDir = await scratch(t);
  const client = {
    ...fakeClient(handClock()),
    get: async <T>() => ({ ...claim, status: { phase: 'Pending' } }) as T,
  };
  const volumes = makeVolumes({
    kubeletDir,
    client,
    objects: fakeObjects(),
    nodeName: 'node',
    log: makeLogger('silent'),
    clock: handClock(),
  });
  const wanted = podOf({
    volumes: [
      { name: 'z', persistentVolumeClaim: { claimName: 'c' } },
      { name: 'one', configMap: { name: 'none' } },
      { name: 'two', secret: { secretName: 'none' } },
    ],
  });
  const messages = [
    'MountVolume.SetUp failed for volume "one" : configmap "none" not found',
    'MountVolume.SetUp failed for volume "two" : secret "none" not found',
    'Unable to attach or mount volumes: unmounted volumes=[one two z], unattached volumes=[], failed to process volumes=[z]: error processing PVC ns/c: PVC is not bound',
  ];
  await assert.rejects(volumes.setUp(wanted), (error) => {
    assert.ok(error instanceof KeelsonError);
    assert.deepEqual(error.details['messages'], messages);
    return true;
  });
  await volumes.tearDown('uid-1');
});
