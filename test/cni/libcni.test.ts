/**
 * libcni, the CNI project's own library, beside keelson: plugins must not be able to tell who calls them, and each must
 * be able to go on with what the other has noted in the cache folder.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, type TestContext, test } from 'node:test';
import { bridgeOf, lab, skip as noPlugins, pluginFolder, tryRun } from './lab.ts';
import { attachment, type Setup, setUp } from './scripted.ts';

const folder = mkdtempSync(join(tmpdir(), 'keelson-test-libcni-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const program = join(folder, 'libcni');
const built = spawnSync('go', ['build', '-o', program, '.'], {
  cwd: join(import.meta.dirname, 'libcni'),
  encoding: 'utf8',
});
const skip =
  built.error !== undefined
    ? 'no Go on the PATH'
    : built.status !== 0 && `libcni cannot be built here: ${built.stderr.trim().slice(0, 200)}`;

type Libcni = (command: string, container?: string, netns?: string, capabilities?: object) => unknown;

function libcniOf(own: Setup, list: string, plugins: string): Libcni {
  return (command, container = 'c1', netns = '', capabilities = {}) =>
    JSON.parse(
      execFileSync(
        program,
        [
          command,
          join(own.confDir, list),
          own.cacheDir,
          plugins,
          container,
          netns,
          JSON.stringify(capabilities),
        ],
        { encoding: 'utf8' },
      ),
    );
}

const netns = '/proc/self/ns/net';
const everything = {
  portMappings: [{ hostPort: 80, containerPort: 8080, protocol: 'tcp' }],
  bandwidth: { ingressRate: 1000, ingressBurst: 2000 },
  dns: { servers: ['10.0.0.10'], searches: ['a.b'], options: ['ndots:5'] },
  ipRanges: [[{ subnet: '10.1.0.0/16' }]],
  ips: ['10.1.2.3/16'],
  mac: 'c2:11:22:33:44:55',
  aliases: ['web'],
  infinibandGUID: 'c2:11:22:33:44:55:66:77',
  deviceID: '0000:04:00.5',
  cgroupPath: '/kubepods.slice',
  'io.kubernetes.cri.pod-annotations': { 'shop.example/vlan': '7' },
};

/** A plugin's result with every field that the version has, and one that none has. */
function resultIn(version: string): string {
  const named = version < '1.0.0';
  return JSON.stringify({
    cniVersion: version,
    interfaces: [{ name: 'veth1' }, { name: 'eth0', sandbox: netns, mac: '0a:00:00:00:00:01', mtu: 1400 }],
    ips: [
      { ...(named ? { version: '4' } : {}), address: '10.1.2.3/16', gateway: '10.1.0.1', interface: 1 },
      { ...(named ? { version: '6' } : {}), address: 'fd00::3/64', interface: 1 },
    ],
    routes: [{ dst: '0.0.0.0/0', gw: '10.1.0.1', mtu: 1400, priority: 5 }, { dst: '::/0' }],
    dns: { nameservers: ['10.1.0.1'], search: ['shop.local'], options: ['ndots:2'] },
    unknown: { to: 'all' },
  });
}

/** What the plugins were told since the last call of this. */
function told(own: Setup, from: number) {
  return own
    .calls()
    .slice(from)
    .map(({ plugin, env, input }) => ({
      plugin,
      env: Object.fromEntries(Object.entries(env).filter(([key]) => key.startsWith('CNI_'))),
      input,
    }));
}

function scripted(t: TestContext, version: string): Setup {
  const own = setUp(t);
  for (const name of ['one', 'two']) {
    own.plugin(name, `[ $CNI_COMMAND != ADD ] || cat <<'END'\n${resultIn(version)}\nEND`);
  }
  own.config('10.conflist', {
    cniVersion: version,
    name: 'pods',
    plugins: [
      { type: 'one', capabilities: Object.fromEntries(Object.keys(everything).map((name) => [name, true])) },
      { type: 'two', args: { cni: { labels: [] } }, capabilities: { mac: true, ips: false, other: true } },
    ],
  });
  return own;
}

