/** Each part of the security context and of the resources, seen from inside a real container. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { isError } from '../../runtime/host/errors.ts';
import { mknod } from '../../runtime/host/syscalls.ts';
import { type ContainerChanges, cannotRun, type Machine, makeMachine } from './machine.ts';

const skip = cannotRun;

/** Runs `script` in a container of its own and returns the lines that it says; both streams. */
async function say(machine: Machine, sandbox: string, script: string, changes: ContainerChanges = {}) {
  runs++;
  const id = await machine.startContainer(sandbox, ['sh', '-c', `exec 2>&1; ${script}`], {
    metadata: { name: `run-${runs}`, attempt: 0 },
    ...changes,
  });
  await machine.exited(id);
  const log = await machine.logOf(id);
  return log
    .split('\n')
    .slice(0, -1)
    .map((entry) => entry.split(' ').slice(3).join(' '));
}
let runs = 0;

const namespaces = { network: 'node', pid: 'container', ipc: 'pod' } as const;

async function podOf(machine: Machine, privileged = false): Promise<string> {
  return machine.runtime.runPodSandbox(
    machine.sandboxConfig({ linux: { security: { namespaces, privileged } } }),
    '',
  );
}

test('seccomp: the default filter stops what containers must not do, and only that', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  const probe = 'busybox unshare -u true && echo unshared; grep ^Seccomp: /proc/self/status; echo done';
  // With the right, so that only the filter can be what stops it.
  const add = ['SYS_ADMIN'];
  const open = await say(machine, pod, probe, { linux: { security: { capabilities: { add, drop: [] } } } });
  assert.deepEqual(open, ['unshared', 'Seccomp:\t0', 'done']);
  const wide = await say(machine, pod, probe, {
    linux: { security: { capabilities: { add, drop: [] }, seccomp: { type: 'RuntimeDefault' } } },
  });
  assert.deepEqual(wide, ['unshared', 'Seccomp:\t2', 'done'], 'a capability brings its system calls');
  const profile = join(machine.root, 'no-hostname.json');
  await writeFile(
    profile,
    JSON.stringify({
      defaultAction: 'SCMP_ACT_ALLOW',
      syscalls: [
        { names: ['sethostname'], action: 'SCMP_ACT_ERRNO', errnoRet: 38 },
        { names: ['mkdir', 'mkdirat'], action: 'SCMP_ACT_ERRNO' },
      ],
    }),
  );
  const local = await say(machine, pod, 'mkdir /tmp/x; echo $?; grep ^Seccomp: /proc/self/status', {
    linux: { security: { seccomp: { type: 'Localhost', localhostRef: profile } } },
  });
  assert.match(local.join('\n'), /Operation not permitted\n1\nSeccomp:\t2/);
  const plain = await say(
    machine,
    pod,
    'busybox unshare -U true; busybox mount -t tmpfs x /tmp; ls / >/dev/null && sleep 0 && echo works | cat',
    { linux: { security: { seccomp: { type: 'RuntimeDefault' } } } },
  );
  assert.match(plain[0] ?? '', /unshare.*Operation not permitted/);
  assert.equal(plain.at(-1), 'works');
  for (const [localhostRef, why] of [
    [join(machine.root, 'missing.json'), /missing\.json: it cannot be read \(ENOENT\)/],
    [machine.root, /it is not a file/],
    ['profile.json', /not an absolute path/],
  ] as const) {
    await assert.rejects(
      say(machine, pod, 'true', { linux: { security: { seccomp: { type: 'Localhost', localhostRef } } } }),
      (error) => isError(error, 'CONTAINER_CONFIG_INVALID') && why.test(error.message),
    );
  }
});

