/** The life of containers under real runc and conmon. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { rename, stat, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ContainerEvent } from '../../runtime/api.ts';
import { isError } from '../../runtime/host/errors.ts';
import { cannotRun, makeMachine } from './machine.ts';

const skip = cannotRun;

/** The lines of a log in CRI format, put together again: tag P says that the line goes on in the next entry. */
function messages(log: string): string[] {
  const lines: string[] = [];
  let begun = '';
  for (const entry of log.split('\n').slice(0, -1)) {
    const [, , tag, ...words] = entry.split(' ');
    begun += words.join(' ');
    if (tag === 'P') continue;
    lines.push(begun);
    begun = '';
  }
  return lines;
}

test('exit codes, reasons, times, logs and events of containers that end by themselves', {
  skip,
}, async (t) => {
  const machine = await makeMachine(t);
  const events: ContainerEvent[] = [];
  machine.runtime.containerEvents((event) => events.push(event));
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const cases = [
    { name: 'zero', command: ['sh', '-c', 'echo out; echo err >&2'], code: 0, reason: 'Completed' },
    { name: 'three', command: ['sh', '-c', 'exit 3'], code: 3, reason: 'Error' },
    { name: 'killed', command: ['sh', '-c', 'kill -9 $$; sleep 100'], code: 137, reason: 'Error' },
  ];
  for (const { name, command, code, reason } of cases) {
    const own =
      name === 'killed' ? { security: { namespaces: { network: 'node', pid: 'node', ipc: 'pod' } } } : {};
    const id = await machine.startContainer(sandbox, command, {
      metadata: { name, attempt: 0 },
      linux: own as object,
    });
    const status = await machine.exited(id);
    assert.equal(status.exitCode, code, name);
    assert.equal(status.reason, reason, name);
    assert.ok(status.createdAt <= status.startedAt && status.startedAt <= status.finishedAt, name);
    assert.ok(Math.abs(Date.now() - status.finishedAt) < 60_000);
    assert.equal(status.pid, 0);
    assert.deepEqual(
      events.filter((event) => event.containerId === id).map((event) => event.type),
      ['created', 'started', 'stopped'],
    );
    if (name === 'zero') {
      const log = await machine.logOf(id);
      assert.match(log, /^\d{4}-\d\d-\d\dT[\d:.]+\+00:00 stdout F out$/m);
      assert.match(log, /^\S+ stderr F err$/m);
      assert.equal((await stat(status.logPath)).mode & 0o777, 0o640);
    }
  }
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
  assert.equal([...machine.leases.values()].flatMap((holders) => [...holders]).length, 0);
});

test('a log is complete, also the lines written just before the end', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['seq', '1', '20000']);
  await machine.exited(id);
  assert.deepEqual(
    messages(await machine.logOf(id)),
    Array.from({ length: 20_000 }, (_, index) => String(index + 1)),
  );
});

