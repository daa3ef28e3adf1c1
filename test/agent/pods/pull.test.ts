/** A container's image with a registry in memory: policies, credentials, verification, limits, and what is told. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Secret } from '../../../agent/apiserver/types.ts';
import { type ImageAccessOptions, makeImageAccess } from '../../../agent/images/access.ts';
import { noRegistryAnswered, ofAllTries, pullFailure } from '../../../agent/images/failures.ts';
import type { ActionContext } from '../../../agent/pods/actions/context.ts';
import { ensureImage } from '../../../agent/pods/actions/pull.ts';
import { newMemory } from '../../../agent/pods/plan/memory.ts';
import type { AuthConfig } from '../../../runtime/api.ts';
import { abortError, isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { fakeObjects as realObjects } from '../volumes/cluster.ts';
import { fakeEvents, fakeImages, handClock, turn, until } from './fakes.ts';
import { makePod, time } from './objects.ts';

const unreachable = new KeelsonError('REGISTRY_UNAVAILABLE', 'manifest: the registry cannot be reached', {
  cause: new KeelsonError('UNAVAILABLE', 'connect ECONNREFUSED'),
});

async function world(t: TestContext, options: Partial<ImageAccessOptions> = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-pull-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const images = fakeImages();
  const clock = handClock(time);
  const events = fakeEvents();
  const objects = realObjects();
  const log = makeLogger('silent');
  /** Images that need a credential, by the users that may have them. */
  const guarded = new Map<string, string[]>();
  const tried: (string | undefined)[] = [];
  const registry: { failure: Error | undefined } = { failure: undefined };
  const plain = images.pullImage;
  images.pullImage = async (spec, given) => {
    const auths: readonly AuthConfig[] = given?.auths ?? [];
    tried.push(auths[0]?.username);
    if (registry.failure !== undefined) throw registry.failure;
    const allowed = guarded.get(spec.image);
    if (allowed !== undefined && !allowed.includes(auths[0]?.username ?? ''))
      throw new KeelsonError('IMAGE_PULL_DENIED', 'manifest: the registry refused access (401)', {
        details: { status: 401 },
      });
    return plain(spec, given);
  };
  const nodeFile = join(folder, 'node.json');
  const make = (more: Partial<ImageAccessOptions> = {}) =>
    makeImageAccess({
      images,
      objects,
      client: undefined,
      clock,
      log,
      kubeletDir: join(folder, 'kubelet'),
      nodeConfigFiles: [{ path: nodeFile, shape: 'json' }],
      verification: 'NeverVerifyPreloadedImages',
      allowlist: [],
      qps: 0,
      burst: 10,
      parallelPulls: undefined,
      pullAlwaysFallback: false,
      providers: undefined,
      ...options,
      ...more,
    });
  let access = await make();
  t.after(() => access.close());
  let told = 0;
  return {
    folder,
    images,
    objects,
    registry,
    guarded,
    tried,
    events,
    clock,
    nodeFile,
    /** Another process of the agent, maybe with other settings. */
    async restart(more: Partial<ImageAccessOptions>) {
      access = await make(more);
    },
    secret(name: string, username: string, uid = `uid-${name}`) {
      const auths = { 'reg.example': { username, password: 'hidden' } };
      objects.secrets.set(`default/${name}`, {
        metadata: { name, namespace: 'default', uid },
        type: 'kubernetes.io/dockerconfigjson',
        data: { '.dockerconfigjson': Buffer.from(JSON.stringify({ auths })).toString('base64') },
      } as Secret);
    },
    /** The waiting reason (none: the image is there) and message, and the events of this one. */
    async ensure(
      image: string,
      imagePullPolicy: string,
      secrets: readonly string[] = [],
      signal = new AbortController().signal,
    ) {
      const pod = makePod({ imagePullSecrets: secrets.map((name) => ({ name })) });
      const context = {
        images,
        imageAccess: access,
        events,
        objects,
        clock,
        log,
        pod,
        signal,
        stage: () => {},
      } as unknown as ActionContext;
      const update = await ensureImage(context, { name: 'app', image, imagePullPolicy }, 0);
      const found = update(newMemory(time)).images['app'];
      const fresh = events.told.slice(told);
      told = events.told.length;
      return {
        id: found?.imageId,
        reason: found?.failure?.reason,
        message: found?.failure?.message,
        events: fresh,
      };
    },
  };
}

