/** The CRI through a real gRPC client on a unix socket, over the real runtime on this machine. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { status } from '@grpc/grpc-js';
import { serveCri } from '../../runtime/cri/serve.ts';
import type { WireInput } from '../../runtime/cri/wire/types.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { temporaryFolder } from '../peers/image-store.ts';
import { cannotRun, fakeImages, type Machine, makeMachine } from '../runtime/machine.ts';
import { type CriClient, criClient } from './client.ts';

const log = makeLogger((process.env['KEELSON_TEST_LOG'] as 'debug' | undefined) ?? 'silent');

interface Stage {
  readonly machine: Machine;
  readonly socket: string;
  readonly cri: CriClient;
  sandbox(changes?: WireInput<'PodSandboxConfig'>): WireInput<'PodSandboxConfig'>;
  container(command: readonly string[], changes?: WireInput<'ContainerConfig'>): WireInput<'ContainerConfig'>;
  /** Of a new sandbox on the network `mode`. */
  run(changes?: WireInput<'PodSandboxConfig'>): Promise<string>;
  start(sandbox: string, command: readonly string[], changes?: WireInput<'ContainerConfig'>): Promise<string>;
}

async function stage(t: TestContext): Promise<Stage> {
  const machine = await makeMachine(t);
  const socket = join(machine.root, 'cri.sock');
  const server = await serveCri({
    socket,
    runtime: machine.runtime,
    images: fakeImages(machine.layer, machine.leases),
    log,
    clock: systemClock,
    info: async () => ({ config: { stateDir: machine.stateDir } }),
  });
  const cri = criClient(socket);
  t.after(async () => {
    cri.close();
    await server.close();
  });
  let pods = 0;
  const sandbox = (changes: WireInput<'PodSandboxConfig'> = {}): WireInput<'PodSandboxConfig'> => {
    const uid = `uid-${++pods}`;
    return {
      metadata: { name: 'pod', uid, namespace: 'default' },
      logDirectory: join(machine.logs, uid),
      linux: {
        cgroupParent: `${machine.cgroup}/${uid}`,
        securityContext: { namespaceOptions: { network: 'NODE', pid: 'CONTAINER' } },
      },
      ...changes,
    };
  };
  const container = (
    command: readonly string[],
    changes: WireInput<'ContainerConfig'> = {},
  ): WireInput<'ContainerConfig'> => ({
    metadata: { name: 'main' },
    image: { image: 'busybox' },
    command,
    logPath: 'main.log',
    linux: { securityContext: { namespaceOptions: { network: 'NODE', pid: 'CONTAINER' } } },
    ...changes,
  });
  const run: Stage['run'] = async (changes) =>
    (await cri.call('RunPodSandbox', { config: sandbox(changes) })).podSandboxId;
  return {
    machine,
    socket,
    cri,
    sandbox,
    container,
    run,
    async start(podSandboxId, command, changes) {
      const config = container(command, changes);
      const { containerId } = await cri.call('CreateContainer', { podSandboxId, config });
      await cri.call('StartContainer', { containerId });
      return containerId;
    },
  };
}

const sleeper = ['sleep', '1000'];

