/** From CRI to runtime-spec: tables. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ContainerConfig } from '../../runtime/api.ts';
import { openFilesIn } from '../../runtime/context.ts';
import { slicePath } from '../../runtime/host/cgroups.ts';
import { isError } from '../../runtime/host/errors.ts';
import { type MountPoint, mountOf, parseMountinfo, planMounts } from '../../runtime/oci/mounts.ts';
import { processArgs } from '../../runtime/oci/process.ts';
import { capabilitiesIn, clampOomScore, containerCapabilities } from '../../runtime/oci/security.ts';
import { containerCgroup, containerSpec, type HostFacts, type SpecInput } from '../../runtime/oci/spec.ts';

const invalid = (error: unknown) => isError(error, 'CONTAINER_CONFIG_INVALID');
const host: HostFacts = {
  capabilities: ['CHOWN', 'SYS_ADMIN', 'SYS_RESOURCE'],
  oomScoreAdj: 0,
  cgroupVersion: 2,
  hugetlb: false,
  swapLimit: true,
};
type Security = ContainerConfig['linux']['security'];
type Resources = ContainerConfig['linux']['resources'];

function config(changes: Partial<ContainerConfig> = {}): ContainerConfig {
  return {
    metadata: { name: 'c', attempt: 0 },
    image: { image: 'i' },
    command: ['run'],
    args: [],
    workingDir: '',
    envs: [],
    mounts: [],
    labels: {},
    annotations: {},
    logPath: 'c/0.log',
    linux: { resources: {}, security: { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } },
    ...changes,
  };
}

function withLinux(security: Partial<Security>, resources: Resources = {}): ContainerConfig {
  return config({
    linux: {
      resources,
      security: { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' }, ...security },
    },
  });
}

function spec(given: ContainerConfig, changes: Partial<SpecInput> = {}) {
  return containerSpec({
    sandbox: { id: 's', name: 'pod', namespace: 'ns', uid: 'u', hostname: 'host' },
    config: given,
    image: { Env: [], Entrypoint: ['entry'], Cmd: ['cmd'], WorkingDir: '' },
    user: { uid: 1, gid: 2, additionalGids: [2, 3] },
    rootfs: '/rootfs',
    cgroupsPath: '/kubepods/x',
    namespaces: { network: '/n', ipc: '/i', uts: '/u', pid: 'own' },
    mountPlan: { mounts: [] },
    devices: [],
    host,
    ...changes,
  });
}

test('command and args against entrypoint and cmd', () => {
  const image = { Entrypoint: ['entry'], Cmd: ['cmd'] };
  const cases: [string[], string[], string[]][] = [
    [[], [], ['entry', 'cmd']],
    [[], ['arg'], ['entry', 'arg']],
    [['own'], [], ['own']],
    [['own'], ['arg'], ['own', 'arg']],
  ];
  for (const [command, args, expected] of cases)
    assert.deepEqual(processArgs({ command, args }, image), expected);
  const none = { Entrypoint: [], Cmd: [] };
  assert.throws(() => processArgs({ command: [], args: [] }, none), invalid);
  assert.throws(() => processArgs({ command: [''], args: [] }, none), invalid);
  assert.throws(() => processArgs({ command: ['a\0b'], args: [] }, none), invalid);
  assert.deepEqual(processArgs({ command: [], args: ['x'] }, none), ['x']);
  const long = 'x'.repeat((128 << 10) - 1);
  assert.equal(processArgs({ command: [long], args: [] }, none).length, 1);
  assert.throws(() => processArgs({ command: [`${long}x`], args: [] }, none), invalid);
  assert.throws(() => processArgs({ command: Array(49).fill(long), args: [] }, none), invalid);
});

test('environment: defaults, image, container; the last wins, each name once', () => {
  const image = { Env: ['PATH=/img', 'A=1', 'broken'], Entrypoint: [], Cmd: [], WorkingDir: '' };
  const given = config({
    tty: true,
    envs: [
      { key: 'A', value: '2' },
      { key: 'B', value: 'x=y\nz' },
      { key: 'HOSTNAME', value: 'mine' },
    ],
  });
  assert.deepEqual(spec(given, { image }).process.env, [
    'PATH=/img',
    'TERM=xterm',
    'HOSTNAME=mine',
    'A=2',
    'B=x=y\nz',
  ]);
  assert.ok(spec(config()).process.env[0]?.startsWith('PATH=/usr/local/sbin:'));
  for (const key of ['', 'a=b', 'a\0']) {
    assert.throws(() => spec(config({ envs: [{ key, value: '' }] })), invalid);
  }
  assert.throws(() => spec(config({ envs: [{ key: 'a', value: '\0' }] })), invalid);
});

test('working directory', () => {
  const image = { Env: [], Entrypoint: [], Cmd: [], WorkingDir: '/img' };
  assert.equal(spec(config()).process.cwd, '/');
  assert.equal(spec(config(), { image }).process.cwd, '/img');
  assert.equal(spec(config({ workingDir: '/own' }), { image }).process.cwd, '/own');
  assert.throws(() => spec(config({ workingDir: 'own' })), invalid);
});

test('capabilities', () => {
  const own = ['CHOWN', 'KILL', 'NET_ADMIN'];
  const of = (add: string[], drop: string[], privileged = false) =>
    containerCapabilities({ privileged, add, drop, own }).all;
  assert.equal(of([], []).length, 14);
  assert.deepEqual(of([], ['ALL']), []);
  assert.deepEqual(of(['NET_ADMIN'], ['all']), ['CAP_NET_ADMIN']);
  assert.deepEqual(of(['cap_sys_time'], ['ALL']), ['CAP_SYS_TIME']);
  assert.deepEqual(of(['ALL'], ['KILL']), ['CAP_CHOWN', 'CAP_NET_ADMIN']);
  assert.deepEqual(of(['ALL'], ['ALL']), ['CAP_CHOWN', 'CAP_KILL', 'CAP_NET_ADMIN']);
  assert.deepEqual(of([], ['ALL'], true), ['CAP_CHOWN', 'CAP_KILL', 'CAP_NET_ADMIN']);
  assert.ok(!of([], ['NET_RAW']).includes('CAP_NET_RAW'));
  assert.throws(() => of(['FLY'], []), invalid);
  assert.deepEqual(capabilitiesIn('0000000000000005'), ['CHOWN', 'DAC_READ_SEARCH']);
  assert.equal(capabilitiesIn('000001fffeffffff').includes('SYS_RESOURCE'), false);
  assert.equal(capabilitiesIn('000001ffffffffff').length, 41);
});

test('the OOM score stays where this process may set it', () => {
  assert.equal(clampOomScore(-998, 0, []), 0);
  assert.equal(clampOomScore(-998, -999, []), -998);
  assert.equal(clampOomScore(-998, 0, ['SYS_RESOURCE']), -998);
  assert.equal(clampOomScore(5000, 0, []), 1000);
  assert.equal(clampOomScore(-5000, 0, ['SYS_RESOURCE']), -1000);
  assert.equal(spec(withLinux({}, { oomScoreAdj: 0 })).process.oomScoreAdj, 0);
  assert.equal(spec(config()).process.oomScoreAdj, undefined);
});

test('namespaces', () => {
  const types = (given: ContainerConfig, namespaces: SpecInput['namespaces'], facts = host) =>
    spec(given, { namespaces, host: facts }).linux.namespaces.map(({ type, path }) =>
      path ? `${type}=${path}` : type,
    );
  assert.deepEqual(types(config(), { network: '/n', ipc: '/i', uts: '/u', pid: 'own' }), [
    'mount',
    'pid',
    'network=/n',
    'ipc=/i',
    'uts=/u',
    'cgroup',
  ]);
  assert.deepEqual(types(config(), { pid: 'host' }, { ...host, cgroupVersion: 1 }), ['mount']);
  assert.deepEqual(types(withLinux({ privileged: true }), { pid: { path: '/p' } }), ['mount', 'pid=/p']);
});

test('resources', () => {
  const limits = (resources: Resources, facts = host) => {
    const { devices, ...rest } = spec(withLinux({}, resources), { host: facts }).linux.resources;
    return JSON.parse(JSON.stringify(rest));
  };
  assert.deepEqual(limits({}), {});
  assert.deepEqual(limits({ cpuShares: 0, cpuQuota: 0, memoryLimitBytes: 0, pidsLimit: 0 }), {});
  assert.deepEqual(limits({ cpuShares: 512, cpuQuota: 50_000, cpuPeriod: 100_000, cpusetCpus: '0' }), {
    cpu: { shares: 512, quota: 50_000, period: 100_000, cpus: '0' },
  });
  assert.deepEqual(limits({ memoryLimitBytes: 7 }), { memory: { limit: 7, swap: 7 } });
  assert.deepEqual(limits({ memoryLimitBytes: 7 }, { ...host, swapLimit: false }), { memory: { limit: 7 } });
  assert.deepEqual(limits({ pidsLimit: -1 }), { pids: { limit: -1 } });
  const pages = [{ pageSize: '2MB', limit: 0 }];
  assert.deepEqual(limits({ hugepageLimits: pages }), {});
  assert.deepEqual(limits({ hugepageLimits: pages }, { ...host, hugetlb: true }), { hugepageLimits: pages });
  assert.deepEqual(limits({ unified: { 'memory.high': '1' } }), { unified: { 'memory.high': '1' } });
  assert.deepEqual(limits({ unified: { 'memory.high': '1' } }, { ...host, cgroupVersion: 1 }), {});
});

test('security: privileged, masked paths, devices, no new privileges', () => {
  const plain = spec(config());
  assert.ok(plain.linux.maskedPaths.includes('/proc/kcore'));
  assert.ok(plain.linux.readonlyPaths.includes('/proc/sys'));
  assert.deepEqual(plain.linux.resources['devices'], [{ allow: false, access: 'rwm' }]);
  assert.equal(plain.process.noNewPrivileges, false);
  assert.equal(plain.root.readonly, false);
  const own = spec(
    withLinux({ maskedPaths: [], readonlyPaths: ['/x'], noNewPrivs: true, readonlyRootfs: true }),
  );
  assert.deepEqual(own.linux.maskedPaths, []);
  assert.deepEqual(own.linux.readonlyPaths, ['/x']);
  assert.equal(own.process.noNewPrivileges, true);
  assert.equal(own.root.readonly, true);
  const privileged = spec(withLinux({ privileged: true }));
  assert.deepEqual(privileged.linux.maskedPaths, []);
  assert.deepEqual(privileged.linux.resources['devices'], [{ allow: true, access: 'rwm' }]);
  assert.deepEqual(privileged.process.capabilities.effective, [
    'CAP_CHOWN',
    'CAP_SYS_ADMIN',
    'CAP_SYS_RESOURCE',
  ]);
  const device = { path: '/dev/x', type: 'c', major: 1, minor: 2, access: 'rw' } as const;
  const withDevice = spec(config(), { devices: [device] });
  assert.deepEqual((withDevice.linux.resources['devices'] as unknown[])[1], {
    allow: true,
    type: 'c',
    major: 1,
    minor: 2,
    access: 'rw',
  });
  assert.deepEqual(withDevice.linux.devices, [{ path: '/dev/x', type: 'c', major: 1, minor: 2 }]);
});

test('limits of open files: said, and never endless', () => {
  const files = (openFiles?: number) => spec(config(), { host: { ...host, openFiles } }).process.rlimits?.[0];
  assert.deepEqual(files(20_000), { type: 'RLIMIT_NOFILE', soft: 20_000, hard: 20_000 });
  assert.equal(files(2 ** 30)?.hard, 2 ** 20);
  assert.equal(files(), undefined);
  const text =
    'Limit  Soft  Hard  Units\nMax open files            1024                 524288               files\n';
  assert.equal(openFilesIn(text), 524_288);
  assert.equal(openFilesIn(text.replace('524288', 'unlimited')), Number.MAX_SAFE_INTEGER);
  assert.equal(openFilesIn(''), undefined);
});

test('what security modules, ambient capabilities and user namespaces become', () => {
  const seccomp = { defaultAction: 'SCMP_ACT_ALLOW' };
  const labels = { process: 'p', mount: 'm' };
  const range = { containerId: 0, hostId: 100, length: 10 };
  const given = spec(withLinux({ capabilities: { add: [], drop: ['ALL'], addAmbient: ['NET_RAW'] } }), {
    confinement: { seccomp, apparmor: 'profile', selinux: labels },
    namespaces: { pid: 'own', user: { path: '/u', uids: [range], gids: [{ ...range, hostId: 200 }] } },
  });
  assert.equal(given.linux.seccomp, seccomp);
  assert.equal(given.process.apparmorProfile, 'profile');
  assert.equal(given.process.selinuxLabel, 'p');
  assert.equal(given.linux.mountLabel, 'm');
  assert.deepEqual(given.process.capabilities.ambient, ['CAP_NET_RAW']);
  assert.deepEqual(given.process.capabilities.inheritable, ['CAP_NET_RAW']);
  assert.deepEqual(given.linux.uidMappings, [{ containerID: 0, hostID: 100, size: 10 }]);
  assert.deepEqual(given.linux.gidMappings, [{ containerID: 0, hostID: 200, size: 10 }]);
  assert.ok(given.linux.namespaces.some(({ type, path }) => type === 'user' && path === '/u'));
  const plain = JSON.parse(JSON.stringify(spec(config())));
  for (const field of ['seccomp', 'mountLabel', 'uidMappings']) assert.ok(!(field in plain.linux), field);
  assert.deepEqual(plain.process.capabilities.ambient, []);
  assert.deepEqual(plain.process.capabilities.inheritable, [], 'CVE-2022-24769');
});

test('cgroup paths of both drivers', () => {
  assert.deepEqual(containerCgroup('cgroupfs', '/kubepods/pod1/', 'id', slicePath), {
    cgroupsPath: '/kubepods/pod1/id',
    path: '/kubepods/pod1/id',
  });
  assert.equal(containerCgroup('cgroupfs', '', 'id', slicePath).path, '/keelson/id');
  assert.deepEqual(containerCgroup('systemd', '/kubepods.slice/kubepods-pod1.slice', 'id', slicePath), {
    cgroupsPath: 'kubepods-pod1.slice:keelson:id',
    path: '/kubepods.slice/kubepods-pod1.slice/keelson-id.scope',
  });
  assert.equal(slicePath('a-b-c.slice'), '/a.slice/a-b.slice/a-b-c.slice');
  assert.equal(slicePath('-.slice'), '/');
});

const files = { resolvConf: '/s/resolv.conf', hostname: '/s/hostname', shm: '/s/shm' };
const hostMounts: MountPoint[] = [
  { path: '/', shared: false, slave: false },
  { path: '/data', shared: true, slave: false },
  { path: '/data/sub', shared: false, slave: true },
];
const features = { recursiveReadonly: true, idmap: true };
const plan = (wanted: ContainerConfig['mounts'], privileged = false) =>
  planMounts({ wanted, files, privileged, readonlyRootfs: false, hostMounts, features });
const mount = (
  containerPath: string,
  hostPath = '/h',
  propagation: 'private' | 'host-to-container' | 'bidirectional' = 'private',
) => ({
  containerPath,
  hostPath,
  readonly: true,
  propagation,
});

test('mounts: defaults, replaced ones, order', () => {
  const places = (wanted: ContainerConfig['mounts']) =>
    plan(wanted).mounts.map(({ destination }) => destination);
  const defaults = ['/proc', '/dev', '/dev/pts', '/dev/mqueue', '/sys', '/sys/fs/cgroup'];
  assert.deepEqual(places([]), [...defaults, '/dev/shm', '/etc/hostname', '/etc/resolv.conf']);
  assert.deepEqual(places([mount('/a/b/c'), mount('/a'), mount('/etc')]), [
    ...defaults,
    '/a',
    '/etc',
    '/dev/shm',
    '/etc/hostname',
    '/etc/resolv.conf',
    '/a/b/c',
  ]);
  assert.deepEqual(places([mount('/dev/')]), [
    '/proc',
    '/sys',
    '/sys/fs/cgroup',
    '/dev',
    '/etc/hostname',
    '/etc/resolv.conf',
  ]);
  assert.equal(
    plan([mount('/etc/../etc/resolv.conf', '/own')]).mounts.find((m) => m.destination === '/etc/resolv.conf')
      ?.source,
    '/own',
  );
  const sys = (privileged: boolean) =>
    plan([], privileged).mounts.find((m) => m.destination === '/sys')?.options;
  assert.ok(sys(false)?.includes('ro') && sys(true)?.includes('rw'));
  for (const bad of ['', 'x', '../x', '/a\0']) {
    assert.throws(() => plan([mount(bad)]), invalid);
    assert.throws(() => plan([mount('/a', bad)]), invalid);
  }
});

test('mount propagation needs a host side that has it', () => {
  assert.equal(plan([mount('/a', '/data/x', 'bidirectional')]).rootfsPropagation, 'rshared');
  assert.equal(plan([mount('/a', '/data/sub/x', 'host-to-container')]).rootfsPropagation, 'rslave');
  assert.equal(
    plan([mount('/a', '/data', 'bidirectional'), mount('/b', '/data', 'host-to-container')])
      .rootfsPropagation,
    'rshared',
  );
  assert.equal(plan([mount('/a', '/data')]).rootfsPropagation, undefined);
  assert.throws(() => plan([mount('/a', '/x', 'bidirectional')]), invalid);
  assert.throws(() => plan([mount('/a', '/data/sub', 'bidirectional')]), invalid);
  assert.throws(() => plan([mount('/a', '/x', 'host-to-container')]), invalid);
  assert.throws(() => plan([mount('/a', '/database', 'bidirectional')]), invalid);
});

test('read-only with all below, options, mappings: what the runtime can', () => {
  const first = (changes: object, can = features) =>
    planMounts({
      wanted: [{ ...mount('/a'), ...changes }],
      files,
      privileged: false,
      readonlyRootfs: false,
      hostMounts,
      features: can,
    }).mounts.find(({ destination }) => destination === '/a');
  const none = { recursiveReadonly: false, idmap: false };
  assert.deepEqual(first({})?.options, ['rbind', 'ro', 'rprivate']);
  assert.deepEqual(first({ readonly: false })?.options, ['rbind', 'rw', 'rprivate']);
  assert.deepEqual(first({ recursiveReadonly: true })?.options, ['rbind', 'rro', 'rprivate']);
  assert.deepEqual(first({ mountOptions: ['noexec', 'nosuid'] })?.options, [
    'rbind',
    'ro',
    'rprivate',
    'noexec',
    'nosuid',
  ]);
  const range = { containerId: 0, hostId: 100, length: 10 };
  const mapped = { uidMappings: [range], gidMappings: [range] };
  assert.deepEqual(first(mapped)?.uidMappings, [{ containerID: 0, hostID: 100, size: 10 }]);
  assert.equal(first({})?.uidMappings, undefined);
  assert.equal(first({ uidMappings: [], gidMappings: [] }, none)?.uidMappings, undefined);
  assert.throws(
    () => first({ recursiveReadonly: true }, none),
    (error) => invalid(error) && /: RROUnsupported: /.test(String(error)),
  );
  for (const [changes, can] of [
    [{ recursiveReadonly: true, readonly: false }, features],
    [{ recursiveReadonly: true, propagation: 'bidirectional', hostPath: '/data' }, features],
    [mapped, none],
    [{ uidMappings: [range] }, features],
    [{ mountOptions: ['rw'] }, features],
    [{ mountOptions: ['noexec,suid'] }, features],
  ] as const) {
    assert.throws(() => first(changes, can), invalid, JSON.stringify(changes));
  }
});

test('mountinfo', () => {
  const text = [
    '27 1 254:0 / / rw,relatime - ext4 /dev/vda rw',
    '30 27 0:26 / /with\\040space rw shared:3 master:2 - tmpfs tmpfs rw',
    'garbage',
    '31 27 0:26 / /x rw propagate_from:1 - tmpfs tmpfs rw',
    '',
  ].join('\n');
  assert.deepEqual(parseMountinfo(text), [
    { path: '/', shared: false, slave: false },
    { path: '/with space', shared: true, slave: true },
    { path: '/x', shared: false, slave: false },
  ]);
  assert.equal(mountOf('/with space/y', parseMountinfo(text))?.path, '/with space');
  assert.equal(mountOf('/xy', parseMountinfo(text))?.path, '/');
});
