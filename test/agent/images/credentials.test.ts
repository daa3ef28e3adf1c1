/** Credentials: docker's files, addresses and globs, and their order. Facts of kubelet's pkg/credentialprovider. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Secret } from '../../../agent/apiserver/types.ts';
import {
  addressMatches,
  credentialKey,
  globMatches,
  parseAddress,
} from '../../../agent/images/credentials/address.ts';
import { loginHash, parseDockerConfig } from '../../../agent/images/credentials/docker_config.ts';
import { type CredentialSet, lookUp, setOfSecret } from '../../../agent/images/credentials/keyring.ts';
import { registryOf, repositoryOf, withoutTag } from '../../../agent/images/image_name.ts';
import { seeded } from '../pods/objects.ts';

const digest = `sha256:${'0'.repeat(64)}`;
const names: [string, string | undefined, string | undefined][] = [
  ['busybox', 'busybox', 'docker.io/library/busybox'],
  ['busybox:1.36', 'busybox', 'docker.io/library/busybox'],
  [`busybox:1@${digest}`, 'busybox', 'docker.io/library/busybox'],
  ['docker.io/busybox', 'docker.io/busybox', 'docker.io/library/busybox'],
  ['index.docker.io/me/app:1', 'index.docker.io/me/app', 'docker.io/me/app'],
  ['me/app', 'me/app', 'docker.io/me/app'],
  ['localhost/app', 'localhost/app', 'localhost/app'],
  ['localhost:5000/app:x', 'localhost:5000/app', 'localhost:5000/app'],
  ['reg.example:5000/a/b/c:1', 'reg.example:5000/a/b/c', 'reg.example:5000/a/b/c'],
  [`[2001:db8::1]:5000/app@${digest}`, '[2001:db8::1]:5000/app', '[2001:db8::1]:5000/app'],
  ['Upper', undefined, undefined],
  ['bad//name:1', undefined, undefined],
  ['name:', undefined, undefined],
  ['', undefined, undefined],
  ['a'.repeat(2000), undefined, undefined],
];
for (const [image, name, repository] of names) {
  test(`image name ${JSON.stringify(image.slice(0, 80))}`, () => {
    assert.equal(withoutTag(image), name);
    assert.equal(repositoryOf(image), repository);
    if (repository !== undefined) assert.ok(repository.startsWith(`${registryOf(repository)}/`));
  });
}

// What Go's url.Parse (1.26) makes of `https://` and these.
const addresses: [string, { host: string; path: string } | undefined][] = [
  ['reg.example:5000/team', { host: 'reg.example:5000', path: '/team' }],
  ['user:pw@host/x', { host: 'host', path: '/x' }],
  ['[::1]:5000/x', { host: '[::1]:5000', path: '/x' }],
  ['host:', { host: 'host:', path: '' }],
  ['host/a%20b', { host: 'host', path: '/a b' }],
  ['host?x/y', { host: 'host', path: '' }],
  ['*.x.io', { host: '*.x.io', path: '' }],
  ['a b', undefined],
  ['host:port', undefined],
  ['[::1', undefined],
  ['h%20x', undefined],
  ['host/%zz', undefined],
  ['ho[a-c]st', undefined],
  ['a:b:c', undefined],
  ['h^x', undefined],
  ['\\x', undefined],
  ['x\u0001', undefined],
];
for (const [text, wanted] of addresses) {
  test(`address ${JSON.stringify(text)}`, () => assert.deepEqual(parseAddress(text), wanted));
}

const matches: [string, string, boolean][] = [
  ['*.example.io', 'one.example.io/app', true],
  ['one.*.io', 'one.example.io/app', true],
  ['one.example.*', 'one.example.io/app', true],
  ['*-good.example.io', 'very-good.example.io/app', true],
  ['*.example.io/team', 'one.example.io/team/app', true],
  ['*.example.io:1111/team', 'one.example.io:1111/team/app', true],
  ['*.*.*.example.io', 'a.b.c.example.io/app', true],
  ['*example.io', 'example.io/app', true],
  ['example.io/team', 'example.io/teamwork', true], // A plain prefix, as for kubelet.
  ['*.example.io', 'example.io/app', false],
  ['*.*.example.io', 'one.example.io/app', false],
  ['*example.io', 'a.example.io/app', false],
  ['example.io', 'example.com/app', false],
  ['e*.io', 'quay.io/app', false],
  ['*.example.io:1234/team', 'one.example.io:1111/team', false],
  ['one.*.io/team', 'one.example.io:1111/team', false],
  ['example.io/team/app', 'example.io/team', false],
  ['[::1]:5000', '[::1]:5000/app', true],
  ['a b', 'a b', false],
];
for (const [pattern, repository, wanted] of matches) {
  test(`${pattern} is ${wanted ? '' : 'not '}for ${repository}`, () =>
    assert.equal(addressMatches(pattern, repository), wanted));
}

test('a glob gives the answer of a pattern that goes back, and in a bounded number of steps', () => {
  const random = seeded(7);
  for (let round = 0; round < 3000; round++) {
    const draw = (letters: string) =>
      Array.from({ length: random() * 8 }, () => letters[Math.floor(random() * letters.length)]).join('');
    const [pattern, text] = [draw('ab*'), draw('ab')];
    const reference = new RegExp(`^${pattern.replaceAll('*', '.*')}$`);
    assert.equal(globMatches(pattern, text), reference.test(text), `${pattern} ${text}`);
  }
  // With a pattern that goes back this would not end.
  assert.equal(globMatches(`${'*a'.repeat(2000)}*b`, 'a'.repeat(4000)), false);
});

const keys: [string, string | undefined][] = [
  ['https://index.docker.io/v1/', 'index.docker.io'],
  ['http://reg.example/v2/', 'reg.example'],
  ['reg.example/', 'reg.example'],
  ['https://reg.example/v2/team', 'reg.example/team'],
  ['reg.example/v2', 'reg.example/v2'],
  ['reg.example:5000/team', 'reg.example:5000/team'],
  ['not a host', undefined],
];
for (const [text, key] of keys) {
  test(`a credential for ${text} is kept under ${key ?? 'nothing'}`, () =>
    assert.equal(credentialKey(text), key));
}

const auths: [string, { username: string; password: string } | undefined][] = [
  ['Zm9vOmJhcg==', { username: 'foo', password: 'bar' }],
  ['Zm9vOmJhcg', { username: 'foo', password: 'bar' }],
  ['Zm9vOm\nJhcg==\n', { username: 'foo', password: 'bar' }],
  ['Zm9vOmJhcgo=', { username: 'foo', password: 'bar\n' }],
  ['Zm9vOmE6Yg==', { username: 'foo', password: 'a:b' }],
  ['cGFudHM=', undefined],
  ['Zm9vOmJhcg== ', undefined],
  ['Zm9vOmJhcg=', undefined],
  ['pants', undefined],
  ['_-8=', undefined],
];
for (const [auth, wanted] of auths) {
  test(`auth ${JSON.stringify(auth)}`, () => {
    // `auth` counts even beside a user and a password.
    const config = { auths: { 'reg.example': { auth, username: 'other', password: 'other' } } };
    const { entries, faults } = parseDockerConfig(JSON.stringify(config), 'json');
    assert.deepEqual(
      entries.map(({ login }) => login),
      wanted === undefined ? [] : [wanted],
    );
    assert.equal(faults.length, wanted === undefined ? 1 : 0);
    assert.ok(!faults.join().includes(auth));
  });
}

test('the fields of an entry, and what is not one', () => {
  const parse = (auths: object) => parseDockerConfig(JSON.stringify({ Auths: auths }), 'json');
  const all = { UserName: 'u', password: 'p', email: 'e@x', identitytoken: 'i', registrytoken: 'r' };
  assert.deepEqual(parse({ a: { ...all, serveraddress: 'elsewhere.example' } }).entries, [
    {
      address: 'a',
      login: { username: 'u', password: 'p', email: 'e@x', identityToken: 'i', registryToken: 'r' },
    },
  ]);
  assert.deepEqual(parse({ a: {}, b: null, c: { email: 'e@x' } }), {
    entries: [],
    faults: [],
    unusable: false,
  });
  const bad = parse({ a: { email: false }, 'https://me:hidden@b.example': 'text', c: { username: 'ok' } });
  assert.deepEqual(
    bad.entries.map(({ address }) => address),
    ['c'],
  );
  assert.deepEqual(bad.faults, [
    'the entry for "a": "email" is not a string',
    'the entry for "b.example": it is not an object',
  ]);
  for (const text of ['', 'x', '[]', '1', 'null', '{"auths":[]}'])
    assert.equal(parseDockerConfig(text, 'json').unusable, true, text);
  assert.deepEqual(parseDockerConfig('{"credsStore":"pass"}', 'json').unusable, false);
});

test('hashes are those that kubelet writes', () => {
  // Taken from Go: sha256 of json.Marshal of kubelet's type.
  assert.equal(
    loginHash({ username: 'user', password: 'secret' }),
    '1277341c1d0bef3aaa0092ea1a3ce91b77b7c74f6a86934e99427c8ece3cb100',
  );
  assert.equal(
    loginHash({
      username: 'a<b>&c',
      password: 'p\u2028\b\f\u0001\u007f"\\é😀',
      email: 'x@y',
    }),
    'b2ca91379ece162d9eefc5150333d7fac59eb5b3d660467125329537ad82f780',
  );
  assert.equal(
    loginHash({ username: '', password: '' }),
    '44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a',
  );
});

const user = (username: string) => ({ username, password: 'p' });
function set(kind: 'node' | string, entries: Record<string, string>): CredentialSet {
  return {
    source: kind === 'node' ? { kind } : { kind: 'secret', uid: kind, namespace: 'n', name: kind },
    entries: Object.entries(entries).map(([address, name]) => ({ address, login: user(name) })),
  };
}

test('credentials go only to the registry that they are for, the closest first', () => {
  const sets = [
    set('first', {
      'https://index.docker.io/v1/': 'hub',
      'reg.example:5000': 'reg',
      'reg.example:5000/team': 'team',
      '*.wild.example': 'wild',
      'not a host': 'nobody',
    }),
    set('second', { 'reg.example:5000': 'rotated', 'one.wild.example': 'named' }),
  ];
  const users = (repository: string) => lookUp(repository, sets).map(({ auth }) => auth.username);
  assert.deepEqual(users('docker.io/library/busybox'), ['hub']);
  assert.deepEqual(users('reg.example:5000/team/app'), ['team', 'reg', 'rotated']);
  assert.deepEqual(users('reg.example:5000/other'), ['reg', 'rotated']);
  assert.deepEqual(users('reg.example/team'), []);
  assert.deepEqual(users('one.wild.example/x'), ['named', 'wild']);
  assert.deepEqual(users('a.b.wild.example/x'), []);
  assert.deepEqual(users('localhost/app'), []);
  const [found] = lookUp('reg.example:5000/other', sets);
  assert.deepEqual(found?.source, { kind: 'secret', uid: 'first', namespace: 'n', name: 'first' });
  assert.equal(found?.auth.serverAddress, 'reg.example:5000');
  const hub = set('hub', { 'docker.io': 'named', 'https://index.docker.io/v1/': 'login' });
  assert.deepEqual(
    lookUp('docker.io/me/app', [hub]).map(({ auth }) => auth.username),
    ['named'],
  );
});

test('a user without a name, and tokens, get to the image service', () => {
  const sets: CredentialSet[] = [
    {
      source: { kind: 'node' },
      entries: [
        { address: 'a.example', login: { username: '', password: 'pw' } },
        { address: 'a.example', login: { username: '', password: '', identityToken: 'i' } },
        { address: 'a.example', login: { username: '', password: '', registryToken: 'r' } },
      ],
    },
  ];
  const serverAddress = 'a.example';
  assert.deepEqual(
    lookUp('a.example/x', sets).map(({ auth }) => auth),
    [
      { auth: Buffer.from(':pw').toString('base64'), serverAddress },
      { identityToken: 'i', serverAddress },
      { registryToken: 'r', serverAddress },
    ],
  );
});

const base64 = (value: unknown) =>
  Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64');

test('pull secrets of both types; what is wrong with others is said without their content', () => {
  const metadata = { uid: 'u', namespace: 'n', name: 's' };
  const read = (secret: Secret) => setOfSecret({ metadata, ...secret });
  const entry = { 'reg.example': user('me') };
  const modern = read({
    type: 'kubernetes.io/dockerconfigjson',
    data: { '.dockerconfigjson': base64({ auths: entry }) },
  });
  const old = read({ type: 'kubernetes.io/dockercfg', data: { '.dockercfg': base64(entry) } });
  for (const { set: found, faults } of [modern, old]) {
    assert.deepEqual(faults, []);
    assert.deepEqual(found.entries, [{ address: 'reg.example', login: user('me') }]);
    assert.deepEqual(found.source, { kind: 'secret', ...metadata });
  }
  const faults = (secret: Secret) => read(secret).faults.join('; ');
  assert.match(faults({ type: 'Opaque', data: { '.dockercfg': base64(entry) } }), /its type is Opaque/);
  assert.match(faults({ data: {} }), /its type is Opaque/);
  assert.match(faults({ type: 'constructor' }), /its type is constructor/);
  assert.match(faults({ type: 'kubernetes.io/dockercfg', data: {} }), /it has no \.dockercfg/);
  const garbage = faults({
    type: 'kubernetes.io/dockerconfigjson',
    data: { '.dockerconfigjson': base64('{"auths":{"x":{"password":"hidden') },
  });
  assert.equal(garbage, 'it is not valid JSON');
});

test('no dockerconfigjson breaks the reader, and none gets its secrets into a fault', () => {
  const random = seeded(11);
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)]!;
  const values = ['hidden', 'aGlkZGVuOmhpZGRlbg==', '', 1, null, true, [], {}, 'x\ud800', '__proto__'];
  const fields = ['auth', 'username', 'password', 'identitytoken', 'registrytoken', 'email', 'serveraddress'];
  const hosts = ['a.example', '*', 'https://u:hidden@h/', '__proto__', 'constructor', '[', '%', '\u0000', ''];
  for (let round = 0; round < 2000; round++) {
    const auths = Object.fromEntries(
      Array.from({ length: 1 + random() * 3 }, () => [
        pick(hosts),
        random() < 0.2
          ? pick(values)
          : Object.fromEntries(Array.from({ length: random() * 4 }, () => [pick(fields), pick(values)])),
      ]),
    );
    let text = JSON.stringify(random() < 0.5 ? { auths } : auths);
    if (random() < 0.3) text = text.slice(0, random() * text.length);
    const { set: found, faults } = setOfSecret({
      type: 'kubernetes.io/dockerconfigjson',
      data: { '.dockerconfigjson': base64(text) },
    });
    assert.ok(!faults.join().includes('hidden'), faults.join());
    for (const { auth, hash } of lookUp('a.example/x', [found])) {
      assert.match(hash, /^[0-9a-f]{64}$/);
      assert.equal(auth.serverAddress, 'a.example');
    }
  }
});
