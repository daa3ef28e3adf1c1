/** Exports are read by other tools and by our own import. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { exportArchive } from '../../images/archive/export.ts';
import { decodeHeader, encodeHeader } from '../../images/archive/tar_headers.ts';
import type { ArchiveFormat } from '../../runtime/api.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { layerTar, namedLayout, tarOf } from '../peers/archive.ts';
import { buildImage } from '../peers/image.ts';
import { onDisk, openImages, temporaryFolder } from '../peers/image-store.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const formats: readonly ArchiveFormat[] = ['docker-archive', 'oci-archive', 'oci-layout'];
const base = {
  files: [
    { path: 'base', content: 'base'.repeat(10_000) },
    { path: 'shared', content: Buffer.alloc(2_000_000, 'abc') },
  ],
};
const app = buildImage({ layers: [base, { files: [{ path: 'app', content: 'app' }] }] });
const other = buildImage({ layers: [base, { files: [{ path: 'other' }] }], config: { Cmd: ['x'] } });
const layers = new Map([...app.layers, ...other.layers].map((layer) => [layer.diffId, layerTar(layer)]));

type Test = { after(fn: () => Promise<void>): void };

async function prepare(t: Test) {
  const store = await openImages(t);
  const out = temporaryFolder(t);
  const source = join(out, 'source.tar');
  const named = [
    { image: app, tags: ['app:1', 'app:2'] },
    { image: other, tags: ['registry.example:5000/team/other:1'] },
  ];
  writeFileSync(source, tarOf(namedLayout(named)));
  await store.images.importImages(source);
  return { ...store, out };
}

function skopeo(...args: string[]): string {
  return execFileSync('skopeo', ['--insecure-policy', ...args], { encoding: 'utf8', stdio: 'pipe' });
}

test('what is exported is the same images again, in every form', { skip }, async (t) => {
  const { images, out } = await prepare(t);
  for (const format of formats) {
    const path = join(out, format);
    await images.exportImages(['app:1', other.id], path, { format });
    const fresh = await openImages(t);
    const found = await fresh.images.importImages(path);
    assert.deepEqual(
      found.map(({ id, repoTags }) => [id, repoTags]),
      [
        [app.id, ['docker.io/library/app:1']],
        [other.id, ['registry.example:5000/team/other:1']],
      ],
    );
    assert.equal(onDisk(fresh.folder).layers.length, 3);
    const { layers } = await fresh.images.forContainer(app.id);
    assert.deepEqual(
      layers.map((layer) => readdirSync(layer)),
      [['app'], ['base', 'shared']],
    );
    await assert.rejects(images.exportImages(['app:1'], path, { format }), { code: 'ALREADY_EXISTS' });
  }
  // The layer that both have is there once.
  assert.ok(statSync(join(out, 'docker-archive')).size < 2_200_000);
  assert.ok(statSync(join(out, 'oci-archive')).size < 100_000);
  assert.deepEqual(readdirSync(out).sort(), ['docker-archive', 'oci-archive', 'oci-layout', 'source.tar']);
});

test('skopeo reads and copies what is exported', { skip }, async (t) => {
  const { images, out } = await prepare(t);
  const name = 'docker.io/library/app:2';
  for (const format of formats) {
    const path = join(out, format);
    await images.exportImages([app.id, 'registry.example:5000/team/other:1'], path, { format });
    const transport = format === 'oci-layout' ? 'oci' : format;
    const inspected = skopeo('inspect', '--config', '--raw', `${transport}:${path}:${name}`);
    assert.deepEqual(JSON.parse(inspected), JSON.parse(app.config.data.toString()));
    const copy = join(out, `copy-of-${format}`);
    skopeo('copy', '--quiet', `${transport}:${path}:${name}`, `docker-archive:${copy}:copy/of/it:1`);
    const fresh = await openImages(t);
    assert.deepEqual(
      (await fresh.images.importImages(copy)).map(({ id, repoTags }) => [id, repoTags]),
      [[app.id, ['docker.io/copy/of/it:1']]],
    );
  }
});

test('a layer that is damaged on disk is not exported', { skip }, async (t) => {
  const { images, out } = await prepare(t);
  const { layers } = await images.forContainer(app.id);
  writeFileSync(join(layers[0]!, 'app'), 'APP');
  const failure = { code: 'LAYER_DAMAGED', message: /export to \S+: layer sha256:\w+ is damaged/ };
  for (const format of formats) {
    await assert.rejects(images.exportImages([app.id], join(out, format), { format }), failure);
  }
  rmSync(join(layers[0]!, 'app'));
  await assert.rejects(images.exportImages([app.id], join(out, 'oci'), { format: 'oci-archive' }), failure);
  assert.deepEqual(readdirSync(out), ['source.tar']);
});

test('an export that fails leaves nothing', { skip }, async (t) => {
  const { images, out } = await prepare(t);
  const before = readdirSync(out);
  const path = join(out, 'archive');
  const format = 'oci-archive';
  await assert.rejects(images.exportImages(['app:1', 'none:1'], path, { format }), {
    code: 'IMAGE_NOT_PRESENT',
  });
  await assert.rejects(images.exportImages([], path, { format }), { code: 'INVALID_ARGUMENT' });
  await assert.rejects(images.exportImages(['app:1'], 'relative', { format }), { code: 'INVALID_ARGUMENT' });
  await assert.rejects(images.exportImages(['app:1'], join(out, 'no/where'), { format }), {
    code: 'NOT_FOUND',
  });
  const find = (image: string) => ({
    id: image,
    config: app.config.data,
    size: 0,
    repoTags: [],
    repoDigests: [],
    pinned: false,
  });
  const store = { holdLayers: () => () => {} };
  for (const format of formats) {
    async function* damaged(diffId: string) {
      const tar = Buffer.from(layers.get(diffId)!);
      tar[600] = tar[600]! ^ 1;
      yield tar;
    }
    await assert.rejects(exportArchive({ store, find, layerTar: damaged }, [app.id], path, format), {
      code: 'LAYER_DAMAGED',
      message: /export to \S+archive: layer sha256:\w+ is damaged/,
    });
    const controller = new AbortController();
    async function* endless() {
      for (;;) {
        yield Buffer.alloc(1 << 16);
        controller.abort();
      }
    }
    await assert.rejects(
      exportArchive({ store, find, layerTar: endless }, [app.id], path, format, controller.signal),
      { code: 'ABORTED' },
    );
    async function* fails(): AsyncGenerator<Buffer> {
      yield Buffer.alloc(1000);
      throw Object.assign(new Error('full'), { code: 'ENOSPC' });
    }
    await assert.rejects(exportArchive({ store, find, layerTar: fails }, [app.id], path, format), {
      code: 'STORAGE_FULL',
    });
  }
  assert.deepEqual(readdirSync(out), before);
  mkdirSync(path);
  await assert.rejects(images.exportImages(['app:1'], path, { format }), KeelsonError);
});

test('headers of large files are written as tar reads them', () => {
  for (const size of [0, 1, 8 ** 11 - 1, 8 ** 11, 2 ** 40]) {
    assert.deepEqual(decodeHeader(encodeHeader('blobs/x', size)), {
      name: 'blobs/x',
      size,
      type: '0',
      linkName: '',
    });
  }
  assert.equal(decodeHeader(Buffer.alloc(512)), undefined);
  assert.throws(() => decodeHeader(readFileSync(process.execPath).subarray(0, 512)), {
    code: 'IMAGE_INVALID',
  });
});
