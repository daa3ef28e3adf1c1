/** Archives are imported: every form, and everything that can be wrong with one. */
import assert from 'node:assert/strict';
import {
  appendFileSync,
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { encodeHeader } from '../../images/archive/tar_headers.ts';
import type { PullProgress } from '../../runtime/api.ts';
import { isError } from '../../runtime/host/errors.ts';
import {
  blobPath,
  blobsOf,
  dockerSaveNew,
  dockerSaveOld,
  entry,
  type Files,
  hexOf,
  layerTar,
  layout,
  namedLayout,
  tarOf,
  writeFolder,
} from '../peers/archive.ts';
import { type BuiltImage, buildImage, makeBlob, ociIndex } from '../peers/image.ts';
import { onDisk, openImages, type TestStore, temporaryFolder } from '../peers/image-store.ts';
import { makeTar, type TarEntry } from '../peers/tar.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const base = { files: [{ path: 'base', content: 'base' }] };
const build = (content: string, options: Partial<Parameters<typeof buildImage>[0]> = {}): BuiltImage =>
  buildImage({ layers: [base, { files: [{ path: 'content', content }] }], ...options });
const app = build('app');
const other = build('other', { config: { Cmd: ['other'] } });
const arm = build('arm', { platform: { os: 'linux', architecture: 'arm', variant: 'v7' } });
const node = { os: 'linux', architecture: app.platform.architecture };

type Test = { after(fn: () => Promise<void>): void };

/** A store, and a function that writes an archive and imports it. */
async function prepare(t: Test, options: Parameters<typeof openImages>[1] = {}) {
  const store = await openImages(t, { platform: node, ...options });
  const folder = temporaryFolder(t);
  let number = 0;
  const write = (bytes: Buffer): string => {
    const path = join(folder, `archive-${number++}`);
    writeFileSync(path, bytes);
    return path;
  };
  const load = (content: Buffer | Files | readonly TarEntry[], pin?: boolean) => {
    const bytes = Buffer.isBuffer(content)
      ? content
      : content instanceof Map
        ? tarOf(content)
        : makeTar(content as readonly TarEntry[]);
    return store.images.importImages(write(bytes), { pin });
  };
  return { ...store, path: folder, write, load };
}

async function contentOf({ images }: Pick<TestStore, 'images'>, image: string): Promise<string[][]> {
  const { layers } = await images.forContainer(image);
  return layers.map((layer) => readdirSync(layer));
}

test('what docker save writes, old and new, plain, gzip and zstd', { skip }, async (t) => {
  const named = [
    { image: app, tags: ['app:1', 'app:2'] },
    { image: other, tags: ['other:1'] },
  ];
  const forms: readonly (readonly [string, Buffer])[] = [
    ['old', makeTar(dockerSaveOld(named))],
    ['new', tarOf(dockerSaveNew(named))],
    ['new with its layers mixed up', tarOf(dockerSaveNew(named, (layers) => layers.toReversed()))],
    ['new without layers in its manifest', tarOf(dockerSaveNew(named, () => []))],
  ];
  for (const [what, tar] of forms) {
    for (const bytes of [tar, gzipSync(tar), zstdCompressSync(tar)]) {
      await t.test(what, async (t) => {
        const store = await prepare(t);
        const found = await store.load(bytes);
        assert.deepEqual(
          found.map(({ id, repoTags, pinned }) => [id, [...repoTags].sort(), pinned]),
          [
            [app.id, ['docker.io/library/app:1', 'docker.io/library/app:2'], false],
            [other.id, ['docker.io/library/other:1'], false],
          ],
        );
        assert.deepEqual(await contentOf(store, 'app:2'), [['content'], ['base']]);
        assert.equal(onDisk(store.folder).layers.length, 3);
        await store.close();
        assert.deepEqual(onDisk(store.folder).staging, []);
      });
    }
  }
});

test('what Docker leaves out of its layout comes from manifest.json', { skip }, async (t) => {
  const store = await prepare(t);
  const untagged = dockerSaveNew([{ image: other, tags: [] }]);
  untagged.set('index.json', Buffer.from('{"schemaVersion":2,"manifests":null}'));
  assert.deepEqual(
    (await store.load(untagged)).map(({ id, repoTags }) => [id, repoTags]),
    [[other.id, []]],
  );
  const both = dockerSaveNew([
    { image: app, tags: ['app:1'] },
    { image: other, tags: [] },
  ]);
  assert.deepEqual(
    (await store.load(both)).map(({ id, repoTags }) => [id, repoTags]),
    [
      [app.id, ['docker.io/library/app:1']],
      [other.id, []],
    ],
  );
  // A manifest.json that is of no use does no harm to a layout.
  both.set('manifest.json', Buffer.from('[{"Config":"gone","RepoTags":["app:2"]}]'));
  assert.deepEqual(
    (await store.load(both)).map(({ id }) => id),
    [app.id],
  );
});

test('archives without tags, with compressed layers, long names and links', { skip }, async (t) => {
  const store = await prepare(t);
  const [lower, upper] = app.layers;
  const long = `${'d'.repeat(90)}/${'f'.repeat(120)}`;
  const manifest = JSON.stringify([{ Config: './c.json', RepoTags: null, Layers: ['./a/../l1', long] }]);
  const found = await store.load([
    { path: './c.json', content: app.config.data },
    { path: './hard', content: lower!.data },
    { path: './l1', type: 'link', target: './hard' },
    { path: 'x', content: zstdCompressSync(layerTar(upper!)), pax: { path: long } },
    { path: './manifest.json', content: manifest },
  ]);
  assert.deepEqual(
    found.map(({ id, repoTags, repoDigests }) => [id, repoTags, repoDigests]),
    [[app.id, [], []]],
  );
  assert.deepEqual(await contentOf(store, app.id), [['content'], ['base']]);
});

test('OCI layouts: names, digests, nested indexes and platforms', { skip }, async (t) => {
  const annotated = (name: string, value: string) => ({ annotations: { [name]: value } });
  const containerd = (value: string) => annotated('io.containerd.image.name', value);
  const reference = (value: string) => annotated('org.opencontainers.image.ref.name', value);
  const json = (value: unknown) => makeBlob(Buffer.from(JSON.stringify(value)), ociIndex);
  const index = json({
    schemaVersion: 2,
    mediaType: ociIndex,
    manifests: [
      entry(arm.manifest, { platform: arm.platform }),
      entry(app.manifest, { platform: app.platform }),
    ],
  });
  const outer = json({ schemaVersion: 2, mediaType: ociIndex, manifests: [entry(index)] });
  const digestName = `docker.io/library/app@${app.manifest.digest}`;
  const cases: readonly (readonly [string, Files, readonly string[], readonly string[]])[] = [
    ['full name', namedLayout([{ image: app, tags: ['app:1'] }]), ['docker.io/library/app:1'], [digestName]],
    ['a tag alone names nothing', namedLayout([{ image: app, tags: ['latest'] }]), [], []],
    [
      "containerd's name counts",
      layout(blobsOf(app), [
        entry(app.manifest, {
          annotations: {
            'io.containerd.image.name': 'quay.io/a/b:c',
            'org.opencontainers.image.ref.name': 'c',
          },
        }),
      ]),
      ['quay.io/a/b:c'],
      [`quay.io/a/b@${app.manifest.digest}`],
    ],
    [
      'a name with its digest',
      layout(blobsOf(app), [entry(app.manifest, containerd(digestName))]),
      [],
      [digestName],
    ],
    ['no name', layout(blobsOf(app), [entry(app.manifest)]), [], []],
    [
      'an index in an index; the other platform is not there',
      layout([outer, index, ...blobsOf(app)], [entry(outer, containerd('app:1'))]),
      ['docker.io/library/app:1'],
      [`docker.io/library/app@${outer.digest}`],
    ],
    [
      'one name for several platforms',
      layout(
        [...blobsOf(app), ...blobsOf(arm)],
        [app, arm].map((image) => entry(image.manifest, { platform: image.platform, ...reference('app:1') })),
      ),
      ['docker.io/library/app:1'],
      [digestName],
    ],
    [
      'an image for another platform is left out',
      namedLayout([
        { image: arm, tags: ['arm:1'] },
        { image: app, tags: ['app:1'] },
      ]),
      ['docker.io/library/app:1'],
      [digestName],
    ],
  ];
  for (const [what, files, tags, digests] of cases) {
    await t.test(what, async (t) => {
      const store = await prepare(t);
      const asFolder = writeFolder(join(store.path, 'layout'), files);
      for (const found of [await store.images.importImages(asFolder), await store.load(files)]) {
        assert.deepEqual(
          found.map(({ id, repoTags, repoDigests }) => [id, repoTags, repoDigests]),
          [[app.id, tags, digests]],
        );
      }
      assert.deepEqual(await contentOf(store, digests[0] ?? app.id), [['content'], ['base']]);
    });
  }
});

test('what is there already is not read again; pinning stays; progress is told', { skip }, async (t) => {
  const store = await prepare(t);
  const files = namedLayout([{ image: app, tags: ['app:1'] }]);
  const seen: PullProgress[] = [];
  const path = store.write(tarOf(files));
  await store.images.importImages(path, { onProgress: (step) => seen.push(step) });
  assert.deepEqual(
    new Set(seen.map(({ image, digest, totalBytes }) => `${image} ${digest} ${totalBytes}`)),
    new Set(app.layers.map(({ digest, data }) => `docker.io/library/app:1 ${digest} ${data.length}`)),
  );
  assert.equal(seen.filter(({ phase }) => phase === 'done').length, 2);

  // Without its layers, it is still known which images it has.
  for (const { digest } of app.layers) files.delete(blobPath(digest));
  assert.deepEqual(
    (await store.load(files, true)).map(({ id, pinned }) => [id, pinned]),
    [[app.id, true]],
  );
  assert.equal((await store.images.importImages(path))[0]?.pinned, true);
  assert.equal((await store.images.imageStatus({ image: 'app:1' }))?.pinned, true);
});

test('a broken archive is refused with its name and leaves the store as it was', { skip }, async (t) => {
  const good = () => namedLayout([{ image: app, tags: ['app:1'] }]);
  const changed = (change: (files: Files) => void, files = good()): Files => {
    change(files);
    return files;
  };
  const [lower, upper] = app.layers;
  const otherDigest = other.manifest.digest;
  const docker = (item: object, more: readonly TarEntry[] = []): Buffer =>
    makeTar([
      { path: 'c.json', content: app.config.data },
      { path: 'l1', content: layerTar(lower!) },
      { path: 'l2', content: layerTar(upper!) },
      ...more,
      {
        path: 'manifest.json',
        content: JSON.stringify([{ Config: 'c.json', RepoTags: ['app:1'], Layers: ['l1', 'l2'], ...item }]),
      },
    ]);
  const lie = (path: string, content: string | Buffer) =>
    changed((files) => void files.set(path, Buffer.from(content)));
  const indexOf = (...manifests: object[]) => Buffer.from(JSON.stringify({ schemaVersion: 2, manifests }));
  const self = makeBlob(indexOf(), ociIndex);
  const nested = [0, 1, 2, 3, 4].reduce<{
    top: ReturnType<typeof makeBlob>;
    all: (typeof app.layers)[number][] | object[];
  }>(
    ({ top, all }) => {
      const next = makeBlob(indexOf(entry(top)), ociIndex);
      return { top: next, all: [...all, next] };
    },
    { top: app.manifest, all: [] },
  );
  const swapped = Buffer.from(upper!.data);
  swapped[swapped.length - 9] = swapped.at(-9)! ^ 1;
  const cases: readonly (readonly [string, Buffer | Files, string, RegExp])[] = [
    ['nothing', Buffer.alloc(0), 'IMAGE_INVALID', /it is empty/],
    ['only zeros', Buffer.alloc(10240), 'IMAGE_INVALID', /it is empty/],
    ['text', Buffer.from('no archive at all'.repeat(100)), 'IMAGE_INVALID', /not a tar archive/],
    ['another tar', makeTar([{ path: 'etc/passwd', content: 'x' }]), 'IMAGE_INVALID', /holds no images/],
    ['cut', tarOf(good()).subarray(0, 2000), 'IMAGE_INVALID', /cut off/],
    ['cut gzip', gzipSync(tarOf(good())).subarray(0, 500), 'IMAGE_INVALID', /decompressed/],
    ['cut zstd', zstdCompressSync(tarOf(good())).subarray(0, 500), 'IMAGE_INVALID', /decompressed|cut off/],
    ['index.json', lie('index.json', '[]'), 'IMAGE_INVALID', /index\.json is not a JSON object/],
    ['no entries', lie('index.json', indexOf()), 'IMAGE_INVALID', /names no images/],
    ['version', lie('oci-layout', '{"imageLayoutVersion":"9"}'), 'IMAGE_UNSUPPORTED', /version/],
    [
      'no manifest',
      changed((files) => files.delete(blobPath(app.manifest.digest))),
      'IMAGE_INVALID',
      /manifest sha256:\w+ is missing/,
    ],
    [
      'no config',
      changed((files) => files.delete(blobPath(app.id))),
      'IMAGE_INVALID',
      /config sha256:\w+ is missing/,
    ],
    [
      'no layer',
      changed((files) => files.delete(blobPath(upper!.digest))),
      'IMAGE_INVALID',
      new RegExp(`layer ${upper!.digest} is missing`),
    ],
    [
      'other manifest',
      lie(blobPath(app.manifest.digest), Buffer.alloc(app.manifest.data.length)),
      'IMAGE_DIGEST_MISMATCH',
      /in truth/,
    ],
    [
      'longer config',
      lie(blobPath(app.id), `${app.config.data} `),
      'IMAGE_DIGEST_MISMATCH',
      /bytes instead of/,
    ],
    ['shorter layer', lie(blobPath(lower!.digest), 'x'), 'IMAGE_DIGEST_MISMATCH', /has 1 bytes instead of/],
    [
      'other layer',
      lie(blobPath(upper!.digest), swapped),
      'IMAGE_DIGEST_MISMATCH|IMAGE_INVALID',
      /the archive has|decompressed/,
    ],
    [
      'a name that promises another digest',
      layout(blobsOf(app), [
        entry(app.manifest, { annotations: { 'io.containerd.image.name': `app@${otherDigest}` } }),
      ]),
      'IMAGE_DIGEST_MISMATCH',
      /has the name/,
    ],
    [
      'a name that is none',
      layout(blobsOf(app), [
        entry(app.manifest, { annotations: { 'io.containerd.image.name': 'App:1:2:3' } }),
      ]),
      'IMAGE_INVALID',
      /image name/,
    ],
    [
      'indexes without end',
      layout([...blobsOf(app), ...(nested.all as (typeof self)[])], [entry(nested.top)]),
      'IMAGE_INVALID',
      /more than 3 indexes/,
    ],
    [
      'only other platforms',
      namedLayout([{ image: arm, tags: ['arm:1'] }]),
      'IMAGE_PLATFORM_MISSING',
      /linux\/arm\/v7/,
    ],
    [
      'layers that are not those of the config',
      docker({ Layers: ['l2', 'l1'] }),
      'IMAGE_DIGEST_MISMATCH',
      /layer .*archive-\d+@sha256/,
    ],
    ['too few layers', docker({ Layers: ['l1'] }), 'IMAGE_INVALID', /has 1 layers, but its config names 2/],
    [
      'too many',
      docker({ Layers: ['l1', 'l2', 'l2'] }),
      'IMAGE_INVALID',
      /has 3 layers, but its config names 2/,
    ],
    ['missing', docker({ Layers: ['l1', 'l3'] }), 'IMAGE_INVALID', /layer "l3" is missing/],
    [
      'a way out',
      docker({ Layers: ['l1', '../../../etc/passwd'] }),
      'IMAGE_INVALID',
      /leads out of the archive/,
    ],
    ['absolute', docker({ Layers: ['l1', '/etc/passwd'] }), 'IMAGE_INVALID', /is missing/],
    [
      'a link out',
      docker({ Layers: ['l1', 'l3'] }, [{ path: 'l3', type: 'symlink', target: '../../etc/passwd' }]),
      'IMAGE_INVALID',
      /leads out of the archive/,
    ],
    [
      'a link to itself',
      docker({ Layers: ['l1', 'l3'] }, [{ path: 'l3', type: 'symlink', target: 'l3' }]),
      'IMAGE_INVALID',
      /without end/,
    ],
    ['a config out', docker({ Config: '../c.json' }), 'IMAGE_INVALID', /leads out/],
    ['no config', docker({ Config: 7 }), 'IMAGE_INVALID', /has no Config/],
    ['layers', docker({ Layers: 'l1' }), 'IMAGE_INVALID', /Layers is not a list/],
    ['tags', docker({ RepoTags: ['UPPER/CASE'] }), 'IMAGE_INVALID', /image name/],
    ['a tag with a digest', docker({ RepoTags: [`app@${otherDigest}`] }), 'IMAGE_INVALID', /has a digest/],
    [
      'a config that its name betrays',
      docker({ Config: `${hexOf(other.id)}.json` }, [
        { path: `${hexOf(other.id)}.json`, content: app.config.data },
      ]),
      'IMAGE_DIGEST_MISMATCH',
      /in truth/,
    ],
    [
      'the second image is bad',
      changed(
        (files) => files.delete(blobPath(other.layers[1]!.digest)),
        namedLayout([
          { image: app, tags: ['app:1'] },
          { image: other, tags: ['other:1'] },
        ]),
      ),
      'IMAGE_INVALID',
      /is missing/,
    ],
  ];
  const store = await prepare(t);
  for (const [what, content, codes, message] of cases) {
    await assert.rejects(store.load(content), (error) => {
      assert.ok(isError(error), `${what}: ${(error as Error).stack}`);
      assert.match(codes, new RegExp(`\\b${error.code}\\b`), `${what}: ${error.message}`);
      assert.match(error.message, message, what);
      assert.ok(error.message.includes(store.path), `${what}: ${error.message}`);
      return true;
    });
    assert.deepEqual(await store.images.listImages(), [], what);
  }
  await store.close();
  assert.deepEqual(onDisk(store.folder), { layers: [], staging: [] });
});

test('a layout folder is read, but nothing outside it', { skip }, async (t) => {
  const store = await prepare(t);
  const outside = join(store.path, 'outside');
  writeFileSync(outside, app.layers[1]!.data);
  const withLink = (name: string, target: string) => {
    const files = namedLayout([{ image: app, tags: ['app:1'] }]);
    files.delete(blobPath(app.layers[1]!.digest));
    const folder = writeFolder(join(store.path, name), files);
    symlinkSync(target, join(folder, blobPath(app.layers[1]!.digest)));
    return folder;
  };
  await assert.rejects(store.images.importImages(withLink('out', outside)), {
    code: 'IMAGE_INVALID',
    message: /leads out of the archive/,
  });
  await assert.rejects(store.images.importImages(withLink('device', '/dev/zero')), { code: 'IMAGE_INVALID' });
  await assert.rejects(store.images.importImages(withLink('folder', '.')), { code: 'IMAGE_INVALID' });
  await assert.rejects(store.images.importImages(join(store.path, 'none')), { code: 'NOT_FOUND' });
  await assert.rejects(store.images.importImages('relative'), { code: 'INVALID_ARGUMENT' });
  await assert.rejects(store.images.importImages('/dev/null'), { code: 'IMAGE_INVALID' });
  const inside = withLink('in', '../../inside');
  writeFileSync(join(inside, 'inside'), app.layers[1]!.data);
  assert.equal((await store.images.importImages(inside))[0]?.id, app.id);
});

test('bombs end at the limits; an import that is cancelled leaves nothing', { skip }, async (t) => {
  const limits = { entries: 100, bytes: 1 << 20 };
  const bomb = buildImage({ layers: [{ files: [{ path: 'zeros', content: Buffer.alloc(4 << 20) }] }] });
  const store = await prepare(t, { limits });
  const files = namedLayout([{ image: bomb, tags: ['bomb:1'] }]);
  await assert.rejects(store.load(files), { code: 'LAYER_UNSAFE', message: /decompressed/ });
  const big = tarOf(new Map([...files, ['padding', Buffer.alloc(2 << 20)]]));
  for (const bytes of [gzipSync(big), zstdCompressSync(big)]) {
    await assert.rejects(store.load(bytes), {
      code: 'LAYER_UNSAFE',
      message: /archive \S+: it has more than/,
    });
  }
  const controller = new AbortController();
  const importing = store.images.importImages(
    store.write(tarOf(namedLayout([{ image: app, tags: ['app:1'] }]))),
    { signal: controller.signal, onProgress: () => controller.abort() },
  );
  await assert.rejects(importing, { code: 'ABORTED' });
  assert.deepEqual(await store.images.listImages(), []);
  await store.close();
  assert.deepEqual(onDisk(store.folder), { layers: [], staging: [] });
});

test('an archive that changes while it is read does no harm', { skip }, async (t) => {
  const store = await prepare(t);
  const large = buildImage({
    layers: [
      { compression: 'none', files: [{ path: 'a', content: Buffer.alloc(3 << 20, 'a') }] },
      { compression: 'none', files: [{ path: 'b', content: Buffer.alloc(3 << 20, 'b') }] },
    ],
  });
  const path = store.write(tarOf(namedLayout([{ image: large, tags: ['large:1'] }])));
  let cut = false;
  const importing = store.images.importImages(path, {
    onProgress: ({ phase }) => {
      if (!cut && phase === 'downloading') truncateSync(path, 1 << 20);
      cut ||= phase === 'downloading';
    },
  });
  await assert.rejects(importing, { code: 'IMAGE_INVALID', message: /became shorter/ });
  appendFileSync(path, Buffer.alloc(8 << 20));
  await assert.rejects(store.images.importImages(path), (error) => isError(error));
  mkdirSync(`${path}-folder`);
  await assert.rejects(store.images.importImages(`${path}-folder`), { code: 'IMAGE_INVALID' });
  assert.deepEqual(await store.images.listImages(), []);
});

test('a huge archive costs neither memory nor a copy; large sizes and several frames are read', {
  skip,
}, async (t) => {
  const store = await prepare(t);
  const path = join(store.path, 'huge.tar');
  const huge = 2 ** 40;
  const small = tarOf(namedLayout([{ image: app, tags: ['app:1'] }]));
  // A file of a terabyte (a hole) before the image.
  const file = openSync(path, 'w');
  writeSync(file, encodeHeader('huge', huge), 0, 512, 0);
  writeSync(file, small, 0, small.length, 512 + huge);
  closeSync(file);
  assert.equal((await store.images.importImages(path))[0]?.id, app.id);

  const half = Math.floor(other.manifest.data.length / 2);
  const tar = tarOf(namedLayout([{ image: other, tags: ['other:1'] }]));
  const skippable = Buffer.from('502a4d180400000061626364', 'hex');
  const frames = [tar.subarray(0, half), tar.subarray(half)];
  for (const bytes of [
    Buffer.concat(frames.map((frame) => gzipSync(frame))),
    Buffer.concat([skippable, ...frames.map((frame) => zstdCompressSync(frame)), skippable]),
  ]) {
    assert.equal((await store.load(bytes))[0]?.id, other.id);
    await store.images.removeImage({ image: other.id });
  }
});
