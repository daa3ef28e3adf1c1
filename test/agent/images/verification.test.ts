/** Who may have an image that is on the node: policies, records in kubelet's format, and what is learned. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Credential } from '../../../agent/images/credentials/keyring.ts';
import { openPulledImages } from '../../../agent/images/pulled_images.ts';
import {
  formatIntent,
  formatRecord,
  parseIntent,
  parseRecord,
  recordFileName,
} from '../../../agent/images/record_files.ts';
import {
  accessOf,
  allowlistFault,
  compare,
  mustVerify,
  type PulledRecord,
  pulledWith,
  type VerificationPolicy,
  withPull,
} from '../../../agent/images/verification.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { fakeImages, handClock } from '../pods/fakes.ts';
import { seeded, time } from '../pods/objects.ts';

const patterns: [string, boolean][] = [
  ['reg.example/team/app', true],
  ['reg.example/*', true],
  ['busybox', true],
  ['reg.example/*/app', false],
  ['reg.example/app*', false],
  ['reg.example/team/', false],
  ['/*', false],
  ['*', false],
  ['', false],
  ['reg.example/app:1', false],
  [`reg.example/app@sha256:${'0'.repeat(64)}`, false],
  ['reg.example/app ', false],
];
for (const [pattern, right] of patterns) {
  test(`allow list entry ${JSON.stringify(pattern)} is ${right ? 'right' : 'wrong'}`, () =>
    assert.equal(allowlistFault(pattern) === undefined, right));
}

const allowlist = ['reg.example/team/*', 'reg.example/app', 'busybox'];
const verify: [VerificationPolicy, string, boolean, boolean][] = [
  ['NeverVerify', 'reg.example/x:1', true, false],
  ['NeverVerifyPreloadedImages', 'reg.example/x:1', false, false],
  ['NeverVerifyPreloadedImages', 'reg.example/x:1', true, true],
  ['AlwaysVerify', 'reg.example/x:1', false, true],
  ['NeverVerifyAllowlistedImages', 'reg.example/team/x:1', true, false],
  ['NeverVerifyAllowlistedImages', `reg.example/app@sha256:${'0'.repeat(64)}`, true, false],
  ['NeverVerifyAllowlistedImages', 'busybox:1', true, false],
  ['NeverVerifyAllowlistedImages', 'docker.io/library/busybox:1', false, true],
  ['NeverVerifyAllowlistedImages', 'reg.example/teams/x', false, true],
];
for (const [policy, image, pulled, wanted] of verify) {
  test(`${policy}: ${image}, ${pulled ? 'pulled' : 'preloaded'}, is ${wanted ? '' : 'not '}verified`, () =>
    assert.equal(mustVerify(policy, allowlist, image, pulled), wanted));
}

const secret = (name: string, hash: string, uid = `uid-${name}`): Credential => ({
  auth: {},
  hash,
  source: { kind: 'secret', uid, namespace: 'n', name },
});
const account = (name: string): Credential => ({
  auth: {},
  hash: 'any',
  source: { kind: 'serviceAccount', uid: `uid-${name}`, namespace: 'n', name },
});
const onRecord = (name: string, credentialHash: string) => ({
  uid: `uid-${name}`,
  namespace: 'n',
  name,
  credentialHash,
});

test("a pod's credentials against the record", () => {
  const known = { kubernetesSecrets: [onRecord('a', 'h1')] };
  assert.deepEqual(compare(known, [secret('a', 'h1')]), { allowed: true });
  // The same content in another secret, and a secret with a new content: allowed, and remembered.
  assert.deepEqual(compare(known, [secret('b', 'h1')]), {
    allowed: true,
    learn: { kubernetesSecrets: [onRecord('b', 'h1')] },
  });
  assert.deepEqual(compare(known, [secret('a', 'h2')]), {
    allowed: true,
    learn: { kubernetesSecrets: [onRecord('a', 'h2')] },
  });
  // A secret of the same name that was made anew is another one.
  assert.deepEqual(compare(known, [secret('a', 'h2', 'uid-new')]), { allowed: false });
  assert.deepEqual(compare(known, [secret('b', 'h2')]), { allowed: false });
  assert.deepEqual(compare(known, []), { allowed: false });
  assert.deepEqual(compare(known, [{ auth: {}, hash: 'h1', source: { kind: 'node' } }]), { allowed: false });
  // A hash that could not be made matches nothing.
  assert.deepEqual(compare({ kubernetesSecrets: [onRecord('a', '')] }, [secret('b', '')]), {
    allowed: false,
  });
  const full = { kubernetesSecrets: Array.from({ length: 100 }, (_, at) => onRecord(`s${at}`, `h${at}`)) };
  assert.deepEqual(compare(full, [secret('new', 'h7')]), { allowed: true });
  assert.deepEqual(compare(full, [secret('s7', 'new')]), { allowed: false });
  const accounts = { kubernetesServiceAccounts: [{ uid: 'uid-sa', namespace: 'n', name: 'sa' }] };
  assert.deepEqual(compare(accounts, [account('sa')]), { allowed: true });
  assert.deepEqual(compare(accounts, [account('other'), account('sa')]), { allowed: false });
});

