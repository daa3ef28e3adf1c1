/** Checkpoints: what goes into the archive, what CRIU says where it cannot, and that the container goes on. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { NamespaceOption } from '../../runtime/api.ts';
import { rootfsChanges } from '../../runtime/checkpoint/rootfs_diff.ts';
import { findProgram } from '../../runtime/context.ts';
import { describe, isError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';
import { mount, unmount } from '../../runtime/host/syscalls.ts';
import { type ContainerChanges, cannotRun, type Machine, makeMachine } from './machine.ts';

const deadlineMs = 10_000;
const criu = findProgram('criu');

/** A runtime that is runc, but for `checkpoint`: it is given as a shell function of the image and the work folder. */
async function checkpointer(machine: Machine, body: string): Promise<void> {
  const script = `#!/bin/sh
echo "$*" >> ${machine.root}/calls
case " $* " in *" checkpoint "*) ;; *) exec runc "$@" ;; esac
for arg; do case $arg in --image-path=*) images=\${arg#*=} ;; --work-path=*) work=\${arg#*=} ;; esac; done
${body}
`;
  await writeFile(join(machine.root, 'other-runtime'), script, { mode: 0o755 });
}

/** Only that it is there counts for a runtime that does not call it. */
async function pretendCriu(t: TestContext, machine: Machine): Promise<void> {
  const before = process.env['PATH'];
  t.after(() => {
    process.env['PATH'] = before;
  });
  const folder = join(machine.root, 'bin');
  await mkdir(folder);
  await writeFile(join(folder, 'criu'), '#!/bin/sh\nexit 1\n', { mode: 0o755 });
  process.env['PATH'] = `${folder}:${before}`;
}

async function listArchive(path: string): Promise<string[]> {
  const { stdout } = await exec('tar', ['--list', `--file=${path}`], { deadlineMs });
  return stdout.toString().trim().split('\n');
}

async function fromArchive(path: string, name: string): Promise<Buffer> {
  return (await exec('tar', ['--extract', '--to-stdout', `--file=${path}`, name], { deadlineMs })).stdout;
}

const script = [
  'echo new > /tmp/made; echo other > /etc/passwd; rm /etc/group; rm -r /tmp/old; mkdir /tmp/old; echo x > /tmp/old/in',
  'echo ready; i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done',
].join('\n');

async function talking(machine: Machine, handler: string) {
  await mkdir(join(machine.layer, 'tmp/old'), { recursive: true });
  await writeFile(join(machine.layer, 'tmp/old/gone'), '');
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), handler);
  const id = await machine.startContainer(sandbox, ['sh', '-c', script], {
    envs: [{ key: 'SECRET', value: 'abc' }],
  });
  while (!(await machine.logOf(id)).includes('ready')) await new Promise((go) => setTimeout(go, 5));
  return { sandbox, id };
}

/** The container's counter moves: it is not paused. */
async function counts(machine: Machine, id: string): Promise<void> {
  const file = join(machine.stateDir, 'containers', id, 'upper/tmp/count');
  const before = await readFile(file, 'utf8');
  const end = Date.now() + 10_000;
  while ((await readFile(file, 'utf8')) === before) {
    assert.ok(Date.now() < end, 'the container goes on');
    await new Promise((go) => setTimeout(go, 5));
  }
}

