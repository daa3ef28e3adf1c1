/** Credential providers: their configuration, and real programs that are run and give answers of all kinds. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { lookUp } from '../../../agent/images/credentials/keyring.ts';
import { makeCredentialProviders } from '../../../agent/images/credentials/provider.ts';
import { parseProviderAnswer } from '../../../agent/images/credentials/provider_answer.ts';
import { loadProviderConfig, readProviderConfig } from '../../../agent/images/credentials/provider_config.ts';
import { makeTokens } from '../../../agent/volumes/tokens.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { handClock, until } from '../pods/fakes.ts';
import { seeded, time } from '../pods/objects.ts';
import { fakeClient } from '../volumes/cluster.ts';

const v1 = 'credentialprovider.kubelet.k8s.io/v1';
const provider = {
  name: 'p',
  matchImages: ['*.example', 'reg.example:5000/team'],
  defaultCacheDuration: '0s',
  apiVersion: v1,
};
const tokenAttributes = {
  serviceAccountTokenAudience: 'registry',
  cacheType: 'ServiceAccount',
  requireServiceAccount: true,
};
const config = (...providers: object[]) => ({
  apiVersion: 'kubelet.config.k8s.io/v1',
  kind: 'CredentialProviderConfig',
  providers,
});
function faultsOf(document: unknown): string[] {
  const faults: string[] = [];
  readProviderConfig(document, '/bin', (path, message) => faults.push(`${path}: ${message}`));
  return faults;
}

test('a whole configuration', () => {
  const env = [{ name: 'A', value: '' }];
  const token = {
    ...tokenAttributes,
    requiredServiceAccountAnnotationKeys: ['example.org/Role'],
    optionalServiceAccountAnnotationKeys: ['other'],
  };
  const full = { ...provider, defaultCacheDuration: '1h30m', args: ['--x', ''], env, tokenAttributes: token };
  const fault = (path: string, message: string) => assert.fail(`${path}: ${message}`);
  assert.deepEqual(readProviderConfig(config(full), '/bin', fault), [
    {
      name: 'p',
      program: '/bin/p',
      apiVersion: v1,
      matchImages: provider.matchImages,
      defaultCacheMs: 5_400_000,
      args: ['--x', ''],
      env,
      token: {
        audience: 'registry',
        cacheType: 'ServiceAccount',
        requireServiceAccount: true,
        requiredAnnotations: ['example.org/Role'],
        optionalAnnotations: ['other'],
      },
    },
  ]);
  for (const version of ['v1alpha1', 'v1beta1', 'v1'])
    assert.deepEqual(faultsOf({ ...config(provider), apiVersion: `kubelet.config.k8s.io/${version}` }), []);
});

const wrong: [string, unknown, RegExp][] = [
  ['no map', [], /expected a map/],
  ['another kind', { ...config(provider), kind: 'Other' }, /kind: expected CredentialProviderConfig/],
  ['another version', { ...config(provider), apiVersion: 'v2' }, /apiVersion: expected/],
  ['no providers', config(), /providers: at least one/],
  ['an unknown field', config({ ...provider, matchImage: [] }), /providers.0.matchImage: unknown field/],
  ['no name', config({ ...provider, name: undefined }), /providers.0.name/],
  ['a path for a name', config({ ...provider, name: '../p' }), /providers.0.name/],
  ['a blank in the name', config({ ...provider, name: 'a b' }), /providers.0.name/],
  ['the folder itself', config({ ...provider, name: '..' }), /providers.0.name/],
  ['no images', config({ ...provider, matchImages: [] }), /matchImages: at least one/],
  ['a bad image', config({ ...provider, matchImages: ['a b'] }), /matchImages: "a b"/],
  [
    'no duration',
    config({ ...provider, defaultCacheDuration: undefined }),
    /defaultCacheDuration: is missing/,
  ],
  ['a negative duration', config({ ...provider, defaultCacheDuration: '-1s' }), /must not be negative/],
  ['no request version', config({ ...provider, apiVersion: undefined }), /apiVersion: must be one of/],
  ['a bad request version', config({ ...provider, apiVersion: 'v1' }), /expected one of/],
  [
    'token attributes of nothing',
    config({ ...provider, tokenAttributes: {} }),
    /serviceAccountTokenAudience/,
  ],
  [
    'token attributes for an older request',
    config({ ...provider, apiVersion: `${v1}beta1`, tokenAttributes }),
    /needs apiVersion credentialprovider.kubelet.k8s.io\/v1/,
  ],
  [
    'token attributes in an older file',
    { ...config({ ...provider, tokenAttributes }), apiVersion: 'kubelet.config.k8s.io/v1beta1' },
    /tokenAttributes: unknown field/,
  ],
  [
    'a bad cache type',
    config({ ...provider, tokenAttributes: { ...tokenAttributes, cacheType: 'Pod' } }),
    /ServiceAccount, Token/,
  ],
  [
    'annotations that only some have to have',
    config({
      ...provider,
      tokenAttributes: {
        ...tokenAttributes,
        requireServiceAccount: false,
        requiredServiceAccountAnnotationKeys: ['a'],
      },
    }),
    /needs requireServiceAccount: true/,
  ],
  [
    'annotations twice and bad ones',
    config({
      ...provider,
      tokenAttributes: { ...tokenAttributes, optionalServiceAccountAnnotationKeys: ['a', 'a', 'b c'] },
    }),
    /"b c" is not a key.*|has a key twice/,
  ],
];
for (const [what, document, message] of wrong) {
  test(`a configuration with ${what}`, () => assert.match(faultsOf(document).join('\n'), message));
}

interface Bench {
  readonly folder: string;
  readonly clock: ReturnType<typeof handClock>;
  readonly client: ReturnType<typeof fakeClient>;
  /** Writes a shell script; `$FOLDER` in it is this folder. */
  script(name: string, body: string): void;
  /** Opens the providers; closed when the test ends. */
  open(providers: object[], deadlineMs?: number): Promise<ReturnType<typeof makeCredentialProviders>>;
  runs(name: string): string[];
}