test('what the process sees: args, environment, user, capabilities, files, names', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const shared = join(machine.root, 'shared');
  await writeFile(shared, 'from the host\n');
  const sandbox = await machine.runtime.runPodSandbox(
    machine.sandboxConfig({
      hostname: 'web-0',
      linux: {
        security: { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } },
        sysctls: { 'net.ipv4.tcp_syncookies': '0', 'kernel.shm_rmid_forced': '1' },
      },
    }),
    '',
  );
  const script = [
    'echo "args $0 $1"',
    'echo "env $GREETING $FROM_IMAGE $HOSTNAME"',
    'echo "user $(id -u) $(id -g) $(id -G)"',
    'echo "cwd $(pwd)"',
    'echo "name $(hostname) $(cat /etc/hostname)"',
    'echo "resolv $(cat /etc/resolv.conf | tr "\\n" ";")"',
    'echo "caps $(grep -E "^Cap(Eff|Bnd)" /proc/self/status | tr "\\n\\t" "  ")"',
    'echo "nnp $(grep NoNewPrivs /proc/self/status | tr "\\t" " ")"',
    'touch /x 2>/dev/null && echo "root writable" || echo "root readonly"',
    'touch /tmp/in && echo "mount writable"',
    'cat /shared',
    'echo x 2>/dev/null > /shared || echo "shared readonly"',
    'echo "pids $(ls /proc | grep -c "^[0-9]")"',
    'echo "low ports $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)"',
    'echo "sysctls $(cat /proc/sys/net/ipv4/tcp_syncookies) $(cat /proc/sys/kernel/shm_rmid_forced)"',
    'echo "shm $(stat -f -c %T /dev/shm) $(stat -c %a /dev/shm)"',
    'echo "links $(ip -o link | grep -c .) $(ip -o -4 addr show eth0 | tr -s " " | head -c 20)"',
    'ls /proc/kcore >/dev/null && head -c 1 /proc/kcore | grep -c . || echo "kcore masked"',
    'echo "oom $(cat /proc/self/oom_score_adj)"',
  ].join('\n');
  const id = await machine
    .startContainer(sandbox, ['sh', '-c', script], {
      args: ['zero', 'one'],
      envs: [
        { key: 'GREETING', value: 'hello there' },
        { key: 'FROM_IMAGE', value: 'overridden' },
      ],
      workingDir: '/tmp',
      mounts: [
        { containerPath: '/shared', hostPath: shared, readonly: true, propagation: 'private' },
        {
          containerPath: '/tmp',
          hostPath: join(machine.root, 'made'),
          readonly: false,
          propagation: 'private',
        },
      ],
      linux: {
        resources: { oomScoreAdj: 500 },
        security: {
          runAsUser: 1000,
          supplementalGroups: [2000],
          readonlyRootfs: true,
          noNewPrivs: true,
          capabilities: { add: ['NET_ADMIN'], drop: ['ALL'] },
        },
      },
    })
    .then(
      (id) => id,
      (error: unknown) => {
        throw error;
      },
    );
  // The folder that did not exist was made for root: give it to the user, then look again.
  const first = await machine.exited(id);
  assert.equal(first.reason, 'Completed');
  const lines = messages(await machine.logOf(id));
  const line = (prefix: string) => lines.find((text) => text.startsWith(prefix));
  assert.equal(line('args'), 'args zero one');
  assert.equal(line('env'), 'env hello there overridden web-0');
  assert.equal(line('user'), 'user 1000 1001 1001 44 2000');
  assert.deepEqual(first.user, { uid: 1000, gid: 1001, supplementalGroups: [1001, 44, 2000] });
  assert.equal(line('cwd'), 'cwd /tmp');
  assert.equal(line('name'), 'name web-0 web-0');
  assert.equal(line('resolv'), 'resolv search default.svc;nameserver 10.0.0.10;options ndots:5;');
  assert.equal(line('caps')?.trim(), 'caps CapEff: 0000000000000000 CapBnd: 0000000000001000');
  assert.equal(line('nnp'), 'nnp NoNewPrivs: 1');
  assert.equal(line('root'), 'root readonly');
  assert.equal(line('from'), 'from the host');
  assert.equal(line('shared'), 'shared readonly');
  assert.match(line('pids') ?? '', /^pids [1-5]$/);
  assert.equal(line('low ports'), 'low ports 0');
  assert.equal(line('sysctls'), 'sysctls 0 1');
  assert.equal(line('shm'), 'shm tmpfs 1777');
  assert.match(line('links') ?? '', /^links 2 2: eth0 inet 10\./);
  assert.ok(lines.includes('kcore masked') || lines.includes('0'), 'kcore');
  assert.equal(line('oom'), 'oom 500');
  const status = await machine.runtime.podSandboxStatus(sandbox);
  assert.match(status.ips[0] ?? '', /^10\./);
  assert.equal(status.state, 'ready');
  await machine.runtime.stopPodSandbox(sandbox);
  assert.equal((await machine.runtime.podSandboxStatus(sandbox)).state, 'notready');
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test("the host's namespaces are the host's", { skip }, async (t) => {
  const machine = await makeMachine(t);
  const before = readFileSync('/proc/sys/kernel/hostname', 'utf8');
  const sandbox = await machine.runtime.runPodSandbox(
    machine.sandboxConfig({
      hostname: '',
      linux: { security: { namespaces: { network: 'node', pid: 'node', ipc: 'node' } } },
    }),
    '',
  );
  const id = await machine.startContainer(
    sandbox,
    ['sh', '-c', 'hostname; cat /etc/hostname; ls -l /proc/self/ns; ls -d /proc/1; echo $$'],
    { linux: { security: { namespaces: { network: 'node', pid: 'node', ipc: 'node' } } } },
  );
  await machine.exited(id);
  const lines = messages(await machine.logOf(id));
  assert.deepEqual(lines.slice(0, 2), [hostname(), hostname()]);
  assert.deepEqual((await machine.runtime.podSandboxStatus(sandbox)).ips, []);
  assert.equal((await machine.runtime.podSandboxStatus(sandbox)).networkNamespace, undefined);
  for (const kind of ['net', 'ipc', 'uts', 'pid']) {
    const { ino } = await stat(`/proc/self/ns/${kind}`);
    assert.ok(
      lines.some((line) => line.endsWith(`${kind}:[${ino}]`)),
      kind,
    );
  }
  assert.equal(readFileSync('/proc/sys/kernel/hostname', 'utf8'), before);
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('a shared PID namespace has an init of its own, confined, and ends with the pod', {
  skip,
}, async (t) => {
  const machine = await makeMachine(t);
  const namespaces = { network: 'node', pid: 'pod', ipc: 'pod' } as const;
  const sandbox = await machine.runtime.runPodSandbox(
    machine.sandboxConfig({ linux: { security: { namespaces } } }),
    '',
  );
  const long = await machine.startContainer(sandbox, ['sleep', '1000'], {
    metadata: { name: 'long', attempt: 0 },
    linux: { security: { namespaces } },
  });
  const look = await machine.startContainer(
    sandbox,
    [
      'sh',
      '-c',
      'ps; grep -E "^(Uid|CapBnd|NoNewPrivs)" /proc/1/status; ls /proc/1/root/ 2>&1; sleep 1000 & exit 4',
    ],
    { metadata: { name: 'look', attempt: 0 }, linux: { security: { namespaces } } },
  );
  const status = await machine.exited(look);
  assert.equal(status.exitCode, 4);
  const text = messages(await machine.logOf(look)).join('\n');
  assert.match(text, /^\s*1 65535\s+\/catatonit -P$/m);
  assert.match(text, /sleep 1000/);
  assert.match(text, /^CapBnd:\s+0+$/m);
  assert.match(text, /^NoNewPrivs:\s+1$/m);
  assert.doesNotMatch(text, /^(home|usr|boot)$/m, 'the init must not see the root of the host');
  await machine.runtime.stopContainer(long, 0);
  assert.equal((await machine.exited(long)).exitCode, 137);
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('memory that runs out is told as OOMKilled', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sh', '-c', 'tail /dev/zero; exit $?'], {
    linux: { resources: { memoryLimitBytes: 16 << 20 } },
  });
  const status = await machine.exited(id);
  assert.equal(status.reason, 'OOMKilled');
  assert.equal(status.exitCode, 137);
});

test('stopping: the signal, the grace, then KILL; idempotent', { skip }, async (t) => {
  const machine = await makeMachine(t, { StopSignal: 'SIGUSR1' });
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const start = async (name: string, script: string, stopSignal?: string) => {
    const id = await machine.startContainer(
      sandbox,
      ['sh', '-c', `${script}; echo ready; while :; do sleep 0.1; done`],
      {
        metadata: { name, attempt: 0 },
        stopSignal,
      },
    );
    while (!(await machine.logOf(id)).includes('ready'))
      await new Promise((resolve) => setTimeout(resolve, 5));
    return id;
  };
  const polite = await start('polite', 'trap "exit 7" TERM', 'SIGTERM');
  await machine.runtime.stopContainer(polite, 20_000);
  assert.equal((await machine.runtime.containerStatus(polite)).exitCode, 7);
  const image = await start('image', 'trap "exit 8" USR1');
  await machine.runtime.stopContainer(image, 20_000);
  assert.equal((await machine.runtime.containerStatus(image)).exitCode, 8);
  const deaf = await start('deaf', 'trap "" TERM', '15');
  const before = performance.now();
  await machine.runtime.stopContainer(deaf, 300);
  assert.ok(performance.now() - before >= 299);
  assert.equal((await machine.runtime.containerStatus(deaf)).exitCode, 137);
  await machine.runtime.stopContainer(deaf, 0);
  await machine.runtime.stopContainer('no-such-id', 0);
  const aborted = await start('aborted', 'trap "" TERM', 'TERM');
  const abort = new AbortController();
  const stopping = machine.runtime.stopContainer(aborted, 60_000, abort.signal);
  abort.abort();
  await assert.rejects(stopping, (error) => isError(error, 'ABORTED'));
  await machine.runtime.removeContainer(aborted);
  await machine.runtime.removeContainer(aborted);
  await assert.rejects(machine.runtime.containerStatus(aborted), (error) => isError(error, 'NOT_FOUND'));
});

test('exec: output, exit code, environment, no such command, deadline kills inside', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000'], { envs: [{ key: 'A', value: 'b' }] });
  const result = await machine.runtime.execSync(id, ['sh', '-c', 'echo $A; echo oops >&2; exit 5'], 0);
  assert.equal(result.stdout.toString(), 'b\n');
  assert.equal(result.stderr.toString(), 'oops\n');
  assert.equal(result.exitCode, 5);
  const loud = await machine.runtime.execSync(id, ['head', '-c', String(20 << 20), '/dev/zero'], 0);
  assert.equal(loud.stdout.length, 16 << 20);
  await assert.rejects(machine.runtime.execSync(id, ['/no/such'], 1000), (error) => {
    assert.ok(isError(error, 'EXEC_FAILED'));
    assert.match(error.message, /no such file or directory|not found/);
    return true;
  });
  await assert.rejects(machine.runtime.execSync(id, ['sleep', '987'], 300), (error) =>
    isError(error, 'DEADLINE_EXCEEDED'),
  );
  const left = await machine.runtime.execSync(id, ['ps'], 0);
  assert.doesNotMatch(left.stdout.toString(), /sleep 987/);
  await machine.runtime.stopContainer(id, 0);
  await assert.rejects(machine.runtime.execSync(id, ['true'], 0), (error) =>
    isError(error, 'FAILED_PRECONDITION'),
  );
});

