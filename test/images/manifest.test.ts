import assert from 'node:assert/strict';
import { test } from 'node:test';
import { imageUser, parseImageConfig } from '../../images/config.ts';
import { chooseManifest, type ImageIndex, parseManifest, platformRank } from '../../images/manifest.ts';
import { type ErrorCode, isError } from '../../runtime/host/errors.ts';

const digest = (n: number) => `sha256:${n.toString(16).padStart(64, '0')}`;
const ociLayer = 'application/vnd.oci.image.layer.v1.tar+gzip';
const config = { mediaType: 'application/vnd.oci.image.config.v1+json', digest: digest(1), size: 100 };
const layer = { mediaType: ociLayer, digest: digest(2), size: 200 };
const manifest = {
  schemaVersion: 2,
  mediaType: 'application/vnd.oci.image.manifest.v1+json',
  config,
  layers: [layer],
};

const parse = (document: unknown, contentType?: string) =>
  parseManifest(Buffer.from(JSON.stringify(document)), contentType, 'the manifest');

test('an OCI manifest and a Docker manifest are read', () => {
  assert.deepEqual(parse(manifest), { kind: 'manifest', config, layers: [layer] });
  const docker = {
    schemaVersion: 2,
    config: { ...config, mediaType: 'application/vnd.docker.container.image.v1+json' },
    layers: [{ ...layer, mediaType: 'application/vnd.docker.image.rootfs.diff.tar.gzip' }],
  };
  const found = parse(docker, 'application/vnd.docker.distribution.manifest.v2+json; charset=utf-8');
  assert.equal(found.kind, 'manifest');
});

const refused: readonly (readonly [what: string, document: unknown, code: ErrorCode, message: RegExp])[] = [
  ['schema 1', { schemaVersion: 1, fsLayers: [] }, 'IMAGE_UNSUPPORTED', /schema 1/],
  [
    'schema 1 by type',
    { mediaType: 'application/vnd.docker.distribution.manifest.v1+prettyjws' },
    'IMAGE_UNSUPPORTED',
    /schema 1/,
  ],
  ['both at once', { ...manifest, manifests: [] }, 'IMAGE_INVALID', /at once/],
  [
    'type of the other kind',
    { ...manifest, mediaType: 'application/vnd.oci.image.index.v1+json' },
    'IMAGE_INVALID',
    /it says/,
  ],
  ['no version', { ...manifest, schemaVersion: undefined }, 'IMAGE_INVALID', /schemaVersion/],
  ['a list', [], 'IMAGE_INVALID', /object/],
  ['layers no list', { ...manifest, layers: {} }, 'IMAGE_INVALID', /layers/],
  ['negative size', { ...manifest, layers: [{ ...layer, size: -1 }] }, 'IMAGE_INVALID', /layers\[0\]\.size/],
  ['huge size', { ...manifest, layers: [{ ...layer, size: 2 ** 60 }] }, 'IMAGE_INVALID', /layers\[0\]\.size/],
  ['size as text', { ...manifest, layers: [{ ...layer, size: '5' }] }, 'IMAGE_INVALID', /layers\[0\]\.size/],
  ['path as digest', { ...manifest, layers: [{ ...layer, digest: '../../x' }] }, 'IMAGE_INVALID', /digest/],
  [
    'unknown layer type',
    { ...manifest, layers: [{ ...layer, mediaType: 'text/html' }] },
    'IMAGE_UNSUPPORTED',
    /text\/html/,
  ],
  [
    'an artifact',
    { ...manifest, config: { ...config, mediaType: 'application/vnd.oci.empty.v1+json' } },
    'IMAGE_UNSUPPORTED',
    /not a container image/,
  ],
  ['huge config', { ...manifest, config: { ...config, size: 2 ** 30 } }, 'IMAGE_INVALID', /config/],
  ['too many layers', { ...manifest, layers: Array(501).fill(layer) }, 'IMAGE_INVALID', /500 layers/],
];

test('manifests that cannot be used are refused with a reason', () => {
  for (const [what, document, code, message] of refused) {
    assert.throws(
      () => parse(document),
      (error) =>
        isError(error, code) && message.test(error.message) && error.message.includes('the manifest'),
      what,
    );
  }
  assert.throws(() => parseManifest(Buffer.from('{'), undefined, 'x'), { code: 'IMAGE_INVALID' });
});

