import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import {
  cleanCgroupPath,
  cpuWeightOf,
  detectCgroups,
  hierarchyFiles,
  slicePath,
  unifiedFiles,
} from '../../runtime/host/cgroups.ts';
import { isError } from '../../runtime/host/errors.ts';

const v1 = '/sys/fs/cgroup';
const noV1 =
  process.getuid?.() !== 0 || !existsSync(`${v1}/memory/cgroup.procs`)
    ? 'needs root and cgroup v1 with the memory controller'
    : false;
/** A real cgroup2: the whole tree, or the part of a hybrid one. */
const v2 = [v1, `${v1}/unified`].find((path) => existsSync(`${path}/cgroup.controllers`));
const noV2 = process.getuid?.() !== 0 || v2 === undefined ? 'needs root and a cgroup v2 tree' : false;

async function fake(t: TestContext): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  return root;
}

function sleeper(t: TestContext): ChildProcess {
  const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
  t.after(() => child.kill('SIGKILL'));
  return child;
}

test('v1 shares as v2 weights', () => {
  const cases: [number, number][] = [
    [0, 1],
    [2, 1],
    [1024, 100],
    [262_144, 10_000],
    [10 ** 9, 10_000],
  ];
  for (const [shares, weight] of cases) assert.equal(cpuWeightOf(shares), weight, String(shares));
  for (let shares = 3; shares < 262_144; shares = Math.ceil(shares * 1.3)) {
    assert.ok(cpuWeightOf(shares) >= cpuWeightOf(shares - 1) && cpuWeightOf(shares) <= 10_000);
  }
});

test('resources as files', () => {
  assert.deepEqual(unifiedFiles({}), []);
  assert.deepEqual(hierarchyFiles({}), []);
  const resources = {
    cpuShares: 1024,
    cpuQuota: 20_000,
    cpuPeriod: 50_000,
    memoryLimitBytes: 7,
    pidsLimit: 9,
  };
  assert.deepEqual(unifiedFiles(resources), [
    ['cpu.weight', '100'],
    ['cpu.max', '20000 50000'],
    ['memory.max', '7'],
    ['pids.max', '9'],
  ]);
  assert.deepEqual(hierarchyFiles(resources), [
    ['cpu', 'cpu.shares', '1024'],
    ['cpu', 'cpu.cfs_period_us', '50000'],
    ['cpu', 'cpu.cfs_quota_us', '20000'],
    ['memory', 'memory.limit_in_bytes', '7'],
    ['pids', 'pids.max', '9'],
  ]);
  const pages = { hugepageLimits: [{ pageSize: '2MB', limit: 0 }] };
  assert.deepEqual(unifiedFiles(pages), [['hugetlb.2MB.max', '0']]);
  assert.deepEqual(hierarchyFiles(pages), [['hugetlb', 'hugetlb.2MB.limit_in_bytes', '0']]);
  const none = { cpuQuota: -1, memoryLimitBytes: -1, pidsLimit: -1 };
  assert.deepEqual(unifiedFiles(none), [
    ['cpu.max', 'max 100000'],
    ['memory.max', 'max'],
    ['pids.max', 'max'],
  ]);
  assert.deepEqual(
    hierarchyFiles(none).map(([, , value]) => value),
    ['-1', '-1', 'max'],
  );
});

test('paths that lead elsewhere are refused', async (t) => {
  assert.equal(cleanCgroupPath('//a///b/'), '/a/b');
  for (const path of ['', 'a', '/..', '/a/../b', '/a/.', '/a\0']) {
    assert.throws(
      () => cleanCgroupPath(path),
      (error) => isError(error, 'INVALID_ARGUMENT'),
      path,
    );
  }
  const root = await fake(t);
  await writeFile(join(root, 'cgroup.controllers'), '');
  const cgroups = detectCgroups(root);
  for (const path of ['/', '//', '/../x', 'x']) {
    await assert.rejects(cgroups.remove(path), (error) => isError(error, 'INVALID_ARGUMENT'));
    await assert.rejects(cgroups.kill(path), (error) => isError(error, 'INVALID_ARGUMENT'));
  }
  assert.equal(slicePath('kubepods-besteffort.slice'), '/kubepods.slice/kubepods-besteffort.slice');
});

