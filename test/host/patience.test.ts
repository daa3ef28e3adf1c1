/** Paths that do not answer: each mount holds one question, and others go on. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isError } from '../../runtime/host/errors.ts';
import { mountPoints } from '../../runtime/host/mounts/mountinfo.ts';
import { makePatience, mountPointOf } from '../../runtime/host/mounts/patience.ts';
import { handClock, turn } from '../agent/pods/fakes.ts';
import { time } from '../agent/pods/objects.ts';

const mountinfo = `22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/dead rw - nfs server:/x rw
31 22 0:41 / /mnt/with\\040space rw - nfs server:/y rw
`;

test('mount points are read with their escapes, and the longest one counts', () => {
  const points = mountPoints(mountinfo);
  assert.deepEqual(points, ['/', '/mnt/dead', '/mnt/with space']);
  const cases: readonly [string, string][] = [
    ['/mnt/dead/a', '/mnt/dead'],
    ['/mnt/dead/', '/mnt/dead'],
    ['/mnt/deadly', '/'],
    ['/mnt/with space/x', '/mnt/with space'],
    ['/', '/'],
  ];
  for (const [path, point] of cases) assert.equal(mountPointOf(path, points), point, path);
});

test('a silent mount is asked once, others are answered, and it is asked again when it has answered', async () => {
  const clock = handClock(time);
  const patience = makePatience({ clock, mounts: async () => mountinfo });
  const dead = Promise.withResolvers<string>();
  let questions = 0;
  const silent = () => {
    questions++;
    return dead.promise;
  };
  const outcome = (promise: Promise<unknown>) =>
    promise.then(String, (error: unknown) => (isError(error, 'VOLUME_FAILED') ? 'silent' : String(error)));
  const asked = ['/mnt/dead/a', '/mnt/dead/b', '/mnt/dead/c'].map((path) =>
    outcome(patience.ask(path, silent)),
  );
  const other = outcome(patience.ask('/srv', async () => 'there'));
  await turn();
  await clock.advance(600);
  await turn();
  assert.equal(await other, 'there');
  assert.deepEqual(await Promise.all(asked.slice(1)), ['silent', 'silent']);
  await clock.advance(5000);
  assert.equal(await asked[0], 'silent');
  assert.equal(await outcome(patience.ask('/mnt/dead/a', silent)), 'silent');
  assert.equal(questions, 1);
  dead.resolve('alive');
  await clock.advance(1);
  assert.equal(await outcome(patience.ask('/mnt/dead/a', silent)), 'alive');
  assert.equal(questions, 2);
});

test('a silent path on the root file system may be a link, and says nothing of others there', async () => {
  const clock = handClock(time);
  const patience = makePatience({ clock, mounts: async () => mountinfo });
  const silent = patience.ask('/home/link', () => new Promise(() => {}));
  silent.catch(() => {});
  await clock.advance(600);
  assert.equal(await patience.ask('/home/other', async () => 'there'), 'there');
  await assert.rejects(
    patience.ask('/home/link/below', async () => 'there'),
    (error) => isError(error, 'VOLUME_FAILED'),
  );
  await clock.advance(5000);
  await assert.rejects(silent, (error) => isError(error, 'VOLUME_FAILED'));
});

test('the time for an answer begins with the question, not with the wait for it', async () => {
  const clock = handClock(time);
  const patience = makePatience({ clock, answerMs: 400, mounts: async () => mountinfo });
  const silent = patience.ask('/mnt/dead', () => new Promise(() => {}));
  silent.catch(() => {});
  const behind = patience.ask('/srv', async () => 'there');
  await clock.advance(501);
  assert.equal(await behind, 'there');
});

test('whoever does not want to wait any more need not', async () => {
  const patience = makePatience({ clock: handClock(time), mounts: async () => mountinfo });
  const stop = new AbortController();
  const asked = patience.ask('/mnt/dead', () => new Promise(() => {}), stop.signal);
  stop.abort();
  await assert.rejects(asked, (error) => isError(error, 'ABORTED'));
});
