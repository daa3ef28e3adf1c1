import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import {
  ensureFolder,
  listFolder,
  removeTree,
  sweepTemporaryFiles,
  temporaryPrefix,
  writeFileAtomic,
} from '../../runtime/host/files.ts';

async function folder(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  t.after(() => rm(path, { recursive: true, force: true }));
  return path;
}

test('a file is replaced in one step, with an exact mode', async (t) => {
  const root = await folder(t);
  const path = join(root, 'f');
  const umask = process.umask(0o077);
  t.after(() => process.umask(umask));
  await writeFileAtomic(path, 'one');
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  await writeFileAtomic(path, Buffer.from('two'), { mode: 0o664, durable: true });
  assert.equal(await readFile(path, 'utf8'), 'two');
  assert.equal((await stat(path)).mode & 0o777, 0o664);
  assert.deepEqual(await readdir(root), ['f'], 'nothing temporary is left');
});

test('readers see the old content or the new one, whole', async (t) => {
  const path = join(await folder(t), 'f');
  const contents = ['a'.repeat(100_000), 'b'.repeat(50_000)];
  await writeFileAtomic(path, contents[0]!);
  let writing = true;
  const reader = (async () => {
    while (writing) assert.ok(contents.includes(await readFile(path, 'utf8')));
  })();
  for (let round = 0; round < 50; round++) await writeFileAtomic(path, contents[round % 2]!);
  writing = false;
  await reader;
});

test('a failed write leaves the old file and nothing temporary', async (t) => {
  const root = await folder(t);
  await mkdir(join(root, 'f'));
  await assert.rejects(writeFileAtomic(join(root, 'f'), 'x'));
  assert.deepEqual(await readdir(root), ['f']);
  await assert.rejects(writeFileAtomic(join(root, 'no/such/f'), 'x'));
});

test('folders', async (t) => {
  const root = await folder(t);
  await ensureFolder(join(root, 'a/b'), 0o700);
  await ensureFolder(join(root, 'a/b'), 0o700);
  assert.equal((await stat(join(root, 'a/b'))).mode & 0o777, 0o700);
  assert.deepEqual(await listFolder(root), ['a']);
  assert.deepEqual(await listFolder(join(root, 'none')), []);
  await writeFile(join(root, 'plain'), '');
  await assert.rejects(listFolder(join(root, 'plain')));
});

test('a tree is removed without following links', async (t) => {
  const root = await folder(t);
  await mkdir(join(root, 'keep'));
  await writeFile(join(root, 'keep/x'), '');
  await mkdir(join(root, 'tree/sub'), { recursive: true });
  await symlink('../keep', join(root, 'tree/link'));
  await removeTree(join(root, 'tree'));
  await removeTree(join(root, 'tree'));
  assert.deepEqual(await readdir(root), ['keep']);
  assert.deepEqual(await readdir(join(root, 'keep')), ['x']);
});

test('a tree deeper than a path can say is removed', async (t) => {
  const root = await folder(t);
  const deep = join(root, ...Array<string>(19).fill('d'.repeat(200)));
  await mkdir(deep, { recursive: true });
  // By way of a link the tree gets twice as deep.
  await symlink(deep, join(root, 'link'));
  await mkdir(join(root, 'link', ...Array<string>(10).fill('e'.repeat(200))), { recursive: true });
  await rm(join(root, 'link'));
  await removeTree(join(root, 'd'.repeat(200)));
  assert.deepEqual(await readdir(root), []);
});

test('half-written files of a killed process are swept, those of living ones stay', async (t) => {
  const root = await folder(t);
  const old = join(root, `${temporaryPrefix}a`);
  await writeFile(old, '{');
  await utimes(old, 1, 1);
  await writeFile(join(root, `${temporaryPrefix}b`), '{');
  await writeFile(join(root, 'whole'), '{}');
  await utimes(join(root, 'whole'), 1, 1);
  await sweepTemporaryFiles(root);
  assert.deepEqual((await readdir(root)).sort(), [`${temporaryPrefix}b`, 'whole']);
  await sweepTemporaryFiles(join(root, 'none'));
});
