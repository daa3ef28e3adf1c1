/**
 * Many containers come and go: nothing is left of them. KEELSON_TEST_CHURN says how many, 200 otherwise; a release is
 * tested with 1000.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { test } from 'node:test';
import type { ContainerConfig } from '../../runtime/api.ts';
import { allProcesses } from '../../runtime/processes.ts';
import { type ContainerChanges, cannotRun, makeMachine } from './machine.ts';

const count = Number(process.env['KEELSON_TEST_CHURN'] ?? 200);
const perPod = 5;

/** Where each descriptor leads, without the numbers that make every pipe and socket another. */
function descriptors(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).replace(/\[\d+\]/, '');
    } catch {
      // The one of this listing.
      return [];
    }
  });
}

/** Namespaces of this process, which its children would inherit. */
function ownNamespaces(): string[] {
  return readdirSync('/proc/self/ns').map((kind) => readlinkSync(`/proc/self/ns/${kind}`));
}

test(`${count} containers, several at once, leave nothing`, { skip: cannotRun }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  type Security = ContainerConfig['linux']['security'];
  const security: Security = {
    namespaces: { network: 'pod', pid: 'container', ipc: 'pod' },
    seccomp: { type: 'RuntimeDefault' },
  };
  const kinds: readonly [readonly string[], ContainerChanges][] = [
    [['sleep', '1000'], {}],
    [['sh', '-c', 'exit 1'], { tty: true, stdin: true }],
    [
      ['cat', '/image/etc/passwd'],
      {
        mounts: [
          {
            containerPath: '/image',
            hostPath: '',
            readonly: true,
            propagation: 'private',
            image: { image: 'busybox' },
          },
        ],
      },
    ],
    [['sh', '-c', 'sleep 1000 & exit 3'], { stdin: true, stdinOnce: true }],
    [['sleep', '1000'], { linux: { security, resources: { memoryLimitBytes: 32 << 20, pidsLimit: 20 } } }],
  ];
  const round = async (index: number) => {
    // Every fourth pod has a PID namespace of its own, with an init.
    const namespaces = { ...security.namespaces, pid: index % 4 === 0 ? 'pod' : 'container' } as const;
    const sandbox = await runtime.runPodSandbox(
      machine.sandboxConfig({ linux: { security: { namespaces, seccomp: security.seccomp } } }),
      '',
    );
    const ids = await Promise.all(
      kinds.map(([command, changes], attempt) =>
        machine.startContainer(sandbox, command, {
          metadata: { name: 'main', attempt },
          ...changes,
          linux: { resources: changes.linux?.resources, security: { ...security, namespaces } },
        }),
      ),
    );
    assert.equal((await machine.exited(ids[1]!)).exitCode, 1);
    assert.equal((await machine.exited(ids[2]!)).exitCode, 0);
    assert.equal((await machine.exited(ids[3]!)).exitCode, 3);
    await runtime.updateContainerResources(ids[4]!, { memoryLimitBytes: 48 << 20 });
    assert.equal((await runtime.execSync(ids[0]!, ['true'], 0)).exitCode, 0);
    if (index % 2 === 0) await runtime.stopContainer(ids[0]!, 1);
    await runtime.removeContainer(ids[index % perPod]!);
    await runtime.removePodSandbox(sandbox);
  };
  // Once before counting: libraries open what they keep.
  await round(0);
  const before = descriptors();
  const namespacesBefore = ownNamespaces();
  const rounds = Math.ceil(count / perPod);
  let next = 0;
  const worker = async () => {
    while (next < rounds) await round(next++);
  };
  await Promise.all([worker(), worker(), worker()]);
  assert.deepEqual(await machine.leftovers(), []);
  assert.deepEqual(await runtime.listContainers(), []);
  assert.deepEqual(await runtime.listPodSandbox(), []);
  assert.equal([...machine.leases.values()].flatMap((holders) => [...holders]).length, 0);
  assert.deepEqual(
    await readdir(`/sys/class/net/${machine.bridge}/brif`),
    [],
    'no interface hangs on the bridge',
  );
  assert.deepEqual(ownNamespaces(), namespacesBefore);
  // Conmon leaves its console sockets' folder, and nothing in it.
  assert.deepEqual(
    (await readdir(machine.runDir)).filter((name) => name.startsWith('conmon')),
    [],
  );
  const children = allProcesses().filter((pid) => zombieOf(pid));
  assert.deepEqual(children, [], 'no ended child is left unreaped');
  // Pipes of ended children are closed in the next turns of the loop.
  for (let tries = 0; descriptors().length > before.length && tries < 200; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.ok(
    descriptors().length <= before.length,
    `before: ${before.join(' ')}; now: ${descriptors().join(' ')}`,
  );
});

/** Is `pid` an ended child of this process? */
function zombieOf(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const [state, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return state === 'Z' && Number(parent) === process.pid;
  } catch {
    return false;
  }
}
