/** The pod manager with its workers against a runtime in memory: starts, crashes, deletions, restarts of the agent. */
import assert from 'node:assert/strict';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Pod } from '../../../agent/apiserver/types.ts';
import { makePodManager, type PodManager } from '../../../agent/pods/manager.ts';
import type { PodSourceKind } from '../../../agent/pods/types.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import {
  apiError,
  type FakeApiserver,
  type FakeImages,
  type FakeRuntime,
  type FakeVolumes,
  fakeApiserver,
  fakeEvents,
  fakeImageAccess,
  fakeImages,
  fakeObjects,
  fakeRuntime,
  fakeVolumes,
  type HandClock,
  handClock,
  until,
} from './fakes.ts';
import { makePod, seeded, time } from './objects.ts';

interface World {
  readonly clock: HandClock;
  readonly runtime: FakeRuntime;
  readonly images: FakeImages;
  readonly volumes: FakeVolumes;
  readonly api: FakeApiserver;
  readonly events: ReturnType<typeof fakeEvents>;
  readonly objects: ReturnType<typeof fakeObjects>;
  readonly folder: string;
  readonly cgroups: Set<string>;
  manager: PodManager;
  /** Ends the agent without ending anything else, and starts another. */
  restart(): Promise<void>;
  create(pod: Pod): void;
  /** As `kubectl delete` does. */
  remove(name: string, graceSeconds?: number): void;
  phase(name: string): string | undefined;
}

function makeWorld(
  t: TestContext,
  options: { delay?: () => Promise<void>; cores?: string; sources?: readonly PodSourceKind[] } = {},
): World {
  const clock = handClock(time);
  const runtime = fakeRuntime(clock, options.delay);
  const images = fakeImages(['example:1', 'i:1']);
  const volumes = fakeVolumes();
  const api = fakeApiserver();
  const events = fakeEvents();
  const objects = fakeObjects();
  const cgroups = new Set<string>();
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-pods-'));
  const start = () =>
    makePodManager({
      runtime,
      images,
      imageAccess: fakeImageAccess(images),
      volumes,
      cgroups: {
        ensure: async (path) => {
          cgroups.add(path);
        },
        remove: async (path) => {
          cgroups.delete(path);
        },
        children: async (path) =>
          [...cgroups].filter((name) => dirname(name) === path).map((name) => basename(name)),
      },
      client: api,
      objects,
      events,
      config: {
        kubeletDir: join(folder, 'kubelet'),
        podLogsDir: join(folder, 'logs'),
        containerLogsDir: join(folder, 'links'),
        clusterDns: ['10.96.0.10'],
        clusterDomain: 'cluster.local',
        resolvConf: '',
        cgroup: { driver: 'cgroupfs', root: '/', cpuCfsQuota: true, cpuCfsPeriodUs: 100_000 },
        security: { seccompRoot: '/seccomp', seccompDefault: false },
      },
      nodeName: 'node-1',
      hostIps: () => ['192.0.2.1'],
      allocatable: () => ({ cpu: options.cores ?? '4', memory: '8Gi', pods: '110' }),
      nodeLabels: () => ({}),
      memoryCapacity: 8 * 2 ** 30,
      sources: options.sources ?? ['api'],
      log: makeLogger('silent'),
      clock,
      random: () => 0.5,
    });
  const world: World = {
    clock,
    runtime,
    images,
    volumes,
    api,
    events,
    objects,
    folder,
    cgroups,
    manager: start(),
    async restart() {
      await world.manager.close();
      world.manager = start();
      world.manager.replaceAll('api', [...api.pods.values()]);
    },
    create(pod) {
      api.pods.set(pod.metadata!.name!, pod);
      world.manager.upsert('api', pod);
    },
    remove(name, graceSeconds) {
      const pod = api.pods.get(name)!;
      const metadata = {
        ...pod.metadata,
        deletionTimestamp: '2026-01-01T00:00:00Z',
        deletionGracePeriodSeconds: graceSeconds ?? pod.spec?.terminationGracePeriodSeconds ?? 30,
        resourceVersion: String(Number(pod.metadata?.resourceVersion) + 1),
      };
      const next = { ...pod, metadata };
      api.pods.set(name, next);
      world.manager.upsert('api', next);
    },
    phase: (name) => api.pods.get(name)?.status?.phase,
  };
  api.onChange = (type, pod) => {
    if (type === 'DELETED') world.manager.remove('api', pod.metadata!.uid!);
    else world.manager.upsert('api', pod);
  };
  world.manager.replaceAll('api', []);
  t.after(async () => {
    await world.manager.close();
    rmSync(folder, { recursive: true, force: true });
  });
  return world;
}

const named = (name: string, spec: Parameters<typeof makePod>[0] = {}) =>
  makePod(spec, { metadata: { name, namespace: 'default', uid: `uid-${name}` } });
const statusOf = (world: World, name: string) => world.api.pods.get(name)?.status;

/** Lets the time go on in steps until it is so. */
async function advanceUntil(
  { clock }: World,
  stepMs: number,
  condition: () => boolean,
  what: string,
): Promise<void> {
  for (let steps = 0; !condition(); steps++) {
    if (steps === 100) throw new Error(`did not happen: ${what}`);
    await clock.advance(stepMs);
  }
}

