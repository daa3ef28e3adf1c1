/** Verification of layers on disk: every kind of damage is found, and what is good is left alone. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  lchownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { ImagesOptions } from '../../../images/service.ts';
import { openStore } from '../../../images/store/store.ts';
import { makeVerifier } from '../../../images/store/verify.ts';
import { makeUnpackPool } from '../../../images/unpack/pool.ts';
import type { LayerReport } from '../../../runtime/api.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { openDatabase } from '../../../runtime/host/database.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { setXattr } from '../../../runtime/host/syscalls.ts';
import { startFakeRegistry } from '../../peers/fake-registry.ts';
import { buildImage } from '../../peers/image.ts';
import { openImages, temporaryFolder } from '../../peers/image-store.ts';
import type { TarEntry } from '../../peers/tar.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const big = Buffer.alloc(700_000, 'content of a large file ');

/** One of everything that a layer can have. */
const everything: TarEntry[] = [
  { path: './', type: 'directory', mode: 0o755, mtime: 1_600_000_000 },
  { path: 'usr', type: 'directory', mode: 0o755 },
  { path: 'usr/bin', type: 'directory', mode: 0o2775, gid: 50 },
  { path: 'usr/bin/tool', content: big, mode: 0o4755, xattrs: { 'security.capability': capability() } },
  { path: 'usr/bin/same', type: 'link', target: 'usr/bin/tool' },
  { path: 'usr/bin/alias', type: 'symlink', target: 'tool', uid: 7 },
  { path: 'bin', type: 'symlink', target: 'usr/bin' },
  {
    path: 'etc/implied/file',
    content: 'its folders have no entries',
    uid: 1000,
    gid: 1001,
    mtime: '1650000000.123456789',
  },
  { path: 'etc/empty', content: '' },
  { path: 'run/pipe', type: 'fifo', mode: 0o600 },
  { path: 'dev/null', type: 'char', major: 1, minor: 3, mode: 0o666 },
  { path: 'dev/disk', type: 'block', major: 259, minor: 300, mode: 0o640 },
  { path: 'var/.wh.gone' },
  { path: 'opt', type: 'directory', mode: 0o711, xattrs: { 'user.note': 'kept' } },
  { path: 'opt/.wh..wh..opq' },
  { path: `names/${'n'.repeat(180)}`, content: 'long' },
  { path: 'names/caf\u00e9', content: 'not ascii' },
];

function otherCapability(): Buffer {
  return capability(2);
}

function capability(bit = 13): Buffer {
  const bytes = Buffer.alloc(20);
  bytes.writeUInt32LE(0x02000001, 0);
  bytes.writeUInt32LE(1 << bit, 4);
  return bytes;
}

const image = buildImage({ layers: [{ files: everything }, { files: [{ path: 'other', content: 'x' }] }] });
const [rich, plain] = image.layers;

async function pulled(t: TestContext, options: Partial<ImagesOptions> = {}) {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const name = `${registry.host}/a:1`;
  const store = await openImages(t, options);
  await store.images.pullImage({ image: name });
  const layers = (await store.images.forContainer(name)).layers;
  return { ...store, registry, name, layer: layers[1]!, layers };
}

/** What was found of the rich layer, then of the plain one. */
function states(reports: readonly LayerReport[]): (string | undefined)[] {
  return [rich!, plain!].map((layer) => reports.find(({ diffId }) => diffId === layer.diffId)?.state);
}

