import assert from 'node:assert/strict';
import { closeSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { systemClock } from '../../runtime/host/clock.ts';
import { exec } from '../../runtime/host/exec.ts';
import { makePatience } from '../../runtime/host/mounts/patience.ts';
import { mount, umountFlags, unmount } from '../../runtime/host/syscalls.ts';
import { mountsNeeded } from '../../runtime/monitor/launch.ts';
import { makeMountView, needlessMounts } from '../../runtime/monitor/view.ts';

const line = (path: string) => `36 35 98:0 / ${path} rw,noatime shared:1 - ext4 /dev/root rw`;

test('which mounts are of no use to a runtime', () => {
  const needless = (...paths: string[]) =>
    needlessMounts(`${paths.map(line).join('\n')}\n`, ['/run/keelson', '/var/lib/keelson/containers']);
  assert.deepEqual(
    needless('/', '/proc', '/proc/sys/fs/binfmt_misc', '/sys/fs/cgroup', '/dev/shm', '/usr'),
    [],
  );
  assert.deepEqual(needless('/run', '/run/keelson', '/var', '/var/lib/keelson', '/etc'), []);
  assert.deepEqual(needless('/run/keelson/sandboxes/1/net', '/run/keelson/containers/1/rootfs'), [
    '/run/keelson/containers/1/rootfs',
    '/run/keelson/sandboxes/1/net',
  ]);
  assert.deepEqual(needless('/usr/local', '/usr/share/a', '/etc/ssl', '/opt/bin'), []);
  assert.deepEqual(needless('/mnt/disk', '/home', '/run/keelsonx'), ['/run/keelsonx', '/home', '/mnt/disk']);
  assert.deepEqual(needless('/mnt/ä\\040b\\134'), ['/mnt/ä b\\']);
});

test('which mounts a container needs', () => {
  const folders = {
    runDir: '/run/keelson',
    data: '/var/lib/keelson/containers',
    sandbox: (id: string) => `/run/keelson/sandboxes/${id}`,
  };
  const source = (hostPath: string, more = {}) => ({
    ...{ containerPath: '/c', hostPath, readonly: false, propagation: 'private' as const },
    ...more,
  });
  const needed = (mounts: ReturnType<typeof source>[], more = {}) =>
    mountsNeeded(folders, 's', { mounts, annotations: {}, ...more });
  const own = ['/run/keelson/sandboxes/s'];
  assert.deepEqual(needed([]), { own, others: [] });
  assert.deepEqual(needed([source('/v/a'), source('/run/keelson2'), source('', { image: { image: 'x' } })]), {
    own,
    others: ['/v/a', '/run/keelson2'],
  });
  for (const path of ['/', '/run', '/var/run', '/run/keelson', '/var/lib', '/var/lib/../lib/keelson/']) {
    assert.equal(needed([source('/v/a'), source(path)]), undefined, path);
  }
  assert.equal(needed([source('/v/a', { propagation: 'host-to-container' })]), undefined);
  assert.equal(needed([source('/v/a', { propagation: 'bidirectional' })]), undefined);
  assert.equal(needed([], { cdiDevices: [{ name: 'v.com/c=d' }] }), undefined);
});

test('a view: what it shows, and what it adds', {
  skip: process.getuid?.() !== 0 && 'needs root',
}, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-'));
  const [before, later, host] = ['before', 'later', 'host'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  const mounted: string[] = [];
  t.after(() => {
    for (const path of mounted.reverse()) unmount(path, umountFlags.NOFOLLOW | umountFlags.DETACH);
    rmSync(folder, { recursive: true });
  });
  const mountTemporary = (path: string) => {
    mkdirSync(path, { recursive: true });
    mount('t', path, 'tmpfs', 0);
    mounted.push(path);
    writeFileSync(join(path, 'file'), 'in it');
  };
  mountTemporary(before);
  const cwd = process.cwd();
  const own = statSync('/proc/thread-self/ns/mnt').ino;
  const view = makeMountView(
    [folder],
    '/usr/bin/nsenter',
    makePatience({ clock: systemClock, answerMs: 500 }),
  );
  t.after(() => view.close());
  mountTemporary(later);
  mountTemporary(join(later, 'below'));
  mkdirSync(host);

  const options = { deadlineMs: 10_000, okCodes: 'any' as const };
  const seen = async (program: string, args: string[], more = {}) =>
    (await exec(program, args, { ...options, ...more })).stdout.toString();
  const mounts = await seen('cat', ['/proc/self/mountinfo'], { within: view.within });
  assert.ok(!mounts.includes(before) && !mounts.includes(later));
  assert.match(mounts, / \/proc /);
  assert.ok(readFileSync('/proc/self/mountinfo', 'utf8').includes(before), 'the host has it as before');
  assert.equal(await seen('cat', [join(before, 'file')], { within: view.within }), '');
  assert.equal(await seen('pwd', [], { within: view.within, cwd: host }), `${host}\n`);

  const extended = await view.extend([later], [join(later, 'file')]);
  t.after(() => closeSync(extended));
  const enter = [`--mount=/proc/${process.pid}/fd/${extended}`, 'cat'];
  assert.equal(await seen('nsenter', [...enter, join(later, 'file')]), 'in it');
  assert.equal(await seen('nsenter', [...enter, join(later, 'below/file')]), 'in it');
  assert.equal(await seen('nsenter', [...enter, join(before, 'file')]), '');
  assert.equal(
    await seen('cat', [join(later, 'file')], { within: view.within }),
    '',
    'the view stays as it is',
  );
  await assert.rejects(view.extend([join(folder, 'missing')], []), { code: 'SYSCALL_FAILED' });
  await assert.rejects(view.extend([], [join(folder, 'missing')]), { code: 'SYSCALL_FAILED' });
  assert.throws(
    () =>
      view.within(() => {
        throw new Error('of the start');
      }),
    /of the start/,
  );

  assert.equal(statSync('/proc/thread-self/ns/mnt').ino, own, 'this thread is where it was');
  assert.equal(process.cwd(), cwd);
  // A thread that begins later shares the working folder of this one: that must not be in the way.
  const { Worker } = await import('node:worker_threads');
  const worker = new Worker('setInterval(() => {}, 1000)', { eval: true });
  await new Promise((resolve) => worker.once('online', resolve));
  assert.equal(await seen('cat', [join(before, 'file')], { within: view.within }), '');
  await worker.terminate();
});