function nothingLeft(world: World): void {
  assert.equal(world.runtime.sandboxes.size, 0, 'sandboxes');
  assert.equal(world.runtime.containers.size, 0, 'containers');
  assert.equal(world.volumes.made.size, 0, 'volumes');
  assert.equal(world.cgroups.size, 0, 'cgroups');
  assert.equal(world.objects.retained.size, 0, 'retained objects');
  for (const folder of ['logs', 'links', 'kubelet/pods']) {
    const path = join(world.folder, folder);
    assert.deepEqual(existsSync(path) ? readdirSync(path) : [], [], folder);
  }
}

test('a normal start costs one status write, and the pod is Ready with its addresses', async (t) => {
  const world = makeWorld(t);
  world.create(
    named('web', {
      containers: [
        { name: 'a', image: 'example:1' },
        { name: 'b', image: 'example:1' },
      ],
    }),
  );
  await until(() => world.phase('web') === 'Running', 'Running');
  assert.equal(world.api.patches.length, 1);
  const status = statusOf(world, 'web');
  assert.equal(status?.podIP, world.runtime.sandboxes.values().next().value?.ips[0]);
  assert.equal(status?.hostIP, '192.0.2.1');
  assert.deepEqual(
    status?.conditions?.map(({ type, status: value }) => `${type}=${value}`),
    [
      'PodReadyToStartContainers=True',
      'Initialized=True',
      'Ready=True',
      'ContainersReady=True',
      'PodScheduled=True',
    ],
  );
  assert.deepEqual(
    status?.containerStatuses?.map(({ name, ready, started, restartCount }) => [
      name,
      ready,
      started,
      restartCount,
    ]),
    [
      ['a', true, true, 0],
      ['b', true, true, 0],
    ],
  );
  assert.deepEqual(
    world.runtime.calls.filter((call) => call.startsWith('start')).length,
    2,
    world.runtime.calls.join('; '),
  );
  const stages = world.manager.timeline('uid-web').map(({ stage }) => stage);
  for (const stage of [
    'watchEvent',
    'pullEnd',
    'volumes',
    'sandbox',
    'create',
    'start',
    'statusWritten',
  ] as const)
    assert.ok(stages.includes(stage), stage);
  assert.ok(
    world.events.told.includes(
      'Normal Pulled spec.containers{a}: Container image "example:1" already present on machine and can be accessed by the pod',
    ),
  );
  assert.ok(world.events.told.includes('Normal Started spec.containers{b}: Container started'));
  assert.equal(readdirSync(join(world.folder, 'links')).length, 2);
  const hosts = readFileSync(join(world.folder, 'kubelet/pods/uid-web/etc-hosts'), 'utf8');
  assert.match(hosts, new RegExp(`^${status?.podIP}\tweb$`, 'm'));
});

test('a slow pull shows ContainerCreating after a moment', async (t) => {
  const world = makeWorld(t);
  world.images.endless.add('slow:1');
  world.create(named('web', { containers: [{ name: 'app', image: 'slow:1' }] }));
  await until(() => world.images.pulls.length === 1, 'the pull');
  assert.equal(world.api.patches.length, 0);
  await world.clock.advance(1100);
  await until(() => world.api.patches.length === 1, 'a status');
  assert.equal(statusOf(world, 'web')?.containerStatuses?.[0]?.state?.waiting?.reason, 'ContainerCreating');
  world.remove('web');
  await until(() => world.api.deletes.includes('web'), 'deleted, the pull interrupted');
  await until(() => world.manager.pods().length === 0, 'forgotten');
  nothingLeft(world);
});

test('a missing image: ErrImagePull, ImagePullBackOff, and it is pulled once it is there', async (t) => {
  const world = makeWorld(t);
  world.images.missing.add('gone:1');
  world.create(named('web', { containers: [{ name: 'app', image: 'gone:1' }] }));
  const waiting = () => statusOf(world, 'web')?.containerStatuses?.[0]?.state?.waiting?.reason;
  await until(() => waiting() === 'ErrImagePull', 'ErrImagePull');
  await world.clock.advance(6000);
  await until(() => waiting() === 'ImagePullBackOff', 'ImagePullBackOff');
  world.images.missing.clear();
  await world.clock.advance(5000);
  await until(() => world.phase('web') === 'Running', 'Running');
  assert.equal(world.images.pulls.length, 2);
});

test('a crashing container is restarted at once, then after 10 s, 20 s…', async (t) => {
  const world = makeWorld(t);
  world.create(named('web'));
  await until(() => world.phase('web') === 'Running', 'Running');
  const running = () => [...world.runtime.containers.values()].find(({ state }) => state === 'running');
  world.runtime.exit(running()!.id, 1);
  await until(() => running()?.metadata.attempt === 1, 'the first restart');
  const waiting = () => statusOf(world, 'web')?.containerStatuses?.[0]?.state?.waiting?.reason;
  for (const [attempt, seconds] of [
    [2, 10],
    [3, 20],
    [4, 40],
  ] as const) {
    world.runtime.exit(running()!.id, 1);
    await until(() => waiting() === 'CrashLoopBackOff', 'CrashLoopBackOff');
    await world.clock.advance(seconds * 1000 - 100);
    assert.equal(running(), undefined, `not before ${seconds} s`);
    await world.clock.advance(200);
    await until(() => running()?.metadata.attempt === attempt, `restart ${attempt}`);
    await until(() => waiting() === undefined, 'Running again');
  }
  assert.equal(statusOf(world, 'web')?.containerStatuses?.[0]?.restartCount, 4);
  assert.equal(statusOf(world, 'web')?.containerStatuses?.[0]?.lastState?.terminated?.exitCode, 1);
  assert.ok(world.runtime.containers.size <= 3);
});

