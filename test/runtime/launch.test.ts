/** Containers between CreateContainer and StartContainer: their process is made meanwhile, and whatever comes between. */
import assert from 'node:assert/strict';
import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ContainerEvent } from '../../runtime/api.ts';
import { describe, isError } from '../../runtime/host/errors.ts';
import { allProcesses, argumentsOf, readPidFile } from '../../runtime/processes.ts';
import { cannotRun, makeMachine } from './machine.ts';

const skip = cannotRun;
const named = (name: string) => ({ metadata: { name, attempt: 0 } });

function programsOn(root: string): string[][] {
  return allProcesses()
    .map(argumentsOf)
    .filter((args) => args.some((arg) => arg.includes(root)));
}

async function until(what: string, said: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + 20_000;
  while (!(await said())) {
    assert.ok(Date.now() < end, what);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

test('stopped, removed or its pod removed while its process is made', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  for (const ms of [0, 1, 2, 4, 7, 11, 16, 25, 40]) {
    const wait = () => new Promise((resolve) => setTimeout(resolve, ms));
    const create = (name: string) =>
      runtime.createContainer(sandbox, machine.containerConfig(['sleep', '1000'], named(`${name}-${ms}`)));
    const stopped = await create('stopped');
    await wait();
    await runtime.stopContainer(stopped, 5000);
    const { state, exitCode, reason } = await runtime.containerStatus(stopped);
    assert.deepEqual([state, exitCode, reason], ['exited', 137, 'Error'], `${ms} ms`);
    await runtime.removeContainer(stopped);
    const removed = await create('removed');
    await wait();
    await Promise.all([runtime.removeContainer(removed), runtime.removeContainer(removed)]);
    // The start loses, or wins: either way nothing is left of it.
    const raced = await create('raced');
    const starting = runtime.startContainer(raced).then(
      () => undefined,
      (error: unknown) => error,
    );
    await wait();
    await runtime.removeContainer(raced);
    const error = await starting;
    assert.ok(error === undefined || isError(error), describe(error));
    assert.deepEqual(await readdir(join(machine.runDir, 'containers')), []);
    assert.deepEqual(programsOn(machine.root), [], `${ms} ms`);
    const pod = await runtime.runPodSandbox(
      machine.sandboxConfig({ metadata: { name: `p${ms}`, uid: `p${ms}`, namespace: 'n', attempt: 0 } }),
      '',
    );
    await runtime.createContainer(pod, machine.containerConfig(['sleep', '1000']));
    await wait();
    await runtime.removePodSandbox(pod);
    assert.deepEqual(programsOn(machine.root), [], `${ms} ms`);
  }
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('a restart while its process is made: the next start makes it', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  for (const ms of [0, 3, 8, 15, 60]) {
    const config = machine.containerConfig(['sh', '-c', 'echo $GREETING; exit 5'], {
      ...named(`c${ms}`),
      envs: [{ key: 'GREETING', value: 'good day' }],
      logPath: `${ms}.log`,
    });
    const id = await machine.runtime.createContainer(sandbox, config);
    await new Promise((resolve) => setTimeout(resolve, ms));
    await machine.restart();
    const { runtime } = machine;
    assert.equal((await runtime.containerStatus(id)).state, 'created', `${ms} ms`);
    assert.equal(await runtime.createContainer(sandbox, config), id);
    await runtime.updateContainerResources(id, { pidsLimit: 50 });
    await runtime.startContainer(id);
    assert.equal((await machine.exited(id)).exitCode, 5);
    assert.match(await machine.logOf(id), /stdout F good day$/m);
  }
  // Nothing left to make it of: it has ended, and says so.
  const lost = await machine.runtime.createContainer(
    sandbox,
    machine.containerConfig(['true'], named('lost')),
  );
  await machine.runtime.close();
  await rm(join(machine.runDir, 'containers', lost, 'config.json'), { force: true });
  await machine.restart();
  const status = await machine.runtime.containerStatus(lost);
  // Quick machines have made it before the restart.
  if (status.state !== 'created') assert.equal(status.reason, 'ContainerStatusUnknown');
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('a start that is given up goes on behind; the next one finds the process', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await runtime.createContainer(sandbox, machine.containerConfig(['sleep', '1000']));
  await assert.rejects(runtime.startContainer(id, AbortSignal.abort()), (error) => isError(error, 'ABORTED'));
  await runtime.startContainer(id);
  assert.equal((await runtime.containerStatus(id)).state, 'running');
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('never started, and not startable: no one hears of it until it is asked', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const unhandled: unknown[] = [];
  const onUnhandled = (reason: unknown) => unhandled.push(reason);
  process.on('unhandledRejection', onUnhandled);
  t.after(() => process.off('unhandledRejection', onUnhandled));
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await runtime.createContainer(sandbox, machine.containerConfig(['/no/such']));
  await until('conmon has given up', () => programsOn(machine.root).length === 0);
  assert.equal((await runtime.containerStatus(id)).state, 'created');
  await runtime.updateContainerResources(id, { pidsLimit: 50 });
  await runtime.stopContainer(id, 1);
  const status = await runtime.containerStatus(id);
  assert.deepEqual([status.exitCode, status.reason], [128, 'StartError']);
  assert.match(status.message, /no such file/);
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
  assert.deepEqual(unhandled, []);
});

test('a monitor that is killed is noticed at once, also by a restarted agent', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const kill = (id: string) =>
    process.kill(readPidFile(join(machine.runDir, 'containers', id, 'conmon.pid'))!, 'SIGKILL');
  const start = (name: string) => machine.startContainer(sandbox, ['sleep', '1000'], named(name));
  // Made by this process; taken over from an earlier one; gone while nobody looked.
  const [own, adopted, gone] = [await start('own'), await start('adopted'), await start('gone')];
  for (const [id, before] of [
    [own, async () => {}],
    [adopted, () => machine.restart()],
  ] as const) {
    await before();
    const { runtime } = machine;
    const { pid } = await runtime.containerStatus(id);
    const events: ContainerEvent[] = [];
    const end = runtime.containerEvents((event) => events.push(event));
    kill(id);
    // Nobody asks for its status: it is the event that tells.
    await until('an event', () => events.length > 0);
    end();
    assert.deepEqual(
      events.map(({ type, containerId }) => [type, containerId]),
      [['stopped', id]],
    );
    const status = await runtime.containerStatus(id);
    assert.deepEqual(
      [status.state, status.exitCode, status.reason],
      ['exited', 137, 'ContainerStatusUnknown'],
    );
    await until('its process has gone', () => argumentsOf(pid).length === 0);
  }
  await machine.runtime.close();
  kill(gone);
  await machine.restart();
  assert.equal((await machine.runtime.containerStatus(gone)).reason, 'ContainerStatusUnknown');
  // One that ends by itself is told as what it is, though its monitor goes with it.
  const ending = await machine.startContainer(sandbox, ['sh', '-c', 'exit 4'], named('ending'));
  assert.deepEqual((await machine.exited(ending)).exitCode, 4);
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('what is created after all may be read: the log is there from the start', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await runtime.createContainer(sandbox, machine.containerConfig(['true']));
  const { logPath } = await runtime.containerStatus(id);
  assert.equal(await readFile(logPath, 'utf8'), '');
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});
