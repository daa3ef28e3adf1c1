/** What the store keeps over restarts and crashes, and what it gives back. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import { makeImages } from '../../images/service.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { type Database, openDatabase } from '../../runtime/host/database.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { startFakeRegistry } from '../peers/fake-registry.ts';
import { buildImage } from '../peers/image.ts';
import { onDisk, openImages, temporaryFolder } from '../peers/image-store.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

const shared = { files: [{ path: 'shared', content: 'shared' }] };
const first = buildImage({ layers: [shared, { files: [{ path: 'first' }] }] });
const second = buildImage({ layers: [shared, { files: [{ path: 'second' }] }] });

test('a restart sees the same images, layers and leases', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', first);
  const folder = temporaryFolder(t);
  const name = `${registry.host}/a:1`;
  const before = await openImages(t, { folder });
  await before.images.pullImage({ image: name });
  before.images.lease(first.id, 'container-1');
  const [images, container] = [await before.images.listImages(), await before.images.forContainer(name)];
  await before.close();

  const after = await openImages(t, { folder });
  assert.deepEqual(await after.images.listImages(), images);
  assert.deepEqual(await after.images.forContainer(first.id), container);
  await assert.rejects(after.images.removeImage({ image: name }), {
    code: 'FAILED_PRECONDITION',
    message: /container-1/,
  });
  after.images.release('container-1');
  after.images.release('container-1');
  await after.images.removeImage({ image: name });
  assert.equal(await after.images.imageStatus({ image: name }), undefined);
  assert.throws(() => after.images.lease(first.id, 'container-2'), { code: 'IMAGE_NOT_PRESENT' });
  await after.close();
  assert.deepEqual(onDisk(folder), { layers: [], staging: [] });
});

test('a removed image takes only the layers that nobody else has', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', first);
  registry.image('2', second);
  const { images, folder, close } = await openImages(t);
  await images.pullImage({ image: `${registry.host}/a:1` });
  await images.pullImage({ image: `${registry.host}/a:2` });
  assert.equal(onDisk(folder).layers.length, 3);
  await images.removeImage({ image: `${registry.host}/a:1` });
  const { layers } = await images.forContainer(second.id);
  assert.deepEqual(
    layers.map((layer) => readdirSync(layer)),
    [['second'], ['shared']],
  );
  await close();
  assert.deepEqual(onDisk(folder).layers.sort(), layers.map((layer) => basename(layer)).sort());
});

test('an image removed while another with the same layer is pulled leaves that one whole', {
  skip,
}, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', first);
  registry.image('2', second);
  const { images } = await openImages(t);
  await images.pullImage({ image: `${registry.host}/a:1` });
  const last = second.layers[1]!;
  registry.intercept = (request, response) => {
    if (!request.url?.endsWith(last.digest)) return false;
    void images.removeImage({ image: first.id }).then(() => response.end(last.data));
    return true;
  };
  await images.pullImage({ image: `${registry.host}/a:2` });
  const { layers } = await images.forContainer(second.id);
  assert.equal(readFileSync(join(layers[1]!, 'shared'), 'utf8'), 'shared');
});

test('what a crash leaves behind is swept at the next start', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', first);
  registry.image('2', second);
  const folder = temporaryFolder(t);
  const before = await openImages(t, { folder });
  await before.images.pullImage({ image: `${registry.host}/a:1` });
  await before.images.pullImage({ image: `${registry.host}/a:2` });
  before.images.lease(first.id, 'container');
  const [own] = (await before.images.forContainer(first.id)).layers;
  const kept = (await before.images.forContainer(second.id)).layers;
  await before.close();

  // Half-unpacked, renamed without a row, and a row whose folder is gone.
  mkdirSync(join(folder, 'staging', 'half', 'made'), { recursive: true });
  mkdirSync(join(folder, 'layers', 'zz'));
  writeFileSync(join(folder, 'layers', 'zz', 'file'), 'x');
  rmSync(own!, { recursive: true });

  const after = await openImages(t, { folder });
  assert.equal(await after.images.imageStatus({ image: first.id }), undefined);
  assert.deepEqual((await after.images.forContainer(second.id)).layers, kept);
  assert.equal(await after.images.pullImage({ image: `${registry.host}/a:1` }), first.id);
  const again = await after.images.forContainer(first.id);
  assert.deepEqual(
    again.layers.map((layer) => readdirSync(layer)),
    [['first'], ['shared']],
  );
  assert.ok((again.layers as string[]).includes(kept[1]!));
  await after.close();
  assert.deepEqual(onDisk(folder).staging, []);
  assert.equal(onDisk(folder).layers.length, 3);
});

test('layers of a pull that failed are used by the next, also after a restart', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', first);
  const bad = first.layers[1]!;
  const folder = temporaryFolder(t);
  registry.intercept = (request, response) => {
    if (!request.url?.endsWith(bad.digest)) return false;
    const whenOtherIsThere = () => {
      if (before.db.statement('SELECT 1 FROM layers').get() === undefined) setTimeout(whenOtherIsThere, 5);
      else response.writeHead(404).end();
    };
    whenOtherIsThere();
    return true;
  };
  const before = await openImages(t, { folder, parallelDownloads: 2 });
  await assert.rejects(before.images.pullImage({ image: `${registry.host}/a:1` }), {
    code: 'IMAGE_NOT_FOUND',
  });
  assert.equal(onDisk(folder).layers.length, 1);
  await before.close();
  registry.intercept = () => false;
  const after = await openImages(t, { folder });
  const asked = registry.count(first.layers[0]!.digest);
  await after.images.pullImage({ image: `${registry.host}/a:1` });
  assert.equal(registry.count(first.layers[0]!.digest), asked);
  await after.close();
});

test('an image of 120 layers, some of them the same, mounts in one page of options', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  const layers = Array.from({ length: 120 }, (_, at) => ({
    compression: 'none' as const,
    files: [{ path: `f${at % 110}`, content: String(at % 110) }],
  }));
  const image = buildImage({ layers });
  registry.image('1', image);
  const { images, folder } = await openImages(t);
  await images.pullImage({ image: `${registry.host}/a:1` });
  const found = await images.forContainer(image.id);
  assert.equal(found.layers.length, 110);
  assert.deepEqual(readdirSync(found.layers[0]!), ['f9']);
  assert.deepEqual(readdirSync(found.layers.at(-1)!), ['f10']);
  const [root, upper, work] = ['root', 'upper', 'work'].map((name) => {
    mkdirSync(join(folder, name));
    return join(folder, name);
  }) as [string, string, string];
  const options = `lowerdir=${found.layers.join(':')},upperdir=${upper},workdir=${work}`;
  assert.ok(options.length < 4096, `${options.length} bytes of options`);
  execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', options, root]);
  try {
    assert.equal(readdirSync(root).length, 110);
    assert.equal(readFileSync(join(root, 'f42'), 'utf8'), '42');
  } finally {
    execFileSync('umount', [root]);
  }
});

test('a layer whose row cannot be written leaves nothing', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', first);
  const folder = temporaryFolder(t);
  const real = openDatabase(join(folder, 'state.db'));
  const db: Database = {
    ...real,
    statement(sql) {
      if (!sql.includes('INTO layers')) return real.statement(sql);
      throw Object.assign(new Error('database or disk is full'), { code: 'ERR_SQLITE_ERROR', errcode: 13 });
    },
  };
  let told = 0;
  const images = await makeImages({
    db,
    stateDir: folder,
    log: makeLogger('silent'),
    clock: systemClock,
    onStorageFull: () => told++,
  });
  t.after(async () => real.close());
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), { code: 'STORAGE_FULL' });
  assert.equal(told, 1);
  await images.close();
  assert.deepEqual(onDisk(folder), { layers: [], staging: [] });
});
