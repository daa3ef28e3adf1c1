/** Seccomp, AppArmor, SELinux, limits and features of runtimes: what is decided without touching the machine. */
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ContainerConfig, LinuxContainerResources, PodSandboxConfig } from '../../runtime/api.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import { featuresOfVersion, noFeatures, parseFeatures } from '../../runtime/oci/features.ts';
import { containerCapabilities } from '../../runtime/oci/security.ts';
import {
  checkResources,
  limitFiles,
  mergeResources,
  resourceLimits,
} from '../../runtime/resources/limits.ts';
import { checkContainerRequest } from '../../runtime/security/admission.ts';
import { defaultProfile, hasProfile, makeAppArmor } from '../../runtime/security/apparmor.ts';
import {
  defaultSeccomp,
  type OciSeccomp,
  parseSeccomp,
  type SeccompSubject,
  seccompFor,
} from '../../runtime/security/seccomp.ts';
import { labelsOf, levelFor, makeSelinux, parseContexts } from '../../runtime/security/selinux.ts';

const invalid = (error: unknown) => isError(error, 'CONTAINER_CONFIG_INVALID');
const none: SeccompSubject = { capabilities: [], arch: 'x64', kernel: '6.1.0' };

/** Is the call let through whatever its arguments? */
function lets({ syscalls = [] }: OciSeccomp, call: string): boolean {
  return syscalls.some(
    ({ names, action, args = [] }) =>
      action === 'SCMP_ACT_ALLOW' && args.length === 0 && names.includes(call),
  );
}

