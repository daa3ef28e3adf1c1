/** Pulls through mirrors: which folder counts, the order, sites that only have mirrors, and those that are away. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { globSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { describe, isError } from '../../runtime/host/errors.ts';
import { startFakeRegistry } from '../peers/fake-registry.ts';
import { buildImage, ociManifest, pushImage } from '../peers/image.ts';
import { mirrorTable as host, openImages, openSite, temporaryFolder } from '../peers/image-store.ts';
import { waitFor } from '../peers/process.ts';
import { hasRegistry, startRegistry } from '../peers/registry.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

const image = buildImage({
  layers: [
    { files: [{ path: 'one', content: 'x'.repeat(100_000) }], compression: 'none' },
    { files: [{ path: 'two', content: 'y' }] },
  ],
});
/** A port that nobody listens on. */
async function deadHost(): Promise<string> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return `127.0.0.1:${port}`;
}

test('a mirror has all the requests, with the name of the registry', { skip }, async (t) => {
  const mirror = await startFakeRegistry(t);
  mirror.image('1', image);
  const { configure, images } = await openSite(t);
  configure('docker.io', host(mirror));
  assert.equal(await images.pullImage({ image: 'busybox:1' }), image.id);
  assert.deepEqual((await images.imageStatus({ image: image.id }))?.repoTags, [
    'docker.io/library/busybox:1',
  ]);
  assert.equal(mirror.seen.length, 4);
  for (const { path } of mirror.seen) assert.match(path, /^\/v2\/library\/busybox\/.*\?ns=docker\.io$/);

  configure('_default', host(mirror, 'override_path = true').replace(mirror.host, `${mirror.host}/proxy`));
  await images.removeImage({ image: image.id });
  assert.equal(await images.pullImage({ image: 'r.example:5000/a/b:1' }), image.id);
  assert.match(mirror.seen.at(-1)!.path, /^\/proxy\/a\/b\/blobs\/.*\?ns=r\.example%3A5000$/);
});

test('folders: HOST_PORT_ before HOST:PORT before _default, the first root with any of them', {
  skip,
}, async (t) => {
  const [a, b] = [await startFakeRegistry(t), await startFakeRegistry(t)];
  a.image('1', image);
  b.image('1', image);
  const first = await openSite(t);
  const second = await openSite(t, { registryFolders: [first.certs, temporaryFolder(t)] });
  const pull = async (name: string) => {
    const before = [a.seen.length, b.seen.length];
    await first.images.pullImage({ image: name });
    return [a.seen.length > before[0]!, b.seen.length > before[1]!];
  };
  first.configure('r.example:5000', host(a));
  assert.deepEqual(await pull('r.example:5000/x:1'), [true, false]);
  first.configure('r.example_5000_', host(b));
  assert.deepEqual(await pull('r.example:5000/y:1'), [false, true]);
  first.configure('_default', host(a));
  assert.deepEqual(await pull('r.example:5000/z:1'), [false, true]);
  assert.deepEqual(await pull('r.example:5001/z:1'), [true, false]);
  await second.images.pullImage({ image: 'r.example:5000/x:1' });
  // What is in the second root does not count where the first one has a folder.
  const third = await openImages(t, { registryFolders: [second.certs, first.certs] });
  second.configure('r.example:5000', host(a));
  const before = b.seen.length;
  await third.images.pullImage({ image: 'r.example:5000/x:1' });
  assert.equal(b.seen.length, before);
});

test('a change of the file counts from the next pull on', { skip }, async (t) => {
  const [a, b, registry] = [
    await startFakeRegistry(t),
    await startFakeRegistry(t),
    await startFakeRegistry(t),
  ];
  for (const each of [a, b, registry]) each.image('1', image);
  const { certs, configure, images } = await openSite(t);
  const pull = async () => {
    const before = [a, b, registry].map(({ seen }) => seen.length);
    await images.pullImage({ image: `${registry.host}/x:1` });
    return [a, b, registry].map(({ seen }, at) => seen.length - before[at]!);
  };
  assert.deepEqual(await pull(), [0, 0, 4]);
  configure(registry.host, host(a));
  assert.deepEqual(await pull(), [1, 0, 0]);
  configure(registry.host, host(b));
  assert.deepEqual(await pull(), [0, 1, 0]);
  configure(registry.host, 'server = 5');
  await assert.rejects(pull(), (error) => {
    assert.ok(isError(error, 'CONFIG_INVALID'), describe(error));
    assert.match(error.message, new RegExp(`${certs}/${registry.host}/hosts.toml: server: expected`));
    return true;
  });
  a.image('2', image);
  configure('other.example', host(a));
  await images.pullImage({ image: 'other.example/x:2' });
  rmSync(join(certs, registry.host), { recursive: true });
  assert.deepEqual(await pull(), [0, 0, 1]);
});