test('v2: controllers are handed down from the root, limits written below', async (t) => {
  const root = await fake(t);
  for (const path of ['', 'kubepods', 'kubepods/burstable', 'kubepods/burstable/pod1']) {
    await mkdir(join(root, path), { recursive: true });
    await writeFile(join(root, path, 'cgroup.controllers'), 'cpuset cpu io memory pids rdma\n');
    await writeFile(join(root, path, 'cgroup.subtree_control'), path === '' ? 'cpu memory\n' : '\n');
  }
  const cgroups = detectCgroups(root);
  assert.equal(cgroups.version, 2);
  await cgroups.ensure('/kubepods/burstable/pod1', { cpuShares: 102, memoryLimitBytes: 1 << 20 });
  const read = (file: string) => readFile(join(root, file), 'utf8');
  // A plain file keeps only the last write.
  assert.equal(await read('cgroup.subtree_control'), '+pids');
  assert.equal(await read('kubepods/cgroup.subtree_control'), '+pids');
  assert.equal(await read('kubepods/burstable/cgroup.subtree_control'), '+pids');
  assert.equal(await read('kubepods/burstable/pod1/cgroup.subtree_control'), '\n');
  assert.equal(await read('kubepods/burstable/pod1/memory.max'), String(1 << 20));
  assert.equal(await read('kubepods/burstable/pod1/cpu.weight'), String(cpuWeightOf(102)));
  await writeFile(join(root, 'kubepods/memory.events'), 'low 0\noom 3\noom_kill 2\noom_group_kill 0\n');
  assert.equal(await cgroups.oomKills('/kubepods'), 2);
  assert.equal(await cgroups.oomKills('/kubepods/none'), 0);
});

for (const { name, root, skip } of [
  { name: 'v1', root: v1, skip: noV1 },
  { name: 'v2', root: v2 ?? '', skip: noV2 },
]) {
  test(`a real ${name} tree: make, fill, kill, remove`, { skip }, async (t) => {
    const cgroups = detectCgroups(root);
    const top = `/keelson-test-${randomBytes(4).toString('hex')}`;
    t.after(async () => {
      await cgroups.kill(top);
      await cgroups.remove(top);
    });
    await cgroups.ensure(`${top}/a/b`);
    await cgroups.ensure(`${top}/a/b`);
    const hierarchies =
      cgroups.version === 2
        ? [root]
        : (await readdir(root, { withFileTypes: true }))
            .filter((entry) => entry.isDirectory() && existsSync(`${root}/${entry.name}/cgroup.procs`))
            .map((entry) => `${root}/${entry.name}`);
    assert.ok(hierarchies.length > 0);
    for (const hierarchy of hierarchies) assert.ok(existsSync(`${hierarchy}${top}/a/b`), hierarchy);
    const child = sleeper(t);
    const ended = new Promise((resolve) => child.once('exit', (_, signal) => resolve(signal)));
    for (const hierarchy of hierarchies) {
      await writeFile(`${hierarchy}${top}/a/b/cgroup.procs`, String(child.pid));
    }
    await assert.rejects(cgroups.remove(top, AbortSignal.timeout(50)));
    assert.ok(existsSync(`${hierarchies[0]}${top}/a/b`));
    await cgroups.kill(top);
    assert.equal(await ended, 'SIGKILL');
    await cgroups.remove(top);
    await cgroups.remove(top);
    for (const hierarchy of hierarchies) assert.ok(!existsSync(`${hierarchy}${top}`), hierarchy);
  });
}