const changes: Readonly<Record<string, { make: (layer: string) => void; finds: RegExp }>> = {
  'a byte of a file': { make: (at) => flip(join(at, 'usr/bin/tool'), 500_000), finds: /contents/ },
  'a file cut off': {
    make: (at) => keepingTimes(at, 'usr/bin/tool', (path) => truncateSync(path, 1000)),
    finds: /too short/,
  },
  'a file grown': {
    make: (at) => keepingTimes(at, 'etc/empty', (path) => writeFileSync(path, 'x')),
    finds: /has 1 bytes/,
  },
  'a file gone': { make: (at) => rmSync(join(at, 'etc/empty')), finds: /etc\/empty.*missing/ },
  'a file more': {
    make: (at) => writeFileSync(join(at, 'usr/bin/more'), ''),
    finds: /usr\/bin\/more.*not in the archive/,
  },
  'a folder more': {
    make: (at) => mkdirSync(join(at, 'more/deep'), { recursive: true }),
    finds: /more.*not in the archive/,
  },
  'a mode': { make: (at) => chmodSync(join(at, 'run/pipe'), 0o644), finds: /mode 644 instead of 600/ },
  'the mode of an implied folder': {
    make: (at) => chmodSync(join(at, 'etc/implied'), 0o700),
    finds: /etc\/implied.*mode 700/,
  },
  setuid: { make: (at) => chmodSync(join(at, 'usr/bin/tool'), 0o755), finds: /mode 755 instead of 4755/ },
  'an owner': {
    make: (at) => chownSync(join(at, 'etc/implied/file'), 0, 0),
    finds: /belongs to 0:0 instead of 1000:1001/,
  },
  'the owner of a link': {
    make: (at) => lchownSync(join(at, 'usr/bin/alias'), 0, 0),
    finds: /belongs to 0:0 instead of 7:0/,
  },
  'the owner of the root': { make: (at) => chownSync(at, 5, 0), finds: /its folder belongs to 5:0/ },
  'a time': { make: (at) => utimesSync(join(at, 'dev/null'), 1, 1), finds: /dev\/null.*another time/ },
  nanoseconds: {
    make: (at) => utimesSync(join(at, 'etc/implied/file'), 1_650_000_000, 1_650_000_000.5),
    finds: /another time/,
  },
  'a link target': {
    make: (at) => replaced(at, 'bin', (path) => symlinkSync('usr/sbin', path)),
    finds: /"bin" leads elsewhere/,
  },
  'a type': { make: (at) => replaced(at, 'etc/empty', (path) => mkdirSync(path)), finds: /is no file/ },
  'a folder that is a link out': {
    make: (at) => {
      renameSync(join(at, 'names'), join(at, '..', '..', 'names'));
      symlinkSync(join(at, '..', '..', 'names'), join(at, 'names'));
    },
    finds: /is not what it was/,
  },
  'a device number': {
    make: (at) =>
      replaced(at, 'dev/null', (path) => void execFileSync('mknod', ['-m', '666', path, 'c', '1', '5'])),
    finds: /is another device/,
  },
  'a whiteout gone': { make: (at) => rmSync(join(at, 'var/gone')), finds: /var\/gone.*missing/ },
  'a whiteout that hides nothing': {
    make: (at) => replaced(at, 'var/gone', (path) => void execFileSync('mknod', [path, 'c', '1', '3'])),
    finds: /is no whiteout/,
  },
  'opaqueness lost': {
    make: (at) => setXattr(join(at, 'opt'), 'trusted.overlay.opaque', Buffer.from('n')),
    finds: /opt.*is not opaque/,
  },
  'opaqueness added': {
    make: (at) => setXattr(join(at, 'usr'), 'trusted.overlay.opaque', Buffer.from('y')),
    finds: /usr.*is opaque/,
  },
  'a capability lost': {
    make: (at) => setXattr(join(at, 'usr/bin/tool'), 'security.capability', otherCapability()),
    finds: /another security.capability/,
  },
  'a user attribute': {
    make: (at) => setXattr(join(at, 'opt'), 'user.note', Buffer.from('lost')),
    finds: /another user.note/,
  },
  'a hard link that is a copy': {
    make: (at) =>
      void execFileSync('sh', ['-c', 'cp -a usr/bin/same c && mv -f c usr/bin/same'], { cwd: at }),
    finds: /not linked/,
  },
  'a map cut off': { make: (at) => truncateSync(`${at}.map`, 40), finds: /its map/ },
  'a byte of a map': { make: (at) => flip(`${at}.map`, 60), finds: /./ },
  'no folder': { make: (at) => rmSync(at, { recursive: true }), finds: /is not there/ },
};

function flip(path: string, at: number): void {
  const bytes = readFileSync(path);
  bytes[at]! ^= 1;
  writeFileSync(path, bytes);
}

function keepingTimes(folder: string, name: string, change: (path: string) => void): void {
  change(join(folder, name));
  utimesSync(join(folder, name), 1_700_000_000, 1_700_000_000);
}

function replaced(folder: string, name: string, make: (path: string) => void): void {
  rmSync(join(folder, name), { recursive: true });
  make(join(folder, name));
}

