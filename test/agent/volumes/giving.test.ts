import assert from 'node:assert/strict';
import { mkdir, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeGiving } from '../../../agent/volumes/kinds/giving.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { podOf, scratch } from './cluster.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const gid = 4711;

/** A clock whose timers are let go by hand. */
function stoppedClock() {
  const timers = new Set<{ ms: number; run: () => void }>();
  return {
    timers,
    clock: {
      now: () => 0,
      monotonic: () => 0,
      after: (ms: number, run: () => void) => {
        const timer = { ms, run };
        timers.add(timer);
        return () => void timers.delete(timer);
      },
    },
    ring() {
      const [timer, ...others] = [...timers];
      assert.ok(timer && others.length === 0, 'one timer waits');
      timers.delete(timer);
      timer.run();
      return timer.ms;
    },
  };
}

test('a long walk is told of, outlives the wait for it, and is joined', { skip }, async (t) => {
  const folder = await scratch(t);
  const volume = join(folder, 'volume');
  await mkdir(join(volume, 'deep'), { recursive: true });
  for (let index = 0; index < 20; index++) await writeFile(join(volume, 'deep', String(index)), '');
  const { clock, timers, ring } = stoppedClock();
  const said: string[] = [];
  const pod = podOf({}, 'uid-1');
  const giving = makeGiving({ clock, warn: (_, reason, message) => said.push(`${reason} ${message}`) });
  const shown = '/var/lib/kubelet/pods/uid-1/volumes/kubernetes.io~local-volume/pv';
  const ending = new AbortController();
  const gift = { pod, folder: volume, shown, gid, signal: ending.signal };
  const first = giving.give(gift);
  assert.equal(ring(), 30_000);
  assert.equal(ring(), 60_000);
  assert.match(
    said[0]!,
    /^VolumePermissionChangeInProgress Setting volume ownership for uid-1\/volumes\/kubernetes.io~local-volume\/pv is taking longer than expected, consider using OnRootMismatch - https:/,
  );
  assert.match(
    said[1]!,
    /^VolumePermissionChangeInProgress Setting volume ownership for uid-1\/volumes\/kubernetes.io~local-volume\/pv, processed \d+ files.$/,
  );
  const second = giving.give({ ...gift, signal: undefined });
  ending.abort(new Error('too long'));
  await assert.rejects(first, (error) => isError(error, 'ABORTED'));
  assert.equal(timers.size, 1, 'one walk for both');
  await second;
  assert.equal((await stat(join(volume, 'deep/19'))).gid, gid);
  assert.equal((await stat(volume)).gid, gid);
  assert.equal(timers.size, 0, 'nothing is told of what is done');
  await assert.rejects(giving.give(gift), (error) => isError(error, 'ABORTED'));
});

test('walks of a pod that is going end, and one that failed is begun anew', { skip }, async (t) => {
  const folder = await scratch(t);
  const volume = join(folder, 'volume');
  await mkdir(volume);
  await writeFile(join(volume, 'file'), '');
  const { clock, timers } = stoppedClock();
  const giving = makeGiving({ clock, warn: () => assert.fail('not told') });
  const gift = { pod: podOf({}, 'uid-1'), folder: volume, shown: volume, gid, signal: undefined };
  const cut = giving.give(gift);
  await giving.forget('another');
  const over = giving.forget('uid-1');
  await assert.rejects(cut, (error) => isError(error, 'ABORTED'));
  await over;
  assert.equal(timers.size, 0);
  assert.notEqual((await stat(volume)).gid, gid, 'not said to be done');
  await giving.give(gift);
  assert.equal((await stat(join(volume, 'file'))).gid, gid);
  await assert.rejects(giving.give({ ...gift, folder: join(folder, 'none') }), { code: 'ENOENT' });
});