const app = 'reg.example/app:1';
const about = 'spec.containers{app}';
const accessible = `Normal Pulled ${about}: Container image "${app}" already present on machine and can be accessed by the pod`;

test('the policies', async (t) => {
  const { ensure, tried, images } = await world(t);
  const never = await ensure(app, 'Never');
  assert.equal(never.reason, 'ErrImageNeverPull');
  const text = `Container image "${app}" is not present with pull policy of Never`;
  assert.deepEqual(never.events, [
    `Warning ErrImageNeverPull ${about}: ${text}`,
    `Warning Failed ${about}: Error: ErrImageNeverPull`,
  ]);
  const pulled = await ensure(app, 'IfNotPresent');
  assert.equal(pulled.id, `id:${app}`);
  assert.deepEqual(pulled.events, [
    `Normal Pulling ${about}: Pulling image "${app}"`,
    `Normal Pulled ${about}: Successfully pulled image "${app}" in 0ms (0ms including waiting). Image size: 1234 bytes.`,
  ]);
  for (const policy of ['IfNotPresent', 'Never']) {
    const present = await ensure(app, policy);
    assert.deepEqual([present.id, present.events], [`id:${app}`, [accessible]]);
  }
  assert.equal(tried.length, 1);
  await ensure(app, 'Always');
  assert.equal(tried.length, 2);
  const bad = await ensure('bad//name', 'IfNotPresent');
  assert.equal(bad.reason, 'InvalidImageName');
  images.imageStatus = async () => {
    throw new KeelsonError('INTERNAL', 'the store is broken');
  };
  const broken = await ensure(app, 'IfNotPresent');
  assert.equal(broken.reason, 'ImageInspectError');
  assert.match(broken.message ?? '', /^Failed to inspect image ".*": the store is broken/);
});

test("secrets are tried before the node's own, one after the other; the rest is not looked at", async (t) => {
  const { ensure, tried, guarded, secret, nodeFile } = await world(t);
  guarded.set(app, ['node']);
  secret('first', 'one');
  secret('second', 'two');
  writeFileSync(
    nodeFile,
    JSON.stringify({ auths: { 'reg.example': { username: 'node', password: 'hidden' } } }),
  );
  const pulled = await ensure(app, 'IfNotPresent', ['first', 'second']);
  assert.equal(pulled.id, `id:${app}`);
  assert.deepEqual(tried, ['one', 'two', 'node']);
  // What the node's own credential pulled is for every pod.
  assert.deepEqual((await ensure(app, 'Never')).events, [accessible]);
  guarded.set(app, ['nobody']);
  const denied = await ensure(app, 'Always', ['first', 'second']);
  assert.equal(denied.reason, 'ErrImagePull');
  assert.match(denied.message ?? '', /refused access/);
  assert.ok(!JSON.stringify(denied).includes('hidden'));
  assert.equal(tried.length, 6);
});

test('missing and unreadable secrets are told of where a pull failed, which goes on without them', async (t) => {
  const { ensure, objects, secret, guarded } = await world(t);
  secret('good', 'me');
  objects.secrets.set('default/broken', {
    type: 'kubernetes.io/dockerconfigjson',
    data: { '.dockerconfigjson': Buffer.from('{"auths": "hidden"').toString('base64') },
  });
  const secrets = ['gone', 'good', 'broken', 'away'];
  const fine = await ensure(app, 'Always', secrets);
  assert.equal(fine.id, `id:${app}`);
  assert.deepEqual(
    fine.events.map((line) => line.split(' ', 2).join(' ')),
    ['Normal Pulling', 'Normal Pulled'],
  );
  guarded.set(app, ['other']);
  const { reason, events } = await ensure(app, 'Always', secrets);
  assert.equal(reason, 'ErrImagePull');
  assert.deepEqual(events.slice(1, 3), [
    'Warning FailedToRetrieveImagePullSecret web: Unable to retrieve some image pull secrets (gone, away); attempting to pull the image may not succeed.',
    'Warning FailedToRetrieveImagePullSecret web: Unable to read all of the image pull secret broken: it is not valid JSON; attempting to pull the image may not succeed.',
  ]);
});