test('what a pull adds to the record', () => {
  const image = 'reg.example/app:1';
  const first = withPull(undefined, 'id', image, pulledWith(secret('b', 'h1')), 1000)!;
  assert.deepEqual(first, {
    lastUpdated: 1000,
    imageRef: 'id',
    credentialMapping: { 'reg.example/app': { kubernetesSecrets: [onRecord('b', 'h1')] } },
  });
  assert.equal(withPull(first, 'id', image, pulledWith(secret('b', 'h1')), 2000), undefined);
  const second = withPull(first, 'id', image, pulledWith(secret('a', 'h2')), 2000)!;
  const third = withPull(second, 'id', 'reg.example/app:2', pulledWith(account('sa')), 3000)!;
  assert.deepEqual(third.credentialMapping['reg.example/app'], {
    kubernetesSecrets: [onRecord('a', 'h2'), onRecord('b', 'h1')],
    kubernetesServiceAccounts: [{ uid: 'uid-sa', namespace: 'n', name: 'sa' }],
  });
  const open = withPull(third, 'id', image, pulledWith(undefined), 4000)!;
  assert.deepEqual(open.credentialMapping, { 'reg.example/app': { nodePodsAccessible: true } });
  assert.equal(withPull(open, 'id', image, pulledWith(secret('c', 'h3')), 5000), undefined);
  // Another name of the same image is for itself.
  assert.equal(accessOf(open, image), 'allowed');
  assert.equal(accessOf(open, 'reg.example/other:1'), 'unknown');
  assert.equal(accessOf(open, 'constructor'), 'unknown');
  const unknown = withPull(undefined, 'id', image, undefined, 1000)!;
  assert.deepEqual(unknown.credentialMapping, {});
  assert.equal(accessOf(unknown, image), 'unknown');
  assert.equal(withPull(first, 'id', image, undefined, 9000), undefined);
});

// Files as a kubelet 1.37 leaves them.
const kubeletRecord =
  '{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2024-10-21T12:26:40Z","imageRef":"sha256:1","credentialMapping":{"reg.example/app":{"kubernetesSecrets":[{"uid":"u","namespace":"n","name":"s","credentialHash":"h"}]},"reg.example/open":{"nodePodsAccessible":true},"reg.example/sa":{"kubernetesServiceAccounts":[{"uid":"u","namespace":"n","name":"sa"}]}}}\n';
const kubeletIntent =
  '{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1","image":"reg.example/app:1"}\n';

test('records and intents are written as kubelet writes them, and read as it reads them', () => {
  const record = parseRecord(kubeletRecord);
  assert.equal(record.lastUpdated, Date.parse('2024-10-21T12:26:40Z'));
  assert.equal(formatRecord(record), kubeletRecord);
  assert.equal(formatIntent(parseIntent(kubeletIntent)), kubeletIntent);
  assert.equal(parseIntent(kubeletIntent.replace('v1beta1', 'v1alpha1')), 'reg.example/app:1');
  assert.deepEqual(
    parseRecord('{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1alpha1","imageRef":"x"}'),
    { lastUpdated: 0, imageRef: 'x', credentialMapping: {} },
  );
  assert.equal(
    recordFileName('docker.io/testing/test:latest'),
    'sha256-aef2af226629a35d5f3ef0fdbb29fdbebf038d0acd8850590e8c48e1e283aa56',
  );
  for (const [from, to] of [
    ['"imageRef"', '"more":1,"imageRef"'],
    ['v1beta1', 'v2'],
    ['ImagePulledRecord', 'ImagePullIntent'],
    ['true', '"true"'],
    ['"uid":"u"', '"uid":1'],
    ['"credentialHash":"h"', '"other":"h"'],
    ['2024-10-21T12:26:40Z', 'yesterday'],
    ['}\n', ''],
  ] as const) {
    const text = kubeletRecord.replace(from, to);
    assert.throws(
      () => parseRecord(text),
      (error) => isError(error, 'FAILED_PRECONDITION'),
      text,
    );
  }
});

test('a record that is changed at random is read or refused, nothing else', () => {
  const random = seeded(3);
  for (let round = 0; round < 2000; round++) {
    const at = Math.floor(random() * kubeletRecord.length);
    const put = String.fromCharCode(32 + random() * 95).repeat(random() * 3);
    const text = kubeletRecord.slice(0, at) + put + kubeletRecord.slice(at + random() * 5);
    let record: PulledRecord;
    try {
      record = parseRecord(text);
    } catch (error) {
      assert.ok(isError(error, 'FAILED_PRECONDITION'), text);
      continue;
    }
    assert.deepEqual(parseRecord(formatRecord(record)), {
      ...record,
      lastUpdated: Math.floor(record.lastUpdated / 1000) * 1000,
    });
  }
});

interface World {
  readonly folder: string;
  readonly images: ReturnType<typeof fakeImages>;
  readonly clock: ReturnType<typeof handClock>;
  open(policy?: VerificationPolicy): ReturnType<typeof openPulledImages>;
  files(kind: 'pulling' | 'pulled'): string[];
}

