import assert from 'node:assert/strict';
import { createPrivateKey, createPublicKey } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ApiserverClient, WatchEvent } from '../../../agent/apiserver/types.ts';
import { makeCertificates } from '../../../agent/volumes/certificates/certificates.ts';
import { makeKeyAndProof } from '../../../agent/volumes/certificates/keys.ts';
import {
  abandoned,
  answered,
  cleanChain,
  lateness,
  type State,
} from '../../../agent/volumes/certificates/states.ts';
import { credentialFiles } from '../../../agent/volumes/sources.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { exec } from '../../../runtime/host/exec.ts';
import { makeLogger } from '../../../runtime/host/log.ts';

test('keys of every type, with a request that openssl finds to be signed by them', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-keys-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const details = {
    RSA3072: { modulusLength: 3072, publicExponent: 65537n },
    RSA4096: { modulusLength: 4096, publicExponent: 65537n },
    ECDSAP256: { namedCurve: 'prime256v1' },
    ECDSAP384: { namedCurve: 'secp384r1' },
    ECDSAP521: { namedCurve: 'secp521r1' },
    ED25519: {},
  };
  for (const [type, expected] of Object.entries(details)) {
    const { key, proof } = await makeKeyAndProof(type);
    assert.match(key, /^-----BEGIN PRIVATE KEY-----\n/);
    assert.deepEqual(createPrivateKey(key).asymmetricKeyDetails, expected, type);
    const file = join(folder, type);
    await writeFile(file, proof);
    const args = ['req', '-inform', 'DER', '-in', file, '-verify', '-noout', '-pubkey', '-subject'];
    const { stdout } = await exec('openssl', args, { deadlineMs: 10_000 });
    const own = createPublicKey(key).export({ type: 'spki', format: 'pem' }) as string;
    assert.ok(stdout.toString().includes(own), `${type}: ${stdout}`);
  }
  for (const type of ['RSA2048', '', 'toString'])
    await assert.rejects(
      makeKeyAndProof(type),
      (error) => isError(error, 'VOLUME_FAILED') && error.message.startsWith('unknown key type'),
    );
});

const pending = { key: 'the key', name: 'req-1', abandonAt: 0 };
const wait: State = { kind: 'wait', pending };
const issued = {
  key: 'old',
  chain: 'old',
  refreshAt: 1_000_000,
  notAfter: 2_000_000,
  told: { overdue: false, expired: false },
};
const pem = (text: string) =>
  `-----BEGIN CERTIFICATE-----\n${Buffer.from(text).toString('base64')}\n-----END CERTIFICATE-----\n`;

test('what a signer says decides, at first and at a refresh, and only where it was asked', () => {
  const yes = {
    conditions: [{ type: 'Issued', reason: 'R', message: 'm' }],
    certificateChain: pem('leaf'),
    beginRefreshAt: '1970-01-01T00:01:00Z',
    notAfter: '1970-01-01T01:00:00Z',
  };
  const fresh = {
    kind: 'fresh',
    issued: {
      key: 'the key',
      chain: pem('leaf'),
      refreshAt: 60_000 + 150_000,
      notAfter: 3_600_000,
      told: { overdue: false, expired: false },
    },
  };
  for (const from of [wait, { kind: 'fresh', issued, pending } as const]) {
    assert.deepEqual(answered(from, 'n/req-1', yes, 0.5), { state: fresh });
    assert.deepEqual(answered(from, 'n/req-1', {}, 0.5), { state: from });
    for (const [type, kind, did] of [
      ['Denied', 'denied', 'was denied'],
      ['Failed', 'failed', 'failed'],
    ] as const) {
      const { state, tell } = answered(
        from,
        'n/req-1',
        { conditions: [{ type, reason: 'Why', message: 'so' }] },
        0,
      );
      assert.deepEqual(state, { kind, reason: 'Why', message: 'so' });
      assert.deepEqual(tell, {
        reason: type,
        message: `PodCertificateRequest n/req-1 ${did}, reason="Why", message="so"`,
      });
    }
  }
  for (const from of [
    { kind: 'initial' },
    { kind: 'fresh', issued },
    { kind: 'denied', reason: '', message: '' },
  ] as const)
    assert.equal(answered(from, 'n/req-1', yes, 0).state, from);
});

test('a deleted request is made anew, and an issued certificate is kept meanwhile', () => {
  assert.deepEqual(abandoned(wait), { kind: 'initial' });
  assert.deepEqual(abandoned({ kind: 'fresh', issued, pending }), { kind: 'fresh', issued });
});

test('lateness is told once for each certificate', () => {
  assert.deepEqual(lateness(issued, 1_600_000), { issued, tell: [] });
  const overdue = lateness(issued, 1_600_001);
  assert.deepEqual(
    overdue.tell.map(({ reason }) => reason),
    ['CertificateOverdueForRefresh'],
  );
  assert.deepEqual(lateness(overdue.issued, 2_000_000).tell, []);
  const expired = lateness(overdue.issued, 2_000_001);
  assert.deepEqual(
    expired.tell.map(({ reason }) => reason),
    ['CertificateExpired'],
  );
  assert.deepEqual(lateness(expired.issued, 9_000_000).tell, []);
  assert.equal(lateness(issued, 9_000_000).tell.length, 2);
});