function bench(t: TestContext): Bench {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-providers-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const clock = handClock(time);
  const client = fakeClient(clock);
  return {
    folder,
    clock,
    client,
    script(name, body) {
      const file = join(folder, name);
      writeFileSync(file, `#!/bin/sh\nFOLDER=${folder}\n{ cat; echo; } >> $FOLDER/${name}.runs\n${body}\n`, {
        mode: 0o755,
      });
    },
    async open(providers, deadlineMs) {
      const file = join(folder, 'config.yaml');
      writeFileSync(file, JSON.stringify(config(...providers)));
      const log = makeLogger('silent');
      const made = makeCredentialProviders({
        providers: await loadProviderConfig(file, folder),
        client,
        tokens: makeTokens({ client, clock, log }),
        clock,
        log,
        ...(deadlineMs !== undefined && { deadlineMs }),
      });
      t.after(() => made.close());
      return made;
    },
    runs(name) {
      const file = join(folder, `${name}.runs`);
      return existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n') : [];
    },
  };
}

function answer(fields: object, apiVersion = v1): string {
  const text = JSON.stringify({ kind: 'CredentialProviderResponse', apiVersion, ...fields });
  return `cat <<'END'\n${text}\nEND`;
}

const pod = { namespace: 'n', name: 'web', uid: 'u', serviceAccount: 'sa' };
const { signal } = new AbortController();
const login = (username: string) => ({ username, password: 'p' });

test('a program is asked with its arguments and environment, and its answer is used', async (t) => {
  const { script, open, runs } = bench(t);
  script(
    'p',
    `printf '{"kind":"CredentialProviderResponse","apiVersion":"${v1}","cacheKeyType":"Image","auth":{"*.example":{"username":"%s","password":"%s"},"reg.example/team":{"username":"team"}}}' "$1" "$TELL"`,
  );
  const providers = await open([{ ...provider, args: ['me'], env: [{ name: 'TELL', value: 'pw' }] }]);
  const { sets, failures } = await providers.provide('reg.example/team/app', pod, signal);
  assert.deepEqual(failures, []);
  assert.deepEqual(
    lookUp('reg.example/team/app', sets).map(({ auth, source }) => [
      auth.username,
      auth.password,
      source.kind,
    ]),
    [
      ['team', '', 'node'],
      ['me', 'pw', 'node'],
    ],
  );
  assert.deepEqual(
    runs('p').map((line) => JSON.parse(line)),
    [{ kind: 'CredentialProviderRequest', apiVersion: v1, image: 'reg.example/team/app' }],
  );
  assert.deepEqual(await providers.provide('elsewhere.org/app', pod, signal), { sets: [], failures: [] });
  assert.equal(runs('p').length, 1);
});

