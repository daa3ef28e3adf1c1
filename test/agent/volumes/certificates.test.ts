import assert from 'node:assert/strict';
import { createPrivateKey, createPublicKey } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
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
