/** What keelson tells plugins, and what it makes of plugins that misbehave. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { answer, attachment, setUp } from './scripted.ts';

const netns = '/proc/self/ns/net';
const list = (plugins: object[], more: object = {}) => ({
  cniVersion: '1.0.0',
  name: 'pods',
  plugins,
  ...more,
});
const commands = (setup: ReturnType<typeof setUp>) =>
  setup.calls().map(({ plugin, env }) => `${env['CNI_COMMAND']} ${plugin}`);

function failsWith(code: string, ...patterns: RegExp[]) {
  return (error: unknown) => {
    assert.ok(error instanceof KeelsonError, String(error));
    assert.equal(error.code, code, error.message);
    for (const pattern of patterns) assert.match(`${error.message} ${error.hint ?? ''}`, pattern);
    return true;
  };
}

test('ADD: environment, chained results, and only the declared capability arguments', async (t) => {
  const setup = setUp(t);
  setup.plugin('one', answer('10.9.8.7/24'));
  setup.plugin('two', answer('10.9.8.7/24'));
  setup.config(
    '10.conflist',
    list([
      { type: 'one', mtu: 1400 },
      { type: 'two', capabilities: { portMappings: true, mac: false } },
    ]),
  );
  const portMappings = [{ hostPort: 80, containerPort: 8080, protocol: 'tcp' }];
  const cni = setup.cni();
  const attached = await cni.add(
    attachment('c1', netns, {
      portMappings,
      mac: '00:00:00:00:00:01',
      bandwidth: { ingressRate: 1 },
      dns: undefined,
    }),
  );
  assert.deepEqual(attached, { ips: ['10.9.8.7'] });
  const [one, two, ...rest] = setup.calls();
  assert.deepEqual(rest, []);
  assert.deepEqual(Object.fromEntries(Object.entries(one!.env).filter(([key]) => key.startsWith('CNI_'))), {
    CNI_COMMAND: 'ADD',
    CNI_CONTAINERID: 'c1',
    CNI_NETNS: netns,
    CNI_IFNAME: 'eth0',
    CNI_ARGS:
      'IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=11111111-2222-3333-4444-555555555555',
    CNI_PATH: setup.binDir,
  });
  assert.deepEqual(one!.input, { type: 'one', mtu: 1400, name: 'pods', cniVersion: '1.0.0' });
  assert.equal(two!.plugin, 'two');
  assert.deepEqual(two!.input['runtimeConfig'], { portMappings });
  assert.deepEqual((two!.input['prevResult'] as { ips: unknown }).ips, [
    { address: '10.9.8.7/24', interface: 0 },
  ]);
});

test("the cache has libcni's place and format, and DEL goes backwards with the result", async (t) => {
  const setup = setUp(t);
  setup.plugin('one', `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`);
  setup.plugin('two', `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`);
  const config = list([{ type: 'one' }, { type: 'two', capabilities: { mac: true } }]);
  setup.config('10.conflist', config);
  const cni = setup.cni();
  await cni.add(attachment('c1', netns, { mac: '00:00:00:00:00:01' }));
  const path = join(setup.cacheDir, 'results', 'pods-c1-eth0');
  const { config: encoded, ...file } = JSON.parse(readFileSync(path, 'utf8'));
  assert.deepEqual(JSON.parse(Buffer.from(encoded, 'base64').toString()), config);
  assert.deepEqual(file, {
    kind: 'cniCacheV1',
    containerId: 'c1',
    ifName: 'eth0',
    networkName: 'pods',
    netns,
    cniArgs: [
      ['IgnoreUnknown', '1'],
      ['K8S_POD_NAMESPACE', 'shop'],
      ['K8S_POD_NAME', 'web'],
      ['K8S_POD_INFRA_CONTAINER_ID', 'c1'],
      ['K8S_POD_UID', '11111111-2222-3333-4444-555555555555'],
    ],
    capabilityArgs: { mac: '00:00:00:00:00:01' },
    result: {
      cniVersion: '1.0.0',
      interfaces: [{ name: 'eth0', sandbox: '/proc/self/ns/net' }],
      ips: [{ address: '10.9.8.7/24', interface: 0 }],
      dns: {},
    },
    runtime: 'keelson',
  });
  await cni.del({ ...attachment('c1', '/nowhere/at/all'), capabilities: {} });
  assert.deepEqual(commands(setup), ['ADD one', 'ADD two', 'DEL two', 'DEL one']);
  const del = setup.calls()[2]!;
  assert.equal(del.env['CNI_NETNS'], '', 'a namespace that is gone is not named');
  assert.deepEqual(del.input['prevResult'], file.result);
  assert.deepEqual(del.input['runtimeConfig'], { mac: '00:00:00:00:00:01' });
  assert.equal(existsSync(path), false);
});

test('0.3.1 gets no result on DEL', async (t) => {
  const setup = setUp(t);
  setup.plugin(
    'one',
    `[ $CNI_COMMAND = ADD ] && echo '{"ips":[{"version":"4","address":"10.0.0.2/8"}]}'; exit 0`,
  );
  setup.config('10.conf', { cniVersion: '0.3.1', name: 'pods', type: 'one' });
  const cni = setup.cni();
  assert.deepEqual(await cni.add(attachment('c1', netns)), { ips: ['10.0.0.2'] });
  await cni.check(attachment('c1', netns));
  await cni.del(attachment('c1', netns));
  assert.deepEqual(commands(setup), ['ADD one', 'DEL one']);
  assert.equal('prevResult' in setup.calls()[1]!.input, false);
});

test('DEL uses the configuration of the ADD, also after the network got another name and after its file went', async (t) => {
  const setup = setUp(t);
  const body = `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`;
  setup.plugin('old', body);
  setup.plugin('new', body);
  setup.config('10.conflist', list([{ type: 'old', mark: 1 }]));
  const first = setup.cni();
  await first.add(attachment('c1', netns));
  await first.add(attachment('c2', netns));
  setup.config('10.conflist', list([{ type: 'new' }], { name: 'other' }));
  await setup.cni().del(attachment('c1', netns));
  rmSync(join(setup.confDir, '10.conflist'));
  await setup.cni().del(attachment('c2', netns));
  assert.deepEqual(commands(setup), ['ADD old', 'ADD old', 'DEL old', 'DEL old']);
  assert.equal(setup.calls()[2]!.input['mark'], 1);
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), []);
  await setup.cni().del(attachment('c2', netns)); // never attached, nothing configured
});

test('DEL stops at the first error, keeps the file, and can be repeated', async (t) => {
  const setup = setUp(t);
  setup.plugin('one', `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`);
  setup.plugin(
    'two',
    `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')} && exit 0; [ -e ${setup.root}/heal ] || exit 3`,
  );
  setup.config('10.conflist', list([{ type: 'one' }, { type: 'two' }]));
  const cni = setup.cni();
  await cni.add(attachment('c1', netns));
  await assert.rejects(
    cni.del(attachment('c1', netns)),
    failsWith('CNI_PLUGIN_FAILED', /plugin two of network pods failed \(DEL\)/),
  );
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), ['pods-c1-eth0']);
  setup.plugin('two', 'exit 0');
  await cni.del(attachment('c1', netns));
  assert.deepEqual(commands(setup).slice(2), ['DEL two', 'DEL two', 'DEL one']);
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), []);
});

test("CHECK passes the result on, tells the plugin's words, and keeps still where it is disabled", async (t) => {
  const setup = setUp(t);
  setup.plugin(
    'one',
    `case $CNI_COMMAND in ADD) ${answer('10.9.8.7/24')};; CHECK) echo '{"code":100,"msg":"veth is gone"}'; exit 1;; esac`,
  );
  setup.config('10.conflist', list([{ type: 'one' }]));
  const cni = setup.cni();
  await assert.rejects(cni.check(attachment('c1', netns)), failsWith('NOT_FOUND'));
  await cni.add(attachment('c1', netns));
  await assert.rejects(
    cni.check(attachment('c1', netns)),
    failsWith('CNI_PLUGIN_FAILED', /\(CHECK\): veth is gone/),
  );
  assert.ok('prevResult' in setup.calls()[1]!.input);
  setup.config('10.conflist', list([{ type: 'one' }], { disableCheck: true, name: 'calm' }));
  const calm = setup.cni();
  await calm.add(attachment('c2', netns));
  await calm.check(attachment('c2', netns));
});

const hostile: readonly [name: string, body: string, pattern: RegExp][] = [
  [
    'an error result',
    `echo '{"cniVersion":"1.0.0","code":11,"msg":"no more addresses","details":"in 10.0.0.0/8"}'; exit 1`,
    /no more addresses; in 10.0.0.0\/8/,
  ],
  ['garbage', 'head -c 300 /dev/urandom', /gave no usable result/],
  ['nothing', 'exit 0', /it wrote nothing/],
  ['a JSON list', 'echo "[]"', /the result is not an object/],
  ['a result without addresses', 'echo "{}"', /gave container c1 no address/],
  ['an unknown version', `echo '{"cniVersion":"7.0.0"}'`, /its version 7.0.0 is not supported/],
  [
    'an address that is none',
    `echo '{"ips":[{"address":"everywhere"}]}'`,
    /ips\[0\].address is not an address/,
  ],
  ['output without end', 'while :; do head -c 65536 /dev/zero; done', /wrote more than 1048576 bytes/],
  ['nesting without end', `head -c 400000 /dev/zero | tr '\\0' '['`, /gave no usable result/],
  ['death by KILL', 'kill -9 $$', /ended by signal 9/],
  ['death by SEGV', 'kill -SEGV $$', /ended by signal 11/],
  ['words on standard error', 'echo "cannot open /run/x" >&2; exit 7', /exit code 7: cannot open \/run\/x/],
  ['silence', 'exit 7', /exit code 7 and said nothing/],
  ['an error that is no error', `echo '{"code":"x","msg":5}'; exit 1`, /exit code 1/],
];
for (const [name, body, pattern] of hostile) {
  test(`a plugin that answers with ${name} fails the ADD and is undone`, async (t) => {
    const setup = setUp(t);
    setup.plugin('fine', `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`);
    setup.plugin('bad', `[ $CNI_COMMAND = DEL ] && exit 0\n${body}`);
    setup.config('10.conflist', list([{ type: 'fine' }, { type: 'bad' }]));
    await assert.rejects(
      setup.cni().add(attachment('c1', netns)),
      failsWith('CNI_PLUGIN_FAILED', pattern, /network pods/),
    );
    assert.deepEqual(commands(setup), ['ADD fine', 'ADD bad', 'DEL bad', 'DEL fine']);
    assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), []);
  });
}

test('a plugin that hangs is killed with its children, and the rest is undone even so', async (t) => {
  const setup = setUp(t);
  setup.plugin('fine', `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`);
  setup.plugin('stuck', `trap '' TERM\nsleep 987654 & echo $! > ${setup.root}/child; wait; wait`);
  setup.config('10.conflist', list([{ type: 'fine' }, { type: 'stuck' }]));
  await assert.rejects(
    setup.cni({ deadlineMs: 1000 }).add(attachment('c1', netns)),
    failsWith('CNI_PLUGIN_FAILED', /plugin stuck .* did not end within 1000 ms and was killed/),
  );
  assert.deepEqual(commands(setup), ['ADD fine', 'ADD stuck', 'DEL stuck', 'DEL fine']);
  const child = Number(readFileSync(join(setup.root, 'child'), 'utf8'));
  const runs = () => {
    if (!existsSync(`/proc/${child}/stat`)) return false;
    return !/\) [ZX] /.test(readFileSync(`/proc/${child}/stat`, 'utf8'));
  };
  // KILL has been sent to it; on a busy machine it takes a moment to arrive.
  for (let tries = 0; runs() && tries < 500; tries++) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.ok(!runs(), 'its child has ended');
  // What could not be undone is remembered for the next try.
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), ['pods-c1-eth0']);
  setup.plugin('stuck', 'exit 0');
  await setup.cni().gc([]);
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), []);
});

test('a plugin that an abort meets at its work ends it, the next ones do not run, and all is undone', async (t) => {
  const setup = setUp(t);
  setup.plugin(
    'first',
    `[ $CNI_COMMAND = DEL ] && exit 0\ntouch ${setup.root}/started; sleep 0.3; ${answer('10.9.8.7/24')}`,
  );
  setup.plugin('second', 'exit 0');
  setup.config('10.conflist', list([{ type: 'first' }, { type: 'second' }]));
  const abort = new AbortController();
  const adding = setup.cni().add(attachment('c1', netns), abort.signal);
  while (!existsSync(join(setup.root, 'started'))) await new Promise((resolve) => setTimeout(resolve, 5));
  abort.abort();
  await assert.rejects(adding, failsWith('ABORTED'));
  assert.deepEqual(commands(setup), ['ADD first', 'DEL second', 'DEL first']);
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), []);
});

test('a plugin that does not end after an abort is killed and undone', async (t) => {
  const setup = setUp(t);
  setup.plugin('slow', `[ $CNI_COMMAND = DEL ] && exit 0\ntouch ${setup.root}/started; exec sleep 987654`);
  setup.config('10.conflist', list([{ type: 'slow' }]));
  const abort = new AbortController();
  const adding = setup.cni({ addGraceMs: 100 }).add(attachment('c1', netns), abort.signal);
  while (!existsSync(join(setup.root, 'started'))) await new Promise((resolve) => setTimeout(resolve, 5));
  abort.abort();
  await assert.rejects(adding, failsWith('ABORTED'));
  assert.deepEqual(commands(setup), ['ADD slow', 'DEL slow']);
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), []);
});

test('a missing plugin names itself, the folders and the package, and nothing was run', async (t) => {
  const setup = setUp(t);
  setup.config('10.conflist', list([{ type: 'nosuch' }]));
  const cni = setup.cni();
  await assert.rejects(
    cni.add(attachment('c1', netns)),
    failsWith('CNI_PLUGIN_MISSING', /nosuch/, /containernetworking-plugins/),
  );
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), []);
  const status = await cni.status();
  assert.equal(status.ready, false);
  assert.match(status.message, /nosuch.*containernetworking-plugins/);
  setup.plugin('nosuch', 'exit 0');
  assert.equal((await cni.status()).ready, true, 'seen once it is installed');
});

test('versions: the newest that the list allows and all plugins, IPAM too, know; asked once', async (t) => {
  const setup = setUp(t);
  const versioned = (versions: string) =>
    `case $CNI_COMMAND in VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":${versions}}';; ADD) echo '{"ips":[{"address":"10.0.0.2/8"}]}';; esac`;
  setup.plugin('main', versioned('["0.4.0","1.0.0","1.1.0"]'));
  setup.plugin('addr', versioned('["0.3.1","0.4.0","1.0.0"]'));
  setup.config(
    '10.conflist',
    list([{ type: 'main', ipam: { type: 'addr' } }], { cniVersions: ['0.4.0', '1.1.0'] }),
  );
  const cni = setup.cni();
  await Promise.all([cni.add(attachment('c1', netns)), cni.add(attachment('c2', netns))]);
  await cni.del(attachment('c1', netns));
  const calls = setup.calls();
  assert.equal(calls.filter(({ env }) => env['CNI_COMMAND'] === 'VERSION').length, 2);
  for (const { env, input } of calls) {
    if (env['CNI_COMMAND'] !== 'VERSION') assert.equal(input['cniVersion'], '1.0.0');
  }
});

test("STATUS (1.1.0): the plugin's words decide", async (t) => {
  const setup = setUp(t);
  setup.plugin('one', `[ -e ${setup.root}/up ] || { echo '{"code":50,"msg":"backend is away"}'; exit 1; }`);
  setup.config('10.conflist', list([{ type: 'one' }], { cniVersion: '1.1.0' }));
  const cni = setup.cni();
  const status = await cni.status();
  assert.deepEqual([status.ready, status.reason], [false, 'NetworkPluginNotReady']);
  assert.match(status.message, /backend is away/);
  setup.plugin('one', 'exit 0');
  assert.deepEqual(await cni.status(), { ready: true, reason: '', message: '' });
  assert.equal(setup.calls()[0]!.env['CNI_COMMAND'], 'STATUS');
});

test('GC: DEL for stale attachments of ours, then GC (1.1.0) with the valid ones and those of others', async (t) => {
  const setup = setUp(t);
  setup.plugin('one', `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`);
  setup.config('10.conflist', list([{ type: 'one' }], { cniVersion: '1.1.0' }));
  const cni = setup.cni();
  for (const id of ['keep', 'stale', 'foreign']) await cni.add(attachment(id, netns));
  const foreign = join(setup.cacheDir, 'results', 'pods-foreign-eth0');
  const file = JSON.parse(readFileSync(foreign, 'utf8'));
  delete file.runtime;
  writeFileSync(foreign, JSON.stringify(file));
  writeFileSync(join(setup.cacheDir, 'results', 'pods-torn-eth0'), '');
  await cni.gc([{ containerId: 'keep', ifName: 'eth0' }]);
  assert.deepEqual(commands(setup).slice(3), ['DEL one', 'GC one']);
  assert.equal(setup.calls()[3]!.env['CNI_CONTAINERID'], 'stale');
  assert.deepEqual(setup.calls()[4]!.input['cni.dev/valid-attachments'], [
    { containerID: 'keep', ifname: 'eth0' },
    { containerID: 'foreign', ifname: 'eth0' },
  ]);
  assert.deepEqual(
    setup.calls()[4]!.input['cni.dev/attachments'],
    setup.calls()[4]!.input['cni.dev/valid-attachments'],
  );
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')).sort(), [
    'pods-foreign-eth0',
    'pods-keep-eth0',
    'pods-torn-eth0',
  ]);
});

test('GC runs alone and keeps what was being attached when it was called', async (t) => {
  const setup = setUp(t);
  setup.plugin('one', `case $CNI_COMMAND in ADD) sleep 0.2; ${answer('10.9.8.7/24')};; GC) sleep 0.2;; esac`);
  setup.config('10.conflist', list([{ type: 'one' }], { cniVersion: '1.1.0' }));
  const cni = setup.cni();
  const early = cni.add(attachment('early', netns));
  const gc = cni.gc([]);
  const late = cni.add(attachment('late', netns));
  await Promise.all([early, gc, late]);
  assert.deepEqual(commands(setup), ['ADD one', 'GC one', 'ADD one']);
  assert.deepEqual(
    setup.calls().map(({ env }) => env['CNI_CONTAINERID']),
    ['early', '', 'late'],
  );
});

test('calls for one container do not overlap', async (t) => {
  const setup = setUp(t);
  setup.plugin(
    'one',
    `mkdir ${setup.root}/busy || exit 9; sleep 0.05; rmdir ${setup.root}/busy; [ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`,
  );
  setup.config('10.conflist', list([{ type: 'one' }]));
  const cni = setup.cni();
  await Promise.all([
    cni.add(attachment('c1', netns)),
    cni.del(attachment('c1', netns)),
    cni.add(attachment('c1', netns)),
  ]);
  assert.deepEqual(commands(setup), ['ADD one', 'DEL one', 'ADD one']);
});

test('a plugin that hangs in STATUS, DEL or GC is ended, and what it should have done is done later', async (t) => {
  const setup = setUp(t);
  const body = `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`;
  const hang = `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')} && exit 0; exec sleep 987654`;
  setup.plugin('one', hang);
  setup.config('10.conflist', list([{ type: 'one' }], { cniVersion: '1.1.0' }));
  const cni = setup.cni({ deadlineMs: 500 });
  const status = await cni.status();
  assert.equal(status.ready, false);
  assert.match(status.message, /\(STATUS\): it did not end within 500 ms and was killed/);
  await cni.add(attachment('c1', netns));
  await assert.rejects(
    cni.del(attachment('c1', netns)),
    failsWith('CNI_PLUGIN_FAILED', /\(DEL\): it did not end within 500 ms/),
  );
  await assert.rejects(cni.gc([]), failsWith('CNI_PLUGIN_FAILED', /\(DEL\): .*\(GC\): it did not end/));
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), ['pods-c1-eth0']);
  setup.plugin('one', body);
  await cni.gc([]);
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), []);
  assert.equal((await cni.status()).ready, true);
});

test('VERSION that is garbage, endless or fatal leaves the word to the plugin itself', async (t) => {
  for (const said of ['echo nonsense', 'echo "[]"', `echo '{"supportedVersions":7}'`, 'exit 0']) {
    const setup = setUp(t);
    setup.plugin('one', `[ $CNI_COMMAND = VERSION ] && { ${said}; exit 0; }; ${answer('10.9.8.7/24')}`);
    setup.config('10.conflist', list([{ type: 'one' }], { cniVersions: ['0.4.0', '1.0.0'] }));
    assert.deepEqual(await setup.cni().add(attachment('c1', netns)), { ips: ['10.9.8.7'] }, said);
  }
  const setup = setUp(t);
  setup.plugin('one', 'kill -9 $$');
  setup.config('10.conflist', list([{ type: 'one' }], { cniVersions: ['0.4.0', '1.0.0'] }));
  const cni = setup.cni();
  assert.match((await cni.status()).message, /\(VERSION\): it was ended by signal 9/);
  await assert.rejects(cni.add(attachment('c1', netns)), failsWith('CNI_PLUGIN_FAILED', /VERSION/));
  assert.deepEqual(commands(setup), ['VERSION one', 'VERSION one']);
});

test('the plain file that a reboot leaves of a pinned namespace is not taken for one', async (t) => {
  const setup = setUp(t);
  setup.plugin('one', `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`);
  setup.config('10.conflist', list([{ type: 'one' }]));
  const pin = join(setup.root, 'pin');
  writeFileSync(pin, '');
  const cni = setup.cni();
  for (const id of ['c1', 'c2']) await cni.add(attachment(id, pin));
  await cni.del(attachment('c1', pin));
  await cni.gc([]);
  assert.deepEqual(
    setup.calls().map(({ env }) => `${env['CNI_COMMAND']} ${env['CNI_NETNS']}`),
    [`ADD ${pin}`, `ADD ${pin}`, 'DEL ', 'DEL '],
  );
});

test('GC without a network detaches what it can, and says that it must be called again', async (t) => {
  const setup = setUp(t);
  setup.plugin('one', `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`);
  setup.config('10.conflist', list([{ type: 'one' }], { cniVersion: '1.1.0' }));
  await setup.cni().add(attachment('c1', netns));
  rmSync(join(setup.confDir, '10.conflist'));
  const cni = setup.cni();
  await assert.rejects(cni.gc([]), failsWith('CNI_NOT_CONFIGURED'));
  assert.deepEqual(commands(setup), ['ADD one', 'DEL one']);
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), []);
  setup.config('10.conflist', list([{ type: 'one' }], { cniVersion: '1.1.0' }));
  await cni.gc([]);
  assert.deepEqual(commands(setup).slice(2), ['GC one']);
});

test('disableGC: neither GC nor DEL for that network, but for others', async (t) => {
  const setup = setUp(t);
  setup.plugin('one', `[ $CNI_COMMAND = ADD ] && ${answer('10.9.8.7/24')}; exit 0`);
  setup.config('10.conflist', list([{ type: 'one' }], { name: 'before' }));
  await setup.cni().add(attachment('c1', netns));
  setup.config('10.conflist', list([{ type: 'one' }], { cniVersion: '1.1.0', disableGC: true }));
  const cni = setup.cni();
  await cni.add(attachment('c2', netns));
  await cni.gc([]);
  assert.deepEqual(commands(setup), ['ADD one', 'ADD one', 'DEL one']);
  assert.deepEqual(readdirSync(join(setup.cacheDir, 'results')), ['pods-c2-eth0']);
});

test('names that would add arguments to CNI_ARGS are refused', async (t) => {
  const setup = setUp(t);
  setup.plugin('one', answer('10.9.8.7/24'));
  setup.config('10.conflist', list([{ type: 'one' }]));
  const cni = setup.cni();
  const wanted = attachment('c1', netns);
  for (const podName of ['web;IP=10.0.0.1', 'a=b', 'a\0b']) {
    const args = { ...wanted.args, podName };
    await assert.rejects(cni.add({ ...wanted, args }), failsWith('INVALID_ARGUMENT', /podName/));
  }
  assert.deepEqual(setup.calls(), []);
});
