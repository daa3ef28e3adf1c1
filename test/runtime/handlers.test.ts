/** Runtime handlers: another OCI runtime by configuration, what it can do, and one that is not there. */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { isError } from '../../runtime/host/errors.ts';
import { type ContainerChanges, cannotRun, makeMachine } from './machine.ts';

test('a handler of another runtime runs its containers', { skip: cannotRun }, async (t) => {
  const machine = await makeMachine(t);
  const program = join(machine.root, 'other-runtime');
  const runc = process.env['KEELSON_TEST_RUNC'] ?? 'runc';
  const { runtime } = machine;
  const [first, second, third, ...more] = await runtime.handlers();
  assert.deepEqual([first?.name, second?.name, more.length], ['', 'runc', 0]);
  assert.deepEqual({ ...first, name: 'runc' }, second);
  assert.deepEqual(third, { name: 'other', recursiveReadOnlyMounts: false, userNamespaces: false });
  await assert.rejects(runtime.runPodSandbox(machine.sandboxConfig(), 'other'), (error) =>
    isError(error, 'DEPENDENCY_MISSING'),
  );
  await assert.rejects(
    runtime.runPodSandbox(machine.sandboxConfig(), 'kata'),
    (error) => isError(error, 'INVALID_ARGUMENT') && /runc, other/.test(error.hint ?? ''),
  );
  // One that says nothing of its features, and writes down what it is asked.
  const calls = join(machine.root, 'calls');
  await writeFile(
    program,
    `#!/bin/sh\necho "$@" >> ${calls}\n[ "$1" = features ] && exit 1\nexec ${runc} "$@"\n`,
    { mode: 0o755 },
  );
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), 'other');
  assert.equal((await runtime.podSandboxStatus(sandbox)).runtimeHandler, 'other');
  await assert.rejects(
    machine.startContainer(sandbox, ['true'], {
      mounts: [
        {
          containerPath: '/m',
          hostPath: '/tmp',
          readonly: true,
          propagation: 'private',
          recursiveReadonly: true,
        },
      ],
    }),
    (error) => isError(error, 'CONTAINER_CONFIG_INVALID') && error.message.startsWith('RROUnsupported: '),
  );
  const id = await machine.startContainer(sandbox, ['sleep', '1000'], {
    linux: { security: { seccomp: { type: 'RuntimeDefault' } } },
  });
  assert.equal((await runtime.execSync(id, ['true'], 0)).exitCode, 0);
  await runtime.updateContainerResources(id, { pidsLimit: 30 });
  await runtime.handlers();
  await machine.restart();
  assert.equal((await machine.runtime.containerStatus(id)).state, 'running');
  await machine.runtime.removePodSandbox(sandbox);
  const asked = (await readFile(calls, 'utf8')).split('\n');
  for (const verb of ['create', 'start', 'exec', 'update', 'delete']) {
    assert.ok(
      asked.some(
        (line) => line.split(' ').includes(verb) && line.includes(`--root=${machine.runDir}/oci/other`),
      ),
      verb,
    );
  }
  assert.equal(asked.filter((line) => line === 'features').length, 1, 'asked once');
  assert.deepEqual(await machine.leftovers(), []);
});

test('crun runs the containers of its handler as runc does', { skip: cannotRun }, async (t) => {
  const machine = await makeMachine(t);
  const handler = await machine.crun();
  if (handler === undefined) return t.skip('crun is not installed');
  const features = (await machine.runtime.handlers()).find(({ name }) => name === handler);
  assert.equal(features?.recursiveReadOnlyMounts, true);
  const namespaces = { network: 'pod', pid: 'pod', ipc: 'pod' } as const;
  const security = { namespaces, seccomp: { type: 'RuntimeDefault' } } as const;
  const sandbox = await machine.runtime.runPodSandbox(
    machine.sandboxConfig({ linux: { security: { ...security } } }),
    handler,
  );
  const start = (name: string, command: readonly string[], changes: ContainerChanges = {}) =>
    machine.startContainer(sandbox, command, {
      ...changes,
      metadata: { name, attempt: 0 },
      linux: { ...changes.linux, security: { ...security, ...changes.linux?.security } },
    });
  await t.test('a command with its user, in the pod\u2019s PID namespace, of read-only mounts', async () => {
    const id = await start('reads', ['sh', '-c', 'id -u; cat /proc/1/comm; touch /m/sub/x || exit 3'], {
      mounts: [
        {
          ...{ containerPath: '/m', hostPath: machine.logs, readonly: true },
          ...{ propagation: 'private', recursiveReadonly: true },
        },
      ],
      linux: { security: { runAsUser: 1000, runAsGroup: 1001, supplementalGroups: [44] } },
    });
    assert.equal((await machine.exited(id)).exitCode, 3);
    assert.match(await machine.logOf(id), /F 1000\n.*F catatonit\n/);
  });
  await t.test('commands in it have its user, groups, limits and no more', async () => {
    const id = await start('held', ['sleep', '1000'], {
      linux: { security: { runAsUser: 1000, runAsGroup: 1001, supplementalGroups: [44], noNewPrivs: true } },
    });
    const { stdout } = await machine.runtime.execSync(
      id,
      ['sh', '-c', 'id -u; id -G; grep -E "Seccomp:|NoNewPrivs|CapEff" /proc/self/status | tr -s "\\t" " "'],
      0,
    );
    assert.match(stdout.toString(), /^1000\n1001 44\nCapEff: 0+\nNoNewPrivs: 1\nSeccomp: 2$/m);
    const missing = machine.runtime.execSync(id, ['nosuch'], 0);
    await assert.rejects(missing, (error) => isError(error, 'EXEC_FAILED') && /nosuch/.test(error.message));
    await machine.runtime.updateContainerResources(id, { pidsLimit: 30 });
    await machine.runtime.stopContainer(id, 0);
    assert.equal((await machine.runtime.containerStatus(id)).exitCode, 137);
  });
  await t.test('no such command, and memory that runs out', async () => {
    const id = await machine.runtime.createContainer(
      sandbox,
      machine.containerConfig(['nosuch'], {
        metadata: { name: 'none', attempt: 0 },
        linux: { security: { ...security } },
      }),
    );
    await assert.rejects(
      machine.runtime.startContainer(id),
      (error) =>
        isError(error, 'CONTAINER_START_FAILED') && /executable file `nosuch` not found/.test(error.message),
    );
    assert.equal((await machine.runtime.containerStatus(id)).reason, 'StartError');
    const eats = await start('eats', ['sh', '-c', 'dd if=/dev/zero of=/dev/null bs=200M count=1'], {
      linux: { resources: { memoryLimitBytes: 32 << 20 } },
    });
    assert.equal((await machine.exited(eats)).reason, 'OOMKilled');
  });
  await t.test('they go on over a restart and leave nothing', async () => {
    const id = await start('stays', ['sleep', '1000'], { tty: true });
    await machine.restart();
    assert.equal((await machine.runtime.containerStatus(id)).state, 'running');
    await machine.runtime.removePodSandbox(sandbox);
    assert.deepEqual(await machine.leftovers(), []);
  });
});
