/** The small decisions: users, sysctls, signals, conmon's answers, overlay options; and fuzz where bytes are foreign. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { exitReason, readExit } from '../../runtime/exits.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import { createError, monitorArguments, readAnswer } from '../../runtime/oci/conmon.ts';
import { parseMountinfo } from '../../runtime/oci/mounts.ts';
import { lastError } from '../../runtime/oci/runc.ts';
import { readAccounts, resolveInside, resolveUser } from '../../runtime/oci/user.ts';
import { signalNumber } from '../../runtime/processes.ts';
import { overlayOptions } from '../../runtime/rootfs.ts';
import { bitsPerSecond, resolvConf } from '../../runtime/sandbox_config.ts';
import { sysctlPath } from '../../runtime/sandbox_namespaces.ts';

/** A small seeded generator (mulberry32), so that a failure can be had again. */
function seeded(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

/** `text` with a few bytes changed, removed, doubled or cut. */
function mutate(text: string, random: (below: number) => number): string {
  let bytes = Buffer.from(text, 'utf8');
  for (let count = 1 + random(4); count > 0; count--) {
    const at = random(bytes.length + 1);
    const end = Math.min(bytes.length, at + random(8));
    const noise = Buffer.from(Array.from({ length: random(6) }, () => random(256)));
    bytes = Buffer.concat([bytes.subarray(0, at), noise, bytes.subarray(end)]);
  }
  return bytes.toString('utf8');
}

const accounts = {
  passwd:
    'root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/:/bin/sh\n7:x:70:71::/:/bin/sh\nbroken\nx:x:abc:1::/:\n',
  group: 'root:x:0:root\nweb:x:1001:\nmedia:x:44:other,web\naudio:x:63:web,root\nbad:x:nan:web\n',
};

test('users', () => {
  const of = (wanted: Parameters<typeof resolveUser>[0]) => {
    const { uid, gid, additionalGids } = resolveUser(wanted, accounts);
    return [uid, gid, ...additionalGids];
  };
  assert.deepEqual(of({}), [0, 0, 0, 63]);
  assert.deepEqual(of({ imageUser: 'web' }), [1000, 1001, 1001, 44, 63]);
  assert.deepEqual(of({ imageUser: '1000' }), [1000, 1001, 1001, 44, 63]);
  assert.deepEqual(of({ imageUser: '1000:44' }), [1000, 44, 44, 63]);
  assert.deepEqual(of({ imageUser: 'web:media' }), [1000, 44, 44, 63]);
  assert.deepEqual(of({ imageUser: '5:6' }), [5, 6, 6]);
  assert.deepEqual(of({ imageUser: '7' }), [7, 0, 0], 'digits are a number, not a name');
  assert.deepEqual(
    of({ imageUser: 'web:44', runAsUser: 5 }),
    [5, 0, 0],
    "the image's group goes with its user",
  );
  assert.deepEqual(of({ runAsUser: 1000, runAsGroup: 9 }), [1000, 9, 9, 44, 63]);
  assert.deepEqual(of({ runAsUsername: 'web', supplementalGroups: [44, 8] }), [1000, 1001, 1001, 44, 63, 8]);
  assert.deepEqual(of({ runAsUser: 1000, supplementalGroups: [8], policy: 'strict' }), [1000, 1001, 1001, 8]);
  assert.deepEqual(resolveUser({ runAsUser: 3 }, { passwd: '', group: '' }), {
    uid: 3,
    gid: 0,
    additionalGids: [0],
  });
  for (const wanted of [
    { imageUser: 'nobody' },
    { imageUser: 'web:nogroup' },
    { runAsUsername: '-1' },
    { imageUser: '99999999999' },
  ]) {
    assert.throws(
      () => resolveUser(wanted, accounts),
      (error) => isError(error, 'CONTAINER_CONFIG_INVALID'),
    );
  }
});

test('accounts are read from inside the image only', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  t.after(() => rm(root, { recursive: true }));
  const rootfs = join(root, 'rootfs');
  await mkdir(join(rootfs, 'etc'), { recursive: true });
  await mkdir(join(rootfs, 'usr/etc'), { recursive: true });
  await mkdir(join(root, 'etc'));
  await writeFile(join(root, 'etc/passwd'), 'outside');
  await writeFile(join(root, 'secret'), 'outside');
  await writeFile(join(rootfs, 'usr/etc/passwd'), 'inside');
  await symlink('../../../../etc/passwd', join(rootfs, 'etc/passwd'));
  await symlink('/secret', join(rootfs, 'etc/group'));
  assert.deepEqual(await readAccounts(rootfs), { passwd: '', group: '' });
  await rm(join(rootfs, 'etc/passwd'));
  await symlink('/usr/../../../usr/etc/passwd', join(rootfs, 'etc/passwd'));
  assert.deepEqual(await readAccounts(rootfs), { passwd: 'inside', group: '' });
  await symlink('loop', join(rootfs, 'loop'));
  assert.equal(await resolveInside(rootfs, 'loop'), undefined);
  await rm(join(rootfs, 'etc/group'));
  await mkdir(join(rootfs, 'etc/group'));
  assert.equal((await readAccounts(rootfs)).group, '');
  // However links are laid, the answer lies inside.
  const random = seeded(7);
  const names = ['a', 'b', 'c', '..', '.', '', '/', 'etc'];
  for (let round = 0; round < 200; round++) {
    const target = Array.from({ length: 1 + random(6) }, () => names[random(names.length)]).join('/');
    await rm(join(rootfs, 'a'), { force: true });
    await symlink(target || '/', join(rootfs, 'a'));
    const found = await resolveInside(rootfs, `a/../${target}/a`);
    assert.ok(found === undefined || found === rootfs || found.startsWith(`${rootfs}/`), target);
  }
});

