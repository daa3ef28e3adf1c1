/** Many containers come and go: nothing is left of them. */
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { test } from 'node:test';
import { cannotRun, makeMachine } from './machine.ts';

test('50 containers in 10 pods, several at once, leave nothing', { skip: cannotRun }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const security = { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } as const;
  const round = async (index: number) => {
    const sandbox = await runtime.runPodSandbox(machine.sandboxConfig({ linux: { security } }), '');
    const ids = await Promise.all(
      [0, 1, 2, 3, 4].map((attempt) =>
        machine.startContainer(
          sandbox,
          attempt % 2 === 0 ? ['sleep', '1000'] : ['sh', '-c', `exit ${attempt}`],
          {
            metadata: { name: 'main', attempt },
            linux: { security },
          },
        ),
      ),
    );
    assert.equal((await machine.exited(ids[1]!)).exitCode, 1);
    assert.equal((await machine.exited(ids[3]!)).exitCode, 3);
    await runtime.removeContainer(ids[index % 5]!);
    await runtime.removePodSandbox(sandbox);
  };
  // Once before counting: libraries open what they keep.
  await round(0);
  const open = async () => (await readdir('/proc/self/fd')).length;
  const before = await open();
  for (let index = 0; index < 10; index += 2) await Promise.all([round(index), round(index + 1)]);
  assert.deepEqual(await machine.leftovers(), []);
  assert.deepEqual(await runtime.listContainers(), []);
  assert.deepEqual(await runtime.listPodSandbox(), []);
  // Pipes of ended children are closed in the next turns of the loop.
  for (let tries = 0; (await open()) > before && tries < 200; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.ok((await open()) <= before, `${await open()} descriptors, ${before} before`);
  assert.equal([...machine.leases.values()].flatMap((holders) => [...holders]).length, 0);
});
