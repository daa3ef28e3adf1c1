/** What containers share with the host and with each other: mounts that travel, links, PID namespaces. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Mount } from '../../runtime/api.ts';
import { mount, mountFlags, umountFlags, unmount } from '../../runtime/host/syscalls.ts';
import { cannotRun, makeMachine } from './machine.ts';

const skip = cannotRun;

test('mounts travel as they are asked to, and no other way', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const namespaces = { network: 'node', pid: 'container', ipc: 'pod' } as const;
  const sandbox = await machine.runtime.runPodSandbox(
    machine.sandboxConfig({ linux: { security: { namespaces, privileged: true } } }),
    '',
  );
  const shared = join(machine.root, 'shared');
  await mkdir(shared);
  mount('tmpfs', shared, 'tmpfs', 0, 'size=1m');
  mount(null, shared, null, mountFlags.SHARED);
  await Promise.all(['host', 'inside'].map((name) => mkdir(join(shared, name))));
  // Through a link, as volumes of some plugins are.
  await symlink('shared', join(machine.root, 'link'));
  const start = (propagation: Mount['propagation']) =>
    machine.startContainer(sandbox, ['sleep', '1000'], {
      metadata: { name: propagation, attempt: 0 },
      mounts: [{ containerPath: '/m', hostPath: join(machine.root, 'link'), readonly: false, propagation }],
      linux: { security: { namespaces, privileged: true } },
    });
  const both = await start('bidirectional');
  const down = await start('host-to-container');
  const none = await start('private');
  const sees = async (id: string, path: string) =>
    (await machine.runtime.execSync(id, ['ls', path], 0)).exitCode === 0;
  mount('tmpfs', join(shared, 'host'), 'tmpfs', 0, 'size=1m');
  await writeFile(join(shared, 'host/file'), '');
  assert.deepEqual(await Promise.all([both, down, none].map((id) => sees(id, '/m/host/file'))), [
    true,
    true,
    false,
  ]);
  for (const id of [both, down, none]) {
    const script = 'mount -t tmpfs none /m/inside && touch /m/inside/file';
    assert.equal((await machine.runtime.execSync(id, ['sh', '-c', script], 0)).exitCode, 0);
    assert.equal(existsSync(join(shared, 'inside/file')), id === both);
    if (id === both) unmount(join(shared, 'inside'), umountFlags.DETACH);
  }
  await machine.runtime.removePodSandbox(sandbox);
  for (const path of ['host', '.']) unmount(join(shared, path), umountFlags.DETACH);
  assert.deepEqual(await machine.leftovers(), []);
});

test('a container in the PID namespace of another', { skip, timeout: 60_000 }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const target = await machine.startContainer(sandbox, ['sleep', '777'], {
    metadata: { name: 'target', attempt: 0 },
  });
  const namespaces = { network: 'node', pid: 'target', ipc: 'pod', targetId: target } as const;
  const looker = await machine.startContainer(sandbox, ['sh', '-c', 'ps; sleep 1000 & exec sleep 888'], {
    metadata: { name: 'looker', attempt: 0 },
    linux: { security: { namespaces } },
  });
  const listed = / F +1 root +sleep 777$/m;
  while (!/ F +\d+ root +sh -c /.test(await machine.logOf(looker))) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.match(await machine.logOf(looker), listed);
  // Its end takes what it started along, and nobody else.
  await machine.runtime.stopContainer(looker, 0);
  const left = (await machine.runtime.execSync(target, ['ps'], 0)).stdout.toString();
  assert.match(left, /sleep 777/);
  assert.doesNotMatch(left, /sleep (888|1000)/);
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

const swapFile = '/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes';
test('swap: none without a limit of its own, and as much as is given', {
  skip: skip || (existsSync(swapFile) ? false : 'no accounting for swap with cgroup v1 here'),
}, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const limits = async (resources: object) => {
    const id = await machine.startContainer(sandbox, ['sleep', '1000'], {
      metadata: { name: JSON.stringify(resources).replace(/\W/g, ''), attempt: 0 },
      linux: { resources },
    });
    const read = async () => {
      const { pid } = await machine.runtime.containerStatus(id);
      const group = /^\d+:memory:(.*)$/m.exec(readFileSync(`/proc/${pid}/cgroup`, 'utf8'))?.[1];
      return (
        Number(await readFile(`/sys/fs/cgroup/memory${group}/memory.memsw.limit_in_bytes`, 'utf8')) >> 20
      );
    };
    return { id, read };
  };
  const plain = await limits({ memoryLimitBytes: 32 << 20 });
  assert.equal(await plain.read(), 32);
  // Up and down: the two limits must be written in the right order.
  await machine.runtime.updateContainerResources(plain.id, { memoryLimitBytes: 64 << 20 });
  assert.equal(await plain.read(), 64);
  await machine.runtime.updateContainerResources(plain.id, { memoryLimitBytes: 16 << 20 });
  assert.equal(await plain.read(), 16);
  const more = await limits({ memoryLimitBytes: 32 << 20, memorySwapLimitBytes: 48 << 20 });
  assert.equal(await more.read(), 48);
});