test('deletion: exit codes are told, everything is removed, then the object goes', async (t) => {
  const world = makeWorld(t);
  world.create(
    named('web', {
      containers: [
        { name: 'a', image: 'example:1' },
        { name: 'b', image: 'example:1' },
      ],
    }),
  );
  await until(() => world.phase('web') === 'Running', 'Running');
  mkdirSync(join(world.folder, 'logs/default_web_uid-web/a'), { recursive: true });
  writeFileSync(join(world.folder, 'logs/default_web_uid-web/a/0.log'), '');
  world.remove('web');
  await until(() => world.api.deletes.includes('web'), 'deleted');
  await until(() => world.manager.pods().length === 0, 'forgotten');
  nothingLeft(world);
  const last = world.api.patches.at(-1)?.status;
  assert.equal(last?.phase, 'Failed');
  assert.deepEqual(
    last?.containerStatuses?.map(({ state }) => state?.terminated?.exitCode),
    [143, 143],
  );
  assert.ok(world.events.told.includes('Normal Killing spec.containers{a}: Stopping container a'));
});

test('a shorter grace shortens a termination that is under way', async (t) => {
  const world = makeWorld(t);
  world.create(named('web'));
  await until(() => world.phase('web') === 'Running', 'Running');
  world.runtime.stubborn.add([...world.runtime.containers.keys()][0]!);
  world.remove('web', 600);
  const stops = () => world.runtime.calls.filter((call) => call.startsWith('stopContainer'));
  await until(() => stops().length === 1, 'the first stop');
  assert.match(stops()[0]!, / 600000$/);
  world.remove('web', 5);
  await until(() => stops().length === 2, 'the second stop');
  assert.match(stops()[1]!, / 5000$/);
  await world.clock.advance(5000);
  await until(() => world.api.deletes.includes('web'), 'deleted');
  assert.equal(world.events.told.filter((event) => event.startsWith('Normal Killing')).length, 1);
});

test('a forcibly deleted pod is ended quickly and nothing is written', async (t) => {
  const world = makeWorld(t);
  world.create(named('web'));
  await until(() => world.phase('web') === 'Running', 'Running');
  world.runtime.stubborn.add([...world.runtime.containers.keys()][0]!);
  world.remove('web', 600);
  await until(() => world.runtime.calls.some((call) => call.startsWith('stopContainer')), 'the stop');
  const patches = world.api.patches.length;
  world.api.pods.delete('web');
  world.manager.remove('api', 'uid-web');
  await until(() => world.runtime.calls.some((call) => / 2000$/.test(call)), 'the short stop');
  await world.clock.advance(2000);
  await until(() => world.manager.pods().length === 0, 'gone');
  nothingLeft(world);
  assert.equal(world.api.patches.length, patches);
  assert.deepEqual(world.api.deletes, []);
});

test('preStop and postStart hooks run; a failed postStart kills the container', async (t) => {
  const world = makeWorld(t);
  const lifecycle = { preStop: { exec: { command: ['bye'] } }, postStart: { exec: { command: ['hello'] } } };
  world.create(named('good', { containers: [{ name: 'app', image: 'example:1', lifecycle }] }));
  await until(() => world.phase('good') === 'Running', 'Running');
  assert.ok(world.runtime.calls.some((call) => /execSync \S+ hello/.test(call)));
  world.remove('good');
  await until(() => world.api.deletes.includes('good'), 'deleted');
  const bye = world.runtime.calls.findIndex((call) => /execSync \S+ bye/.test(call));
  const stop = world.runtime.calls.findIndex((call) => call.startsWith('stopContainer'));
  assert.ok(bye >= 0 && bye < stop, 'the hook comes first');
  const failing = { postStart: { exec: { command: ['false'] } } };
  world.create(named('bad', { containers: [{ name: 'app', image: 'example:1', lifecycle: failing }] }));
  await until(
    () => statusOf(world, 'bad')?.containerStatuses?.[0]?.state?.waiting?.reason === 'PostStartHookError',
    'PostStartHookError',
  );
  assert.ok(
    world.events.told.includes('Warning FailedPostStartHook spec.containers{app}: PostStartHook failed'),
  );
});

