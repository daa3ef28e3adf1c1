import assert from 'node:assert/strict';
import { test } from 'node:test';
import { addressesOf, ResultProblem, readResult, writeResult } from '../../cni/result.ts';
import { knownVersions } from '../../cni/version.ts';

const full = {
  cniVersion: '1.1.0',
  interfaces: [
    { name: 'br0', mac: '00:11:22:33:44:55', mtu: 1400 },
    {
      name: 'eth0',
      mac: '00:11:22:33:44:66',
      sandbox: '/run/netns/a',
      mtu: 1400,
      socketPath: '/s',
      pciID: '0:0',
    },
  ],
  ips: [
    { address: '10.1.2.3/24', gateway: '10.1.2.1', interface: 1 },
    { address: 'fd00::3/64', gateway: 'fd00::1', interface: 1 },
  ],
  routes: [
    { dst: '0.0.0.0/0', gw: '10.1.2.1', mtu: 1400, advmss: 1300, priority: 5, table: 100, scope: 0 },
    { dst: '::/0' },
  ],
  dns: { nameservers: ['10.1.2.1'], domain: 'a', search: ['b'], options: ['ndots:2'] },
};

test('1.1.0 comes back as it was', () => {
  assert.deepEqual(writeResult(readResult(full, '1.0.0'), '1.1.0'), full);
});

test('newer fields stay where libcni keeps them: all in 1.0.0, those of routes in 0.4.0', () => {
  const written = writeResult(readResult(full, '1.0.0'), '1.0.0');
  assert.deepEqual(written, { ...full, cniVersion: '1.0.0' });
  const older = writeResult(readResult(full, '1.0.0'), '0.4.0');
  assert.deepEqual(older['interfaces'], [
    { name: 'br0', mac: '00:11:22:33:44:55' },
    { name: 'eth0', mac: '00:11:22:33:44:66', sandbox: '/run/netns/a' },
  ]);
  assert.deepEqual(older['routes'], full.routes);
});

for (const version of ['0.3.0', '0.3.1', '0.4.0'] as const) {
  test(`${version} names the family of each address`, () => {
    const written = writeResult(readResult(full, '1.0.0'), version) as { ips: { version: string }[] };
    assert.deepEqual(
      written.ips.map((ip) => ip.version),
      ['4', '6'],
    );
    assert.deepEqual(readResult(written, version).ips, full.ips);
  });
}

test('every version to every version keeps addresses, interfaces and routes', () => {
  for (const from of knownVersions) {
    for (const to of knownVersions) {
      const first = readResult(writeResult(readResult(full, '1.1.0'), from), from);
      const second = readResult(writeResult(first, to), to);
      assert.deepEqual(second.ips, first.ips);
      assert.deepEqual(
        second.interfaces.map(({ name }) => name),
        ['br0', 'eth0'],
      );
      assert.deepEqual(
        second.routes.map(({ dst }) => dst),
        ['0.0.0.0/0', '::/0'],
      );
    }
  }
});

test('a result without a version counts as that of the configuration', () => {
  assert.equal(readResult({ ips: [{ version: '4', address: '10.0.0.1/8' }] }, '0.3.1').ips.length, 1);
});

for (const [name, value] of [
  ['not an object', 'x'],
  ['a list', []],
  ['an unknown version', { cniVersion: '9.9.9' }],
  ['a version that is no string', { cniVersion: 1 }],
  ['an address without prefix', { ips: [{ address: '10.0.0.1' }] }],
  ['a prefix that is too long', { ips: [{ address: '10.0.0.1/33' }] }],
  ['an address with a zone', { ips: [{ address: 'fe80::1%eth0/64' }] }],
  ['an address that is none', { ips: [{ address: '10.0.0.256/8' }] }],
  ['no address', { ips: [{}] }],
  ['an interface that is not there', { ips: [{ address: '10.0.0.1/8', interface: 0 }] }],
  ['an interface that is half', { interfaces: [{}], ips: [{ address: '10.0.0.1/8', interface: 0.5 }] }],
  ['a gateway that is none', { ips: [{ address: '10.0.0.1/8', gateway: 'router' }] }],
  ['a route to nowhere', { routes: [{ dst: 'default' }] }],
  ['too many addresses', { ips: Array.from({ length: 2000 }, () => ({ address: '10.0.0.1/8' })) }],
  ['name servers that are numbers', { dns: { nameservers: [1] } }],
] as const) {
  test(`refused: ${name}`, () => assert.throws(() => readResult(value, '1.0.0'), ResultProblem));
}

test('the addresses of the pod are those of its interface in the sandbox', () => {
  const result = readResult(
    {
      interfaces: [{ name: 'veth1' }, { name: 'eth0', sandbox: '/n' }, { name: 'net1', sandbox: '/n' }],
      ips: [
        { address: '169.254.1.1/32', interface: 0 },
        { address: 'fd00::1/64', interface: 1 },
        { address: '10.0.0.1/8', interface: 1 },
        { address: '10.0.0.1/8', interface: 1 },
        { address: '192.168.0.1/24', interface: 2 },
      ],
    },
    '1.0.0',
  );
  assert.deepEqual(addressesOf(result, 'eth0'), ['fd00::1', '10.0.0.1']);
});

test('where the result does not say whose they are, all addresses count', () => {
  const result = readResult(
    { ips: [{ address: '10.0.0.1/8', interface: -1 }, { address: 'fd00::1/64' }] },
    '1.0.0',
  );
  assert.deepEqual(addressesOf(result, 'eth0'), ['10.0.0.1', 'fd00::1']);
});

test('the loopback interface gives a pod no address', () => {
  const result = readResult(
    {
      interfaces: [{ name: 'lo', sandbox: '/n' }],
      ips: [
        { address: '127.0.0.1/8', interface: 0 },
        { address: '::1/128', interface: 0 },
      ],
    },
    '1.0.0',
  );
  assert.deepEqual(addressesOf(result, 'eth0'), []);
});

test('fuzz: any JSON gives a result or a ResultProblem, and what is read can be written', () => {
  let state = 777;
  const random = (below: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const odd = [null, 0, -1, 1e20, '', 'x', '10.0.0.1/8', [], {}, true, [[]], { name: 1 }, '1.0.0'];
  const mutate = (value: unknown): unknown => {
    if (random(12) === 0) return odd[random(odd.length)];
    if (Array.isArray(value)) return value.map(mutate);
    if (typeof value === 'object' && value !== null) {
      return Object.fromEntries(
        Object.entries(value).flatMap(([key, entry]) => (random(15) === 0 ? [] : [[key, mutate(entry)]])),
      );
    }
    return value;
  };
  let valid = 0;
  for (let round = 0; round < 10_000; round++) {
    try {
      const result = readResult(mutate(full), '1.0.0');
      for (const version of knownVersions)
        assert.deepEqual(readResult(writeResult(result, version), version).ips, result.ips);
      valid++;
    } catch (error) {
      assert.ok(error instanceof ResultProblem, String(error));
    }
  }
  assert.ok(valid > 100, `only ${valid} mutations were still valid`);
});
