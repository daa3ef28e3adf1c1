import assert from 'node:assert/strict';
import { test } from 'node:test';
import { imageUser, parseImageConfig } from '../../images/config.ts';
import {
  chooseManifest,
  cpuVariant,
  type ImageIndex,
  nodePlatform,
  parseManifest,
  platformRank,
} from '../../images/manifest.ts';
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

test('what a manifest may also say changes nothing', () => {
  const empty = { mediaType: 'application/vnd.oci.image.layer.v1.tar', digest: digest(3), size: 0 };
  assert.deepEqual(
    parse({
      ...manifest,
      annotations: { a: 'b' },
      subject: layer,
      layers: [{ ...layer, data: 'aGVsbG8=', annotations: {}, urls: [] }, empty],
    }),
    { kind: 'manifest', config, layers: [layer, empty] },
  );
});

test('foreign layers keep their addresses', () => {
  const foreign = {
    ...layer,
    mediaType: 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
    urls: ['https://x.example/layer'],
  };
  assert.deepEqual(parse({ ...manifest, layers: [foreign] }), {
    kind: 'manifest',
    config,
    layers: [foreign],
  });
});

test('tar layers are read whatever the rest of their type', () => {
  for (const mediaType of [
    'application/vnd.oci.image.layer.nondistributable.v1.tar+zstd',
    'application/vnd.acme.model.v2.tar+gzip',
    'application/vnd.acme.tar',
    'application/x-tar',
    'application/x-tar+gzip',
    'application/tar+zstd',
    'application/x-gtar',
  ]) {
    assert.equal(parse({ ...manifest, layers: [{ ...layer, mediaType }] }).kind, 'manifest', mediaType);
  }
  for (const mediaType of [
    'application/vnd.oci.image.layer.v1.tar+gzip+encrypted',
    'application/vnd.oci.image.layer.v1.tar+bzip2',
    'application/vnd.oci.empty.v1+json',
    'application/avatar',
    'application/octet-stream',
    'text/tar',
    `application/${'a.'.repeat(100_000)}`,
  ]) {
    assert.throws(
      () => parse({ ...manifest, layers: [{ ...layer, mediaType }] }),
      { code: 'IMAGE_UNSUPPORTED' },
      mediaType.slice(0, 100),
    );
  }
});

test('an artifact is refused with its type and those of its layers', () => {
  const artifact = {
    ...manifest,
    artifactType: 'application/vnd.acme.model',
    config: { ...config, mediaType: 'application/vnd.oci.empty.v1+json' },
    layers: [1, 2, 3, 4, 5, 6, 7].map((at) => ({ ...layer, mediaType: `application/x-${at % 6}` })),
  };
  assert.throws(() => parse(artifact), {
    code: 'IMAGE_UNSUPPORTED',
    message:
      /artifact of type "application\/vnd\.acme\.model" with layers of type "application\/x-1", .*, and 1 more; its config is/,
  });
  assert.throws(() => parse({ ...artifact, artifactType: undefined, layers: [] }), {
    message: /artifact of type "application\/vnd\.oci\.empty\.v1\+json" with layers of type none/,
  });
  assert.throws(() => parse({ ...artifact, artifactType: 5, layers: [null, 5, 'x'] }), {
    code: 'IMAGE_UNSUPPORTED',
  });
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
  [
    'urls no list',
    { ...manifest, layers: [{ ...layer, urls: 'https://x' }] },
    'IMAGE_INVALID',
    /layers\[0\]\.urls/,
  ],
  [
    'urls of numbers',
    { ...manifest, layers: [{ ...layer, urls: [1] }] },
    'IMAGE_INVALID',
    /layers\[0\]\.urls/,
  ],
  [
    'many urls',
    { ...manifest, layers: [{ ...layer, urls: Array(11).fill('x') }] },
    'IMAGE_INVALID',
    /more than 10/,
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

test('variants of processors, and what else a platform says', () => {
  const choose = (node: ReturnType<typeof linux>, ...platforms: (object | undefined)[]) =>
    Number.parseInt(chooseManifest(index(...platforms), node, 'x').digest.slice(7), 16);
  const levels = [linux('amd64'), linux('amd64', 'v2'), linux('amd64', 'v3'), linux('amd64', 'v4')];
  assert.deepEqual(
    ['v1', 'v2', 'v3', 'v4', undefined].map((variant) => choose(linux('amd64', variant), ...levels)),
    [0, 1, 2, 3, 0],
  );
  assert.equal(choose(linux('amd64', 'v3'), linux('amd64', 'v4'), linux('amd64', 'v1')), 1);
  assert.equal(platformRank(linux('amd64', 'v1'), linux('amd64', 'v3')), undefined);
  assert.equal(choose(linux('amd64', 'v4'), linux('386'), linux('amd64')), 1);
  const arms = ['v5', 'v6', 'v7', 'v8'].map((variant) => linux('arm', variant));
  assert.deepEqual(
    ['v5', 'v6', 'v7', 'v8'].map((variant) => choose(linux('arm', variant), ...arms)),
    [0, 1, 2, 3],
  );
  assert.equal(choose(linux('arm64', 'v8'), linux('arm64', 'v9'), linux('arm64')), 1);
  assert.equal(choose(linux('arm64', 'v9'), linux('arm64', 'v9'), linux('arm64')), 0);
  const more = { ...linux('amd64'), 'os.version': '10.0', 'os.features': ['x'], features: ['sse4'] };
  assert.equal(choose(linux('amd64'), linux('arm'), more), 1);
});

test('the variant of a processor is read from /proc/cpuinfo', () => {
  const flags = (text: string) => `processor\t: 0\nmodel name\t: x\nflags\t\t: fpu sse2 ${text}\nbugs\t\t:\n`;
  const two = 'cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3';
  const three = `${two} avx avx2 bmi1 bmi2 f16c fma abm movbe xsave`;
  const four = `${three} avx512f avx512bw avx512cd avx512dq avx512vl`;
  assert.deepEqual(
    ['', 'ssse3', two, `${two} avx`, three, four, `avx512f ${two}`].map((text) =>
      cpuVariant('amd64', flags(text)),
    ),
    ['v1', 'v1', 'v2', 'v2', 'v3', 'v4', 'v2'],
  );
  assert.equal(cpuVariant('amd64', ''), undefined);
  const arm = (version: string, model = 'ARMv7 Processor rev 4 (v7l)') =>
    `processor\t: 0\nmodel name\t: ${model}\nCPU architecture: ${version}\n`;
  assert.deepEqual(
    ['5TEJ', '6', '7', '8', 'AArch64', '99'].map((version) => cpuVariant('arm', arm(version))),
    ['v5', 'v6', 'v7', 'v8', 'v7', 'v8'],
  );
  assert.equal(cpuVariant('arm', arm('7', 'ARMv6-compatible processor rev 7 (v6l)')), 'v6');
  assert.equal(cpuVariant('arm', ''), 'v7');
  assert.equal(cpuVariant('arm64', arm('8')), 'v8');
  assert.equal(cpuVariant('arm64', arm('9')), 'v9');
  assert.equal(cpuVariant('arm64', ''), 'v8');
  assert.equal(cpuVariant('riscv64', flags(four)), undefined);
  const node = nodePlatform();
  assert.notEqual(platformRank(node, { os: node.os, architecture: node.architecture }), undefined);
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
