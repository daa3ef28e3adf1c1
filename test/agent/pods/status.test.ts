/** Statuses, backoff, credentials, patches and last words. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Pod, PodContainer, PodStatus } from '../../../agent/apiserver/types.ts';
import { lastLines, terminationMessage } from '../../../agent/pods/actions/termination_message.ts';
import { pullPolicyOf } from '../../../agent/pods/images.ts';
import {
  crashBackoff,
  crashStateOf,
  failedAgain,
  goSeconds,
  restartAllowed,
  restartAllowedAt,
} from '../../../agent/pods/plan/backoff.ts';
import { phaseOf } from '../../../agent/pods/plan/conditions.ts';
import { newMemory, type PodMemory } from '../../../agent/pods/plan/memory.ts';
import { statusOf } from '../../../agent/pods/plan/status.ts';
import { nextAttempt, viewOf } from '../../../agent/pods/plan/view.ts';
import { statusPatch } from '../../../agent/pods/status_writer.ts';
import type { ObservedPod } from '../../../agent/pods/types.ts';
import { makeContainer, makePod, makeSandbox, time } from './objects.ts';

const app: PodContainer = { name: 'app', image: 'example:1' };

function status(
  pod: Pod,
  observed: ObservedPod,
  old?: PodStatus,
  rest: { memory?: Partial<PodMemory>; ended?: boolean; live?: boolean; now?: number } = {},
) {
  return statusOf({
    pod,
    observed,
    view: viewOf(pod, observed),
    memory: { ...newMemory(time), ...rest.memory },
    old,
    hostIps: ['192.0.2.1', 'fd00::1'],
    now: rest.now ?? time + 5000,
    waiting: new Map(),
    starting: new Set(),
    ended: rest.ended ?? false,
    live: rest.live ?? true,
  });
}
const running = { sandboxes: [makeSandbox('s0')], containers: [makeContainer('c0', app, 'running')] };

test('a running pod, as kubelet reports it', () => {
  assert.deepEqual(JSON.parse(JSON.stringify(status(makePod(), running))), {
    observedGeneration: 1,
    phase: 'Running',
    conditions: ['PodReadyToStartContainers', 'Initialized', 'Ready', 'ContainersReady', 'PodScheduled'].map(
      (type) => ({
        type,
        observedGeneration: 1,
        status: 'True',
        lastTransitionTime: '2026-01-01T00:00:05Z',
      }),
    ),
    hostIP: '192.0.2.1',
    hostIPs: [{ ip: '192.0.2.1' }, { ip: 'fd00::1' }],
    podIP: '10.88.0.2',
    podIPs: [{ ip: '10.88.0.2' }],
    startTime: '2026-01-01T00:00:00Z',
    qosClass: 'BestEffort',
    containerStatuses: [
      {
        name: 'app',
        image: 'example:1',
        imageID: 'docker.io/library/example@sha256:def',
        containerID: 'keelson://c0',
        resources: {},
        ready: true,
        started: true,
        restartCount: 0,
        state: { running: { startedAt: '2026-01-01T00:00:00Z' } },
        lastState: {},
      },
    ],
  });
});

test('nothing yet: Pending, with the reasons', () => {
  const pod = makePod({ initContainers: [{ name: 'i', image: 'i:1' }] });
  const { phase, conditions, containerStatuses } = status(pod, { sandboxes: [], containers: [] });
  assert.equal(phase, 'Pending');
  assert.deepEqual(containerStatuses?.[0]?.state, { waiting: { reason: 'PodInitializing' } });
  assert.deepEqual(
    conditions?.map(({ type, status: value, reason, message }) => [type, value, reason, message]),
    [
      ['PodReadyToStartContainers', 'False', 'PodSandboxNotReady', 'no pod sandbox exists'],
      ['Initialized', 'False', 'ContainersNotInitialized', 'containers with incomplete status: [i]'],
      ['Ready', 'False', 'ContainersNotReady', 'containers with unready status: [app]'],
      ['ContainersReady', 'False', 'ContainersNotReady', 'containers with unready status: [app]'],
      ['PodScheduled', 'True', undefined, undefined],
    ],
  );
});

test('transition times move only with the status', () => {
  const first = status(makePod(), running);
  const later = status(makePod(), running, first, { now: time + 60_000 });
  assert.deepEqual(later.conditions, first.conditions);
  const exited = { ...running, containers: [makeContainer('c0', app, 'exited', { exitCode: 1 })] };
  const ended = status(makePod(), exited, first, { now: time + 60_000 });
  const ready = (of: PodStatus) => of.conditions?.find(({ type }) => type === 'Ready');
  assert.equal(ready(ended)?.lastTransitionTime, '2026-01-01T00:01:00Z');
});

test('how a container ended', () => {
  const oom = makeContainer('c0', app, 'exited', { exitCode: 137, reason: 'OOMKilled' });
  const { containerStatuses } = status(makePod(), { ...running, containers: [oom] });
  assert.deepEqual(containerStatuses?.[0]?.state?.terminated, {
    exitCode: 137,
    reason: 'OOMKilled',
    startedAt: '2026-01-01T00:00:00Z',
    finishedAt: '2026-01-01T00:00:00Z',
    containerID: 'keelson://c0',
  });
});

test('a container that was ended before it ran has a start as well', () => {
  const killed = makeContainer('c0', app, 'exited', { exitCode: 137, startedAt: 0 });
  const { containerStatuses } = status(makePod(), { ...running, containers: [killed] });
  const { startedAt, finishedAt } = containerStatuses![0]!.state!.terminated!;
  assert.deepEqual([startedAt, finishedAt], ['2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z']);
});

test('a container that is not to be found any more did end', () => {
  const before = status(makePod(), running);
  const lost = status(makePod(), { sandboxes: [], containers: [] }, before);
  const [one] = lost.containerStatuses ?? [];
  assert.equal(one?.lastState?.terminated?.reason, 'ContainerStatusUnknown');
  assert.equal(one?.lastState?.terminated?.exitCode, 137);
  assert.equal(one?.restartCount, 1);
  assert.equal(lost.phase, 'Running');
  const again = status(makePod(), { sandboxes: [], containers: [] }, lost);
  assert.equal(again.containerStatuses?.[0]?.restartCount, 1, 'counted once');
});

test('a container that had been restarted and is not to be found any more counts on', () => {
  const none: ObservedPod = { sandboxes: [], containers: [] };
  const ended = { terminated: { exitCode: 1, reason: 'Error' } };
  for (const state of [{ running: {} }, { waiting: { reason: 'CrashLoopBackOff' } }, ended]) {
    const one = {
      ...{ name: 'app', image: 'example:1', imageID: '', ready: false, restartCount: 3 },
      ...{ containerID: 'keelson://c3', state, lastState: ended },
    };
    let old = { phase: 'Running', containerStatuses: [one] } as PodStatus;
    for (const time of ['first', 'second']) {
      // The number that the next container gets (its log file has that name), and what is told of it.
      const known = old.containerStatuses![0]!;
      assert.equal(nextAttempt(undefined, known), 4, `${time} of ${Object.keys(state)}`);
      old = status(makePod(), none, old);
      if (state !== ended) assert.equal(old.containerStatuses?.[0]?.restartCount, 4, `${time}, told`);
    }
  }
});

test('a pod whose status nobody wrote began with its sandbox', () => {
  const old = makeSandbox('s0', { createdAt: time - 60_000 });
  const static_ = makePod({}, { status: {} });
  assert.equal(status(static_, { ...running, sandboxes: [old] }).startTime, '2025-12-31T23:59:00Z');
  assert.equal(
    status(static_, { ...running, sandboxes: [makeSandbox('s0', { createdAt: time + 1000 })] }).startTime,
    '2026-01-01T00:00:00Z',
    'or when it was first seen',
  );
});

test('an init container that fails again in a new sandbox does not take the pod back to Pending', () => {
  const init: PodContainer = { name: 'init', image: 'example:1' };
  const pod = makePod({ initContainers: [init], containers: [app] });
  const failed = { terminated: { exitCode: 1, reason: 'Error' } };
  const told = (name: string, state: object) =>
    [name, { name, state, lastState: failed }] as unknown as [string, never];
  const waiting = { waiting: { reason: 'CrashLoopBackOff' } };
  const observed = { ...running, containers: [] };
  const phase = (app: object) =>
    phaseOf(
      pod,
      new Map([told('init', waiting), ['app', { name: 'app', ...app } as never]]),
      false,
      viewOf(pod, observed),
    );
  assert.equal(phase({ state: { waiting: { reason: 'PodInitializing' } } }), 'Pending', 'the first time');
  assert.equal(phase({ state: waiting, lastState: failed }), 'Running');
});

test('readiness gates and probes hold Ready back, and survive another agent', () => {
  const gated = makePod({ readinessGates: [{ conditionType: 'example.org/x' }] });
  const ready = (of: PodStatus) => of.conditions?.find(({ type }) => type === 'Ready');
  assert.equal(ready(status(gated, running))?.reason, 'ReadinessGatesNotReady');
  const met = {
    ...gated,
    status: { ...gated.status, conditions: [{ type: 'example.org/x', status: 'True' }] },
  };
  assert.equal(ready(status(met, running))?.status, 'True');
  const probed = makePod({ containers: [{ ...app, readinessProbe: { exec: { command: ['x'] } } }] });
  assert.equal(status(probed, running).containerStatuses?.[0]?.ready, false);
  const known = status(probed, running, undefined, {
    memory: { probes: { c0: { started: true, ready: true } } },
  });
  assert.equal(known.containerStatuses?.[0]?.ready, true);
  assert.equal(status(probed, running, known).containerStatuses?.[0]?.ready, true, 'kept without results');
});

test("host network pods have the node's addresses; the node's family comes first", () => {
  const onHost = makePod({ hostNetwork: true });
  const sandbox = makeSandbox('s0', {
    ips: [],
    namespaces: { network: 'node', pid: 'container', ipc: 'pod' },
  });
  assert.deepEqual(status(onHost, { sandboxes: [sandbox], containers: [] }).podIPs, [
    { ip: '192.0.2.1' },
    { ip: 'fd00::1' },
  ]);
  const dual = makeSandbox('s0', { ips: ['fd00::2', '10.0.0.2'] });
  assert.equal(status(makePod(), { sandboxes: [dual], containers: [] }).podIP, '10.0.0.2');
});

test('a long message is cut at a character', () => {
  const exited = makeContainer('c0', app, 'exited', { exitCode: 1, message: 'ä'.repeat(10_000) });
  const message = status(makePod(), { ...running, containers: [exited] }).containerStatuses?.[0]?.state
    ?.terminated?.message;
  assert.equal(message, 'ä'.repeat(6144));
});

test('the patch holds what changed, with the uid, and replaces addresses', () => {
  const first = status(makePod(), running);
  assert.equal(statusPatch('u', first, first), undefined);
  const known: PodStatus = { ...first, reason: 'X', podIPs: [{ ip: '10.0.0.9' }] };
  const conditions = first.conditions?.map((one) =>
    one.type === 'Ready' ? { ...one, status: 'False', reason: 'R' } : one,
  );
  const ready = first.conditions?.find(({ type }) => type === 'Ready');
  assert.deepEqual(JSON.parse(JSON.stringify(statusPatch('u', { ...known, conditions }, first))), {
    metadata: { uid: 'u' },
    status: {
      reason: null,
      podIPs: [{ ip: '10.88.0.2' }, { $patch: 'replace' }],
      conditions: [{ ...JSON.parse(JSON.stringify(ready)), reason: null }],
    },
  });
});

test('crash backoff: at once, 10 s, 20 s… 300 s, and anew after a good run', () => {
  let state = restartAllowed(undefined, 'c0', time, time, crashBackoff);
  assert.equal(restartAllowedAt(undefined, 'c0', time, crashBackoff), 0);
  const waits: number[] = [];
  for (let i = 1; i < 9; i++) {
    const finished = state.lastAt + 1000;
    const at = restartAllowedAt(state, `c${i}`, finished, crashBackoff);
    waits.push((at - finished) / 1000);
    state = restartAllowed(state, `c${i}`, finished, at, crashBackoff);
    assert.equal(restartAllowedAt(state, `c${i}`, finished, crashBackoff), 0, 'allowed stays allowed');
    assert.equal(restartAllowed(state, `c${i}`, finished, at, crashBackoff), state);
  }
  assert.deepEqual(waits, [10, 20, 40, 80, 160, 300, 300, 300]);
  const good = state.lastAt + 601_000;
  assert.equal(restartAllowedAt(state, 'next', good, crashBackoff), 0);
  assert.equal(restartAllowed(state, 'next', good, good, crashBackoff).delayMs, 10_000);
  assert.deepEqual([10_000, 80_000, 300_000, 3_600_000].map(goSeconds), ['10s', '1m20s', '5m0s', '1h0m0s']);
});

test('failures wait twice as long each time, up to the most', () => {
  let failure = failedAgain(undefined, 'r', 'm', time, { initialMs: 100, maxMs: 500 });
  const waits = [failure.retryAt - time];
  for (let i = 0; i < 4; i++) {
    failure = failedAgain(failure, 'r', 'm', time, { initialMs: 100, maxMs: 500 });
    waits.push(failure.retryAt - time);
  }
  assert.deepEqual(waits, [100, 200, 400, 500, 500]);
});

const policies: [string, string | undefined, string][] = [
  ['x', undefined, 'Always'],
  ['x:latest', undefined, 'Always'],
  ['host:5000/x', undefined, 'Always'],
  ['host:5000/x:1', undefined, 'IfNotPresent'],
  ['x@sha256:0', undefined, 'IfNotPresent'],
  ['x:latest', 'Never', 'Never'],
];
for (const [image, imagePullPolicy, wanted] of policies) {
  test(`${image} with ${imagePullPolicy ?? 'no policy'} is pulled ${wanted}`, () =>
    assert.equal(pullPolicyOf({ name: 'a', image, imagePullPolicy }), wanted));
}

test('last words: from the file, else from the log of a failed container', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-words-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const file = join(folder, 'message');
  const logPath = join(folder, '0.log');
  writeFileSync(
    logPath,
    '2026-01-01T00:00:00Z stdout P hel\n2026-01-01T00:00:00Z stdout F lo\ngarbage\n2026-01-01T00:00:00Z stderr F bye\n',
  );
  const ended = (policy: string, exitCode: number) =>
    makeContainer('c0', app, 'exited', {
      exitCode,
      logPath,
      annotations: {
        'io.kubernetes.container.terminationMessagePath': '/dev/termination-log',
        'io.kubernetes.container.terminationMessagePolicy': policy,
      },
      mounts: [
        { containerPath: '/dev/termination-log', hostPath: file, readonly: false, propagation: 'private' },
      ],
    });
  writeFileSync(file, '');
  assert.equal(await terminationMessage(ended('File', 1)), '');
  assert.equal(await terminationMessage(ended('FallbackToLogsOnError', 0)), '');
  assert.equal(await terminationMessage(ended('FallbackToLogsOnError', 1)), 'hello\nbye\n');
  writeFileSync(file, 'x'.repeat(5000));
  assert.equal((await terminationMessage(ended('FallbackToLogsOnError', 1))).length, 4096);
  rmSync(file);
  assert.equal(await terminationMessage(ended('File', 1)), '');
  const many = Array.from({ length: 200 }, (_, i) => `2026-01-01T00:00:00Z stdout F line${i}\n`).join('');
  assert.equal(lastLines(many).split('\n').length, 81);
});

test('a crash back-off goes on after a restart of the agent, from what the container tells', () => {
  const of = (attempt: number, waitedMs?: number) =>
    crashStateOf(
      { metadata: { attempt }, createdAt: time },
      waitedMs === undefined ? undefined : time - waitedMs,
      crashBackoff,
    );
  assert.equal(of(0), undefined);
  assert.deepEqual(of(1), { delayMs: 10_000, lastAt: time, forId: '' });
  assert.equal(of(3)?.delayMs, 40_000);
  assert.equal(of(40)?.delayMs, 300_000);
  assert.equal(of(40, 500)?.delayMs, 10_000, 'it was started again at once, after a good run');
  assert.equal(of(40, 10_500)?.delayMs, 20_000);
  assert.equal(of(40, 41_000)?.delayMs, 80_000);
  assert.equal(of(2, 41_000)?.delayMs, 20_000, 'no more than its attempts allow');
  assert.equal(of(40, 301_000)?.delayMs, 300_000);
  assert.equal(of(40, 3_600_000)?.delayMs, 10_000, 'that was no wait of these');
  assert.equal(restartAllowedAt(of(3), 'c3', time + 1000, crashBackoff), time + 41_000);
  assert.equal(restartAllowedAt(of(3), 'c3', time + 601_000, crashBackoff), 0, 'it ran well before');
});