test('several providers: their answers in the order of the configuration', async (t) => {
  const { script, open } = bench(t);
  for (const name of ['slow', 'quick', 'other']) {
    const auth = { [name === 'other' ? 'reg.*' : 'reg.example']: login(name) };
    script(name, `${name === 'slow' ? 'sleep 0.2\n' : ''}${answer({ cacheKeyType: 'Image', auth })}`);
  }
  const providers = await open(['other', 'slow', 'quick'].map((name) => ({ ...provider, name })));
  const { sets } = await providers.provide('reg.example/app', pod, signal);
  const users = lookUp('reg.example/app', sets).map(({ auth }) => auth.username);
  assert.deepEqual(users, ['slow', 'quick', 'other']);
});

const caching: [string, object, string, number, string, number][] = [
  // What is answered; asked before; milliseconds later; asked again; how many runs.
  ['nothing is kept by default', { cacheKeyType: 'Image' }, 'reg.example/a', 0, 'reg.example/a', 2],
  ['an image', { cacheKeyType: 'Image', cacheDuration: '1m' }, 'reg.example/a', 59_000, 'reg.example/a', 1],
  ['another image', { cacheKeyType: 'Image', cacheDuration: '1m' }, 'reg.example/a', 0, 'reg.example/b', 2],
  ['too late', { cacheKeyType: 'Image', cacheDuration: '1m' }, 'reg.example/a', 61_000, 'reg.example/a', 2],
  ['its registry', { cacheKeyType: 'Registry', cacheDuration: '1m' }, 'reg.example/a', 0, 'reg.example/b', 1],
  [
    'another registry',
    { cacheKeyType: 'Registry', cacheDuration: '1m' },
    'reg.example/a',
    0,
    'two.example/a',
    2,
  ],
  ['all', { cacheKeyType: 'Global', cacheDuration: '1m' }, 'reg.example/a', 0, 'two.example/b', 1],
  [
    'nothing on demand',
    { cacheKeyType: 'Global', cacheDuration: '0s' },
    'reg.example/a',
    0,
    'reg.example/a',
    2,
  ],
];
for (const [what, fields, first, ms, second, count] of caching) {
  test(`answers that are kept: ${what}`, async (t) => {
    const { script, open, clock, runs } = bench(t);
    script('p', answer({ ...fields, auth: { '*.example': login('me') } }));
    const providers = await open([provider]);
    await providers.provide(first, pod, signal);
    await clock.advance(ms);
    const { sets } = await providers.provide(second, pod, signal);
    assert.equal(lookUp(second, sets).length, 1);
    assert.equal(runs('p').length, count);
  });
}

test('the default duration is for answers without one', async (t) => {
  const { script, open, runs } = bench(t);
  script('p', answer({ cacheKeyType: 'Global', auth: null }));
  const providers = await open([{ ...provider, defaultCacheDuration: '1m' }]);
  for (const name of ['a', 'b']) await providers.provide(`reg.example/${name}`, pod, signal);
  assert.equal(runs('p').length, 1);
});

test('one run at a time for one image, and it goes on when one of those who wait gives up', async (t) => {
  const { script, open, runs, folder } = bench(t);
  script('p', `while [ ! -e $FOLDER/go ]; do sleep 0.01; done\n${answer({ cacheKeyType: 'Image' })}`);
  const providers = await open([provider]);
  const given = new AbortController();
  const first = providers.provide('reg.example/a', pod, given.signal);
  const others = [1, 2, 3].map(() => providers.provide('reg.example/a', pod, signal));
  await until(() => runs('p').length === 1, 'a run');
  given.abort();
  await assert.rejects(first, (error) => isError(error, 'ABORTED'));
  writeFileSync(join(folder, 'go'), '');
  for (const other of others) assert.deepEqual((await other).failures, []);
  assert.equal(runs('p').length, 1);
});