test('a pod lives and ends through the CRI', { skip: cannotRun }, async (t) => {
  const { machine, cri, run, start } = await stage(t);
  const version = await cri.call('Version', {});
  assert.deepEqual(
    [version.version, version.runtimeName, version.runtimeApiVersion],
    ['0.1.0', 'keelson', 'v1'],
  );
  const pod = await run({ labels: { app: 'a' }, annotations: { note: 'n' } });
  const { items } = await cri.call('ListPodSandbox', {
    filter: { labelSelector: { app: 'a' }, state: { state: 'SANDBOX_READY' } },
  });
  assert.deepEqual(
    items.map(({ id }) => id),
    [pod],
  );
  const before = BigInt(Date.now()) * 1_000_000n;
  const id = await start(pod, ['sh', '-c', 'echo out; echo err >&2; exec sleep 1000'], {
    envs: [{ key: 'A', value: Buffer.from('b') }],
    stopSignal: 'SIGNAL_SIGKILL',
  });
  const { status: running } = await cri.call('ContainerStatus', { containerId: id });
  assert.equal(running?.state, 'CONTAINER_RUNNING');
  assert.equal(running.imageId, `sha256:${'b'.repeat(64)}`);
  assert.equal(running.image?.image, 'busybox');
  assert.equal(running.stopSignal, 'SIGNAL_SIGKILL');
  assert.ok(running.startedAt > before && running.startedAt >= running.createdAt);
  assert.equal(running.finishedAt, 0n);
  const result = await cri.call('ExecSync', {
    containerId: id,
    cmd: ['sh', '-c', 'echo $A; echo bad >&2; exit 3'],
  });
  assert.deepEqual([String(result.stdout), String(result.stderr), result.exitCode], ['b\n', 'bad\n', 3]);
  await cri.call('StopContainer', { containerId: id, timeout: 5 });
  const { status: ended } = await cri.call('ContainerStatus', { containerId: id });
  assert.deepEqual([ended?.state, ended?.exitCode, ended?.reason], ['CONTAINER_EXITED', 137, 'Error']);
  assert.ok(ended!.finishedAt >= ended!.startedAt);
  assert.match(readFileSync(ended!.logPath, 'utf8'), /stdout F out\n/);
  // Twice, and of what was never there.
  for (const containerId of [id, id, 'f'.repeat(64), 'none']) {
    await cri.call('StopContainer', { containerId });
    await cri.call('RemoveContainer', { containerId });
  }
  for (const podSandboxId of [pod, pod, 'f'.repeat(64), '']) {
    await cri.call('StopPodSandbox', { podSandboxId });
    await cri.call('RemovePodSandbox', { podSandboxId });
  }
  assert.deepEqual(await machine.leftovers(), []);
});

test('the beginning of an id is enough where only one has it', { skip: cannotRun }, async (t) => {
  const { cri, run, start } = await stage(t);
  const pod = await run();
  const id = await start(pod, sleeper);
  const { status: container } = await cri.call('ContainerStatus', { containerId: id.slice(0, 12) });
  assert.equal(container?.id, id);
  const { containers } = await cri.call('ListContainers', { filter: { podSandboxId: pod.slice(0, 12) } });
  assert.equal(containers[0]?.id, id);
});

test('a verbose status tells pid, configuration and specification', { skip: cannotRun }, async (t) => {
  const { machine, cri, run, start } = await stage(t);
  const pod = await run();
  const id = await start(pod, sleeper);
  const quiet = await cri.call('ContainerStatus', { containerId: id });
  assert.deepEqual(quiet.info, {});
  const { info } = await cri.call('ContainerStatus', { containerId: id, verbose: true });
  const facts = JSON.parse(info['info']!);
  assert.deepEqual(facts.runtimeSpec.process.args, sleeper);
  assert.equal(readFileSync(`/proc/${facts.pid}/comm`, 'latin1'), 'sleep\n');
  assert.equal(facts.sandboxID, pod);
  const sandbox = await cri.call('PodSandboxStatus', { podSandboxId: pod, verbose: true });
  assert.equal(JSON.parse(sandbox.info['info']!).config.metadata.name, 'pod');
  assert.deepEqual(
    sandbox.containersStatuses.map((one) => one.id),
    [id],
  );
  const node = await cri.call('Status', { verbose: true });
  assert.equal(JSON.parse(node.info['config']!).stateDir, machine.stateDir);
  assert.deepEqual(
    node.status?.conditions.map(({ type, status: met }) => [type, met]),
    [
      ['RuntimeReady', true],
      ['NetworkReady', true],
    ],
  );
  assert.ok(node.runtimeHandlers.some(({ name }) => name === 'runc'));
  assert.deepEqual((await cri.call('RuntimeConfig', {})).linux, { cgroupDriver: 'CGROUPFS' });
});

test('a call again after a lost answer has the same answer', { skip: cannotRun }, async (t) => {
  const { cri, sandbox, container } = await stage(t);
  const config = sandbox();
  const both = await Promise.all([
    cri.call('RunPodSandbox', { config }),
    cri.call('RunPodSandbox', { config }),
  ]);
  const { podSandboxId } = await cri.call('RunPodSandbox', { config });
  assert.deepEqual([...new Set(both.map((one) => one.podSandboxId))], [podSandboxId]);
  const request = { podSandboxId, config: container(sleeper) };
  const first = await cri.call('CreateContainer', request);
  assert.deepEqual(await cri.call('CreateContainer', request), first);
});