for (const version of ['0.3.1', '0.4.0', '1.0.0', '1.1.0']) {
  test(`${version}: plugins are told the same by both, word for word`, { skip }, async (t) => {
    const own = scripted(t, version);
    const libcni = libcniOf(own, '10.conflist', own.binDir);
    const cni = own.cni();
    const compare = async (command: string, theirs: () => unknown, ours: () => Promise<unknown>) => {
      const first = own.calls().length;
      theirs();
      const second = own.calls().length;
      await ours();
      const [expected, actual] = [told(own, first).slice(0, second - first), told(own, second)];
      assert.deepEqual(actual, expected, command);
      return actual.length;
    };
    const wanted = attachment('c1', netns, everything);
    const count = await compare(
      'add',
      () => libcni('add', 'c1', netns, everything),
      () => cni.add(wanted),
    );
    assert.equal(count, 2);
    if (version !== '0.3.1') {
      const checked = await compare(
        'check',
        () => libcni('check', 'c1', netns, everything),
        () => cni.check(wanted),
      );
      assert.equal(checked, 2);
    }
    const newest = version === '1.1.0' ? 2 : 0;
    assert.equal(
      await compare(
        'gc',
        () => libcni('gc'),
        () => cni.gc([wanted]),
      ),
      newest,
    );
    assert.equal(
      await compare(
        'status',
        () => libcni('status'),
        () => cni.status(),
      ),
      newest,
    );
    // Each removes what the other has attached.
    await cni.add(attachment('theirs', netns, everything));
    libcni('add', 'ours', netns, everything);
    const first = own.calls().length;
    libcni('del', 'theirs', netns, everything);
    const second = own.calls().length;
    await cni.del(attachment('ours', netns));
    const renamed = JSON.parse(JSON.stringify(told(own, first).slice(0, 2)).replaceAll('theirs', 'ours'));
    assert.deepEqual(told(own, second), renamed);
    assert.equal(second - first, 2);
    assert.deepEqual(readdirSync(join(own.cacheDir, 'results')), ['pods-c1-eth0']);
  });

  test(`${version}: libcni reads what is cached: result, arguments, configuration`, { skip }, async (t) => {
    const own = scripted(t, version);
    const libcni = libcniOf(own, '10.conflist', own.binDir);
    const wanted = attachment('c1', netns, everything);
    await own.cni().add(wanted);
    const result = libcni('result') as Record<string, unknown>;
    const attached = libcni('attachments') as Record<string, unknown>[];
    rmSync(join(own.cacheDir, 'results'), { recursive: true });
    libcni('add', 'c1', netns, everything);
    assert.deepEqual(result, libcni('result'));
    assert.deepEqual(attached, libcni('attachments'));
    assert.equal((result['ips'] as unknown[]).length, 2);
    assert.deepEqual(attached[0]!['CapabilityArgs'], everything);
  });
}

test('a single plugin without a list, and plugins of the network folder, are cached whole', {
  skip,
}, async (t) => {
  const own = setUp(t);
  own.plugin('one', `[ $CNI_COMMAND != ADD ] || echo '${resultIn('0.4.0')}'`);
  own.config('10.conf', { cniVersion: '0.4.0', name: 'pods', type: 'one', mtu: 1400 });
  await own.cni().add(attachment('c1', netns));
  own.config('20.conflist', { cniVersion: '0.4.0', name: 'pods', plugins: [{ type: 'one' }] });
  const [attached] = libcniOf(own, '20.conflist', own.binDir)('attachments') as { Config: string }[];
  const config = JSON.parse(Buffer.from(attached!.Config, 'base64').toString());
  assert.equal(config.name, 'pods');
  assert.deepEqual(config.plugins, [{ cniVersion: '0.4.0', name: 'pods', type: 'one', mtu: 1400 }]);
});

test('libcni checks and removes a pod of keelson, with the real plugins', {
  skip: skip || noPlugins,
}, async (t) => {
  const own = lab(t);
  own.config('10.conflist', {
    cniVersion: '1.0.0',
    name: 'pods',
    plugins: [bridgeOf(own, { ipMasq: true }), { type: 'firewall', backend: 'iptables' }],
  });
  const libcni = libcniOf(own, '10.conflist', pluginFolder!);
  const cni = own.cni();
  const path = own.namespace();
  await cni.add(attachment('c1', path));
  libcni('check', 'c1', path);
  libcni('del', 'c1', path);
  assert.deepEqual(own.leased(), []);
  assert.deepEqual(own.addresses(path), []);
  assert.ok(!tryRun('iptables-save').includes(`${own.net4}.`));
  await cni.del(attachment('c1', path));
  assert.deepEqual(readdirSync(join(own.cacheDir, 'results')), []);
});
