/** What the node's API tells of usage: reading, the Summary API, and the metrics' text. */
import assert from 'node:assert/strict';
import { linkSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { machineMemory, parseNetDev, parsePressure, parseStat } from '../../../agent/api/stats/procfs.ts';
import { makeStorageReader, measure } from '../../../agent/api/stats/storage.ts';
import {
  ephemeralOf,
  type MeasuredNode,
  type MeasuredPod,
  type Storage,
  summaryOf,
} from '../../../agent/api/stats/summary.ts';
import { podMetricsText, resourceText } from '../../../agent/api/stats/text.ts';
import type { Pod } from '../../../agent/apiserver/types.ts';
import { systemClock } from '../../../runtime/host/clock.ts';

test("the kernel's files", () => {
  assert.deepEqual(parseStat('cpu  10 2 3 1000 50 4 5 6 7 8\ncpu0 1 1 1\nbtime 1700000000\n'), {
    busyNs: 24e7,
    bootedAt: 1_700_000_000_000,
  });
  assert.deepEqual(parseStat('garbage'), { busyNs: 0, bootedAt: 0 });
  const dev =
    'Inter-|   Receive\n face |bytes\n    lo: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n  eth0:99 1 0 0 0 0 0 0 77 1 0 0 0 0 0 0\n';
  assert.deepEqual(
    parseNetDev(dev).map(({ name, rxBytes, rxErrors, txBytes, txErrors }) => [
      ...[name, rxBytes, rxErrors, txBytes, txErrors],
    ]),
    [
      ['lo', 1, 3, 5, 7],
      ['eth0', 99, 0, 77, 0],
    ],
  );
  const line = 'some avg10=1.50 avg60=0.25 avg300=0.00 total=123\n';
  assert.deepEqual(parsePressure(line)?.some, { avg10: 1.5, avg60: 0.25, avg300: 0, total: 123 });
  assert.equal(parsePressure(line)?.full.total, 0);
  assert.equal(parsePressure(''), undefined);
  const meminfo = ['MemTotal: 1000 kB', 'MemFree: 300 kB', 'Inactive(file): 100 kB', 'AnonPages: 50 kB']
    .concat(['SwapTotal: 20 kB', 'SwapFree: 15 kB'])
    .join('\n');
  const { memory, swap } = machineMemory(meminfo, 'pgfault 11\npgmajfault 2\n', 1024, 5);
  assert.deepEqual(memory, {
    ...{ at: 5, usage: 700 * 1024, workingSet: 600 * 1024, available: 399 * 1024, rss: 50 * 1024 },
    ...{ pageFaults: 11, majorPageFaults: 2 },
  });
  assert.deepEqual(swap, { at: 5, usage: 5 * 1024, available: 15 * 1024 });
});

test('folders: blocks and inodes, hard links once, links not followed; volumes of a pod', async (t) => {
  const root = mkdtempSync(join(tmpdir(), 'keelson-test-stats-'));
  t.after(() => rmSync(root, { recursive: true }));
  const volume = join(root, 'pods/u1/volumes/kubernetes.io~empty-dir/data');
  mkdirSync(join(volume, 'sub'), { recursive: true });
  writeFileSync(join(volume, 'a'), Buffer.alloc(100_000));
  linkSync(join(volume, 'a'), join(volume, 'sub/b'));
  symlinkSync('/', join(volume, 'sub/root'));
  const { bytes, inodes } = await measure(volume);
  assert.equal(inodes, 4, 'two folders, a file, a link');
  assert.ok(bytes >= 100_000 && bytes < 150_000, String(bytes));
  assert.deepEqual(await measure(join(root, 'none')), { bytes: 0, inodes: 0 });

  const reader = makeStorageReader({ kubeletDir: root, clock: systemClock });
  const pod = {
    metadata: { name: 'web', namespace: 'shop', uid: 'u1' },
    spec: { volumes: [{ name: 'data', emptyDir: {} }] },
  } as unknown as Pod;
  const [found, ...others] = await reader.volumes(pod);
  assert.equal(others.length, 0);
  assert.deepEqual([found!.name, found!.claim, found!.ephemeral], ['data', undefined, true]);
  assert.deepEqual([found!.storage.usedBytes, found!.storage.inodesUsed], [bytes, inodes]);
  assert.ok(found!.storage.capacityBytes > 0);
  // Within a minute it is not walked again.
  writeFileSync(join(volume, 'more'), Buffer.alloc(100_000));
  assert.equal((await reader.volumes(pod))[0]!.storage.usedBytes, bytes);
  assert.deepEqual(await reader.volumes({ metadata: { uid: 'other' } } as unknown as Pod), []);
  assert.equal(await reader.filesystem(join(root, 'none')), undefined);
});

const at = Date.UTC(2026, 0, 2, 3, 4, 5, 600);
const cpu = { at, usageNs: 2.5e9, nanoCores: 1e6 };
const memory = { at, usage: 9, workingSet: 8, rss: 7, pageFaults: 6, majorPageFaults: 5 };
const storage = (usedBytes: number): Storage => ({
  ...{ at, capacityBytes: 100, availableBytes: 60, usedBytes, inodes: 50, inodesFree: 40, inodesUsed: 3 },
});
const node: MeasuredNode = {
  ...{ name: 'edge-1', bootedAt: at - 1000, cpu, memory, swap: { at, usage: 1, available: 2 } },
  tasks: { at, count: 5, most: 99 },
  nodefs: storage(40),
  imagefs: storage(30),
  network: { at, main: 'eth0', interfaces: [] },
  agent: { startedAt: at, cpu, memory },
};
const about = { labels: {}, annotations: {} };
const pod: MeasuredPod = {
  createdAt: at,
  stats: {
    ...{
      id: 's',
      ...about,
      cpu,
      memory,
      metadata: { name: 'web', namespace: 'shop', uid: 'u1', attempt: 0 },
    },
    containers: [],
  },
  containers: [
    {
      createdAt: at,
      stats: {
        ...{ id: 'c', podSandboxId: 's', ...about, metadata: { name: 'app', attempt: 0 } },
        cpu: {
          ...cpu,
          pressure: {
            some: { total: 3, avg10: 1, avg60: 0, avg300: 0 },
            full: { total: 0, avg10: 0, avg60: 0, avg300: 0 },
          },
        },
        memory: { ...memory, available: -0.4 },
        swap: { at, usage: 4, available: 6 },
      },
      rootfs: storage(10),
      logs: storage(5),
    },
  ],
  volumes: [
    { name: 'data', ephemeral: true, storage: storage(20) },
    { name: 'kept', ephemeral: false, storage: storage(1000), claim: { name: 'c', namespace: 'shop' } },
  ],
};

test('the Summary API', () => {
  const plain = (value: unknown) => JSON.parse(JSON.stringify(value));
  const summary = plain(summaryOf(node, [pod], false));
  assert.deepEqual(Object.keys(summary.node).sort(), [
    ...['cpu', 'fs', 'memory', 'network', 'nodeName', 'rlimit', 'runtime', 'startTime', 'swap'],
    'systemContainers',
  ]);
  assert.deepEqual(summary.node.cpu, {
    ...{ time: '2026-01-02T03:04:05Z', usageNanoCores: 1e6, usageCoreNanoSeconds: 2.5e9 },
  });
  assert.deepEqual(summary.node.systemContainers[0].name, 'kubelet');
  const [web] = summary.pods;
  assert.deepEqual(web.podRef, { name: 'web', namespace: 'shop', uid: 'u1' });
  const [app] = web.containers;
  assert.equal(app.cpu.psi.some.total, 3000);
  assert.equal(app.memory.availableBytes, 0, 'not negative');
  assert.deepEqual([app.rootfs.usedBytes, app.logs.usedBytes], [10, 5]);
  assert.equal(web['ephemeral-storage'].usedBytes, 35);
  assert.equal(web['ephemeral-storage'].inodesUsed, 9);
  assert.deepEqual(
    web.volume.map((volume: { name: string; pvcRef?: object }) => [volume.name, volume.pvcRef]),
    [
      ['data', undefined],
      ['kept', { name: 'c', namespace: 'shop' }],
    ],
  );
  assert.equal(web.swap.swapUsageBytes, 4);
  const brief = plain(summaryOf(node, [pod], true));
  assert.equal(brief.node.fs ?? brief.node.rlimit ?? brief.pods[0].volume, undefined);
  assert.equal(brief.pods[0].containers[0].rootfs, undefined);
  assert.equal(ephemeralOf([], []), undefined);
});

test('metrics: names, labels, times; quotes in labels', () => {
  const text = resourceText(node, [pod]);
  for (const line of [
    `node_cpu_usage_seconds_total 2.5 ${at}`,
    'container_start_time_seconds{container="app",pod="web",namespace="shop"} 1767323045.6',
    `container_cpu_usage_seconds_total{container="app",pod="web",namespace="shop"} 2.5 ${at}`,
    `container_swap_limit_bytes{container="app",pod="web",namespace="shop"} 10 ${at}`,
    `pod_memory_working_set_bytes{pod="web",namespace="shop"} 8 ${at}`,
    'resource_scrape_error 0',
  ]) {
    assert.ok(text.split('\n').includes(line), line);
  }
  const metric = { name: 'm_total', at, type: 'counter' as const, value: 3 };
  const pods = podMetricsText(
    [{ name: 'm_total', help: 'M', labelKeys: ['a', 'b'] }],
    [
      {
        podSandboxId: 's',
        metrics: [{ ...metric, labelValues: ['x"\\\n', 'y'] }],
        containers: [
          {
            id: 'c',
            metrics: [
              { ...metric, labelValues: ['z'] },
              { ...metric, name: 'unknown', labelValues: [] },
            ],
          },
        ],
      },
    ],
    { cpus: 2, memoryBytes: 7 },
  );
  assert.equal(
    pods,
    [
      '# HELP m_total M',
      '# TYPE m_total counter',
      `m_total{a="x\\"\\\\\\n",b="y"} 3 ${at}`,
      `m_total{a="z",b=""} 3 ${at}`,
      ...[
        '# HELP machine_cpu_cores Number of logical CPU cores',
        '# TYPE machine_cpu_cores gauge',
        'machine_cpu_cores 2',
      ],
      '# HELP machine_memory_bytes Amount of memory installed on the machine',
      ...['# TYPE machine_memory_bytes gauge', 'machine_memory_bytes 7', ''],
    ].join('\n'),
  );
});
