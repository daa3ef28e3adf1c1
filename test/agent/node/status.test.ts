import assert from 'node:assert/strict';
import { test } from 'node:test';
import { declaredFeatures } from '../../../agent/node/declared_features.ts';
import { assessPressure, thresholdValue } from '../../../agent/node/pressure.ts';
import { metadataPatch, nodeObject } from '../../../agent/node/registration.ts';
import { nodeResources } from '../../../agent/node/resources.ts';
import {
  conditionEvents,
  nodeStatus,
  type StatusInput,
  same,
  statusChanged,
  statusPatch,
} from '../../../agent/node/status.ts';
import type { NodeStatusNow } from '../../../agent/node/types.ts';
import { config, facts, runtime } from './sample.ts';

const calm = { memory: false, disk: false, pid: false };
const minute = 60_000;
const compute = (more: Partial<StatusInput> = {}) =>
  nodeStatus({
    facts,
    runtime,
    pressure: calm,
    config,
    kubeletVersion: 'v1.37.0-keelson.0.1.0',
    nowMs: 0,
    ...more,
  });
const condition = (status: NodeStatusNow, type: string) =>
  status.conditions!.find((one) => one.type === type)!;

test('conditions have the reasons and messages of kubelet', () => {
  const good = compute();
  assert.deepEqual(
    good.conditions!.map(({ type, status, reason, message }) => [type, status, reason, message]),
    [
      ['MemoryPressure', 'False', 'KubeletHasSufficientMemory', 'kubelet has sufficient memory available'],
      ['DiskPressure', 'False', 'KubeletHasNoDiskPressure', 'kubelet has no disk pressure'],
      ['PIDPressure', 'False', 'KubeletHasSufficientPID', 'kubelet has sufficient PID available'],
      ['Ready', 'True', 'KubeletReady', 'kubelet is posting ready status'],
    ],
  );
  const bad = compute({ pressure: { memory: true, disk: true, pid: true } });
  assert.deepEqual(bad.conditions!.map(({ status, reason }) => [status, reason]).slice(0, 3), [
    ['True', 'KubeletHasInsufficientMemory'],
    ['True', 'KubeletHasDiskPressure'],
    ['True', 'KubeletHasInsufficientPID'],
  ]);
  assert.equal(condition(bad, 'Ready').status, 'True', 'pressure alone does not make a node NotReady');
});

test('what keeps the runtime from running pods is in the message of Ready', () => {
  const ready = (more: Partial<StatusInput>) => condition(compute(more), 'Ready');
  const [runtimeReady, networkReady] = runtime.conditions;
  const noNetwork = { ...networkReady!, status: false, reason: 'NetworkPluginNotReady', message: 'no CNI' };
  const one = ready({ runtime: { ...runtime, conditions: [runtimeReady!, noNetwork] } });
  assert.deepEqual([one.status, one.reason], ['False', 'KubeletNotReady']);
  assert.equal(
    one.message,
    'container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:no CNI',
  );
  const two = ready({ runtime: { ...runtime, conditions: [noNetwork] }, notReady: 'node is shutting down' });
  assert.match(
    two.message!,
    /^\[container runtime not ready: condition RuntimeReady is missing, .*, node is shutting down\]$/,
  );
  assert.equal(
    ready({ runtime: { ...runtime, failure: 'hangs' } }).message,
    'container runtime is down: hangs',
  );
});

test('transition times change with the status only; foreign conditions stay untouched', () => {
  const foreign = { type: 'KernelDeadlock', status: 'False', lastHeartbeatTime: '2020-01-01T00:00:00Z' };
  const first = compute();
  const previous = { ...first, conditions: [...first.conditions!, foreign] };
  const later = compute({ previous, nowMs: minute });
  assert.equal(condition(later, 'Ready').lastTransitionTime, '1970-01-01T00:00:00Z');
  assert.equal(condition(later, 'Ready').lastHeartbeatTime, '1970-01-01T00:01:00Z');
  assert.deepEqual(condition(later, 'KernelDeadlock'), foreign);
  const down = compute({ previous: later, nowMs: 2 * minute, notReady: 'x' });
  assert.equal(condition(down, 'Ready').lastTransitionTime, '1970-01-01T00:02:00Z');
  assert.equal(condition(down, 'DiskPressure').lastTransitionTime, '1970-01-01T00:00:00Z');
  const patch = statusPatch(previous, later, true) as { conditions: { type: string }[] };
  assert.ok(!patch.conditions.some(({ type }) => type === 'KernelDeadlock'));
});