const index = (...platforms: (object | undefined)[]): ImageIndex => {
  const found = parse({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.index.v1+json',
    manifests: platforms.map((platform, at) => ({
      mediaType: manifest.mediaType,
      digest: digest(at),
      size: 1,
      platform,
    })),
  });
  assert.equal(found.kind, 'index');
  return found as ImageIndex;
};
const linux = (architecture: string, variant?: string) => ({ os: 'linux', architecture, variant });

test('the best platform of an index is chosen', () => {
  const choose = (node: ReturnType<typeof linux>, ...platforms: (object | undefined)[]) =>
    Number.parseInt(chooseManifest(index(...platforms), node, 'x').digest.slice(7), 16);
  assert.equal(choose(linux('amd64'), linux('arm64'), linux('amd64')), 1);
  assert.equal(choose(linux('arm', 'v7'), linux('arm', 'v6'), linux('arm', 'v7'), linux('arm', 'v5')), 1);
  assert.equal(choose(linux('arm', 'v6'), linux('arm', 'v7'), linux('arm', 'v5'), linux('arm', 'v6')), 2);
  assert.equal(choose(linux('arm', 'v7'), linux('arm')), 0);
  assert.equal(choose(linux('arm64'), linux('arm', 'v7'), linux('arm64', 'v8')), 1);
  assert.equal(choose(linux('arm64'), linux('arm', 'v6'), linux('arm', 'v7')), 1);
  assert.equal(choose(linux('amd64'), linux('amd64', 'v3'), linux('386')), 1);
  assert.equal(choose(linux('amd64'), { os: 'windows', architecture: 'amd64' }, undefined), 1);
  assert.equal(choose(linux('amd64'), undefined, linux('amd64')), 1);
  assert.equal(platformRank(linux('arm', 'v6'), linux('arm', 'v7')), undefined);
});

test('an index without the platform names what it has; attestations do not count', () => {
  assert.throws(
    () =>
      chooseManifest(
        index(linux('s390x'), linux('arm', 'v7'), { os: 'unknown', architecture: 'unknown' }),
        linux('amd64'),
        'image x',
      ),
    (error) =>
      isError(error, 'IMAGE_PLATFORM_MISSING') &&
      error.message === 'image x is not for linux/amd64; it is for linux/s390x, linux/arm/v7',
  );
});

const configuration = {
  os: 'linux',
  architecture: 'amd64',
  rootfs: { type: 'layers', diff_ids: [digest(5)] },
  config: {
    User: '1000:1000',
    Env: ['A=b'],
    Cmd: ['sh'],
    Entrypoint: null,
    Volumes: { '/data': {} },
    Labels: { a: 'b' },
  },
};
const parseConfig = (document: unknown) =>
  parseImageConfig(Buffer.from(JSON.stringify(document)), 'config x');

test('the configuration of an image is read, null fields included', () => {
  const found = parseConfig(configuration);
  assert.deepEqual(found.diffIds, [digest(5)]);
  assert.deepEqual(found.config, {
    User: '1000:1000',
    Env: ['A=b'],
    Entrypoint: [],
    Cmd: ['sh'],
    WorkingDir: '',
    StopSignal: undefined,
    Volumes: ['/data'],
    Labels: { a: 'b' },
  });
  assert.deepEqual(parseConfig({ ...configuration, config: null }).config.Cmd, []);
});

test('a broken configuration is refused with the field', () => {
  const broken: readonly (readonly [object, RegExp])[] = [
    [{ rootfs: { type: 'layers', diff_ids: ['sha256:x'] } }, /diff_ids/],
    [{ rootfs: { type: 'tar', diff_ids: [] } }, /rootfs\.type/],
    [{ rootfs: undefined }, /rootfs\.type/],
    [{ os: 5 }, /os/],
    [{ config: { Env: 'A=b' } }, /Env/],
    [{ config: { Env: ['A=\0'] } }, /Env/],
    [{ config: { Cmd: [1] } }, /Cmd/],
    [{ config: { User: {} } }, /User/],
    [{ config: { Labels: { a: 1 } } }, /Labels/],
    [{ config: { Volumes: ['/x'] } }, /Volumes/],
  ];
  for (const [change, message] of broken) {
    assert.throws(
      () => parseConfig({ ...configuration, ...change }),
      (error) => isError(error, 'IMAGE_INVALID') && message.test(error.message),
      JSON.stringify(change),
    );
  }
});

test('USER is a number, a name or nothing', () => {
  assert.deepEqual(imageUser('1000:50'), { uid: 1000 });
  assert.deepEqual(imageUser('www-data:www-data'), { username: 'www-data' });
  assert.deepEqual(imageUser(undefined), {});
  assert.deepEqual(imageUser(':0'), {});
});