const failing: [string, string, RegExp][] = [
  ['exit code', 'echo hidden; echo hidden >&2; exit 3', /^exit code 3$/],
  ['no JSON', 'echo hidden', /not JSON/],
  ['another version', answer({ cacheKeyType: 'Image' }, `${v1}beta1`), /of apiVersion .*v1beta1, not/],
  ['another kind', `echo '{"apiVersion":"${v1}","kind":"hidden"}'`, /not a CredentialProviderResponse/],
  ['no key type', answer({ auth: { a: login('hidden') } }), /no cacheKeyType/],
  ['a bad duration', answer({ cacheKeyType: 'Image', cacheDuration: 'hidden' }), /not a duration/],
  ['a bad login', answer({ cacheKeyType: 'Image', auth: { a: { password: ['hidden'] } } }), /not a string/],
  ['too much', 'head -c 2000000 /dev/zero', /wrote more than/],
  ['too slow', 'sleep 60', /did not end within 300 ms/],
];
for (const [what, body, message] of failing) {
  test(`a provider that fails (${what}) is told of without its words, and the others count`, async (t) => {
    const { script, open } = bench(t);
    script('p', body);
    script('good', answer({ cacheKeyType: 'Image', auth: { 'reg.example': login('me') } }));
    const slow = what === 'too slow';
    const providers = await open(
      slow ? [provider] : [provider, { ...provider, name: 'good' }],
      slow ? 300 : 20_000,
    );
    const { sets, failures } = await providers.provide('reg.example/app', pod, signal);
    assert.deepEqual(
      failures.map(({ provider: name }) => name),
      ['p'],
    );
    assert.match(failures[0]!.message, message);
    assert.ok(!failures[0]!.message.includes('hidden'));
    assert.equal(lookUp('reg.example/app', sets).length, slow ? 0 : 1);
  });
}

test('a provider that gets a token of the service account', async (t) => {
  const { script, open, client, runs, clock } = bench(t);
  let annotations: Record<string, string> = { 'example.org/role': 'r', ignored: 'x' };
  const asked: string[] = [];
  client.get = async <T>(path: string) => {
    asked.push(path);
    return { metadata: { uid: 'uid-sa', annotations } } as T;
  };
  script(
    'p',
    answer({ cacheKeyType: 'Registry', cacheDuration: '10m', auth: { 'reg.example': login('me') } }),
  );
  const attributes = { ...tokenAttributes, requiredServiceAccountAnnotationKeys: ['example.org/role'] };
  const providers = await open([{ ...provider, tokenAttributes: attributes }]);
  const { sets, failures } = await providers.provide('reg.example/app', pod, signal);
  assert.deepEqual(failures, []);
  assert.deepEqual(
    sets.map(({ source }) => source),
    [{ kind: 'serviceAccount', uid: 'uid-sa', namespace: 'n', name: 'sa' }],
  );
  assert.deepEqual(asked, ['/api/v1/namespaces/n/serviceaccounts/sa']);
  assert.deepEqual(client.calls[0]?.spec.audiences, ['registry']);
  assert.deepEqual(client.calls[0]?.spec.boundObjectRef.uid, 'u');
  const [request] = runs('p').map((line) => JSON.parse(line));
  assert.match(request.serviceAccountToken, /\.sig$/);
  assert.deepEqual(request.serviceAccountAnnotations, { 'example.org/role': 'r' });
  // Another pod of the account shares the answer; one of another account does not, nor one with other annotations.
  await providers.provide('reg.example/app', { ...pod, uid: 'u2', name: 'web2' }, signal);
  assert.equal(runs('p').length, 1);
  await providers.provide('reg.example/app', { ...pod, serviceAccount: 'sb' }, signal);
  assert.equal(runs('p').length, 2);
  annotations = { 'example.org/role': 'other' };
  await providers.provide('reg.example/app', pod, signal);
  assert.equal(runs('p').length, 3);
  // Without the annotation, and without an account, it is not asked.
  annotations = {};
  const unasked = await providers.provide('reg.example/app', pod, signal);
  const nobody = await providers.provide('reg.example/app', { ...pod, serviceAccount: '' }, signal);
  assert.deepEqual([unasked, nobody], Array(2).fill({ sets: [], failures: [] }));
  assert.equal(runs('p').length, 3);
  client.failure = new Error('no token for you');
  annotations = { 'example.org/role': 'r' };
  providers.forget('u');
  await clock.advance(11 * 60_000);
  const failed = await providers.provide('reg.example/app', pod, signal);
  assert.match(failed.failures[0]?.message ?? '', /no token for you/);
});

