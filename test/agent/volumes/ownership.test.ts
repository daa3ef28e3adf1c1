/** Volumes that are given to a group: modes, what is left alone, and that no link leads out. */
import assert from 'node:assert/strict';
import { chmod, lstat, mkdir, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { groupMode, isOwned, setOwnership } from '../../../agent/volumes/kinds/ownership.ts';
import { mkfifo } from '../../../runtime/host/syscalls.ts';
import { scratch } from './cluster.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const gid = 4711;

test('bits for the group', () => {
  assert.equal(groupMode(0o100600, false, false), 0o660);
  assert.equal(groupMode(0o104755, false, false), 0o4775);
  assert.equal(groupMode(0o40700, true, false), 0o2770);
  assert.equal(groupMode(0o41777, true, false), 0o3777);
  assert.equal(groupMode(0o40700, true, true), 0o2750);
  for (let mode = 0; mode <= 0o7777; mode++) {
    for (const readOnly of [true, false]) {
      const given = groupMode(mode, true, readOnly);
      assert.equal(given & mode, mode, 'nothing is taken');
      assert.equal(isOwned({ gid, mode: given }, gid, readOnly), true);
      assert.equal(isOwned({ gid, mode }, gid, readOnly), given === mode);
      assert.equal(isOwned({ gid: 0, mode: given }, gid, readOnly), false);
    }
  }
});

test('everything becomes the group’s, links and what they lead to stay', { skip }, async (t) => {
  const folder = await scratch(t);
  const [volume, outside] = [join(folder, 'volume'), join(folder, 'outside')];
  await mkdir(join(volume, 'deep/er'), { recursive: true });
  await writeFile(outside, '', { mode: 0o600 });
  await writeFile(join(volume, 'deep/er/file'), '');
  await chmod(join(volume, 'deep/er/file'), 0o4700);
  await symlink(outside, join(volume, 'link'));
  await symlink(folder, join(volume, 'folder-link'));
  mkfifo(join(volume, 'fifo'), 0o600);
  await setOwnership(volume, gid);
  const facts = async (path: string) => {
    const { gid: group, mode } = await lstat(join(volume, path));
    return [group, (mode & 0o7777).toString(8)];
  };
  assert.deepEqual(await facts('.'), [gid, '2775']);
  assert.deepEqual(await facts('deep/er'), [gid, '2775']);
  assert.deepEqual(await facts('deep/er/file'), [gid, '4760']);
  assert.deepEqual(await facts('fifo'), [gid, '660']);
  assert.equal((await lstat(join(volume, 'link'))).gid, 0);
  assert.deepEqual([(await stat(outside)).gid, (await stat(folder)).gid], [0, 0]);
});

test('OnRootMismatch trusts the volume’s own folder, which is done last', { skip }, async (t) => {
  const volume = await scratch(t);
  await writeFile(join(volume, 'file'), '');
  const done = async () => (await stat(join(volume, 'file'))).gid === gid;
  const stopped = AbortSignal.abort();
  await assert.rejects(setOwnership(volume, gid, { signal: stopped }), { code: 'ABORTED' });
  assert.equal(isOwned(await stat(volume), gid, false), false, 'cut short: still to be done');
  await setOwnership(volume, gid, { changePolicy: 'OnRootMismatch' });
  assert.ok(await done());
  await writeFile(join(volume, 'other'), '');
  await setOwnership(volume, gid, { changePolicy: 'OnRootMismatch' });
  const { mode } = await stat(join(volume, 'other'));
  assert.equal(mode & 0o20, 0, 'not looked at');
  await setOwnership(volume, gid, { changePolicy: 'Always' });
  assert.equal((await stat(join(volume, 'other'))).mode & 0o60, 0o60);
});