test('sysctls of a pod, and only those', () => {
  const all = { network: true, ipc: true };
  assert.equal(sysctlPath('net.ipv4.tcp_syncookies', all), '/proc/sys/net/ipv4/tcp_syncookies');
  assert.equal(sysctlPath('net/ipv4/conf/eth0.1/rp_filter', all), '/proc/sys/net/ipv4/conf/eth0.1/rp_filter');
  assert.equal(sysctlPath('net.ipv4.conf.eth0/1.rp_filter', all), '/proc/sys/net/ipv4/conf/eth0.1/rp_filter');
  assert.equal(sysctlPath('kernel.shm_rmid_forced', all), '/proc/sys/kernel/shm_rmid_forced');
  assert.equal(sysctlPath('kernel.sem', all), '/proc/sys/kernel/sem');
  assert.equal(sysctlPath('fs.mqueue.msg_max', all), '/proc/sys/fs/mqueue/msg_max');
  for (const name of [
    'kernel.panic',
    'vm.swappiness',
    'net',
    '',
    'net.',
    'net/../kernel/panic',
    'net..x',
    'net/./x',
    'net.a\0b',
    'kernel/shm/../panic',
    'fs.mqueue./../../kernel/panic',
  ]) {
    assert.throws(
      () => sysctlPath(name, all),
      (error) => isError(error, 'SANDBOX_CREATE_FAILED'),
      name,
    );
  }
  assert.throws(() => sysctlPath('net.core.somaxconn', { network: false, ipc: true }), /network/);
  assert.throws(() => sysctlPath('kernel.msgmax', { network: true, ipc: false }), /IPC/);
  const random = seeded(3);
  for (let round = 0; round < 3000; round++) {
    const name = mutate('net.ipv4.conf.eth0/../1.x', random);
    try {
      const path = sysctlPath(name, all);
      assert.ok(
        path.startsWith('/proc/sys/') && !path.split('/').includes('..') && !path.includes('\0'),
        path,
      );
    } catch (error) {
      assert.ok(error instanceof KeelsonError, String(error));
    }
  }
});

