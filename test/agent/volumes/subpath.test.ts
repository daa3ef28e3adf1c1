import assert from 'node:assert/strict';
import { mkdir, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { mountsBelow } from '../../../agent/volumes/mounts.ts';
import { resolveSubPath, subPathTarget } from '../../../agent/volumes/subpath.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { asRoot, bench, podOf, scratch } from './cluster.ts';

const skip = asRoot;

test('a place inside is found, made, or reached through links that stay inside', async (t) => {
  const volume = await scratch(t);
  await mkdir(join(volume, 'a/b'), { recursive: true });
  await writeFile(join(volume, 'a/file'), '');
  await symlink('a/b', join(volume, 'relative'));
  await symlink(join(volume, 'a'), join(volume, 'absolute'));
  const cases: readonly [string, string][] = [
    ['', ''],
    ['.', ''],
    ['a/b', 'a/b'],
    ['a//b/.', 'a/b'],
    ['a/file', 'a/file'],
    ['relative', 'a/b'],
    ['absolute/b', 'a/b'],
    ['new', 'new'],
    ['a/b/deep/er', 'a/b/deep/er'],
    ['relative/made', 'a/b/made'],
  ];
  for (const [subPath, expected] of cases) {
    assert.equal(await resolveSubPath(volume, subPath), join(volume, expected), subPath);
  }
});

test('what is made has the mode of the volume', async (t) => {
  const volume = join(await scratch(t), 'volume');
  await mkdir(volume);
  await import('node:fs/promises').then(({ chmod }) => chmod(volume, 0o2770));
  await resolveSubPath(volume, 'x/y');
  for (const made of ['x', 'x/y']) assert.equal((await stat(join(volume, made))).mode & 0o7777, 0o2770);
});

test('no way leads out', async (t) => {
  const folder = await scratch(t);
  const volume = join(folder, 'volume');
  await mkdir(join(folder, 'volume-other'), { recursive: true });
  await mkdir(volume);
  await writeFile(join(volume, 'file'), '');
  await symlink('/etc', join(volume, 'etc'));
  await symlink('..', join(volume, 'up'));
  await symlink(join(folder, 'volume-other'), join(volume, 'sibling'));
  await symlink('/nonexistent/place', join(volume, 'dangling'));
  await symlink('loop', join(volume, 'loop'));
  const refused = [
    '/etc',
    '..',
    'a/../../b',
    'etc',
    'etc/passwd',
    'up',
    'up/volume-other',
    'sibling',
    'sibling/new',
    'dangling',
    'dangling/x',
    'loop',
    'file/x',
    'a\0b',
  ];
  for (const subPath of refused) {
    await assert.rejects(
      resolveSubPath(volume, subPath),
      (error) => isError(error, 'VOLUME_FAILED'),
      JSON.stringify(subPath),
    );
  }
  await assert.rejects(stat('/nonexistent'), 'nothing was made outside');
  await assert.rejects(resolveSubPath(join(folder, 'none'), 'x'), (error) => isError(error, 'VOLUME_FAILED'));
});

test('a bind mount holds the place, whatever becomes of its path', { skip }, async (t) => {
  const { kubeletDir, volumes, at } = await bench(t);
  await volumes.setUp(podOf({ volumes: [{ name: 'd', emptyDir: {} }] }));
  const volume = at('uid-1', 'empty-dir', 'd');
  await mkdir(join(volume, 'data'));
  await writeFile(join(volume, 'data/file'), 'mine');
  await writeFile(join(volume, 'single'), 'one');
  const target = subPathTarget(kubeletDir, 'uid-1', 'd', 'main', 0);
  const single = subPathTarget(kubeletDir, 'uid-1', 'd', 'main', 1);
  assert.equal(await resolveSubPath(volume, 'data', { target }), target);
  assert.equal(await resolveSubPath(volume, 'single', { target: single }), single);
  await rename(join(volume, 'data'), join(volume, 'moved'));
  await symlink('/etc', join(volume, 'data'));
  assert.equal(await readFile(join(target, 'file'), 'utf8'), 'mine');
  assert.equal(await readFile(single, 'utf8'), 'one');

  await rm(join(volume, 'data'));
  await rename(join(volume, 'moved'), join(volume, 'data'));
  await resolveSubPath(volume, 'data', { target });
  assert.equal((await mountsBelow(kubeletDir)).filter((path) => path === target).length, 1, 'mounted once');
  await mkdir(join(volume, 'data2'));
  await rm(join(volume, 'data'), { recursive: true });
  await rename(join(volume, 'data2'), join(volume, 'data'));
  await resolveSubPath(volume, 'data', { target });
  await assert.rejects(readFile(join(target, 'file')), 'the new folder is mounted');
  await volumes.tearDown('uid-1');
  assert.deepEqual(await mountsBelow(kubeletDir), []);
});

test('a file of a configMap by subPath', { skip }, async (t) => {
  const { objects, volumes, kubeletDir, at } = await bench(t);
  objects.configmaps.set('ns/c', { data: { 'app.conf': 'x=1' } });
  await volumes.setUp(podOf({ volumes: [{ name: 'c', configMap: { name: 'c' } }] }));
  const target = subPathTarget(kubeletDir, 'uid-1', 'c', 'main', 0);
  await resolveSubPath(at('uid-1', 'configmap', 'c'), 'app.conf', { target });
  assert.equal(await readFile(target, 'utf8'), 'x=1');
});

test('a link that is swapped in all the time never leads out', { skip }, async (t) => {
  const folder = await scratch(t);
  const volume = join(folder, 'volume');
  const outside = join(folder, 'outside');
  const dir = join(volume, 'dir');
  await mkdir(join(dir, 'inner'), { recursive: true });
  await mkdir(join(outside, 'inner'), { recursive: true });
  let stop = false;
  const attacker = (async () => {
    let swaps = 0;
    while (!stop) {
      // In the gaps the place is made anew, so nothing here may count on what it did before.
      await rename(dir, join(volume, 'old')).catch(() => {});
      await symlink(outside, dir).catch(() => {});
      await rm(dir, { force: true }).catch(() => {});
      await rename(join(volume, 'old'), dir).catch(() => {});
      await rm(join(volume, 'old'), { recursive: true, force: true });
      await mkdir(join(dir, 'inner'), { recursive: true }).catch(() => {});
      swaps++;
    }
    return swaps;
  })();
  let reached = 0;
  let refused = 0;
  try {
    for (let round = 0; round < 150; round++) {
      const target = join(folder, 'pods', String(round));
      try {
        await resolveSubPath(volume, 'dir/inner/made', { target });
        reached++;
      } catch (error) {
        assert.ok(isError(error, 'VOLUME_FAILED'), String(error));
        refused++;
      }
    }
  } finally {
    stop = true;
    await attacker;
  }
  assert.ok((await attacker) > 10);
  assert.ok(reached > 0, `${refused} refused, none reached`);
  await assert.rejects(stat(join(outside, 'inner/made')), 'something was made outside');
});