test('who gave up leaves nothing behind, and takes nothing from who asks again', {
  skip: cannotRun,
}, async (t) => {
  const { machine, cri, sandbox } = await stage(t);
  const config = sandbox({ linux: { cgroupParent: `${machine.cgroup}/x` } });
  const late = cri.call('RunPodSandbox', { config }, { deadlineMs: 5 });
  await assert.rejects(late, { code: status.DEADLINE_EXCEEDED });
  const leaver = new AbortController();
  const left = cri.call('RunPodSandbox', { config }, { signal: leaver.signal });
  const stayed = cri.call('RunPodSandbox', { config });
  leaver.abort();
  await assert.rejects(left, { code: status.CANCELLED });
  const { podSandboxId } = await stayed;
  const { items } = await cri.call('ListPodSandbox', {});
  assert.deepEqual(
    items.map(({ id, state }) => [id, state]),
    [[podSandboxId, 'SANDBOX_READY']],
  );
  await cri.call('RemovePodSandbox', { podSandboxId });
  assert.deepEqual(await machine.leftovers(), []);
});

test('a deadline ends what runs', { skip: cannotRun }, async (t) => {
  const { cri, run, start } = await stage(t);
  const id = await start(await run(), sleeper);
  const mark = `${97_000_000 + (process.pid % 1_000_000)}`;
  const exec = cri.call('ExecSync', { containerId: id, cmd: ['sleep', mark] }, { deadlineMs: 300 });
  await assert.rejects(exec, { code: status.DEADLINE_EXCEEDED });
  const timed = cri.call('ExecSync', { containerId: id, cmd: ['sleep', mark], timeout: 1 });
  await assert.rejects(timed, { code: status.DEADLINE_EXCEEDED });
  // The second exec began after the first was killed, and its answer comes when it has ended.
  const { stdout } = await cri.call('ExecSync', { containerId: id, cmd: ['ps'] });
  assert.doesNotMatch(String(stdout), new RegExp(mark));
});

test('events tell the life of a pod, with its state', { skip: cannotRun }, async (t) => {
  const { cri, run, start } = await stage(t);
  const heard: string[] = [];
  let wake = () => {};
  const events = cri.listen('GetContainerEvents', {}, (event) => {
    assert.equal(event.podSandboxStatus?.metadata?.name, 'pod');
    assert.ok(event.createdAt > 0n);
    heard.push(`${event.containerEventType} ${event.containerId}`);
    wake();
  });
  const until = (count: number) =>
    new Promise<void>((resolve) => {
      wake = () => (heard.length >= count ? resolve() : undefined);
      wake();
    });
  // The stream is there when the first event of something comes.
  const first = await run();
  while (heard.length === 0) {
    const extra = await run();
    await cri.call('RemovePodSandbox', { podSandboxId: extra });
  }
  heard.length = 0;
  await cri.call('RemovePodSandbox', { podSandboxId: first });
  await until(1);
  await new Promise<void>((resolve) => {
    wake = () => (heard.some((one) => one === `CONTAINER_DELETED_EVENT ${first}`) ? resolve() : undefined);
    wake();
  });
  heard.length = 0;
  const pod = await run();
  const id = await start(pod, ['true']);
  await until(5);
  await cri.call('RemovePodSandbox', { podSandboxId: pod });
  await until(8);
  assert.deepEqual(heard, [
    `CONTAINER_CREATED_EVENT ${pod}`,
    `CONTAINER_STARTED_EVENT ${pod}`,
    `CONTAINER_CREATED_EVENT ${id}`,
    `CONTAINER_STARTED_EVENT ${id}`,
    `CONTAINER_STOPPED_EVENT ${id}`,
    `CONTAINER_STOPPED_EVENT ${pod}`,
    `CONTAINER_DELETED_EVENT ${id}`,
    `CONTAINER_DELETED_EVENT ${pod}`,
  ]);
  events.stop();
  assert.equal((await events.failed).code, status.CANCELLED);
});

