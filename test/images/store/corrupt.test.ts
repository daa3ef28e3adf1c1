/**
 * Files and folders of a store, its database among them, are damaged at random. The store opens all the same, verification
 * finds what is damaged, what is whole stays and is not fetched again, and a pull makes all of it whole.
 * `KEELSON_TEST_SEED` repeats a day's run, `KEELSON_TEST_ROUNDS` makes it longer.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeImages } from '../../../images/service.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { openDatabase, type Salvage } from '../../../runtime/host/database.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { startFakeRegistry } from '../../peers/fake-registry.ts';
import { buildImage } from '../../peers/image.ts';
import { temporaryFolder } from '../../peers/image-store.ts';
import type { TarEntry } from '../../peers/tar.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

/** All folders have entries: others have the time when they were made. */
const files = (name: string): TarEntry[] => [
  ...['.', name, `${name}/deep`, `${name}/deep/er`].map((path) => ({
    path,
    type: 'directory' as const,
    mode: 0o755,
  })),
  ...Array.from({ length: 12 }, (_, at) => ({
    path: `${name}/${at}`,
    content: `${name} ${at} `.repeat(500 * at),
    mode: 0o640,
  })),
  { path: `${name}/link`, type: 'symlink', target: '3' },
  { path: `${name}/deep/er/file`, content: name, uid: 12 },
];
const one = buildImage({ layers: [{ files: files('base') }, { files: files('one') }] });
const two = buildImage({ layers: [{ files: files('base') }, { files: files('two') }] });
const layers = new Map([...one.layers, ...two.layers].map((layer) => [layer.diffId, layer]));