test('an image that a secret pulled is not for pods without it', async (t) => {
  const { ensure, guarded, secret, tried, images } = await world(t);
  guarded.set(app, ['me']);
  secret('mine', 'me');
  secret('copy', 'me');
  secret('theirs', 'other');
  await ensure(app, 'IfNotPresent', ['mine']);
  for (const name of ['mine', 'copy'])
    assert.deepEqual((await ensure(app, 'IfNotPresent', [name])).events, [accessible], name);
  assert.equal(tried.length, 1);
  const stranger = await ensure(app, 'IfNotPresent', ['theirs']);
  assert.equal(stranger.reason, 'ErrImagePull');
  assert.match(stranger.events[1]!, /^Warning Failed .*refused access/);
  // As if it were not there: a pod is not told that it is.
  const never = await ensure(app, 'Never', ['theirs']);
  const absent = await ensure('reg.example/absent:1', 'Never', ['theirs']);
  const anonymized = (text: string | undefined) => text?.replaceAll('reg.example/absent:1', app);
  assert.equal(never.reason, 'ErrImageNeverPull');
  assert.equal(never.message, anonymized(absent.message));
  assert.deepEqual(never.events, absent.events.map(anonymized));
  // Its own right is found out by a pull, and from then on known.
  guarded.set(app, ['me', 'other']);
  assert.equal((await ensure(app, 'IfNotPresent', ['theirs'])).id, `id:${app}`);
  assert.deepEqual((await ensure(app, 'Never', ['theirs'])).events, [accessible]);
  // What was brought by other ways is for all.
  images.present.add('reg.example/imported:1');
  assert.equal((await ensure('reg.example/imported:1', 'Never')).id, 'id:reg.example/imported:1');
});

test('a changed secret and no registry: the same secret lets its pods in, a new one cannot be verified', async (t) => {
  const { ensure, guarded, secret, registry } = await world(t, { pullAlwaysFallback: true });
  guarded.set(app, ['me']);
  secret('mine', 'me');
  await ensure(app, 'IfNotPresent', ['mine']);
  registry.failure = unreachable;
  secret('mine', 'me-rotated');
  assert.deepEqual((await ensure(app, 'IfNotPresent', ['mine'])).events, [accessible]);
  secret('mine', 'me-again', 'uid-anew');
  for (const policy of ['IfNotPresent', 'Always']) {
    const failed = await ensure(app, policy, ['mine']);
    assert.equal(failed.reason, 'RegistryUnavailable', policy);
    assert.match(failed.message ?? '', /^image pull failed for .* because the registry is unavailable: /);
    assert.match(
      failed.events[1]!,
      /^Warning Failed .*: Failed to pull image .*no copy on this node can be used/,
    );
    const absent = await ensure('reg.example/absent:1', policy, ['mine']);
    assert.equal(absent.message?.replaceAll('absent:1', 'app:1'), failed.message);
  }
});

test('Always with the copy on the node: only when no registry answers, and only where the setting is on', async (t) => {
  const { ensure, images, registry, restart, guarded } = await world(t);
  images.present.add(app);
  registry.failure = unreachable;
  const off = await ensure(app, 'Always');
  assert.equal(off.reason, 'RegistryUnavailable');
  await restart({ pullAlwaysFallback: true });
  const on = await ensure(app, 'Always');
  assert.equal(on.id, `id:${app}`);
  assert.deepEqual(on.events, [
    `Normal Pulling ${about}: Pulling image "${app}"`,
    `Warning LocalImageUsed ${about}: No registry could be reached for image "${app}", so the copy on this node (id:${app}) is used, which may not be the newest: manifest: the registry cannot be reached: connect ECONNREFUSED`,
  ]);
  for (const failure of [
    new KeelsonError('IMAGE_NOT_FOUND', 'not found', { details: { status: 404 } }),
    new KeelsonError('IMAGE_PULL_DENIED', 'refused', { details: { status: 403 } }),
    new KeelsonError('REGISTRY_UNAVAILABLE', 'answered 503', { details: { status: 503 } }),
    new KeelsonError('IMAGE_DIGEST_MISMATCH', 'a lie'),
  ]) {
    registry.failure = failure;
    const answered = await ensure(app, 'Always');
    assert.equal(answered.id, undefined, failure.code);
    assert.ok(!answered.events.join().includes('LocalImageUsed'));
  }
  registry.failure = undefined;
  guarded.set(app, ['me']);
  assert.equal((await ensure(app, 'Always')).reason, 'ErrImagePull');
});

