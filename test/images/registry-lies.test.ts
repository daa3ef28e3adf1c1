/** Every lie that a registry can tell ends in an error that names it. */
import assert from 'node:assert/strict';
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
    name: 'a redirect to nowhere',
    tell: (registry) => {
      registry.intercept = (request, response) => {
        if (!request.url?.endsWith(one.digest)) return false;
        response.writeHead(302).end();
        return true;
      };
    },
    code: 'REGISTRY_UNAVAILABLE',
    message: new RegExp(`${one.digest}: redirect without a usable location`),
  },
  {
    name: 'a redirect to a file',
    tell: (registry) => {
      registry.intercept = (request, response) => {
        if (!request.url?.endsWith('/1')) return false;
        response.writeHead(302, { location: 'file:///etc/shadow' }).end();
        return true;
      };
    },
    code: 'REGISTRY_UNAVAILABLE',
    message: /redirect to file: is not followed/,
  },
  {
    name: 'an answer that is no success',
    tell: (registry) => {
      registry.intercept = (request, response) => {
        if (!request.url?.endsWith(two.digest)) return false;
        response.writeHead(206, { 'content-range': 'bytes 0-1/2' }).end(two.data);
        return true;
      };
    },
    code: 'REGISTRY_UNAVAILABLE',
    message: new RegExp(`${two.digest}: the registry answered 206`),
  },
  {
    name: 'an index as the manifest that an index names',
    tell: (registry) => {
      const entry = { ...descriptor(image.manifest), platform: image.platform };
      const index = { schemaVersion: 2, mediaType: ociIndex, manifests: [entry] };
      registry.manifest('1', makeBlob(Buffer.from(JSON.stringify(index)), ociIndex));
      registry.intercept = (request, response) => {
        if (!request.url?.endsWith(image.manifest.digest)) return false;
        response.writeHead(200, { 'content-type': ociIndex }).end(JSON.stringify(index));
        return true;
      };
    },
    code: 'IMAGE_DIGEST_MISMATCH',
    message: new RegExp(`@${image.manifest.digest}: the registry sent sha256:`),
  },
  {
    name: 'a manifest that calls itself an index',
    tell: (registry) => registry.manifest('1', manifestWith({ mediaType: ociIndex })),
    code: 'IMAGE_INVALID',
    message: /it says that it is .*index.*, but it is a manifest/,
  },
  {
    name: 'an error page without end',
    tell: (registry) => {
      registry.intercept = (request, response) => {
        if (!request.url?.endsWith('/1')) return false;
        response.writeHead(404);
        const more = () => {
          if (!response.destroyed) response.write(one.data, () => setImmediate(more));
        };
        more();
        return true;
      };
    },
    code: 'IMAGE_NOT_FOUND',
    message: /not found/,
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