test('a whole store is good, layer by layer, and stays as it is', { skip }, async (t) => {
  const { images, name, layers } = await pulled(t);
  const told: LayerReport[] = [];
  const reports = await images.verifyImages({ repair: true, onLayer: (report) => told.push(report) });
  assert.deepEqual(told, reports);
  assert.deepEqual(
    reports.map((report) => ({ ...report })).sort((a, b) => (a.diffId < b.diffId ? -1 : 1)),
    [rich!, plain!]
      .map(({ diffId }) => ({ diffId, images: [name], state: 'good', message: '' }))
      .sort((a, b) => (a.diffId < b.diffId ? -1 : 1)),
  );
  assert.deepEqual((await images.forContainer(name)).layers, layers);
});

test('every kind of damage is found and named, and only in the layer that has it', { skip }, async (t) => {
  const { images, layer, folder } = await pulled(t);
  const backup = join(folder, 'backup');
  execFileSync('cp', ['-a', '--preserve=all', layer, backup]);
  execFileSync('cp', ['-a', `${layer}.map`, `${backup}.map`]);
  for (const [what, { make, finds }] of Object.entries(changes)) {
    make(layer);
    const reports = await images.verifyImages();
    const damaged = reports.filter(({ state }) => state === 'damaged');
    assert.deepEqual(
      damaged.map(({ diffId }) => diffId),
      [rich!.diffId],
      what,
    );
    assert.match(damaged[0]!.message, finds, what);
    rmSync(layer, { recursive: true, force: true });
    execFileSync('cp', ['-a', '--preserve=all', backup, layer]);
    execFileSync('cp', ['-a', `${backup}.map`, `${layer}.map`]);
  }
  const after = await images.verifyImages();
  assert.deepEqual(states(after), ['good', 'good'], after[0]!.message);
});

test('without a repair nothing changes; with one a damaged layer is pulled again, and only that', {
  skip,
}, async (t) => {
  let lost = 0;
  const { images, layers, registry, name, folder, close } = await pulled(t, { onImageLost: () => lost++ });
  images.lease(image.id, 'container');
  flip(join(layers[1]!, 'usr/bin/tool'), 1);
  await images.verifyImages();
  assert.deepEqual((await images.forContainer(name)).layers, layers);

  assert.equal(lost, 0);
  assert.deepEqual(states(await images.verifyImages({ repair: true })), ['damaged', 'good']);
  assert.equal(lost, 1);
  assert.equal(await images.imageStatus({ image: name }), undefined);
  await assert.rejects(images.forContainer(image.id), { code: 'IMAGE_NOT_PRESENT' });
  assert.deepEqual(await images.listImages(), []);

  const before = registry.count(plain!.digest);
  assert.equal(await images.pullImage({ image: name }), image.id);
  assert.equal(registry.count(plain!.digest), before);
  const again = (await images.forContainer(name)).layers;
  assert.equal(again[0], layers[0]);
  assert.notEqual(again[1], layers[1]);
  assert.deepEqual(states(await images.verifyImages()), ['good', 'good']);

  // The container that runs from the damaged layer keeps it until it goes.
  assert.deepEqual(readdirSync(layers[1]!), readdirSync(again[1]!));
  images.release('container');
  await close();
  assert.deepEqual(readdirSync(join(folder, 'layers')).length, 4);
});

test('a damaged layer that turns out to be whole counts again', { skip }, async (t) => {
  const { images, layer, name, folder } = await pulled(t);
  renameSync(layer, join(folder, 'away'));
  assert.equal(states(await images.verifyImages({ repair: true }))[0], 'damaged');
  assert.equal(await images.imageStatus({ image: name }), undefined);
  renameSync(join(folder, 'away'), layer);
  assert.equal(states(await images.verifyImages({ repair: true }))[0], 'good');
  assert.equal((await images.imageStatus({ image: name }))?.id, image.id);
});