test('only more than a heartbeat counts as a change', () => {
  const first = compute();
  assert.equal(statusChanged(first, compute({ previous: first, nowMs: minute })), false);
  assert.equal(statusChanged(undefined, first), true);
  const reordered = JSON.parse(JSON.stringify(first)) as NodeStatusNow;
  reordered.capacity = Object.fromEntries(Object.entries(reordered.capacity!).reverse());
  assert.equal(statusChanged(reordered, first), false);
  const changes: Partial<StatusInput>[] = [
    { notReady: 'x' },
    { facts: { ...facts, addresses: ['10.0.0.6'] } },
    { facts: { ...facts, bootId: 'boot-2' } },
    { facts: { ...facts, memoryBytes: 2 ** 30 } },
    { runtime: { ...runtime, images: [{ names: ['a'], sizeBytes: 1 }] } },
    { runtime: { ...runtime, handlers: [] } },
    { runtime: { ...runtime, features: { ...runtime.features!, supplementalGroupsPolicy: false } } },
    { config: { ...config, port: 1 } },
  ];
  for (const change of changes)
    assert.equal(statusChanged(first, compute({ previous: first, ...change })), true);
});

test('a patch has what differs, and undoes what is gone', () => {
  const first = compute({ facts: { ...facts, swapBytes: 5, hugepages: { 'hugepages-1Gi': 0 } } });
  assert.deepEqual(first.nodeInfo!.swap, { capacity: 5 });
  assert.deepEqual(
    statusPatch(
      first,
      compute({ previous: first, facts: { ...facts, swapBytes: 5, hugepages: { 'hugepages-1Gi': 0 } } }),
      false,
    ),
    {},
  );
  const after = compute({ previous: first, facts: { ...facts, addresses: ['10.0.0.6', 'fd00::1'] } });
  const patch = statusPatch(first, after, false) as Record<string, Record<string, unknown>>;
  assert.deepEqual(patch['addresses'], [
    { type: 'InternalIP', address: '10.0.0.6' },
    { type: 'InternalIP', address: 'fd00::1' },
    { type: 'Hostname', address: 'edge-1' },
    { $patch: 'replace' },
  ]);
  assert.equal(patch['capacity']!['hugepages-1Gi'], null);
  assert.equal(patch['capacity']!['hugepages-2Mi'], '0');
  assert.equal(patch['nodeInfo']!['swap'], null);
  assert.deepEqual(Object.keys(patch).sort(), ['addresses', 'allocatable', 'capacity', 'nodeInfo']);
});

test('images: the biggest, a few names each, in a stable order', () => {
  const image = (name: string, sizeBytes: number, count = 1) => ({
    names: Array.from({ length: count }, (_, i) => `${name}${i}`),
    sizeBytes,
  });
  const report = {
    ...runtime,
    images: [image('s', 1), image('b', 9, 8), image('none', 99, 0), image('a', 9)],
  };
  assert.deepEqual(compute({ runtime: report, config: { ...config, nodeStatusMaxImages: 2 } }).images, [
    { names: ['a0'], sizeBytes: 9 },
    { names: ['b0', 'b1', 'b2', 'b3', 'b4'], sizeBytes: 9 },
  ]);
  assert.equal(
    compute({ runtime: report, config: { ...config, nodeStatusMaxImages: -1 } }).images!.length,
    3,
  );
});

