/** The folder whose archives are imported by themselves. */
import assert from 'node:assert/strict';
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import {
  type ImageFolder,
  type ImageFolderEvent,
  isArchiveName,
  watchImageFolder,
} from '../../images/archive/watch.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { hasWriter } from '../../runtime/host/syscalls.ts';
import { namedLayout, tarOf, writeFolder } from '../peers/archive.ts';
import { buildImage } from '../peers/image.ts';
import { openImages, type TestStore, temporaryFolder } from '../peers/image-store.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const settleMs = 40;
const build = (content: string) => buildImage({ layers: [{ files: [{ path: 'content', content }] }] });
const [one, two] = [build('one'), build('two')];
const archiveOf = (image: typeof one, name: string) => tarOf(namedLayout([{ image, tags: [name] }]));

/** Watches `images/` of a store and tells its events one after the other. */
function start(
  t: TestContext,
  store: TestStore,
): ImageFolder & { next(): Promise<ImageFolderEvent>; imports: string[] } {
  const events: ImageFolderEvent[] = [];
  const waiting: ((event: ImageFolderEvent) => void)[] = [];
  const imports: string[] = [];
  const watched = watchImageFolder({
    folder: join(store.folder, 'images'),
    db: store.db,
    images: {
      imageStatus: store.images.imageStatus,
      importImages(path, options) {
        imports.push(path.slice(path.lastIndexOf('/') + 1));
        return store.images.importImages(path, options);
      },
    },
    log: makeLogger('silent'),
    clock: systemClock,
    settleMs,
    onEvent: (event) => {
      const first = waiting.shift();
      if (first === undefined) events.push(event);
      else first(event);
    },
  });
  t.after(watched.close); // Also where a test fails half-way.
  return {
    ...watched,
    imports,
    next: () =>
      new Promise((resolve) => {
        const event = events.shift();
        if (event === undefined) waiting.push(resolve);
        else resolve(event);
      }),
  };
}

/** Writes a file that looks as if it had been there for long. */
function put(folder: string, name: string, bytes: Buffer): string {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, name);
  writeFileSync(path, bytes);
  utimesSync(path, 1_700_000_000, 1_700_000_000);
  return path;
}

function idsOf(event: ImageFolderEvent): string[] {
  assert.equal(event.type, 'imported', event.type === 'failed' ? String(event.error) : '');
  return event.type === 'imported' ? event.images.map(({ id }) => id) : [];
}

test('which names may be archives', () => {
  for (const name of ['a.tar', 'a', 'k3s-airgap.tar.zst', 'a.tgz', 'layout']) assert.ok(isArchiveName(name));
  for (const name of ['.a.tar.x7Yz', 'a.tar~', 'a.tar.part', 'a.tar.crdownload', 'a.tar.sha256', 'list.txt'])
    assert.ok(!isArchiveName(name), name);
});

test('who writes a file is known', { skip }, (t) => {
  const path = put(temporaryFolder({ after: (fn) => t.after(fn) }), 'file', Buffer.from('x'));
  const reader = openSync(path, 'r');
  assert.equal(hasWriter(reader), false);
  const writer = openSync(path, 'a');
  assert.equal(hasWriter(reader), true);
  closeSync(writer);
  assert.equal(hasWriter(reader), false);
  closeSync(reader);
});