test('another agent takes over: nothing is restarted, an exit meanwhile is seen with its code', async (t) => {
  const world = makeWorld(t);
  world.create(
    named('web', {
      containers: [
        { name: 'a', image: 'example:1' },
        { name: 'b', image: 'example:1' },
      ],
    }),
  );
  await until(() => world.phase('web') === 'Running', 'Running');
  const before = statusOf(world, 'web');
  const ids = [...world.runtime.containers.keys()];
  const patches = world.api.patches.length;
  const calls = world.runtime.calls.length;
  await world.clock.advance(5000);
  await world.restart();
  await until(
    () => world.volumes.made.size === 1 && world.manager.pods()[0]?.status?.podIP !== undefined,
    'a look',
  );
  await world.clock.advance(1000);
  assert.deepEqual([...world.runtime.containers.keys()], ids);
  assert.equal(world.runtime.calls.length, calls, 'nothing done');
  assert.equal(world.api.patches.length, patches, 'nothing written');
  assert.deepEqual(statusOf(world, 'web')?.conditions, before?.conditions);

  await world.manager.close();
  const a = [...world.runtime.containers.values()].find(({ metadata }) => metadata.name === 'a');
  world.runtime.exit(a!.id, 7);
  await world.restart();
  await until(() => statusOf(world, 'web')?.containerStatuses?.[0]?.restartCount === 1, 'one restart');
  const after = statusOf(world, 'web')?.containerStatuses;
  assert.equal(after?.[0]?.lastState?.terminated?.exitCode, 7);
  assert.equal(after?.[1]?.restartCount, 0);
  assert.equal(world.runtime.calls.filter((call) => call.startsWith('createContainer a/')).length, 2);
});

test('remains of pods that are unknown go, but only when the list is complete; those of others stay', async (t) => {
  const world = makeWorld(t);
  world.create(named('old'));
  world.create(named('kept'));
  await until(() => world.phase('old') === 'Running' && world.phase('kept') === 'Running', 'Running');
  world.runtime.sandboxes.set('foreign', {
    ...[...world.runtime.sandboxes.values()][0]!,
    id: 'foreign',
    labels: {},
    metadata: { name: 'x', namespace: 'y', uid: 'z', attempt: 0 },
  });
  await world.manager.close();
  world.api.pods.delete('old');
  mkdirSync(join(world.folder, 'logs/default_older_uid-older'), { recursive: true });
  world.cgroups.add('/kubepods/burstable/poduid-killed-before-its-sandbox');
  const linked = readdirSync(join(world.folder, 'links')).filter((name) => name.startsWith('kept_'));
  const log = (pod: string) => join(world.folder, 'logs', pod, 'app/0.log');
  symlinkSync(log('default_older_uid-older'), join(world.folder, 'links/older_default_app-abc.log'));
  symlinkSync(log('default_long-gone_uid-gone'), join(world.folder, 'links/gone_default_app-def.log'));
  await world.restart();
  await until(() => world.runtime.sandboxes.size === 2, 'the unknown sandbox is gone');
  await until(() => world.manager.pods().length === 1, 'the unknown pods are gone');
  assert.ok(world.runtime.sandboxes.has('foreign'));
  assert.deepEqual(readdirSync(join(world.folder, 'logs')), ['default_kept_uid-kept']);
  await until(
    () => readdirSync(join(world.folder, 'links')).join() === linked.join(),
    'the links to the logs that are gone are gone',
  );
  assert.equal(linked.length, 1);
  assert.deepEqual(world.api.deletes, []);
  assert.deepEqual([...world.cgroups], ['/kubepods/besteffort/poduid-kept']);
});

test('a container that cannot be removed is tried again with patience, and loses its logs first', async (t) => {
  const world = makeWorld(t);
  const failure = () => new KeelsonError('FAILED_PRECONDITION', 'busy');
  world.runtime.failures.set('removeContainer', Array.from({ length: 1000 }, failure));
  world.create(named('web'));
  await until(() => world.phase('web') === 'Running', 'Running');
  const links = () => readdirSync(join(world.folder, 'links'));
  const waitsForRestart = () =>
    statusOf(world, 'web')?.containerStatuses?.[0]?.state?.waiting?.reason === 'CrashLoopBackOff';
  for (let attempt = 1; attempt <= 2; attempt++) {
    const running = [...world.runtime.containers.values()].find(({ state }) => state === 'running')!;
    world.runtime.exit(running.id, 1);
    // The first comes at once, the others when their wait is over.
    if (attempt > 1) await until(() => waitsForRestart(), 'CrashLoopBackOff');
    await advanceUntil(
      world,
      10_000,
      () =>
        statusOf(world, 'web')?.containerStatuses?.[0]?.restartCount === attempt &&
        statusOf(world, 'web')?.containerStatuses?.[0]?.state?.running !== undefined,
      'running again',
    );
  }
  const tries = () => world.runtime.calls.filter((call) => call.startsWith('removeContainer')).length;
  await until(() => tries() > 0, 'a try');
  assert.equal(links().length, 2);
  const before = tries();
  await world.clock.advance(100_000);
  // 2, 4, 8, 16, 20, 20 … seconds apart.
  await until(() => tries() > before, 'another try');
  assert.ok(tries() - before < 10, `${tries() - before} tries in 100 s`);
  world.runtime.failures.clear();
  // Time goes on until the next try has come and its files are gone.
  await until(() => {
    if (world.runtime.containers.size === 2) return true;
    void world.clock.advance(5000);
    return false;
  }, 'the oldest is gone');
});

