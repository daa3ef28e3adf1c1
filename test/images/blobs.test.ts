/** Compressed layers that are kept. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Blobs, type KeptBlob, openBlobs } from '../../images/store/blobs.ts';
import { type Database, openDatabase } from '../../runtime/host/database.ts';
import { isError } from '../../runtime/host/errors.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { startFakeRegistry } from '../peers/fake-registry.ts';
import { buildImage, makeBlob } from '../peers/image.ts';
import { openImages, temporaryFolder } from '../peers/image-store.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const log = makeLogger('silent');
const image = buildImage({
  layers: [
    { files: [{ path: 'one', content: randomBytes(300_000) }] },
    { files: [{ path: 'two', content: 'y' }], compression: 'zstd' },
  ],
});
const pathOf = (folder: string, digest: string) => join(folder, 'blobs', ...digest.split(':'));

async function openAlone(t: TestContext): Promise<{ blobs: Blobs; db: Database; folder: string }> {
  const folder = temporaryFolder(t);
  const db = openDatabase(join(folder, 'state.db'));
  t.after(() => db.close());
  return { blobs: await openBlobs(db, folder, log), db, folder };
}

/** Adds a blob of these bytes. */
async function put(blobs: Blobs, folder: string, content: string, diffId = `sha256:${'d'.repeat(64)}`) {
  const { digest, data, mediaType } = makeBlob(Buffer.from(content), 'application/x-layer');
  writeFileSync(join(folder, 'incoming'), data);
  const blob: KeptBlob = { digest, size: data.length, mediaType, diffId };
  await blobs.add(join(folder, 'incoming'), blob);
  return blob;
}

test('a blob is found by digest and by what it unpacks to', async (t) => {
  const { blobs, folder } = await openAlone(t);
  const first = await put(blobs, folder, 'first');
  const second = await put(blobs, folder, 'second');
  assert.equal(existsSync(join(folder, 'incoming')), false);
  assert.deepEqual(blobs.find(first.digest), first);
  assert.deepEqual(blobs.blobOf(first.diffId), second);
  assert.equal(blobs.blobOf('sha256:other'), undefined);
  assert.deepEqual(new Set(blobs.list()), new Set([first, second]));
  const handle = await blobs.open(first.digest);
  assert.equal(await handle.readFile('utf8'), 'first');
  await handle.close();
  assert.equal(statSync(join(folder, 'blobs')).mode & 0o777, 0o700);

  assert.equal(await blobs.verify(second.digest), true);
  writeFileSync(pathOf(folder, second.digest), 'sekond');
  assert.equal(await blobs.verify(second.digest), false);
  await blobs.remove(second.digest);
  await blobs.remove(second.digest);
  assert.equal(await blobs.verify(second.digest), false);
  assert.deepEqual(blobs.blobOf(first.diffId), first);
  await assert.rejects(
    blobs.open(second.digest),
    (error) => isError(error, 'NOT_FOUND') && error.message.includes(second.digest),
  );
});

test('collecting spares what images name and what a pull holds', async (t) => {
  const { blobs, folder } = await openAlone(t);
  const named = await put(blobs, folder, 'named');
  const held = await put(blobs, folder, 'held', 'sha256:held');
  const unneeded = await put(blobs, folder, 'unneeded');
  assert.equal(await blobs.collect(new Set([named.digest]), (diffId) => diffId === 'sha256:held'), 1);
  assert.deepEqual(new Set(blobs.list()), new Set([named, held]));
  assert.equal(existsSync(pathOf(folder, unneeded.digest)), false);
  assert.equal(await blobs.collect(new Set([named.digest])), 1);
  assert.deepEqual(blobs.list(), [named]);
});