test('streams of lists have what the lists have', { skip: cannotRun }, async (t) => {
  const { cri, run, start } = await stage(t);
  const padding = 'x'.repeat(200_000);
  const pods: string[] = [];
  for (let count = 0; count < 8; count++) pods.push(await run({ annotations: { padding } }));
  const id = await start(pods[0]!, sleeper);
  const parts = await cri.collect('StreamPodSandboxes', {});
  assert.ok(parts.length > 1, 'more than a MiB comes in parts');
  assert.deepEqual(parts.flatMap((part) => part.podSandboxes.map((one) => one.id)).sort(), pods.toSorted());
  const containers = await cri.collect('StreamContainers', { filter: { podSandboxId: pods[0] } });
  assert.deepEqual(
    containers.flatMap((part) => part.containers.map((one) => one.id)),
    (await cri.call('ListContainers', {})).containers.map((one) => one.id),
  );
  const stats = await cri.collect('StreamContainerStats', { filter: { id } });
  assert.equal(stats[0]?.containerStats[0]?.attributes?.id, id);
  assert.equal((await cri.collect('StreamPodSandboxStats', {})).length > 1, true);
  assert.equal((await cri.collect('StreamPodSandboxMetrics', {})).length, 1);
  // An empty list is an empty stream.
  assert.deepEqual(await cri.collect('StreamContainers', { filter: { id: 'none' } }), []);
});

test('statistics and metrics of a pod with a network of its own', { skip: cannotRun }, async (t) => {
  const { machine, cri, run, start } = await stage(t);
  const namespaceOptions = { network: 'POD', pid: 'CONTAINER' } as const;
  const pod = await run({
    linux: { cgroupParent: `${machine.cgroup}/stats`, securityContext: { namespaceOptions } },
  });
  // Before there is any process in it.
  const bare = (await cri.call('PodSandboxStats', { podSandboxId: pod })).stats;
  assert.equal(bare?.linux?.network?.defaultInterface?.name, 'eth0');
  const id = await start(
    pod,
    ['sh', '-c', 'dd if=/dev/zero of=/written bs=1000 count=100; exec sleep 1000'],
    {
      labels: { app: 'stats' },
      linux: {
        resources: { memoryLimitInBytes: 64 << 20, cpuPeriod: 100_000, cpuQuota: 50_000, cpuShares: 512 },
        securityContext: { namespaceOptions },
      },
    },
  );
  const read = async () => (await cri.call('ContainerStats', { containerId: id })).stats!;
  const stats = await read();
  assert.equal(stats.attributes?.labels['app'], 'stats');
  assert.ok(stats.cpu!.usageCoreNanoSeconds!.value > 0n);
  assert.ok(stats.memory!.usageBytes!.value >= stats.memory!.workingSetBytes!.value);
  assert.ok(stats.memory!.availableBytes!.value <= 64n << 20n);
  assert.ok(stats.writableLayer!.inodesUsed!.value >= 1n);
  assert.ok(existsSync(stats.writableLayer!.fsId!.mountpoint));
  const { stats: sandbox } = await cri.call('PodSandboxStats', { podSandboxId: pod });
  assert.deepEqual(
    sandbox?.linux?.containers.map((one) => one.attributes?.id),
    [id],
  );
  assert.ok(sandbox!.linux!.process!.processCount!.value >= 1n);
  assert.ok(sandbox!.linux!.cpu!.usageCoreNanoSeconds!.value >= stats.cpu!.usageCoreNanoSeconds!.value);
  const listed = await cri.call('ListContainerStats', { filter: { labelSelector: { app: 'stats' } } });
  assert.equal(listed.stats.length, 1);
  assert.equal((await cri.call('ListPodSandboxStats', { filter: { id: pod } })).stats.length, 1);
  const { descriptors } = await cri.call('ListMetricDescriptors', {});
  const keys = new Map(descriptors.map(({ name, labelKeys }) => [name, labelKeys.length]));
  const { podMetrics } = await cri.call('ListPodSandboxMetrics', {});
  const metrics = podMetrics.flatMap((one) => [
    ...one.metrics,
    ...one.containerMetrics.flatMap((inner) => inner.metrics),
  ]);
  for (const { name, labelValues } of metrics) assert.equal(labelValues.length, keys.get(name), name);
  const metric = (name: string) => metrics.find((one) => one.name === name)?.value?.value;
  assert.equal(metric('container_spec_memory_limit_bytes'), 64n << 20n);
  assert.equal(metric('container_spec_cpu_shares'), 512n);
  assert.equal(metric('container_processes'), 1n);
  assert.ok(metric('container_network_receive_packets_total') !== undefined);
  await cri.call('StopContainer', { containerId: id });
  assert.equal((await read()).cpu, undefined);
  assert.equal((await cri.call('ListContainerStats', {})).stats.length, 0);
});