test('capabilities: ambient ones reach a process that is not root', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  const show = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status";
  const net = '0000000000001400';
  const lines = await say(machine, pod, show, {
    linux: {
      security: {
        runAsUser: 1000,
        capabilities: { add: [], drop: ['ALL'], addAmbient: ['NET_ADMIN', 'CAP_NET_BIND_SERVICE'] },
      },
    },
  });
  assert.deepEqual(
    lines,
    ['Inh', 'Prm', 'Eff', 'Bnd', 'Amb'].map((set) => `Cap${set}:\t${net}`),
  );
  const root = await say(machine, pod, show, {
    linux: { security: { capabilities: { add: ['NET_ADMIN'], drop: ['ALL'] } } },
  });
  assert.deepEqual(root, [
    'CapInh:\t0000000000000000',
    ...['Prm', 'Eff', 'Bnd'].map((set) => `Cap${set}:\t0000000000001000`),
    'CapAmb:\t0000000000000000',
  ]);
});

test('masked and read-only paths, and none of them', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  const probe = 'cat /proc/timer_list | head -c 5 | grep -c .; mount | grep -c " /proc/sys "';
  assert.deepEqual(await say(machine, pod, probe), ['0', '1']);
  const unmasked = { linux: { security: { maskedPaths: [], readonlyPaths: [] } } };
  assert.deepEqual(await say(machine, pod, probe, unmasked), ['1', '0']);
  assert.deepEqual(
    await say(machine, pod, 'ls /etc | grep -c passwd; touch /tmp/x', {
      linux: { security: { maskedPaths: ['/etc'], readonlyPaths: ['/tmp'] } },
    }),
    ['0', 'touch: /tmp/x: Read-only file system'],
  );
});

test('AppArmor and SELinux where the host has none', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  const hasAppArmor = readOr('/sys/kernel/security/apparmor/profiles') !== '';
  for (const apparmor of [
    { type: 'Localhost', localhostRef: 'no-such-profile' },
    ...(hasAppArmor ? [] : ([{ type: 'RuntimeDefault' }] as const)),
  ] as const) {
    await assert.rejects(
      say(machine, pod, 'true', { linux: { security: { apparmor } } }),
      (error) =>
        isError(error, 'CONTAINER_CONFIG_INVALID') &&
        /AppArmor is not supported|is not loaded/.test(error.message),
    );
  }
  const lines = await say(machine, pod, 'echo ran', {
    linux: { security: { apparmor: { type: 'Unconfined' }, selinux: { level: 's0:c1,c2' } } },
  });
  assert.deepEqual(lines, ['ran']);
});

test('resources are in the cgroup, and change there', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  const id = await machine.startContainer(pod, ['sleep', '1000'], {
    annotations: { keep: 'me' },
    linux: {
      resources: {
        cpuShares: 512,
        cpuQuota: 50_000,
        cpuPeriod: 100_000,
        cpusetCpus: '0',
        memoryLimitBytes: 64 << 20,
        pidsLimit: 77,
      },
    },
  });
  const { runtime } = machine;
  const limits = async () => {
    const { pid } = await runtime.containerStatus(id);
    return cgroupLimits(pid);
  };
  assert.deepEqual(await limits(), { memory: 64 << 20, cpus: '0', pids: '77', quota: 50_000 });
  await runtime.updateContainerResources(id, { memoryLimitBytes: 128 << 20, cpuQuota: 70_000 });
  assert.deepEqual(await limits(), { memory: 128 << 20, cpus: '0', pids: '77', quota: 70_000 });
  await runtime.updateContainerResources(id, { memoryLimitBytes: 32 << 20 });
  const after = { memory: 32 << 20, cpus: '0', pids: '77', quota: 70_000 };
  assert.deepEqual(await limits(), after);
  // All or nothing: the quota could be set, the processors are not there.
  await assert.rejects(
    runtime.updateContainerResources(id, {
      cpuQuota: 80_000,
      memoryLimitBytes: 48 << 20,
      cpusetCpus: '4095',
    }),
    (error) => isError(error, 'FAILED_PRECONDITION'),
  );
  assert.deepEqual(await limits(), after);
  await assert.rejects(runtime.updateContainerResources(id, { cpusetCpus: 'x' }), (error) =>
    isError(error, 'INVALID_ARGUMENT'),
  );
  await assert.rejects(runtime.updateContainerResources('nobody', {}), (error) =>
    isError(error, 'NOT_FOUND'),
  );
  const status = async () => (await machine.runtime.containerStatus(id)).resources;
  const told = {
    cpuShares: 512,
    cpuQuota: 70_000,
    cpuPeriod: 100_000,
    cpusetCpus: '0',
    memoryLimitBytes: 32 << 20,
    pidsLimit: 77,
  };
  assert.deepEqual(JSON.parse(JSON.stringify(await status())), told);
  await machine.restart();
  assert.deepEqual(JSON.parse(JSON.stringify(await status())), told, 'kept over a restart');
  assert.deepEqual((await machine.runtime.containerStatus(id)).annotations, { keep: 'me' });
  await machine.runtime.updateContainerResources(id, { pidsLimit: 55 });
  assert.deepEqual(await limits(), { ...after, pids: '55' });
  await machine.runtime.stopContainer(id, 0);
  await machine.runtime.updateContainerResources(id, { pidsLimit: 44 });
  assert.equal((await status())?.pidsLimit, 44, 'an ended one remembers');
  await machine.runtime.removePodSandbox(pod);
  assert.deepEqual(await machine.leftovers(), []);
});

