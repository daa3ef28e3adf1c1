import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { TLSSocket } from 'node:tls';
import { makeClient } from '../../../agent/apiserver/client.ts';
import { loadKubeconfig, readKubeconfig } from '../../../agent/apiserver/kubeconfig.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { fastClock, seeded, silent } from './fake.ts';

function folder(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'keelson-test-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

function config(cluster: object, user: object | undefined, more: object = {}): object {
  return {
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'x',
    contexts: [{ name: 'x', context: { cluster: 'c', ...(user === undefined ? {} : { user: 'u' }) } }],
    clusters: [{ name: 'c', cluster: { server: 'http://127.0.0.1:1', ...cluster } }],
    users: user === undefined ? [] : [{ name: 'u', user }],
    ...more,
  };
}

/** Writes the kubeconfig (JSON is YAML) and loads it. */
async function load(t: TestContext, document: unknown, where = folder(t), clock = fastClock()) {
  const path = join(where, 'kubeconfig');
  writeFileSync(path, typeof document === 'string' ? document : JSON.stringify(document));
  return { where, clock, access: await loadKubeconfig(path, undefined, { clock }) };
}

/** A self-signed certificate with its key; undefined where openssl is missing. */
function certificate(where: string, name: string): { cert: string; key: string } | undefined {
  const [cert, key] = [join(where, `${name}.crt`), join(where, `${name}.key`)];
  try {
    execFileSync(
      'openssl',
      [
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:prime256v1',
        '-nodes',
        '-days',
        '2',
        '-subj',
        `/CN=${name}`,
        '-addext',
        'subjectAltName=IP:127.0.0.1',
        '-keyout',
        key,
        '-out',
        cert,
      ],
      { stdio: 'ignore' },
    );
    return { cert, key };
  } catch {
    return undefined;
  }
}

test('every fault is told with the file and the field', () => {
  const table: [RegExp, unknown, string?][] = [
    [/document: must be a map/, [1]],
    [/current-context: is not set/, {}],
    [/kind: must be Config/, config({}, {}, { kind: 'Pod' })],
    [/contexts: there is no context named "y"/, config({}, {}), 'y'],
    [/clusters: there is no cluster named "c"/, config({}, {}, { clusters: [] })],
    [/clusters: must be a list/, config({}, {}, { clusters: {} })],
    [/users: there is no user named "u"/, config({}, {}, { users: null })],
    [/clusters\[0\]\.cluster\.server: is not set/, config({ server: '' }, {})],
    [/clusters\[0\]\.cluster\.server: must be an https/, config({ server: 'ftp://x' }, {})],
    [/clusters\[0\]\.cluster\.server: must not carry credentials/, config({ server: 'https://a:b@x' }, {})],
    [/certificate-authority-data: is not base64/, config({ 'certificate-authority-data': '%' }, {})],
    [/proxy-url: is not supported/, config({ 'proxy-url': 'http://p' }, {})],
    [/insecure-skip-tls-verify: must be true or false/, config({ 'insecure-skip-tls-verify': 'yes' }, {})],
    [/users\[0\]\.user: client-certificate and client-key/, config({}, { 'client-certificate': 'a' })],
    [/users\[0\]\.user\.token: must be a string/, config({}, { token: 5 })],
    [/users\[0\]\.user\.as: is not supported/, config({}, { as: 'x' })],
    [/exec\.apiVersion: is not set/, config({}, { exec: {} })],
    [/exec\.apiVersion: must be one of/, config({}, { exec: { apiVersion: 'v9', command: 'x' } })],
    [/exec\.command: is not set/, config({}, { exec: { apiVersion: 'client.authentication.k8s.io/v1' } })],
    [
      /exec\.args\[1\]: must be a string/,
      config({}, { exec: { apiVersion: 'client.authentication.k8s.io/v1', command: 'x', args: ['a', 1] } }),
    ],
    [
      /exec\.interactiveMode: /,
      config(
        {},
        { exec: { apiVersion: 'client.authentication.k8s.io/v1', command: 'x', interactiveMode: 'Always' } },
      ),
    ],
  ];
  for (const [message, document, context] of table) {
    const fault = (error: unknown) =>
      isError(error, 'CONFIG_INVALID') &&
      error.message.startsWith('kubeconfig /k: ') &&
      message.test(error.message);
    assert.throws(() => readKubeconfig(document, '/k', context), fault, String(message));
  }
});

test('files that are missing, empty or no PEM are told by name', async (t) => {
  const where = folder(t);
  await assert.rejects(loadKubeconfig(join(where, 'none')), /there is no kubeconfig .*none/);
  await assert.rejects(load(t, 'a: [secret-in-the-line', where), (error) => {
    assert.ok(isError(error, 'CONFIG_INVALID'));
    assert.match(error.message, /is not YAML \(line 1\)/);
    return !error.message.includes('secret');
  });
  await assert.rejects(
    load(t, config({}, { tokenFile: 'missing' }), where),
    /users\[0\]\.user\.tokenFile: there is no file .*missing/,
  );
  writeFileSync(join(where, 'empty'), '\n');
  await assert.rejects(load(t, config({}, { tokenFile: 'empty' }), where), /tokenFile: .*empty is empty/);
  await assert.rejects(
    load(t, config({ 'certificate-authority': 'empty' }, {}), where),
    /certificate-authority: .*is empty/,
  );
  writeFileSync(join(where, 'junk'), 'junk');
  await assert.rejects(
    load(t, config({ 'certificate-authority': 'junk' }, {}), where),
    /certificate-authority: is not a PEM certificate/,
  );
});

test('the credentials of each kind', async (t) => {
  const authorization = async (user: object | undefined) =>
    (await (await load(t, config({}, user))).access.credentials()).authorization;
  assert.equal(await authorization(undefined), undefined);
  assert.equal(await authorization({ token: 'abc' }), 'Bearer abc');
  assert.equal(await authorization({ username: 'u', password: 'p' }), 'Basic dTpw');
  const { access } = await load(
    t,
    config(
      { server: 'https://h:1/prefix', 'tls-server-name': 's', 'insecure-skip-tls-verify': true },
      { token: 'a' },
    ),
  );
  const { tls } = await access.credentials();
  assert.equal(access.server.href, 'https://h:1/prefix');
  assert.equal(tls.serverName, 's');
  assert.equal(tls.insecure, true);
});

test('a token file is read again when it changed, and keeps its value while it is being replaced', async (t) => {
  const where = folder(t);
  const file = join(where, 'token');
  writeFileSync(file, 'one\n');
  const { access, clock } = await load(t, config({}, { tokenFile: 'token' }), where);
  const now = async () => (await access.credentials()).authorization;
  const before = (await access.credentials()).tls;
  assert.equal(await now(), 'Bearer one');
  writeFileSync(file, 'two');
  utimesSync(file, 1, 1);
  clock.advance(11_000);
  assert.equal(await now(), 'Bearer two');
  rmSync(file);
  clock.advance(11_000);
  assert.equal(await now(), 'Bearer two');
  writeFileSync(file, 'three');
  access.refused();
  assert.equal(await now(), 'Bearer three');
  assert.equal((await access.credentials()).tls, before, 'connections are kept');
});

test('client certificates are used and exchanged while running', async (t) => {
  const where = folder(t);
  const server = certificate(where, 'server');
  const [one, two] = [certificate(where, 'one'), certificate(where, 'two')];
  if (server === undefined || one === undefined || two === undefined)
    return t.skip('openssl is not installed');
  const [cert, key] = [join(where, 'client.crt'), join(where, 'client.key')];
  const copy = (from: string, to: string) => writeFileSync(to, readFileSync(from));
  copy(one.cert, cert);
  copy(one.key, key);
  const listener = createServer(
    {
      cert: readFileSync(server.cert),
      key: readFileSync(server.key),
      requestCert: true,
      rejectUnauthorized: false,
    },
    (request, response) => {
      const subject = (request.socket as TLSSocket).getPeerCertificate().subject;
      response.end(JSON.stringify({ subject: subject?.CN, path: request.url }));
    },
  );
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
  const url = `https://127.0.0.1:${(listener.address() as AddressInfo).port}/prefix`;
  const { access, clock } = await load(
    t,
    config(
      { server: url, 'certificate-authority': 'server.crt' },
      { 'client-certificate': 'client.crt', 'client-key': 'client.key' },
    ),
    where,
  );
  const client = makeClient({ access, clock: systemClock, log: silent, userAgent: 'x' });
  t.after(async () => {
    await client.close();
    listener.closeAllConnections();
    listener.close();
  });
  assert.deepEqual(await client.get('/api/v1/nodes/n'), { subject: 'one', path: '/prefix/api/v1/nodes/n' });
  copy(two.cert, cert);
  clock.advance(11_000);
  assert.deepEqual(
    await client.get('/x'),
    { subject: 'one', path: '/prefix/x' },
    'half exchanged: the old pair',
  );
  copy(two.key, key);
  clock.advance(11_000);
  assert.deepEqual(await client.get('/x'), { subject: 'two', path: '/prefix/x' });
  await assert.rejects(
    load(t, config({ server: url }, { 'client-certificate': 'one.crt', 'client-key': 'two.key' }), where),
    /client-key: is not the key of the client certificate/,
  );
  const { access: stranger } = await load(
    t,
    config({ server: url, 'certificate-authority': 'one.crt' }, {}),
    where,
  );
  const wary = makeClient({ access: stranger, clock: systemClock, log: silent, userAgent: 'x' });
  t.after(() => wary.close());
  await assert.rejects(wary.get('/x'), (error) => isError(error, 'API_UNREACHABLE'));
});

test('an exec plugin is run, kept until its credentials expire or are refused', async (t) => {
  const where = folder(t);
  const plugin = join(where, 'plugin.sh');
  writeFileSync(
    plugin,
    `#!/bin/sh\necho run >> ${where}/runs\n[ "$EXTRA" = yes ] || exit 3\ncase "$KUBERNETES_EXEC_INFO" in *'"server":"http://127.0.0.1:1/"'*) ;; *) exit 4;; esac\nprintf '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"t%s","expirationTimestamp":"2023-11-14T23:13:20Z"}}' "$(wc -l < ${where}/runs)"\n`,
  );
  chmodSync(plugin, 0o755);
  const exec = {
    apiVersion: 'client.authentication.k8s.io/v1',
    command: './plugin.sh',
    env: [{ name: 'EXTRA', value: 'yes' }],
    provideClusterInfo: true,
    interactiveMode: 'IfAvailable',
  };
  const { access, clock } = await load(t, config({}, { exec }), where);
  const runs = () => readFileSync(join(where, 'runs'), 'utf8').trim().split('\n').length;
  const both = await Promise.all([access.credentials(), access.credentials()]);
  assert.deepEqual(
    both.map((one) => one.authorization),
    ['Bearer t1', 'Bearer t1'],
  );
  await access.credentials();
  assert.equal(runs(), 1);
  access.refused();
  assert.equal((await access.credentials()).authorization, 'Bearer t2');
  clock.advance(3_600_000);
  await assert.rejects(access.credentials(), /gave credentials that have already expired/);
});

test('an exec plugin that fails is told without its output', async (t) => {
  const where = folder(t);
  const failing = async (command: string, args: string[]) => {
    const exec = { apiVersion: 'client.authentication.k8s.io/v1', command, args, installHint: 'install it' };
    const { access } = await load(t, config({}, { exec }), where);
    return access.credentials().then(
      () => assert.fail(),
      (error: unknown) => {
        assert.ok(error instanceof KeelsonError && error.code === 'CONFIG_INVALID');
        assert.ok(!JSON.stringify([error.message, error.details]).includes('hunter2'));
        return error;
      },
    );
  };
  const missing = await failing('no-such-keelson-plugin', []);
  assert.match(
    missing.message,
    /users\[0\]\.user\.exec: the credential plugin no-such-keelson-plugin does not exist/,
  );
  assert.equal(missing.hint, 'install it');
  assert.match((await failing('sh', ['-c', 'echo hunter2 >&2; exit 3'])).message, /failed with exit code 3/);
  assert.match((await failing('sh', ['-c', 'echo hunter2'])).message, /wrote no JSON/);
  assert.match((await failing('sh', ['-c', 'echo "{}"'])).message, /wrote no ExecCredential/);
});

test('a mutated kubeconfig is read or CONFIG_INVALID, never another error', () => {
  const random = seeded(9);
  const values = [null, 0, '', 'x', [], {}, [null], [{}], { name: 'x' }, true];
  const mutate = (value: unknown): unknown => {
    if (random() < 0.08) return values[Math.floor(random() * values.length)];
    if (Array.isArray(value)) return value.map(mutate);
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, mutate(one)]));
  };
  const whole = config(
    { 'certificate-authority-data': 'YQ==', 'tls-server-name': 'a' },
    {
      tokenFile: 'a',
      exec: {
        apiVersion: 'client.authentication.k8s.io/v1',
        command: 'x',
        args: ['a'],
        env: [{ name: 'a', value: 'b' }],
      },
    },
  );
  let good = 0;
  for (let i = 0; i < 20_000; i++) {
    try {
      readKubeconfig(mutate(whole), '/k');
      good++;
    } catch (error) {
      assert.ok(isError(error, 'CONFIG_INVALID'), String(error));
    }
  }
  assert.ok(good > 0);
});