const asStatic = (name: string, hash: string, spec: Parameters<typeof makePod>[0] = {}) =>
  makePod(spec, {
    metadata: { name, namespace: 'default', uid: hash, annotations: { 'kubernetes.io/config.hash': hash } },
  });

test('a static pod runs while the apiserver refuses everything, and its mirror comes later', async (t) => {
  const world = makeWorld(t);
  world.api.failures.push(...Array.from({ length: 3 }, () => apiError(503, 'ServiceUnavailable')));
  world.manager.replaceAll('file', [asStatic('static', 'h1')]);
  await until(() => world.manager.pods()[0]?.status?.phase === 'Running', 'Running');
  assert.equal(world.api.pods.size, 0);
  while (world.api.failures.length > 0) await world.clock.advance(1000);
  await world.clock.advance(10_000);
  await until(() => world.phase('static') === 'Running', 'the mirror and its status');
});

test('the mirror of a static pod: made, made again, replaced, deleted last; it is never run', async (t) => {
  const world = makeWorld(t, { sources: ['api', 'file'] });
  world.manager.replaceAll('file', []);
  world.create(
    makePod(
      {},
      {
        metadata: {
          name: 'old',
          namespace: 'default',
          uid: 'uid-m',
          annotations: { 'kubernetes.io/config.mirror': 'x' },
        },
      },
    ),
  );
  await until(() => !world.api.pods.has('old'), 'the mirror that nobody holds is deleted');
  world.manager.replaceAll('file', [asStatic('static', 'h1')]);
  await until(() => world.phase('static') === 'Running', 'the status in the mirror');
  const first = world.api.pods.get('static')!;
  assert.equal(first.metadata!.annotations!['kubernetes.io/config.mirror'], 'h1');
  assert.equal(world.manager.runningUid(first.metadata!.uid!), 'h1');
  assert.equal(world.manager.runningUid('h1'), 'h1');
  assert.equal(world.runtime.containers.size, 1);

  // Deleted by somebody, with a grace and without: it is there again, and nothing was stopped.
  world.remove('static');
  await until(
    () =>
      ![undefined, first.metadata!.uid].includes(world.api.pods.get('static')?.metadata?.uid) &&
      world.phase('static') === 'Running',
    'another mirror',
  );
  const second = world.api.pods.get('static')!;
  world.api.pods.delete('static');
  world.api.onChange('DELETED', second);
  await until(() => world.phase('static') === 'Running', 'a third mirror');
  assert.equal(world.runtime.calls.filter((call) => call.startsWith('stop')).length, 0);

  // The next agent finds it as it is.
  const third = world.api.pods.get('static')!.metadata!.uid;
  await world.restart();
  world.manager.replaceAll('file', [asStatic('static', 'h1')]);
  await until(() => world.manager.pods()[0]?.status?.phase === 'Running', 'Running');
  assert.equal(world.api.pods.get('static')!.metadata!.uid, third);

  // Changed: the old mirror stays until nothing runs of the old pod.
  let heldDuringStop = false;
  const { stopContainer } = world.runtime;
  world.runtime.stopContainer = async (...args) => {
    heldDuringStop = world.api.pods.get('static')?.metadata?.uid === third;
    return stopContainer(...args);
  };
  world.manager.replaceAll('file', [asStatic('static', 'h2')]);
  await until(
    () =>
      world.api.pods.get('static')?.metadata?.annotations?.['kubernetes.io/config.mirror'] === 'h2' &&
      world.phase('static') === 'Running',
    'the mirror of the changed pod',
  );
  assert.ok(heldDuringStop);
  world.manager.replaceAll('file', []);
  await until(() => world.api.pods.size === 0, 'no mirror');
  assert.equal(world.manager.pods().length, 0);
  nothingLeft(world);
});

test('a manifest that comes back, or is changed, while its pod ends: the pod runs once more', async (t) => {
  const world = makeWorld(t);
  const hostPort = { name: 'app', image: 'example:1', ports: [{ containerPort: 80, hostPort: 8080 }] };
  const first = named('static', { containers: [hostPort] });
  const changed = { ...first, metadata: { ...first.metadata, uid: 'uid-changed' } };
  const running = () =>
    [...world.runtime.containers.values()]
      .filter(({ state }) => state === 'running')
      .map(({ labels }) => labels['io.kubernetes.pod.uid'])
      .join();
  world.manager.replaceAll('file', [first]);
  await until(() => running() === 'uid-static', 'Running');
  // Changed: the next one takes over name and host port only when the one before has gone.
  world.manager.replaceAll('file', [changed]);
  await until(() => running() === 'uid-changed', 'the changed pod');
  assert.equal(world.manager.pods().length, 1);
  assert.equal(world.manager.pods()[0]?.status?.reason, undefined);
  // Back at once, and later when nothing is left.
  world.manager.replaceAll('file', []);
  world.manager.replaceAll('file', [changed]);
  await until(() => world.runtime.calls.filter((call) => call.startsWith('runPod')).length === 3, 'again');
  await until(() => running() === 'uid-changed', 'Running again');
  world.manager.replaceAll('file', []);
  await until(() => world.manager.pods().length === 0, 'gone');
  nothingLeft(world);
  world.manager.replaceAll('file', [changed]);
  await until(() => running() === 'uid-changed', 'Running for the last time');
  // Not wanted any more while it waits: it does not come.
  world.manager.replaceAll('file', []);
  world.manager.replaceAll('file', [changed]);
  world.manager.replaceAll('file', []);
  await until(() => world.manager.pods().length === 0, 'gone for good');
  nothingLeft(world);
});