test('signals by name and number', () => {
  const cases: [string, number | undefined][] = [
    ['SIGTERM', 15],
    ['term', 15],
    ['9', 9],
    ['SIGRTMIN', 34],
    ['SIGRTMIN+3', 37],
    ['RTMAX-1', 63],
    ['SIGRTMINPLUS3', 37],
    ['SIGRTMAXMINUS1', 63],
    ['SIGRTMAX+1', undefined],
    ['0', undefined],
    ['65', undefined],
    ['SIGNOSUCH', undefined],
    ['', undefined],
    ['toString', undefined],
  ];
  for (const [name, number] of cases) assert.equal(signalNumber(name), number, name);
});

test("conmon's answers", () => {
  assert.equal(readAnswer('{"data": 4711}\n', 'c'), 4711);
  assert.equal(readAnswer('{"pid": 4711}\n', 'c'), 4711);
  const failure = (line: string) => {
    try {
      readAnswer(line, 'c');
    } catch (error) {
      assert.ok(error instanceof KeelsonError);
      return `${error.code} ${error.message}`;
    }
    return 'none';
  };
  const own =
    'runc create failed: unable to start container process: exec: \\"x\\": executable file not found in $PATH\\n';
  assert.match(
    failure(`{"data": -1, "message": "${own}"}\n`),
    /^CONTAINER_START_FAILED container c: OCI runtime create failed: .*"x": executable file not found/,
  );
  assert.match(failure('{"data": -1, "message": "cut of'), /^CONTAINER_START_FAILED container c: .*cut of/);
  for (const line of ['', '\n', '{}', 'null', '[]', '{"data": 1}', '{"data": "7"}', '{"data": 1.5}']) {
    assert.match(failure(line), /^CONTAINER_START_FAILED .*without an answer/, line);
  }
  const random = seeded(11);
  for (let round = 0; round < 3000; round++) {
    const line = mutate(`{"data": -1, "message": "${own}"}\n`, random);
    try {
      assert.ok(readAnswer(line, 'c') > 1);
    } catch (error) {
      assert.ok(error instanceof KeelsonError, `${line}: ${String(error)}`);
    }
  }
});

test('what is hinted at when a create failed', () => {
  const hint = (said: string) => createError(said, 'c').hint?.slice(0, 13);
  const start = 'runc create failed: unable to start container process: ';
  const own = 'check command';
  assert.equal(hint(`${start}exec: "x": permission denied`), own);
  assert.equal(hint(`${start}chdir to cwd ("/x") set in config.json failed: permission denied`), own);
  assert.equal(
    hint(`${start}error during container init: exec: "x": stat x: no such file or directory`),
    own,
  );
  assert.equal(hint('executable file `x` not found in $PATH: No such file or directory'), own);
  assert.equal(hint(`${start}error during container init: error mounting "/a" to rootfs`), undefined);
  assert.equal(hint('something else'), undefined);
});

test("conmon's arguments", () => {
  const base = {
    id: 'id',
    name: 'n',
    bundle: '/b',
    exitDir: '/e',
    temporaryDir: '/t',
    logPath: '/l',
    tty: false,
    stdin: false,
    stdinOnce: false,
    runtime: { path: '/runc', callArgs: ['--root=/r', '--systemd-cgroup'], view: undefined },
  };
  const has = (changes: Partial<typeof base>, ...wanted: string[]) => {
    const args = monitorArguments({ ...base, ...changes });
    return wanted.every((arg) => args.includes(arg));
  };
  assert.ok(has({}, '--exit-dir', '/e', 'k8s-file:/l', '--root=/r', '--full-attach'));
  assert.ok(!has({}, '--terminal') && has({ tty: true }, '--terminal'));
  assert.ok(has({ stdin: true }, '--stdin', '--leave-stdin-open'));
  assert.ok(!has({ stdin: true, stdinOnce: true }, '--leave-stdin-open'));
  const entered = monitorArguments(base, ['/nsenter', '--mount=/m']);
  assert.equal(entered[entered.indexOf('--runtime') + 1], '/nsenter');
  const given = entered.filter((_, index) => entered[index - 1] === '--runtime-arg');
  assert.deepEqual(given.slice(0, 4), ['--mount=/m', '/runc', '--root=/r', '--systemd-cgroup']);
  assert.ok(monitorArguments({ ...base, logPath: undefined }).includes('off'));
});

