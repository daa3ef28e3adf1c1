/** Steps of taking down that fail wait before they are tried again, wherever they are wanted; which dead containers go. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { newMemory, type PodMemory } from '../../../agent/pods/plan/memory.ts';
import { type PlanInput, plan } from '../../../agent/pods/plan/plan.ts';
import { makeContainer, makePod, makeSandbox, time } from './objects.ts';

const now = time + 100_000;
const app = { name: 'app', image: 'example:1' };
const up: Partial<PodMemory> = { cgroupReady: true, volumes: 'ready' };
const ended = [2, 1, 0].map((attempt) =>
  makeContainer(`c${attempt}`, app, attempt === 2 ? 'running' : 'exited', { attempt, exitCode: 1 }),
);
const planned = (input: Partial<PlanInput>, memory: Partial<PodMemory> = {}) =>
  plan({
    pod: makePod(),
    observed: { sandboxes: [makeSandbox('s0')], containers: ended },
    inFlight: new Map(),
    old: undefined,
    hostIps: [],
    now,
    ...input,
    memory: { ...newMemory(time), ...up, ...memory },
  });
const keys = ({ actions }: ReturnType<typeof plan>) =>
  actions.flatMap(({ kind, key }) => (kind === 'note' ? [] : [key])).sort();
const held = (...names: string[]): Partial<PodMemory> => ({
  teardownFailures: Object.fromEntries(
    names.map((key) => [key, { reason: 'x', message: 'm', count: 1, at: now, retryAt: now + 2000 }]),
  ),
});
const deleted: Partial<PodMemory> = { termination: { kind: 'deleted', since: now, deadline: now + 30_000 } };

const cases: readonly [string, string[], Partial<PlanInput>, Partial<PodMemory>][] = [
  ['an old container that cannot be removed', ['remove/c0'], {}, {}],
  ['a container that cannot be stopped', ['stop/c2'], {}, deleted],
  [
    'a container with a new definition that cannot be stopped',
    ['stop/c2'],
    { pod: makePod({ containers: [{ name: 'app', image: 'example:2' }] }) },
    {},
  ],
  [
    'a sandbox that cannot be stopped before the next is made',
    ['sandbox/s0'],
    { observed: { sandboxes: [makeSandbox('s0', { ips: [] })], containers: [] } },
    {},
  ],
  [
    'a sandbox that cannot be removed',
    ['sandbox/s0'],
    { observed: { sandboxes: [makeSandbox('s0')], containers: [] } },
    { ...deleted, volumes: 'gone' },
  ],
  [
    'volumes of a pod that has ended',
    ['tearDown'],
    {
      pod: makePod({ restartPolicy: 'Never' }),
      observed: { sandboxes: [], containers: [makeContainer('c0', app, 'exited')] },
      old: { phase: 'Succeeded' },
    },
    {},
  ],
];
for (const [what, wanted, input, memory] of cases) {
  test(`${what} is tried again, but not at once`, () => {
    const before = planned(input, memory);
    for (const key of wanted) assert.ok(keys(before).includes(key), `${key} in ${keys(before).join()}`);
    const next = planned(input, { ...memory, ...held(...wanted) });
    assert.deepEqual(
      keys(next),
      keys(before).filter((key) => !wanted.includes(key)),
    );
    assert.ok(next.wakeAt !== undefined && next.wakeAt <= now + 2000, 'it knows when to go on');
    const later = planned({ ...input, now: now + 2000 }, { ...memory, ...held(...wanted) });
    for (const key of wanted) assert.ok(keys(later).includes(key));
  });
}

test('as many dead containers are kept as is said, and the newest in any case', () => {
  const dead = [3, 2, 1, 0].map((attempt) =>
    makeContainer(`c${attempt}`, app, 'exited', { attempt, exitCode: 1 }),
  );
  const observed = { sandboxes: [makeSandbox('s0')], containers: dead };
  const removed = (perContainer: number) =>
    keys(planned({ observed, dead: { perContainer, minAgeMs: 0 } })).filter((key) =>
      key.startsWith('remove'),
    );
  assert.deepEqual(removed(0), ['remove/c0', 'remove/c1', 'remove/c2']);
  assert.deepEqual(removed(1), ['remove/c0', 'remove/c1']);
  assert.deepEqual(removed(2), ['remove/c0']);
  assert.deepEqual(removed(3), []);
});

test('a dead container is kept for its time', () => {
  const dead = { perContainer: 1, minAgeMs: 150_000 };
  const young = planned({ dead });
  assert.deepEqual(keys(young), []);
  assert.equal(young.wakeAt, ended[2]!.createdAt + dead.minAgeMs);
  assert.deepEqual(keys(planned({ dead, now: time + 150_000 })), ['remove/c0']);
});

test('containers that never ran do not take the place of the one whose log is kept', () => {
  const states = [
    ['c3', 'created'],
    ['c2', 'created'],
    ['c1', 'exited'],
    ['c0', 'exited'],
  ] as const;
  const containers = states.map(([id, state], index) =>
    makeContainer(id, app, state, { attempt: 3 - index, exitCode: 1 }),
  );
  const next = planned({ observed: { sandboxes: [makeSandbox('s0')], containers } });
  assert.deepEqual(
    keys(next).filter((key) => key.startsWith('remove')),
    ['remove/c0', 'remove/c2'],
  );
});
