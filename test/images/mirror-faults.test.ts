/** Mirrors and registries that lie, break off or send elsewhere, and who is shown which credentials. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { describe, isError } from '../../runtime/host/errors.ts';
import { type FakeRegistry, startFakeRegistry } from '../peers/fake-registry.ts';
import { buildImage, descriptor, makeBlob, ociManifest } from '../peers/image.ts';
import { mirrorTable as host, openImages, openSite } from '../peers/image-store.ts';
import { makeTar } from '../peers/tar.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

const image = buildImage({
  layers: [
    { files: [{ path: 'one', content: 'x'.repeat(100_000) }], compression: 'none' },
    { files: [{ path: 'two', content: 'y' }] },
  ],
});
const [one, two] = image.layers as [(typeof image.layers)[number], (typeof image.layers)[number]];

const otherTar = makeTar([{ path: 'one', content: 'z'.repeat(100_000) }]);
const lies: readonly (readonly [name: string, tell: (mirror: FakeRegistry) => void, named: RegExp])[] = [
  ['a layer with other bytes', (mirror) => mirror.blob(one, otherTar), /sent sha256:/],
  ['a layer that is no archive', (mirror) => mirror.blob(one, Buffer.alloc(one.data.length, 7)), /./],
  ['a longer layer', (mirror) => mirror.blob(one, Buffer.concat([one.data, one.data])), /sent more than/],
  ['a shorter layer', (mirror) => mirror.blob(one, one.data.subarray(0, 50_000)), /./],
  ['a config with other bytes', (mirror) => mirror.blob(image.config, Buffer.from('{}')), /sent sha256:/],
  ['a config without end', (mirror) => mirror.blob(image.config, Buffer.alloc(5 << 20)), /more than/],
  ['a web page', (mirror) => mirror.manifest('1', makeBlob(Buffer.from('<html>'), 'text/html')), /not JSON/],
  [
    'a manifest with another digest in the header',
    (mirror) => {
      mirror.intercept = (request, response) => {
        if (!request.url?.includes('/manifests/1')) return false;
        response.writeHead(200, { 'docker-content-digest': two.digest }).end(image.manifest.data);
        return true;
      };
    },
    /sent sha256:/,
  ],
  [
    'a layer that breaks off',
    (mirror) => {
      mirror.intercept = (request, response) => {
        if (!request.url?.includes(one.digest)) return false;
        response.writeHead(200, { 'content-length': one.data.length });
        response.write(one.data.subarray(0, 60_000), () => response.destroy());
        return true;
      };
    },
    /./,
  ],
];

test('a mirror that lies or breaks off is followed by the next endpoint', { skip }, async (t) => {
  const [mirror, registry] = [await startFakeRegistry(t), await startFakeRegistry(t)];
  registry.image('1', image);
  for (const [name, tell] of lies) {
    const { configure, images } = await openSite(t);
    mirror.intercept = () => false;
    mirror.image('1', image);
    tell(mirror);
    configure(registry.host, host(mirror));
    assert.equal(await images.pullImage({ image: `${registry.host}/a:1` }), image.id, name);
  }
});

test('where all of them lie, all are named', { skip }, async (t) => {
  const [mirror, registry] = [await startFakeRegistry(t), await startFakeRegistry(t)];
  for (const [name, tell, named] of lies) {
    const { configure, images } = await openSite(t);
    for (const each of [mirror, registry]) {
      each.intercept = () => false;
      each.image('1', image);
      tell(each);
    }
    configure(registry.host, host(mirror));
    await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), (error) => {
      const text = describe(error);
      assert.ok(isError(error), text);
      assert.match(text, named, name);
      if (/no archive|shorter|breaks off/.test(name)) return true;
      assert.ok(text.includes(`http://${mirror.host}: `) && text.includes(`http://${registry.host}: `), text);
      return true;
    });
    assert.deepEqual(await images.listImages(), [], name);
  }
});

test('a mirror gets the credentials that name it, and its own headers; nobody else does', {
  skip,
}, async (t) => {
  const [mirror, registry] = [await startFakeRegistry(t), await startFakeRegistry(t)];
  const wants = (each: FakeRegistry, user: string) => {
    each.intercept = (request, response) => {
      if (request.headers.authorization === `Basic ${Buffer.from(user).toString('base64')}`) return false;
      response.writeHead(401, { 'www-authenticate': 'Basic realm="r"' }).end();
      return true;
    };
  };
  for (const each of [mirror, registry]) each.image('1', image);
  wants(mirror, 'mirror:m-secret');
  wants(registry, 'registry:r-secret');
  const asksFor: string[] = [];
  let own: object[] = [];
  const mirrorAuths = async (name: string) => {
    asksFor.push(name);
    return own;
  };
  const { configure, images } = await openSite(t, { mirrorAuths });
  configure(registry.host, host(mirror, 'header = { x-site = "7" }'));
  const name = { image: `${registry.host}/a:1` };
  const unnamed = { username: 'registry', password: 'r-secret' };
  const named = { ...unnamed, serverAddress: `http://${registry.host}/v1/` };
  for (const auths of [[unnamed], [named], [unnamed, named]]) {
    await images.pullImage(name, { auths });
    await images.removeImage({ image: image.id });
  }
  assert.ok(mirror.seen.length > 0 && mirror.seen.every(({ authorization }) => authorization === undefined));
  assert.ok(mirror.seen.every(({ headers }) => headers['x-site'] === '7'));
  assert.ok(registry.seen.every(({ headers }) => headers['x-site'] === undefined));

  const asked = registry.seen.length;
  await images.pullImage(name, {
    auths: [unnamed, { username: 'mirror', password: 'm-secret', serverAddress: mirror.host }],
  });
  assert.equal(registry.seen.length, asked);
  await images.removeImage({ image: image.id });
  own = [{ username: 'mirror', password: 'm-secret' }];
  await images.pullImage(name, { auths: [unnamed] });
  own = [];
  assert.equal(registry.seen.length, asked);
  assert.deepEqual([...new Set(asksFor)], [mirror.host]);
  configure(
    registry.host,
    host(mirror, `header = { Authorization = "Basic ${Buffer.from('mirror:m-secret').toString('base64')}" }`),
  );
  await images.removeImage({ image: image.id });
  await images.pullImage(name, { auths: [named] });
  assert.equal(registry.seen.length, asked);
});

test('headers of the configuration stay with their endpoint when it redirects', { skip }, async (t) => {
  const [mirror, storage, registry] = [
    await startFakeRegistry(t),
    await startFakeRegistry(t),
    await startFakeRegistry(t),
  ];
  for (const each of [mirror, storage]) each.image('1', image);
  mirror.intercept = (request, response) => {
    if (!request.url?.includes('/blobs/')) return false;
    response.writeHead(307, { location: `http://${storage.host}${request.url}&signature=secret` }).end();
    return true;
  };
  const { configure, images } = await openSite(t);
  configure(registry.host, `server = ""\n${host(mirror, 'header = { authorization = "Bearer secret" }')}`);
  await images.pullImage({ image: `${registry.host}/a:1` });
  assert.equal(storage.seen.length, 3);
  assert.ok(mirror.seen.every(({ authorization }) => authorization === 'Bearer secret'));
  assert.ok(storage.seen.every(({ authorization }) => authorization === undefined));

  await images.removeImage({ image: image.id });
  storage.intercept = (_, response) => {
    response.writeHead(403, { 'www-authenticate': `Bearer realm="http://${storage.host}/token"` }).end();
    return true;
  };
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), (error) => {
    const text = describe(error);
    assert.ok(isError(error, 'REGISTRY_UNAVAILABLE'), text);
    assert.ok(text.includes(`answered 403 at http://${storage.host}/v2/a/blobs/`), text);
    assert.ok(!text.includes('secret'), text);
    return true;
  });
});

test('a foreign layer comes from the registry, else from its https address only', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const layers = [
    descriptor(one),
    {
      ...descriptor(two),
      urls: [`http://${registry.host}/elsewhere?key=secret`, 'https://127.0.0.1:1/x?key=secret'],
    },
  ];
  registry.manifest(
    '2',
    makeBlob(
      Buffer.from(JSON.stringify({ ...JSON.parse(image.manifest.data.toString()), layers })),
      ociManifest,
    ),
  );
  const { images } = await openImages(t);
  const name = { image: `${registry.host}/a:2` };
  assert.equal(await images.pullImage(name), image.id);
  await images.removeImage({ image: image.id });
  registry.intercept = (request, response) => {
    if (!request.url?.endsWith(two.digest)) return false;
    response.writeHead(404).end();
    return true;
  };
  await assert.rejects(images.pullImage(name), (error) => {
    const text = describe(error);
    assert.ok(isError(error, 'IMAGE_NOT_FOUND'), text);
    assert.match(text, /the registry: not found/);
    assert.match(text, /an address that is not https: not asked/);
    assert.match(text, /https:\/\/127\.0\.0\.1:1\/x: .*ECONNREFUSED/);
    assert.ok(!text.includes('secret'), text);
    return true;
  });
  assert.equal(registry.count('/elsewhere?key=secret'), 0);
});
