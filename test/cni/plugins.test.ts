/** The real plugins of the CNI project, each by itself and with the arguments that it declares. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { bridgeOf, lab, pluginFolder, skip, tryRun } from './lab.ts';
import { attachment } from './scripted.ts';

const nameOf = (netns: string) => netns.split('/').at(-1)!;
const inside = (netns: string, ...command: string[]) =>
  tryRun('ip', 'netns', 'exec', nameOf(netns), ...command).trim();

/** A cable between two interfaces of the "host", both up. */
function cable(t: TestContext, name: string, peer: string): void {
  execFileSync('ip', ['link', 'add', name, 'type', 'veth', 'peer', 'name', peer]);
  t.after(() => tryRun('ip', 'link', 'del', name));
  for (const end of [name, peer]) execFileSync('ip', ['link', 'set', end, 'up']);
}

test('macvlan with static addresses of both families, and tuning', { skip }, async (t) => {
  const own = lab(t);
  const [master, peer] = [`km${own.bridge.slice(2)}`, `kn${own.bridge.slice(2)}`];
  cable(t, master, peer);
  tryRun('ip', 'link', 'add', 'link', master, 'name', 'probe', 'type', 'macvlan');
  const able = tryRun('ip', 'link', 'show', 'probe') !== '';
  tryRun('ip', 'link', 'del', 'probe');
  if (!able) return t.skip('this kernel has no macvlan devices');
  const addresses = [`${own.net4}.9/24`, `${own.net6}:9/64`];
  own.config('10.conflist', {
    cniVersion: '1.0.0',
    name: 'pods',
    plugins: [
      {
        type: 'macvlan',
        master,
        mode: 'bridge',
        dns: { nameservers: [`${own.net4}.1`], search: ['shop.local'] },
        ipam: {
          type: 'static',
          addresses: addresses.map((address) => ({ address })),
          routes: [{ dst: '0.0.0.0/0', gw: `${own.net4}.1` }],
        },
      },
      {
        type: 'tuning',
        capabilities: { mac: true },
        mtu: 1400,
        sysctl: { 'net.core.somaxconn': '500' },
        dataDir: join(own.root, 'tuning'),
      },
    ],
  });
  const cni = own.cni();
  const netns = own.namespace();
  const wanted = attachment('c1', netns, { mac: 'c2:11:22:33:44:55' });
  const { ips } = await cni.add(wanted);
  assert.deepEqual(
    ips,
    addresses.map((address) => address.split('/')[0]),
  );
  assert.deepEqual(own.addresses(netns).sort(), [...ips].sort());
  const link = inside(netns, 'ip', '-d', 'link', 'show', 'eth0');
  assert.match(link, /macvlan/);
  assert.match(link, /mtu 1400/);
  assert.match(link, /c2:11:22:33:44:55/);
  assert.equal(inside(netns, 'cat', '/proc/sys/net/core/somaxconn'), '500');
  const { result } = JSON.parse(readFileSync(join(own.cacheDir, 'results', 'pods-c1-eth0'), 'utf8'));
  assert.deepEqual(result.dns, { nameservers: [`${own.net4}.1`], search: ['shop.local'] });
  assert.deepEqual(result.routes, [{ dst: '0.0.0.0/0', gw: `${own.net4}.1` }]);
  assert.equal(result.interfaces[0].mac, 'c2:11:22:33:44:55');
  await cni.check(wanted);
  await cni.del(wanted);
  assert.deepEqual(own.addresses(netns), []);
});

test('ptp, dual stack, with the ranges that the caller gives', { skip }, async (t) => {
  const own = lab(t);
  own.config('10.conflist', {
    cniVersion: '0.4.0',
    name: 'pods',
    plugins: [
      {
        type: 'ptp',
        capabilities: { ipRanges: true },
        ipam: { type: 'host-local', dataDir: own.leases },
      },
    ],
  });
  const cni = own.cni();
  const netns = own.namespace();
  const ipRanges = [
    [{ subnet: `${own.net4}.0/24`, rangeStart: `${own.net4}.40`, rangeEnd: `${own.net4}.40` }],
    [{ subnet: `${own.net6}:/64`, rangeStart: `${own.net6}:40`, rangeEnd: `${own.net6}:40` }],
  ];
  const wanted = attachment('c1', netns, { ipRanges });
  const { ips } = await cni.add(wanted);
  assert.deepEqual(ips, [`${own.net4}.40`, `${own.net6}:40`]);
  assert.deepEqual(own.addresses(netns).sort(), [...ips].sort());
  await cni.check(wanted);
  // The ranges are known from the ADD.
  await cni.del(attachment('c1', netns));
  assert.deepEqual(own.leased(), []);
});

test('host-local gives the address that the caller asks for', { skip }, async (t) => {
  const own = lab(t);
  own.config('10.conflist', {
    cniVersion: '1.0.0',
    name: 'pods',
    plugins: [{ ...bridgeOf(own), capabilities: { ips: true, mac: true } }],
  });
  const cni = own.cni();
  const netns = own.namespace();
  const wanted = attachment('c1', netns, { ips: [`${own.net4}.77`], mac: 'c2:11:22:33:44:66' });
  assert.deepEqual(await cni.add(wanted), { ips: [`${own.net4}.77`] });
  assert.match(inside(netns, 'ip', 'link', 'show', 'eth0'), /c2:11:22:33:44:66/);
  const taken = attachment('c2', own.namespace(), { ips: [`${own.net4}.77`] });
  await assert.rejects(cni.add(taken), /plugin bridge of network pods failed \(ADD\)/);
  await cni.del(wanted);
  assert.deepEqual(own.leased(), []);
});