test('a kept blob repairs without the network; a damaged blob does not', { skip }, async (t) => {
  const { layer, close, folder } = await pulled(t);
  await close();
  const log = makeLogger('silent');
  const db = openDatabase(join(folder, 'state.db'));
  const store = await openStore(db, folder, log);
  const unpack = makeUnpackPool({ clock: systemClock });
  t.after(async () => {
    await unpack.close();
    await store.close();
    db.close();
  });
  const path = join(temporaryFolder(t), 'blob');
  const digest = rich!.digest;
  const blobs = {
    blobOf: (diffId: string) => (diffId === rich!.diffId ? { digest, size: rich!.data.length } : undefined),
    open: () => open(path),
  };
  const { verifyImages } = makeVerifier({ store, unpack, log, blobs });
  flip(join(layer, 'usr/bin/tool'), 1);
  const wrong = Buffer.from(rich!.data);
  wrong[wrong.length >> 1]! ^= 1;
  writeFileSync(path, wrong);
  assert.deepEqual(states(await verifyImages({ repair: true })), ['damaged', 'good']);
  assert.equal(store.findImage(image.id), undefined);
  writeFileSync(path, rich!.data);
  assert.deepEqual(states(await verifyImages({ repair: true })), ['repaired', 'good']);
  assert.ok(store.findImage(image.id));
  assert.deepEqual(states(await verifyImages()), ['good', 'good']);
  const hash = createHash('sha256').update(
    readFileSync(join(store.layerFolders(image.id)[1]!, 'usr/bin/tool')),
  );
  assert.equal(hash.digest('hex'), createHash('sha256').update(big).digest('hex'));
});

test('an abort ends it at once, and the next run is a whole one', { skip }, async (t) => {
  const { images } = await pulled(t);
  const controller = new AbortController();
  const run = images.verifyImages({ signal: controller.signal, onLayer: () => controller.abort() });
  await assert.rejects(run, { code: 'ABORTED' });
  await assert.rejects(images.verifyImages({ signal: AbortSignal.abort() }), { code: 'ABORTED' });
  assert.equal((await images.verifyImages()).length, 2);
});

test('after a power cut the newest layers are verified, after a kill or a restart in order they are not', {
  skip,
}, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const name = `${registry.host}/a:1`;
  const folder = temporaryFolder(t);
  const first = await openImages(t, { folder, bootId: 'one' });
  await first.images.pullImage({ image: name });
  const [, layer] = (await first.images.forContainer(name)).layers;
  await first.close();
  flip(join(layer!, 'usr/bin/tool'), 1);

  /** Opens as after boot `bootId`; returns whether the image was there when all was verified. */
  const isThere = async (bootId: string, end: 'order' | 'cut') => {
    const opened = await openImages(t, { folder, bootId });
    await opened.images.verifyImages({ signal: AbortSignal.abort() }).catch(() => {}); // Runs after that of the start.
    const found = await opened.images.imageStatus({ image: name });
    await opened.close();
    if (end === 'cut') {
      const db = openDatabase(join(folder, 'state.db'));
      db.statement('UPDATE image_store_run SET open = 1').run();
      db.close();
    }
    return found !== undefined;
  };
  // The layers have not settled: the store has been open for a moment only.
  assert.equal(await isThere('one', 'cut'), true, 'closed in order, same boot');
  assert.equal(await isThere('one', 'cut'), true, 'killed, same boot');
  assert.equal(await isThere('two', 'order'), false, 'another boot in the middle of a run');

  const again = await openImages(t, { folder, bootId: 'two' });
  await again.images.pullImage({ image: name });
  const repulled = (await again.images.forContainer(name)).layers[1]!;
  await again.close();
  flip(join(repulled, 'usr/bin/tool'), 1);
  assert.equal(await isThere('three', 'cut'), true, 'another boot after an end in order');
  assert.equal(await isThere('four', 'order'), true, 'they had settled by then');
});

