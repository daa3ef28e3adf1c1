import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { NetworkInterfaceInfo } from 'node:os';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { internalIps, splitNodeIp } from '../../../agent/node/addresses.ts';
import { makeFactsReader } from '../../../agent/node/facts.ts';
import * as procfs from '../../../agent/node/procfs.ts';
import { seeded } from '../apiserver/fake.ts';

const route = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
wlan0	00000000	0102A8C0	0003	0	0	600	00000000	0	0	0
eth0	00000000	010200C0	0003	0	0	100	00000000	0	0	0
eth1	00000000	010200C0	0002	0	0	0	00000000	0	0	0
eth0	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
`;
const route6 = `fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000002 00000000 00000003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
`;
const meminfo =
  'MemTotal:       24684084 kB\nMemAvailable:   24225036 kB\nSwapTotal:             0 kB\nHugePages_Total:       3\nDirectMap4k (x):  1 kB\n';

test('files of the kernel are read', () => {
  assert.deepEqual(procfs.parseMeminfo(meminfo), {
    MemTotal: 24684084 * 1024,
    MemAvailable: 24225036 * 1024,
    SwapTotal: 0,
    HugePages_Total: 3,
  });
  assert.equal(procfs.countCpus('0-3,8\n'), 5);
  assert.equal(procfs.countCpus('0'), 1);
  for (const text of ['', '3-1', 'x', '0,', '0-']) assert.equal(procfs.countCpus(text), undefined, text);
  assert.equal(procfs.parseTaskCount('0.10 0.20 0.30 2/345 6789\n'), 345);
  assert.equal(procfs.parseTaskCount('nonsense'), undefined);
  assert.deepEqual(procfs.parseDefaultRoutes4(route), [
    { interface: 'eth0', metric: 100 },
    { interface: 'wlan0', metric: 600 },
  ]);
  assert.deepEqual(procfs.parseDefaultRoutes6(route6), [{ interface: 'eth0', metric: 0x400 }]);
  assert.deepEqual(procfs.hugepageResource('hugepages-2048kB'), {
    name: 'hugepages-2Mi',
    pageBytes: 2 ** 21,
  });
  assert.deepEqual(procfs.hugepageResource('hugepages-1048576kB'), {
    name: 'hugepages-1Gi',
    pageBytes: 2 ** 30,
  });
  assert.deepEqual(procfs.hugepageResource('hugepages-64kB'), { name: 'hugepages-64Ki', pageBytes: 65536 });
  assert.equal(procfs.hugepageResource('other'), undefined);
});

test('os-release with every kind of quoting', () => {
  const text = `# no\nNAME="A \\"B\\""\nID=debian\nPRETTY_NAME='x $y'\nEMPTY=\nbad line\n`;
  assert.deepEqual(procfs.parseOsRelease(text), {
    NAME: 'A "B"',
    ID: 'debian',
    PRETTY_NAME: 'x $y',
    EMPTY: '',
  });
});

test('mutated files never make a parser throw or give a number that is none', () => {
  const random = seeded(21);
  const parsers: [string, (text: string) => unknown][] = [
    [meminfo, procfs.parseMeminfo],
    ['0-3,8', procfs.countCpus],
    ['0.10 0.20 0.30 2/345 6789\n', procfs.parseTaskCount],
    ['NAME="x"\nID=y\n', procfs.parseOsRelease],
    [route, procfs.parseDefaultRoutes4],
    [route6, procfs.parseDefaultRoutes6],
    ['hugepages-2048kB', procfs.hugepageResource],
  ];
  for (let i = 0; i < 20_000; i++) {
    const [text, parse] = parsers[i % parsers.length]!;
    const characters = [...text];
    for (let n = 0; n < 1 + random() * 5; n++) {
      const at = Math.floor(random() * characters.length);
      if (random() < 0.5) characters.splice(at, 1 + Math.floor(random() * 8));
      else characters.splice(at, 0, String.fromCharCode(Math.floor(random() * 200)));
    }
    const found = JSON.stringify(parse(characters.join('')) ?? {}, (_, value) => {
      assert.ok(typeof value !== 'number' || (Number.isFinite(value) && value >= 0), String(value));
      return value;
    });
    assert.ok(found.length < 10_000);
  }
});