test('a sweep makes files and rows agree again', async (t) => {
  const { blobs, db, folder } = await openAlone(t);
  const good = await put(blobs, folder, 'good');
  const gone = await put(blobs, folder, 'gone');
  const cut = await put(blobs, folder, 'cut short');
  rmSync(pathOf(folder, gone.digest));
  truncateSync(pathOf(folder, cut.digest), 3);
  writeFileSync(join(folder, 'blobs', 'sha256', 'f'.repeat(64)), 'no row');
  mkdirSync(join(folder, 'blobs', 'sha512', 'folder'), { recursive: true });
  const again = await openBlobs(db, folder, log);
  await again.sweep();
  assert.deepEqual(again.list(), [good]);
  assert.deepEqual(readdirSync(join(folder, 'blobs', 'sha256')), [good.digest.slice(7)]);
  assert.deepEqual(readdirSync(join(folder, 'blobs', 'sha512')), []);
});

test('a pull keeps the layers as they came, before it commits them', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  // The first connection breaks, so that a blob is put together from two.
  registry.fail(image.layers[0]!, { bytes: 100_000, how: 'break' });
  const { images, db, folder } = await openImages(t, { keepBlobs: true });
  db.statement(
    `CREATE TRIGGER blob_first BEFORE INSERT ON layers
     WHEN NOT EXISTS (SELECT 1 FROM blobs WHERE diff_id = NEW.diff_id)
     BEGIN SELECT RAISE(ABORT, 'the layer came before its blob'); END`,
  ).run();
  await images.pullImage({ image: `${registry.host}/a:1` });
  const blobs = await openBlobs(db, folder, log);
  for (const { digest, data, mediaType, diffId } of image.layers) {
    assert.deepEqual(blobs.blobOf(diffId), { digest, size: data.length, mediaType, diffId });
    assert.ok(readFileSync(pathOf(folder, digest)).equals(data));
  }
  assert.deepEqual(readdirSync(join(folder, 'blobs', 'partial')), []);
});

test('by default nothing is kept', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const { images, folder } = await openImages(t);
  await images.pullImage({ image: `${registry.host}/a:1` });
  assert.deepEqual(readdirSync(join(folder, 'blobs')), ['partial']);
  assert.deepEqual(readdirSync(join(folder, 'blobs', 'partial')), []);
});

test('a kept blob is used instead of the network, and replaced where it has rotted', { skip }, async (t) => {
  const [big, little] = image.layers as [(typeof image.layers)[number], (typeof image.layers)[number]];
  for (const keepBlobs of [false, true]) {
    for (const rotten of [false, true]) {
      const registry = await startFakeRegistry(t);
      registry.image('1', image);
      const { images, db, folder } = await openImages(t, { keepBlobs });
      const blobs = await openBlobs(db, folder, log);
      const { digest, mediaType, diffId, data } = big;
      const stored = rotten
        ? Buffer.concat([data.subarray(0, 200_000), Buffer.alloc(data.length - 200_000)])
        : data;
      writeFileSync(join(folder, 'incoming'), stored);
      await blobs.add(join(folder, 'incoming'), { digest, size: data.length, mediaType, diffId });
      await images.pullImage({ image: `${registry.host}/a:1` });
      assert.equal(registry.count(digest), rotten ? 1 : 0);
      assert.equal(registry.served(big), rotten ? data.length : 0);
      assert.equal(blobs.find(digest) !== undefined, keepBlobs || !rotten);
      if (blobs.find(digest) !== undefined) assert.ok(readFileSync(pathOf(folder, digest)).equals(data));
      assert.equal(blobs.find(little.digest) !== undefined, keepBlobs);
    }
  }
});

test('a good blob is not thrown away because its layer cannot be made', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const { images, db, folder } = await openImages(t, { limits: { entries: 1000, bytes: 100_000 } });
  const blobs = await openBlobs(db, folder, log);
  const { digest, mediaType, diffId, data } = image.layers[0]!;
  writeFileSync(join(folder, 'incoming'), data);
  await blobs.add(join(folder, 'incoming'), { digest, size: data.length, mediaType, diffId });
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), { code: 'LAYER_UNSAFE' });
  assert.equal(registry.count(digest), 0);
  assert.equal(await blobs.verify(digest), true);
  assert.ok(blobs.find(digest));
});
