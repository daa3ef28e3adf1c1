/** Collection against everything that can go on at the same time: pulls, leases, pins, restarts. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { EmbeddedImages } from '../../../images/service.ts';
import type { Clock } from '../../../runtime/host/clock.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { startFakeRegistry } from '../../peers/fake-registry.ts';
import { buildImage } from '../../peers/image.ts';
import { openImages, temporaryFolder } from '../../peers/image-store.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const shared = { files: [{ path: 'shared', content: 'shared' }] };
const one = buildImage({ layers: [shared, { files: [{ path: 'one', content: '1' }] }] });
const two = buildImage({ layers: [shared, { files: [{ path: 'two', content: '22' }] }] });

async function registryOf(t: TestContext) {
  const registry = await startFakeRegistry(t);
  registry.image('1', one);
  registry.image('2', two);
  return { registry, first: `${registry.host}/a:1`, second: `${registry.host}/a:2` };
}

/** What garbage collection does when it may take everything. */
function collectAll(images: EmbeddedImages, wanted: readonly string[] = []): string[] {
  images.collectLayers(0);
  return images
    .imageUse(wanted)
    .filter(({ inUse, pinned }) => !inUse && !pinned)
    .map(({ id }) => id)
    .filter((id) => images.collectImage(id));
}

test('what is leased, pinned or wanted is told as in use, and cannot be collected but for the last', {
  skip,
}, async (t) => {
  const { first, second } = await registryOf(t);
  const { images, db } = await openImages(t);
  await images.pullImage({ image: first });
  await images.pullImage({ image: second });
  images.lease(one.id, 'container');
  db.statement('UPDATE images SET pinned = 1 WHERE id = ?').run(two.id);
  const use = (wanted: string[] = []) =>
    new Map(images.imageUse(wanted).map(({ id, inUse, pinned }) => [id, { inUse, pinned }]));
  assert.deepEqual(use().get(one.id), { inUse: true, pinned: false });
  assert.deepEqual(use().get(two.id), { inUse: false, pinned: true });
  assert.deepEqual(
    [images.collectImage(one.id), images.collectImage(two.id), images.collectImage('sha256:0')],
    [false, false, false],
  );
  images.release('container');
  for (const wanted of [first, one.id, first.replace(':1', `@${one.manifest.digest}`)]) {
    assert.equal(use([wanted, 'not a % reference']).get(one.id)?.inUse, true, wanted);
  }
  assert.equal(use([second]).get(one.id)?.inUse, false);
  assert.equal(images.collectImage(one.id), true);
  assert.equal((await images.imageStatus({ image: second }))?.id, two.id);
});

test('sizes are those of the layers, and of those that a pull needs nothing', { skip }, async (t) => {
  const { registry, first, second } = await registryOf(t);
  const { images } = await openImages(t);
  await images.pullImage({ image: first });
  const sizes = () =>
    new Map(images.imageUse([]).flatMap(({ layers }) => layers.map(({ diffId, size }) => [diffId, size])));
  const [base, own] = one.layers.map(({ diffId }) => diffId);
  assert.deepEqual([sizes().get(base!), sizes().get(own!)], [6, 1]);
  let during: number | undefined;
  registry.intercept = (request) => {
    if (request.url?.endsWith(two.layers[1]!.digest)) during = sizes().get(base!);
    return false;
  };
  await images.pullImage({ image: second });
  assert.equal(during, 0);
  assert.equal(sizes().get(base!), 6);
});

test('a collection at any moment of a pull leaves the pulled image whole', { skip }, async (t) => {
  const { registry, first, second } = await registryOf(t);
  const requests = [`/manifests/2`, two.config.digest, two.layers[0]!.digest, two.layers[1]!.digest];
  for (const held of requests) {
    for (const alreadyThere of [false, true]) {
      const { images, folder, close } = await openImages(t);
      if (alreadyThere) await images.pullImage({ image: first });
      let collected = 0;
      registry.intercept = (request) => {
        if (request.url?.endsWith(held)) {
          collectAll(images);
          collected++;
        }
        return false;
      };
      // And at each turn of the event loop while the rest of the pull goes on.
      let pulling = true;
      const collecting = (async () => {
        while (pulling) {
          if (collected > 0) collectAll(images);
          await new Promise(setImmediate);
        }
      })();
      const what = `${held}, ${alreadyThere}`;
      // It may be collected as soon as it is there: its files are then gone, but never half of them.
      await images.pullImage({ image: second });
      pulling = false;
      await collecting;
      registry.intercept = () => false;
      await images.pullImage({ image: second });
      const { layers } = await images.forContainer(two.id);
      assert.equal(readFileSync(join(layers[1]!, 'shared'), 'utf8'), 'shared', what);
      assert.equal(readFileSync(join(layers[0]!, 'two'), 'utf8'), '22', what);
      assert.ok(
        (await images.verifyImages()).every(({ state }) => state === 'good'),
        what,
      );
      await close();
      assert.deepEqual(readdirSync(join(folder, 'staging')), [], what);
    }
  }
});

