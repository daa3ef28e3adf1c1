/** kill -9 of a process that runs the runtime, at several moments, and what the next one makes of it. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openDatabase } from '../../runtime/host/database.ts';
import { isError } from '../../runtime/host/errors.ts';
import { unmount } from '../../runtime/host/syscalls.ts';
import { allProcesses, argumentsOf, readPidFile } from '../../runtime/processes.ts';
import {
  cannotRun,
  configsFor,
  layOutMachine,
  leftoversOf,
  type MachinePaths,
  makeMachine,
  openRuntime,
  tearDown,
  whenExited,
} from './machine.ts';

const skip = cannotRun;
const doomed = fileURLToPath(new URL('./doomed.ts', import.meta.url));

/** Starts the doomed process and kills it `ms` after its containers run; returns their ids. */
async function startAndKill(paths: MachinePaths, ms: number): Promise<string[]> {
  const child: ChildProcess = spawn(process.execPath, [doomed, JSON.stringify(paths)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  try {
    for await (const line of createInterface({ input: child.stdout! })) {
      const [word, ...ids] = line.split(' ');
      if (word !== 'ready') continue;
      await new Promise((resolve) => setTimeout(resolve, ms));
      return ids;
    }
    throw new Error('the process ended by itself');
  } finally {
    child.kill('SIGKILL');
    await ended;
  }
}

/** Folders of a test's own, and how to open runtimes on them: all is closed and torn down at its end. */
async function layOut(t: TestContext) {
  const paths = await layOutMachine();
  const opened: { close(): Promise<void> }[] = [];
  t.after(async () => {
    await Promise.allSettled(opened.map(({ close }) => close()));
    await tearDown(paths);
  });
  return {
    paths,
    async open() {
      const next = await openAfterDeath(paths);
      opened.push(next);
      return next;
    },
  };
}

/** A child that was just being forked when its parent was killed holds the lock until it has called exec. */
async function openAfterDeath(paths: MachinePaths): ReturnType<typeof openRuntime> {
  for (let tries = 0; ; tries++) {
    try {
      return await openRuntime(paths);
    } catch (error) {
      if (!isError(error, 'DATABASE_LOCKED') || tries > 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

// Spread over a pod's way from sandbox to removal, which takes some 250 ms here.
for (const ms of [0, 7, 19, 33, 48, 61, 77, 93, 120, 151, 190, 230]) {
  test(`killed ${ms} ms into its work`, { skip }, async (t) => {
    const { paths, open } = await layOut(t);
    const [keeper = '', kept = '', ending = ''] = await startAndKill(paths, ms);
    const alive = readPidFile(join(paths.runDir, 'containers', kept, 'pid'));
    const { runtime } = await open();
    const status = await runtime.containerStatus(kept);
    assert.equal(status.state, 'running');
    assert.equal(status.pid, alive);
    assert.equal((await runtime.podSandboxStatus(keeper)).state, 'ready');
    // Ended while nobody looked, or ends under the new process: the code and the log are the same.
    const ended = await whenExited(runtime, ending);
    assert.equal(ended.exitCode, 9);
    assert.equal(ended.reason, 'Error');
    assert.match(await readFile(ended.logPath, 'utf8'), /stdout F last words$/m);

    for (const container of await runtime.listContainers()) {
      assert.ok(['created', 'running', 'exited'].includes(container.state), container.state);
      const { pid, state } = await runtime.containerStatus(container.id);
      if (state === 'running') assert.ok(argumentsOf(pid).length > 0, `${container.id} says running`);
    }
    // What was created is there, with its process or without: it can be started.
    for (const { id, podSandboxId } of await runtime.listContainers({ state: 'created' })) {
      if ((await runtime.podSandboxStatus(podSandboxId)).state !== 'ready') continue;
      await runtime.startContainer(id);
      assert.equal((await runtime.containerStatus(id)).state, 'running');
    }
    // What was half-made is gone: nothing lies about that no row names.
    const known = new Set([
      ...(await runtime.listContainers()).map(({ id }) => id),
      ...(await runtime.listPodSandbox()).map(({ id }) => id),
    ]);
    for (const found of await leftoversOf(paths)) {
      const id = /[0-9a-f]{64}/.exec(found)?.[0];
      assert.ok(id === undefined || known.has(id), `nobody knows ${found}`);
    }
    for (const { id } of await runtime.listPodSandbox()) await runtime.removePodSandbox(id);
    assert.deepEqual(await leftoversOf(paths), []);
  });
}

test('a monitor that was killed: the container is ended and the truth told', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const start = (name: string) =>
    machine.startContainer(sandbox, ['sleep', '1000'], { metadata: { name, attempt: 0 } });
  const [seen, restarted] = [await start('seen'), await start('restarted')];
  const killMonitor = (id: string) =>
    process.kill(readPidFile(join(machine.runDir, 'containers', id, 'conmon.pid'))!, 'SIGKILL');
  const { pid } = await machine.runtime.containerStatus(seen);
  killMonitor(seen);
  while ((await machine.runtime.containerStatus(seen)).state === 'running') {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  const status = await machine.runtime.containerStatus(seen);
  assert.equal(status.exitCode, 137);
  assert.equal(status.reason, 'ContainerStatusUnknown');
  assert.match(status.message, /conmon/);
  killMonitor(restarted);
  const runtime = await machine.restart();
  assert.equal((await runtime.containerStatus(restarted)).reason, 'ContainerStatusUnknown');
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(argumentsOf(pid), []);
  assert.deepEqual(await machine.leftovers(), []);
});

test('a container that ended while no runtime ran', { skip }, async (t) => {
  const { paths, open } = await layOut(t);
  const configs = configsFor(paths);
  const first = await open();
  const sandbox = await first.runtime.runPodSandbox(configs.sandboxConfig(), '');
  const id = await first.runtime.createContainer(
    sandbox,
    configs.containerConfig(['sh', '-c', 'sleep 0.2; exit 6']),
  );
  await first.runtime.startContainer(id);
  await first.close();
  await new Promise((resolve) => setTimeout(resolve, 500));
  const second = await open();
  const status = await second.runtime.containerStatus(id);
  assert.equal(status.state, 'exited');
  assert.equal(status.exitCode, 6);
  assert.ok(status.finishedAt < Date.now() - 200, 'the end is when it ended');
  await second.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await leftoversOf(paths), []);
});

test('after a reboot nothing runs: pods are not ready, containers have ended', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const config = machine.sandboxConfig({
    linux: { security: { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } },
  });
  const sandbox = await machine.runtime.runPodSandbox(config, '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  const { pid } = await machine.runtime.containerStatus(id);
  // As a power cut leaves it: no processes, no exit file, no mounts, another boot id.
  const monitor = readPidFile(join(machine.runDir, 'containers', id, 'conmon.pid'))!;
  process.kill(monitor, 'SIGKILL');
  process.kill(pid, 'SIGKILL');
  for (const name of ['net', 'ipc', 'uts', 'shm']) unmount(join(machine.runDir, 'sandboxes', sandbox, name));
  const runtime = await machine.restart();
  assert.equal((await runtime.podSandboxStatus(sandbox)).state, 'notready');
  const status = await runtime.containerStatus(id);
  assert.equal(status.state, 'exited');
  assert.equal(status.exitCode, 255);
  assert.equal(status.reason, 'ContainerStatusUnknown');
  await assert.rejects(runtime.createContainer(sandbox, machine.containerConfig(['true'])), /stopped/);
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('what no row names is swept', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  const { pid } = await machine.runtime.containerStatus(id);
  await machine.runtime.close();
  // Rows gone, things there: as if the state had been lost.
  const stranger = 'f'.repeat(64);
  await mkdir(join(machine.runDir, 'containers', stranger, 'rootfs'), { recursive: true });
  await mkdir(join(machine.stateDir, 'containers', stranger, 'upper'), { recursive: true });
  await writeFile(join(machine.runDir, 'exits', stranger), '0');
  const paths = { ...machine };
  await machine.restart();
  const { runtime } = machine;
  assert.equal((await runtime.containerStatus(id)).pid, pid, 'what has a row stays');
  const left = (await machine.leftovers()).join('\n');
  assert.doesNotMatch(left, /ffff/);
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await leftoversOf(paths), []);
});

test('an exit code that is being written while a runtime starts is left alone', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  const exits = join(machine.runDir, 'exits');
  await writeFile(join(exits, `${id}.A1B2C3`), '0');
  await writeFile(join(exits, `${'f'.repeat(64)}.A1B2C3`), '0');
  await machine.restart();
  assert.deepEqual(await readdir(exits), [`${id}.A1B2C3`]);
});

test('one runDir belongs to one runtime, whatever its stateDir', { skip }, async (t) => {
  const { paths, open } = await layOut(t);
  const { runtime } = await open();
  const configs = configsFor(paths);
  const sandbox = await runtime.runPodSandbox(configs.sandboxConfig(), '');
  const id = await runtime.createContainer(sandbox, configs.containerConfig(['sleep', '1000']));
  await runtime.startContainer(id);
  const other = openRuntime({ ...paths, stateDir: join(paths.root, 'other-state') });
  await assert.rejects(
    other,
    (error) => isError(error, 'FAILED_PRECONDITION') && /runDir/.test(error.hint ?? ''),
  );
  assert.equal((await runtime.containerStatus(id)).state, 'running');
});

test('the state lost, the machine is swept', { skip }, async (t) => {
  const { paths, open } = await layOut(t);
  const configs = configsFor(paths);
  const first = await open();
  const sandbox = await first.runtime.runPodSandbox(configs.sandboxConfig(), '');
  const id = await first.runtime.createContainer(sandbox, configs.containerConfig(['sleep', '1000']));
  await first.runtime.startContainer(id);
  await first.close();
  const db = openDatabase(join(paths.stateDir, 'state.db'));
  db.statement('DELETE FROM containers').run();
  db.statement('DELETE FROM sandboxes').run();
  db.close();
  const second = await open();
  await second.close();
  assert.deepEqual(
    (await leftoversOf(paths)).filter((found) => !found.startsWith('cgroup')),
    [],
  );
  for (const pid of allProcesses()) {
    const zombie = argumentsOf(pid).length === 0;
    assert.ok(zombie || !readFileOr(`/proc/${pid}/cgroup`).includes(id), `process ${pid} lives`);
  }
});

function readFileOr(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}