test('each endpoint is tried in turn, and the error names all of them', { skip }, async (t) => {
  const [lacking, refusing, busy, registry] = [
    await startFakeRegistry(t),
    await startFakeRegistry(t),
    await startFakeRegistry(t),
    await startFakeRegistry(t),
  ];
  refusing.intercept = (_, response) => {
    response.writeHead(403).end();
    return true;
  };
  busy.intercept = (_, response) => {
    response.writeHead(503).end();
    return true;
  };
  const away = await deadHost();
  const { configure, images } = await openSite(t);
  configure(registry.host, [host(lacking), `[host."http://${away}"]`, host(refusing), host(busy)].join('\n'));
  const name = `${registry.host}/some/repo:1`;
  await assert.rejects(images.pullImage({ image: name }), (error) => {
    assert.ok(isError(error, 'IMAGE_NOT_FOUND'), describe(error));
    const reasons = [
      `http://${lacking.host}: not found`,
      `http://${away}: the registry cannot be reached: .*ECONNREFUSED`,
      `http://${refusing.host}: the registry refused access \\(403\\)`,
      `http://${busy.host}: the registry answered 503`,
      `http://${registry.host}: not found`,
    ];
    assert.match(error.message, new RegExp(`^manifest ${name}: ${reasons.join('.*; ')}`));
    assert.deepEqual((error.details['endpoints'] as unknown[]).length, 5);
    return true;
  });
  assert.deepEqual(
    [lacking, refusing, busy, registry].map(({ seen }) => seen.length),
    [1, 1, 1, 1],
  );
  registry.image('1', image);
  assert.equal(await images.pullImage({ image: name }), image.id);
});

test('a tag is resolved only by who may; a digest is fetched from anybody who may pull', {
  skip,
}, async (t) => {
  const [pullOnly, registry, resolveOnly] = [
    await startFakeRegistry(t),
    await startFakeRegistry(t),
    await startFakeRegistry(t),
  ];
  for (const each of [pullOnly, registry, resolveOnly]) each.image('1', image);
  const { configure, images } = await openSite(t);
  configure(
    registry.host,
    host(resolveOnly, 'capabilities = ["resolve"]') + host(pullOnly, 'capabilities = ["pull"]'),
  );
  await images.pullImage({ image: `${registry.host}/a:1` });
  assert.deepEqual(
    registry.seen.map(({ path }) => path),
    ['/v2/a/manifests/1'],
  );
  assert.equal(pullOnly.seen.length, 3);
  assert.equal(resolveOnly.seen.length, 0);
  await images.pullImage({ image: `${registry.host}/b@${image.manifest.digest}` });
  assert.equal(registry.seen.length, 1);

  configure(registry.host, `server = ""\n${host(pullOnly, 'capabilities = ["pull"]')}`);
  await assert.rejects(images.pullImage({ image: `${registry.host}/c:1` }), {
    code: 'CONFIG_INVALID',
    message: /manifest .*\/c:1: the node's hosts\.toml leaves no endpoint/,
  });
});

test('mirror-only sites never reach the registry', { skip }, async (t) => {
  const [mirror, registry] = [await startFakeRegistry(t), await startFakeRegistry(t)];
  registry.image('1', image);
  const open = await openSite(t);
  const closed = await openSite(t, { registryFolders: [open.certs], registryMirrorsOnly: true });
  const name = { image: `${registry.host}/a:1` };
  const refused = { code: 'IMAGE_NOT_FOUND', message: new RegExp(`http://${mirror.host}: not found[^;]*$`) };
  // As for containerd, a file without `server` leaves the registry itself as the last resort.
  const files: readonly (readonly [text: string, openReaches: boolean])[] = [
    [`server = ""\n${host(mirror)}`, false],
    [`server = "http://${mirror.host}"`, false],
    [host(mirror) + host(registry), true],
    [`server = "http://${registry.host}"\n${host(mirror)}`, true],
    [host(mirror), true],
  ];
  for (const [text, reaches] of files) {
    open.configure(registry.host, text);
    const before = registry.seen.length;
    await assert.rejects(closed.images.pullImage(name), refused, text);
    assert.equal(registry.seen.length, before, text);
    if (reaches) await open.images.pullImage(name);
    else await assert.rejects(open.images.pullImage(name), refused, text);
    assert.equal(registry.seen.length > before, reaches, text);
    await open.images.removeImage({ image: image.id });
  }
  // The switch is about registries that have mirrors.
  rmSync(join(open.certs, registry.host), { recursive: true });
  await closed.images.pullImage(name);
});