test('the archive: CRIU\u2019s images, configuration, changed and deleted files', {
  skip: cannotRun || (criu === undefined && 'needs criu'),
}, async (t) => {
  const machine = await makeMachine(t);
  // In the middle of it the container must stand still: the count is taken twice.
  await checkpointer(
    machine,
    `count=$(echo ${machine.stateDir}/containers/*/upper/tmp/count)
cat $count > $images/first; sleep 0.1; cat $count > $images/second
echo log > $work/dump.log; echo stats > $work/stats-dump; echo junk > $work/criu.work`,
  );
  const { sandbox, id } = await talking(machine, 'other');
  const folder = join(machine.root, 'checkpoints');
  const location = join(folder, 'checkpoint-pod_ns-main-2026-01-01T00:00:00Z.tar');
  await machine.runtime.checkpointContainer(id, location, 0);
  await counts(machine, id);
  const call = (await readFile(join(machine.root, 'calls'), 'utf8')).split('\n');
  assert.match(call.find((line) => line.includes(' checkpoint ')) ?? '', /--leave-running [0-9a-f]{64}$/);
  assert.equal((await stat(location)).mode & 0o777, 0o600, 'it holds secrets');
  assert.deepEqual(await readdir(folder), ['checkpoint-pod_ns-main-2026-01-01T00:00:00Z.tar']);
  assert.deepEqual((await listArchive(location)).sort(), [
    ...['checkpoint/', 'checkpoint/first', 'checkpoint/second', 'config.dump', 'deleted.files', 'dump.log'],
    ...['rootfs-diff.tar', 'spec.dump', 'stats-dump', 'status.dump'],
  ]);
  const read = async (name: string) => (await fromArchive(location, name)).toString();
  assert.equal(await read('checkpoint/first'), await read('checkpoint/second'), 'it was paused');
  const config = JSON.parse(await read('config.dump'));
  assert.equal(config.id, id);
  assert.match(config.name, /^k8s_main_pod_default_uid-.*_0$/);
  assert.deepEqual([config.runtime, config.restored], ['other', false]);
  assert.ok(Date.parse(config.createdTime) <= Date.parse(config.checkpointedTime));
  const spec = JSON.parse(await read('spec.dump'));
  assert.equal(spec.annotations['io.kubernetes.cri.container-name'], 'main');
  assert.ok(spec.process.env.includes('SECRET=abc'));
  assert.ok(JSON.parse(await read('status.dump')).Pid > 0);
  assert.deepEqual(JSON.parse(await read('deleted.files')).sort(), ['etc/group', 'tmp/old/gone']);
  await writeFile(join(machine.root, 'diff.tar'), await fromArchive(location, 'rootfs-diff.tar'));
  const diff = join(machine.root, 'diff.tar');
  const names = await listArchive(diff);
  for (const name of ['tmp/made', 'etc/passwd', 'tmp/old/in']) assert.ok(names.includes(name), name);
  assert.ok(!names.some((name) => /group|gone/.test(name)), 'deleted ones are only named');
  assert.equal((await fromArchive(diff, 'etc/passwd')).toString(), 'other\n');
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('what CRIU says against it is told; a wrong request gets its code; nothing is left of either', {
  skip: cannotRun,
}, async (t) => {
  const machine = await makeMachine(t);
  await pretendCriu(t, machine);
  await checkpointer(
    machine,
    `echo "(00.1) Error (criu/vdso.c:381): vdso: no such thing" > $work/dump.log
echo 'time="x" level=error msg="criu failed: type NOTIFY errno 0"' >&2; exit 1`,
  );
  const { sandbox, id } = await talking(machine, 'other');
  const location = join(machine.root, 'x.tar');
  const fails = (code: string, words: RegExp, work: Promise<void>) =>
    assert.rejects(work, (error) => {
      assert.ok(isError(error), describe(error));
      assert.equal(error.code, code);
      assert.match(describe(error), words);
      return true;
    });
  const { runtime } = machine;
  await fails(
    'FAILED_PRECONDITION',
    /vdso: no such thing.*criu check/,
    runtime.checkpointContainer(id, location, 0),
  );
  await counts(machine, id);
  await checkpointer(machine, 'sleep 1000');
  await fails(
    'DEADLINE_EXCEEDED',
    /checkpoint|other-runtime/,
    runtime.checkpointContainer(id, location, 100),
  );
  await counts(machine, id);
  for (const wrong of ['', 'x.tar', `${machine.root}/`, '/a\0b']) {
    await fails('INVALID_ARGUMENT', /absolute/, runtime.checkpointContainer(id, wrong, 0));
  }
  await fails('NOT_FOUND', /no container/, runtime.checkpointContainer('nosuch', location, 0));
  assert.deepEqual(
    (await readdir(join(machine.stateDir, 'containers', id))).filter((name) => name.startsWith('checkpoint')),
    [],
  );
  assert.ok(!existsSync(location));
  await runtime.stopContainer(id, 0);
  await fails('FAILED_PRECONDITION', /exited, not running/, runtime.checkpointContainer(id, location, 0));
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('an agent that was killed at a checkpoint leaves no container standing still', {
  skip: cannotRun,
}, async (t) => {
  const machine = await makeMachine(t);
  const { sandbox, id } = await talking(machine, '');
  const left = join(machine.stateDir, 'containers', id, 'checkpoint-abc');
  await mkdir(join(left, 'checkpoint'), { recursive: true });
  await exec('runc', [`--root=${machine.runDir}/oci/runc`, 'pause', id], { deadlineMs });
  await machine.restart();
  await counts(machine, id);
  assert.ok(!existsSync(left));
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

const pod = { network: 'pod', pid: 'container', ipc: 'pod' } as const;
const kinds: Readonly<Record<string, [NamespaceOption, ContainerChanges]>> = {
  "the host's network": [{ ...pod, network: 'node' }, {}],
  'a network of its own': [pod, { linux: { security: { namespaces: pod } } }],
  // Of other users' processes CRIU reads the limits only with CAP_SYS_RESOURCE.
  'a seccomp filter': [
    pod,
    { linux: { security: { namespaces: pod, seccomp: { type: 'RuntimeDefault' } } } },
  ],
  'input that stays open': [pod, { stdin: true, linux: { security: { namespaces: pod } } }],
};
for (const [what, [namespaces, changes]] of Object.entries(kinds)) {
  test(`by CRIU itself, where it can: ${what}`, {
    skip: cannotRun || (criu === undefined && 'needs criu'),
  }, async (t) => {
    const machine = await makeMachine(t);
    const config = machine.sandboxConfig({ linux: { security: { namespaces } } });
    const sandbox = await machine.runtime.runPodSandbox(config, '');
    const id = await machine.startContainer(sandbox, ['sleep', '1000'], changes);
    const location = join(machine.root, 'real.tar');
    const able = (await exec('criu', ['check'], { deadlineMs, okCodes: 'any' })).code === 0;
    const work = machine.runtime.checkpointContainer(id, location, 0);
    if (able) {
      await work;
      const names = await listArchive(location);
      assert.ok(
        names.some((name) => /^checkpoint\/core-\d+\.img$/.test(name)),
        names.join(' '),
      );
    } else {
      await assert.rejects(
        work,
        (error) => isError(error, 'FAILED_PRECONDITION') && /criu check/.test(error.hint ?? ''),
      );
    }
    assert.equal((await machine.runtime.containerStatus(id)).state, 'running');
    const { exitCode } = await machine.runtime.execSync(id, ['true'], 10_000);
    assert.equal(exitCode, 0, 'it is not paused');
    await machine.runtime.removePodSandbox(sandbox);
    assert.deepEqual(await machine.leftovers(), []);
  });
}

test('changes of an overlay: whiteouts, opaque folders and what is new below them', {
  skip: process.getuid?.() !== 0 && 'needs root',
}, async (t) => {
  const machine = await makeMachine(t);
  const at = (...names: string[]) => join(machine.root, 'overlay', ...names);
  for (const path of ['low1/a/b/c', 'low1/keep', 'low2/a/d', 'up', 'work', 'all']) {
    await mkdir(at(path), { recursive: true });
  }
  for (const path of ['low1/a/1', 'low1/a/b/2', 'low2/a/d/3', 'low2/4', 'low1/keep/5']) {
    await writeFile(at(path), path);
  }
  const options = `lowerdir=${at('low1')}:${at('low2')},upperdir=${at('up')},workdir=${at('work')}`;
  mount('overlay', at('all'), 'overlay', 0, options);
  t.after(() => unmount(at('all')));
  const sh = `cd ${at('all')}; rm 4; rm -r a; mkdir a; mkdir a/b; echo new > a/b/n; echo x > keep/6`;
  await exec('sh', ['-c', sh], { deadlineMs });
  const { changed, deleted } = await rootfsChanges(at('up'), [at('low1'), at('low2')]);
  assert.deepEqual([...changed].sort(), ['a', 'a/b', 'a/b/n', 'keep', 'keep/6']);
  assert.deepEqual([...deleted].sort(), ['4', 'a/1', 'a/b/2', 'a/b/c', 'a/d']);
});
