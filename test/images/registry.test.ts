/** What a registry may ask for, get wrong or lie about. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { describe, type ErrorCode, isError } from '../../runtime/host/errors.ts';
import { type FakeRegistry, startFakeRegistry } from '../peers/fake-registry.ts';
import { type BuiltImage, buildImage, descriptor, makeBlob, ociIndex, ociManifest } from '../peers/image.ts';
import { onDisk, openImages } from '../peers/image-store.ts';
import { makeTar } from '../peers/tar.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

const image = buildImage({
  layers: [
    { files: [{ path: 'one', content: 'x'.repeat(100_000) }], compression: 'none' },
    { files: [{ path: 'two', content: 'y' }] },
  ],
});
const [one, two] = image.layers as [BuiltImage['layers'][number], BuiltImage['layers'][number]];

const manifestWith = (change: object) =>
  makeBlob(
    Buffer.from(JSON.stringify({ ...JSON.parse(image.manifest.data.toString()), ...change })),
    ociManifest,
  );
const otherTar = makeTar([{ path: 'one', content: 'z'.repeat(100_000) }]);

const lies: readonly {
  readonly name: string;
  readonly tell: (registry: FakeRegistry) => void;
  readonly code: ErrorCode;
  readonly message: RegExp;
}[] = [
  {
    name: 'a layer with other bytes',
    tell: (registry) => registry.blob(one, otherTar),
    code: 'IMAGE_DIGEST_MISMATCH',
    message: new RegExp(`layer .*${one.digest}: the registry sent sha256:`),
  },
  {
    name: 'a layer that is no archive',
    tell: (registry) => registry.blob(one, Buffer.alloc(one.data.length, 7)),
    code: 'IMAGE_INVALID',
    message: new RegExp(`layer .*${one.digest}: `),
  },
  {
    name: 'a layer that ends too early',
    tell: (registry) => registry.blob(one, one.data.subarray(0, 50_000)),
    code: 'REGISTRY_UNAVAILABLE',
    message: new RegExp(`${one.digest}: the registry sent 50000 of ${one.data.length} bytes`),
  },
  {
    name: 'a layer that does not end',
    tell: (registry) => {
      registry.intercept = (request, response) => {
        if (!request.url?.endsWith(one.digest)) return false;
        const more = () => {
          if (response.destroyed) return;
          response.write(one.data, () => setImmediate(more));
        };
        more();
        return true;
      };
    },
    code: 'IMAGE_DIGEST_MISMATCH',
    message: new RegExp(`${one.digest}: the registry sent more than its ${one.data.length} bytes`),
  },
  {
    name: 'a layer that breaks off',
    tell: (registry) => {
      registry.intercept = (request, response) => {
        if (!request.url?.endsWith(one.digest)) return false;
        response.writeHead(200, { 'content-length': one.data.length });
        response.write(one.data.subarray(0, 60_000), () => response.destroy());
        return true;
      };
    },
    code: 'REGISTRY_UNAVAILABLE',
    message: new RegExp(one.digest),
  },
  {
    name: 'a missing layer',
    tell: (registry) => {
      registry.intercept = (request, response) => {
        if (!request.url?.endsWith(two.digest)) return false;
        response.writeHead(404).end();
        return true;
      };
    },
    code: 'IMAGE_NOT_FOUND',
    message: new RegExp(`layer .*${two.digest}`),
  },
  {
    name: 'a config with the diffID of something else',
    tell: (registry) => {
      const lying = buildImage({ layers: [{ files: [{ path: 'q' }] }, { files: [{ path: 'r' }] }] });
      registry.blob(lying.config);
      registry.manifest('1', manifestWith({ config: descriptor(lying.config) }));
    },
    code: 'IMAGE_DIGEST_MISMATCH',
    message: /unpacked it is sha256:.* but the image's config says sha256:/,
  },
  {
    name: 'a config with other bytes',
    tell: (registry) => registry.blob(image.config, Buffer.from('{}')),
    code: 'IMAGE_DIGEST_MISMATCH',
    message: new RegExp(image.config.digest),
  },
  {
    name: 'a config that is too long',
    tell: (registry) => registry.blob(image.config, Buffer.alloc(1 << 20)),
    code: 'IMAGE_INVALID',
    message: /more than/,
  },
  {
    name: 'another number of layers than the config',
    tell: (registry) => registry.manifest('1', manifestWith({ layers: [descriptor(one)] })),
    code: 'IMAGE_INVALID',
    message: /1 layers, but its config names 2/,
  },
  {
    name: 'a manifest without end',
    tell: (registry) => registry.manifest('1', makeBlob(Buffer.alloc(5 << 20, ' '), ociManifest)),
    code: 'IMAGE_INVALID',
    message: /more than 4194304 bytes/,
  },
  {
    name: 'a web page',
    tell: (registry) => registry.manifest('1', makeBlob(Buffer.from('<html>'), 'text/html')),
    code: 'IMAGE_INVALID',
    message: /not JSON/,
  },
  {
    name: 'indexes in each other',
    tell: (registry) => {
      let inner = makeBlob(Buffer.from('{"schemaVersion":2,"manifests":[]}'), ociIndex);
      for (let depth = 0; depth < 6; depth++) {
        registry.manifest('deep', inner);
        inner = makeBlob(
          Buffer.from(
            JSON.stringify({ schemaVersion: 2, mediaType: ociIndex, manifests: [descriptor(inner)] }),
          ),
          ociIndex,
        );
      }
      registry.manifest('1', inner);
    },
    code: 'IMAGE_INVALID',
    message: /indexes/,
  },
  {
    name: 'another digest in the header',
    tell: (registry) => {
      registry.intercept = (request, response) => {
        if (!request.url?.endsWith('/1')) return false;
        response.writeHead(200, { 'docker-content-digest': two.digest, 'content-type': ociManifest });
        response.end(image.manifest.data);
        return true;
      };
    },
    code: 'IMAGE_DIGEST_MISMATCH',
    message: /the registry sent/,
  },
];

test('every lie ends in an error that names it and leaves the store as it was', { skip }, async (t) => {
  for (const lie of lies) {
    const registry = await startFakeRegistry(t);
    registry.image('1', image);
    lie.tell(registry);
    const { images, folder, close } = await openImages(t);
    await assert.rejects(
      images.pullImage({ image: `${registry.host}/some/repo:1` }),
      (error) => {
        assert.ok(isError(error, lie.code), `${lie.name}: ${describe(error)}`);
        assert.match(error.message, lie.message, lie.name);
        assert.ok(error.message.includes(`${registry.host}/some/repo`), `${lie.name}: ${error.message}`);
        return true;
      },
      lie.name,
    );
    assert.deepEqual(await images.listImages(), [], lie.name);
    await close();
    assert.deepEqual(onDisk(folder).staging, [], lie.name);
  }
});

test('what is transient is tried again', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const faults: ((response: ServerResponse) => void)[] = [
    (response) => response.writeHead(503).end(),
    (response) => response.destroy(),
  ];
  registry.intercept = (request, response) => {
    if (request.url?.includes('/manifests/') || registry.count(request.url ?? '') > faults.length)
      return false;
    faults[registry.count(request.url ?? '') - 1]?.(response);
    return true;
  };
  const { images } = await openImages(t);
  assert.equal(await images.pullImage({ image: `${registry.host}/a:1` }), image.id);
  assert.equal(registry.count(one.digest), 3);
});

test('many callers share one pull and images share one fetch of a layer', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const sibling = buildImage({
    layers: [{ files: [{ path: 'one', content: 'x'.repeat(100_000) }], compression: 'none' }],
    config: { User: 'other' },
  });
  registry.image('2', sibling);
  const held: (() => void)[] = [];
  registry.intercept = (request, response) => {
    if (!request.url?.endsWith(one.digest)) return false;
    held.push(() => response.end(one.data));
    if (registry.count(image.config.digest) > 0 && registry.count(sibling.config.digest) > 0)
      for (const go of held) setTimeout(go, 100);
    return true;
  };
  const { images } = await openImages(t);
  const ids = await Promise.all([
    ...Array.from({ length: 10 }, () => images.pullImage({ image: `${registry.host}/a:1` })),
    images.pullImage({ image: `${registry.host}/a:2` }),
  ]);
  assert.deepEqual(new Set(ids), new Set([image.id, sibling.id]));
  for (const path of ['/1', '/2', one.digest, two.digest]) assert.equal(registry.count(path), 1, path);
});

test('an abort ends one wait; the last one ends the fetch', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const closed = Promise.withResolvers<void>();
  const reached = Promise.withResolvers<void>();
  let hang = true;
  registry.intercept = (request, response) => {
    if (!hang || !request.url?.endsWith(one.digest)) return false;
    response.writeHead(200, { 'content-length': one.data.length });
    response.write(one.data.subarray(0, 1000));
    response.once('close', closed.resolve);
    reached.resolve();
    return true;
  };
  const { images, folder } = await openImages(t);
  const [a, b] = [new AbortController(), new AbortController()];
  const name = { image: `${registry.host}/a:1` };
  const first = images.pullImage(name, { signal: a.signal });
  const second = images.pullImage(name, { signal: b.signal });
  await reached.promise;
  a.abort();
  await assert.rejects(first, { code: 'ABORTED' });
  assert.equal(await Promise.race([second, Promise.resolve('goes on')]), 'goes on');
  b.abort();
  await assert.rejects(second, { code: 'ABORTED' });
  await closed.promise;
  await assert.rejects(images.pullImage(name, { signal: AbortSignal.abort() }), { code: 'ABORTED' });
  hang = false;
  assert.equal(await images.pullImage(name), image.id);
  assert.equal(registry.count('/1'), 2);
  assert.equal(onDisk(folder).layers.length, 2);
});

test('closing ends pulls', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const reached = Promise.withResolvers<void>();
  registry.intercept = (request) => {
    if (!request.url?.endsWith(one.digest)) return false;
    reached.resolve();
    return true;
  };
  const { images, folder, close } = await openImages(t);
  const pull = images.pullImage({ image: `${registry.host}/a:1` });
  const failed = assert.rejects(pull, { code: 'ABORTED' });
  await reached.promise;
  await close();
  await failed;
  assert.deepEqual(onDisk(folder).staging, []);
});

test('a bomb ends at the limit', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  const bomb = buildImage({ layers: [{ files: [{ path: 'zero', content: Buffer.alloc(20_000_000) }] }] });
  assert.ok(bomb.layers[0]!.data.length < 100_000 && gzipSync(Buffer.alloc(1)).length > 0);
  registry.image('1', bomb);
  const { images } = await openImages(t, { limits: { entries: 100, bytes: 1_000_000 } });
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), {
    code: 'LAYER_UNSAFE',
    message: new RegExp(`${bomb.layers[0]!.digest}: it has more than 1000000 bytes`),
  });
});

test('an answer that is not needed does not keep its connection', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  const closed: Promise<unknown>[] = [];
  registry.intercept = (request, response) => {
    if (request.url?.startsWith('/token')) {
      response.writeHead(500).end();
      return true;
    }
    closed.push(once(response, 'close'));
    response.writeHead(401, { 'www-authenticate': `Bearer realm="http://${registry.host}/token"` });
    response.end(Buffer.alloc(32 << 20));
    return true;
  };
  const { images } = await openImages(t);
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), { code: 'REGISTRY_UNAVAILABLE' });
  assert.ok(closed.length > 0);
  await Promise.all(closed);
});

test('a caller without interest in the progress leaves it to the others', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const reached = Promise.withResolvers<void>();
  let go = () => {};
  registry.intercept = (request, response) => {
    if (!request.url?.endsWith('/1') || registry.count('/1') > 1) return false;
    go = () => {
      response.writeHead(200, { 'content-type': image.manifest.mediaType }).end(image.manifest.data);
    };
    reached.resolve();
    return true;
  };
  const { images } = await openImages(t);
  const name = { image: `${registry.host}/a:1` };
  const leaving = new AbortController();
  const first = assert.rejects(images.pullImage(name, { signal: leaving.signal }), { code: 'ABORTED' });
  const phases = new Set<string>();
  const second = images.pullImage(name, { onProgress: ({ phase }) => phases.add(phase) });
  await reached.promise;
  leaving.abort();
  await first;
  go();
  await second;
  assert.ok(phases.has('done'), [...phases].join());
});
