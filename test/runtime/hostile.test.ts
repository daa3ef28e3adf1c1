/** Requests that nobody should make: the right code, a message, and nothing left behind. */
import assert from 'node:assert/strict';
import { readdir, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { describe, type ErrorCode, isError } from '../../runtime/host/errors.ts';
import { type ContainerChanges, cannotRun, makeMachine } from './machine.ts';

test('containers that ask for what makes no sense', { skip: cannotRun }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  const mount = (changes: object) => ({
    mounts: [
      { containerPath: '/m', hostPath: '/tmp', readonly: false, propagation: 'private' as const, ...changes },
    ],
  });
  const security = (changes: object): ContainerChanges => ({ linux: { security: changes } });
  const resources = (changes: object): ContainerChanges => ({ linux: { resources: changes } });
  await symlink('loop', join(machine.root, 'loop'));
  const range = { containerId: 0, hostId: 65_536, length: 65_536 };
  const namespaces = { network: 'node', pid: 'container', ipc: 'pod' };
  const config = 'CONTAINER_CONFIG_INVALID';
  const create = 'CONTAINER_CREATE_FAILED';
  // Only the OCI runtime or the kernel knows, and they are asked after CreateContainer.
  const start = 'CONTAINER_START_FAILED';
  const cases: [string, ContainerChanges, ErrorCode | readonly ErrorCode[]][] = [
    ['a source that is no path', mount({ hostPath: 'tmp' }), config],
    ['an empty source', mount({ hostPath: '' }), config],
    ['a source with NUL', mount({ hostPath: '/tmp/\0/etc' }), config],
    ['a place with NUL', mount({ containerPath: '/m\0' }), config],
    ['a source that is a loop of links', mount({ hostPath: join(machine.root, 'loop') }), create],
    ['a source below a file', mount({ hostPath: '/etc/hostname/x/y' }), create],
    ['a source with a name that is too long', mount({ hostPath: `/tmp/${'x'.repeat(300)}` }), create],
    ['the whole root', mount({ containerPath: '/' }), [config, start]],
    ['over /proc', mount({ containerPath: '/proc/self/../../proc' }), start],
    [
      'a propagation that the host lacks',
      mount({ propagation: 'bidirectional', hostPath: machine.root }),
      config,
    ],
    ['recursive but not read-only', mount({ recursiveReadonly: true }), config],
    [
      'recursive and propagating',
      mount({ recursiveReadonly: true, readonly: true, propagation: 'bidirectional' }),
      config,
    ],
    ['an option that is none', mount({ mountOptions: ['noexec,bind'] }), config],
    ['half a mapping', mount({ uidMappings: [range] }), config],
    [
      'a device elsewhere',
      { devices: [{ containerPath: 'dev', hostPath: '/dev/null', permissions: 'rw' }] },
      config,
    ],
    ['a CDI device that is a path', { cdiDevices: [{ name: '/etc/cdi/../passwd' }] }, config],
    ['a name with NUL', { metadata: { name: 'a\0', attempt: 0 } }, config],
    ['no name', { metadata: { name: '', attempt: 0 } }, config],
    ['an attempt that is none', { metadata: { name: 'a', attempt: -1 } }, config],
    ['a log outside', { logPath: 'a/../../x' }, config],
    ['a log with a name that is too long', { logPath: `${'x'.repeat(300)}.log` }, create],
    ['a working directory with NUL', { workingDir: '/a\0' }, config],
    ['a relative working directory', { workingDir: 'a' }, config],
    ['16 MB of arguments', { args: Array.from({ length: 16 }, () => 'x'.repeat(1 << 20)) }, config],
    ['a variable with NUL', { envs: [{ key: 'A', value: '\0' }] }, config],
    ['privileged in a sandbox that is not', security({ privileged: true }), config],
    [
      'a PID namespace of the pod, which has none',
      security({ namespaces: { ...namespaces, pid: 'pod' } }),
      config,
    ],
    [
      'a target that is nobody',
      security({ namespaces: { ...namespaces, pid: 'target', targetId: '../x' } }),
      config,
    ],
    [
      'users that the pod has not',
      security({ namespaces: { ...namespaces, user: { mode: 'pod', uids: [range], gids: [range] } } }),
      config,
    ],
    [
      'a seccomp profile that is a device',
      security({ seccomp: { type: 'Localhost', localhostRef: '/dev/zero' } }),
      config,
    ],
    ['a user that is negative', security({ runAsUser: -5 }), config],
    ['a user that is too big', security({ runAsUser: 2 ** 32 }), config],
    ['a group that is no number', security({ runAsUser: 1, supplementalGroups: [Number.NaN] }), config],
    ['a capability with a newline', security({ capabilities: { add: ['CHOWN\nALL'], drop: [] } }), config],
    ['an SELinux label with another inside', security({ selinux: { type: 'a:b:c' } }), config],
    ['memory below nothing', resources({ memoryLimitBytes: -5 }), config],
    ['memory that is no number', resources({ memoryLimitBytes: Number.NaN }), config],
    ['processors that are a path', resources({ cpusetCpus: '../../0' }), config],
    ['processors that are not there', resources({ cpusetCpus: '4000' }), start],
    ['a cgroup file elsewhere', resources({ unified: { '../memory.max': '1' } }), config],
    ['pages of a path', resources({ hugepageLimits: [{ pageSize: '../2MB', limit: 1 }] }), config],
    ['a period that is too long', resources({ cpuPeriod: 10 ** 9 }), config],
  ];
  for (const [what, changes, codes] of cases) {
    const wanted = machine.containerConfig(['true'], {
      metadata: { name: 'hostile', attempt: 0 },
      ...changes,
    });
    await assert.rejects(
      async () => {
        const id = await runtime.createContainer(sandbox, wanted);
        await runtime.startContainer(id).finally(() => runtime.removeContainer(id));
      },
      (error) => {
        assert.ok(isError(error), `${what}: ${describe(error)}`);
        assert.ok([codes].flat().includes(error.code), `${what}: ${error.code} ${describe(error)}`);
        assert.ok(error.message.length > 10 && error.message.length < 20_000, what);
        return true;
      },
      what,
    );
    assert.deepEqual(await runtime.listContainers(), [], what);
    assert.deepEqual(await readdir(join(machine.runDir, 'containers')), [], what);
    assert.deepEqual(await readdir(join(machine.stateDir, 'containers')), [], what);
  }
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
  assert.equal([...machine.leases.values()].flatMap((holders) => [...holders]).length, 0);
});