test('a dead mirror costs one dial, not one per blob or pull', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  const images2 = ['a', 'b', 'c'].map((content) =>
    buildImage({ layers: Array.from({ length: 5 }, (_, at) => ({ files: [{ path: `${content}${at}` }] })) }),
  );
  for (const [at, each] of images2.entries()) registry.image(String(at), each);
  const away = createServer();
  let dials = 0;
  away.on('connection', (socket) => {
    dials++;
    socket.destroy();
  });
  // Refuses by closing its port; then listens again at the same one.
  const port = Number((await deadHost()).split(':')[1]);
  let skipped = 0;
  const { configure, images } = await openSite(t);
  configure(registry.host, `[host."http://127.0.0.1:${port}"]\n`);
  await images.pullImage({ image: `${registry.host}/x:0` });
  away.listen(port, '127.0.0.1');
  await once(away, 'listening');
  t.after(async () => {
    away.close();
  });
  await Promise.all([1, 2].map((tag) => images.pullImage({ image: `${registry.host}/x:${tag}` })));
  assert.equal(dials, 0);
  await assert.rejects(images.pullImage({ image: `${registry.host}/x:none` }), (error) => {
    skipped++;
    assert.match(
      (error as Error).message,
      new RegExp(
        `http://127.0.0.1:${port}: not asked again, as it did not answer \\d+ s ago \\(.*ECONNREFUSED.*; http://${registry.host}: not found`,
      ),
    );
    return true;
  });
  assert.deepEqual([dials, skipped], [0, 1]);
});

test('when nobody answered lately all are tried again', { skip }, async (t) => {
  const port = Number((await deadHost()).split(':')[1]);
  const { configure, images } = await openSite(t);
  configure('r.example', `server = ""\n[host."http://127.0.0.1:${port}"]\n`);
  await assert.rejects(images.pullImage({ image: 'r.example/a:1' }), {
    code: 'REGISTRY_UNAVAILABLE',
    message: new RegExp(
      `^manifest r.example/a:1: http://127.0.0.1:${port}: the registry cannot be reached: .*ECONNREFUSED`,
    ),
  });
  const back = createServer((_, response) => {
    response.writeHead(200, { 'content-type': ociManifest }).end(image.manifest.data);
  }).listen(port, '127.0.0.1');
  await once(back, 'listening');
  t.after(async () => {
    back.closeAllConnections();
    back.close();
  });
  await assert.rejects(images.pullImage({ image: 'r.example/a:1' }), { code: /IMAGE_/ });
});

test('a pull-through cache of docker-registry serves and fills itself', {
  skip: skip || (hasRegistry() ? false : 'needs the package docker-registry'),
}, async (t) => {
  const upstream = await startRegistry(t);
  const mirror = await startRegistry(t, { remote: `http://${upstream.host}` });
  await pushImage(upstream.host, 'library/app:1', image);
  const { configure, images } = await openSite(t, { registryMirrorsOnly: true });
  configure('docker.io', `server = "https://registry-1.docker.io"\n[host."http://${mirror.host}"]\n`);
  const isKept = (digest: string) =>
    globSync(join(mirror.folder, 'storage/**', digest.replace(':', '/'), 'link')).length > 0;
  assert.equal(await images.pullImage({ image: 'app:1' }), image.id);
  await images.removeImage({ image: image.id });
  // The cache gives out a blob first and keeps it a moment later.
  const blobs = [image.manifest.digest, image.id, ...image.layers.map(({ digest }) => digest)];
  await waitFor('every blob in the cache', async () => blobs.every(isKept) || undefined, {
    deadlineMs: 20_000,
  });
  await upstream.close();
  assert.equal(await images.pullImage({ image: 'app:1' }), image.id);
  assert.match(mirror.log(), /\/v2\/library\/app\/manifests\/1\?ns=docker\.io/);
});
