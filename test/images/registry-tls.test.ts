/** Certificates, authorities and times to connect of endpoints, as hosts.toml and Docker's file names give them. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { folderNames, makeHosts } from '../../images/registry/hosts.ts';
import { describe, isError } from '../../runtime/host/errors.ts';
import { type Authority, makeAuthority } from '../peers/certificates.ts';
import { startFakeRegistry } from '../peers/fake-registry.ts';
import { buildImage } from '../peers/image.ts';
import { openSite, temporaryFolder } from '../peers/image-store.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const image = buildImage({ layers: [{ files: [{ path: 'one', content: 'x' }] }] });

/** A registry that speaks https with a certificate of `authority`, and wants one of a client where `client` says so. */
async function startSecure(t: Parameters<typeof startFakeRegistry>[0], authority: Authority, client = false) {
  const pair = await authority.issue({ file: 'server', commonName: 'r', altNames: ['IP:127.0.0.1'] });
  const registry = await startFakeRegistry(t, {
    cert: readFileSync(pair.cert),
    key: readFileSync(pair.key),
    ca: readFileSync(authority.cert),
    requestCert: client,
    rejectUnauthorized: client,
  });
  registry.image('1', image);
  return registry;
}

test('an authority of its own, none, or no verification', { skip }, async (t) => {
  const folder = temporaryFolder(t);
  const authority = await makeAuthority(folder, 'test authority');
  const mirror = await startSecure(t, authority);
  const { certs, configure, images } = await openSite(t);
  const pull = async (text: string) => {
    configure('r.example', `server = ""\n[host."https://${mirror.host}"]\n${text}`);
    const before = mirror.seen.length;
    await images.pullImage({ image: 'r.example/a:1' });
    assert.ok(mirror.seen.length > before);
  };
  await assert.rejects(pull(''), (error) => {
    assert.ok(isError(error, 'REGISTRY_UNAVAILABLE'), describe(error));
    assert.match(error.message, new RegExp(`https://${mirror.host}: .*certificate`));
    return true;
  });
  await pull(`ca = "${authority.cert}"`);
  copyFileSync(authority.cert, join(certs, 'r.example', 'relative.pem'));
  await pull('ca = ["relative.pem"]');
  await pull('skip_verify = true');
  await assert.rejects(pull('skip_verify = false'), { code: 'REGISTRY_UNAVAILABLE' });
  for (const [text, message] of [
    ['ca = "missing.pem"', /: ca: .*r\.example\/missing\.pem cannot be read \(ENOENT\)/],
    ['ca = "hosts.toml"', /: ca: .*hosts\.toml is not a certificate in PEM/],
    [
      'client = "relative.pem"',
      /: client: .*relative\.pem and the same file are not a certificate and its key/,
    ],
  ] as const) {
    await assert.rejects(pull(text), (error) => {
      assert.ok(isError(error, 'CONFIG_INVALID'), describe(error));
      assert.match(error.message, message);
      return true;
    });
  }
});

test("client certificates: pairs, one file, and Docker's file names", { skip }, async (t) => {
  const folder = temporaryFolder(t);
  const authority = await makeAuthority(folder, 'test authority');
  const registry = await startSecure(t, authority, true);
  const pair = await authority.issue({ file: 'client', commonName: 'node' });
  const both = join(folder, 'both.pem');
  writeFileSync(both, `${readFileSync(pair.cert, 'utf8')}${readFileSync(pair.key, 'utf8')}`);
  const { certs, configure, images } = await openSite(t);
  const pull = async (domain: string) => {
    const before = registry.seen.length;
    await images.pullImage({ image: `${domain}/a:1` });
    assert.ok(registry.seen.length > before);
  };
  const table = (text: string) => `[host."https://${registry.host}"]\nca = "${authority.cert}"\n${text}`;
  configure('r.example', `server = ""\n${table('')}`);
  await assert.rejects(pull('r.example'), { code: 'REGISTRY_UNAVAILABLE' });
  configure('r.example', `server = ""\n${table(`client = [["${pair.cert}", "${pair.key}"]]`)}`);
  await pull('r.example');
  configure('r.example', `server = ""\n${table(`client = "${both}"`)}`);
  await pull('r.example');

  // Without a hosts.toml; that it has certificates says that it speaks https, even on this machine.
  const docker = join(certs, registry.host.replace(':', '_').concat('_'));
  mkdirSync(docker);
  copyFileSync(authority.cert, join(docker, 'ca.crt'));
  await assert.rejects(pull(registry.host), { code: 'REGISTRY_UNAVAILABLE' });
  copyFileSync(pair.cert, join(docker, 'client.cert'));
  await assert.rejects(pull(registry.host), { code: 'CONFIG_INVALID', message: /client: .*client\.cert/ });
  copyFileSync(pair.key, join(docker, 'client.key'));
  await pull(registry.host);
  writeFileSync(join(docker, 'hosts.toml'), '');
  await pull(registry.host);
});

