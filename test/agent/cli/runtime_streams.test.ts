/** exec, attach and port-forward from the command line, on real containers and pseudo-terminals. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFile, readlink } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import { splitCommand } from '../../../agent/cli/containers/exec.ts';
import { readPorts } from '../../../agent/cli/containers/port_forward.ts';
import { makeDetach } from '../../../agent/cli/streams/detach.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { exitCodeOf } from '../../../runtime/streaming/client/status.ts';
import { cannotRun } from '../../runtime/machine.ts';
import { ended, lastLine, said, stage } from './runtime_stage.ts';

const sleeper = ['sleep', '1000'];

test('exec: output, exit code, standard input and its end', { skip: cannotRun }, async (t) => {
  const { machine, run, start } = await stage(t);
  const pod = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(pod, sleeper);
  const both = await run('exec', 'main', 'sh', '-c', 'echo out; echo err >&2; exit 7');
  assert.deepEqual([both.code, both.stdout, both.stderr], [7, 'out\n', 'err\n']);
  const own = await run('exec', id.slice(0, 8), '--', 'echo', '-i', '--help', '--');
  assert.deepEqual([own.code, own.stdout], [0, '-i --help --\n'], own.stderr);
  const missing = await run('exec', 'main', 'no-such-program');
  assert.equal(missing.code, 125);
  assert.match(lastLine(missing.stderr), /^keelson: .*no-such-program/);
  assert.equal((await run('exec', 'nobody', 'true')).code, 125);
  assert.equal((await run('exec', 'main')).code, 2);

  const counts = start('exec', '-i', 'main', 'sh', '-c', 'wc -c; exit 3');
  const counted = ended(counts);
  const big = Buffer.alloc(3 << 20, 'x');
  counts.stdin!.end(big);
  const { code, stdout, stderr } = await counted;
  assert.deepEqual([code, stdout.trim(), stderr], [3, String(big.length), '']);

  const much = await run('exec', 'main', 'sh', '-c', 'yes | head -c 3000000');
  assert.deepEqual([much.code, much.stdout.length], [0, 3_000_000], much.stderr);

  // Nobody writes, but somebody could: the end of the command is the end.
  const early = await ended(start('exec', '-i', 'main', 'true'));
  assert.deepEqual([early.code, early.stderr], [0, '']);

  await machine.runtime.stopContainer(id, 0);
  const over = await run('exec', id, 'true');
  assert.equal(over.code, 125);
  assert.match(over.stderr, /is exited, not running/);
});

test('exec: a terminal with its size, its keys and its exit code', { skip: cannotRun }, async (t) => {
  const { machine, onTerminal } = await stage(t);
  const pod = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  await machine.startContainer(pod, sleeper);
  const script = `trap "stty size" WINCH; trap "echo got-it; exit 9" INT
    stty size; while :; do sleep 0.05; done`;
  const shell = onTerminal('exec', '-it', 'main', 'sh', '-c', script);
  const end = ended(shell);
  await said(shell, /30 100\r\n/);
  const resized = said(shell, /40 90\r\n/);
  // The terminal of the command: that of the only child of script.
  const [child] = (await readFile(`/proc/${shell.pid}/task/${shell.pid}/children`, 'utf8')).trim().split(' ');
  const terminal = await readlink(`/proc/${child}/fd/0`);
  execFileSync('stty', ['-F', terminal, 'cols', '90', 'rows', '40']);
  await resized;
  shell.stdin!.write('\x03');
  const { code, stdout } = await end;
  assert.equal(code, 9, stdout);
  assert.match(stdout, /got-it\r\n$/);
});

test('attach: what it writes, what is typed, and leaving it', { skip: cannotRun }, async (t) => {
  const { machine, start, onTerminal } = await stage(t);
  const { runtime } = machine;
  const pod = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  const echo = 'while read -r line; do echo "<$line>"; done; echo end';
  await machine.startContainer(pod, ['sh', '-c', echo], {
    metadata: { name: 'pipe', attempt: 0 },
    stdin: true,
    stdinOnce: true,
  });
  const piped = start('attach', 'pod/pipe');
  const end = ended(piped);
  piped.stdin!.end('one\ntwo\n');
  const { code, stdout, stderr } = await end;
  assert.deepEqual([code, stdout, stderr], [0, '<one>\n<two>\nend\n', '']);

  const id = await machine.startContainer(pod, ['sh', '-c', echo], {
    metadata: { name: 'tty', attempt: 0 },
    stdin: true,
    tty: true,
  });
  const typed = onTerminal('attach', 'pod/tty');
  const left = ended(typed);
  typed.stdin!.write('hello\r');
  await said(typed, /<hello>/);
  typed.stdin!.write('\x10\x11');
  assert.equal((await left).code, 0);
  assert.equal((await runtime.containerStatus(id)).state, 'running');
});

test('port-forward: a web server, both half-closes, a port where nobody is', {
  skip: cannotRun,
}, async (t) => {
  const { machine, start, run } = await stage(t);
  const { runtime } = machine;
  const pod = await runtime.runPodSandbox(
    machine.sandboxConfig({
      linux: { security: { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } },
    } as never),
    '',
  );
  const security = { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } as const;
  const script = `mkdir /www; echo hello >/www/index.html; httpd -p 80 -h /www; exec nc -ll -p 81 -e wc -c`;
  const id = await machine.startContainer(pod, ['sh', '-c', script], { linux: { security } });
  // Until both listen: 0050 and 0051 in hexadecimal.
  const listens = 'until grep -q :0050 /proc/net/tcp* && grep -q :0051 /proc/net/tcp*; do sleep 0.05; done';
  assert.equal((await runtime.execSync(id, ['sh', '-c', listens], 20_000)).exitCode, 0);
  const forward = start('port-forward', '--json', 'default/pod', ':80', '0:81', ':82');
  const all = ended(forward);
  const [, web, count, nobody] = await said(forward, /local":(\d+).*\n.*local":(\d+).*\n.*local":(\d+).*\n/);
  for (let round = 0; round < 3; round++) {
    const answer = await fetch(`http://127.0.0.1:${web}/`, { headers: { connection: 'close' } });
    assert.equal(await answer.text(), 'hello\n');
  }
  // It counts until the end of what is sent, and answers then.
  const counted = createConnection(Number(count), '127.0.0.1');
  counted.end(Buffer.alloc(200_000, 'x'));
  assert.equal((await text(counted)).trim(), '200000');
  const refused = createConnection(Number(nobody), '127.0.0.1');
  refused.on('error', () => {});
  await new Promise((closed) => refused.resume().on('close', closed));
  forward.kill('SIGINT');
  const { signal, stderr } = await all;
  assert.equal(signal, 'SIGINT');
  assert.match(stderr, /port 82/);
  assert.equal((await run('port-forward', 'nobody', '80')).code, 1);
});

test('what follows the container is the command, whatever it looks like', () => {
  for (const [args, own, rest] of [
    [['c', 'ls', '-l'], [], ['c', 'ls', '-l']],
    [
      ['-it', '--config', 'f', 'c', '-x'],
      ['-it', '--config', 'f'],
      ['c', '-x'],
    ],
    [['-i', '--', '-c', 'x'], ['-i'], ['-c', 'x']],
    [['--config'], ['--config'], []],
    [[], [], []],
  ] as const) {
    assert.deepEqual(splitCommand(args), { own, rest });
  }
});

test('ports are a port or two', () => {
  assert.deepEqual(readPorts('80'), { local: 80, remote: 80 });
  assert.deepEqual(readPorts('8080:80'), { local: 8080, remote: 80 });
  assert.deepEqual(readPorts(':80'), { local: 0, remote: 80 });
  for (const wrong of ['', '0', '80:', '70000', 'a', '1:2:3', '-1', '80:0', '70000:1']) {
    assert.throws(
      () => readPorts(wrong),
      (error) => isError(error, 'INVALID_ARGUMENT'),
    );
  }
});

test('the status tells the exit code', () => {
  const failed = (cause: object) =>
    JSON.stringify({ status: 'Failure', message: 'm', details: { causes: [cause] } });
  assert.equal(exitCodeOf('{"status":"Success"}'), 0);
  assert.equal(exitCodeOf(failed({ reason: 'ExitCode', message: '137' })), 137);
  assert.throws(
    () => exitCodeOf(failed({ reason: 'ExitCode', message: 'x' })),
    (error) => isError(error, 'EXEC_FAILED'),
  );
  for (const lost of ['', 'null', '[]', '{', '{}']) {
    assert.throws(
      () => exitCodeOf(lost),
      (error) => isError(error, 'UNAVAILABLE'),
    );
  }
});

test('two keys leave, each alone does not', async () => {
  for (const [typed, passed, leaves] of [
    [['abc'], 'abc', false],
    [['a\x10', '\x11b'], 'a', true],
    [['a\x10b\x11'], 'a\x10b\x11', false],
    [['\x10\x10\x11'], '\x10', true],
  ] as const) {
    let left = false;
    const filter = makeDetach(() => {
      left = true;
    });
    for (const keys of typed) filter.write(Buffer.from(keys));
    filter.end();
    assert.deepEqual([await text(filter), left], [passed, leaves]);
  }
});
