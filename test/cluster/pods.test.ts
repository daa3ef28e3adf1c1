/** Single pods: crashes and their back-off, logs through the apiserver, deletion, an apiserver that goes and comes. */
import assert from 'node:assert/strict';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import type { Pod } from 'kubernetes-types/core/v1.js';
import { makePod, pageOf, type Stage, setStage, skip, statusOf, webServer } from './stage.ts';

const namespace = 'pods';

test('pods', { skip }, async (t) => {
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  await t.test('a pod that exits 1 goes through CrashLoopBackOff, also over a crash of the agent', () =>
    crash(stage),
  );
  await t.test('kubectl logs shows, follows and cuts the output, also from before a crash of the agent', () =>
    logs(stage),
  );
  await t.test('a deleted pod ends with its grace, also when the agent dies in the middle', () =>
    deletion(stage),
  );
  await t.test('what was deleted by force while the agent was away is removed at its start', () =>
    forced(stage),
  );
  await t.test('what ended while the apiserver was away is told when it is back', () => away(stage));
  await t.test('nothing is left on the node', () => stage.node.tracesBecome(nothing));
});

const sh = (image: string, script: string, name = 'main') => ({ name, image, command: ['sh', '-c', script] });

async function remove({ cluster }: Stage, name: string): Promise<void> {
  await cluster.kubectl(['-n', namespace, 'delete', 'pod', name, '--wait', '--timeout=60s'], {
    deadlineMs: 70_000,
  });
}

async function crash(stage: Stage): Promise<void> {
  const { cluster, images, node } = stage;
  const containers = [sh(images.one, 'echo run number $(date +%s); exit 1')];
  await cluster.apply(makePod(namespace, 'crash', { containers }));
  const waiting = await stage.pod(namespace, 'crash', (pod) => {
    const status = statusOf(pod);
    return status?.state?.waiting?.reason === 'CrashLoopBackOff' && status.restartCount >= 1;
  });
  const status = statusOf(waiting)!;
  assert.match(
    status.state!.waiting!.message!,
    /^back-off 1?\d+s restarting failed container=main pod=crash_pods\(/,
  );
  const last = status.lastState!.terminated!;
  assert.deepEqual([last.exitCode, last.reason], [1, 'Error']);
  assert.match(last.containerID!, /^[a-z0-9.-]+:\/\/[0-9a-f]{64}$/);
  assert.equal(waiting.status!.phase, 'Running');
  await stage.event(namespace, 'crash', ({ reason, type }) => reason === 'BackOff' && type === 'Warning');

  /** When the newest container was started; one that is made and not started yet shows the run before it. */
  const startOf = (pod: Pod) => {
    const { containerID, state, lastState } = statusOf(pod)!;
    const ended = [state?.terminated, lastState?.terminated].find((end) => end?.containerID === containerID);
    return (state?.running ?? ended)?.startedAt;
  };
  const runAfter = async (count: number) => {
    const pod = await stage.pod(
      namespace,
      'crash',
      (now) => statusOf(now)!.restartCount > count && startOf(now) !== undefined,
      90_000,
    );
    const { restartCount } = statusOf(pod)!;
    assert.equal(restartCount, count + 1);
    return { count: restartCount, startedAt: startOf(pod)! };
  };
  const second = await runAfter(status.restartCount);
  const pause = Date.parse(second.startedAt) - Date.parse(last.finishedAt!);
  assert.ok(pause >= 9000, `restarted after ${pause} ms`);

  await stage.pod(namespace, 'crash', (pod) => statusOf(pod)?.state?.waiting?.reason === 'CrashLoopBackOff');
  await node.restart9();
  // The back-off goes on over the crash of the agent: the third run is not due before 20 s.
  const third = await runAfter(second.count);
  const longer = Date.parse(third.startedAt) - Date.parse(second.startedAt);
  assert.ok(longer >= 19_000, `restarted after ${longer} ms`);
  const previous = await cluster.kubectl(['-n', namespace, 'logs', 'crash', '--previous']);
  assert.match(previous, /^run number \d+\n$/);
  await remove(stage, 'crash');
}

async function logs(stage: Stage): Promise<void> {
  const { cluster, images, node } = stage;
  const count = 'i=0; while [ $i -lt 100000 ]; do echo line $i; i=$((i+1)); sleep 0.05; done';
  const containers = [sh(images.one, count), sh(images.one, 'echo out; echo err >&2; sleep 100000', 'other')];
  await cluster.apply(makePod(namespace, 'talk', { containers }));
  await stage.pod(
    namespace,
    'talk',
    (pod) => pod.status?.containerStatuses?.every(({ ready }) => ready) ?? false,
  );
  const kubectl = (...args: string[]) => cluster.kubectl(['-n', namespace, 'logs', 'talk', ...args]);
  const numbers = (text: string) =>
    text
      .trimEnd()
      .split('\n')
      .map((line) => Number(line.replace('line ', '')));

  assert.deepEqual((await kubectl('-c', 'other')).split('\n').sort(), ['', 'err', 'out']);
  const tail = numbers(await kubectl('-c', 'main', '--tail=3'));
  assert.deepEqual([tail.length, tail[2]! - tail[0]!], [3, 2]);
  const stamped = await kubectl('-c', 'main', '--timestamps', '--tail=5');
  for (const line of stamped.trimEnd().split('\n')) {
    assert.match(line, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d) line \d+$/);
  }
  assert.equal(await kubectl('-c', 'main', '--limit-bytes=6'), 'line 0');
  const none = await cluster.tryKubectl(['-n', namespace, 'logs', 'talk', '-c', 'main', '--previous']);
  assert.match(none.stderr, /previous terminated container "main" in pod "talk" not found/);

  const follow = async (wanted: number) => {
    const { stdout, stop, ended } = cluster.follow([
      '-n',
      namespace,
      'logs',
      'talk',
      '-c',
      'main',
      '-f',
      '--tail=2',
    ]);
    const seen: number[] = [];
    for await (const line of createInterface({ input: stdout })) {
      seen.push(Number(line.replace('line ', '')));
      if (seen.length >= wanted) stop();
    }
    await ended;
    return seen.slice(0, wanted);
  };
  const consecutive = (seen: number[]) =>
    assert.deepEqual(
      seen,
      seen.map((_, index) => seen[0]! + index),
    );
  const followed = await follow(30);
  assert.equal(followed.length, 30);
  consecutive(followed);

  await node.restart9();
  await stage.nodeReports();
  const all = numbers(await kubectl('-c', 'main'));
  assert.equal(all[0], 0);
  assert.ok(all.length > followed.at(-1)!);
  consecutive(all);
  consecutive(await follow(10));
  await remove(stage, 'talk');

  // A container that ends ends the stream.
  await cluster.apply(
    makePod(namespace, 'short', {
      restartPolicy: 'Never',
      containers: [sh(images.one, 'echo a; sleep 3; echo b')],
    }),
  );
  await stage.pod(namespace, 'short', (pod) => pod.status?.phase === 'Running');
  const { stdout, ended } = cluster.follow(['-n', namespace, 'logs', 'short', '-f']);
  let text = '';
  for await (const chunk of stdout) text += String(chunk);
  assert.deepEqual([text, await ended], ['a\nb\n', 0]);
  await remove(stage, 'short');
}