test('a host that says nothing costs its dial_timeout', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const silent = createServer((socket) => {
    socket.on('error', () => {});
    sockets.push(socket);
  });
  const sockets: { destroy(): void }[] = [];
  silent.listen(0, '127.0.0.1');
  await once(silent, 'listening');
  t.after(async () => {
    for (const socket of sockets) socket.destroy();
    silent.close();
    await once(silent, 'close');
  });
  const { port } = silent.address() as AddressInfo;
  const { configure, images } = await openSite(t);
  configure(registry.host, `[host."https://127.0.0.1:${port}"]\ndial_timeout = "50ms"\n`);
  await images.pullImage({ image: `${registry.host}/a:1` });
  assert.equal(sockets.length, 1);
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:2` }), {
    message: /not asked again, as it did not answer .*timeout: 50ms/i,
  });
});

test('folder names and the registry itself as an endpoint', async (t) => {
  assert.deepEqual(folderNames('r.example:5000'), ['r.example_5000_', 'r.example:5000', '_default']);
  assert.deepEqual(folderNames('r.example'), ['r.example', '_default']);
  assert.deepEqual(folderNames('[::1]'), ['[::1]', '_default']);
  assert.deepEqual(folderNames('[::1]:5'), ['[::1]_5_', '[::1]:5', '_default']);

  const folder = temporaryFolder(t);
  const hosts = makeHosts({
    folders: [join(folder, 'none'), folder],
    insecureRegistries: ['plain.example'],
    mirrorsOnly: false,
  });
  const named = async (domain: string) =>
    (await hosts.endpoints(domain)).map(({ name, isRegistry }) => [name, isRegistry]);
  assert.deepEqual(await named('docker.io'), [['https://registry-1.docker.io', true]]);
  assert.deepEqual(await named('r.example:5000'), [['https://r.example:5000', true]]);
  assert.deepEqual(await named('plain.example'), [['http://plain.example', true]]);
  assert.deepEqual(await named('localhost:5000'), [['http://localhost:5000', true]]);
  assert.deepEqual(await named('localhost'), [['https://localhost', true]]);
  assert.deepEqual(await named('127.0.0.1:443'), [['https://127.0.0.1:443', true]]);

  const configure = (domain: string, text: string) => {
    mkdirSync(join(folder, domain), { recursive: true });
    writeFileSync(join(folder, domain, 'hosts.toml'), text);
  };
  configure(
    'docker.io',
    'server = "https://docker.io"\n[host."https://index.docker.io"]\n[host."m.example"]',
  );
  assert.deepEqual(await named('docker.io'), [
    ['https://registry-1.docker.io', true],
    ['https://m.example', false],
    ['https://registry-1.docker.io', true],
  ]);
  // Another port or name is another host; the default port may be written or not.
  configure(
    'r.example:443',
    '[host."https://r.example"]\n[host."https://r.example:444"]\n[host."https://R.example:443"]',
  );
  assert.deepEqual(await named('r.example:443'), [
    ['https://r.example', true],
    ['https://r.example:444', false],
    ['https://r.example', true],
    ['https://r.example:443', true],
  ]);
  configure('empty.example', 'server = ""');
  assert.deepEqual(await named('empty.example'), []);
  writeFileSync(join(folder, 'file.example'), 'no folder');
  assert.deepEqual(await named('file.example'), [['https://file.example', true]]);
});
