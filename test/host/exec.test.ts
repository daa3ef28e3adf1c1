import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdtemp, open, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { isError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';

const deadlineMs = 20_000;

async function folder(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  t.after(() => rm(path, { recursive: true, force: true }));
  return path;
}

/** True while `pid` runs; a zombie does not. */
function runs(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/s.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return false;
  }
}

async function until(condition: () => boolean): Promise<void> {
  for (let tries = 0; !condition(); tries++) {
    assert.ok(tries < 1000, 'it never happened');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test('output, errors, input, environment, folder', async (t) => {
  const cwd = await folder(t);
  const result = await exec('sh', ['-c', 'cat; echo "$A $HOME"; pwd; echo err >&2'], {
    input: 'in\n',
    env: { PATH: process.env['PATH'] ?? '', A: 'b' },
    cwd,
    deadlineMs,
  });
  assert.equal(result.stdout.toString(), `in\nb \n${cwd}\n`);
  assert.equal(result.stderr, 'err\n');
  assert.equal(result.code, 0);
});

test('without input, standard input is empty; without env, only PATH is set', async () => {
  const { stdout } = await exec('sh', ['-c', 'cat; env'], { deadlineMs });
  const names = stdout
    .toString()
    .split('\n')
    .map((line) => line.split('=')[0])
    .filter((name) => !['', 'PWD', 'SHLVL', '_', 'OLDPWD'].includes(name ?? ''));
  assert.deepEqual(names, ['PATH']);
});

test('exit codes: an error with what was said, unless allowed', async () => {
  await assert.rejects(exec('sh', ['-c', 'echo why >&2; exit 3'], { deadlineMs }), (error) => {
    assert.ok(isError(error, 'EXEC_FAILED'));
    assert.match(error.message, /exit code 3: why/);
    assert.equal(error.details['code'], 3);
    assert.equal(error.details['stderr'], 'why\n');
    return true;
  });
  assert.equal((await exec('sh', ['-c', 'exit 3'], { deadlineMs, okCodes: [3] })).code, 3);
  assert.equal((await exec('sh', ['-c', 'exit 4'], { deadlineMs, okCodes: 'any' })).code, 4);
  assert.equal((await exec('sh', ['-c', 'kill -9 $$'], { deadlineMs, okCodes: 'any' })).code, 137);
  await assert.rejects(exec('sh', ['-c', 'kill -TERM $$'], { deadlineMs }), /SIGTERM/);
});

test('a program that is not there, or is none', async (t) => {
  await assert.rejects(exec('/no/such/program', [], { deadlineMs }), (error) =>
    isError(error, 'EXEC_NOT_FOUND'),
  );
  await assert.rejects(exec('keelson-no-such', [], { deadlineMs }), (error) =>
    isError(error, 'EXEC_NOT_FOUND'),
  );
  await assert.rejects(exec(await folder(t), [], { deadlineMs }), (error) => isError(error, 'EXEC_FAILED'));
  await assert.rejects(exec('true', [], { deadlineMs, cwd: '/no/such/folder' }), (error) => {
    assert.ok(isError(error, 'EXEC_FAILED'), 'the program is there');
    assert.match(error.message, /\/no\/such\/folder/);
    return true;
  });
});

test('an argument with a NUL byte is refused, not cut', async () => {
  await assert.rejects(exec('echo', ['a\0b'], { deadlineMs }), (error) => isError(error, 'INVALID_ARGUMENT'));
});

test('too much output is an error, or is cut', async () => {
  const script = ['-c', 'head -c 100000 /dev/zero'];
  await assert.rejects(exec('sh', script, { deadlineMs, maxOutput: 1000 }), (error) =>
    isError(error, 'EXEC_OUTPUT_TOO_LARGE'),
  );
  const cut = await exec('sh', script, { deadlineMs, maxOutput: 1000, onOverflow: 'discard' });
  assert.equal(cut.stdout.length, 1000);
  assert.equal((await exec('sh', script, { deadlineMs })).stdout.length, 100_000);
});

test('the deadline: TERM, then KILL, and the children too', async (t) => {
  const path = join(await folder(t), 'pid');
  const script = `trap "" TERM; sleep 1000 & echo $! > ${path}; wait; wait`;
  await assert.rejects(exec('sh', ['-c', script], { deadlineMs: 300, killAfterMs: 50 }), (error) =>
    isError(error, 'DEADLINE_EXCEEDED'),
  );
  const child = Number(await readFile(path, 'utf8'));
  await until(() => !runs(child));
  const polite = await exec('sh', ['-c', 'trap "exit 0" TERM; sleep 1000 & wait'], {
    deadlineMs: 200,
    okCodes: 'any',
  }).catch((error: unknown) => error);
  assert.ok(isError(polite, 'DEADLINE_EXCEEDED'));
});

test('aborting before and during; a reason of ours is kept', async () => {
  const before = AbortSignal.abort();
  await assert.rejects(exec('true', [], { deadlineMs, signal: before }), (error) =>
    isError(error, 'ABORTED'),
  );
  const during = new AbortController();
  const running = exec('sleep', ['1000'], { deadlineMs, killAfterMs: 0, signal: during.signal });
  setTimeout(() => during.abort(), 20);
  await assert.rejects(running, (error) => isError(error, 'ABORTED'));
  await assert.rejects(exec('sleep', ['1000'], { deadlineMs, signal: AbortSignal.timeout(30) }), (error) =>
    isError(error, 'DEADLINE_EXCEEDED'),
  );
});

test('a grandchild that keeps the pipes open does not keep the caller', async (t) => {
  const path = join(await folder(t), 'pid');
  const script = `setsid sleep 1000 & echo $! > ${path}; sleep 1000`;
  await assert.rejects(exec('sh', ['-c', script], { deadlineMs: 200, killAfterMs: 50 }), (error) =>
    isError(error, 'DEADLINE_EXCEEDED'),
  );
  process.kill(Number(await readFile(path, 'utf8')), 'SIGKILL');
});

test('an answer by descriptor 3', async (t) => {
  const path = join(await folder(t), 'answer');
  const answer = await open(path, 'w');
  await exec('sh', ['-c', 'echo hello >&3'], { deadlineMs, answerTo: answer.fd });
  await answer.close();
  assert.equal(await readFile(path, 'utf8'), 'hello\n');
});

test('input that is not read is no error', async () => {
  assert.equal((await exec('true', [], { deadlineMs, input: 'x'.repeat(1 << 20) })).code, 0);
});

test('a program starts with no signal ignored or blocked, and with no file of ours', async (t) => {
  const status = (await exec('cat', ['/proc/self/status'], { deadlineMs })).stdout.toString();
  assert.match(status, /^SigBlk:\s+0+$/m);
  assert.match(status, /^SigIgn:\s+0+$/m); // Node itself ignores SIGPIPE.
  const own = await open(join(await folder(t), 'own'), 'w');
  t.after(() => own.close());
  const { stdout } = await exec('ls', ['-l', '/proc/self/fd'], { deadlineMs });
  assert.doesNotMatch(stdout.toString(), /own|socket|eventpoll/);
});

test('many at once all end, and leave no descriptor and no zombie', async () => {
  const descriptors = async () => (await readdir('/proc/self/fd')).length;
  await exec('true', [], { deadlineMs });
  const before = await descriptors();
  const codes = await Promise.all(
    Array.from({ length: 60 }, (_, i) =>
      exec('sh', ['-c', `echo ${i}; exit ${i}`], { deadlineMs, okCodes: 'any' }),
    ),
  );
  codes.forEach(({ code, stdout }, i) => {
    assert.deepEqual([code, stdout.toString()], [i, `${i}\n`]);
  });
  assert.equal(await descriptors(), before);
  const { stdout } = await exec('ps', ['--ppid', String(process.pid), '-o', 'stat='], {
    deadlineMs,
    okCodes: 'any',
  });
  assert.doesNotMatch(stdout.toString(), /^Z/m);
});
