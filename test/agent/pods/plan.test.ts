/** The planner, case by case: what kubelet would do. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Pod, PodContainer } from '../../../agent/apiserver/types.ts';
import type { Action } from '../../../agent/pods/plan/actions.ts';
import { newMemory, type PodMemory, withOverdue, withTermination } from '../../../agent/pods/plan/memory.ts';
import { type Plan, plan } from '../../../agent/pods/plan/plan.ts';
import type { ObservedPod } from '../../../agent/pods/types.ts';
import { makeContainer, makePod, makeSandbox, time } from './objects.ts';

const app: PodContainer = { name: 'app', image: 'example:1' };
const now = time + 60_000;
const none: ObservedPod = { sandboxes: [], containers: [] };
const up: Partial<PodMemory> = { cgroupReady: true, volumes: 'ready' };

function planned(
  pod: Pod,
  observed: ObservedPod,
  memory: Partial<PodMemory> = {},
  rest: { inFlight?: readonly string[]; old?: Pod['status']; now?: number } = {},
): Plan {
  return plan({
    pod,
    observed,
    memory: { ...newMemory(time), ...memory },
    inFlight: new Map((rest.inFlight ?? []).map((key) => [key, {}])),
    old: rest.old ?? pod.status,
    hostIps: ['192.0.2.1'],
    now: rest.now ?? now,
  });
}
const keys = (actions: readonly Action[]) =>
  actions.map(({ kind, key }) => (key === kind ? kind : `${kind} ${key}`)).sort();
const image = (name: string, attempt = 0) => ({ [name]: { attempt, imageId: 'sha256:abc' } });
const deleted = (memory: Partial<PodMemory>, grace = 30): Partial<PodMemory> => ({
  ...memory,
  termination: { kind: 'deleted', since: now, deadline: now + grace * 1000 },
});

test('a new pod: cgroup, volumes, sandbox and images at once', () => {
  const pod = makePod({ containers: [app, { name: 'side', image: 'other:1' }] });
  const { actions, settling, status } = planned(pod, none);
  assert.deepEqual(keys(actions), ['cgroup', 'image image/app', 'image image/side', 'sandbox', 'volumes']);
  assert.equal(settling, true);
  assert.equal(status.phase, 'Pending');
  assert.deepEqual(status.containerStatuses?.[0]?.state, { waiting: { reason: 'ContainerCreating' } });
});

test('a sandbox with a process of its own waits for the cgroup', () => {
  const pod = makePod({ shareProcessNamespace: true });
  assert.ok(!keys(planned(pod, none).actions).includes('sandbox'));
  assert.ok(keys(planned(pod, none, { cgroupReady: true }).actions).includes('sandbox'));
});

test('containers are created side by side and started in order', () => {
  const second: PodContainer = { name: 'b', image: 'example:1' };
  const pod = makePod({ containers: [app, second] });
  const memory = { ...up, images: { ...image('app'), ...image('b') } };
  const sandboxes = [makeSandbox('s0')];
  const first = planned(pod, { sandboxes, containers: [] }, memory);
  assert.deepEqual(keys(first.actions), ['create create/app', 'create create/b']);
  const onlySecond = planned(
    pod,
    { sandboxes, containers: [makeContainer('c2', second, 'created')] },
    memory,
    { inFlight: ['create/app'] },
  );
  assert.ok(!keys(onlySecond.actions).some((key) => key.startsWith('start')), 'b must not overtake app');
  const both = {
    sandboxes,
    containers: [makeContainer('c2', second, 'created'), makeContainer('c1', app, 'created')],
  };
  assert.deepEqual(keys(planned(pod, both, memory).actions), ['start start/app']);
  assert.deepEqual(keys(planned(pod, both, memory, { inFlight: ['start/app'] }).actions), []);
});

test('nothing is created before the volumes and the cgroup are there', () => {
  const pod = makePod();
  const observed = { sandboxes: [makeSandbox('s0')], containers: [] };
  for (const missing of [{ cgroupReady: false }, { volumes: 'unknown' as const }]) {
    const { actions } = planned(pod, observed, { ...up, images: image('app'), ...missing });
    assert.ok(!keys(actions).includes('create create/app'), JSON.stringify(missing));
  }
});

test('a failed pull of one container does not hold the others up', () => {
  const second: PodContainer = { name: 'b', image: 'example:1' };
  const pod = makePod({ containers: [app, second] });
  const failure = {
    reason: 'ErrImagePull',
    message: 'not found',
    count: 1,
    at: now - 1000,
    retryAt: now + 9000,
  };
  const memory = { ...up, images: { app: { attempt: 0, failure }, ...image('b') } };
  const one = planned(pod, { sandboxes: [makeSandbox('s0')], containers: [] }, memory);
  assert.deepEqual(keys(one.actions), ['create create/b']);
  assert.equal(one.settling, false);
  assert.deepEqual(one.status.containerStatuses?.[0]?.state?.waiting, {
    reason: 'ErrImagePull',
    message: 'not found',
  });
  const started = planned(
    pod,
    { sandboxes: [makeSandbox('s0')], containers: [makeContainer('c2', second, 'created')] },
    memory,
  );
  assert.deepEqual(keys(started.actions), ['start start/b']);
});

test('a failed pull shows its error, then the back-off, and is tried again', () => {
  const failure = { reason: 'ErrImagePull', message: 'not found', count: 1, at: now, retryAt: now + 10_000 };
  const at = (ms: number) =>
    planned(
      makePod(),
      { sandboxes: [makeSandbox('s0')], containers: [] },
      { ...up, images: { app: { attempt: 0, failure } } },
      { now: now + ms },
    );
  assert.equal(at(0).status.containerStatuses?.[0]?.state?.waiting?.reason, 'ErrImagePull');
  assert.equal(at(0).wakeAt, now + 5000);
  assert.deepEqual(at(6000).status.containerStatuses?.[0]?.state?.waiting, {
    reason: 'ImagePullBackOff',
    message: 'Back-off pulling image "example:1": ErrImagePull: not found',
  });
  assert.deepEqual(keys(at(6000).actions), ['note note/app/BackOff', 'note note/app/Failed']);
  assert.equal(at(6000).wakeAt, now + 10_000);
  assert.ok(keys(at(10_000).actions).includes('image image/app'));
  const mounted = planned(
    makePod(),
    { sandboxes: [makeSandbox('s0')], containers: [] },
    { ...up, images: { app: { attempt: 0, failure, failed: 'data:1' } } },
    { now: now + 6000 },
  );
  assert.equal(
    mounted.status.containerStatuses?.[0]?.state?.waiting?.message,
    'Back-off pulling image "data:1": ErrImagePull: not found',
  );
});

test('what an image can never be is not called a back-off', () => {
  for (const reason of ['ErrImageNeverPull', 'InvalidImageName']) {
    const failure = { reason, message: 'm', count: 1, at: now - 9000, retryAt: now + 1000 };
    const { status } = planned(
      makePod(),
      { sandboxes: [makeSandbox('s0')], containers: [] },
      { ...up, images: { app: { attempt: 0, failure } } },
    );
    assert.equal(status.containerStatuses?.[0]?.state?.waiting?.reason, reason);
  }
});

const exits: [policy: string, exitCode: number, restarts: boolean, phase: string][] = [
  ['Always', 0, true, 'Running'],
  ['Always', 1, true, 'Running'],
  ['OnFailure', 0, false, 'Succeeded'],
  ['OnFailure', 1, true, 'Running'],
  ['Never', 0, false, 'Succeeded'],
  ['Never', 1, false, 'Failed'],
];
for (const [restartPolicy, exitCode, restarts, phase] of exits) {
  test(`exit ${exitCode} under ${restartPolicy}: ${restarts ? 'restarted' : 'ended'}, ${phase}`, () => {
    const pod = makePod({ restartPolicy });
    const exited = makeContainer('c0', app, 'exited', { exitCode });
    const { actions, status, final } = planned(
      pod,
      { sandboxes: [makeSandbox('s0')], containers: [exited] },
      up,
    );
    assert.equal(keys(actions).includes('image image/app'), restarts);
    assert.equal(keys(actions).includes('stopSandbox sandbox/s0'), !restarts);
    assert.equal(status.phase, phase);
    assert.equal(final, !restarts);
  });
}

test('an exit is restarted once, with the next number, and then waits', () => {
  const pod = makePod();
  const exited = makeContainer('c0', app, 'exited', { exitCode: 1 });
  const observed = { sandboxes: [makeSandbox('s0')], containers: [exited] };
  const [create] = planned(pod, observed, { ...up, images: image('app', 1) }).actions;
  assert.equal(create?.kind, 'create');
  assert.equal(create?.kind === 'create' && create.attempt, 1);
  const crash = create?.kind === 'create' ? create.crash : undefined;
  assert.equal(crash?.delayMs, 10_000);
  assert.equal(crash?.forId, 'c0');
  // The creation failed and is tried again: the same exit does not count twice.
  const again = planned(pod, observed, { ...up, images: image('app', 1), crash: { app: crash! } }).actions[0];
  assert.deepEqual(again?.kind === 'create' && again.crash, crash);
  // The second exit has to wait.
  const second = makeContainer('c1', app, 'exited', { exitCode: 1, attempt: 1, finishedAt: now - 1000 });
  const held = planned(
    pod,
    { sandboxes: [makeSandbox('s0')], containers: [second, exited] },
    { ...up, crash: { app: crash! } },
  );
  assert.deepEqual(keys(held.actions), ['note note/app/BackOff']);
  assert.equal(held.wakeAt, now + 9000);
  assert.deepEqual(held.status.containerStatuses?.[0]?.state?.waiting, {
    reason: 'CrashLoopBackOff',
    message: 'back-off 10s restarting failed container=app pod=web_default(uid-1)',
  });
  assert.equal(held.status.containerStatuses?.[0]?.lastState?.terminated?.containerID, 'keelson://c1');
  assert.equal(held.status.containerStatuses?.[0]?.restartCount, 1);
  assert.equal(held.status.phase, 'Running');
});

test('old containers are pruned but for the one before', () => {
  const containers = [3, 2, 1, 0].map((attempt) =>
    makeContainer(`c${attempt}`, app, attempt === 3 ? 'running' : 'exited', { attempt }),
  );
  const { actions } = planned(makePod(), { sandboxes: [makeSandbox('s0')], containers }, up);
  assert.deepEqual(keys(actions), ['removeContainer remove/c0', 'removeContainer remove/c1']);
});

const initSpec = (names: readonly string[], sidecars: readonly string[] = []): PodContainer[] =>
  names.map((name) => ({
    name,
    image: 'i:1',
    ...(sidecars.includes(name) ? { restartPolicy: 'Always' } : {}),
  }));

test('init containers run one after the other, sidecars only have to start', () => {
  const init = initSpec(['i1', 'side', 'i2'], ['side']);
  const pod = makePod({ initContainers: init });
  const memory = { ...up, images: { ...image('i1'), ...image('side'), ...image('i2'), ...image('app') } };
  const at = (containers: ObservedPod['containers']) =>
    keys(planned(pod, { sandboxes: [makeSandbox('s0')], containers }, memory).actions);
  const [i1, side, i2] = init as [PodContainer, PodContainer, PodContainer];
  const done = (container: PodContainer) => makeContainer(`c-${container.name}`, container, 'exited');
  const runs = (container: PodContainer) => makeContainer(`c-${container.name}`, container, 'running');
  assert.deepEqual(at([]), ['create create/i1']);
  assert.deepEqual(at([runs(i1)]), []);
  assert.deepEqual(at([done(i1)]), ['create create/side']);
  assert.deepEqual(at([runs(side), done(i1)]), ['create create/i2']);
  assert.deepEqual(at([runs(i2), runs(side), done(i1)]), []);
  assert.deepEqual(at([done(i2), runs(side), done(i1)]), ['create create/app']);
  assert.deepEqual(at([runs(app), done(i2), runs(side), done(i1)]), []);
  // The init containers' remains may be gone once the regular ones are there.
  assert.deepEqual(at([runs(app), runs(side)]), []);
});

test('a sidecar with a startup probe holds the next one up until it has started', () => {
  const side = { ...initSpec(['side'], ['side'])[0]!, startupProbe: { exec: { command: ['true'] } } };
  const pod = makePod({ initContainers: [side] });
  const observed = { sandboxes: [makeSandbox('s0')], containers: [makeContainer('c-side', side, 'running')] };
  const memory = { ...up, images: image('app') };
  assert.deepEqual(keys(planned(pod, observed, memory).actions), []);
  const started = planned(pod, observed, { ...memory, probes: { 'c-side': { started: true } } });
  assert.deepEqual(keys(started.actions), ['create create/app']);
});

test('a failed init container ends a pod that never restarts, and is run again otherwise', () => {
  const init = initSpec(['i1']);
  const failed = makeContainer('c1', init[0]!, 'exited', { exitCode: 3, reason: 'Error' });
  const observed = { sandboxes: [makeSandbox('s0')], containers: [failed] };
  const never = planned(makePod({ initContainers: init, restartPolicy: 'Never' }), observed, up);
  assert.equal(never.status.phase, 'Failed');
  assert.equal(never.final, true);
  const always = planned(makePod({ initContainers: init }), observed, up);
  assert.ok(keys(always.actions).includes('image image/i1'));
  assert.equal(always.status.phase, 'Pending');
});

test('sidecars do not keep a finished pod alive and end last, the last one first', () => {
  const init = initSpec(['s1', 's2'], ['s1', 's2']);
  const pod = makePod({ initContainers: init, restartPolicy: 'Never' });
  const sides = init.map((container) => makeContainer(`c-${container.name}`, container, 'running'));
  const at = (containers: ObservedPod['containers']) =>
    planned(pod, { sandboxes: [makeSandbox('s0')], containers }, up);
  const finished = makeContainer('c0', app, 'exited');
  const first = at([finished, ...sides]);
  assert.deepEqual(keys(first.actions), ['stop stop/c-s2']);
  assert.notEqual(first.status.phase, 'Succeeded', 'not told while something runs');
  const ended = makeContainer('c-s2', init[1]!, 'exited', { exitCode: 143 });
  assert.deepEqual(keys(at([finished, ended, sides[0]!]).actions), ['stop stop/c-s1']);
  const last = at([finished, ended, makeContainer('c-s1', init[0]!, 'exited', { exitCode: 143 })]);
  assert.equal(last.status.phase, 'Succeeded');
});

test('a lost sandbox is replaced, its containers restarted with the next number', () => {
  const pod = makePod();
  const lost = makeSandbox('s0', { state: 'notready' });
  const running = makeContainer('c0', app, 'running');
  const first = planned(pod, { sandboxes: [lost], containers: [running] }, up);
  assert.deepEqual(keys(first.actions), ['note note/sandbox', 'stop stop/c0']);
  const exited = makeContainer('c0', app, 'exited', { exitCode: 137 });
  const noted = { ...up, noted: { 'note/sandbox': 's0' } };
  const second = planned(pod, { sandboxes: [lost], containers: [exited] }, noted);
  assert.deepEqual(keys(second.actions), ['image image/app', 'stopSandbox sandbox/s0']);
  const third = planned(
    pod,
    { sandboxes: [lost], containers: [exited] },
    { ...noted, stoppedSandboxes: ['s0'] },
  );
  assert.deepEqual(
    third.actions.find(({ kind }) => kind === 'sandbox'),
    { kind: 'sandbox', key: 'sandbox', attempt: 1 },
  );
  const fresh = makeSandbox('s1', { attempt: 1 });
  const fourth = planned(
    pod,
    { sandboxes: [fresh, lost], containers: [exited] },
    { ...noted, images: image('app', 1) },
  );
  const create = fourth.actions.find(({ kind }) => kind === 'create');
  assert.equal(create?.kind === 'create' && create.attempt, 1);
  assert.equal(create?.kind === 'create' && create.sandboxId, 's1');
});

test('init containers run again in a new sandbox', () => {
  const init = initSpec(['i1']);
  const pod = makePod({ initContainers: init });
  const containers = [makeContainer('c0', app, 'exited'), makeContainer('c1', init[0]!, 'exited')];
  const fresh = {
    sandboxes: [makeSandbox('s1', { attempt: 1 }), makeSandbox('s0', { state: 'notready' })],
    containers,
  };
  const { actions } = planned(pod, fresh, { ...up, images: image('i1', 1) });
  assert.ok(keys(actions).includes('create create/i1'));
  assert.ok(!keys(actions).includes('create create/app'));
});

test('a pod that never restarts ends with its sandbox', () => {
  const pod = makePod({ restartPolicy: 'Never' });
  const observed = {
    sandboxes: [makeSandbox('s0', { state: 'notready' })],
    containers: [makeContainer('c0', app, 'exited', { exitCode: 137, reason: 'Error' })],
  };
  const { status, actions } = planned(pod, observed, { ...up, volumes: 'gone', stoppedSandboxes: ['s0'] });
  assert.equal(status.phase, 'Failed');
  assert.deepEqual(keys(actions), []);
});

test('a terminal phase is never left, whatever is observed', () => {
  for (const phase of ['Succeeded', 'Failed']) {
    const pod = makePod({}, { status: { phase } });
    const { actions, status } = planned(pod, none, { volumes: 'gone' });
    assert.deepEqual(keys(actions), []);
    assert.equal(status.phase, phase);
  }
});

test('activeDeadlineSeconds ends the pod, and only then is it told', () => {
  const pod = makePod(
    { activeDeadlineSeconds: 30 },
    { status: { phase: 'Running', startTime: '2026-01-01T00:00:00Z' } },
  );
  const sandboxes = [makeSandbox('s0')];
  const early = planned(pod, { sandboxes, containers: [makeContainer('c0', app, 'running')] }, up, {
    now: time + 10_000,
  });
  assert.equal(early.wakeAt, time + 30_000);
  const late = planned(pod, { sandboxes, containers: [makeContainer('c0', app, 'running')] }, up);
  assert.deepEqual(keys(late.actions), ['note note/failed', 'stop stop/c0']);
  assert.equal(late.status.phase, 'Running');
  const stopped = planned(
    pod,
    { sandboxes, containers: [makeContainer('c0', app, 'exited', { exitCode: 143 })] },
    up,
  );
  assert.equal(stopped.status.phase, 'Failed');
  assert.equal(stopped.status.reason, 'DeadlineExceeded');
});

test('a limit that nobody was there to see passing leaves the pod its grace all the same', () => {
  const pod = makePod(
    { activeDeadlineSeconds: 1, terminationGracePeriodSeconds: 30 },
    { status: { phase: 'Running', startTime: '2025-12-31T00:00:00Z' } },
  );
  const observed = { sandboxes: [makeSandbox('s0')], containers: [makeContainer('c0', app, 'running')] };
  const seen = withOverdue({ ...newMemory(time), ...up }, pod, observed, now);
  assert.equal(seen.overdueSince, now);
  assert.equal(withOverdue(seen, pod, observed, now + 5000), seen, 'seen once');
  for (const later of [0, 5000]) {
    const [stop] = planned(pod, observed, seen, { now: now + later }).actions.filter(
      ({ kind }) => kind === 'stop',
    );
    assert.equal(stop?.kind === 'stop' && stop.deadline, now + 30_000);
  }
  const early = makePod({ activeDeadlineSeconds: 600 }, { status: { startTime: '2026-01-01T00:00:00Z' } });
  assert.equal(withOverdue(newMemory(time), early, observed, now).overdueSince, undefined);
});

test('deletion: stop, then the last status and the removal of everything, then the object may go', () => {
  const pod = makePod({}, { status: { phase: 'Running' } });
  const sandboxes = [makeSandbox('s0')];
  const running = { sandboxes, containers: [makeContainer('c0', app, 'running')] };
  const memory = deleted(up);
  const first = planned(pod, running, memory, { inFlight: ['create/other'] });
  assert.equal(first.interruptStarts, true);
  assert.deepEqual(keys(first.actions), ['stop stop/c0']);
  assert.equal(first.final, false);
  const exited = { sandboxes, containers: [makeContainer('c0', app, 'exited', { exitCode: 0 })] };
  const waits = planned(pod, exited, memory, { inFlight: ['create/other'] });
  assert.equal(waits.final, false, 'what is being made must settle first');
  const second = planned(pod, exited, memory);
  assert.equal(second.final, true);
  assert.equal(second.gone, false);
  assert.equal(second.status.phase, 'Succeeded');
  assert.deepEqual(keys(second.actions), ['removeSandbox sandbox/s0', 'tearDown']);
  const final = { ...memory, final: second.status };
  const third = planned(pod, none, { ...final, volumes: 'gone' });
  assert.deepEqual(keys(third.actions), ['erase']);
  const fourth = planned(pod, none, { ...final, volumes: 'gone', erased: true });
  assert.deepEqual(keys(fourth.actions), []);
  assert.equal(fourth.gone, true);
  assert.equal(
    fourth.status.containerStatuses?.[0]?.state?.terminated?.exitCode,
    0,
    'the exit code outlives the container',
  );
});

test('a step of removing that failed is tried again later', () => {
  const failure = { reason: 'FailedKillPod', message: 'busy', count: 1, at: now, retryAt: now + 2000 };
  const memory = {
    ...deleted({ ...up, final: { phase: 'Failed' } }),
    teardownFailures: { tearDown: failure },
  };
  const held = planned(makePod(), none, memory);
  assert.deepEqual(keys(held.actions), []);
  assert.equal(held.wakeAt, now + 2000);
  assert.equal(held.gone, false);
  assert.deepEqual(keys(planned(makePod(), none, memory, { now: now + 2000 }).actions), ['tearDown']);
});

test('a later wish may only shorten the time to end', () => {
  const deletion = (deletionGracePeriodSeconds: number) =>
    makePod(
      {},
      {
        metadata: {
          name: 'web',
          uid: 'uid-1',
          deletionTimestamp: '2026-01-01T00:00:00Z',
          deletionGracePeriodSeconds,
        },
      },
    );
  const first = withTermination(newMemory(time), deletion(30), false, now);
  assert.equal(first.termination?.deadline, now + 30_000);
  assert.equal(
    withTermination(first, deletion(30), false, now + 5000),
    first,
    'nothing new, nothing changed',
  );
  assert.equal(withTermination(first, deletion(5), false, now + 1000).termination?.deadline, now + 6000);
  assert.equal(withTermination(first, deletion(600), false, now + 1000).termination?.deadline, now + 30_000);
  const gone = withTermination(first, deletion(30), true, now + 1000);
  assert.deepEqual(gone.termination, { kind: 'removed', since: now, deadline: now + 3000 });
  const vanished = withTermination(newMemory(time), makePod({ terminationGracePeriodSeconds: 7 }), true, now);
  assert.deepEqual(vanished.termination, { kind: 'removed', since: now, deadline: now + 7000 });
  assert.equal(
    withTermination(vanished, makePod(), true, now + 1000),
    vanished,
    'seen again, nothing changes',
  );
});

test('a refused pod fails with its reason and nothing is made', () => {
  const refused = { reason: 'OutOfcpu', message: 'too much' };
  const { actions, status } = planned(makePod(), none, { refused });
  assert.deepEqual(keys(actions), []);
  assert.equal(status.phase, 'Failed');
  assert.equal(status.reason, 'OutOfcpu');
  assert.equal(status.message, 'Pod was rejected: too much');
});

test('a changed image restarts the container', () => {
  const running = makeContainer('c0', app, 'running');
  const pod = makePod({ containers: [{ ...app, image: 'example:2' }] });
  const { actions } = planned(pod, { sandboxes: [makeSandbox('s0')], containers: [running] }, up);
  assert.deepEqual(
    actions.map((action) => action.kind === 'stop' && action.message),
    ['Container app definition changed, will be restarted'],
  );
});

test('a failed probe stops the container, again and again to one deadline', () => {
  const running = makeContainer('c0', app, 'running');
  const memory = { ...up, probes: { c0: { started: true, failed: 'liveness' as const } } };
  const observed = { sandboxes: [makeSandbox('s0')], containers: [running] };
  const [stop] = planned(makePod(), observed, memory).actions;
  assert.equal(
    stop?.kind === 'stop' && stop.message,
    'Container app failed liveness probe, will be restarted',
  );
  const later = plan({
    pod: makePod(),
    observed,
    memory: { ...newMemory(time), ...memory },
    inFlight: new Map([['stop/c0', { deadline: now + 30_000 }]]),
    old: undefined,
    hostIps: [],
    now: now + 9000,
  });
  assert.equal(later.actions[0]?.kind === 'stop' && later.actions[0].deadline, now + 30_000);
});

test('what could not be started is thrown away and made anew after a while', () => {
  const created = makeContainer('c0', app, 'created');
  const failure = {
    reason: 'RunContainerError',
    message: 'no such command',
    count: 1,
    at: now,
    retryAt: now + 2000,
  };
  const memory = { ...up, broken: ['c0'], startFailures: { app: failure } };
  const observed = { sandboxes: [makeSandbox('s0')], containers: [created] };
  const held = planned(makePod(), observed, memory);
  assert.deepEqual(keys(held.actions), []);
  assert.deepEqual(held.status.containerStatuses?.[0]?.state?.waiting, {
    reason: 'RunContainerError',
    message: 'no such command',
  });
  assert.equal(held.wakeAt, now + 2000);
  const next = planned(makePod(), observed, { ...memory, images: image('app', 1) }, { now: now + 2000 });
  assert.equal(next.actions[0]?.kind === 'create' && next.actions[0].attempt, 1, 'with the next number');
  const after = { ...observed, containers: [makeContainer('c1', app, 'running', { attempt: 1 }), created] };
  assert.deepEqual(keys(planned(makePod(), after, memory).actions), ['removeContainer remove/c0']);
});

test('volumes are set up again when they are due, and after a restart of the agent', () => {
  const observed = { sandboxes: [makeSandbox('s0')], containers: [makeContainer('c0', app, 'running')] };
  assert.deepEqual(keys(planned(makePod(), observed, { ...up, volumes: 'unknown' }).actions), ['volumes']);
  const quiet = planned(makePod(), observed, { ...up, refreshAt: now + 5000 });
  assert.deepEqual(keys(quiet.actions), []);
  assert.equal(quiet.wakeAt, now + 5000);
  assert.deepEqual(keys(planned(makePod(), observed, { ...up, refreshAt: now }).actions), ['volumes']);
});
