import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, readlink, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { isWritten, writeAtomically } from '../../../agent/volumes/atomic.ts';
import { cleanPayload, type Payload } from '../../../agent/volumes/payload.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { scratch } from './cluster.ts';

const files = (content: Record<string, string>): Payload =>
  new Map(Object.entries(content).map(([path, text]) => [path, { data: Buffer.from(text), mode: 0o644 }]));
const now = Date.UTC(2026, 0, 2, 3, 4, 5);
const write = (folder: string, content: Record<string, string>) =>
  writeAtomically(folder, files(content), { now });

/** What a container sees: every visible file with its content. */
async function visible(folder: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  const look = async (path: string) => {
    for (const name of await readdir(join(folder, path))) {
      if (path === '' && name.startsWith('..')) continue;
      const below = join(path, name);
      if ((await stat(join(folder, below))).isDirectory()) await look(below);
      else found[below] = await readFile(join(folder, below), 'utf8');
    }
  };
  await look('');
  return found;
}
const dated = async (folder: string) => (await readdir(folder)).filter((name) => /^\.\.\d{4}_/.test(name));

test('files are shown through the data link', async (t) => {
  const folder = await scratch(t);
  assert.equal(await isWritten(folder), false);
  assert.equal(await write(folder, { a: '1', 'dir/b': '2', 'dir/sub/c': '3' }), true);
  assert.equal(await isWritten(folder), true);
  assert.deepEqual(await visible(folder), { a: '1', 'dir/b': '2', 'dir/sub/c': '3' });
  assert.equal(await readlink(join(folder, 'dir')), '..data/dir');
  assert.match(await readlink(join(folder, '..data')), /^\.\.2026_01_02_03_04_05\./);
  assert.deepEqual((await readdir(folder)).sort().slice(1), ['..data', 'a', 'dir']);
});

test('unchanged content is not rewritten, changed content replaces everything at once', async (t) => {
  const folder = await scratch(t);
  await write(folder, { a: '1', b: '2' });
  const first = await readlink(join(folder, '..data'));
  assert.equal(await write(folder, { b: '2', a: '1' }), false);
  assert.equal(await readlink(join(folder, '..data')), first);
  const changes: readonly Record<string, string>[] = [
    { a: '1', b: '3' },
    { a: '1' },
    { a: '1', c: '2' },
    { 'a/x': '1' },
    { a: '1' },
    {},
  ];
  for (const change of changes) {
    assert.equal(await write(folder, change), true);
    assert.deepEqual(await visible(folder), change);
    assert.equal((await dated(folder)).length, 1, 'old folders are removed');
  }
});

test('what a crash left at any line is repaired', async (t) => {
  const folder = await scratch(t);
  await write(folder, { a: '1', b: '2' });
  await mkdir(join(folder, '..2020_01_01_00_00_00.abcdef'));
  await writeFile(join(folder, '..2020_01_01_00_00_00.abcdef/a'), 'half');
  await symlink('..2020_01_01_00_00_00.abcdef', join(folder, '..data_tmp'));
  await write(folder, { a: '2', c: '3' });
  assert.deepEqual(await visible(folder), { a: '2', c: '3' });
  assert.equal((await dated(folder)).length, 1);
  assert.ok(!(await readdir(folder)).includes('..data_tmp'));

  const other = await scratch(t);
  await symlink('..2020_01_01_00_00_00.gone', join(other, '..data'));
  await write(other, { a: '1' });
  assert.deepEqual(await visible(other), { a: '1' });
});

test('a crash before the links were made is repaired without a rewrite', async (t) => {
  const folder = await scratch(t);
  await mkdir(join(folder, '..2026_01_01_00_00_00.x'));
  await writeFile(join(folder, '..2026_01_01_00_00_00.x/a'), '1');
  await symlink('..2026_01_01_00_00_00.x', join(folder, '..data'));
  assert.equal(await write(folder, { a: '1' }), false);
  assert.deepEqual(await visible(folder), { a: '1' });
});

test('a reader never sees a half-made volume', async (t) => {
  const folder = await scratch(t);
  await write(folder, { a: '0', b: '0' });
  let stop = false;
  const reader = (async () => {
    let rounds = 0;
    while (!stop) {
      const data = await readlink(join(folder, '..data'));
      const [a, b] = await Promise.all(
        ['a', 'b'].map((name) => readFile(join(folder, data, name), 'utf8').catch(() => undefined)),
      );
      // A folder that is removed while it is read gives nothing, never something mixed.
      if (a !== undefined && b !== undefined) assert.equal(a, b);
      rounds++;
    }
    return rounds;
  })();
  try {
    for (let version = 1; version <= 60; version++) {
      await write(folder, { a: String(version), b: String(version) });
      const [a, b] = await Promise.all(['a', 'b'].map((name) => readFile(join(folder, name), 'utf8')));
      assert.deepEqual([a, b], [String(version), String(version)]);
    }
  } finally {
    stop = true;
  }
  assert.ok((await reader) > 10);
});

test('paths that leave the volume or collide are refused', () => {
  for (const path of [
    '',
    '/a',
    '..',
    '../a',
    'a/../b',
    'a/..',
    '..data',
    '..data/x',
    '..2020_01_01',
    '...',
    './..x',
    '.',
    './',
    'a\0b',
    'x'.repeat(256),
    'x/'.repeat(2049),
  ]) {
    assert.throws(
      () => cleanPayload(files({ [path]: '' })),
      (error) => isError(error, 'VOLUME_FAILED'),
      JSON.stringify(path.slice(0, 20)),
    );
  }
  assert.deepEqual(
    [...cleanPayload(files({ 'a//b/./c': '', '.d': '', 'e/..f': '' })).keys()],
    ['a/b/c', '.d', 'e/..f'],
  );
  assert.throws(() => cleanPayload(files({ a: '', 'a/b': '' })), /a is a file and also the folder of a\/b/);
});

test('random sequences of payloads end as the last one says', async (t) => {
  let seed = 3;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return (seed >>> 8) % below;
  };
  const names = ['a', 'b', 'c', 'd/a', 'd/b', 'd/e/f', 'g', '.h', 'd/e/g', 'i..j'];
  const folder = await scratch(t);
  for (let round = 0; round < 80; round++) {
    const content: Record<string, string> = {};
    for (const name of names) if (random(2) === 0) content[name] = String(random(3));
    await write(folder, content);
    assert.deepEqual(await visible(folder), content, `round ${round}`);
  }
});
