/** Foreign bytes, mutated: only errors of ours, no hang, nothing outside. The seed is printed to run a case again. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { parseImageConfig } from '../../images/config.ts';
import { parseManifest } from '../../images/manifest.ts';
import { formatReference, parseReference } from '../../images/reference.ts';
import { parseChallenges } from '../../images/registry/auth.ts';
import { parseHostsToml } from '../../images/registry/hosts_toml.ts';
import { parseNoProxy, parseProxy } from '../../images/registry/proxy.ts';
import { parseRetryAfter } from '../../images/registry/retry.ts';
import { tokenOf } from '../../images/registry/token.ts';
import { parsePax } from '../../images/tar/entries.ts';
import { makeTarReader } from '../../images/tar/reader.ts';
import { makeUnpackPool } from '../../images/unpack/pool.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { busyboxImage } from '../peers/image.ts';
import { temporaryFolder } from '../peers/image-store.ts';
import { mutate, randomFrom, withChecksums } from '../peers/mutations.ts';
import { makeTar, type TarEntry } from '../peers/tar.ts';

const seed = Number(process.env['KEELSON_FUZZ_SEED'] ?? 1);

const hostsToml = `server = "https://registry-1.docker.io"
[host."https://mirror.example:5000/path"]
capabilities = ["pull", "resolve"]
ca = ["a.pem", "/b.pem"]
client = [["c.cert", "c.key"]]
skip_verify = false
dial_timeout = "1m30s"
header = { x-a = "b", x-c = ["d", "e"] }
[host."http://10.0.0.1"]
`;

function expectOurs(body: () => unknown, input: Buffer): boolean {
  try {
    body();
    return true;
  } catch (error) {
    assert.ok(
      error instanceof KeelsonError,
      `seed ${seed}, ${JSON.stringify(input.toString('latin1'))}: ${error}`,
    );
    return false;
  }
}

test(`fuzz of references, documents and headers, seed ${seed}`, () => {
  const random = randomFrom(seed);
  const image = busyboxImage();
  const references = [
    '127.0.0.1:5000/a/b:tag',
    `docker.io/library/x@${image.id}`,
    'busybox',
    '[::1]:5/x__y-z',
  ];
  const parsers: readonly (readonly [readonly Buffer[], (input: Buffer) => unknown])[] = [
    [
      references.map((text) => Buffer.from(text)),
      (input) => {
        const found = formatReference(parseReference(input.toString('latin1')));
        assert.equal(formatReference(parseReference(found)), found);
      },
    ],
    [[image.manifest.data], (input) => parseManifest(input, undefined, 'fuzz')],
    [[image.config.data], (input) => parseImageConfig(input, 'fuzz')],
    [[Buffer.from('19 path=some/name\n30 mtime=1234567890.123456789\n')], parsePax],
    [
      [Buffer.from('Bearer realm="http://x/t",service="a",scope="b c"')],
      (input) => parseChallenges(input.toString()),
    ],
    [
      [Buffer.from(hostsToml)],
      (input) => {
        const { hosts, serverSettings } = parseHostsToml(input.toString(), 'fuzz', '/fuzz');
        for (const { ca, client, headers } of [...hosts, serverSettings]) {
          assert.ok([...ca, ...client.map(({ cert }) => cert)].every((path) => path.startsWith('/')));
          new Headers(headers);
        }
        for (const { scheme, host, path } of hosts) {
          assert.equal(new URL(`${scheme}://${host}${path}`).href, `${scheme}://${host}${path || '/'}`);
        }
      },
    ],
    [
      [Buffer.from('{"token":"abc","access_token":"abc","expires_in":300}')],
      (input) => assert.notEqual(tokenOf(input), ''),
    ],
    [
      [Buffer.from('a.example,.b.example:80,10.0.0.0/8,[fd00::1]:443,fd00::/8,*.c.example')],
      (input) => {
        const excluded = parseNoProxy(input.toString());
        for (const host of ['d.example', '10.1.1.1', 'fd00::1'])
          assert.equal(typeof excluded(host, '80'), 'boolean');
        assert.ok(excluded('localhost', '80'));
      },
    ],
    [[Buffer.from('http://user:pass@proxy.example:3128')], (input) => parseProxy(input.toString())],
    [
      ['120', 'Sun, 06 Nov 1994 08:49:37 GMT'].map((text) => Buffer.from(text)),
      (input) => {
        const ms = parseRetryAfter(input.toString(), 0);
        assert.ok(ms === undefined || ms >= 0);
      },
    ],
  ];
  for (const [samples, parse] of parsers) {
    let accepted = 0;
    const rounds = 3000;
    for (let round = 0; round < rounds; round++) {
      const input = mutate(samples[random(samples.length)]!, random);
      if (expectOurs(() => parse(input), input)) accepted++;
    }
    assert.ok(accepted > 0, 'some mutations are still valid');
  }
});

const entries: readonly TarEntry[] = [
  { path: 'd', type: 'directory', xattrs: { 'user.a': 'b' } },
  { path: 'd/f', content: 'content'.repeat(100), mtime: '1234567890.5' },
  { path: 'd/l', type: 'symlink', target: '../../../d' },
  { path: 'd/l/x', content: 'x' },
  { path: 'h', type: 'link', target: 'd/f' },
  { path: `${'n'.repeat(90)}/${'m'.repeat(90)}`, content: 'x' },
  { path: 'd/.wh.gone' },
  { path: 'p', type: 'fifo' },
];

test(`fuzz of the tar reader, seed ${seed}`, async () => {
  const random = randomFrom(seed);
  const tar = makeTar(entries);
  let complete = 0;
  for (let round = 0; round < 1500; round++) {
    const input = withChecksums(mutate(tar, random));
    const cut = random(input.length + 1);
    let inside = false;
    let rest = 0;
    let total = 0;
    try {
      const reader = makeTarReader({
        meta(bytes) {
          total += bytes.length;
        },
        begin(entry) {
          assert.ok(!inside);
          inside = true;
          rest = entry.size;
          assert.ok(
            entry.parts.every((part) => part !== '' && part !== '.' && part !== '..' && !/[/\0]/.test(part)),
          );
        },
        content(_chunk, start, end) {
          assert.ok(inside && start < end);
          rest -= end - start;
          total += end - start;
        },
        end() {
          assert.equal(rest, 0);
          inside = false;
        },
      });
      reader.push(input.subarray(0, cut));
      reader.push(input.subarray(cut));
      reader.finish();
      assert.equal(total, input.length, 'every byte is content or not');
      assert.ok(!inside);
      complete++;
    } catch (error) {
      assert.ok(error instanceof KeelsonError, `seed ${seed}, round ${round}: ${(error as Error).stack}`);
    }
  }
  assert.ok(complete > 100, `${complete} archives were read to the end`);
});

test(`fuzz of unpacking, seed ${seed}`, {
  skip: process.getuid?.() === 0 ? false : 'needs root',
}, async (t) => {
  const random = randomFrom(seed);
  const root = temporaryFolder(t);
  const pools = [0, 1e9].map((spreadFrom) => makeUnpackPool({ clock: systemClock, spreadFrom }));
  for (const pool of pools) t.after(pool.close);
  const tar = makeTar(entries);
  const machine = readdirSync('/').sort();
  for (let round = 0; round < 150; round++) {
    const folder = mkdtempSync(join(root, 'layer-'));
    const mutated = withChecksums(mutate(tar, random));
    const data = random(2) === 0 ? mutated : mutate(gzipSync(tar), random);
    const unpacking = await pools[round % 2]!.begin(folder, data.length, 'sha256');
    try {
      await unpacking.write(data);
      await unpacking.end();
    } catch (error) {
      assert.ok(
        error instanceof KeelsonError && error.code !== 'INTERNAL',
        `seed ${seed}, round ${round}: ${error}`,
      );
      await unpacking.abort();
    }
  }
  assert.equal(readdirSync(root).filter((name) => !name.endsWith('.map')).length, 150);
  assert.deepEqual(readdirSync('/').sort(), machine);
});