test('too many pulls at once fail with the words of kubelet', async (t) => {
  const { ensure, clock } = await world(t, { qps: 1, burst: 1 });
  assert.ok((await ensure('reg.example/a:1', 'Always')).id);
  const { reason, message, events } = await ensure('reg.example/b:1', 'Always');
  assert.equal(reason, 'ErrImagePull');
  assert.match(message ?? '', /^pull QPS exceeded/);
  assert.match(events[1]!, /^Warning Failed .*Failed to pull image "reg.example\/b:1": pull QPS exceeded/);
  await clock.advance(1000);
  assert.ok((await ensure('reg.example/b:1', 'Always')).id);
});

test('a pod that is deleted ends its pull, and leaves nothing of it', async (t) => {
  const { ensure, images } = await world(t, { parallelPulls: 1 });
  images.endless.add(app);
  const deleted = new AbortController();
  const running = ensure(app, 'IfNotPresent', [], deleted.signal);
  await until(() => images.pulls.length === 1, 'the pull');
  const waiting = ensure('reg.example/next:1', 'IfNotPresent');
  await turn();
  assert.equal(images.pulls.length, 1, 'one at a time');
  deleted.abort(new KeelsonError('ABORTED', 'the pod is gone'));
  await assert.rejects(running, (error) => isError(error, 'ABORTED'));
  assert.equal((await waiting).id, 'id:reg.example/next:1');
  images.present.add(app);
  assert.equal((await ensure(app, 'Never')).id, `id:${app}`, 'not taken for pulled');
});

test('what a failed pull is called', () => {
  const of = (error: unknown) => pullFailure('x:1', error);
  assert.equal(of(new KeelsonError('IMAGE_NOT_FOUND', 'gone')).reason, 'ErrImagePull');
  assert.equal(of(new Error('a bug')).reason, 'ErrImagePull');
  assert.equal(of(new KeelsonError('IMAGE_NAME_INVALID', 'bad')).reason, 'InvalidImageName');
  // As another runtime says it.
  assert.deepEqual(of(new KeelsonError('INTERNAL', 'SignatureValidationFailed: no signature')), {
    reason: 'SignatureValidationFailed',
    message: 'image pull failed for x:1 because the signature validation failed: no signature',
  });
  assert.deepEqual(of(new KeelsonError('INTERNAL', 'RegistryUnavailable: 503')), {
    reason: 'RegistryUnavailable',
    message: 'image pull failed for x:1 because the registry is unavailable: 503',
  });
});

test('whether a registry answered, and what several tries say', () => {
  assert.equal(noRegistryAnswered(unreachable), true);
  const slow = new KeelsonError('DEADLINE_EXCEEDED', 'no answer');
  assert.equal(noRegistryAnswered(new KeelsonError('REGISTRY_UNAVAILABLE', 'x', { cause: slow })), true);
  assert.equal(noRegistryAnswered(new KeelsonError('REGISTRY_UNAVAILABLE', 'redirect to nowhere')), false);
  const endpoints = (answered: boolean) =>
    new KeelsonError('REGISTRY_UNAVAILABLE', 'two endpoints', { cause: slow, details: { answered } });
  assert.deepEqual(
    [true, false].map((one) => noRegistryAnswered(endpoints(one))),
    [false, true],
  );
  assert.equal(noRegistryAnswered(abortError(AbortSignal.abort(), 'pull')), false);
  const [one, two] = ['a', 'b'].map((text) => new KeelsonError('IMAGE_PULL_DENIED', text));
  assert.equal(ofAllTries([one, one]), one);
  const both = ofAllTries([one, two]) as KeelsonError;
  assert.deepEqual([both.code, both.message], ['IMAGE_PULL_DENIED', 'with 2 credentials in turn: a; b']);
});