test("the runtime's log of errors", () => {
  assert.equal(lastError('{"level":"warning","msg":"w"}\n{"level":"error","msg":"e\\n"}\n'), 'e');
  assert.equal(lastError('{"level":"info","msg":"i"}\nnot json\n'), undefined);
  assert.equal(lastError(''), undefined);
});

test('exits', async (t) => {
  assert.equal(exitReason(0, false), 'Completed');
  assert.equal(exitReason(1, false), 'Error');
  assert.equal(exitReason(137, true), 'OOMKilled');
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  t.after(() => rm(folder, { recursive: true }));
  const read = async (text: string) => {
    await writeFile(join(folder, 'x'), text);
    return (await readExit(folder, 'x'))?.code;
  };
  assert.equal(await read('137'), 137);
  assert.equal(await read('-1'), 255);
  assert.equal(await read(''), 255);
  assert.equal(await readExit(folder, 'y'), undefined);
});

test('overlay options', () => {
  assert.equal(
    overlayOptions(['/l/2', '/l/1'], '/d'),
    'lowerdir=/l/2:/l/1,upperdir=/d/upper,workdir=/d/work',
  );
  assert.equal(
    overlayOptions(['/2', '/1'], undefined, 'a:b:c:s0:c1,c2'),
    'lowerdir=/2:/1,context="a:b:c:s0:c1,c2"',
  );
  assert.match(overlayOptions(['/a:b,c'], '/d'), /^lowerdir=\/a\\:b\\,c,/);
  const many = Array.from({ length: 127 }, (_, index) => `/var/lib/keelson/layers/${index}${'x'.repeat(20)}`);
  assert.throws(
    () => overlayOptions(many, '/d'),
    (error) => isError(error, 'CONTAINER_CREATE_FAILED'),
  );
});

test('resolv.conf and bandwidth', () => {
  assert.equal(
    resolvConf({ servers: ['1.1.1.1', '::1'], searches: ['a.b', 'c'], options: ['ndots:5'] }),
    'search a.b c\nnameserver 1.1.1.1\nnameserver ::1\noptions ndots:5\n',
  );
  assert.equal(resolvConf({ servers: [], searches: [], options: [] }), '');
  const cases: [string | undefined, number | undefined][] = [
    ['10M', 10_000_000],
    ['1Gi', 2 ** 30],
    ['1.5k', 1500],
    ['7', 7],
    ['', undefined],
    [undefined, undefined],
    ['M', undefined],
    ['1m', 1],
    ['1P', 1e15],
    ['2e6', 2_000_000],
    ['2.5E3', 2500],
    ['.5M', 500_000],
    ['1E', 1e18],
    ['-1', undefined],
    ['1x', undefined],
    ['1kI', undefined],
    ['1e', undefined],
    ['.', undefined],
  ];
  for (const [quantity, bits] of cases) assert.equal(bitsPerSecond(quantity), bits, String(quantity));
});

test('mountinfo of any bytes', () => {
  const random = seeded(5);
  const line = '30 27 0:26 / /with\\040space rw shared:3 master:2 - tmpfs tmpfs rw\n';
  for (let round = 0; round < 2000; round++) {
    for (const { path } of parseMountinfo(mutate(line.repeat(2), random)))
      assert.equal(typeof path, 'string');
  }
});