test('a token that comes back as the password is only for the cache type Token', async (t) => {
  const { script, open, client, runs, folder } = bench(t);
  client.get = async <T>() => ({ metadata: { uid: 'uid-sa' } }) as T;
  script(
    'p',
    `TOKEN=$(tail -n 1 $FOLDER/p.runs | sed 's/.*"serviceAccountToken":"\\([^"]*\\)".*/\\1/')
echo "$TOKEN" > $FOLDER/token
printf '{"kind":"CredentialProviderResponse","apiVersion":"${v1}","cacheKeyType":"Image","cacheDuration":"1h","auth":{"reg.example":{"username":"t","password":"%s"}}}' "$TOKEN"`,
  );
  const shared = await open([{ ...provider, tokenAttributes }]);
  const { failures } = await shared.provide('reg.example/app', pod, signal);
  assert.match(failures[0]?.message ?? '', /needs the cacheType Token/);
  const token = readFileSync(join(folder, 'token'), 'utf8').trim();
  assert.ok(token !== '' && !failures[0]!.message.includes(token));
  const own = await open([{ ...provider, tokenAttributes: { ...tokenAttributes, cacheType: 'Token' } }]);
  const before = runs('p').length;
  const { sets } = await own.provide('reg.example/app', pod, signal);
  assert.match(lookUp('reg.example/app', sets)[0]?.auth.password ?? '', /\.sig$/);
  await own.provide('reg.example/app', pod, signal);
  assert.equal(runs('p').length, before + 1);
  await own.provide('reg.example/app', { ...pod, uid: 'u2' }, signal);
  assert.equal(runs('p').length, before + 2, 'another token, another answer');
});

test('files and folders of configurations, and programs that are not there', async (t) => {
  const { folder, script } = bench(t);
  const configs = join(folder, 'configs');
  mkdirSync(configs);
  const load = () => loadProviderConfig(configs, folder);
  const refused = (message: RegExp) => (error: unknown) =>
    isError(error, 'CONFIG_INVALID') && message.test(error.message);
  await assert.rejects(load(), refused(/has no file/));
  await assert.rejects(loadProviderConfig(join(folder, 'none'), folder), refused(/cannot read/));
  writeFileSync(join(configs, 'b.json'), JSON.stringify(config({ ...provider, name: 'b' })));
  writeFileSync(
    join(configs, 'a.yaml'),
    `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - {name: a, matchImages: ["*.example"], defaultCacheDuration: 10m, apiVersion: ${v1}}
`,
  );
  writeFileSync(join(configs, 'ignored.txt'), 'x');
  await assert.rejects(load(), refused(/there is no program .*\/a; there is no program .*\/b/));
  script('a', '');
  writeFileSync(join(folder, 'b'), 'not to be run', { mode: 0o644 });
  await assert.rejects(load(), refused(/\/b is not a program/));
  rmSync(join(folder, 'b'));
  script('b', '');
  assert.deepEqual(
    (await load()).map(({ name }) => name),
    ['a', 'b'],
  );
  writeFileSync(join(configs, 'c.yml'), JSON.stringify(config({ ...provider, name: 'a' })));
  await assert.rejects(load(), refused(/two providers are named a/));
  writeFileSync(join(configs, 'c.yml'), 'a: [');
  await assert.rejects(load(), refused(/c\.yml/));
});

test('no answer breaks the reader, and none gets its secrets into a message', () => {
  const random = seeded(5);
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)]!;
  const values = [
    'hidden',
    'Image',
    '1m',
    '',
    0,
    null,
    true,
    [],
    {},
    { a: { password: 'hidden' } },
    { a: 1 },
  ];
  const fields = ['cacheKeyType', 'cacheDuration', 'auth', '__proto__', 'more'];
  for (let round = 0; round < 3000; round++) {
    const base = { kind: 'CredentialProviderResponse', apiVersion: v1, cacheKeyType: 'Image' };
    const more = Object.fromEntries(Array.from({ length: random() * 4 }, () => [pick(fields), pick(values)]));
    let text = JSON.stringify({ ...base, ...more });
    if (random() < 0.3) text = text.slice(random() * 20, random() * text.length);
    try {
      const { entries } = parseProviderAnswer(text, v1);
      for (const entry of entries) assert.equal(typeof entry.login.password, 'string');
    } catch (error) {
      assert.ok(isError(error, 'FAILED_PRECONDITION'), text);
      assert.ok(!error.message.includes('hidden'), error.message);
    }
  }
});