test('what cannot be done says so', { skip: cannotRun }, async (t) => {
  const { cri } = await stage(t);
  for (const name of ['CheckpointPod', 'RestorePod'] as const) {
    await assert.rejects(cri.call(name, {}), { code: status.UNIMPLEMENTED }, name);
  }
  const location = '/tmp/x.tar';
  await assert.rejects(cri.call('CheckpointContainer', { containerId: 'none', location }), {
    code: status.NOT_FOUND,
  });
});

test('malformed and hostile requests get the right code and leave nothing', {
  skip: cannotRun,
}, async (t) => {
  const { machine, cri, sandbox, container, run } = await stage(t);
  const pod = await run();
  const before = await machine.leftovers();
  const refused = async (work: Promise<unknown>, code: number, what: string) => {
    await assert.rejects(work, (error: { code?: number; details?: string }) => {
      assert.equal(error.code, code, `${what}: ${error.details}`);
      assert.ok(error.details, what);
      return true;
    });
  };
  const { INVALID_ARGUMENT, NOT_FOUND } = status;
  for (const id of ['', 'none', 'f'.repeat(64), '../../etc', '/etc/passwd', '\0', 'a'.repeat(100_000)]) {
    await refused(cri.call('PodSandboxStatus', { podSandboxId: id }), NOT_FOUND, 'PodSandboxStatus');
    await refused(
      cri.call('ContainerStatus', { containerId: id, verbose: true }),
      NOT_FOUND,
      'ContainerStatus',
    );
    await refused(cri.call('StartContainer', { containerId: id }), NOT_FOUND, 'StartContainer');
    await refused(cri.call('ExecSync', { containerId: id, cmd: ['ls'] }), NOT_FOUND, 'ExecSync');
    await refused(cri.call('ReopenContainerLog', { containerId: id }), NOT_FOUND, 'ReopenContainerLog');
    await refused(cri.call('ContainerStats', { containerId: id }), NOT_FOUND, 'ContainerStats');
    await refused(cri.call('PodSandboxStats', { podSandboxId: id }), NOT_FOUND, 'PodSandboxStats');
    await refused(
      cri.call('CreateContainer', { podSandboxId: id, config: container(sleeper) }),
      NOT_FOUND,
      'CreateContainer',
    );
  }
  const badPods: Record<string, WireInput<'PodSandboxConfig'>> = {
    'no metadata': { metadata: undefined },
    'an empty name': { metadata: { name: '', uid: 'u', namespace: 'n' } },
    'logs elsewhere': { logDirectory: '/var/log/../../etc' },
    'relative logs': { logDirectory: 'logs' },
    'a host name with a slash': { hostname: 'a/b' },
    'a port that is none': { portMappings: [{ containerPort: 70_000 }] },
    'a protocol that is none': { portMappings: [{ containerPort: 80, protocol: 9 }] },
    'a cgroup elsewhere': { linux: { cgroupParent: '/a/../../b' } },
    'a mode that is none': { linux: { securityContext: { namespaceOptions: { network: 'CONTAINER' } } } },
    'a line in a name server': { dnsConfig: { servers: ['1.1.1.1\noptions x'] } },
  };
  for (const [what, changes] of Object.entries(badPods)) {
    await refused(cri.call('RunPodSandbox', { config: sandbox(changes) }), INVALID_ARGUMENT, what);
  }
  await refused(cri.call('RunPodSandbox', {}), INVALID_ARGUMENT, 'no configuration');
  const badContainers: Record<string, WireInput<'ContainerConfig'>> = {
    'no metadata': { metadata: undefined },
    'an empty name': { metadata: { name: '' } },
    'no image': { image: undefined },
    'an empty image': { image: { image: '' } },
    'logs elsewhere': { logPath: '../../../etc/passwd' },
    'a variable without a name': { envs: [{ key: '', value: Buffer.from('x') }] },
    'a variable that is not text': { envs: [{ key: 'A', value: Buffer.from([0xff]) }] },
    'a signal that is none': { stopSignal: 99 },
    'a propagation that is none': { mounts: [{ containerPath: '/x', hostPath: '/tmp', propagation: 9 }] },
    'a user below 0': { linux: { securityContext: { runAsUser: { value: -1 } } } },
    'a user above all': { linux: { securityContext: { runAsUser: { value: 2n ** 40n } } } },
    'one argument of a MiB': { args: ['x'.repeat(1 << 20)] },
    '16 MB of arguments': { args: Array.from({ length: 160 }, () => 'x'.repeat(100_000)) },
    '16 MB of variables': {
      envs: Array.from({ length: 160 }, (_, index) => ({
        key: `V${index}`,
        value: Buffer.alloc(100_000, 'x'),
      })),
    },
  };
  for (const [what, changes] of Object.entries(badContainers)) {
    const config = container(sleeper, changes);
    await refused(cri.call('CreateContainer', { podSandboxId: pod, config }), INVALID_ARGUMENT, what);
  }
  await refused(
    cri.call('CreateContainer', {
      podSandboxId: pod,
      config: container(sleeper, { image: { image: 'absent' } }),
    }),
    NOT_FOUND,
    'an image that is not there',
  );
  await refused(
    cri.call('CreateContainer', {
      podSandboxId: pod,
      config: container(sleeper, { args: Array.from({ length: 300_000 }, () => '') }),
    }),
    status.INTERNAL,
    'more elements than anybody needs',
  );
  await refused(cri.raw('RunPodSandbox', Buffer.from([0x0a, 200])), status.INTERNAL, 'no message');
  await refused(cri.raw('Version', Buffer.alloc(18 << 20)), status.RESOURCE_EXHAUSTED, 'too long a message');
  await refused(
    cri.call('StopContainer', { containerId: 'x', timeout: -1 }),
    INVALID_ARGUMENT,
    'time backwards',
  );
  assert.deepEqual((await cri.call('ListContainers', {})).containers, []);
  assert.deepEqual(await machine.leftovers(), before);
  // And it still serves.
  assert.equal((await cri.call('Version', {})).runtimeName, 'keelson');
});

