/** The planner: ephemeral containers, rules, graces, hooks of sidecars, pods that begin anew. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Pod, PodContainer, PodStatus } from '../../../agent/apiserver/types.ts';
import { type Action, due } from '../../../agent/pods/plan/actions.ts';
import { newMemory, type PodMemory } from '../../../agent/pods/plan/memory.ts';
import { type Plan, plan } from '../../../agent/pods/plan/plan.ts';
import { restartsAfter, restartsWhenKilled, ruleFor } from '../../../agent/pods/spec/pod.ts';
import type { ContainerStatus } from '../../../runtime/api.ts';
import { makeContainer, makePod, makeSandbox, time } from './objects.ts';

const now = time + 60_000;
const app: PodContainer = { name: 'app', image: 'example:1' };
const debug: PodContainer = { name: 'debug', image: 'tools:1' };
const up: Partial<PodMemory> = { cgroupReady: true, volumes: 'ready' };
const image = (name: string, attempt = 0) => ({ [name]: { attempt, imageId: 'sha256:abc' } });
const sandboxes = [makeSandbox('s0')];

function planned(
  pod: Pod,
  containers: ContainerStatus[],
  memory: Partial<PodMemory> = {},
  rest: { inFlight?: readonly string[]; old?: PodStatus; now?: number } = {},
): Plan {
  return plan({
    pod,
    observed: { sandboxes, containers },
    memory: { ...newMemory(time), ...up, ...memory },
    inFlight: new Map((rest.inFlight ?? []).map((key) => [key, {}])),
    old: rest.old ?? pod.status,
    hostIps: ['192.0.2.1'],
    now: rest.now ?? now,
  });
}
const keys = (actions: readonly Action[]) => actions.map(({ key }) => key).sort();

test('an ephemeral container is made beside what runs, and only once', () => {
  const pod = makePod({ containers: [app], ephemeralContainers: [debug] });
  const running = makeContainer('c1', app, 'running');
  const states: [string, ContainerStatus[], PodStatus | undefined, string[]][] = [
    ['new', [], undefined, ['create/debug']],
    ['created', [makeContainer('d', debug, 'created')], undefined, ['start/debug']],
    ['running', [makeContainer('d', debug, 'running')], undefined, []],
    ['failed', [makeContainer('d', debug, 'exited', { exitCode: 1 })], undefined, []],
    ['made in a lost sandbox', [makeContainer('d', debug, 'created', { podSandboxId: 'x' })], undefined, []],
    [
      'forgotten by the runtime',
      [],
      {
        ephemeralContainerStatuses: [
          { name: 'debug', image: '', imageID: '', ready: false, restartCount: 0, state: { running: {} } },
        ],
      },
      [],
    ],
  ];
  for (const [what, own, old, wanted] of states) {
    const { actions, status } = planned(pod, [...own, running], { images: image('debug') }, { old });
    assert.deepEqual(keys(actions), wanted, what);
    assert.deepEqual(
      status.ephemeralContainerStatuses?.map(({ name, restartCount, ready }) => [name, restartCount, ready]),
      [['debug', 0, false]],
      what,
    );
    assert.equal(status.phase, 'Running', what);
  }
});

test('an ephemeral container does not wait for init containers, nor keeps a pod alive', () => {
  const init: PodContainer = { name: 'init', image: 'init:1' };
  const pod = makePod({
    initContainers: [init],
    containers: [app],
    ephemeralContainers: [debug],
    restartPolicy: 'Never',
  });
  const early = planned(pod, [makeContainer('i', init, 'running')], { images: image('debug') });
  assert.ok(keys(early.actions).includes('create/debug'));
  const over = planned(pod, [
    makeContainer('d', debug, 'running'),
    makeContainer('c', app, 'exited'),
    makeContainer('i', init, 'exited'),
  ]);
  assert.deepEqual(keys(over.actions), ['stop/d']);
});

test('why an ephemeral container waits is told', () => {
  const pod = makePod({ containers: [app], ephemeralContainers: [debug] });
  const failure = { reason: 'ErrImagePull', message: 'gone', count: 1, at: now, retryAt: now + 9000 };
  const { status } = planned(pod, [makeContainer('c', app, 'running')], {
    images: { debug: { attempt: 0, failure } },
  });
  assert.deepEqual(status.ephemeralContainerStatuses?.[0]?.state, {
    waiting: { reason: 'ErrImagePull', message: 'gone' },
  });
});

test('the first rule that fits decides, then the policies', () => {
  const ruled = (restartPolicy: string | undefined, ...rules: [string, string, number[]][]) =>
    ({
      ...app,
      restartPolicy,
      restartPolicyRules: rules.map(([action, operator, values]) => ({
        action,
        exitCodes: { operator, values },
      })),
    }) as PodContainer;
  const pod = makePod({ restartPolicy: 'Never' });
  const cases: [PodContainer, number, string | undefined, boolean][] = [
    [ruled('Never', ['Restart', 'In', [42]]), 42, 'Restart', true],
    [ruled('Never', ['Restart', 'In', [42]]), 1, undefined, false],
    [ruled('Never', ['Restart', 'NotIn', [42]]), 42, undefined, false],
    [ruled('Never', ['Restart', 'NotIn', [42]]), 1, 'Restart', true],
    [ruled('Never', ['Restart', 'In', [1]], ['RestartAllContainers', 'In', [1]]), 1, 'Restart', true],
    [
      ruled('Never', ['RestartAllContainers', 'In', [1]], ['Restart', 'In', [1]]),
      1,
      'RestartAllContainers',
      true,
    ],
    [ruled('Never', ['Restart', 'Else', [1]]), 1, undefined, false],
    [ruled('OnFailure', ['Restart', 'In', [0]]), 0, 'Restart', true],
    [ruled('OnFailure'), 1, undefined, true],
    [ruled('OnFailure'), 0, undefined, false],
    [ruled('Always'), 0, undefined, true],
    [ruled(undefined, ['Restart', 'In', [1]]), 1, undefined, false],
  ];
  for (const [container, code, rule, again] of cases) {
    assert.equal(ruleFor(container, code), rule, JSON.stringify([container, code]));
    assert.equal(restartsAfter(pod, container, code), again, JSON.stringify([container, code]));
  }
  assert.equal(restartsWhenKilled(pod, ruled('Never', ['Restart', 'In', [137]])), false);
  assert.equal(restartsWhenKilled(pod, ruled('OnFailure')), true);
});

test('a probe that failed has a grace of its own', () => {
  const probe = { exec: { command: ['x'] }, terminationGracePeriodSeconds: 7 };
  for (const [failed, field] of [
    ['liveness', 'livenessProbe'],
    ['startup', 'startupProbe'],
  ] as const) {
    for (const [container, grace] of [
      [{ ...app, [field]: probe }, 7],
      [{ ...app, [field]: { exec: { command: ['x'] } } }, 50],
    ] as const) {
      const pod = makePod({ containers: [container], terminationGracePeriodSeconds: 50 });
      const { actions } = planned(pod, [makeContainer('c', container, 'running')], {
        probes: { c: { failed } },
      });
      const stop = actions.find(({ kind }) => kind === 'stop') as Extract<Action, { kind: 'stop' }>;
      assert.equal(stop.deadline, now + grace * 1000, failed);
      assert.equal(stop.message, `Container app failed ${failed} probe, will be restarted`);
    }
  }
});

const lifecycle = { preStop: { exec: { command: ['x'] } } };
const first = { name: 'first', image: 's:1', restartPolicy: 'Always', lifecycle } as PodContainer;
const second = { name: 'second', image: 's:1', restartPolicy: 'Always' } as PodContainer;
const dying = { kind: 'deleted', since: now, deadline: now + 30_000 } as const;

test('sidecars end in reverse, their hooks do not wait, and at the deadline all end', () => {
  const pod = makePod({ initContainers: [first, second], containers: [app] });
  const all = [
    makeContainer('c', app, 'running'),
    makeContainer('s2', second, 'running'),
    makeContainer('s1', first, 'running'),
  ];
  const begin = planned(pod, all, { termination: dying });
  assert.deepEqual(keys(begin.actions), ['preStop/s1', 'stop/c']);
  assert.equal(begin.wakeAt, dying.deadline);
  const hooked = planned(pod, all, { termination: dying, hooked: ['s1'] });
  assert.deepEqual(keys(hooked.actions), ['stop/c']);
  const later = planned(pod, all.slice(1), { termination: dying }, { inFlight: ['preStop/s1'] });
  assert.deepEqual(keys(later.actions), ['preStop/s1', 'stop/s2']);
  const waits = planned(pod, all.slice(2), { termination: dying }, { inFlight: ['preStop/s1'] });
  assert.deepEqual(keys(waits.actions), ['preStop/s1'], 'its hook is not over');
  const [last] = planned(pod, all.slice(2), { termination: dying, hooked: ['s1'] }).actions;
  assert.deepEqual([last?.key, (last as { bare?: true }).bare], ['stop/s1', true]);
  const [unhooked] = planned(pod, all.slice(2), { termination: dying }).actions;
  assert.deepEqual([unhooked?.key, (unhooked as { bare?: true }).bare], ['stop/s1', undefined]);
  const end = planned(pod, all, { termination: dying }, { now: dying.deadline });
  assert.deepEqual(keys(end.actions), ['stop/c', 'stop/s1', 'stop/s2']);
  assert.equal(end.wakeAt, undefined);
});

test('less time interrupts a hook that runs ahead', () => {
  const action: Action = { kind: 'preStop', key: 'preStop/x', container: 'x', id: 'x', deadline: 5 };
  assert.deepEqual(due([action], new Map([['preStop/x', { deadline: 9 }]])).interrupt, ['preStop/x']);
  assert.deepEqual(due([action], new Map([['preStop/x', { deadline: 5 }]])).interrupt, []);
});

test('sidecars are not started again while the pod ends', () => {
  const pod = makePod({ initContainers: [first, second], containers: [app] });
  const { actions } = planned(
    pod,
    [makeContainer('c', app, 'running'), makeContainer('s2', second, 'exited', { exitCode: 1 })],
    { termination: dying },
  );
  assert.deepEqual(keys(actions), ['stop/c']);
});

test('a pod begins anew: all is ended and removed, the cause last, and counted', () => {
  const source = {
    ...app,
    restartPolicy: 'Never',
    restartPolicyRules: [{ action: 'RestartAllContainers', exitCodes: { operator: 'In', values: [88] } }],
  } as PodContainer;
  const init: PodContainer = { name: 'init', image: 'i:1' };
  const other: PodContainer = { name: 'other', image: 'o:1', lifecycle };
  const pod = makePod({
    initContainers: [init],
    containers: [source, other],
    ephemeralContainers: [debug],
    restartPolicy: 'Never',
  });
  const exited = makeContainer('c', source, 'exited', { exitCode: 88 });
  const inits = [makeContainer('i1', init, 'exited', { attempt: 1 }), makeContainer('i0', init, 'exited')];
  const running = makeContainer('o', other, 'running');
  const ephemeral = makeContainer('d', debug, 'running');
  const before = planned(pod, [makeContainer('c', source, 'running'), running, ...inits, ephemeral]);
  const condition = ({ status }: Plan) => {
    const found = status.conditions?.find(({ type }) => type === ('AllContainersRestarting' as string));
    return [found?.status, found?.reason];
  };
  assert.deepEqual(condition(before), ['False', undefined]);
  const one = planned(pod, [exited, running, ...inits, ephemeral], {}, { old: before.status });
  assert.deepEqual(keys(one.actions), ['remove/i0', 'stop/o']);
  assert.ok(
    one.actions.every((action) => action.kind !== 'stop' || (action.bare && action.deadline === now)),
  );
  assert.ok(one.actions.every((action) => action.kind !== 'removeContainer' || action.keepLogs));
  assert.deepEqual(condition(one), ['True', 'RestartAllContainersStarted']);
  assert.equal(one.status.phase, 'Running');
  const two = planned(pod, [exited, { ...running, state: 'exited', exitCode: 137 }], {}, { old: one.status });
  assert.deepEqual(keys(two.actions), ['remove/o']);
  const three = planned(pod, [exited, ephemeral], {}, { old: two.status });
  assert.deepEqual(keys(three.actions), ['remove/c']);
  const done = planned(pod, [ephemeral], {}, { old: three.status });
  assert.deepEqual(condition(done), ['False', undefined]);
  assert.deepEqual(keys(done.actions), ['image/app', 'image/init', 'image/other']);
  const states = [...(done.status.initContainerStatuses ?? []), ...(done.status.containerStatuses ?? [])];
  for (const { name, state, lastState, restartCount } of states) {
    assert.equal(state?.waiting?.reason, 'RestartingAllContainers', name);
    assert.equal(lastState?.terminated?.reason, 'RestartingAllContainers', name);
    assert.equal(restartCount, name === 'init' ? 2 : 1, name);
  }
  const again = planned(pod, [ephemeral], { images: image('init', 2) }, { old: done.status });
  assert.deepEqual(
    again.actions.flatMap((action) => (action.kind === 'create' ? [[action.container, action.attempt]] : [])),
    [['init', 2]],
  );
  assert.deepEqual(condition(again), ['False', undefined]);
  assert.equal(again.status.conditions?.find(({ type }) => type === 'Initialized')?.status, 'True');
});

test('the signal and the user of a container are told', () => {
  const container = { ...app, lifecycle: { stopSignal: 'SIGUSR1' } } as PodContainer;
  const running = makeContainer('c', container, 'running', {
    stopSignal: 'SIGUSR1',
    user: { uid: 7, gid: 8, supplementalGroups: [9] },
  });
  const [status] = planned(makePod({ containers: [container] }), [running]).status
    .containerStatuses as object[];
  assert.deepEqual(
    [(status as { stopSignal?: string }).stopSignal, (status as { user?: object }).user],
    ['SIGUSR1', { linux: { uid: 7, gid: 8, supplementalGroups: [9] } }],
  );
});

test('another image: nothing of the one before counts, neither its failures nor its crashes', () => {
  const pod = makePod({ containers: [{ ...app, image: 'example:2' }] });
  const failure = { reason: 'ErrImagePull', message: 'm', count: 6, at: now - 1, retryAt: now + 300_000 };
  const pulling = planned(pod, [], { images: { app: { attempt: 0, image: 'example:1', failure } } });
  const wanted = pulling.actions.find(({ key }) => key === 'image/app');
  assert.equal((wanted as { image?: string }).image, 'example:2');
  assert.deepEqual(due([wanted!], new Map([['image/app', { image: 'example:1' }]])).interrupt, ['image/app']);
  assert.deepEqual(due([wanted!], new Map([['image/app', { image: 'example:2' }]])).interrupt, []);
  const had = planned(pod, [], {
    images: { app: { attempt: 0, image: 'example:1', imageId: 'sha256:old' } },
  });
  assert.deepEqual(keys(had.actions), ['image/app']);

  const crashed = makeContainer('c', app, 'exited', { exitCode: 1, attempt: 4, finishedAt: now - 1 });
  const crash = { app: { delayMs: 300_000, lastAt: now - 10, forId: '' } };
  const same = planned(makePod(), [crashed], { crash, images: image('app', 5) });
  assert.equal(same.status.containerStatuses?.[0]?.state?.waiting?.reason, 'CrashLoopBackOff');
  const changed = planned(pod, [crashed], { crash, images: image('app', 5) });
  const [create] = changed.actions.filter(({ kind }) => kind === 'create');
  assert.deepEqual((create as { crash?: object }).crash, { delayMs: 10_000, lastAt: now, forId: 'c' });
});