test('RuntimeDefault of seccomp: by capability and processor', () => {
  const plain = defaultSeccomp(none);
  assert.equal(plain.defaultAction, 'SCMP_ACT_ERRNO');
  for (const call of ['read', 'execve', 'futex', 'ptrace', 'openat2', 'statx', 'arch_prctl', 'io_submit']) {
    assert.ok(lets(plain, call), call);
  }
  const never = [
    'mount',
    'unshare',
    'setns',
    'bpf',
    'keyctl',
    'add_key',
    'request_key',
    'init_module',
    'reboot',
  ];
  for (const call of [
    ...never,
    'kexec_load',
    'userfaultfd',
    'io_uring_setup',
    'clone',
    'clone3',
    'swapon',
    'iopl',
  ]) {
    assert.ok(!lets(plain, call), call);
  }
  const granted: [string, string[]][] = [
    ['CAP_SYS_ADMIN', ['mount', 'unshare', 'setns', 'clone', 'clone3', 'bpf', 'sethostname']],
    ['CAP_SYS_BOOT', ['reboot']],
    ['CAP_SYS_CHROOT', ['chroot']],
    ['CAP_SYS_MODULE', ['init_module', 'finit_module', 'delete_module']],
    ['CAP_SYS_PTRACE', ['kcmp', 'pidfd_getfd']],
    ['CAP_SYS_RAWIO', ['iopl', 'ioperm']],
    ['CAP_SYS_TIME', ['clock_settime', 'settimeofday']],
    ['CAP_SYS_NICE', ['mbind', 'set_mempolicy']],
    ['CAP_SYS_PACCT', ['acct']],
    ['CAP_SYS_TTY_CONFIG', ['vhangup']],
    ['CAP_SYSLOG', ['syslog']],
    ['CAP_BPF', ['bpf']],
    ['CAP_PERFMON', ['perf_event_open']],
    ['CAP_DAC_READ_SEARCH', ['open_by_handle_at']],
  ];
  for (const [capability, calls] of granted) {
    const more = defaultSeccomp({ ...none, capabilities: [capability] });
    for (const call of calls) assert.ok(lets(more, call) && !lets(plain, call), `${capability} ${call}`);
  }
  const rule = (profile: OciSeccomp, call: string) =>
    profile.syscalls?.filter(({ names }) => names.includes(call));
  assert.deepEqual(rule(plain, 'clone')?.[0]?.args, [
    { index: 0, value: 0x7e020000, valueTwo: 0, op: 'SCMP_CMP_MASKED_EQ' },
  ]);
  assert.equal(rule(defaultSeccomp({ ...none, arch: 's390x' }), 'clone')?.[0]?.args?.[0]?.index, 1);
  assert.deepEqual(rule(plain, 'clone3'), [{ names: ['clone3'], action: 'SCMP_ACT_ERRNO', errnoRet: 38 }]);
  assert.equal(rule(plain, 'personality')?.length, 5);
  assert.deepEqual(rule(plain, 'socket')?.[0]?.args, [{ index: 0, value: 40, op: 'SCMP_CMP_NE' }]);
  assert.deepEqual(plain.architectures, ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86', 'SCMP_ARCH_X32']);
  for (const [arch, native, own, foreign] of [
    ['arm64', 'SCMP_ARCH_AARCH64', 'cacheflush', 'arch_prctl'],
    ['arm', 'SCMP_ARCH_ARM', 'set_tls', 'arch_prctl'],
    ['riscv64', 'SCMP_ARCH_RISCV64', 'riscv_flush_icache', 'set_tls'],
  ] as const) {
    const profile = defaultSeccomp({ ...none, arch });
    assert.equal(profile.architectures?.[0], native);
    assert.ok(lets(profile, own) && !lets(profile, foreign), arch);
  }
  assert.deepEqual(defaultSeccomp({ ...none, arch: 'unknown' }).architectures, []);
  const names = plain.syscalls?.[0]?.names ?? [];
  assert.equal(new Set(names).size, names.length, 'each call once');
  assert.ok(names.every((name) => /^[a-z_0-9]+$/.test(name)));
});

test('seccomp profiles of the administrator', () => {
  const parse = (profile: unknown, subject = none) =>
    parseSeccomp(typeof profile === 'string' ? profile : JSON.stringify(profile), '/p.json', subject);
  const rule = { names: ['a'], action: 'SCMP_ACT_LOG', args: [{ index: 1, value: 5, op: 'SCMP_CMP_GE' }] };
  const read = parse({
    defaultAction: 'SCMP_ACT_ALLOW',
    architectures: ['SCMP_ARCH_X86'],
    syscalls: [rule],
    x: 1,
  });
  assert.deepEqual(JSON.parse(JSON.stringify(read)), {
    defaultAction: 'SCMP_ACT_ALLOW',
    architectures: ['SCMP_ARCH_X86'],
    flags: [],
    syscalls: [rule],
  });
  const docker = (rules: object[]) => ({
    defaultAction: 'SCMP_ACT_ERRNO',
    archMap: [
      { architecture: 'SCMP_ARCH_X86_64', subArchitectures: ['SCMP_ARCH_X86'] },
      { architecture: 'SCMP_ARCH_AARCH64', subArchitectures: ['SCMP_ARCH_ARM'] },
    ],
    syscalls: rules.map((conditions, index) => ({
      names: [`call${index}`],
      action: 'SCMP_ACT_ALLOW',
      ...conditions,
    })),
  });
  const conditional = docker([
    { includes: { caps: ['CAP_SYS_ADMIN'] } },
    { excludes: { caps: ['CAP_SYS_ADMIN'] } },
    { includes: { arches: ['amd64', 'x32'] } },
    { excludes: { arches: ['amd64'] } },
    { includes: { minKernel: '4.8' } },
    { includes: { minKernel: '6.2' } },
    { name: 'single', names: null },
  ]);
  const calls = (profile: OciSeccomp) => profile.syscalls?.flatMap(({ names }) => names);
  assert.deepEqual(calls(parse(conditional)), ['call1', 'call2', 'call4', 'single']);
  assert.deepEqual(calls(parse(conditional, { ...none, capabilities: ['CAP_SYS_ADMIN'], arch: 'arm64' })), [
    'call0',
    'call3',
    'call4',
    'single',
  ]);
  assert.deepEqual(parse(conditional).architectures, ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86']);
  const broken: [unknown, RegExp][] = [
    ['', /not JSON/],
    ['[]', /not a JSON object/],
    ['null', /not a JSON object/],
    [{}, /defaultAction/],
    [{ defaultAction: 'SCMP_ACT_NOTIFY' }, /defaultAction/],
    [{ defaultAction: 'SCMP_ACT_ALLOW', syscalls: {} }, /syscalls/],
    [{ defaultAction: 'SCMP_ACT_ALLOW', syscalls: [{ action: 'SCMP_ACT_LOG' }] }, /names no system call/],
    [
      { defaultAction: 'SCMP_ACT_ALLOW', syscalls: [{ names: [1], action: 'SCMP_ACT_LOG' }] },
      /list of texts/,
    ],
    [{ defaultAction: 'SCMP_ACT_ALLOW', syscalls: [{ names: ['a'], action: 'x' }] }, /action/],
    [
      { defaultAction: 'SCMP_ACT_ALLOW', syscalls: [{ ...rule, args: [{ index: 9, op: 'SCMP_CMP_EQ' }] }] },
      /index 9/,
    ],
    [{ defaultAction: 'SCMP_ACT_ALLOW', syscalls: [{ ...rule, args: [{ op: '==' }] }] }, /operator/],
    [{ defaultAction: 'SCMP_ACT_ALLOW', defaultErrnoRet: -1 }, /defaultErrnoRet/],
  ];
  for (const [profile, why] of broken) {
    assert.throws(
      () => parse(profile),
      (error) => invalid(error) && why.test(String(error)) && String(error).includes('/p.json'),
      JSON.stringify(profile),
    );
  }
});

test('which filter applies', async () => {
  const base = { privileged: false, capabilities: [], supported: true };
  assert.equal(await seccompFor(undefined, base), undefined);
  assert.equal(await seccompFor({ type: 'Unconfined' }, { ...base, supported: false }), undefined);
  assert.equal(await seccompFor({ type: 'RuntimeDefault' }, { ...base, privileged: true }), undefined);
  assert.ok(await seccompFor({ type: 'RuntimeDefault' }, { ...base, supported: undefined }));
  await assert.rejects(
    seccompFor({ type: 'RuntimeDefault' }, { ...base, supported: false }),
    (error) => invalid(error) && /without seccomp/.test(String(error)),
  );
});

test('ambient capabilities', () => {
  const of = (addAmbient: string[], drop: string[] = ['ALL']) =>
    containerCapabilities({ privileged: false, add: [], drop, addAmbient, own: ['CHOWN', 'KILL'] });
  assert.deepEqual(of(['NET_RAW']), { all: ['CAP_NET_RAW'], ambient: ['CAP_NET_RAW'] });
  assert.deepEqual(of(['cap_kill'], ['KILL']).ambient, [], 'dropped is dropped');
  assert.deepEqual(of(['ALL']).ambient, ['CAP_CHOWN', 'CAP_KILL']);
  assert.deepEqual(of([]).ambient, []);
  assert.throws(() => of(['FLY']), invalid);
});

test('AppArmor: the default profile, on hosts with and without', async (t) => {
  const text = defaultProfile({ own: 'unconfined', tunables: true, base: false });
  assert.match(text, /^#include <tunables\/global>\nprofile keelson-default flags=/);
  for (const rule of [
    'deny mount,',
    'deny @{PROC}/sysrq-trigger rwklx,',
    'deny /sys/firmware/** rwklx,',
    'file,',
  ]) {
    assert.ok(text.includes(`\n  ${rule}\n`), rule);
  }
  assert.equal(text.match(/peer=unconfined/g)?.length, 1);
  assert.match(
    defaultProfile({ own: 'x', tunables: false, base: true }),
    /^@\{PROC\}=\/proc\/\n.*\n {2}#include <abstr/,
  );
  assert.ok(hasProfile('a (enforce)\nb//c (complain)\n', 'b//c') && !hasProfile('ab (enforce)\n', 'a'));

  const root = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  t.after(() => rm(root, { recursive: true }));
  const absent = makeAppArmor({ tempDir: root, root });
  assert.equal(absent.enabled, false);
  assert.equal(await absent.profileFor(undefined, false), undefined);
  assert.equal(await absent.profileFor({ type: 'Unconfined' }, false), undefined);
  for (const profile of [{ type: 'RuntimeDefault' }, { type: 'Localhost', localhostRef: 'x' }] as const) {
    await assert.rejects(
      absent.profileFor(profile, false),
      (error) => invalid(error) && /not supported/.test(String(error)),
    );
    assert.equal(await absent.profileFor(profile, true), undefined, 'privileged');
  }
  const kernel = join(root, 'sys/kernel/security/apparmor');
  await Promise.all([kernel, join(root, 'sbin')].map((path) => mkdir(path, { recursive: true })));
  await writeFile(join(kernel, 'profiles'), 'keelson-default (enforce)\nmine (enforce)\n');
  await writeFile(join(root, 'sbin/apparmor_parser'), '');
  await chmod(join(root, 'sbin/apparmor_parser'), 0o755);
  const present = makeAppArmor({ tempDir: root, root });
  assert.equal(await present.profileFor(undefined, false), 'keelson-default');
  assert.equal(await present.profileFor({ type: 'RuntimeDefault' }, true), undefined);
  assert.equal(await present.profileFor(undefined, false, false), undefined, 'a runtime without it');
  await assert.rejects(present.profileFor({ type: 'RuntimeDefault' }, false, false), /by the OCI runtime/);
  assert.equal(await present.profileFor({ type: 'Unconfined' }, false), undefined);
  assert.equal(await present.profileFor({ type: 'Localhost', localhostRef: 'localhost/mine' }, true), 'mine');
  await assert.rejects(
    present.profileFor({ type: 'Localhost', localhostRef: 'other' }, false),
    (error) => invalid(error) && /"other" is not loaded/.test(String(error)),
  );
});

test('SELinux labels', async (t) => {
  const base = parseContexts(
    'process = "system_u:system_r:container_t:s0"\nfile = "system_u:object_r:container_file_t:s0"\n',
  );
  assert.deepEqual(base, parseContexts(''));
  assert.deepEqual(labelsOf(base, { level: 's0:c1,c2' }), {
    process: 'system_u:system_r:container_t:s0:c1,c2',
    mount: 'system_u:object_r:container_file_t:s0:c1,c2',
  });
  assert.deepEqual(labelsOf(base, { user: 'u', role: 'r', type: 't', level: 's1' }), {
    process: 'u:r:t:s1',
    mount: 'u:object_r:container_file_t:s1',
  });
  for (let round = 0; round < 500; round++) {
    const id = (round * 2654435761).toString(16).padStart(8, '0').slice(-8).repeat(8);
    const [, first, second] = /^s0:c(\d+),c(\d+)$/.exec(levelFor(id)) ?? [];
    assert.ok(Number(first) < Number(second) && Number(second) < 1024, levelFor(id));
  }
  const root = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  t.after(() => rm(root, { recursive: true }));
  const absent = makeSelinux(true, root);
  assert.equal(absent.labelsFor({ level: 's0:c1' }, false, 's0'), undefined);
  for (const option of [{ level: 's0;x' }, { type: 'a:b' }, { user: 'a\0' }]) {
    assert.throws(() => absent.labelsFor(option, false, 's0'), invalid);
  }
  await mkdir(join(root, 'sys/fs/selinux'), { recursive: true });
  await writeFile(join(root, 'sys/fs/selinux/enforce'), '1');
  const present = makeSelinux(true, root);
  assert.equal(makeSelinux(false, root).labelsFor({ level: 's0' }, false, 's0'), undefined, 'not wanted');
  assert.equal(
    present.labelsFor(undefined, false, 's0:c3,c4')?.process,
    'system_u:system_r:container_t:s0:c3,c4',
  );
  assert.equal(
    present.labelsFor({ type: 'spc_t', level: 's0' }, false, 's0:c3')?.process,
    'system_u:system_r:spc_t:s0',
  );
  assert.equal(present.labelsFor(undefined, true, 's0'), undefined);
  for (const path of ['/', '/etc', '/usr', '/var/lib'])
    await assert.rejects(present.relabel(path, 'x'), invalid);
});

test('limits that make no sense', () => {
  const bad: LinuxContainerResources[] = [
    ...[-2, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60].flatMap((number) => [
      { cpuQuota: number },
      { memoryLimitBytes: number },
      { memorySwapLimitBytes: number },
      { pidsLimit: number },
    ]),
    { cpuShares: -1 },
    { cpuPeriod: 999 },
    { cpuPeriod: 1_000_001 },
    { memoryLimitBytes: 10, memorySwapLimitBytes: 5 },
    ...['a', '0-', ',', '0,,1', '0\n1', '-1', '0 1', '999999'].flatMap((list) => [
      { cpusetCpus: list },
      { cpusetMems: list },
    ]),
    ...['', '2', '2mb', '../2MB', '2MB/x'].map((pageSize) => ({ hugepageLimits: [{ pageSize, limit: 1 }] })),
    { hugepageLimits: [{ pageSize: '2MB', limit: -1 }] },
    ...[
      '',
      'memory',
      '../memory.max',
      'memory.max/..',
      'a/b.c',
      'memory.',
      'cgroup.procs',
      'cgroup.kill',
    ].map((key) => ({
      unified: { [key]: '1' },
    })),
    { unified: { 'memory.high': '1\0' } },
  ];
  for (const resources of bad) {
    for (const code of ['INVALID_ARGUMENT', 'CONTAINER_CONFIG_INVALID'] as const) {
      assert.throws(
        () => checkResources(resources, code, 2),
        (error) => isError(error, code),
        JSON.stringify(resources),
      );
    }
  }
  for (const resources of [
    {},
    { cpuQuota: -1, memoryLimitBytes: -1, pidsLimit: -1, memorySwapLimitBytes: -1 },
    { cpuPeriod: 1000, cpusetCpus: '0-3,7,9-10', cpusetMems: '0' },
    { hugepageLimits: [{ pageSize: '1GB', limit: 0 }], unified: { 'io.weight': 'default 100' } },
    { memoryLimitBytes: 5, memorySwapLimitBytes: -1 },
  ]) {
    checkResources(resources, 'INVALID_ARGUMENT', 2);
  }
});

test('files of cgroup v2 where there is none', () => {
  const unified = { 'memory.high': '1' };
  checkResources({ unified: {} }, 'INVALID_ARGUMENT', 1);
  assert.throws(() => checkResources({ unified }, 'CONTAINER_CONFIG_INVALID', 1), invalid);
});

test('an update on top of what holds', () => {
  const old: LinuxContainerResources = {
    cpuShares: 5,
    cpuQuota: 7,
    memoryLimitBytes: 10,
    memorySwapLimitBytes: 20,
    oomScoreAdj: 3,
    hugepageLimits: [{ pageSize: '2MB', limit: 1 }],
    unified: { 'memory.high': '1' },
  };
  const merge = (change: LinuxContainerResources) => JSON.parse(JSON.stringify(mergeResources(old, change)));
  assert.deepEqual(merge({}), JSON.parse(JSON.stringify(old)));
  assert.deepEqual(merge({ cpuShares: 0, cpusetCpus: '', oomScoreAdj: 9, hugepageLimits: [] }), merge({}));
  const { memorySwapLimitBytes: _, ...rest } = old;
  assert.deepEqual(merge({ memoryLimitBytes: 30 }), { ...rest, memoryLimitBytes: 30 }, 'swap follows');
  assert.deepEqual(merge({ cpuQuota: -1, unified: { 'io.weight': '2' } }), {
    ...old,
    cpuQuota: -1,
    unified: { 'memory.high': '1', 'io.weight': '2' },
  });
  const pages = [
    { pageSize: '2MB', limit: 4 },
    { pageSize: '1GB', limit: 5 },
  ];
  assert.deepEqual(merge({ hugepageLimits: pages }).hugepageLimits, pages);
  const host = { cgroupVersion: 1, hugetlb: false, swapLimit: true } as const;
  assert.deepEqual(
    JSON.parse(JSON.stringify(resourceLimits({ memorySwapLimitBytes: -1, memoryLimitBytes: 4 }, host))),
    {
      memory: { limit: 4, swap: -1 },
    },
  );
  const names = (version: 1 | 2) =>
    limitFiles({ ...old, unified: { 'io.weight': '1' } }, version).map(({ file }) => file);
  assert.ok(names(1).includes('hugetlb.2MB.limit_in_bytes') && !names(1).includes('io.weight'));
  assert.ok(names(2).includes('hugetlb.2MB.max') && names(2).includes('io.weight'));
});

test('features of runtimes', () => {
  const said = {
    mountOptions: ['ro', 'rro'],
    linux: {
      namespaces: ['user'],
      seccomp: { enabled: true },
      mountExtensions: { idmap: { enabled: true } },
    },
  };
  const all = { recursiveReadonly: true, idmap: true, seccomp: true, apparmor: undefined };
  assert.deepEqual(parseFeatures(JSON.stringify(said), '6.1.0-13-amd64'), all);
  assert.deepEqual(parseFeatures(JSON.stringify(said), '5.11.2'), {
    ...all,
    recursiveReadonly: false,
    idmap: false,
  });
  assert.deepEqual(parseFeatures(JSON.stringify(said), '5.15.0'), { ...all, idmap: false });
  assert.deepEqual(parseFeatures(JSON.stringify({ linux: { seccomp: { enabled: false } } }), '6.1'), {
    ...noFeatures,
    seccomp: false,
  });
  for (const text of ['', 'unknown command features', 'null', '[]', '{"linux":5,"mountOptions":"rro"}']) {
    assert.deepEqual(parseFeatures(text, '6.1'), noFeatures, text);
  }
});

test('features of a runtime that only tells its version', () => {
  const crun = (version: string, more = '') => `crun version ${version}\ncommit: f8a0\n+SYSTEMD ${more}\n`;
  const all = { recursiveReadonly: true, idmap: true, seccomp: true, apparmor: false };
  assert.deepEqual(featuresOfVersion(crun('1.8.1', '+SECCOMP'), '6.1.0'), all);
  assert.deepEqual(featuresOfVersion(crun('1.10', '+SECCOMP'), '5.15.0'), { ...all, idmap: false });
  assert.deepEqual(featuresOfVersion(crun('1.8', '+APPARMOR'), '5.10'), {
    ...{ recursiveReadonly: false, idmap: false, seccomp: false, apparmor: true },
  });
  for (const text of ['', crun('1.7.2', '+SECCOMP'), 'runc version 1.0.0', 'youki version 2.0.0']) {
    assert.deepEqual(featuresOfVersion(text, '6.1'), noFeatures, text);
  }
});

test('what a sandbox allows', () => {
  const namespaces = { network: 'pod', pid: 'container', ipc: 'pod' } as const;
  type Security = ContainerConfig['linux']['security'];
  const check = (
    security: Partial<Security>,
    sandbox: Partial<PodSandboxConfig['linux']['security']> = {},
    annotations: Record<string, string> = {},
  ) =>
    checkContainerRequest(
      {
        linux: { resources: {}, security: { namespaces, ...security } },
        annotations,
      } as unknown as ContainerConfig,
      { linux: { security: { namespaces, ...sandbox } }, annotations: {} } as unknown as PodSandboxConfig,
      2,
    );
  check({});
  check({ privileged: true }, { privileged: true });
  assert.throws(() => check({ privileged: true }), invalid);
  const range = { containerId: 0, hostId: 65_536, length: 65_536 };
  const user = { mode: 'pod', uids: [range], gids: [range] } as const;
  check({ namespaces: { ...namespaces, user } }, { namespaces: { ...namespaces, user } });
  assert.throws(() => check({ namespaces: { ...namespaces, user } }), /not that of its sandbox/);
  assert.throws(() => check({}, { namespaces: { ...namespaces, user } }), /not that of its sandbox/);
  assert.throws(() => check({ seccomp: { type: 'Localhost' } }), /needs the name/);
  assert.throws(() => check({ apparmor: { type: 'RuntimeDefault', localhostRef: 'x' } }), /has no name/);
  assert.throws(() => check({ maskedPaths: ['proc'] }), invalid);
  assert.throws(() => check({ readonlyPaths: ['/a\0'] }), invalid);
  for (const name of [
    'io.kubernetes.cri.blockio-class',
    'blockio.resources.beta.kubernetes.io/pod',
    'rdt.resources.beta.kubernetes.io/container.main',
  ]) {
    assert.throws(
      () => check({}, {}, { [name]: 'gold' }),
      (error) => error instanceof KeelsonError && invalid(error) && error.message.includes(name),
    );
  }
});
