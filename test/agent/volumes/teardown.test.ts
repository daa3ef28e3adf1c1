import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, readdir, readFile, rename, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { mountsBelow, unmountBelow } from '../../../agent/volumes/mounts.ts';
import { removeBelow } from '../../../agent/volumes/teardown.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { mountPoints } from '../../../runtime/host/mounts/mountinfo.ts';
import { mount, mountFlags } from '../../../runtime/host/syscalls.ts';
import { asRoot, scratch } from './cluster.ts';

test('mountinfo: escapes, deleted places, nonsense', () => {
  const text = [
    '22 1 0:21 / / rw - ext4 /dev/sda rw',
    '23 22 0:22 / /a\\040b\\134c\\011d\\012e rw - tmpfs tmpfs rw',
    '24 22 0:23 / /gone//deleted rw - tmpfs tmpfs rw',
    '',
    'short line',
  ].join('\n');
  assert.deepEqual(mountPoints(text), ['/', '/a b\\c\td\ne', '/gone']);
});

test('only what is below is found', { skip: asRoot }, async (t) => {
  const folder = await scratch(t);
  for (const name of ['pod', 'pod-2', 'pod/é \\x']) {
    await mkdir(join(folder, name), { recursive: true });
    mount('tmpfs', join(folder, name), 'tmpfs', 0, 'size=4k');
    await mkdir(join(folder, 'pod/é \\x'), { recursive: true });
  }
  assert.deepEqual(await mountsBelow(join(folder, 'pod')), [join(folder, 'pod'), join(folder, 'pod/é \\x')]);
  await unmountBelow(join(folder, 'pod'));
  assert.deepEqual(await mountsBelow(folder), [join(folder, 'pod-2')]);
});

test('odd names, deep trees, many files and every file type go', async (t) => {
  const folder = await scratch(t);
  const pod = join(folder, 'pod');
  await mkdir(join(pod, 'many'), { recursive: true });
  for (let index = 0; index < 300; index++) await writeFile(join(pod, 'many', String(index)), '');
  await writeFile(Buffer.concat([Buffer.from(`${pod}/`), Buffer.from([0xff, 0xfe, 0x20])]), '');
  await mkdir(Buffer.concat([Buffer.from(`${pod}/dir`), Buffer.from([0xc3])]));
  await symlink('/', join(pod, 'root'));
  await symlink('nowhere', join(pod, 'dangling'));
  execFileSync('mkfifo', [join(pod, 'fifo')]);
  // Deeper than a path may be long, as a container can make it step by step.
  execFileSync('perl', ['-e', 'for (1..3000) { mkdir "dddd" or die; chdir "dddd" or die } open F, ">end"'], {
    cwd: pod,
  });
  await removeBelow(folder, 'pod');
  assert.deepEqual(await readdir(folder), []);
  await removeBelow(folder, 'pod');
  await removeBelow(join(folder, 'none'), 'pod');
});

test('a link in place of the folder is removed, not followed', async (t) => {
  const folder = await scratch(t);
  await mkdir(join(folder, 'precious'));
  await writeFile(join(folder, 'precious/file'), 'x');
  await symlink('precious', join(folder, 'pod'));
  await removeBelow(folder, 'pod');
  assert.deepEqual(await readdir(folder), ['precious']);
  assert.equal(await readFile(join(folder, 'precious/file'), 'utf8'), 'x');
});

test('a mount inside stops the removal', { skip: asRoot }, async (t) => {
  const folder = await scratch(t);
  await mkdir(join(folder, 'pod/mounted'), { recursive: true });
  mount('tmpfs', join(folder, 'pod/mounted'), 'tmpfs', 0, 'size=64k');
  await writeFile(join(folder, 'pod/mounted/file'), 'x');
  await assert.rejects(removeBelow(folder, 'pod'), (error) => isError(error, 'VOLUME_FAILED'));
  assert.equal(await readFile(join(folder, 'pod/mounted/file'), 'utf8'), 'x');
});

test('a bind mount from the same file system stops it too', { skip: asRoot }, async (t) => {
  const folder = await scratch(t);
  await mkdir(join(folder, 'precious'));
  await writeFile(join(folder, 'precious/file'), 'x');
  await mkdir(join(folder, 'pod/volume/bound'), { recursive: true });
  mount(join(folder, 'precious'), join(folder, 'pod/volume/bound'), null, mountFlags.BIND);
  await assert.rejects(removeBelow(folder, 'pod'), (error) => isError(error, 'VOLUME_FAILED'));
  assert.equal(await readFile(join(folder, 'precious/file'), 'utf8'), 'x');
});

test('what an earlier removal moved up and left does not stop the next one', async (t) => {
  const folder = await scratch(t);
  const below = Array.from({ length: 70 }, () => 'd');
  await mkdir(join(folder, 'pod', `.keelson-tmp-${process.pid}-0`, ...below), { recursive: true });
  await removeBelow(folder, 'pod');
  assert.deepEqual(await readdir(folder), []);
});

test('links swapped in while the tree is removed never lead out', async (t) => {
  const folder = await scratch(t);
  const outside = join(folder, 'outside');
  await mkdir(join(outside, 'x'), { recursive: true });
  for (let index = 0; index < 20; index++) await writeFile(join(outside, 'x', String(index)), '');
  for (let round = 0; round < 25; round++) {
    const pod = join(folder, 'pod');
    for (let index = 0; index < 10; index++) await mkdir(join(pod, `d${index}/x`), { recursive: true });
    const attack = Promise.all(
      Array.from({ length: 10 }, async (_, index) => {
        const at = join(pod, `d${index}`);
        await rename(at, `${at}-moved`).catch(() => {});
        await symlink(outside, at).catch(() => {});
      }),
    );
    await removeBelow(folder, 'pod').catch((error: unknown) => {
      assert.match(String(error), /ENOTEMPTY|ENOTDIR|EISDIR/);
    });
    await attack;
    await removeBelow(folder, 'pod');
  }
  assert.equal((await readdir(join(outside, 'x'))).length, 20);
});

test('an aborted signal stops it', async (t) => {
  const folder = await scratch(t);
  await mkdir(join(folder, 'pod/x'), { recursive: true });
  await assert.rejects(removeBelow(folder, 'pod', AbortSignal.abort()), (error) => isError(error, 'ABORTED'));
});
