/** What conmon keeps while the agent comes and goes: terminal, standard input, log, attach socket, exit code. */
import assert from 'node:assert/strict';
import { lstatSync } from 'node:fs';
import { readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { readPidFile } from '../../runtime/processes.ts';
import { cannotRun, type Machine, makeMachine } from './machine.ts';

const skip = cannotRun;

async function until(said: () => Promise<boolean>): Promise<void> {
  while (!(await said())) await new Promise((resolve) => setTimeout(resolve, 5));
}

const says = (machine: Machine, id: string, words: string) =>
  until(async () => (await machine.logOf(id)).includes(words));

/** Writes a line now and then, whatever its signals, until it is told to end; then exits with 6. */
const talk = 'trap "echo bye; exit 6" TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done';

for (const tty of [false, true]) {
  test(`${tty ? 'a terminal' : 'pipes'} and standard input over a restart`, { skip }, async (t) => {
    const machine = await makeMachine(t);
    const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
    const id = await machine.startContainer(sandbox, ['sh', '-c', talk], { tty, stdin: true });
    await says(machine, id, 'line 3');
    const { pid } = await machine.runtime.containerStatus(id);
    const bundle = join(machine.runDir, 'containers', id);
    const attach = lstatSync(join(bundle, 'attach'));
    assert.ok(attach.isSocket());
    await machine.restart();
    const status = await machine.runtime.containerStatus(id);
    assert.deepEqual([status.state, status.pid], ['running', pid]);
    assert.equal(lstatSync(join(bundle, 'attach')).ino, attach.ino, 'the socket is the one it was');
    // The log goes on, also in a new file.
    await rename(status.logPath, `${status.logPath}.1`);
    await machine.runtime.reopenContainerLog(id);
    const at = /line (\d+)\r?$/m.exec(await readFile(`${status.logPath}.1`, 'utf8'))?.[1];
    assert.ok(at !== undefined);
    await until(async () => /line \d+/.test(await machine.logOf(id)));
    await machine.runtime.stopContainer(id, 20_000);
    const ended = await machine.runtime.containerStatus(id);
    assert.deepEqual([ended.exitCode, ended.reason], [6, 'Error']);
    const text = (await readFile(`${status.logPath}.1`, 'utf8')) + (await machine.logOf(id));
    const numbers = [...text.matchAll(/line (\d+)\r?$/gm)].map(([, number]) => Number(number));
    assert.deepEqual(
      numbers,
      numbers.map((_, index) => index + 1),
      'no line is lost or doubled',
    );
    assert.match(text, /bye\r?$/m);
    await machine.runtime.removePodSandbox(sandbox);
    assert.deepEqual(await machine.leftovers(), []);
  });

  test(`a killed monitor of a container with ${tty ? 'a terminal' : 'pipes'}`, { skip }, async (t) => {
    const machine = await makeMachine(t);
    const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
    const id = await machine.startContainer(sandbox, ['sh', '-c', `trap "" HUP PIPE; ${talk}`], {
      tty,
      stdin: true,
    });
    await says(machine, id, 'line 2');
    process.kill(readPidFile(join(machine.runDir, 'containers', id, 'conmon.pid'))!, 'SIGKILL');
    await until(async () => (await machine.runtime.containerStatus(id)).state === 'exited');
    const { reason, message, exitCode } = await machine.runtime.containerStatus(id);
    assert.equal(reason, 'ContainerStatusUnknown');
    assert.match(message, /monitor/);
    assert.ok(exitCode === 137 || exitCode === 255, String(exitCode));
    await machine.runtime.removePodSandbox(sandbox);
    assert.deepEqual(await machine.leftovers(), []);
  });
}

test('standard input: closed where none is wanted, open where nobody is attached yet', {
  skip,
}, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const start = (name: string, changes: object) =>
    machine.startContainer(sandbox, ['sh', '-c', 'echo begun; cat; echo over'], {
      metadata: { name, attempt: 0 },
      ...changes,
    });
  const none = await start('none', {});
  assert.equal((await machine.exited(none)).exitCode, 0);
  assert.match(await machine.logOf(none), /over/);
  for (const changes of [{ stdin: true }, { stdin: true, stdinOnce: true }, { stdin: true, tty: true }]) {
    const open = await start(JSON.stringify(changes).replace(/\W/g, ''), changes);
    await says(machine, open, 'begun');
    const reader = await machine.runtime.execSync(open, ['ps'], 0);
    assert.match(reader.stdout.toString(), / cat$/m, 'it waits');
    assert.equal((await machine.runtime.containerStatus(open)).state, 'running');
    await machine.runtime.removeContainer(open);
  }
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});