test('a created container that is not started takes updates', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  const id = await machine.runtime.createContainer(pod, machine.containerConfig(['sleep', '1000']));
  await machine.runtime.updateContainerResources(id, { memoryLimitBytes: 40 << 20 });
  await machine.runtime.startContainer(id);
  assert.equal(cgroupLimits((await machine.runtime.containerStatus(id)).pid).memory, 40 << 20);
});

test('a process of an exec that runs out of memory is told, too', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  const id = await machine.startContainer(
    pod,
    ['sh', '-c', 'trap "exit 3" TERM; while :; do sleep 0.1; done'],
    {
      linux: { resources: { memoryLimitBytes: 24 << 20 } },
    },
  );
  const result = await machine.runtime.execSync(id, ['tail', '/dev/zero'], 20_000);
  assert.equal(result.exitCode, 137);
  await machine.runtime.stopContainer(id, 20_000);
  const status = await machine.runtime.containerStatus(id);
  assert.equal(status.exitCode, 3);
  assert.equal(status.reason, 'OOMKilled');
});

test('users, groups and no new privileges', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  assert.deepEqual(
    await say(machine, pod, 'id -u; id -g; id -G; grep NoNewPrivs /proc/self/status', {
      linux: {
        security: {
          runAsUsername: 'web',
          runAsGroup: 7,
          supplementalGroups: [9],
          supplementalGroupsPolicy: 'strict',
          noNewPrivs: true,
        },
      },
    }),
    ['1000', '7', '7 9', 'NoNewPrivs:\t1'],
  );
  for (const security of [{ runAsGroup: 7 }, { runAsUser: -1 }, { runAsUser: 1, runAsUsername: 'web' }]) {
    await assert.rejects(say(machine, pod, 'true', { linux: { security } }), (error) =>
      isError(error, 'CONTAINER_CONFIG_INVALID'),
    );
  }
});

test('limits of open files and the OOM score', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  const lines = await say(machine, pod, "grep 'open files' /proc/self/limits; cat /proc/self/oom_score_adj", {
    linux: { resources: { oomScoreAdj: 5000 } },
  });
  const own = Number(/^Max open files\s+\S+\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1]);
  const most = String(Math.min(own, 2 ** 20));
  assert.match(lines[0] ?? '', new RegExp(`^Max open files +${most} +${most} +files`));
  assert.equal(lines[1], '1000');
});

