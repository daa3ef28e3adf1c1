/** The real plugins of the CNI project, in real network namespaces: the life of attachments. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { isError } from '../../runtime/host/errors.ts';
import { bridgeOf, lab, skip, tryRun } from './lab.ts';
import { attachment } from './scripted.ts';

test('bridge, dual stack: attached, checked, detached, twice', { skip }, async (t) => {
  const own = lab(t);
  const ranges = [[{ subnet: `${own.net4}.0/24` }], [{ subnet: `${own.net6}:/64` }]];
  const routes = [{ dst: '0.0.0.0/0' }, { dst: '::/0' }];
  own.config('10.conflist', {
    cniVersion: '1.0.0',
    name: 'pods',
    plugins: [bridgeOf(own, {}, { ranges, routes })],
  });
  const cni = own.cni();
  assert.equal((await cni.status()).ready, true);
  const netns = own.namespace();
  const { ips } = await cni.add(attachment('c1', netns));
  assert.equal(ips.length, 2);
  assert.ok(ips[0]!.startsWith(`${own.net4}.`));
  assert.ok(ips[1]!.includes(':'));
  assert.deepEqual(own.addresses(netns), ips);
  assert.deepEqual(own.leased().sort(), [...ips].sort());
  await cni.check(attachment('c1', netns));
  execFileSync('ip', ['-n', netns.split('/').at(-1)!, 'address', 'flush', 'dev', 'eth0']);
  await assert.rejects(cni.check(attachment('c1', netns)), (error) => isError(error, 'CNI_PLUGIN_FAILED'));
  await cni.del(attachment('c1', netns));
  assert.deepEqual(own.addresses(netns), []);
  assert.deepEqual(own.leased(), []);
  assert.equal(tryRun('ip', '-n', netns.split('/').at(-1)!, 'link', 'show', 'dev', 'eth0'), '');
  await cni.del(attachment('c1', netns));
  assert.deepEqual(readdirSync(join(own.cacheDir, 'results')), []);
});

for (const cniVersion of ['0.3.1', '0.4.0', '1.0.0']) {
  test(`${cniVersion}: bridge, portmap, firewall and tuning in a chain; no rule is left`, {
    skip,
  }, async (t) => {
    const own = lab(t);
    own.config('10.conflist', {
      cniVersion,
      name: `pods-${own.bridge}`,
      plugins: [
        bridgeOf(own, {}, { ranges: [[{ subnet: `${own.net4}.0/24` }], [{ subnet: `${own.net6}:/64` }]] }),
        { type: 'portmap', capabilities: { portMappings: true }, snat: true },
        ...(cniVersion === '0.3.1' ? [] : [{ type: 'firewall', backend: 'iptables' }]),
        { type: 'tuning', sysctl: { 'net.ipv4.conf.all.log_martians': '1' } },
      ],
    });
    const cni = own.cni();
    const netns = own.namespace();
    const id = `c-${own.bridge}`;
    const portMappings = [{ hostPort: randomInt(40_000, 60_000), containerPort: 80, protocol: 'tcp' }];
    const { ips } = await cni.add(attachment(id, netns, { portMappings }));
    const rules = () =>
      `${tryRun('iptables-save')}${tryRun('ip6tables-save')}`
        .split('\n')
        .filter(
          (line) =>
            [id, `${ips[0]}/32`, `${ips[0]}:80`].some((mark) => line.includes(mark)) ||
            line.includes(ips[1]!),
        );
    assert.ok(rules().some((line) => line.includes(`--to-destination ${ips[0]}:80`)));
    assert.ok(rules().some((line) => line.includes(`--to-destination [${ips[1]}]:80`)));
    // With port mappings, CHECK of portmap 1.1.1 looks for the rules of IPv4 among those of IPv6, and never finds them.
    await cni.check(attachment(id, netns)).catch((error: Error) => {
      assert.match(error.message, /portmap .* could not check ipv6 dnat/);
    });
    await cni.del(attachment(id, netns, { portMappings }));
    assert.deepEqual(rules(), []);
    assert.deepEqual(own.leased(`pods-${own.bridge}`), []);
  });
}

test('ipMasq: its chain is gone after DEL', { skip }, async (t) => {
  const own = lab(t);
  const name = `masq-${own.bridge}`;
  own.config('10.conflist', { cniVersion: '1.0.0', name, plugins: [bridgeOf(own, { ipMasq: true })] });
  const cni = own.cni();
  const netns = own.namespace();
  const id = `c-${own.bridge}`;
  await cni.add(attachment(id, netns));
  const rules = () =>
    tryRun('iptables-save', '-t', 'nat')
      .split('\n')
      .filter((line) => line.includes(id));
  assert.ok(rules().length > 0);
  await cni.del(attachment(id, netns));
  assert.deepEqual(rules(), []);
});

test('DEL after the namespace and the configuration went frees the address and the port', {
  skip,
}, async (t) => {
  const own = lab(t);
  const name = `gone-${own.bridge}`;
  own.config('10.conflist', {
    cniVersion: '1.0.0',
    name,
    plugins: [bridgeOf(own), { type: 'portmap', capabilities: { portMappings: true } }],
  });
  const cni = own.cni();
  const netns = own.namespace();
  const id = `c-${own.bridge}`;
  const portMappings = [{ hostPort: randomInt(40_000, 60_000), containerPort: 80, protocol: 'tcp' }];
  const { ips } = await cni.add(attachment(id, netns, { portMappings }));
  assert.deepEqual(own.leased(name), ips);
  execFileSync('ip', ['netns', 'del', netns.split('/').at(-1)!]);
  rmSync(join(own.confDir, '10.conflist'));
  const later = own.cni();
  await later.del({ ...attachment(id, netns), capabilities: {} });
  assert.deepEqual(own.leased(name), []);
  assert.ok(!tryRun('iptables-save', '-t', 'nat').includes(id));
});

test('a plugin that fails late leaves nothing of the earlier ones', { skip }, async (t) => {
  const own = lab(t);
  own.plugin('late', `[ $CNI_COMMAND = DEL ] || { echo '{"code":99,"msg":"no"}'; exit 1; }`);
  own.config('10.conflist', {
    cniVersion: '1.0.0',
    name: 'pods',
    plugins: [bridgeOf(own), { type: 'late' }],
  });
  const cni = own.cni();
  const netns = own.namespace();
  await assert.rejects(cni.add(attachment('c1', netns)), /plugin late of network pods failed \(ADD\): no/);
  assert.deepEqual(own.leased(), []);
  assert.deepEqual(own.addresses(netns), []);
  assert.deepEqual(readdirSync(join(own.cacheDir, 'results')), []);
});

test('gc frees what a crash left behind, and nothing else', { skip }, async (t) => {
  const own = lab(t);
  own.config('10.conflist', { cniVersion: '1.0.0', name: 'pods', plugins: [bridgeOf(own)] });
  const cni = own.cni();
  const kept = own.namespace();
  const lost = own.namespace();
  const [{ ips }] = await Promise.all([cni.add(attachment('kept', kept)), cni.add(attachment('lost', lost))]);
  assert.equal(own.leased().length, 2);
  execFileSync('ip', ['netns', 'del', lost.split('/').at(-1)!]);
  await own.cni().gc([{ containerId: 'kept', ifName: 'eth0' }]);
  assert.deepEqual(own.leased(), ips);
  assert.deepEqual(own.addresses(kept), ips);
  await cni.del(attachment('kept', kept));
});

test('a list that allows 1.1.0 is spoken in what these plugins know', { skip }, async (t) => {
  const own = lab(t);
  own.config('10.conflist', {
    cniVersion: '0.4.0',
    cniVersions: ['0.3.1', '0.4.0', '1.0.0', '1.1.0'],
    name: 'pods',
    plugins: [bridgeOf(own)],
  });
  const cni = own.cni();
  const netns = own.namespace();
  const { ips } = await cni.add(attachment('c1', netns));
  assert.deepEqual(own.addresses(netns), ips);
  await cni.gc([{ containerId: 'c1', ifName: 'eth0' }]);
  await cni.del(attachment('c1', netns));
  assert.deepEqual(own.leased(), []);
});

test('ptp: a route to the pod, gone with it', { skip }, async (t) => {
  const own = lab(t);
  own.config('10.conf', { cniVersion: '0.3.1', name: 'pods', type: 'ptp', ipam: own.hostLocal() });
  const cni = own.cni();
  const netns = own.namespace();
  const { ips } = await cni.add(attachment('c1', netns));
  assert.deepEqual(own.addresses(netns), ips);
  assert.ok(tryRun('ip', 'route').includes(ips[0]!));
  await cni.del(attachment('c1', netns));
  assert.ok(!tryRun('ip', 'route').includes(ips[0]!));
});

test('the ips capability reaches the static IPAM plugin', { skip }, async (t) => {
  const own = lab(t);
  const plugin = {
    ...bridgeOf(own),
    capabilities: { ips: true },
    ipam: { type: 'static' },
    isGateway: false,
  };
  own.config('10.conflist', { cniVersion: '1.0.0', name: 'pods', plugins: [plugin] });
  const cni = own.cni();
  const netns = own.namespace();
  const wanted = attachment('c1', netns, { ips: [`${own.net4}.77/24`] });
  assert.deepEqual(await cni.add(wanted), { ips: [`${own.net4}.77`] });
  assert.deepEqual(own.addresses(netns), [`${own.net4}.77`]);
  await cni.del(wanted);
  assert.deepEqual(own.addresses(netns), []);
});

test('bandwidth: the queue is there while the pod is', { skip }, async (t) => {
  const own = lab(t);
  const probe = `kp${own.bridge.slice(2)}`;
  if (!existsSync('/sys/module/ifb')) {
    // Loading the module makes two devices in the machine's own namespace.
    const outside = `--net=/proc/${process.ppid}/ns/net`;
    t.after(() => ['ifb0', 'ifb1'].map((name) => tryRun('nsenter', outside, 'ip', 'link', 'del', name)));
  }
  tryRun('ip', 'link', 'add', probe, 'type', 'ifb');
  const able = tryRun('ip', 'link', 'show', probe) !== '';
  tryRun('ip', 'link', 'del', probe);
  if (!able) return t.skip('this kernel has no ifb devices');
  own.config('10.conflist', {
    cniVersion: '1.0.0',
    name: 'pods',
    plugins: [bridgeOf(own), { type: 'bandwidth', capabilities: { bandwidth: true } }],
  });
  const cni = own.cni();
  const netns = own.namespace();
  const bandwidth = {
    ingressRate: 1_000_000,
    ingressBurst: 1_000_000,
    egressRate: 1_000_000,
    egressBurst: 1_000_000,
  };
  const links = () => tryRun('ip', '-o', 'link', 'show', 'type', 'ifb').split('\n').length;
  const before = links();
  await cni.add(attachment('c1', netns, { bandwidth }));
  assert.equal(links(), before + 1);
  await cni.del(attachment('c1', netns, { bandwidth }));
  assert.equal(links(), before);
});

test('thirty at once through bridge and portmap: addresses and rules of their own, all given back', {
  skip,
}, async (t) => {
  const own = lab(t);
  const name = `many-${own.bridge}`;
  own.config('10.conflist', {
    cniVersion: '1.0.0',
    name,
    plugins: [bridgeOf(own), { type: 'portmap', capabilities: { portMappings: true } }],
  });
  const cni = own.cni();
  const all = Array.from({ length: 30 }, (_, index) =>
    attachment(`c${index}-${own.bridge}`, own.namespace(), {
      portMappings: [{ hostPort: 40_000 + index, containerPort: 80, protocol: 'tcp' }],
    }),
  );
  const rules = () =>
    tryRun('iptables-save', '-t', 'nat')
      .split('\n')
      .filter((line) => line.includes(own.bridge) || line.includes(`${own.net4}.`));
  const given = await Promise.all(all.map((one) => cni.add(one)));
  const addresses = given.flatMap(({ ips }) => ips);
  assert.equal(new Set(addresses).size, 30);
  for (const address of addresses) {
    assert.ok(
      rules().some((line) => line.includes(`--to-destination ${address}:80`)),
      address,
    );
  }
  await Promise.all(all.map((one) => cni.del(one)));
  assert.deepEqual(own.leased(name), []);
  assert.deepEqual(rules(), []);
});