test('a log is told of while its container is there, and its end once', async (t) => {
  const world = makeWorld(t);
  world.create(named('web', { restartPolicy: 'Never' }));
  await until(() => world.phase('web') === 'Running', 'Running');
  const log = world.manager.containerLog('default', 'web', 'app');
  assert.equal(log?.logPath, join(world.folder, 'logs/default_web_uid-web/app/0.log'));
  assert.equal(log?.running(), true);
  let ends = 0;
  log?.onExit(() => ends++);
  world.runtime.exit(log!.id, 0);
  await until(() => world.phase('web') === 'Succeeded', 'Succeeded');
  assert.equal(log?.running(), false);
  assert.equal(ends, 1);
  assert.equal(world.manager.containerLog('default', 'web', 'app', true), undefined);
  assert.equal(world.manager.containerLog('default', 'none', 'app'), undefined);
});

test('lost events are made up for', async (t) => {
  const world = makeWorld(t);
  world.create(named('web'));
  await until(() => world.phase('web') === 'Running', 'Running');
  world.runtime.mute = true;
  world.runtime.exit([...world.runtime.containers.keys()][0]!, 1);
  await world.clock.advance(61_000);
  await until(
    () => [...world.runtime.containers.values()].some(({ state }) => state === 'running'),
    'the restart',
  );
});

test('an apiserver that fails delays the status and the deletion, not the pod', async (t) => {
  const world = makeWorld(t);
  world.api.failures.push(apiError(500, 'InternalError'), new KeelsonError('API_UNREACHABLE', 'down'));
  world.create(named('web'));
  await until(
    () => [...world.runtime.containers.values()].some(({ state }) => state === 'running'),
    'it runs',
  );
  await until(() => world.api.failures.length === 1, 'a failed write');
  await world.clock.advance(300);
  await until(() => world.api.failures.length === 0, 'another');
  await world.clock.advance(1000);
  await until(() => world.phase('web') === 'Running', 'written at last');
  world.api.failures.push(apiError(500, 'InternalError'), apiError(500, 'InternalError'));
  world.remove('web');
  await until(() => world.runtime.sandboxes.size === 0, 'taken down');
  for (let i = 0; i < 5; i++) await world.clock.advance(1000);
  await until(() => world.api.deletes.includes('web'), 'deleted at last');
});

test('sandbox and volume failures are told and tried again', async (t) => {
  const world = makeWorld(t);
  world.runtime.failures.set('runPodSandbox', [new KeelsonError('CNI_PLUGIN_FAILED', 'bridge failed')]);
  world.volumes.failures.push(new KeelsonError('VOLUME_FAILED', 'configmap "x" not found'));
  world.create(named('web'));
  await until(() => world.api.patches.length > 0, 'a status');
  assert.equal(world.phase('web'), 'Pending');
  await world.clock.advance(1500);
  await until(() => world.phase('web') === 'Running', 'Running');
  assert.ok(
    world.events.told.includes(
      'Warning FailedCreatePodSandBox web: Failed to create pod sandbox: bridge failed',
    ),
  );
  assert.ok(world.events.told.includes('Warning FailedMount web: configmap "x" not found'));
});

test('what a container is refused for is in its status', async (t) => {
  const world = makeWorld(t);
  const waiting = (name: string) => statusOf(world, name)?.containerStatuses?.[0]?.state?.waiting;
  const env = [{ name: 'X', valueFrom: { configMapKeyRef: { name: 'none', key: 'k' } } }];
  world.create(named('config', { containers: [{ name: 'app', image: 'example:1', env }] }));
  await until(() => waiting('config')?.reason === 'CreateContainerConfigError', 'CreateContainerConfigError');
  world.runtime.failures.set('startContainer', [
    new KeelsonError('CONTAINER_START_FAILED', 'exec: "nope": not found'),
  ]);
  world.create(named('start'));
  await until(() => waiting('start')?.reason === 'RunContainerError', 'RunContainerError');
  assert.match(waiting('start')?.message ?? '', /nope/);
  world.create(named('name', { containers: [{ name: 'app', image: 'bad//name:1' }] }));
  await until(() => waiting('name')?.reason === 'InvalidImageName', 'InvalidImageName');
  world.create(named('never', { containers: [{ name: 'app', image: 'none:1', imagePullPolicy: 'Never' }] }));
  await until(() => waiting('never')?.reason === 'ErrImageNeverPull', 'ErrImageNeverPull');
});

