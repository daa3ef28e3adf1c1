/** ps, pods, inspect, stats, events, logs, stop and rm, on real containers. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { sinceOf } from '../../../agent/cli/containers/logs.ts';
import { cannotRun } from '../../runtime/machine.ts';
import { ended, lastLine, said, stage } from './runtime_stage.ts';

const sleeper = ['sleep', '1000'];

test('containers and pods are listed, looked at, stopped and removed', { skip: cannotRun }, async (t) => {
  const { machine, run } = await stage(t);
  const { runtime } = machine;
  const pod = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  const other = await runtime.runPodSandbox(
    machine.sandboxConfig({ metadata: { name: 'other', uid: 'u2', namespace: 'team', attempt: 0 } }),
    '',
  );
  const id = await machine.startContainer(pod, sleeper);
  const twin = await machine.startContainer(other, sleeper, { userImage: 'evil\x1b[2J\x9bimage' });
  const done = await machine.startContainer(other, ['true'], { metadata: { name: 'done', attempt: 3 } });
  await machine.exited(done);

  const table = await run('ps');
  assert.deepEqual([table.code, table.stderr], [0, '']);
  const lines = table.stdout.trimEnd().split('\n');
  assert.match(lines[0]!, /^CONTAINER ID +NAME +POD +IMAGE +STATE +ATTEMPT +AGE$/);
  assert.match(
    lines[1]!,
    new RegExp(`^${twin.slice(0, 12)}  main +team/other +evil\\?\\[2J\\?image +running +0 +\\d+s$`),
  );
  assert.match(lines[2]!, new RegExp(`^${id.slice(0, 12)}  main +default/pod +busybox +running +0 +\\d+s$`));
  assert.equal(lines.length, 3);
  assert.match((await run('ps', '-a')).stdout, /\n[0-9a-f]{12} +done +team\/other +busybox +exited +3 /);
  assert.deepEqual((await run('ps', '-aq', '--no-trunc', '--pod', 'other')).stdout.trim().split('\n'), [
    done,
    twin,
  ]);
  const json = await run('ps', '--json');
  assert.ok(!/[\x1b\x7f-\x9f]/.test(json.stdout));
  const { containers } = JSON.parse(json.stdout);
  assert.deepEqual(
    containers.map((one: { id: string; pod: { name: string }; image: string }) => [
      one.id,
      one.pod.name,
      one.image,
    ]),
    [
      [twin, 'other', 'evil\x1b[2J\x9bimage'],
      [id, 'pod', 'busybox'],
    ],
  );

  const pods = await run('pods');
  assert.match(pods.stdout, /^POD ID +NAME +NAMESPACE +STATE +RUNNING +IP +HANDLER +ATTEMPT +AGE\n/);
  assert.match(pods.stdout, new RegExp(`\n${other.slice(0, 12)}  other  team +ready +1/2 +- `));
  assert.equal(JSON.parse((await run('pods', '--json')).stdout).pods.length, 2);

  const ambiguous = await run('inspect', 'main');
  assert.equal(ambiguous.code, 2);
  assert.match(
    ambiguous.stderr,
    /"main" may be any of 2 containers: .*default\/pod\/main \([0-9a-f]{12}\).*\(give more/,
  );
  assert.ok(ambiguous.stderr.includes(`team/other/main (${twin.slice(0, 12)})`));
  const seen = JSON.parse((await run('inspect', 'team/other/main')).stdout);
  assert.equal(seen.status.id, twin);
  assert.equal(seen.info.runtimeSpec.process.args[0], 'sleep');
  assert.equal(JSON.parse((await run('inspect', '--json', id.slice(0, 10))).stdout).status.id, id);
  assert.equal(JSON.parse((await run('inspect', '--pod', 'team/other')).stdout).status.id, other);
  const unknown = await run('inspect', 'nobody');
  assert.equal(unknown.code, 1);
  assert.match(unknown.stderr, /^keelson: there is no container "nobody" on this node \(.*keelson ps/);

  const stats = await run('stats');
  assert.match(stats.stdout, /^CONTAINER ID +NAME +POD +CPU +MEMORY +LIMIT +DISK\n/);
  assert.match(
    stats.stdout,
    new RegExp(`\n${id.slice(0, 12)}  main  default/pod +[\\d.]+% +[\\d.]+ [kM]?B +`),
  );
  const [one] = JSON.parse((await run('stats', '--json', 'pod/main')).stdout).stats;
  assert.equal(one.id, id);
  assert.ok(one.memory.workingSet > 0);
  assert.match((await run('stats', '--pods', 'other')).stdout, /\n[0-9a-f]{12} {2}other +team +/);

  const live = await run('rm', '--container', 'pod/main');
  assert.equal(live.code, 1);
  assert.match(live.stderr, /container default\/pod\/main has not ended \('keelson stop' it first/);
  const stopped = await run('stop', '--timeout', '0', 'pod/main');
  assert.deepEqual(
    [stopped.code, stopped.stdout],
    [0, `stopped default/pod/main (${id.slice(0, 12)})\n`],
    stopped.stderr,
  );
  assert.equal((await runtime.containerStatus(id)).state, 'exited');
  const removed = await run('rm', '--container', '--json', 'pod/main', 'nobody');
  assert.equal(removed.code, 1);
  const told = JSON.parse(removed.stdout);
  assert.deepEqual(told.removed, [{ id, name: 'default/pod/main' }]);
  assert.deepEqual(
    told.failed.map(({ name, code }: { name: string; code: string }) => [name, code]),
    [['nobody', 'NOT_FOUND']],
  );
  const halt = await run('stop', '--pod', 'default/pod');
  assert.equal(halt.code, 0, halt.stderr);
  const both = await run('rm', '--pod', '--force', 'default/pod', other.slice(0, 12));
  assert.equal(both.code, 0, both.stderr);
  assert.deepEqual(await runtime.listPodSandbox(), []);
  assert.deepEqual(await machine.leftovers(), []);
});

test('a name means the container that runs, and logs those before it', { skip: cannotRun }, async (t) => {
  const { machine, run, start, closeControl } = await stage(t);
  const pod = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const first = await machine.startContainer(pod, ['sh', '-c', 'echo one; echo two; echo three']);
  await machine.exited(first);
  const script = 'echo first; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo last';
  const second = await machine.startContainer(pod, ['sh', '-c', script], {
    metadata: { name: 'main', attempt: 1 },
  });
  const follower = start('logs', '-f', 'pod/main');
  const all = ended(follower);
  await said(follower, /first\n/);
  await machine.runtime.execSync(second, ['touch', '/tmp/go'], 10_000);
  const { code, stdout, stderr } = await all;
  assert.deepEqual([code, stdout, stderr], [0, 'first\nlast\n', '']);
  assert.equal((await run('logs', 'main')).stdout, 'first\nlast\n');
  assert.equal((await run('logs', '--previous', '--tail', '2', 'main')).stdout, 'two\nthree\n');
  assert.equal((await run('logs', first)).stdout, 'one\ntwo\nthree\n');
  assert.match((await run('logs', '-t', '--tail', '1', 'main')).stdout, /^\d{4}-\d\d-\d\dT[\d:.]+Z last\n$/);
  assert.equal((await run('logs', '--since', '2099-01-01T00:00:00Z', 'main')).stdout, '');
  const none = await run('logs', '-p', first);
  assert.equal(none.code, 1);
  assert.match(none.stderr, /there is no container before this default\/pod\/main/);
  assert.equal((await run('logs', '--tail', 'x', 'main')).code, 2);

  await machine.startContainer(pod, ['sh', '-c', 'echo up; exec sleep 1000'], {
    metadata: { name: 'other', attempt: 0 },
  });
  const watching = start('logs', '-f', 'other');
  const lost = ended(watching);
  await said(watching, /up\n/);
  await closeControl();
  const { code: failed, stderr: why } = await lost;
  assert.deepEqual([failed, why], [1, 'keelson: the agent is stopping\n']);
});

test('--since is a duration or a time', () => {
  assert.equal(sinceOf('1m30s', 100_000), 10_000);
  assert.equal(sinceOf('1970-01-01T00:00:01Z', 0), 1000);
  for (const wrong of ['', '-1s', '5', 'yesterday', '2026-99-01']) {
    assert.throws(() => sinceOf(wrong, 0), /neither a duration nor a time/);
  }
});

test('events are told in order until an interrupt', { skip: cannotRun }, async (t) => {
  const { machine, start } = await stage(t);
  const table = start('events');
  const json = start('events', '--json');
  const lines: string[] = [];
  const [shown] = [ended(table), said(table, /^TIME +TYPE +ID +POD\n/)];
  const heard = Promise.withResolvers<void>();
  let text = '';
  json.stdout!.on('data', (chunk) => {
    text += chunk;
    if (text.includes('"stopped"') && /"deleted"(?!.*"stopped")/s.test(text)) heard.resolve();
  });
  await said(table, /TIME/);
  // JSON has no head that tells when it listens.
  while (text === '') {
    await machine.runtime.removePodSandbox(await machine.runtime.runPodSandbox(machine.sandboxConfig(), ''));
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const pod = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(pod, ['true']);
  await machine.exited(id);
  const deleted = said(table, new RegExp(`deleted +${id.slice(0, 12)}`));
  await machine.runtime.removePodSandbox(pod);
  await Promise.all([deleted, heard.promise]);
  for (const child of [table, json]) child.kill('SIGINT');
  const { signal, stdout, stderr } = await shown;
  assert.deepEqual([signal, lastLine(stderr)], ['SIGINT', 'keelson: interrupted by SIGINT']);
  if (json.exitCode === null && json.signalCode === null) await once(json, 'exit');
  lines.push(...stdout.split('\n').filter((line) => line.includes(id.slice(0, 12))));
  assert.deepEqual(
    lines.map((line) => line.split(/ +/)[1]),
    ['created', 'started', 'stopped', 'deleted'],
  );
  assert.match(lines[0]!, /^\d{4}-\d\d-\d\dT[\d:.]{12}Z +created +[0-9a-f]{12} +default\/pod$/);
  for (const line of text.trim().split('\n')) assert.equal(JSON.parse(line).sandbox.name, 'pod');
});