test('a rotated log is opened anew', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, [
    'sh',
    '-c',
    'i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done',
  ]);
  while (!(await machine.logOf(id)).includes('line 3'))
    await new Promise((resolve) => setTimeout(resolve, 5));
  const { logPath } = await machine.runtime.containerStatus(id);
  await rename(logPath, `${logPath}.1`);
  await machine.runtime.reopenContainerLog(id);
  assert.equal((await stat(logPath)).mode & 0o777, 0o640);
  const next = Number(/line (\d+)\n$/.exec(readFileSync(`${logPath}.1`, 'utf8'))?.[1]) + 1;
  while (!(await machine.logOf(id)).includes(`line ${next}\n`))
    await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(messages(await machine.logOf(id))[0], `line ${next}`);
  await machine.runtime.stopContainer(id, 0);
  await assert.rejects(machine.runtime.reopenContainerLog(id), (error) =>
    isError(error, 'FAILED_PRECONDITION'),
  );
});

test('a terminal', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sh', '-c', 'test -t 0 && echo tty $TERM'], {
    tty: true,
    stdin: true,
  });
  assert.equal((await machine.exited(id)).exitCode, 0);
  assert.match((await machine.logOf(id)).replaceAll('\r', ''), /stdout F tty xterm$/m);
});

test('a privileged container has what the host has', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(
    machine.sandboxConfig({
      linux: {
        security: { namespaces: { network: 'node', pid: 'container', ipc: 'pod' }, privileged: true },
      },
    }),
    '',
  );
  const id = await machine.startContainer(
    sandbox,
    ['sh', '-c', 'grep CapEff /proc/self/status; ls /dev; mount -t tmpfs none /tmp && echo mounted'],
    { linux: { security: { privileged: true } } },
  );
  assert.equal((await machine.exited(id)).exitCode, 0);
  const lines = messages(await machine.logOf(id));
  assert.ok(lines.includes(readFileSync('/proc/self/status', 'utf8').match(/^CapEff.*$/m)?.[0] ?? ''));
  assert.ok(lines.includes('mounted') && lines.includes('kmsg'), lines.join(' '));
});