test('chains keep their order and lose everything else', () => {
  const headers = pem('b').replace('-----\n', '-----\nProc-Type: 4\nX: abcd\n\n');
  assert.equal(cleanChain(`words\n${pem('c')}more\n${headers}${pem('a')}`), pem('c') + pem('b') + pem('a'));
  assert.equal(cleanChain('nothing'), '');
});

test('files: a bundle, a key and a chain, each where it is asked for, private where they have an owner', () => {
  const files = (projection: object, spec: object = {}) =>
    [
      ...credentialFiles({ spec: { containers: [], ...spec } }, projection, { key: 'K', chain: 'C' }, 0o644),
    ].map(([path, { data, mode }]) => [path, data.toString(), mode]);
  assert.deepEqual(files({ credentialBundlePath: 'b', keyPath: 'k', certificateChainPath: 'c' }), [
    ['b', 'KC', 0o644],
    ['k', 'K', 0o644],
    ['c', 'C', 0o644],
  ]);
  assert.deepEqual(files({ keyPath: 'k' }, { securityContext: { fsGroup: 1 } }), [['k', 'K', 0o600]]);
});

test('a certificate is asked for once, refreshed when it is due, and one that is denied then stays so', {
  timeout: 30_000,
}, async (t) => {
  const ending = new AbortController();
  t.after(() => ending.abort());
  let passed = 0;
  const clock = {
    now: () => 1_000_000 + passed,
    monotonic: () => passed,
    after(ms: number, body: () => void) {
      const timer = setTimeout(body, ms);
      return () => clearTimeout(timer);
    },
  };
  const events: WatchEvent<object>[] = [];
  let wake = () => {};
  const made: { name: string; body: { spec: object } }[] = [];
  const queries: unknown[] = [];
  let version = 10;
  const iso = (time: number) => new Date(time).toISOString();
  const say = (name: string, conditions: object[], status: object = {}) => {
    events.push({
      type: 'MODIFIED',
      object: {
        metadata: { name, namespace: 'n', uid: name, resourceVersion: String(version++) },
        spec: { podUID: 'u' },
        status: { conditions, ...status },
      },
    });
    wake();
  };
  let onMade = (_name: string) => {};
  const client = {
    get: async (path: string) => ({ metadata: { uid: path.includes('/nodes/') ? 'node-uid' : 'sa-uid' } }),
    async create(_: string, body: { spec: object }) {
      const name = `req-${made.length + 1}`;
      made.push({ name, body });
      onMade(name);
      return { metadata: { name, namespace: 'n' } };
    },
    async list(path: string, options: { query?: object }) {
      queries.push([path, options.query]);
      return { metadata: { resourceVersion: '5' }, items: [] };
    },
    async *watch(_: string, options?: { signal?: AbortSignal }) {
      for (;;) {
        while (events.length > 0) yield events.shift()!;
        await new Promise<void>((resolve, reject) => {
          wake = resolve;
          options?.signal?.addEventListener('abort', () => reject(options.signal!.reason));
        });
      }
    },
  } as unknown as ApiserverClient;
  const warned: string[] = [];
  const certificates = makeCertificates({
    client,
    nodeName: 'node',
    clock,
    log: makeLogger('silent'),
    warn: (_, reason) => void warned.push(reason),
    ending: ending.signal,
    random: () => 0,
  });
  const pod = { metadata: { name: 'p', namespace: 'n', uid: 'u' }, spec: { containers: [] } };
  const source = {
    volume: 'v',
    index: 0,
    projection: { signerName: 's/s', keyType: 'ECDSAP256', keyPath: 'k' },
  };
  const get = () => certificates.get(pod, source, undefined);
  const issue = (chain: string) => (name: string) =>
    say(name, [{ type: 'Issued' }], {
      certificateChain: pem(chain),
      beginRefreshAt: iso(clock.now() + 60_000),
      notAfter: iso(clock.now() + 120_000),
    });

  onMade = issue('first');
  const first = await get();
  assert.equal(first.chain, pem('first'));
  assert.equal(first.renewAt, clock.now() + 60_000);
  assert.deepEqual(await get(), first, 'it is kept');
  assert.equal(made.length, 1);
  assert.match(JSON.stringify(queries[0]), /"fieldSelector":"spec\.nodeName=node"/);
  const { stubPKCS10Request: _, ...spec } = made[0]!.body.spec as Record<string, unknown>;
  assert.deepEqual(JSON.parse(JSON.stringify(spec)), {
    signerName: 's/s',
    podName: 'p',
    podUID: 'u',
    serviceAccountName: 'default',
    serviceAccountUID: 'sa-uid',
    nodeName: 'node',
    nodeUID: 'node-uid',
  });

  passed += 60_000;
  onMade = issue('second');
  const second = await get();
  assert.equal(second.chain, pem('second'));
  assert.notEqual(second.key, first.key, 'a key of its own');
  assert.equal(made.length, 2);

  passed += 800_000;
  onMade = (name) => say(name, [{ type: 'Denied', reason: 'No', message: 'never' }]);
  await assert.rejects(get(), /permanently denied: reason="No" message="never"/);
  await assert.rejects(get(), /permanently denied/);
  assert.equal(made.length, 3, 'it is not asked for again');
  assert.deepEqual(warned, ['CertificateOverdueForRefresh', 'CertificateExpired', 'Denied']);

  certificates.forget('u');
  onMade = issue('new');
  assert.equal((await get()).chain, pem('new'), 'a pod that comes anew starts anew');
});