test('devices: one, a folder of them, permissions', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  const folder = join(machine.root, 'devices');
  await mkdir(join(folder, 'below'), { recursive: true });
  const S_IFCHR = 0o20000;
  mknod(join(folder, 'one'), S_IFCHR | 0o666, 1, 5);
  mknod(join(folder, 'below/two'), S_IFCHR | 0o666, 1, 7);
  await writeFile(join(folder, 'no-device'), '');
  const lines = await say(
    machine,
    pod,
    'ls /dev/my /dev/my/below; head -c 1 /dev/my/one >/dev/null && echo read; echo x > /dev/my/one; echo x > /dev/rw',
    {
      devices: [
        { containerPath: '/dev/my', hostPath: folder, permissions: 'r' },
        { containerPath: '/dev/rw', hostPath: '/dev/zero', permissions: 'r' },
      ],
    },
  );
  assert.deepEqual(lines.filter((line) => /^(one|two|below|no-device|read)$/.test(line)).sort(), [
    'below',
    'one',
    'read',
    'two',
  ]);
  for (const device of [
    { containerPath: '/dev/x', hostPath: '/dev/no-such-device', permissions: 'r' },
    { containerPath: 'x', hostPath: '/dev/zero', permissions: 'r' },
    { containerPath: '/dev/x', hostPath: '/dev/zero', permissions: 'rx' },
    { containerPath: '/dev/x', hostPath: '/etc/passwd', permissions: 'r' },
  ]) {
    await assert.rejects(say(machine, pod, 'true', { devices: [device] }), (error) =>
      isError(error, 'CONTAINER_CONFIG_INVALID'),
    );
  }
});

test('a working directory that is not there is made', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  assert.deepEqual(await say(machine, pod, 'pwd', { workingDir: '/made/by/it' }), ['/made/by/it']);
});

test('recursive read-only mounts and mount options', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const pod = await podOf(machine);
  const source = join(machine.root, 'source');
  await mkdir(source);
  await writeFile(join(source, 'run'), '#!/bin/sh\necho ran\n', { mode: 0o755 });
  const mount = { containerPath: '/m', hostPath: source, readonly: true, propagation: 'private' } as const;
  const [handler] = await machine.runtime.handlers();
  assert.equal(handler?.name, '');
  const recursive = say(machine, pod, 'touch /m/x', { mounts: [{ ...mount, recursiveReadonly: true }] });
  if (handler?.recursiveReadOnlyMounts) {
    assert.deepEqual(await recursive, ['touch: /m/x: Read-only file system']);
  } else {
    await assert.rejects(recursive, /^KeelsonError: RROUnsupported/);
  }
  assert.deepEqual(await say(machine, pod, '/m/run', { mounts: [mount] }), ['ran']);
  assert.match(
    (
      await say(machine, pod, '/m/run', { mounts: [{ ...mount, mountOptions: ['noexec', 'nosuid'] }] })
    ).join(),
    /Permission denied/,
  );
});

function readOr(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** What the kernel says of the group of a process, on v1 and v2. */
function cgroupLimits(pid: number) {
  const groups = readFileSync(`/proc/${pid}/cgroup`, 'utf8')
    .split('\n')
    .map((line) => line.split(':'));
  const unified = readOr('/sys/fs/cgroup/cgroup.controllers') !== '';
  const read = (controller: string, v1: string, v2: string) => {
    const group = groups.find(([, names = '']) =>
      unified ? names === '' : names.split(',').includes(controller),
    );
    const folder = unified ? '' : `/${group?.[1]}`;
    return readFileSync(`/sys/fs/cgroup${folder}${group?.[2]}/${unified ? v2 : v1}`, 'utf8').trim();
  };
  return {
    memory: Number(read('memory', 'memory.limit_in_bytes', 'memory.max')),
    cpus: read('cpuset', 'cpuset.cpus', 'cpuset.cpus'),
    pids: read('pids', 'pids.max', 'pids.max'),
    quota: Number(read('cpu', 'cpu.cfs_quota_us', 'cpu.max').split(' ')[0]),
  };
}