test('allocatable is capacity minus what is reserved, never negative; foreign resources stay', () => {
  const reserving = {
    ...config,
    kubeReserved: { cpu: '100m', memory: '1Gi', 'ephemeral-storage': '1Gi' },
    systemReserved: { cpu: '0.5', memory: '512Mi' },
  };
  const previous = {
    capacity: { 'example.com/dongle': '4', 'hugepages-1Gi': '9' },
    allocatable: { 'example.com/dongle': '3' },
  };
  const { capacity, allocatable } = nodeResources(
    { ...facts, hugepages: { 'hugepages-2Mi': 2 ** 30 } },
    reserving,
    previous,
  );
  assert.deepEqual(capacity, {
    'example.com/dongle': '4',
    cpu: '4',
    memory: '8Gi',
    'ephemeral-storage': '100Gi',
    pods: '110',
    'hugepages-2Mi': '1Gi',
  });
  assert.deepEqual(allocatable, {
    'example.com/dongle': '3',
    cpu: '3400m',
    memory: `${(8 - 1 - 1) * 1024 - 512 - 100}Mi`,
    'ephemeral-storage': '89Gi',
    pods: '110',
    'hugepages-2Mi': '1Gi',
  });
  const starved = nodeResources(facts, {
    ...config,
    systemReserved: { cpu: '99', memory: '99Gi' },
    podsPerCore: 10,
  });
  assert.equal(starved.allocatable['cpu'], '0');
  assert.equal(starved.allocatable['memory'], '0');
  assert.equal(starved.allocatable['pods'], '40');
});

test('pressure follows each threshold and holds for the transition period', () => {
  const full = { capacityBytes: 100, availableBytes: 9, inodes: 0, inodesFree: 0 };
  const assess = (
    more: Partial<typeof facts>,
    seen = {},
    now = 0,
    thresholds: Record<string, string> = config.evictionHard!,
  ) => assessPressure({ ...facts, ...more }, thresholds, 300_000, seen, now);
  assert.deepEqual(assess({}).pressure, calm);
  assert.deepEqual(assess({ memoryAvailableBytes: 99 * 2 ** 20 }).pressure, { ...calm, memory: true });
  assert.deepEqual(assess({ nodefs: full }).pressure, { ...calm, disk: true });
  assert.deepEqual(assess({ imagefs: { ...full, availableBytes: 14 } }).pressure, { ...calm, disk: true });
  assert.deepEqual(assess({ nodefs: { ...facts.nodefs, inodesFree: 49 } }).pressure, { ...calm, disk: true });
  assert.deepEqual(assess({ tasks: 32_000 }, {}, 0, { 'pid.available': '1000' }).pressure, {
    ...calm,
    pid: true,
  });
  assert.deepEqual(assess({ memoryBytes: 0, memoryAvailableBytes: 0 }).pressure, calm, 'not measured');
  const { seen } = assess({ nodefs: full }, {}, 1000);
  assert.equal(assess({}, seen, 300_999).pressure.disk, true);
  assert.equal(assess({}, seen, 301_000).pressure.disk, false);
  assert.equal(thresholdValue('0%', 100), undefined);
  assert.equal(thresholdValue('100%', 100), undefined);
  assert.equal(thresholdValue('2.5%', 200), 5);
  assert.equal(thresholdValue('junk', 200), undefined);
});

test('changes are told as kubelet tells them', () => {
  const first = compute();
  const reasons = (before: NodeStatusNow | undefined, after: NodeStatusNow) =>
    conditionEvents('edge-1', before, after).map(({ type, reason }) => `${type} ${reason}`);
  assert.deepEqual(reasons(undefined, first), [
    'Normal NodeHasSufficientMemory',
    'Normal NodeHasNoDiskPressure',
    'Normal NodeHasSufficientPID',
    'Normal NodeReady',
  ]);
  assert.deepEqual(reasons(first, first), []);
  assert.deepEqual(reasons(first, compute({ notReady: 'x', pressure: { ...calm, memory: true } })), [
    'Normal NodeHasInsufficientMemory',
    'Normal NodeNotReady',
  ]);
  const rebooted = conditionEvents('edge-1', first, compute({ facts: { ...facts, bootId: 'boot-2' } }));
  assert.deepEqual(rebooted, [
    { type: 'Warning', reason: 'Rebooted', message: 'Node edge-1 has been rebooted, boot id: boot-2' },
  ]);
});