test('a layer that a power cut found unwritten is not used before it has been verified; whole ones stay', {
  skip,
}, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const name = `${registry.host}/a:1`;
  const folder = temporaryFolder(t);
  const before = await openImages(t, { folder, bootId: 'one' });
  await before.images.pullImage({ image: name });
  const { layers } = await before.images.forContainer(name);
  const unwritten = 'SELECT count(*) AS count FROM layers WHERE synced = 0';
  assert.equal(
    before.db.statement(unwritten).get()?.['count'],
    layers.length,
    'used before they are written',
  );
  await before.close();
  const cut = (change: string) => {
    const db = openDatabase(join(folder, 'state.db'));
    assert.equal(db.statement(unwritten).get()?.['count'], 0, 'an end in order waits for the disk');
    db.statement(change).run();
    db.statement('UPDATE image_store_run SET open = 1').run();
    db.close();
  };

  cut('UPDATE layers SET synced = 0');
  const whole = await openImages(t, { folder, bootId: 'two' });
  const fetched = registry.seen.length;
  // Asked for at once: the answer waits for the verification.
  assert.ok((await whole.images.imageStatus({ image: name })) !== undefined, 'nothing was hurt');
  assert.deepEqual((await whole.images.forContainer(name)).layers, layers);
  assert.equal(registry.seen.length, fetched, 'without the network');
  await whole.close();

  cut('UPDATE layers SET synced = 0');
  flip(join(layers[1]!, 'usr/bin/tool'), 1);
  const hurt = await openImages(t, { folder, bootId: 'three' });
  assert.equal(await hurt.images.imageStatus({ image: name }), undefined);
  await assert.rejects(hurt.images.forContainer(name), (error) => isError(error, 'IMAGE_NOT_PRESENT'));
  await hurt.images.pullImage({ image: name });
  const mended = (await hurt.images.forContainer(name)).layers;
  assert.deepEqual([mended[0], mended[1] !== layers[1]], [layers[0], true], 'the good one stays');
  await hurt.close();

  // Killed, but the machine went on: what the kernel was given is written by the next run.
  const db = openDatabase(join(folder, 'state.db'));
  db.statement('UPDATE layers SET synced = 0').run();
  db.close();
  const killed = await openImages(t, { folder, bootId: 'three' });
  assert.ok((await killed.images.imageStatus({ image: name })) !== undefined);
  await killed.close();
  cut('UPDATE layers SET added = added');
});

test('a layer whose row a power cut took comes back; what is not whole goes', { skip }, async (t) => {
  const { db, folder, layers, registry, name, close } = await pulled(t);
  db.statement('DELETE FROM images').run();
  db.statement('DELETE FROM layers').run();
  await close();
  flip(join(layers[0]!, 'other'), 0);

  const after = await openImages(t, { folder });
  const reports = await after.images.verifyImages();
  assert.deepEqual(reports, [{ diffId: rich!.diffId, images: [], state: 'good', message: '' }]);
  const asked = registry.count(rich!.digest);
  await after.images.pullImage({ image: name });
  assert.equal(registry.count(rich!.digest), asked);
  assert.deepEqual(states(await after.images.verifyImages()), ['good', 'good']);
  await after.close();
});

test('a power cut that hurt a layer is mended at the next start from the kept blob, without a registry', {
  skip,
}, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const folder = temporaryFolder(t);
  const name = `${registry.host}/a:1`;
  const before = await openImages(t, { folder, bootId: 'one', keepBlobs: true });
  await before.images.pullImage({ image: name });
  const [, layer] = (await before.images.forContainer(name)).layers;
  await before.close();
  await registry.close();
  const db = openDatabase(join(folder, 'state.db'));
  db.statement('UPDATE image_store_run SET open = 1').run();
  db.close();
  flip(join(layer!, 'usr/bin/tool'), 7);
  const after = await openImages(t, { folder, bootId: 'two' });
  const reports = await after.images.verifyImages(); // Its turn is after that of the start.
  assert.deepEqual(states(reports), ['good', 'good']);
  const mended = (await after.images.forContainer(name)).layers[1]!;
  assert.notEqual(mended, layer);
  assert.deepEqual(readFileSync(join(mended, 'usr/bin/tool')), big);
  await after.close();
  assert.equal(readdirSync(join(folder, 'layers')).length, 4, 'nobody had the damaged one mounted');
});

test('a replaced layer stays for its containers over restarts, until the last of them or the boot ends', {
  skip,
}, async (t) => {
  for (const end of ['containers', 'boot'] as const) {
    const registry = await startFakeRegistry(t);
    registry.image('1', image);
    const name = `${registry.host}/a:1`;
    const folder = temporaryFolder(t);
    const first = await openImages(t, { folder, bootId: 'one' });
    await first.images.pullImage({ image: name });
    for (const holder of ['a', 'b']) first.images.lease(image.id, holder);
    const old = (await first.images.forContainer(name)).layers[1]!;
    flip(join(old, 'usr/bin/tool'), 7);
    await first.images.verifyImages({ repair: true });
    await first.images.pullImage({ image: name });
    await first.close();

    const second = await openImages(t, { folder, bootId: end === 'boot' ? 'two' : 'one' });
    await second.images.verifyImages();
    if (end === 'containers') {
      second.images.release('a');
      assert.ok(readdirSync(old).length > 0);
      second.images.lease(image.id, 'c');
      second.images.release('b');
    }
    await second.close();
    assert.equal(readdirSync(join(folder, 'layers')).length, 4, end);
    assert.throws(() => readdirSync(old), { code: 'ENOENT' });
  }
});