test('arguments up to what the kernel takes arrive', { skip: cannotRun }, async (t) => {
  const { machine, cri, run, start } = await stage(t);
  const id = await start(await run(), [
    'sh',
    '-c',
    'echo $#; echo -n "$1" | wc -c',
    'sh',
    'x'.repeat(131_000),
    'y'.repeat(100_000),
  ]);
  await machine.exited(id);
  const { status: ended } = await cri.call('ContainerStatus', { containerId: id });
  assert.match(readFileSync(ended!.logPath, 'utf8'), /stdout F 2\n.*stdout F 131000\n/);
});

test('output of an exec is cut where a message ends', { skip: cannotRun }, async (t) => {
  const { cri, run, start } = await stage(t);
  const id = await start(await run(), sleeper);
  const { stdout, stderr, exitCode } = await cri.call('ExecSync', {
    containerId: id,
    cmd: ['sh', '-c', 'head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2'],
  });
  assert.equal(exitCode, 0);
  assert.ok(stdout.length >= 8_000_000 && stderr.length >= 8_000_000);
});

test('the socket is for root, replaces a stale one, and goes with the server', async (t) => {
  const machineless = (socket: string) =>
    serveCri({
      socket,
      runtime: undefined as never,
      images: undefined as never,
      log,
      clock: systemClock,
    });
  const folder = temporaryFolder(t);
  const socket = join(folder, 'deep/er/cri.sock');
  const server = await machineless(socket);
  assert.equal(statSync(socket).mode & 0o7777, 0o600);
  await assert.rejects(machineless(socket), { code: 'UNAVAILABLE' });
  await server.close();
  assert.equal(existsSync(socket), false);
  // What a killed process leaves: a name without a listener.
  const dead = createServer().listen(join(folder, 'dead.sock'));
  await new Promise((resolve) => dead.once('listening', resolve));
  renameSync(join(folder, 'dead.sock'), socket);
  await new Promise((resolve) => dead.close(resolve));
  const again = await machineless(socket);
  const other = join(folder, 'other');
  // Somebody else's file in its place is not removed.
  renameSync(socket, other);
  writeFileSync(socket, 'x');
  await again.close();
  assert.equal(existsSync(socket), true);
  await assert.rejects(machineless(`/tmp/${'x'.repeat(120)}`), { code: 'UNAVAILABLE' });
});