async function deletion(stage: Stage): Promise<void> {
  const { cluster, images, node } = stage;
  // Ends two seconds after TERM, well within its grace, and says so in a volume of the host.
  const script = 'trap "echo term; sleep 2; echo end; exit 0" TERM; sleep 100000 & wait';
  const terminationGracePeriodSeconds = 20;
  await cluster.apply(
    makePod(namespace, 'polite', { containers: [sh(images.one, script)], terminationGracePeriodSeconds }),
  );
  await stage.pod(namespace, 'polite', (pod) => statusOf(pod)?.ready === true);
  const follow = cluster.follow(['-n', namespace, 'logs', 'polite', '-f']);
  let said = '';
  const listening = (async () => {
    for await (const chunk of follow.stdout) said += String(chunk);
  })();
  await remove(stage, 'polite');
  await listening;
  assert.equal(said, 'term\nend\n', 'TERM comes first, and output is followed to the end');

  // Deaf to TERM: killed when its grace is over, although the agent dies in between.
  const deaf = 'trap "" TERM; while true; do sleep 1; done';
  await cluster.apply(
    makePod(namespace, 'deaf', { containers: [sh(images.one, deaf)], terminationGracePeriodSeconds: 4 }),
  );
  await stage.pod(namespace, 'deaf', (pod) => statusOf(pod)?.ready === true);
  await cluster.kubectl(['-n', namespace, 'delete', 'pod', 'deaf', '--wait=false']);
  await node.restart9();
  await cluster.kubectl(['-n', namespace, 'wait', '--for=delete', 'pod/deaf', '--timeout=60s'], {
    deadlineMs: 70_000,
  });
}

async function forced(stage: Stage): Promise<void> {
  const { cluster, images, node } = stage;
  const before = await node.traces();
  await cluster.apply(makePod(namespace, 'gone', { containers: [webServer(images.one)] }));
  await stage.pod(namespace, 'gone', (pod) => statusOf(pod)?.ready === true);
  await node.kill9();
  await cluster.kubectl(['-n', namespace, 'delete', 'pod', 'gone', '--force', '--grace-period=0']);
  await node.start();
  await node.tracesBecome(before);
}

async function away(stage: Stage): Promise<void> {
  const { cluster, images } = stage;
  const containers = [sh(images.one, 'sleep 4; exit 7', 'main'), webServer(images.one)];
  await cluster.apply(makePod(namespace, 'away', { containers, restartPolicy: 'Never' }));
  const pod = await stage.pod(namespace, 'away', ({ status }) => status?.phase === 'Running');
  await cluster.stopApiserver();
  await new Promise((resolve) => setTimeout(resolve, 6000));
  assert.equal(await pageOf(pod), 'one', 'a pod does not need the apiserver to run');
  await cluster.startApiserver();
  const told = await stage.pod(
    namespace,
    'away',
    (now) => statusOf(now, 'main')?.state?.terminated?.exitCode === 7,
  );
  assert.equal(statusOf(told, 'web')!.containerID, statusOf(pod, 'web')!.containerID);
  assert.equal(statusOf(told, 'web')!.restartCount, 0);
  await remove(stage, 'away');
}
