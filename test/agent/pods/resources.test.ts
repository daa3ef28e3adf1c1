/** Resizes, preemption, QoS groups and statuses of resources: the pure parts. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Pod, PodContainer, PodStatus } from '../../../agent/apiserver/types.ts';
import {
  allocationFromStatus,
  allocationOf,
  grows,
  inTurn,
  isAllocated,
  restartsFor,
  withAllocation,
} from '../../../agent/pods/resources/allocation.ts';
import { operatingSystem, requestOf, type Shortage, taints } from '../../../agent/pods/resources/fit.ts';
import {
  type KernelSettings,
  kernelLimits,
  podHugepages,
  swapDevices,
  swapForbids,
} from '../../../agent/pods/resources/kernel_limits.ts';
import { parsePodLimits } from '../../../agent/pods/resources/pod_cgroup.ts';
import { choosePreempted, preemptable } from '../../../agent/pods/resources/preemption.ts';
import {
  burstableShares,
  kubepodsLimits,
  makeQosGroups,
  reservedGroups,
} from '../../../agent/pods/resources/qos_groups.ts';
import { readAllocation, writeAllocation } from '../../../agent/pods/resources/record.ts';
import {
  holdsStarts,
  needsRestart,
  resizeActions,
  resizeConditions,
  withChange,
} from '../../../agent/pods/resources/resize_plan.ts';
import { containerResourceStatus, podResources } from '../../../agent/pods/resources/resource_status.ts';
import { judge } from '../../../agent/pods/spec/admission.ts';
import {
  containerResources,
  effectiveNeeds,
  oomScoreAdj,
  podCgroupResources,
  qosClassOf,
} from '../../../agent/pods/spec/qos.ts';
import { statusPatch } from '../../../agent/pods/status_writer.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { makeContainer, makePod, time } from './objects.ts';

type Amounts = Record<string, string>;
const asking = (requests: Amounts, limits?: Amounts, more: object = {}): PodContainer => ({
  name: 'app',
  image: 'example:1',
  resources: { requests, ...(limits ? { limits } : {}) },
  ...more,
});
const podOf = (name: string, requests: Amounts, limits?: Amounts, spec: object = {}): Pod =>
  makePod({ containers: [asking(requests, limits)], ...spec }, { metadata: { name, uid: `uid-${name}` } });

function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
    return state / 2_147_483_648;
  };
}

test('what a pod was given replaces what it wants, and only there', () => {
  const small = podOf('a', { cpu: '100m', memory: '64Mi' }, { memory: '128Mi' });
  const large = podOf('a', { cpu: '200m', memory: '64Mi' }, { memory: '128Mi' });
  const given = allocationOf(small);
  assert.ok(isAllocated(small, given));
  assert.ok(!isAllocated(large, given));
  assert.deepEqual(withAllocation(large, given), small);
  assert.equal(withAllocation(small, given), small, 'the same object');
  const written = podOf('a', { cpu: '0.1', memory: '65536Ki' }, { memory: '134217728' });
  assert.ok(isAllocated(written, given), 'amounts count, not words');
  assert.ok(grows(large, given));
  assert.ok(!grows(small, allocationOf(large)));
});

test('property: an allocation survives its file, and a pod given what it wants wants nothing', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-allocation-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const random = seeded(3);
  const amounts = (): Amounts => ({
    ...(random() < 0.7 ? { cpu: `${Math.ceil(random() * 4000)}m` } : {}),
    ...(random() < 0.7 ? { memory: `${Math.ceil(random() * 4000)}Mi` } : {}),
  });
  for (let round = 0; round < 200; round++) {
    const make = () =>
      makePod({
        containers: [asking(amounts(), amounts()), { ...asking(amounts()), name: 'b' }],
        ...(random() < 0.3 ? { resources: { requests: amounts(), limits: amounts() } } : {}),
      } as object);
    const [before, wanted] = [make(), make()];
    if ('resources' in before.spec! !== 'resources' in wanted.spec!) continue;
    const allocation = allocationOf(before);
    writeAllocation(folder, 'u', { allocation, generation: round, completed: round % 2 === 0 });
    assert.deepEqual(readAllocation(folder, 'u'), {
      allocation,
      generation: round,
      completed: round % 2 === 0,
    });
    const run = withAllocation(wanted, allocation);
    assert.ok(isAllocated(run, allocation));
    assert.equal(requestOf(run, 'cpu'), requestOf(before, 'cpu'));
    assert.equal(requestOf(run, 'memory'), requestOf(before, 'memory'));
    assert.ok(isAllocated(wanted, allocationOf(wanted)));
  }
  assert.equal(readAllocation(folder, 'unknown'), undefined);
});

test('without a record the status that was written tells what a pod was given', () => {
  const wanted = podOf('a', { cpu: '2' }, { cpu: '4' });
  const status = {
    containerStatuses: [
      {
        name: 'app',
        allocatedResources: { cpu: '1' },
        resources: { requests: { cpu: '1' }, limits: { cpu: '3' } },
      },
    ],
  } as unknown as PodStatus;
  assert.deepEqual(allocationFromStatus(wanted, status).containers, {
    app: { requests: { cpu: '1' }, limits: { cpu: '3' } },
  });
  assert.deepEqual(allocationFromStatus(wanted, undefined), allocationOf(wanted));
});

test('resizes are tried: shrinking ones, then by priority, class and time', () => {
  const little = allocationOf(podOf('x', { cpu: '100m', memory: '1Mi' }));
  const pending = (name: string, requests: Amounts, priority: number, since?: number, limits?: Amounts) => ({
    pod: podOf(name, requests, limits, { priority }),
    given: little,
    since,
  });
  const all = [
    pending('late', { cpu: '1' }, 0, 20),
    pending('early', { cpu: '1' }, 0, 10),
    pending('high', { cpu: '1' }, 5, 30),
    pending('guaranteed', { cpu: '1', memory: '1Gi' }, 0, 40, { cpu: '1', memory: '1Gi' }),
    pending('shrinks', { cpu: '50m' }, -1, 50),
  ];
  const order = ['shrinks', 'high', 'guaranteed', 'early', 'late'];
  for (const list of [all, [...all].reverse()])
    assert.deepEqual(
      inTurn(list).map(({ pod }) => pod.metadata!.name),
      order,
    );
});

test('a resizePolicy restarts for its own resource only', () => {
  const policy = (cpu: string, memory: string) => ({
    resizePolicy: [
      { resourceName: 'cpu', restartPolicy: cpu },
      { resourceName: 'memory', restartPolicy: memory },
    ],
  });
  const made = { requests: { cpu: '1', memory: '1Gi' } };
  const now = (cpu: string, memory: string, more: object) => asking({ cpu, memory }, undefined, more);
  const [never, onMemory] = [policy('NotRequired', 'NotRequired'), policy('NotRequired', 'RestartContainer')];
  const pod = makePod();
  assert.equal(restartsFor(now('2', '2Gi', never), pod, made), false);
  assert.equal(restartsFor(now('2', '1Gi', onMemory), pod, made), false);
  assert.equal(restartsFor(now('1', '2Gi', onMemory), pod, made), true);
  assert.equal(restartsFor(now('1', '1024Mi', onMemory), pod, made), false);
  // A limit that is not its own comes with the pod's.
  const whole = (memory: string) => makePod({ resources: { limits: { cpu: '3', memory } } } as object);
  const bare = asking({}, undefined, onMemory);
  assert.equal(restartsFor(bare, whole('4Gi'), effectiveNeeds(bare, whole('4Gi'))), false);
  assert.equal(restartsFor(bare, whole('4Gi'), effectiveNeeds(bare, whole('3Gi'))), true);
  const own = asking({}, { memory: '1Gi' }, onMemory);
  assert.equal(restartsFor(own, whole('4Gi'), effectiveNeeds(own, whole('3Gi'))), false);
});

test('a resize goes: stop what must be made anew, set the cgroups, tell', () => {
  const container = asking({ memory: '2Gi' }, undefined, {
    resizePolicy: [{ resourceName: 'memory', restartPolicy: 'RestartContainer' }],
  });
  const pod = makePod({ containers: [container] });
  const annotations = { 'keelson.io/container.resources': JSON.stringify({ requests: { memory: '1Gi' } }) };
  const running = makeContainer('c0', container, 'running', { annotations });
  const state = withChange(undefined, { pending: undefined, begun: 2 })!;
  assert.ok(holdsStarts(state));
  assert.ok(needsRestart(state, container, pod, running));
  const next = (of: typeof state, newest: typeof running | undefined, keys: string[] = []) =>
    resizeActions(pod, of, () => newest, new Map(keys.map((key) => [key, {}])), time).actions.map(
      ({ kind }) => kind,
    );
  assert.deepEqual(next(state, running), []);
  const ended = { ...running, state: 'exited' as const };
  assert.deepEqual(next(state, ended), ['resize']);
  assert.deepEqual(next(state, ended, ['create/app']), []);
  assert.deepEqual(next({ ...state, actuated: true }, ended), ['resized']);
  assert.ok(!holdsStarts({ ...state, actuated: true }));
  assert.deepEqual(next({ ...state, actuated: true }, running), [], 'it came up meanwhile');
  const made = { ...running, state: 'created' as const };
  assert.deepEqual(next(state, made, ['start/app']), [], 'it will run with what it was made with');
  assert.deepEqual(next(state, made), ['resize']);
  const failure = { reason: 'Error', message: 'x', count: 1, at: time, retryAt: time + 5 };
  assert.equal(resizeActions(pod, { ...state, failure }, () => ended, new Map(), time).wakeAt, time + 5);
  assert.deepEqual(next({ ...state, failure: { ...failure, retryAt: time } }, ended), ['resize']);
  assert.ok(!needsRestart(undefined, container, pod, running), 'nothing is restarted without a resize');
});

test('conditions of a resize keep their time and their generation, and go again', () => {
  const pending = { reason: 'Deferred' as const, message: 'no room', generation: 3 };
  const first = resizeConditions({ pending, progress: { generation: 2 } }, undefined, time);
  assert.deepEqual(
    first.map((one) => [one.type, one.reason, (one as { observedGeneration?: number }).observedGeneration]),
    [
      ['PodResizePending', 'Deferred', 3],
      ['PodResizeInProgress', undefined, 2],
    ],
  );
  const later = resizeConditions({ pending }, { conditions: first }, time + 60_000);
  assert.equal(later[0]!.lastTransitionTime, first[0]!.lastTransitionTime);
  const never = { ...pending, reason: 'Infeasible' as const };
  const changed = resizeConditions({ pending: never }, { conditions: first }, time + 60_000);
  assert.notEqual(changed[0]!.lastTransitionTime, first[0]!.lastTransitionTime);
  const patch = statusPatch('u', { conditions: first }, { conditions: later });
  assert.deepEqual(patch, {
    metadata: { uid: 'u' },
    status: { conditions: [{ type: 'PodResizeInProgress', $patch: 'delete' }] },
  });
});

test('statuses show what the cgroup has only while it may differ', () => {
  const container = asking({ cpu: '250m', memory: '64Mi' }, { cpu: '500m', memory: '128Mi' });
  const has = { cpuShares: 102, cpuQuota: 20_000, cpuPeriod: 100_000, memoryLimitBytes: 64 * 2 ** 20 };
  const running = makeContainer('c0', container, 'running', { resources: has });
  assert.deepEqual(containerResourceStatus(container, running, undefined, false), {
    allocatedResources: { cpu: '250m', memory: '64Mi' },
    resources: container.resources,
  });
  assert.deepEqual(containerResourceStatus(container, running, undefined, true), {
    allocatedResources: { cpu: '250m', memory: '64Mi' },
    resources: { requests: { cpu: '100m', memory: '64Mi' }, limits: { cpu: '200m', memory: '64Mi' } },
  });
  assert.deepEqual(podResources(makePod()), {});
  // Half a byte may be asked for, and then it is what was given.
  const odd = makePod({
    containers: [asking({})],
    resources: { requests: { cpu: '4m', memory: '10m' } },
  } as object);
  const requests = { cpu: '4m', memory: '10m' };
  assert.deepEqual(podResources(odd), { resources: { requests }, allocatedResources: requests });
});

test('the status of a pod as a whole: what it was given, and what it still has while that is not done', () => {
  const needs = (cpu: string, memory: string) => ({
    requests: { cpu, memory },
    limits: { cpu, memory },
  });
  const pod = makePod({ containers: [asking({})], resources: needs('200m', '10Ki') } as object);
  assert.deepEqual(podResources(pod), {
    resources: needs('200m', '10Ki'),
    allocatedResources: { cpu: '200m', memory: '10Ki' },
  });
  assert.deepEqual(podResources(pod, needs('100m', '64Mi')), {
    resources: { requests: { cpu: '100m', memory: '10Ki' }, limits: { cpu: '100m', memory: '64Mi' } },
    allocatedResources: { cpu: '200m', memory: '10Ki' },
  });
  assert.deepEqual(
    podResources(pod, { requests: { cpu: '100m' } }),
    {
      resources: { requests: { cpu: '100m', memory: '10Ki' }, limits: { cpu: '200m', memory: '10Ki' } },
      allocatedResources: { cpu: '200m', memory: '10Ki' },
    },
    'what was not told of is as it was given',
  );
});

test('property: kernel numbers of a container that has what it was given read back as its own words', () => {
  const settings = {
    driver: 'cgroupfs',
    root: '/',
    cpuCfsQuota: true,
    cpuCfsPeriodUs: 100_000,
  } as const;
  for (const milliCpu of [1, 2, 5, 9, 10, 11, 33, 100, 333, 999, 1000, 1500, 2001, 64_000]) {
    const amounts = { cpu: `${milliCpu}m`, memory: '100M' };
    const container = asking(amounts, amounts);
    const resources = containerResources(container, settings);
    const running = makeContainer('c0', container, 'running', { resources });
    assert.deepEqual(
      (containerResourceStatus(container, running, undefined, true) as { resources: object }).resources,
      container.resources,
      `${milliCpu}m`,
    );
  }
});

test('a pod as a whole: class, cgroup, limits for containers without own, and oom scores', () => {
  const settings = { driver: 'cgroupfs', root: '/', cpuCfsQuota: true, cpuCfsPeriodUs: 100_000 } as const;
  const resources = { requests: { cpu: '1', memory: '1Gi' }, limits: { cpu: '2', memory: '2Gi' } };
  const [bare, own] = [asking({}), { ...asking({ memory: '512Mi' }, { memory: '512Mi' }), name: 'b' }];
  const pod = makePod({ containers: [bare, own], resources, overhead: { memory: '1Mi' } } as object);
  assert.equal(qosClassOf(pod), 'Burstable');
  const group = podCgroupResources(pod, settings);
  assert.equal(group.cpuQuota, 200_000);
  assert.equal(group.cpuShares, 1024);
  assert.equal(group.memoryLimitBytes, 2 * 2 ** 30 + 2 ** 20);
  assert.equal(containerResources(bare, settings, pod).memoryLimitBytes, 2 * 2 ** 30);
  assert.equal(containerResources(own, settings, pod).memoryLimitBytes, 512 * 2 ** 20);
  // 512 MiB are nobody's: 256 MiB for each, of 4 GiB.
  assert.equal(oomScoreAdj(pod, bare, 4 * 2 ** 30), 1000 - 62);
  assert.equal(oomScoreAdj(pod, own, 4 * 2 ** 30), 1000 - 187);
});

const critical = { pod: podOf('critical', {}, undefined, { priority: 2_000_000_000 }), isStatic: false };
const cpu = (amount: number): Shortage => ({ resource: 'cpu', requested: amount, used: 0, capacity: 0 });
const victims = (running: Pod[], ...short: Shortage[]) => {
  const chosen = choosePreempted(
    critical,
    running.map((pod) => ({ pod, isStatic: false })),
    short,
  );
  return 'unmet' in chosen ? chosen.unmet : chosen.victims.map(({ metadata }) => metadata!.name).sort();
};

test('who may preempt whom', () => {
  const plain = { pod: podOf('plain', {}), isStatic: false };
  const fixed = { pod: podOf('static', {}), isStatic: true };
  assert.ok(preemptable(critical, plain));
  assert.ok(preemptable(fixed, plain));
  assert.ok(!preemptable(critical, critical));
  assert.ok(!preemptable(plain, critical));
  assert.ok(!preemptable(critical, fixed));
});

test('victims: the fewest, of the lowest class, the smallest', () => {
  const [small, medium, large] = [
    podOf('s', { cpu: '1' }),
    podOf('m', { cpu: '2' }),
    podOf('l', { cpu: '4' }),
  ];
  const both = { cpu: '4', memory: '1Gi' };
  const guaranteed = podOf('g', both, both);
  assert.deepEqual(victims([small, medium, large, guaranteed], cpu(1000)), ['s']);
  assert.deepEqual(victims([small, medium, large, guaranteed], cpu(1500)), ['m']);
  assert.deepEqual(victims([small, medium, large, guaranteed], cpu(5000)), ['l', 's']);
  assert.deepEqual(victims([small, guaranteed], cpu(3000)), ['g']);
  assert.equal(
    victims([small], cpu(3000)),
    'no set of running pods found to reclaim resources: [(res: cpu, q: 2000), ]',
  );
  const best = podOf('b', {});
  const pods: Shortage = { resource: 'pods', requested: 1, used: 3, capacity: 3 };
  assert.deepEqual(victims([small, best, guaranteed], pods), ['b']);
});

test('property: what is chosen suffices, and nobody above is taken in vain', () => {
  const random = seeded(11);
  for (let round = 0; round < 300; round++) {
    const running = Array.from({ length: 1 + Math.floor(random() * 8) }, (_, index) => {
      const amounts = { cpu: `${Math.ceil(random() * 2000)}m`, memory: `${Math.ceil(random() * 500)}Mi` };
      const kind = random();
      return podOf(`p${index}`, kind < 0.3 ? {} : amounts, kind > 0.7 ? amounts : undefined);
    });
    const needed = Math.ceil(random() * 4000);
    const chosen = choosePreempted(
      critical,
      running.map((pod) => ({ pod, isStatic: false })),
      [cpu(needed)],
    );
    const sum = (pods: readonly Pod[]) => pods.reduce((total, pod) => total + requestOf(pod, 'cpu'), 0);
    if ('unmet' in chosen) {
      assert.ok(sum(running) < needed);
      continue;
    }
    assert.ok(sum(chosen.victims) >= needed);
    assert.equal(new Set(chosen.victims).size, chosen.victims.length);
    const lower = running.filter((pod) => qosClassOf(pod) !== 'Guaranteed');
    if (sum(lower) >= needed)
      assert.ok(
        chosen.victims.every((pod) => qosClassOf(pod) !== 'Guaranteed'),
        'no Guaranteed pod in vain',
      );
  }
});

test('the groups above the pods', () => {
  const pods = [podOf('a', { cpu: '500m' }), podOf('b', { cpu: '250m' }), podOf('c', {})];
  assert.equal(burstableShares(pods), 768);
  assert.equal(burstableShares([]), 2);
  const machine = { cpus: 4, memoryBytes: 8 * 2 ** 30 };
  const config = {
    enforceNodeAllocatable: ['pods'],
    kubeReserved: { cpu: '500m', memory: '1Gi' },
    systemReserved: { memory: '1Gi' },
  };
  assert.deepEqual(kubepodsLimits(config, machine), { cpuShares: 3584, memoryLimitBytes: 6 * 2 ** 30 });
  assert.equal(kubepodsLimits({ ...config, enforceNodeAllocatable: ['none'] }, machine), undefined);
});

test('the groups are written once for each change, the last one always, and again after a failure', async () => {
  const written: string[] = [];
  const told: string[] = [];
  let broken = true;
  const groups = makeQosGroups({
    cgroups: {
      async ensure(path, resources) {
        await new Promise(setImmediate);
        if (broken) throw new Error('no cgroup');
        written.push(`${path} ${resources?.cpuShares}`);
      },
    },
    settings: { driver: 'cgroupfs', root: '/', cpuCfsQuota: true, cpuCfsPeriodUs: 100_000 },
    limits: { cpuShares: 4096 },
    tell: (...event) => told.push(event.join(' ')),
    log: makeLogger('silent'),
  });
  const idle = async () => {
    for (let turns = 0; turns < 20; turns++) await new Promise(setImmediate);
  };
  groups.update([]);
  await idle();
  assert.deepEqual(written, []);
  broken = false;
  groups.update([podOf('a', { cpu: '1' })]);
  groups.update([podOf('a', { cpu: '2' })]);
  groups.update([podOf('a', { cpu: '3' })]);
  await idle();
  groups.update([podOf('a', { cpu: '3' })]);
  await idle();
  assert.deepEqual(written, ['/kubepods 4096', '/kubepods/besteffort 2', '/kubepods/burstable 3072']);
  assert.deepEqual(told, [
    'Warning FailedNodeAllocatableEnforcement Failed to update Node Allocatable Limits "/kubepods": no cgroup',
    'Normal NodeAllocatableEnforced Updated Node Allocatable limit across pods',
  ]);
});

test('the groups of others are held to their reservations where that is enforced', () => {
  const config = {
    enforceNodeAllocatable: ['pods', 'system-reserved', 'kube-reserved-compressible'],
    systemReserved: { cpu: '500m', memory: '1Gi', pid: '100' },
    systemReservedCgroup: '/system.slice',
    kubeReserved: { cpu: '1', memory: '1Gi' },
    kubeReservedCgroup: 'kube.slice',
  };
  assert.deepEqual(reservedGroups(config), [
    {
      path: '/system.slice',
      resources: { cpuShares: 512, memoryLimitBytes: 2 ** 30, pidsLimit: 100 },
    },
    { path: '/kube.slice', resources: { cpuShares: 1024 } },
  ]);
  assert.deepEqual(reservedGroups({ ...config, enforceNodeAllocatable: ['pods'] }), []);
});

test('limits of a cgroup, v1 and v2', () => {
  assert.deepEqual(
    parsePodLimits(1, {
      memory: '9223372036854771712\n',
      quota: '-1\n',
      period: '100000\n',
      usage: '4096\n',
    }),
    { cpuPeriod: 100_000, memoryUsage: 4096 },
  );
  assert.deepEqual(parsePodLimits(2, { memory: 'max\n', quota: 'max 100000\n', usage: '0\n' }), {
    cpuPeriod: 100_000,
  });
  assert.deepEqual(parsePodLimits(2, { memory: '1024\n', quota: '5000 50000\n' }), {
    memoryLimitBytes: 1024,
    cpuQuota: 5000,
    cpuPeriod: 50_000,
  });
  assert.deepEqual(parsePodLimits(1, {}), {});
});

test('admission: taints, operating systems, other nodes, and shortages beside other reasons', () => {
  const taint = (effect: string) => ({ key: 'k', value: '5', effect });
  const tolerating = (toleration: object) => makePod({ tolerations: [toleration] });
  assert.equal(taints(makePod(), [taint('NoSchedule')]), undefined);
  assert.deepEqual(taints(makePod(), [taint('NoExecute')]), {
    reason: 'TaintToleration',
    message: "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
  });
  for (const toleration of [
    { operator: 'Exists' },
    { key: 'k', operator: 'Exists', effect: 'NoExecute' },
    { key: 'k', value: '5' },
    { key: 'k', operator: 'Lt', value: '6' },
    { key: 'k', operator: 'Gt', value: '4' },
  ])
    assert.equal(taints(tolerating(toleration), [taint('NoExecute')]), undefined, JSON.stringify(toleration));
  for (const toleration of [
    { key: 'k', value: '6' },
    { key: 'other', operator: 'Exists' },
    { key: 'k', operator: 'Exists', effect: 'NoSchedule' },
    { key: 'k', operator: 'Gt', value: '5' },
    { key: 'k', operator: 'Lt', value: 'x' },
  ])
    assert.ok(taints(tolerating(toleration), [taint('NoExecute')]), JSON.stringify(toleration));
  assert.equal(operatingSystem(makePod({ os: { name: 'windows' } }))?.reason, 'PodOSNotSupported');
  const labelled = makePod({}, { metadata: { labels: { 'kubernetes.io/os': 'windows' } } });
  assert.equal(operatingSystem(labelled)?.reason, 'PodOSSelectorNodeLabelDoesNotMatch');
  const node = { name: 'here', labels: {}, allocatable: { cpu: '1', pods: '10' } };
  const elsewhere = podOf('a', { cpu: '2' }, undefined, { nodeName: 'there' });
  const { short, other } = judge(elsewhere, [], node);
  assert.deepEqual(short, [{ resource: 'cpu', requested: 2000, used: 0, capacity: 1000 }]);
  assert.equal(other?.reason, 'NodeName');
});

const host: KernelSettings = {
  cgroupVersion: 2,
  swapControl: true,
  swapBehavior: 'LimitedSwap',
  memoryBytes: 8 * 2 ** 30,
  swapBytes: 4 * 2 ** 30,
  hugepages: [],
  singleProcessOOMKill: false,
};

test('swap: a share for Burstable containers on v2, else none', () => {
  const limits = (requests: Amounts, limit: Amounts | undefined, settings: Partial<KernelSettings> = {}) => {
    const container = asking(requests, limit);
    return kernelLimits(makePod({ containers: [container] }), container, { ...host, ...settings }).unified;
  };
  const group = { 'memory.oom.group': '1' };
  const [asked, same] = [{ memory: '1Gi' }, { memory: '1Gi', cpu: '1' }];
  assert.deepEqual(limits(asked, undefined), { ...group, 'memory.swap.max': String(2 ** 29) });
  assert.deepEqual(limits({}, undefined), { ...group, 'memory.swap.max': '0' });
  assert.deepEqual(limits(same, same), { ...group, 'memory.swap.max': '0' });
  assert.deepEqual(limits(asked, undefined, { swapBehavior: 'NoSwap' }), {
    ...group,
    'memory.swap.max': '0',
  });
  assert.deepEqual(limits(asked, undefined, { swapControl: false }), group);
  assert.equal(limits(asked, undefined, { swapControl: false, singleProcessOOMKill: true }), undefined);
  assert.equal(limits(asked, undefined, { cgroupVersion: 1 }), undefined);
});

test('huge pages: nothing but what a container has a limit for', () => {
  const container = asking({}, { 'hugepages-2Mi': '4Mi' });
  const settings = { ...host, cgroupVersion: 1 as const, hugepages: ['hugepages-2Mi', 'hugepages-1Gi'] };
  assert.deepEqual(kernelLimits(makePod({ containers: [container] }), container, settings).hugepageLimits, [
    { pageSize: '2MB', limit: 4 * 2 ** 20 },
    { pageSize: '1GB', limit: 0 },
  ]);
});

test('huge pages of a pod: what its containers ask for together, with its overhead', () => {
  const settings = { ...host, hugepages: ['hugepages-2Mi', 'hugepages-1Gi'] };
  const pages = (amount: string) => asking({ 'hugepages-2Mi': amount }, { 'hugepages-2Mi': amount });
  const pod = makePod({
    containers: [pages('4Mi'), { ...pages('6Mi'), name: 'other' }],
    overhead: { 'hugepages-2Mi': '2Mi' },
  });
  assert.deepEqual(podHugepages(pod, settings), {
    hugepageLimits: [
      { pageSize: '2MB', limit: 12 * 2 ** 20 },
      { pageSize: '1GB', limit: 0 },
    ],
  });
  assert.deepEqual(podHugepages(pod, { ...settings, hugepages: [] }), {});
  assert.deepEqual(podHugepages(pod, undefined), {});
});

test('a container with swap is not resized in place', () => {
  const [before, after] = [podOf('a', { memory: '1Gi' }), podOf('a', { memory: '2Gi' })];
  assert.match(swapForbids(after, before, host)!, /^In-place resize of containers with swap/);
  assert.equal(swapForbids(after, before, { ...host, swapBehavior: 'NoSwap' }), undefined);
  assert.equal(swapForbids(after, before, undefined), undefined);
  assert.equal(swapForbids(before, before, host), undefined);
});

test('swap devices', () => {
  assert.deepEqual(swapDevices('Filename\tType\n/dev/sda2   partition 1 2 3\n'), ['/dev/sda2']);
  assert.deepEqual(swapDevices('Filename\tType\n'), []);
  assert.deepEqual(swapDevices(''), []);
});