function world(t: TestContext, present: readonly string[] = []): World {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-pulled-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const images = fakeImages(present);
  const clock = handClock(time);
  return {
    folder,
    images,
    clock,
    open: (policy = 'NeverVerifyPreloadedImages') =>
      openPulledImages({
        kubeletDir: folder,
        policy,
        allowlist: [],
        images,
        clock,
        log: makeLogger('silent'),
      }),
    files: (kind) => readdirSync(join(folder, 'image_manager', kind)),
  };
}

const none = async () => [];
const never = async () => assert.fail('the credentials do not matter here');

test('an image that was pulled with a secret is for pods with it; a preloaded one is for all', async (t) => {
  const { images, open, files, folder, clock } = world(t, ['preloaded:1', 'app:1']);
  const pulled = await open();
  assert.equal(statSync(join(folder, 'image_manager', 'pulled')).mode & 0o777, 0o700);
  assert.equal(await pulled.mustPull('preloaded:1', 'id:preloaded:1', never), false);
  await pulled.begin('app:1');
  assert.deepEqual(files('pulling'), [recordFileName('app:1')]);
  assert.equal(await pulled.mustPull('app:1', 'id:app:1', never), true, 'while it is being pulled');
  await pulled.succeeded('app:1', 'id:app:1', secret('s', 'h'));
  assert.deepEqual(files('pulling'), []);
  assert.deepEqual(files('pulled'), [recordFileName('id:app:1')]);
  assert.equal(await pulled.mustPull('app:1', 'id:app:1', none), true);
  assert.equal(await pulled.mustPull('app:1', 'id:app:1', async () => [secret('s', 'h')]), false);
  // Learned by matching: the new content alone is known afterwards.
  assert.equal(await pulled.mustPull('app:1', 'id:app:1', async () => [secret('s', 'rotated')]), false);
  assert.equal(await pulled.mustPull('app:1', 'id:app:1', async () => [secret('t', 'rotated')]), false);
  assert.equal(await pulled.mustPull('app:1', 'id:app:1', async () => [secret('u', 'h')]), true);
  // Another process goes on with it.
  const later = await open();
  assert.equal(await later.mustPull('app:1', 'id:app:1', none), true);
  assert.equal(await later.mustPull('app:1', 'id:app:1', async () => [secret('t', 'rotated')]), false);
  assert.equal(await (await open('NeverVerify')).mustPull('app:1', 'id:app:1', never), false);
  assert.equal(await (await open('AlwaysVerify')).mustPull('preloaded:1', 'id:preloaded:1', never), true);
  // Gone from the node: so is the record, but not in the second in which it was written.
  images.listImages = async () => [];
  await open();
  assert.equal(files('pulled').length, 1);
  await clock.advance(5000);
  await open();
  assert.deepEqual(files('pulled'), []);
});

test('pulls of one image at the same time, of which one fails', async (t) => {
  const { open, files } = world(t, ['app:1']);
  const pulled = await open();
  await Promise.all([pulled.begin('app:1'), pulled.begin('app:1')]);
  await pulled.failed('app:1');
  assert.equal(files('pulling').length, 1);
  await pulled.succeeded('app:1', 'id:app:1', undefined);
  assert.equal(files('pulling').length, 0);
  assert.equal(await pulled.mustPull('app:1', 'id:app:1', never), false);
});

test('a pull that the end of the process interrupted: the image is there, and has to be verified', async (t) => {
  const { images, open, files } = world(t);
  await (await open()).begin('app:1');
  const still = await open();
  assert.equal(files('pulling').length, 1, 'an image that is not there stays as it was');
  images.present.add('app:1');
  assert.equal(await still.mustPull('app:1', 'id:app:1', never), true);
  const later = await open();
  assert.deepEqual([files('pulling').length, files('pulled').length], [0, 1]);
  assert.equal(await later.mustPull('app:1', 'id:app:1', never), true);
});

test('a record that cannot be read lets nobody in, and the next pull replaces it', async (t) => {
  const { open, folder } = world(t, ['app:1']);
  const pulled = await open();
  const file = join(folder, 'image_manager', 'pulled', recordFileName('id:app:1'));
  writeFileSync(file, kubeletRecord.slice(0, 50));
  assert.equal(await pulled.mustPull('app:1', 'id:app:1', never), true);
  await pulled.begin('app:1');
  await pulled.succeeded('app:1', 'id:app:1', undefined);
  assert.match(readFileSync(file, 'utf8'), /"nodePodsAccessible":true/);
  assert.equal(await pulled.mustPull('app:1', 'id:app:1', never), false);
});

test('a record that cannot be written leaves the intent, which keeps others out', async (t) => {
  const { open, folder, files } = world(t, ['app:1']);
  const pulled = await open();
  await pulled.begin('app:1');
  rmSync(join(folder, 'image_manager', 'pulled'), { recursive: true });
  await pulled.succeeded('app:1', 'id:app:1', undefined);
  mkdirSync(join(folder, 'image_manager', 'pulled'));
  assert.equal(files('pulling').length, 1);
  assert.equal(await pulled.mustPull('app:1', 'id:app:1', never), true);
});