test('a lease that comes first keeps the image, one that comes second fails cleanly', { skip }, async (t) => {
  const { first } = await registryOf(t);
  const { images } = await openImages(t);
  await images.pullImage({ image: first });
  const { id } = await images.forContainer(first);
  const [lease, collect] = [() => images.lease(id, 'c'), () => images.collectImage(id)];
  lease();
  assert.equal(collect(), false);
  images.release('c');
  assert.equal(collect(), true);
  assert.throws(lease, { code: 'IMAGE_NOT_PRESENT' });
  assert.deepEqual(images.imageUse([]), []);
});

test('the time of the last use outlives a restart: a pull, a lease and a release are uses', {
  skip,
}, async (t) => {
  const { first } = await registryOf(t);
  const folder = temporaryFolder(t);
  let offset = 0;
  const clock: Clock = { ...systemClock, now: () => 1_800_000_000_000 + offset };
  const lastUsed = (images: EmbeddedImages) => images.imageUse([])[0]!.lastUsedAt - 1_800_000_000_000;
  const before = await openImages(t, { folder, clock });
  await before.images.pullImage({ image: first });
  assert.equal(lastUsed(before.images), 0);
  offset = 1000;
  before.images.lease(one.id, 'c');
  assert.equal(lastUsed(before.images), 1000);
  offset = 2000;
  assert.equal(lastUsed(before.images), 1000);
  before.images.release('c');
  offset = 3000;
  await before.close();
  const after = await openImages(t, { folder, clock });
  assert.equal(lastUsed(after.images), 2000);
  await after.images.pullImage({ image: first });
  assert.equal(lastUsed(after.images), 3000);
});

test('layers of a broken pull wait for the next try, for as long as they are given', { skip }, async (t) => {
  const { registry, first } = await registryOf(t);
  let offset = 0;
  const clock: Clock = { ...systemClock, now: () => 1_800_000_000_000 + offset };
  const { images, db } = await openImages(t, { clock, parallelDownloads: 1 });
  const bad = one.layers[1]!.digest;
  registry.intercept = (request, response) => {
    if (!request.url?.endsWith(bad)) return false;
    const whenOtherIsThere = () => {
      if (db.statement('SELECT 1 FROM layers').get() === undefined) setTimeout(whenOtherIsThere, 5);
      else response.writeHead(404).end();
    };
    whenOtherIsThere();
    return true;
  };
  await assert.rejects(images.pullImage({ image: first }), { code: 'IMAGE_NOT_FOUND' });
  offset = 1000;
  assert.equal(images.collectLayers(1001), 0);
  assert.equal(images.collectLayers(1000), 6);
  assert.equal(images.collectLayers(0), 0);
  registry.intercept = () => false;
  assert.equal(await images.pullImage({ image: first }), one.id);
});

test('kept blobs go with their layers, and not before', { skip }, async (t) => {
  const { first, second } = await registryOf(t);
  const { images, folder, db, close } = await openImages(t, { keepBlobs: true });
  await images.pullImage({ image: first });
  await images.pullImage({ image: second });
  const kept = () =>
    db
      .statement('SELECT digest FROM blobs ORDER BY digest')
      .all()
      .map(({ digest }) => digest);
  const all = [...new Set([...one.layers, ...two.layers].map(({ digest }) => digest))].sort();
  assert.equal(images.collectLayers(0), 0);
  assert.deepEqual(kept(), all);
  images.collectLayers(0);
  assert.equal(images.collectImage(two.id), true);
  await close();
  const left = one.layers.map(({ digest }) => digest.slice('sha256:'.length)).sort();
  assert.deepEqual(readdirSync(join(folder, 'blobs', 'sha256')).sort(), left);
});
