/** What is read of cgroups, networks and disks, and what is made of it. */
import assert from 'node:assert/strict';
import { linkSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../runtime/host/clock.ts';
import { metricDescriptors } from '../../runtime/report/descriptors.ts';
import { parseNetDev } from '../../runtime/report/network.ts';
import { nanoCoresBetween, podCgroup, sumOf } from '../../runtime/report/stats.ts';
import {
  makeUsageReader,
  parseBlkio,
  parseIoStat,
  parseLimit,
  parsePressure,
  workingSetOf,
} from '../../runtime/report/usage.ts';
import { makeWrittenSizes } from '../../runtime/report/written.ts';
import { temporaryFolder } from '../peers/image-store.ts';

/** Writes `files` below `folder`, with the folders that they need. */
function put(folder: string, files: Readonly<Record<string, string>>): void {
  for (const [name, text] of Object.entries(files)) {
    const path = join(folder, name);
    mkdirSync(join(path, '..'), { recursive: true });
    writeFileSync(path, text);
  }
}

test('a group of cgroup v2', async (t) => {
  const root = temporaryFolder(t);
  put(join(root, 'pod/c'), {
    'cpu.stat':
      'usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 2\nthrottled_usec 7\n',
    'memory.current': '1000\n',
    'memory.max': '5000\n',
    'memory.peak': '2000\n',
    'memory.stat':
      'anon 300\nfile 600\nkernel 50\nfile_mapped 70\ninactive_file 400\npgfault 11\npgmajfault 1\n',
    'memory.events': 'low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n',
    'memory.swap.current': '8\n',
    'memory.swap.max': 'max\n',
    'pids.current': '3\n',
    'pids.max': '10\n',
    'io.stat': '8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n',
    'cpu.pressure':
      'some avg10=1.50 avg60=0.20 avg300=0.03 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n',
  });
  const usage = (await makeUsageReader(2, root)('/pod/c'))!;
  assert.deepEqual(usage.cpu, {
    usageNs: 1_500_000,
    userNs: 1_000_000,
    systemNs: 500_000,
    periods: 9,
    throttledPeriods: 2,
    throttledNs: 7000,
  });
  assert.deepEqual(usage.memory, {
    usage: 1000,
    limit: 5000,
    max: 2000,
    cache: 600,
    rss: 300,
    mapped: 70,
    kernel: 50,
    inactiveFile: 400,
    pageFaults: 11,
    majorPageFaults: 1,
    failures: 4,
    swap: 8,
    swapLimit: undefined,
  });
  assert.equal(workingSetOf(usage.memory), 600);
  assert.deepEqual([usage.tasks, usage.taskLimit], [3, 10]);
  assert.deepEqual(usage.io, [{ device: '8:0', readBytes: 1, writeBytes: 2, reads: 3, writes: 4 }]);
  assert.deepEqual(usage.pressure.cpu, {
    some: { avg10: 1.5, avg60: 0.2, avg300: 0.03, total: 123_456 },
    full: { avg10: 0, avg60: 0, avg300: 0, total: 99 },
  });
  assert.equal(usage.pressure.memory, undefined);
  assert.equal(await makeUsageReader(2, root)('/pod/gone'), undefined);
});

test('a group of cgroup v1', async (t) => {
  const root = temporaryFolder(t);
  put(root, {
    'cpuacct/c/cpuacct.usage': '123456789\n',
    'cpuacct/c/cpuacct.stat': 'user 7\nsystem 5\n',
    'cpu/c/cpu.stat': 'nr_periods 2\nnr_throttled 1\nthrottled_time 55\n',
    'memory/c/memory.usage_in_bytes': '1000\n',
    'memory/c/memory.limit_in_bytes': '9223372036854771712\n',
    'memory/c/memory.max_usage_in_bytes': '3000\n',
    'memory/c/memory.stat':
      'cache 1\nrss 1\ntotal_cache 600\ntotal_rss 300\ntotal_mapped_file 9\ntotal_inactive_file 1500\ntotal_pgfault 4\ntotal_pgmajfault 2\n',
    'memory/c/memory.kmem.usage_in_bytes': '44\n',
    'memory/c/memory.failcnt': '6\n',
    'memory/c/memory.memsw.usage_in_bytes': '1010\n',
    'memory/c/memory.memsw.limit_in_bytes': '9223372036854771712\n',
    'pids/c/pids.current': '2\n',
    'pids/c/pids.max': 'max\n',
  });
  const usage = (await makeUsageReader(1, root)('/c'))!;
  assert.deepEqual(usage.cpu, {
    usageNs: 123_456_789,
    userNs: 70_000_000,
    systemNs: 50_000_000,
    periods: 2,
    throttledPeriods: 1,
    throttledNs: 55,
  });
  const { memory } = usage;
  assert.deepEqual(
    [memory.usage, memory.limit, memory.max, memory.cache, memory.rss, memory.swap, memory.kernel],
    [1000, undefined, 3000, 600, 300, 10, 44],
  );
  assert.equal(workingSetOf(memory), 0, 'never below 0');
  assert.equal(usage.taskLimit, undefined);
  assert.deepEqual(usage.io, []);
  assert.equal(await makeUsageReader(1, root)('/gone'), undefined);
});

test('limits', () => {
  for (const [text, expected] of [
    ['max\n', undefined],
    ['', undefined],
    [undefined, undefined],
    ['9223372036854771712', undefined],
    ['4096\n', 4096],
    ['0', 0],
    ['garbage', undefined],
  ] as const) {
    assert.equal(parseLimit(text), expected);
  }
});

test('devices of both versions, and lines that are none', () => {
  assert.deepEqual(parseIoStat('8:16 \n\n8:0 rbytes=5\n'), [
    { device: '8:0', readBytes: 5, writeBytes: 0, reads: 0, writes: 0 },
  ]);
  assert.deepEqual(
    parseBlkio('8:0 Read 4096\n8:0 Write 1\n8:0 Total 4097\nTotal 4097\n', '8:0 Read 2\n7:1 Write 3\n'),
    [
      { device: '8:0', readBytes: 4096, writeBytes: 1, reads: 2, writes: 0 },
      { device: '7:1', readBytes: 0, writeBytes: 0, reads: 0, writes: 3 },
    ],
  );
  assert.equal(parsePressure(undefined), undefined);
  assert.equal(parsePressure('Operation not supported'), undefined);
});

test('interfaces without the loopback, with names close to the numbers', () => {
  const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:12345678       2    3    4    0     0          0         0        5       6    7    8    0     0       0          0
`;
  assert.deepEqual(parseNetDev(text), [
    {
      name: 'eth0',
      rxBytes: 12_345_678,
      rxPackets: 2,
      rxErrors: 3,
      rxDropped: 4,
      txBytes: 5,
      txPackets: 6,
      txErrors: 7,
      txDropped: 8,
    },
  ]);
  assert.deepEqual(parseNetDev(''), []);
});

test('speed between two readings', () => {
  assert.equal(nanoCoresBetween({ at: 1000, usageNs: 0 }, { at: 3000, usageNs: 1e9 }), 5e8);
  assert.equal(nanoCoresBetween({ at: 0, usageNs: 5 }, { at: 1000, usageNs: 0 }), 0, 'a new group');
});

test("the pod's cgroup by driver", () => {
  assert.equal(podCgroup('cgroupfs', ''), undefined);
  assert.equal(podCgroup('cgroupfs', '/'), undefined);
  assert.equal(podCgroup('cgroupfs', '/kubepods/pod1/'), '/kubepods/pod1');
  assert.equal(podCgroup('systemd', 'kubepods-pod1.slice'), '/kubepods.slice/kubepods-pod1.slice');
});

test('a pod without a cgroup has the sum of its containers', () => {
  const cpu = { usageNs: 1, userNs: 1, systemNs: 0, periods: 0, throttledPeriods: 0, throttledNs: 0 };
  const memory = {
    ...{ usage: 10, limit: 20, max: 0, cache: 0, rss: 1, mapped: 0, kernel: 0, inactiveFile: 4 },
    ...{ pageFaults: 0, majorPageFaults: 0, failures: 0, swap: 0 },
  };
  const usage = { cpu, memory, tasks: 2, io: [], hugepages: [], pressure: {} };
  const sum = sumOf([
    { at: 1, usage },
    { at: 2, usage },
    { at: 3, usage },
  ])!;
  assert.equal(sum.usage.cpu.usageNs, 3);
  assert.deepEqual([sum.usage.memory.usage, sum.usage.memory.limit, sum.usage.tasks], [30, undefined, 6]);
  assert.equal(sumOf([]), undefined);
});

test('what was written: blocks and inodes, names of one file once', async (t) => {
  const folder = temporaryFolder(t);
  put(folder, { 'a/b/file': 'x'.repeat(10_000), other: 'y' });
  linkSync(join(folder, 'a/b/file'), join(folder, 'again'));
  symlinkSync('/etc', join(folder, 'link'));
  const sizes = makeWrittenSizes(systemClock);
  const stats = (await sizes.of('id', folder))!;
  // a, a/b, file, other, link.
  assert.equal(stats.usedInodes, 5);
  assert.ok(stats.usedBytes >= 10_000 && stats.usedBytes < 100_000, `${stats.usedBytes}`);
  rmSync(folder, { recursive: true });
  // Not walked again so soon.
  assert.deepEqual(await sizes.of('id', folder), stats);
  sizes.keep(() => false);
  assert.deepEqual((await sizes.of('id', folder))?.usedInodes, 0);
});

test('every metric says what it is', () => {
  assert.ok(metricDescriptors.length >= 56);
  for (const { name, help, labelKeys } of metricDescriptors) {
    assert.match(name, /^container_[a-z_]+$/);
    assert.ok(help.length > 0 && labelKeys.includes('pod'), name);
    assert.equal(new Set(labelKeys).size, labelKeys.length, name);
  }
});