test('an image that is removed between look and use is pulled again', async (t) => {
  const world = makeWorld(t);
  const create = world.runtime.createContainer;
  let removed = false;
  world.runtime.createContainer = async (...given) => {
    if (removed) return create(...given);
    removed = true;
    world.images.present.delete('example:1');
    throw new KeelsonError('IMAGE_NOT_PRESENT', 'no such image');
  };
  world.create(named('web'));
  const told = () => statusOf(world, 'web')?.containerStatuses?.[0]?.state?.waiting?.reason;
  await until(() => told() === 'CreateContainerError', 'the image has gone');
  await world.clock.advance(2500);
  await until(() => world.phase('web') === 'Running', 'Running');
  assert.deepEqual(world.images.pulls, ['example:1']);
});

test('a failed look for remains is made up for', async (t) => {
  const world = makeWorld(t);
  world.create(named('old'));
  await until(() => world.phase('old') === 'Running', 'Running');
  await world.manager.close();
  world.api.pods.delete('old');
  const look = world.volumes.podsOnDisk;
  world.volumes.podsOnDisk = async () => {
    world.volumes.podsOnDisk = look;
    throw new KeelsonError('INTERNAL', 'a look that failed');
  };
  await world.restart();
  await until(() => world.volumes.podsOnDisk === look, 'the first look');
  await world.clock.advance(125_000);
  await until(() => world.runtime.sandboxes.size === 0 && world.manager.pods().length === 0, 'gone');
  nothingLeft(world);
});

test('more than the node has is refused, and room that was made is given', async (t) => {
  const world = makeWorld(t, { cores: '1' });
  const wants = (name: string) =>
    named(name, {
      containers: [{ name: 'app', image: 'example:1', resources: { requests: { cpu: '700m' } } }],
    });
  world.create(wants('one'));
  world.create(wants('two'));
  await until(() => world.phase('two') === 'Failed' && world.phase('one') === 'Running', 'one of two');
  assert.equal(statusOf(world, 'two')?.reason, 'OutOfcpu');
  world.remove('one');
  await until(() => world.api.deletes.includes('one') && world.manager.pods().length === 1, 'deleted');
  world.create(wants('three'));
  await until(() => world.phase('three') === 'Running', 'the next');
});

test('a critical pod waits for those that it pushes out, and others keep their place', async (t) => {
  const world = makeWorld(t, { cores: '2' });
  const wants = (name: string, cpu: string, more: object = {}) =>
    named(name, {
      containers: [{ name: 'app', image: 'example:1', resources: { requests: { cpu } } }],
      ...more,
    });
  world.create(wants('small', '400m'));
  world.create(wants('large', '1'));
  await until(() => world.phase('small') === 'Running' && world.phase('large') === 'Running', 'both');
  world.create(wants('critical', '1500m', { priority: 2_000_001_000 }));
  await until(() => world.phase('critical') === 'Running', 'the critical one');
  assert.equal(world.phase('large'), 'Failed');
  assert.equal(statusOf(world, 'large')?.reason, 'Preempting');
  assert.ok(statusOf(world, 'large')?.conditions?.some(({ type }) => type === 'DisruptionTarget'));
  assert.equal(world.phase('small'), 'Running');
  world.create(wants('too-big', '9', { priority: 2_000_001_000 }));
  await until(() => world.phase('too-big') === 'Failed', 'no room at all');
  assert.equal(statusOf(world, 'too-big')?.reason, 'UnexpectedAdmissionError');
  assert.equal(world.phase('small'), 'Running');
});

test('a pod that does not go for a critical one within its grace is told of', async (t) => {
  const world = makeWorld(t, { cores: '1' });
  const wants = (name: string, more: object = {}) =>
    named(name, {
      containers: [{ name: 'app', image: 'example:1', resources: { requests: { cpu: '700m' } } }],
      ...more,
    });
  const exceeded = (line: string) => line.startsWith('Warning ExceededGracePeriod ');
  world.create(wants('stuck', { terminationGracePeriodSeconds: 20 }));
  await until(() => world.phase('stuck') === 'Running', 'Running');
  const stubborn = Array.from({ length: 50 }, () => new KeelsonError('INTERNAL', 'it does not stop'));
  world.runtime.failures.set('stopContainer', stubborn);
  world.create(wants('critical', { priority: 2_000_001_000 }));
  await until(() => world.runtime.calls.some((call) => call.startsWith('stopContainer')), 'a try');
  await world.clock.advance(29_000);
  assert.equal(world.events.told.filter(exceeded).length, 0);
  await world.clock.advance(2000);
  assert.deepEqual(world.events.told.filter(exceeded), [
    'Warning ExceededGracePeriod stuck: Container runtime did not kill the pod within specified grace period.',
  ]);
  world.runtime.failures.delete('stopContainer');
  await advanceUntil(world, 60_000, () => world.phase('critical') === 'Running', 'the critical one');
});

test('a sandbox that the runtime cannot tell of is told of once', async (t) => {
  const world = makeWorld(t);
  world.create(named('web'));
  await until(() => world.phase('web') === 'Running', 'Running');
  let tries = 0;
  world.runtime.podSandboxStatus = async () => {
    tries++;
    throw new KeelsonError('UNAVAILABLE', 'the runtime does not answer');
  };
  world.runtime.exit([...world.runtime.containers.keys()][0]!, 1);
  await advanceUntil(world, 1100, () => tries > 3, 'some tries');
  assert.deepEqual(
    world.events.told.filter((line) => line.includes('FailedPodSandBoxStatus')),
    ['Warning FailedPodSandBoxStatus web: Unable to get pod sandbox status: the runtime does not answer'],
  );
});

