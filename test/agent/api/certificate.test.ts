import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { addressBytes, isUsable, makeSelfSigned, selfSignedIn } from '../../../agent/api/certificate.ts';

const now = Date.parse('2026-11-23T12:00:00Z');
const names = ['edge-1', 'edge-1.example'];
const ips = ['192.0.2.7', 'fd00::7', '::ffff:192.0.2.9'];

test('the certificate says what it is for, and OpenSSL agrees', async (t) => {
  const { cert } = await makeSelfSigned({ names, ips, now });
  const read = new X509Certificate(cert);
  assert.match(read.subject, /^CN=edge-1@\d+$/);
  assert.equal(read.ca, false);
  assert.equal(read.checkHost('edge-1.example'), 'edge-1.example');
  assert.ok(read.checkIP('192.0.2.7'));
  assert.ok(read.checkIP('fd00::7'));
  assert.equal(read.checkIP('192.0.2.8'), undefined);
  assert.deepEqual(read.keyUsage, ['1.3.6.1.5.5.7.3.1']);
  assert.equal(Date.parse(read.validTo) - now, 365 * 86_400_000);
  assert.ok(read.verify(read.publicKey));
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-cert-'));
  t.after(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, 'c.pem'), cert);
  const openssl = (...args: string[]) => execFileSync('openssl', args, { encoding: 'utf8' });
  const text = openssl('x509', '-in', join(folder, 'c.pem'), '-noout', '-text');
  assert.match(text, /Version: 3/);
  assert.match(text, /DNS:edge-1, DNS:edge-1.example, IP Address:192.0.2.7, IP Address:FD00:0:0:0:0:0:0:7/);
  assert.match(text, /X509v3 Key Usage: critical\s+Digital Signature\n/);
  const verified = openssl(
    'verify',
    '-attime',
    String(now / 1000),
    '-check_ss_sig',
    '-purpose',
    'sslserver',
    '-CAfile',
    join(folder, 'c.pem'),
    join(folder, 'c.pem'),
  );
  assert.match(verified, /OK/);
});

test('a clock far from now makes valid times', async () => {
  for (const then of [0, Date.parse('2049-12-31T00:00:00Z'), Date.parse('2060-01-01T00:00:00Z')]) {
    const read = new X509Certificate((await makeSelfSigned({ names: ['n'], ips: [], now: then })).cert);
    assert.equal(Date.parse(read.validFrom), then - 86_400_000);
    assert.equal(Date.parse(read.validTo), then + 365 * 86_400_000);
  }
});

test('many names and long ones', async () => {
  const many = Array.from({ length: 200 }, (_, index) => `${'n'.repeat(60)}${index}.example`);
  const read = new X509Certificate((await makeSelfSigned({ names: many, ips: [], now })).cert);
  assert.equal(read.checkHost(many[199]!), many[199]);
});

test('addresses in bytes', () => {
  for (const [text, hex] of [
    ['10.0.0.255', '0a0000ff'],
    ['::', '00'.repeat(16)],
    ['::1', `${'00'.repeat(15)}01`],
    ['fd00::', `fd00${'00'.repeat(14)}`],
    ['2001:db8:1:2:3:4:5:6', '20010db8000100020003000400050006'],
    ['fe80::1%eth0', `fe80${'00'.repeat(13)}01`],
    ['::ffff:1.2.3.4', '00000000000000000000ffff01020304'],
  ] as const) {
    assert.equal(addressBytes(text).toString('hex'), hex, text);
  }
});

test('kept while it serves, secret, and made anew when it expires, when names change and when a file is broken', async (t) => {
  const folder = join(mkdtempSync(join(tmpdir(), 'keelson-test-cert-')), 'pki');
  t.after(() => rmSync(join(folder, '..'), { recursive: true }));
  const wanted = { names: ['edge-1'], ips: ['192.0.2.7'], now };
  const first = await selfSignedIn(folder, wanted);
  for (const file of ['kubelet.crt', 'kubelet.key'])
    assert.equal(statSync(join(folder, file)).mode & 0o777, 0o600);
  assert.deepEqual(await selfSignedIn(folder, { ...wanted, now: now + 300 * 86_400_000 }), first);
  const renewed = await selfSignedIn(folder, { ...wanted, now: now + 340 * 86_400_000 });
  assert.notEqual(renewed.cert, first.cert);
  const other = await selfSignedIn(folder, { ...wanted, ips: ['192.0.2.8'], now: now + 340 * 86_400_000 });
  assert.notEqual(other.cert, renewed.cert);
  writeFileSync(join(folder, 'kubelet.key'), first.key);
  const mended = await selfSignedIn(folder, { ...wanted, now });
  assert.ok(isUsable(mended, { ...wanted, now }));
  writeFileSync(join(folder, 'kubelet.crt'), '');
  assert.ok(isUsable(await selfSignedIn(folder, { ...wanted, now }), { ...wanted, now }));
  assert.equal(readFileSync(join(folder, 'kubelet.crt'), 'utf8').includes('BEGIN CERTIFICATE'), true);
});
