/** Runtime handlers: another OCI runtime by configuration, what it can do, and one that is not there. */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { isError } from '../../runtime/host/errors.ts';
import { cannotRun, makeMachine } from './machine.ts';

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