const info = (address: string, more: Partial<NetworkInterfaceInfo> = {}) =>
  ({
    address,
    family: address.includes(':') ? 'IPv6' : 'IPv4',
    internal: false,
    ...more,
  }) as NetworkInterfaceInfo;

test('the address of the default route is taken, IPv4 first', () => {
  const network = {
    interfaces: {
      lo: [info('127.0.0.1', { internal: true })],
      cni0: [info('10.88.0.1')],
      eth0: [info('169.254.3.4'), info('192.0.2.2'), info('fe80::1'), info('fd00::2')],
    },
    routes4: [{ interface: 'eth0', metric: 0 }],
    routes6: [{ interface: 'eth0', metric: 0 }],
  };
  assert.deepEqual(internalIps([], network), ['192.0.2.2']);
  assert.deepEqual(internalIps(['::', '0.0.0.0'], network), ['fd00::2', '192.0.2.2']);
  assert.deepEqual(internalIps(['10.1.1.1', '10.1.1.1', 'junk'], network), ['10.1.1.1']);
  assert.deepEqual(internalIps([], { ...network, routes4: [] }), ['10.88.0.1']);
  assert.deepEqual(internalIps([], { ...network, interfaces: {} }), []);
  assert.deepEqual(internalIps([], { ...network, interfaces: { eth0: [info('fd00::2')] } }), ['fd00::2']);
  assert.deepEqual(splitNodeIp(' 10.0.0.1, fd00::1 '), ['10.0.0.1', 'fd00::1']);
  assert.deepEqual(splitNodeIp(undefined), []);
});

test('facts are read below a root, and nothing missing is an error', async (t) => {
  const root = mkdtempSync(join(tmpdir(), 'keelson-test-'));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  const put = (path: string, text: string) => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  };
  const reader = makeFactsReader({
    root,
    kubeletDir: root,
    stateDir: join(root, 'none'),
    interfaces: () => ({}),
  });
  const empty = await reader.read();
  assert.equal(empty.memoryBytes, 0);
  assert.equal(empty.cpus, 1);
  assert.deepEqual(empty.addresses, []);
  assert.ok(empty.nodefs.capacityBytes > 0);
  assert.equal(empty.imagefs.capacityBytes, 0);
  put('proc/meminfo', meminfo);
  put('sys/devices/system/cpu/online', '0-3\n');
  put('etc/machine-id', 'abc\n');
  put('proc/device-tree/vm,uuid', 'uuid-1\0');
  put('proc/sys/kernel/random/boot_id', 'boot\n');
  put('proc/sys/kernel/pid_max', '4194304\n');
  put('proc/sys/kernel/threads-max', '1000\n');
  put('usr/lib/os-release', 'PRETTY_NAME="Debian"\n');
  put('sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages', '3\n');
  put('proc/net/route', route);
  const full = await makeFactsReader({
    root,
    kubeletDir: root,
    stateDir: root,
    interfaces: () => ({ eth0: [info('192.0.2.2')] }),
  }).read();
  assert.equal(full.cpus, 4);
  assert.equal(full.machineId, 'abc');
  assert.equal(full.systemUuid, 'uuid-1');
  assert.equal(full.bootId, 'boot');
  assert.equal(full.osImage, 'Debian');
  assert.equal(full.maxTasks, 1000);
  assert.deepEqual(full.hugepages, { 'hugepages-2Mi': 3 * 2 ** 21 });
  assert.deepEqual(full.addresses, ['192.0.2.2']);
});

test('this machine has facts', async () => {
  const facts = await makeFactsReader({ kubeletDir: tmpdir(), stateDir: tmpdir() }).read();
  for (const name of ['memoryBytes', 'memoryAvailableBytes', 'cpus', 'tasks', 'maxTasks'] as const) {
    assert.ok(facts[name] > 0, name);
  }
  for (const name of ['machineId', 'systemUuid', 'bootId', 'kernelVersion', 'osImage'] as const) {
    if (name === 'machineId' || name === 'systemUuid') continue; // Containers may lack them.
    assert.notEqual(facts[name], '', name);
  }
});