test('a pod that cannot be looked at is told of once, and again after it could be', async (t) => {
  const world = makeWorld(t);
  const lost = () => world.events.told.filter((line) => line.startsWith('Warning FailedSync web: '));
  world.create(named('web'));
  await until(() => world.phase('web') === 'Running', 'Running');
  const list = world.runtime.listPodSandbox;
  const [container] = world.runtime.containers.keys();
  for (const times of [1, 2]) {
    let tries = 0;
    world.runtime.listPodSandbox = async () => {
      tries++;
      throw new KeelsonError('UNAVAILABLE', 'the runtime does not answer');
    };
    world.runtime.exit([...world.runtime.containers.keys()].at(-1) ?? container!, 1);
    await advanceUntil(world, 1100, () => tries > 3, 'some tries');
    assert.deepEqual(
      lost(),
      Array(times).fill('Warning FailedSync web: error determining status: the runtime does not answer'),
    );
    world.runtime.listPodSandbox = list;
    const running = () => [...world.runtime.containers.values()].some(({ state }) => state === 'running');
    await advanceUntil(world, 60_000, running, 'it runs again');
  }
});

test('a resize: deferred over a restart, given once there is room, told once', async (t) => {
  const world = makeWorld(t, { cores: '2' });
  const wants = (name: string, cpu: string, generation = 1) => {
    const pod = named(name, {
      containers: [{ name: 'app', image: 'example:1', resources: { requests: { cpu } } }],
    });
    return { ...pod, metadata: { ...pod.metadata, generation } };
  };
  world.create(wants('holder', '1'));
  world.create(wants('waiter', '500m'));
  await until(() => world.phase('holder') === 'Running' && world.phase('waiter') === 'Running', 'both');
  const now = world.api.pods.get('waiter')!;
  const metadata = { ...now.metadata, generation: 2, resourceVersion: '1000' };
  world.create({ ...now, metadata, spec: wants('waiter', '1500m').spec! });
  const condition = (type: string) => statusOf(world, 'waiter')?.conditions?.find((one) => one.type === type);
  const allocated = () =>
    (
      statusOf(world, 'waiter')?.containerStatuses?.[0] as
        | { allocatedResources?: { cpu?: string } }
        | undefined
    )?.allocatedResources?.cpu;
  await until(() => condition('PodResizePending')?.reason === 'Deferred', 'deferred');
  assert.equal(allocated(), '500m');
  await world.restart();
  await until(() => world.manager.pods().length === 2, 'another agent');
  assert.equal(condition('PodResizePending')?.reason, 'Deferred');
  assert.equal(allocated(), '500m');
  world.remove('holder');
  await until(() => allocated() === '1500m' && condition('PodResizeInProgress') === undefined, 'given');
  assert.equal(condition('PodResizePending'), undefined);
  assert.equal(statusOf(world, 'waiter')?.containerStatuses?.[0]?.restartCount, 0);
  const told = () => world.events.told.filter((line) => /ResizeCompleted/.test(line)).length;
  await until(() => told() === 1, 'told');
  await world.restart();
  await until(() => world.manager.pods().length === 1, 'a third agent');
  await world.clock.advance(120_000);
  assert.equal(told(), 1);
});

test('many pods, random delays, exits, lost sandboxes and restarts of the agent: all end as they should', async (t) => {
  const random = seeded(7);
  const world = makeWorld(t, {
    delay: () => new Promise((resolve) => setTimeout(resolve, random() * 4)),
  });
  const names = Array.from({ length: 12 }, (_, index) => `p${index}`);
  for (const name of names)
    world.create(named(name, { initContainers: random() < 0.3 ? [{ name: 'i', image: 'i:1' }] : [] }));
  for (let round = 0; round < 40; round++) {
    await world.clock.advance(Math.floor(random() * 3000));
    const running = [...world.runtime.containers.values()].filter(({ state }) => state === 'running');
    const one = running[Math.floor(random() * running.length)];
    if (one !== undefined) world.runtime.exit(one.id, one.metadata.name === 'i' ? 0 : 1);
    if (round % 10 === 5) {
      const box = [...world.runtime.sandboxes.values()].find(({ state }) => state === 'ready');
      if (box !== undefined) world.runtime.loseSandbox(box.id);
    }
    if (round % 13 === 12) await world.restart();
    const live = new Map<string, number>();
    for (const { state, labels, metadata } of world.runtime.containers.values()) {
      if (state !== 'running') continue;
      const key = `${labels['io.kubernetes.pod.uid']}/${metadata.name}`;
      live.set(key, (live.get(key) ?? 0) + 1);
    }
    assert.ok(
      [...live.values()].every((count) => count === 1),
      'one of each at a time',
    );
  }
  for (const name of names) world.remove(name, 2);
  for (let i = 0; i < 200 && world.api.deletes.length < names.length; i++) {
    await world.clock.advance(1000);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.deepEqual([...world.api.deletes].sort(), [...names].sort());
  await until(() => world.manager.pods().length === 0, 'forgotten');
  nothingLeft(world);
});
