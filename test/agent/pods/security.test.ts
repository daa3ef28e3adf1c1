/** From the security contexts of a pod to what the runtime is asked for, and pods that the host cannot confine. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { kernelSecurity } from '../../../agent/main/pods/security.ts';
import { judge } from '../../../agent/pods/spec/admission.ts';
import { appArmorProfile, appArmorRefusal } from '../../../agent/pods/spec/apparmor.ts';
import { neededFeatures } from '../../../agent/pods/spec/host_security.ts';
import { withMountModes } from '../../../agent/pods/spec/mount_modes.ts';
import { makeSandboxConfig } from '../../../agent/pods/spec/sandbox_config.ts';
import {
  asksImageUser,
  containerSecurity,
  type SecuritySettings,
} from '../../../agent/pods/spec/security.ts';
import {
  normalSysctl,
  podSysctls,
  sysctlAllowlist,
  sysctlPatternFault,
  sysctlRefusal,
} from '../../../agent/pods/spec/sysctls.ts';
import type { ContainerConfig, Mount } from '../../../runtime/api.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { makePod } from './objects.ts';

const settings: SecuritySettings = { seccompRoot: '/seccomp', seccompDefault: false };
const podOf = (own: object, ofPod: object, more: object = {}) =>
  makePod({ containers: [{ name: 'app', securityContext: own }], securityContext: ofPod, ...more });
const security = (own: object, ofPod: object, image?: object, more: Partial<SecuritySettings> = {}) => {
  const pod = podOf(own, ofPod);
  const app = pod.spec!.containers[0]!;
  return containerSecurity(pod, app, asksImageUser(pod, app) ? (image ?? {}) : undefined, {
    ...settings,
    ...more,
  });
};
const refused = (pattern: RegExp) => (error: unknown) =>
  isError(error, 'CONTAINER_CONFIG_INVALID') && pattern.test(error.message);

test("the container's wishes over the pod's", () => {
  assert.equal(security({ runAsUser: 5 }, { runAsUser: 6 }).runAsUser, 5);
  assert.equal(security({ runAsUser: 0 }, { runAsUser: 6 }).runAsUser, 0);
  assert.equal(security({}, { runAsUser: 6, runAsGroup: 7 }).runAsGroup, 7);
  assert.equal(security({ runAsGroup: 8 }, { runAsUser: 6, runAsGroup: 7 }).runAsGroup, 8);
  assert.deepEqual(security({}, { fsGroup: 7, supplementalGroups: [8] }).supplementalGroups, [7, 8]);
  assert.equal(security({ allowPrivilegeEscalation: false }, {}).noNewPrivs, true);
  assert.equal(security({ allowPrivilegeEscalation: true }, {}).noNewPrivs, false);
  assert.equal(security({}, {}).noNewPrivs, false);
  assert.equal(security({ readOnlyRootFilesystem: true }, {}).readonlyRootfs, true);
  assert.deepEqual(security({ capabilities: { add: ['NET_ADMIN'], drop: ['ALL'] } }, {}).capabilities, {
    add: ['NET_ADMIN'],
    drop: ['ALL'],
  });
  const [a, b] = [{ level: 's0:c1,c2' }, { type: 't_t', level: 's0' }];
  assert.deepEqual(security({}, { seLinuxOptions: b }).selinux, b);
  // As a whole, not part by part.
  assert.deepEqual(security({ seLinuxOptions: a }, { seLinuxOptions: b }).selinux, a);
  assert.equal('selinux' in security({}, {}), false);
  const windows = { windowsOptions: { runAsUserName: 'x', hostProcess: true } };
  assert.deepEqual(security(windows, windows), security({}, {}));
});

test('the policy of supplemental groups', () => {
  const policy = (supplementalGroupsPolicy?: string) =>
    security({}, { supplementalGroupsPolicy }).supplementalGroupsPolicy;
  assert.equal(policy(), 'merge');
  assert.equal(policy('Merge'), 'merge');
  assert.equal(policy('Strict'), 'strict');
  assert.throws(() => policy('Other'), refused(/^unsupported supplementalGroupsPolicy: Other$/));
});

test('what is hidden of /proc and /sys', () => {
  assert.ok(security({}, {}).maskedPaths!.includes('/proc/kcore'));
  const more = { maskedPaths: ['/sys/devices/system/cpu/cpu0/thermal_throttle'] };
  assert.ok(security({}, {}, undefined, more).maskedPaths!.includes(more.maskedPaths[0]!));
  const open = security({ procMount: 'Unmasked' }, {}, undefined, more);
  assert.deepEqual([open.maskedPaths, open.readonlyPaths], [[], []]);
  assert.deepEqual(security({ privileged: true }, {}, undefined, more).maskedPaths, []);
});

test('seccomp: own, of the pod, of the node', () => {
  const local = (localhostProfile?: string) => ({
    seccompProfile: { type: 'Localhost', localhostProfile },
  });
  const is = (type: string) => ({ seccompProfile: { type } });
  assert.deepEqual(security({}, local('a/p.json')).seccomp, {
    type: 'Localhost',
    localhostRef: '/seccomp/a/p.json',
  });
  assert.deepEqual(security(is('Unconfined'), is('RuntimeDefault')).seccomp, { type: 'Unconfined' });
  assert.deepEqual(security({}, is('RuntimeDefault')).seccomp, { type: 'RuntimeDefault' });
  assert.deepEqual(security({}, {}).seccomp, { type: 'Unconfined' });
  const byDefault = { seccompDefault: true };
  assert.deepEqual(security({}, {}, undefined, byDefault).seccomp, { type: 'RuntimeDefault' });
  assert.deepEqual(security({}, is('Unconfined'), undefined, byDefault).seccomp, { type: 'Unconfined' });
  assert.throws(
    () => security({}, local()),
    refused(/^localhostProfile must be set if seccompProfile type is Localhost\.$/),
  );
  assert.throws(() => security({}, is('Strange')), refused(/^unknown seccomp profile type: "Strange"$/));
});

test('runAsNonRoot is refused where somebody may be root, in the words of kubelet', () => {
  const where = String.raw`\(pod: "web_default\(.*\)", container: app\)$`;
  const no = (text: string, own: object, ofPod: object, image?: object) =>
    assert.throws(() => security(own, ofPod, image), refused(new RegExp(`^${text} ${where}`)));
  no("container's runAsUser breaks non-root policy", { runAsNonRoot: true, runAsUser: 0 }, {});
  no("container's runAsUser breaks non-root policy", {}, { runAsNonRoot: true, runAsUser: 0 });
  no('container has runAsNonRoot and image will run as root', {}, { runAsNonRoot: true });
  no('container has runAsNonRoot and image will run as root', {}, { runAsNonRoot: true }, { uid: 0 });
  no(
    String.raw`container has runAsNonRoot and image has non-numeric user \(joe\), cannot verify user is non-root`,
    { runAsNonRoot: true },
    {},
    { username: 'joe' },
  );
  no(
    String.raw`container has runAsNonRoot and image has an invalid user id \(2147483648\)\. \(Must be 1-\(2147483647\)\): must be between 0 and 2147483647, inclusive`,
    { runAsNonRoot: true },
    {},
    { uid: 2 ** 31 },
  );
  assert.equal(security({ runAsNonRoot: true }, {}, { uid: 1000 }).runAsUser, 1000);
  assert.equal(security({ runAsNonRoot: false }, { runAsNonRoot: true }).runAsUser, undefined);
  assert.equal(security({ runAsNonRoot: true, runAsUser: 7 }, {}, { username: 'joe' }).runAsUser, 7);
});

test("the image's user is left to the runtime unless something depends on it", () => {
  const none = security({}, {});
  assert.deepEqual([none.runAsUser, none.runAsUsername], [undefined, undefined]);
  assert.equal(security({}, { runAsGroup: 3 }, { uid: 1000 }).runAsUser, 1000);
  assert.equal(security({}, { runAsGroup: 3 }, { username: 'joe' }).runAsUsername, 'joe');
  assert.equal(security({}, { runAsGroup: 3 }, {}).runAsUser, 0);
  const asks = (own: object, ofPod: object) => {
    const pod = podOf(own, ofPod);
    return asksImageUser(pod, pod.spec!.containers[0]!);
  };
  assert.equal(asks({}, { runAsNonRoot: true }), true);
  assert.equal(asks({}, { runAsNonRoot: true, runAsUser: 1 }), false);
  assert.equal(asks({ runAsNonRoot: false }, { runAsNonRoot: true }), false);
  assert.equal(asks({}, {}), false);
});

test('AppArmor: field, annotation, field of the pod, in this order', () => {
  const key = 'container.apparmor.security.beta.kubernetes.io/app';
  const local = { type: 'Localhost', localhostProfile: 'test' };
  const of = (own: object | undefined, annotation: string | undefined, ofPod: object | undefined) => {
    const annotations: Record<string, string> = annotation === undefined ? {} : { [key]: annotation };
    const pod = {
      ...podOf({ appArmorProfile: own }, { appArmorProfile: ofPod }),
      metadata: { name: 'web', annotations },
    };
    return appArmorProfile(pod, pod.spec!.containers[0]!);
  };
  const [runtimeDefault, unconfined] = [{ type: 'RuntimeDefault' }, { type: 'Unconfined' }];
  assert.equal(of(undefined, undefined, undefined), undefined);
  assert.deepEqual(of(undefined, undefined, runtimeDefault), runtimeDefault);
  assert.deepEqual(of(unconfined, undefined, runtimeDefault), unconfined);
  assert.deepEqual(of(undefined, 'localhost/test', undefined), local);
  assert.equal(of(undefined, 'invalid', undefined), undefined);
  assert.deepEqual(of(undefined, 'invalid', runtimeDefault), runtimeDefault);
  assert.deepEqual(of(runtimeDefault, 'unconfined', undefined), runtimeDefault);
  assert.deepEqual(of(undefined, 'unconfined', runtimeDefault), unconfined);
  assert.deepEqual(of(local, 'runtime/default', unconfined), local);
  assert.deepEqual(security({ appArmorProfile: local }, {}).apparmor, {
    type: 'Localhost',
    localhostRef: 'test',
  });
  assert.throws(
    () => security({ appArmorProfile: { type: 'Localhost' } }, {}),
    refused(/^missing localhost apparmor profile name$/),
  );
});

test('AppArmor: a pod that wants it is refused where the host has none', () => {
  const absent = {
    reason: 'AppArmor',
    message: 'Cannot enforce AppArmor: AppArmor is not enabled on the host',
  };
  const own = (type: string, localhostProfile?: string) =>
    podOf({ appArmorProfile: { type, localhostProfile } }, {});
  assert.equal(appArmorRefusal(podOf({}, {}), false), undefined);
  assert.equal(appArmorRefusal(own('Unconfined'), false), undefined);
  assert.deepEqual(appArmorRefusal(own('RuntimeDefault'), false), absent);
  assert.deepEqual(
    appArmorRefusal(podOf({}, { appArmorProfile: { type: 'RuntimeDefault' } }), false),
    absent,
  );
  const annotated = (value: string) => ({
    ...podOf({}, {}),
    metadata: { annotations: { 'container.apparmor.security.beta.kubernetes.io/app': value } },
  });
  assert.deepEqual(appArmorRefusal(annotated('runtime/default'), false), absent);
  assert.equal(appArmorRefusal(annotated('unconfined'), false), undefined);
  assert.equal(appArmorRefusal(own('Localhost', 'p'), true), undefined);
  assert.match(
    appArmorRefusal(own('Localhost', ' '), true)!.message,
    /^Cannot enforce AppArmor: invalid empty AppArmor profile name: "&AppArmorProfile\{Type:Localhost,/,
  );
});

const allowed = sysctlAllowlist(['kernel.msg*', 'net/core/somaxconn', 'net.ipv4.conf.*'], '6.1.0-13-amd64');
const setting = (name: string, more: object = {}) => podOf({}, { sysctls: [{ name, value: '1' }] }, more);

test('sysctls: safe ones, those that are allowed, and none of the node', () => {
  const why = (name: string, more: object = {}) => sysctlRefusal(setting(name, more), allowed)?.message;
  for (const name of [
    'kernel.shm_rmid_forced',
    'net.ipv4.tcp_rmem',
    'net/ipv4/tcp_rmem',
    'kernel.msgmax',
    'net.core.somaxconn',
    'net.ipv4.conf.eth0/1.rp_filter',
  ])
    assert.equal(why(name), undefined, name);
  assert.equal(why('kernel.sem'), 'forbidden sysctl: "kernel.sem" not allowlisted');
  assert.equal(why('vm/swappiness'), 'forbidden sysctl: "vm.swappiness" not allowlisted');
  assert.equal(sysctlRefusal(setting('kernel.sem'), allowed)!.reason, 'SysctlForbidden');
  const net = { hostNetwork: true };
  assert.equal(
    why('net.ipv4.tcp_rmem', net),
    'forbidden sysctl: "net.ipv4.tcp_rmem" not allowed with host Net enabled',
  );
  assert.equal(
    why('net.ipv4.conf.all.x', net),
    'forbidden sysctl: "net.ipv4.conf.all.x" not allowed with host Net enabled',
  );
  assert.equal(why('kernel.shm_rmid_forced', net), undefined);
  assert.equal(
    why('kernel.shm_rmid_forced', { hostIPC: true }),
    'forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host IPC enabled',
  );
  const users = sysctlAllowlist(['user.*'], '6.1');
  const limit = setting('user.max_net_namespaces');
  assert.match(sysctlRefusal(limit, users)!.message, /not allowed with host User enabled$/);
  assert.equal(sysctlRefusal(setting('user.max_net_namespaces', { hostUsers: false }), users), undefined);
});

test('sysctls: an old kernel has fewer safe ones', () => {
  const names = (kernel: string) => [...sysctlAllowlist([], kernel).names.keys()];
  assert.equal(names('6.1.0').length, 14);
  assert.equal(names('4.5.1').length, 9);
  assert.equal(names('3.10.0').length, 5);
});

test('sysctls: what may stand in allowedUnsafeSysctls', () => {
  for (const good of [
    'kernel.shm*',
    'kernel.msgmax',
    'net.*',
    'net/ipv4/*',
    'fs.mqueue.*',
    'kernel.domainname',
  ])
    assert.equal(sysctlPatternFault(good), undefined, good);
  for (const bad of ['', '*', 'net*', 'vm.*', 'kernel.shm**', 'kernel.*.x', 'a..b', 'net.ipv4.', 'Net.x'])
    assert.notEqual(sysctlPatternFault(bad), undefined, bad);
  assert.throws(
    () => sysctlAllowlist(['vm.swappiness'], '6.1'),
    (error) => isError(error, 'CONFIG_INVALID') && /not known to be namespaced/.test(error.message),
  );
  assert.equal(normalSysctl('net/ipv4/conf/eth0.1/rp_filter'), 'net.ipv4.conf.eth0/1.rp_filter');
  assert.equal(normalSysctl('net.ipv4.conf.eth0/1.rp_filter'), 'net.ipv4.conf.eth0/1.rp_filter');
});

test("sysctls: the node's defaults stay below the pod's own, and out of what the pod shares", () => {
  const defaults = { 'net/core/somaxconn': '9', 'kernel.sem': '8', 'user.max_net_namespaces': '7' };
  assert.deepEqual(podSysctls(makePod(), defaults), { 'net.core.somaxconn': '9', 'kernel.sem': '8' });
  assert.deepEqual(podSysctls(makePod({ hostIPC: true, hostNetwork: true }), defaults), {});
  assert.deepEqual(podSysctls(setting('net/core/somaxconn'), defaults), {
    'net/core/somaxconn': '1',
    'kernel.sem': '8',
  });
});

const host = { sysctls: allowed, appArmor: true, supplementalGroupsPolicy: true, declaredFeatures: [] };
const node = { name: 'n', labels: {}, allocatable: {}, security: host };

test('pods that the host cannot confine are refused, in the order of kubelet', () => {
  const reason = (pod: ReturnType<typeof makePod>, more: object = {}) =>
    judge(pod, [], { ...node, security: { ...host, ...more } }).other?.reason;
  const strict = podOf({}, { supplementalGroupsPolicy: 'Strict' });
  assert.equal(reason(strict), undefined);
  assert.equal(reason(strict, { supplementalGroupsPolicy: false }), 'SupplementalGroupsPolicyNotSupported');
  const merge = podOf({}, { supplementalGroupsPolicy: 'Merge' });
  assert.equal(reason(merge, { supplementalGroupsPolicy: false }), undefined);
  const os = { os: { name: 'windows' } };
  assert.equal(reason(setting('kernel.sem', os)), 'SysctlForbidden');
  assert.equal(reason(podOf({}, {}, os)), 'PodOSNotSupported');
  const profile = podOf({ appArmorProfile: { type: 'RuntimeDefault' } }, {});
  assert.equal(reason(profile, { appArmor: false }), 'AppArmor');
  assert.equal(judge(profile, [], { ...node, security: undefined }).other, undefined);
});

test('pods that need what the node does not declare', () => {
  const restarting = makePod({
    containers: [
      {
        name: 'a',
        restartPolicy: 'Never',
        restartPolicyRules: [{ action: 'RestartAllContainers' }],
      } as never,
    ],
  });
  assert.deepEqual(neededFeatures(restarting), ['RestartAllContainersOnContainerExits']);
  assert.deepEqual(judge(restarting, [], node).other, {
    reason: 'PodFeatureUnsupported',
    message: 'Pod requires node features that are not available: RestartAllContainersOnContainerExits',
  });
  const declaredFeatures = ['RestartAllContainersOnContainerExits'];
  assert.equal(judge(restarting, [], { ...node, security: { ...host, declaredFeatures } }).other, undefined);
  assert.deepEqual(neededFeatures(podOf({}, {}, { hostNetwork: true, hostUsers: false })), [
    'UserNamespacesHostNetworkSupport',
  ]);
  const mounts = [{ name: 'v', mountPath: '/v', bindMountOptions: ['noexec'] }];
  assert.deepEqual(neededFeatures(makePod({ containers: [{ name: 'a', volumeMounts: mounts }] })), [
    'VolumeBindMountOptions',
  ]);
  assert.deepEqual(neededFeatures(makePod()), []);
});

test('the sandbox has the labels of the pod, and is privileged for any of its containers', () => {
  const make = (pod: ReturnType<typeof makePod>) =>
    makeSandboxConfig(
      pod,
      0,
      { servers: [], searches: [], options: [] },
      {
        podLogsDir: '/l',
        clusterDomain: 'c',
        cgroupParent: '/p',
        sysctls: { 'net.core.somaxconn': '9' },
      },
    ).linux;
  const level = { level: 's0:c1,c2' };
  assert.deepEqual(make(podOf({}, { seLinuxOptions: level })).security.selinux, level);
  assert.equal(make(podOf({}, {})).security.privileged, false);
  assert.equal(make(podOf({ privileged: true }, {})).security.privileged, true);
  const debugging = { ephemeralContainers: [{ name: 'd', securityContext: { privileged: true } }] };
  assert.equal(make(podOf({}, {}, debugging)).security.privileged, true);
  assert.deepEqual(make(podOf({}, {})).sysctls, { 'net.core.somaxconn': '9' });
});

test('mounts: read-only all the way down where the handler can, labels where the host has them', () => {
  const make = (mount: object, host: object = {}, volume: object = { emptyDir: {} }) => {
    const app = { name: 'app', volumeMounts: [{ name: 'v', mountPath: '/v', readOnly: true, ...mount }] };
    const pod = makePod({ containers: [app], volumes: [{ name: 'v', ...volume }] });
    const plain: Mount = { containerPath: '/v', hostPath: '/h', readonly: true, propagation: 'private' };
    const mounts = [plain, { ...plain, containerPath: '/etc/hosts' }];
    const all = { recursiveReadOnly: true, selinux: false, ...host };
    return withMountModes({ mounts } as unknown as ContainerConfig, pod, app, all).mounts;
  };
  const recursive = (mode: string | undefined, recursiveReadOnly: boolean) =>
    make({ recursiveReadOnly: mode }, { recursiveReadOnly })[0]!.recursiveReadonly;
  assert.deepEqual(
    [undefined, 'Disabled', 'IfPossible', 'Enabled'].map((mode) => recursive(mode, true)),
    [undefined, undefined, true, true],
  );
  assert.equal(recursive('IfPossible', false), undefined);
  const no = (why: RegExp, mount: object, host?: object) =>
    assert.throws(() => make({ recursiveReadOnly: 'Enabled', ...mount }, host), refused(why));
  no(/^volume "v" requested .* not supported by the runtime$/, {}, { recursiveReadOnly: false });
  no(/not read-only$/, { readOnly: false });
  no(/not compatible with propagation "HostToContainer"$/, { mountPropagation: 'HostToContainer' });
  no(/^unknown recursive read-only mode "Odd"$/, { recursiveReadOnly: 'Odd' });
  const labels = (volume?: object) =>
    make({}, { selinux: true }, volume).map(({ selinuxRelabel }) => selinuxRelabel);
  assert.deepEqual(labels(), [true, true]);
  assert.deepEqual(labels({ projected: {} }), [true, true]);
  assert.deepEqual(labels({ hostPath: { path: '/h' } }), [undefined, true]);
  assert.deepEqual(
    make({}).map(({ selinuxRelabel }) => selinuxRelabel),
    [undefined, undefined],
  );
});

test('what the host has is read from its files', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'keelson-host-security-'));
  t.after(() => rm(root, { recursive: true }));
  const config = { allowedUnsafeSysctls: ['net.core.somaxconn'] };
  const none = await kernelSecurity(config, root);
  assert.deepEqual([none.appArmor, none.selinux, none.maskedPaths], [false, false, []]);
  assert.ok(none.sysctls.names.has('net.core.somaxconn'));
  for (const folder of [
    'sys/kernel/security/apparmor',
    'sys/module/apparmor/parameters',
    'sys/devices/system/cpu/cpu0/thermal_throttle',
    'sys/devices/system/cpu/cpu1',
    'sys/devices/system/cpu/cpufreq/thermal_throttle',
  ])
    await mkdir(join(root, folder), { recursive: true });
  const enabled = join(root, 'sys/module/apparmor/parameters/enabled');
  await writeFile(enabled, 'N\n');
  assert.equal((await kernelSecurity(config, root)).appArmor, false);
  await writeFile(enabled, 'Y\n');
  const all = await kernelSecurity(config, root);
  assert.equal(all.appArmor, true);
  assert.deepEqual(all.maskedPaths, ['/sys/devices/system/cpu/cpu0/thermal_throttle']);
  await assert.rejects(kernelSecurity({ allowedUnsafeSysctls: ['vm.x'] }, root), /namespaced/);
});
