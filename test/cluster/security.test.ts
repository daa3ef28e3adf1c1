/** What pods may do and as whom: each field of the security contexts, seen from inside, and what the node refuses. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Node, Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { busyboxImage, pushImage } from '../peers/image.ts';
import { isReady, makePod, setStage, skip, statusOf } from './stage.ts';

const namespace = 'security';
const hasAppArmor = existsSync('/sys/kernel/security/apparmor');

type User = { linux: { uid: number; gid: number; supplementalGroups?: number[] } };

test('security contexts', { skip, timeout: 600_000 }, async (t) => {
  const stage = await setStage(t, {
    allowedUnsafeSysctls: ['net.core.somaxconn', 'kernel.msg*', 'kernel.domainname'],
    defaultPodSysctls: { 'net.ipv4.tcp_fin_timeout': '33', 'kernel.shmmni': '77' },
  });
  const { cluster, node, images, registry } = stage;
  await stage.makeNamespace(namespace);
  const asUser = async (tag: string, User: string) => {
    await pushImage(registry, `test/user:${tag}`, busyboxImage({ config: { User } }));
    return `${registry}/test/user:${tag}`;
  };
  const numeric = await asUser('numeric', '33');
  const named = await asUser('named', 'www-data');

  const spec = (script: string, own: object, ofPod: object, more: Partial<PodSpec>, image = images.one) => ({
    nodeName: node.name,
    restartPolicy: 'Never',
    containers: [{ name: 'main', image, command: ['sh', '-c', script], securityContext: own }],
    securityContext: ofPod,
    ...more,
  });
  let count = 0;
  /** Runs it to its end and returns the pod and what it printed. */
  const run = async (
    script: string,
    own: object = {},
    ofPod: object = {},
    more: Partial<PodSpec> = {},
    image?: string,
  ) => {
    const name = `pod-${++count}`;
    await cluster.apply(makePod(namespace, name, spec(script, own, ofPod, more, image)));
    const over = (pod: Pod) => /^(Succeeded|Failed)$/.test(pod.status?.phase ?? '');
    const pod = await stage.pod(namespace, name, over);
    const text = (await cluster.kubectl(['logs', name, '-n', namespace])).trim();
    const { user } = statusOf(pod) as unknown as { user?: User };
    return { pod, text, lines: text.split('\n'), user: user?.linux };
  };
  /** Applies it and waits until the node has refused it. */
  const refused = async (
    reason: string,
    message: RegExp,
    own: object,
    ofPod: object,
    more: Partial<PodSpec> = {},
  ) => {
    const name = `pod-${++count}`;
    await cluster.apply(makePod(namespace, name, spec('true', own, ofPod, more)));
    const pod = await stage.pod(namespace, name, ({ status }) => status?.phase === 'Failed');
    assert.equal(pod.status!.reason, reason);
    const said = pod.status!.message!;
    assert.ok(said.startsWith('Pod was rejected: '), said);
    assert.match(said.slice('Pod was rejected: '.length), message);
    const event = await stage.event(namespace, name, (one) => one.reason === reason);
    assert.equal(event.type, 'Warning');
    assert.match(event.message!, message);
    assert.equal(event.involvedObject.fieldPath, undefined);
  };
  /** Applies it and waits until its container waits for this reason. */
  const stuck = async (reason: string, message: RegExp, own: object, ofPod: object, image?: string) => {
    const name = `pod-${++count}`;
    await cluster.apply(makePod(namespace, name, spec('true', own, ofPod, {}, image)));
    const pod = await stage.pod(namespace, name, (one) => statusOf(one)?.state?.waiting?.reason === reason);
    assert.match(statusOf(pod)!.state!.waiting!.message!, message);
    const event = await stage.event(namespace, name, (one) => one.reason === 'Failed');
    assert.match(event.message!, /^Error: /);
    assert.match(event.message!, message);
    assert.equal(event.involvedObject.fieldPath, 'spec.containers{main}');
    await cluster.kubectl(['delete', 'pod', name, '-n', namespace, '--wait=false']);
  };

  await t.test('users and groups', async () => {
    const ids = 'id -u; id -g; id -G';
    const image = await run(ids, {}, {}, {}, numeric);
    assert.deepEqual(image.lines, ['33', '33', '33 100']);
    assert.deepEqual(image.user, { uid: 33, gid: 33, supplementalGroups: [33, 100] });
    assert.deepEqual((await run(ids, {}, {}, {}, named)).lines, ['33', '33', '33 100']);
    assert.deepEqual((await run(ids, {}, { runAsGroup: 5 }, {}, named)).lines.slice(0, 2), ['33', '5']);
    assert.deepEqual((await run(ids, { runAsNonRoot: true }, {}, {}, numeric)).lines[0], '33');
    const both = await run(ids, { runAsUser: 1001 }, { runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000 });
    assert.deepEqual(both.lines, ['1001', '3000', '3000 2000']);
    assert.deepEqual(both.user, { uid: 1001, gid: 3000, supplementalGroups: [3000, 2000] });
    const groups = { runAsUser: 33, supplementalGroups: [60000] };
    assert.equal((await run('id -G', {}, groups)).text, '33 100 60000');
    const strict = await run('id -G', {}, { ...groups, supplementalGroupsPolicy: 'Strict' });
    assert.equal(strict.text, '33 60000');
    assert.deepEqual(strict.user!.supplementalGroups, [33, 60000]);
  });

  await t.test('root where there must be none', async () => {
    const where = String.raw`\(pod: "pod-\d+_security\(.*\)", container: main\)`;
    const reason = 'CreateContainerConfigError';
    const asRoot = new RegExp(`container has runAsNonRoot and image will run as root ${where}`);
    await stuck(reason, asRoot, { runAsNonRoot: true }, {});
    await stuck(reason, /breaks non-root policy/, {}, { runAsNonRoot: true, runAsUser: 0 });
    await stuck(reason, /image has non-numeric user \(www-data\)/, {}, { runAsNonRoot: true }, named);
  });

  await t.test('privileges', async () => {
    const status = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'";
    const plain = await run(status);
    assert.deepEqual(plain.lines, ['CapEff:00000000a80425fb', 'NoNewPrivs:0', 'Seccomp:0']);
    const none = await run(status, { capabilities: { drop: ['ALL'] }, allowPrivilegeEscalation: false });
    assert.deepEqual(none.lines, ['CapEff:0000000000000000', 'NoNewPrivs:1', 'Seccomp:0']);
    const one = await run(status, { capabilities: { drop: ['ALL'], add: ['NET_BIND_SERVICE'] } });
    assert.equal(one.lines[0], 'CapEff:0000000000000400');
    const write = 'touch /x 2>&1 && echo written; touch /dev/shm/x && echo kept';
    assert.match((await run(write, { readOnlyRootFilesystem: true })).text, /Read-only file system\nkept$/);
    assert.equal((await run(write)).text, 'written\nkept');
    const hidden = 'wc -c < /proc/interrupts; touch /proc/sys/kernel/domainname 2>&1 | grep -o Read-only';
    assert.equal((await run(hidden)).text, '0\nRead-only');
  });

  await t.test('seccomp', async () => {
    const mode = "grep '^Seccomp:' /proc/self/status | tr -d '\\t'";
    const profile = (type: string, localhostProfile?: string) => ({
      seccompProfile: { type, localhostProfile },
    });
    assert.equal((await run(mode, {}, profile('RuntimeDefault'))).text, 'Seccomp:2');
    assert.equal((await run(mode, profile('Unconfined'), profile('RuntimeDefault'))).text, 'Seccomp:0');
    const folder = join(node.paths.kubeletDir, 'seccomp/team');
    await mkdir(folder, { recursive: true });
    await writeFile(
      join(folder, 'nomkdir.json'),
      JSON.stringify({
        defaultAction: 'SCMP_ACT_ALLOW',
        syscalls: [{ names: ['mkdir', 'mkdirat'], action: 'SCMP_ACT_ERRNO' }],
      }),
    );
    const local = await run('mkdir /tmp/x 2>&1; true', profile('Localhost', 'team/nomkdir.json'));
    assert.match(local.text, /Operation not permitted/);
    await stuck(
      'CreateContainerError',
      /seccomp\/team\/none\.json: it cannot be read \(ENOENT\)/,
      profile('Localhost', 'team/none.json'),
      {},
    );
  });

  await t.test('sysctls', async () => {
    const sysctls = (values: Record<string, string>) => ({
      sysctls: Object.entries(values).map(([name, value]) => ({ name, value })),
    });
    const read = 'cd /proc/sys; cat net/ipv4/tcp_fin_timeout kernel/shmmni net/core/somaxconn kernel/msgmax';
    const set = { 'net.core.somaxconn': '1234', 'kernel/msgmax': '5678', 'kernel.shm_rmid_forced': '1' };
    const own = await run(`${read} kernel/shm_rmid_forced`, {}, sysctls(set));
    assert.deepEqual(own.lines, ['33', '77', '1234', '5678', '1']);
    const over = await run(`${read} kernel/domainname`, {}, sysctls({ 'kernel.domainname': 'here.example' }));
    assert.deepEqual(
      over.lines.filter((_, index) => index < 2 || index > 3),
      ['33', '77', 'here.example'],
    );
    assert.notEqual((await run(read, {}, {}, { hostNetwork: true })).lines[0], '33', "the node's is changed");
    const forbidden = 'SysctlForbidden';
    await refused(
      forbidden,
      /^forbidden sysctl: "kernel\.sem" not allowlisted$/,
      {},
      sysctls({ 'kernel.sem': '1' }),
    );
    await refused(
      forbidden,
      /^forbidden sysctl: "vm\.swappiness" not allowlisted$/,
      {},
      sysctls({ 'net.core.somaxconn': '1', 'vm.swappiness': '1' }),
    );
  });

  await t.test('what the host has not', async () => {
    if (!hasAppArmor) {
      const profile = { appArmorProfile: { type: 'RuntimeDefault' } };
      const absent = /^Cannot enforce AppArmor: AppArmor is not enabled on the host$/;
      await refused('AppArmor', absent, profile, {});
      await refused('AppArmor', absent, {}, profile);
    }
    await refused(
      'PodOSNotSupported',
      /^Failed to admit pod as the OS field doesn't match node OS$/,
      undefined as never,
      undefined as never,
      { os: { name: 'windows' } },
    );
  });

  await t.test('the node says what it and its runtime can', async () => {
    const { status } = (await cluster.read<Node>(`/api/v1/nodes/${node.name}`))!;
    const told = status as unknown as {
      features: object;
      declaredFeatures: string[];
      runtimeHandlers: { name: string; features: { userNamespaces: boolean } }[];
    };
    assert.deepEqual(told.features, { supplementalGroupsPolicy: true });
    assert.deepEqual(told.declaredFeatures, [
      'ExtendWebSocketsToKubelet',
      'InPlacePodLevelResourcesVerticalScaling',
      'InPlacePodVerticalScalingInitContainers',
      'RestartAllContainersOnContainerExits',
    ]);
    assert.deepEqual(
      told.runtimeHandlers.map(({ name }) => name),
      ['', 'runc'],
    );
    if (told.runtimeHandlers[0]!.features.userNamespaces) {
      const inside = await run('cat /proc/self/uid_map; id -u', {}, {}, { hostUsers: false } as object);
      assert.match(inside.lines[0]!, /^\s+0\s+[1-9]\d*\s+65536$/);
      return;
    }
    const name = 'own-users';
    await cluster.apply(makePod(namespace, name, spec('true', {}, {}, { hostUsers: false } as object)));
    await stage.event(
      namespace,
      name,
      ({ reason, message }) =>
        reason === 'FailedCreatePodSandBox' &&
        message!.includes("can't set `spec.hostUsers: false`, runtime does not support user namespaces"),
    );
    await cluster.kubectl(['delete', 'pod', name, '-n', namespace, '--wait=false']);
  });

  await t.test('mounts that are read-only all the way down, if possible', async () => {
    const { status } = (await cluster.read<Node>(`/api/v1/nodes/${node.name}`))!;
    const [handler] = (
      status as unknown as { runtimeHandlers: { features: { recursiveReadOnlyMounts: boolean } }[] }
    ).runtimeHandlers;
    const mount = { name: 'v', mountPath: '/v', readOnly: true, recursiveReadOnly: 'IfPossible' };
    const container = { name: 'main', image: images.one, command: ['true'], volumeMounts: [mount] };
    const { pod } = await run(
      '',
      {},
      {},
      { containers: [container], volumes: [{ name: 'v', emptyDir: {} }] },
    );
    const [told] = statusOf(pod)!.volumeMounts!;
    assert.equal(told!.recursiveReadOnly, handler!.features.recursiveReadOnlyMounts ? 'Enabled' : 'Disabled');
  });

  await t.test('the user of a container that runs is in the status', async () => {
    const more = { containers: [{ name: 'main', image: images.one, command: ['sleep', '100000'] }] };
    await cluster.apply(makePod(namespace, 'running', { nodeName: node.name, ...more }));
    const pod = await stage.pod(namespace, 'running', isReady);
    const { user } = statusOf(pod) as unknown as { user?: User };
    assert.deepEqual(user, { linux: { uid: 0, gid: 0, supplementalGroups: [0] } });
  });
});