/** Numbers in [0, 1), the same for the same seed (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function overwrite(path: string, at: number, bytes: Buffer): void {
  const fd = openSync(path, 'r+');
  writeSync(fd, bytes, 0, bytes.length, at);
  closeSync(fd);
}

/** Damages something below `folder`; returns its path in words. */
function damage(folder: string, random: () => number): string {
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;
  const all = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter(
    (name) => !name.endsWith('.lock'),
  );
  // Each kind of file often enough, though layers have the most.
  const kinds = [/^state\.db/, /\.map$/, /^layers\/[0-9a-z]+\//, /^layers\/[0-9a-z]+$/, /^blobs\//, /./];
  const wanted = pick(kinds);
  const name = pick(all.filter((one) => wanted.test(one)));
  if (name === undefined) return 'nothing';
  const path = join(folder, name);
  const found = lstatSync(path);
  if (!found.isFile()) {
    rmSync(path, { recursive: true });
    if (random() < 0.3) writeFileSync(path, 'a file instead');
    return `${name} gone or replaced`;
  }
  const at = Math.floor(random() * found.size);
  const how = pick(['flip', 'page', 'cut', 'empty', 'gone', 'grow']);
  if (how === 'flip') overwrite(path, at, Buffer.from([Math.floor(random() * 256)]));
  else if (how === 'page') overwrite(path, at - (at % 4096), Buffer.alloc(4096));
  else if (how === 'cut') truncateSync(path, at);
  else if (how === 'empty') truncateSync(path);
  else if (how === 'gone') rmSync(path);
  else overwrite(path, found.size, Buffer.alloc(1 + Math.floor(random() * 5000), 0xa5));
  return `${name} ${how} at ${at} of ${found.size}`;
}

/** Of all that a layer is: names, contents and attributes. */
function fingerprint(folder: string): string {
  if (!existsSync(folder) || !lstatSync(folder).isDirectory()) return 'gone';
  const options =
    '--sort=name --numeric-owner --xattrs --xattrs-include=* --format=posix --pax-option=delete=atime,delete=ctime';
  return execFileSync('sh', ['-c', `tar -C "$0" ${options} -cf - . 2>/dev/null | sha256sum`, folder], {
    encoding: 'utf8',
  });
}

test('a damaged store opens, tells what is damaged, keeps what is whole, and is whole after a pull', {
  skip,
  timeout: 3_600_000,
}, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', one);
  registry.image('2', two);
  const names = [`${registry.host}/a:1`, `${registry.host}/a:2`];
  const root = temporaryFolder(t);
  const salvages: Salvage[] = [];
  const open = async (folder: string, keepBlobs: boolean, bootId?: string) => {
    const db = openDatabase(join(folder, 'state.db'), { onSalvage: (salvage) => salvages.push(salvage) });
    const log = makeLogger('silent');
    const images = await makeImages({ db, stateDir: folder, log, clock: systemClock, keepBlobs, bootId });
    return { db, images, close: () => images.close().then(() => db.close()) };
  };

  /** Whole stores to start from, without blobs and with, and which folder has which layer. */
  const templates = new Map<
    boolean,
    { folder: string; folders: Map<string, string>; prints: Map<string, string> }
  >();
  for (const keepBlobs of [false, true]) {
    const folder = join(root, `template ${keepBlobs}`);
    mkdirSync(folder);
    const { images, db, close } = await open(folder, keepBlobs);
    for (const name of names) await images.pullImage({ image: name });
    const folders = new Map<string, string>();
    for (const row of db.statement('SELECT diff_id, number FROM layers').all()) {
      folders.set(String(row['diff_id']), join('layers', Number(row['number']).toString(36)));
    }
    // As a power cut leaves it: with a log that is not in the database yet.
    execFileSync('cp', ['-a', folder, `${folder} cut`]);
    await close();
    const prints = new Map([...folders].map(([diffId, path]) => [diffId, fingerprint(join(folder, path))]));
    templates.set(keepBlobs, { folder, folders, prints });
  }

  const seed = Number(process.env['KEELSON_TEST_SEED'] ?? Date.now() % 1_000_000);
  const rounds = Number(process.env['KEELSON_TEST_ROUNDS'] ?? 25);
  t.diagnostic(`${rounds} rounds, seed ${seed}`);
  let repaired = 0;
  for (let round = 0; round < rounds; round++) {
    const random = randomFrom(seed + round);
    const keepBlobs = random() < 0.5;
    const template = templates.get(keepBlobs)!;
    const folder = join(root, 'store');
    execFileSync('cp', ['-a', random() < 0.4 ? `${template.folder} cut` : template.folder, folder]);
    const damages = Array.from({ length: 1 + Math.floor(random() * 4) }, () => damage(folder, random));
    const what = `seed ${seed}, round ${round}: ${damages.join('; ')}`;

    const mapsAreWhole = (path: string) => {
      const [a, b] = [join(template.folder, `${path}.map`), join(folder, `${path}.map`)];
      try {
        return execFileSync('cmp', ['-s', a, b]).length === 0;
      } catch {
        return false;
      }
    };
    const isWhole = (diffId: string) =>
      fingerprint(join(folder, template.folders.get(diffId)!)) === template.prints.get(diffId);
    const whole = [...layers.keys()].filter((diffId) => isWhole(diffId));
    const provable = whole.filter((diffId) => mapsAreWhole(template.folders.get(diffId)!));

    const { images, db, close } = await open(folder, keepBlobs, `boot ${round}`).catch((error: unknown) => {
      throw new Error(`${what}: it does not open`, { cause: error });
    });
    const reports = await images.verifyImages();
    const stateOf = new Map(reports.map((report) => [report.diffId, report]));
    for (const diffId of provable)
      assert.equal(stateOf.get(diffId)?.state, 'good', `${what}: ${diffId} was whole`);
    for (const { diffId, state, message } of reports) {
      const row = db.statement('SELECT number FROM layers WHERE diff_id = ?').get(diffId);
      const now = fingerprint(join(folder, 'layers', Number(row?.['number']).toString(36)));
      const isRight = now === template.prints.get(diffId);
      if (!isRight && message === '')
        assert.notEqual(state, 'good', `${what}: ${diffId} is not found to be damaged`);
    }
    const asked = registry.seen.length;
    const after = await images.verifyImages({ repair: true });
    repaired += after.filter(({ state }) => state === 'repaired').length;
    for (const name of names) {
      await images.pullImage({ image: name }).catch((error: unknown) => {
        throw new Error(`${what}: no pull`, { cause: error });
      });
    }
    for (const { path } of registry.seen.slice(asked)) {
      const fetched = provable.find((diffId) => path.endsWith(layers.get(diffId)!.digest));
      assert.equal(fetched, undefined, `${what}: a whole layer was fetched again`);
    }
    for (const [name, image] of [[names[0]!, one] as const, [names[1]!, two] as const]) {
      const { id, layers: folders } = await images.forContainer(name);
      assert.equal(id, image.id, what);
      const wanted = image.layers.map(({ diffId }) => diffId).reverse();
      const unproved = new Set(
        after.filter(({ message, state }) => state === 'good' && message !== '').map(({ diffId }) => diffId),
      );
      for (const [at, diffId] of wanted.entries()) {
        // Without its map nobody can tell.
        if (!unproved.has(diffId)) assert.equal(fingerprint(folders[at]!), template.prints.get(diffId), what);
      }
    }
    await close();
    rmSync(folder, { recursive: true });
  }
  if (rounds >= 100) {
    assert.ok(salvages.length > 0, 'no round damaged the database');
    assert.ok(repaired > 0, 'no round had a layer repaired from its blob');
  }
});