test('v1 limits are set, and set again', { skip: noV1 }, async (t) => {
  const cgroups = detectCgroups();
  const path = `/keelson-test-${randomBytes(4).toString('hex')}/pod`;
  t.after(() => cgroups.remove(path.slice(0, path.lastIndexOf('/'))));
  await cgroups.ensure(path, {
    cpuShares: 512,
    cpuQuota: 50_000,
    cpuPeriod: 100_000,
    memoryLimitBytes: 64 << 20,
    pidsLimit: 50,
  });
  const read = async (file: string) =>
    (await readFile(join(v1, file.replace('/', `${path}/`)), 'utf8')).trim();
  assert.equal(await read('cpu/cpu.shares'), '512');
  assert.equal(await read('cpu/cpu.cfs_quota_us'), '50000');
  assert.equal(await read('memory/memory.limit_in_bytes'), String(64 << 20));
  assert.equal(await read('pids/pids.max'), '50');
  assert.notEqual(await read('cpuset/cpuset.cpus'), '', 'processes can join');
  assert.deepEqual(await cgroups.children(path.slice(0, path.lastIndexOf('/'))), ['pod']);
  assert.deepEqual(await cgroups.children(`${path}/none`), []);
  await cgroups.ensure(path, { cpuQuota: -1, memoryLimitBytes: -1, pidsLimit: -1 });
  assert.equal(await read('cpu/cpu.cfs_quota_us'), '-1');
  assert.equal(await read('pids/pids.max'), 'max');
  await assert.rejects(cgroups.ensure(path, { cpuQuota: 1 }), (error) => isError(error, 'SYSCALL_FAILED'));
});

for (const version of [1, 2] as const) {
  test(`files of a v${version} group`, async (t) => {
    const root = await fake(t);
    if (version === 2) await writeFile(join(root, 'cgroup.controllers'), 'memory');
    const folder = version === 2 ? join(root, 'a/b') : join(root, 'cpu,memory/a/b');
    await mkdir(folder, { recursive: true });
    if (version === 1) await writeFile(join(root, 'cpu,memory/cgroup.procs'), '');
    const cgroups = detectCgroups(root);
    await writeFile(join(folder, 'memory.max'), 'max\n');
    assert.equal(await cgroups.read('/a/b/', 'memory', 'memory.max'), 'max\n');
    assert.equal(await cgroups.read('/a/b', 'memory', 'memory.high'), undefined);
    assert.equal(await cgroups.read('/a/none', 'memory', 'memory.max'), undefined);
    await cgroups.write('/a/b', 'memory', 'memory.max', '5');
    assert.equal(await readFile(join(folder, 'memory.max'), 'utf8'), '5');
    await cgroups.write('/a/b', 'memory', 'memory.max', '');
    assert.equal(await readFile(join(folder, 'memory.max'), 'utf8'), '\n', 'an empty value is a write, too');
    for (const file of ['../memory.max', 'a/b', '']) {
      await assert.rejects(cgroups.read('/a/b', 'memory', file), (error) =>
        isError(error, 'INVALID_ARGUMENT'),
      );
      await assert.rejects(cgroups.write('/a/b', 'memory', file, ''), (error) =>
        isError(error, 'INVALID_ARGUMENT'),
      );
    }
    await assert.rejects(cgroups.write('/../x', 'memory', 'memory.max', '5'), (error) =>
      isError(error, 'INVALID_ARGUMENT'),
    );
  });
}

test('huge pages are limited where the kernel can, and are no fault where it cannot', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'keelson-test-hugetlb-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  const resources = { memoryLimitBytes: 7, hugepageLimits: [{ pageSize: '2MB', limit: 4_194_304 }] };
  const file = (name: string) => readFile(join(root, name), 'utf8');
  for (const controller of ['memory', 'hugetlb']) {
    await mkdir(join(root, controller, 'pod'), { recursive: true });
    await writeFile(join(root, controller, 'cgroup.procs'), '');
    const name = controller === 'memory' ? 'memory.limit_in_bytes' : 'hugetlb.2MB.limit_in_bytes';
    await writeFile(join(root, controller, 'pod', name), '');
    await detectCgroups(root).ensure('/pod', resources);
    assert.equal(await file('memory/pod/memory.limit_in_bytes'), '7');
  }
  assert.equal(await file('hugetlb/pod/hugetlb.2MB.limit_in_bytes'), '4194304');
});