test('what is there is imported and pinned once, and again only when it changes', { skip }, async (t) => {
  const store = await openImages(t);
  const folder = join(store.folder, 'images');
  const path = put(folder, 'one.tar', archiveOf(one, 'one:1'));
  put(folder, 'broken.tar', Buffer.from('nonsense'));
  put(folder, 'broken.tar.part', Buffer.from('nonsense'));
  const layout = writeFolder(join(folder, 'layout'), namedLayout([{ image: two, tags: ['two:1'] }]));
  for (const name of readdirSync(layout, { recursive: true, encoding: 'utf8' })) {
    utimesSync(join(layout, name), 1_700_000_000, 1_700_000_000);
  }
  utimesSync(layout, 1_700_000_000, 1_700_000_000);

  const first = start(t, store);
  const failed = await first.next();
  assert.ok(failed.type === 'failed' && isError(failed.error, 'IMAGE_INVALID'));
  assert.equal(failed.file, join(folder, 'broken.tar'));
  assert.deepEqual(idsOf(await first.next()), [two.id]);
  assert.deepEqual(idsOf(await first.next()), [one.id]);
  await first.ready;
  await first.close();
  assert.deepEqual(first.imports, ['broken.tar', 'layout', 'one.tar']);
  for (const image of ['one:1', 'two:1']) {
    assert.equal((await store.images.imageStatus({ image }))?.pinned, true);
  }

  const second = start(t, store);
  await second.ready;
  assert.deepEqual(second.imports, []);
  put(folder, 'two.tar', archiveOf(two, 'again:1'));
  assert.deepEqual(idsOf(await second.next()), [two.id]);
  put(folder, 'broken.tar', archiveOf(one, 'fixed:1'));
  assert.deepEqual(idsOf(await second.next()), [one.id]);
  await second.close();

  // An image that was removed comes back at the next start, with the archive that still has it.
  await store.images.removeImage({ image: one.id });
  rmSync(path);
  const third = start(t, store);
  await third.ready;
  assert.deepEqual(third.imports, ['broken.tar']);
  assert.equal((await store.images.imageStatus({ image: 'fixed:1' }))?.pinned, true);
  // A removed archive takes nothing with it.
  rmSync(join(folder, 'broken.tar'));
  rmSync(join(folder, 'two.tar'));
  put(folder, 'one.tar.gz', gzipSync(archiveOf(one, 'one:1')));
  assert.deepEqual(idsOf(await third.next()), [one.id]);
  await third.close();
  assert.equal((await store.images.imageStatus({ image: 'again:1' }))?.pinned, true);
});

test('a file that is being written is waited for; one that is moved there is taken', { skip }, async (t) => {
  const store = await openImages(t);
  const folder = join(store.folder, 'images');
  const watched = start(t, store);
  await watched.ready;
  assert.ok(existsSync(folder));
  const bytes = archiveOf(one, 'one:1');
  const file = openSync(join(folder, 'slow.tar'), 'w');
  writeSync(file, bytes.subarray(0, 1000));
  // Complete and old, it overtakes the one that is still open however long that has been quiet.
  const elsewhere = put(join(store.folder, 'elsewhere'), 'two.tar', archiveOf(two, 'two:1'));
  renameSync(elsewhere, join(folder, 'two.tar'));
  assert.deepEqual(idsOf(await watched.next()), [two.id]);
  assert.deepEqual(watched.imports, ['two.tar']);
  put(folder, 'three.tar', archiveOf(two, 'three:1'));
  assert.deepEqual(idsOf(await watched.next()), [two.id]);
  writeSync(file, bytes.subarray(1000));
  closeSync(file);
  assert.deepEqual(idsOf(await watched.next()), [one.id]);
  assert.deepEqual(watched.imports, ['two.tar', 'three.tar', 'slow.tar']);
  await watched.close();
});

test('a folder that is removed and made again is watched again', { skip }, async (t) => {
  const store = await openImages(t);
  const folder = join(store.folder, 'images');
  const watched = start(t, store);
  await watched.ready;
  rmSync(folder, { recursive: true });
  put(folder, 'one.tar', archiveOf(one, 'one:1'));
  assert.deepEqual(idsOf(await watched.next()), [one.id]);
  put(folder, 'two.tar', archiveOf(two, 'two:1'));
  assert.deepEqual(idsOf(await watched.next()), [two.id]);
  await watched.close();
});

test('a failure that is not the fault of the archive is forgotten with the process', { skip }, async (t) => {
  const store = await openImages(t);
  const path = put(join(store.folder, 'images'), 'one.tar', archiveOf(one, 'one:1'));
  const full: TestStore = {
    ...store,
    images: {
      ...store.images,
      async importImages() {
        throw new KeelsonError('STORAGE_FULL', 'no space');
      },
    },
  };
  const first = start(t, full);
  assert.equal((await first.next()).type, 'failed');
  await first.ready;
  copyFileSync(path, `${path}.txt`); // Wakes the watch for nothing.
  await first.close();
  assert.deepEqual(first.imports, ['one.tar']);
  const second = start(t, store);
  assert.deepEqual(idsOf(await second.next()), [one.id]);
  await second.close();
});