test('a listing says what its filter asks for', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const one = await machine.runtime.runPodSandbox(machine.sandboxConfig({ labels: { a: '1', b: '2' } }), '');
  const two = await machine.runtime.runPodSandbox(machine.sandboxConfig({ labels: { a: '1' } }), 'runc');
  const ids = async (filter: Parameters<typeof machine.runtime.listPodSandbox>[0]) =>
    (await machine.runtime.listPodSandbox(filter)).map(({ id }) => id).sort();
  assert.deepEqual(await ids({}), [one, two].sort());
  assert.deepEqual(await ids({ labels: { b: '2' } }), [one]);
  await machine.runtime.stopPodSandbox(two);
  assert.deepEqual(await ids({ state: 'ready', labels: { a: '1' } }), [one]);
  assert.deepEqual(await ids({ id: two, state: 'ready' }), []);
  const running = await machine.startContainer(one, ['sleep', '1000'], { labels: { x: 'y' } });
  const created = await machine.runtime.createContainer(
    one,
    machine.containerConfig(['true'], { metadata: { name: 'other', attempt: 0 } }),
  );
  const list = async (filter: Parameters<typeof machine.runtime.listContainers>[0]) =>
    (await machine.runtime.listContainers(filter)).map(({ id }) => id).sort();
  assert.deepEqual(await list({ podSandboxId: one }), [running, created].sort());
  assert.deepEqual(await list({ state: 'running' }), [running]);
  assert.deepEqual(await list({ labels: { x: 'z' } }), []);
  assert.deepEqual(await list({ podSandboxId: two }), []);
});