test('firewall: the rules of a pod live as long as it', { skip }, async (t) => {
  const own = lab(t);
  own.config('10.conflist', {
    cniVersion: '1.0.0',
    name: 'pods',
    plugins: [bridgeOf(own), { type: 'firewall', backend: 'iptables' }],
  });
  const cni = own.cni();
  const wanted = attachment('c1', own.namespace());
  const { ips } = await cni.add(wanted);
  const rules = () =>
    tryRun('iptables-save', '-t', 'filter')
      .split('\n')
      .filter((line) => line.includes(`${ips[0]}/32`));
  assert.equal(rules().length, 2);
  await cni.check(wanted);
  await cni.del(wanted);
  assert.deepEqual(rules(), []);
});

test('loopback: in a chain it leaves the result as it is, alone it is no network', { skip }, async (t) => {
  const own = lab(t);
  const plugins = [bridgeOf(own), { type: 'loopback' }];
  own.config('10.conflist', { cniVersion: '1.0.0', name: 'pods', plugins });
  const cni = own.cni();
  const netns = own.namespace();
  execFileSync('ip', ['-n', nameOf(netns), 'link', 'set', 'lo', 'down']);
  const { ips } = await cni.add(attachment('c1', netns));
  assert.deepEqual(own.addresses(netns), ips);
  assert.match(inside(netns, 'ip', 'link', 'show', 'lo'), /LOOPBACK,UP/);
  await cni.check(attachment('c1', netns));
  await cni.del(attachment('c1', netns));
  assert.deepEqual(own.leased(), []);
  own.config('10.conflist', { cniVersion: '1.0.0', name: 'lo', plugins: [{ type: 'loopback' }] });
  await assert.rejects(own.cni().add(attachment('c2', own.namespace())), /gave container c2 no address/);
  assert.deepEqual(readdirSync(join(own.cacheDir, 'results')), []);
});

/** Starts a program that runs until the test ends. */
function daemon(t: TestContext, program: string, args: readonly string[]): void {
  const child = spawn(program, args, { stdio: 'ignore' });
  t.after(async () => {
    const ended = new Promise((resolve) => child.once('close', resolve));
    child.kill('SIGKILL');
    await ended;
  });
}

const noServer =
  skip === false && tryRun('busybox', '--list').split('\n').includes('udhcpd')
    ? false
    : skip || 'no DHCP server (package busybox-static)';

test("dhcp: a lease from a real server, through the plugin's daemon", { skip: noServer }, async (t) => {
  const own = lab(t);
  const [near, far] = [`km${own.bridge.slice(2)}`, `kn${own.bridge.slice(2)}`];
  execFileSync('ip', ['link', 'add', own.bridge, 'type', 'bridge']);
  execFileSync('ip', ['link', 'set', own.bridge, 'up']);
  cable(t, near, far);
  execFileSync('ip', ['link', 'set', near, 'master', own.bridge]);
  const server = nameOf(own.namespace());
  execFileSync('ip', ['link', 'set', far, 'netns', server]);
  execFileSync('ip', ['-n', server, 'address', 'add', `${own.net4}.1/24`, 'dev', far]);
  execFileSync('ip', ['-n', server, 'link', 'set', far, 'up']);
  const conf = join(own.root, 'udhcpd.conf');
  const leaseFile = join(own.root, 'udhcpd.leases');
  writeFileSync(leaseFile, '');
  writeFileSync(
    conf,
    `interface ${far}\nstart ${own.net4}.100\nend ${own.net4}.110\nlease_file ${leaseFile}\n` +
      `pidfile ${join(own.root, 'udhcpd.pid')}\nopt subnet 255.255.255.0\nopt router ${own.net4}.1\nopt lease 600\n`,
  );
  daemon(t, 'ip', ['netns', 'exec', server, 'busybox', 'udhcpd', '-f', conf]);
  const socket = join(own.root, 'dhcp.sock');
  daemon(t, join(pluginFolder!, 'dhcp'), ['daemon', '-socketpath', socket]);
  while (!existsSync(socket)) await new Promise((resolve) => setTimeout(resolve, 10));
  own.config('10.conflist', {
    cniVersion: '1.0.0',
    name: 'pods',
    plugins: [{ type: 'bridge', bridge: own.bridge, ipam: { type: 'dhcp', daemonSocketPath: socket } }],
  });
  const cni = own.cni();
  const netns = own.namespace();
  const { ips } = await cni.add(attachment('c1', netns));
  assert.equal(ips.length, 1);
  assert.ok(ips[0]!.startsWith(`${own.net4}.1`), ips.join());
  assert.deepEqual(own.addresses(netns), ips);
  await cni.check(attachment('c1', netns));
  await cni.del(attachment('c1', netns));
  assert.deepEqual(own.addresses(netns), []);
});