test('the Node that is created, and what is put right on one that exists', () => {
  const mine = {
    ...config,
    providerID: 'x://1',
    registerWithTaints: [{ key: 'edge', value: '', effect: 'NoExecute' }],
    keelson: { hostnameOverride: 'host-1', nodeLabels: { 'example.com/site': 'north' } },
  } as unknown as typeof config;
  const wanted = nodeObject(facts, mine, compute());
  assert.deepEqual(wanted.metadata!.labels, {
    'kubernetes.io/hostname': 'host-1',
    'kubernetes.io/os': 'linux',
    'kubernetes.io/arch': 'amd64',
    'beta.kubernetes.io/os': 'linux',
    'beta.kubernetes.io/arch': 'amd64',
    'example.com/site': 'north',
  });
  assert.deepEqual(wanted.spec, { providerID: 'x://1', taints: [{ key: 'edge', effect: 'NoExecute' }] });
  assert.equal(metadataPatch(wanted, wanted), undefined);
  const existing = {
    metadata: {
      ...wanted.metadata,
      labels: { ...wanted.metadata!.labels, 'kubernetes.io/arch': 'arm64', theirs: 'x' },
    },
    spec: {},
  };
  assert.deepEqual(JSON.parse(JSON.stringify(metadataPatch(existing, wanted))), {
    metadata: { labels: { 'kubernetes.io/arch': 'amd64' } },
    spec: { providerID: 'x://1' },
  });
});

test('same compares as JSON does', () => {
  assert.ok(same({ a: 1, b: undefined }, { a: 1 }));
  assert.ok(same([{ a: [1] }], [{ a: [1] }]));
  for (const [a, b] of [
    [1, '1'],
    [null, {}],
    [[], {}],
    [[1], [1, 2]],
    [{ a: 1 }, { b: 1 }],
    [undefined, {}],
  ])
    assert.ok(!same(a, b));
});

test('what the runtime can do is in the status as it told last', () => {
  const plain = { recursiveReadOnlyMounts: false, userNamespaces: false };
  const able = { recursiveReadOnlyMounts: true, userNamespaces: true };
  const handlers = [
    { name: '', ...able },
    { name: 'runc', ...able },
    { name: 'kata', ...plain },
    { name: 'runc', ...plain },
  ];
  const told = compute({ runtime: { ...runtime, handlers } });
  assert.deepEqual(told.runtimeHandlers, [
    { name: '', features: able },
    { name: 'kata', features: plain },
    { name: 'runc', features: able },
  ]);
  assert.deepEqual(told.features, { supplementalGroupsPolicy: true });
  const silent = { ...runtime, features: undefined, handlers: undefined };
  assert.deepEqual(compute({ runtime: silent, previous: told }).runtimeHandlers, told.runtimeHandlers);
  assert.equal('runtimeHandlers' in compute({ runtime: silent }), false);
  assert.equal('features' in compute({ runtime: silent }), false);
  assert.deepEqual(compute({ runtime: silent, previous: told }).features, { supplementalGroupsPolicy: true });
  assert.deepEqual(statusPatch(compute({ runtime: silent }), told, false)['features'], {
    supplementalGroupsPolicy: true,
  });
});

test('an empty list is not written again because the apiserver has none', () => {
  const none = compute({ runtime: { ...runtime, images: [], handlers: [] } });
  const { images, runtimeHandlers, ...kept } = none;
  assert.deepEqual([images, runtimeHandlers], [[], []]);
  assert.equal(statusChanged(kept, none), false);
  const some = compute();
  assert.deepEqual(statusPatch(some, none, false), { runtimeHandlers: [] });
});

test('declared features are written once, also where the apiserver does not keep them', () => {
  const served = { enableServer: true, enableDebuggingHandlers: true };
  const always = [
    'InPlacePodLevelResourcesVerticalScaling',
    'InPlacePodVerticalScalingInitContainers',
    'RestartAllContainersOnContainerExits',
  ];
  const all = ['ExtendWebSocketsToKubelet', ...always];
  assert.deepEqual(declaredFeatures(served), all);
  assert.deepEqual(declaredFeatures({ ...served, enableServer: false }), always);
  assert.deepEqual(declaredFeatures({ ...served, enableDebuggingHandlers: false }), always);
  const plain = compute();
  assert.equal('declaredFeatures' in plain, false);
  const declaring = compute({ declaredFeatures: declaredFeatures(served) });
  assert.deepEqual(statusPatch(plain, declaring, false), { declaredFeatures: all });
  assert.equal(statusChanged(plain, declaring), false, 'a reason to write');
  assert.deepEqual(statusPatch(declaring, declaring, false), {});
  assert.deepEqual(statusPatch(declaring, plain, false), { declaredFeatures: null });
});
