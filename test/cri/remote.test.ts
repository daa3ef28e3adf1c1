/** The client of the CRI: what it sends and understands, and how it bears a runtime that fails, hides or goes away. */
import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type {
  ContainerConfig,
  ContainerEvent,
  ContainerStatus,
  PodSandboxConfig,
  PodSandboxStatus,
} from '../../runtime/api.ts';
import {
  conditionsOf,
  containerOf,
  containerStatusOf,
  imageOf,
  milliseconds,
  sandboxStatusOf,
} from '../../runtime/cri/client/answers.ts';
import { eventsBetween, type Seen } from '../../runtime/cri/client/events.ts';
import { failureOf } from '../../runtime/cri/client/failures.ts';
import { authTo, containerConfigTo, sandboxConfigTo, secondsTo } from '../../runtime/cri/client/requests.ts';
import { remembered, withMemory, withoutMemory } from '../../runtime/cri/client/sandbox_memory.ts';
import { type CriClient, makeCriClient } from '../../runtime/cri/client.ts';
import { authOf, containerConfigOf, sandboxConfigOf } from '../../runtime/cri/from_wire.ts';
import type { Handlers } from '../../runtime/cri/handlers.ts';
import { serveCri } from '../../runtime/cri/serve.ts';
import { makeGrpcEdge } from '../../runtime/cri/server.ts';
import { containerStatusTo, containerTo, imageTo, sandboxStatusTo } from '../../runtime/cri/to_wire.ts';
import { decode } from '../../runtime/cri/wire/decode.ts';
import { encode } from '../../runtime/cri/wire/encode.ts';
import type { MessageName, WireInput } from '../../runtime/cri/wire/types.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { temporaryFolder } from '../peers/image-store.ts';
import { cannotRun, fakeImages, makeMachine } from '../runtime/machine.ts';

const log = makeLogger('silent');
const clock = systemClock;
const digest = `sha256:${'a'.repeat(64)}`;

/** As it arrives. */
function wire<Name extends MessageName>(name: Name, message: WireInput<Name>) {
  return decode(name, encode(name, message));
}

/** Without what is undefined, which says the same. */
const plain = <T>(value: T) => JSON.parse(JSON.stringify(value)) as T;

const sandboxConfig: PodSandboxConfig = {
  metadata: { name: 'pod', uid: 'u', namespace: 'n', attempt: 3 },
  hostname: 'host',
  logDirectory: '/var/log/pods/u',
  dns: { servers: ['10.0.0.10'], searches: ['svc'], options: ['ndots:5'] },
  portMappings: [
    { protocol: 'TCP', containerPort: 80, hostPort: 8080, hostIp: '127.0.0.1' },
    { protocol: 'SCTP', containerPort: 81 },
  ],
  labels: { app: 'x' },
  annotations: { note: 'y' },
  linux: {
    cgroupParent: '/kubepods/podu',
    sysctls: { 'net.ipv4.ip_forward': '1' },
    security: {
      namespaces: {
        network: 'pod',
        pid: 'container',
        ipc: 'node',
        user: {
          mode: 'pod',
          uids: [{ hostId: 65536, containerId: 0, length: 65536 }],
          gids: [{ hostId: 65536, containerId: 0, length: 65536 }],
        },
      },
      privileged: true,
      seccomp: { type: 'Localhost', localhostRef: '/profile.json' },
      apparmor: { type: 'Unconfined' },
      selinux: { user: '', role: '', type: 't', level: 's0' },
    },
  },
};

const containerConfig: ContainerConfig = {
  metadata: { name: 'main', attempt: 7 },
  image: { image: digest, runtimeHandler: 'crun' },
  userImage: 'busybox',
  command: ['sh', '-c'],
  args: ['true'],
  workingDir: '/tmp',
  envs: [{ key: 'A', value: 'ä' }],
  mounts: [
    {
      containerPath: '/a',
      hostPath: '/b',
      readonly: true,
      recursiveReadonly: true,
      propagation: 'private',
      selinuxRelabel: true,
      uidMappings: [{ hostId: 1, containerId: 2, length: 3 }],
      gidMappings: [{ hostId: 1, containerId: 2, length: 3 }],
      mountOptions: ['noexec'],
    },
    {
      containerPath: '/image',
      hostPath: '',
      readonly: true,
      recursiveReadonly: false,
      propagation: 'bidirectional',
      selinuxRelabel: false,
      image: { image: digest },
      imageSubPath: 'sub',
      mountOptions: [],
    },
  ],
  devices: [{ containerPath: '/dev/x', hostPath: '/dev/null', permissions: 'rwm' }],
  cdiDevices: [{ name: 'v/c=n' }],
  labels: { l: '1' },
  annotations: { a: '2' },
  logPath: 'main/7.log',
  stdin: true,
  stdinOnce: true,
  tty: true,
  stopSignal: 'SIGRTMIN+3',
  linux: {
    resources: {
      cpuPeriod: 100_000,
      cpuQuota: 50_000,
      cpuShares: 512,
      memoryLimitBytes: 2 ** 40,
      memorySwapLimitBytes: 2 ** 41,
      oomScoreAdj: -997,
      cpusetCpus: '0-1',
      cpusetMems: '0',
      hugepageLimits: [{ pageSize: '2MB', limit: 4 }],
      unified: { 'memory.high': '1' },
    },
    security: {
      namespaces: { network: 'pod', pid: 'target', ipc: 'pod', targetId: 'c1' },
      privileged: false,
      capabilities: { add: ['NET_ADMIN'], drop: ['ALL'], addAmbient: ['CHOWN'] },
      runAsUser: 0,
      runAsGroup: 5,
      supplementalGroups: [6, 7],
      supplementalGroupsPolicy: 'strict',
      readonlyRootfs: true,
      noNewPrivs: true,
      maskedPaths: ['/proc/kcore'],
      readonlyPaths: [],
      seccomp: { type: 'RuntimeDefault' },
      apparmor: { type: 'Localhost', localhostRef: 'p' },
      selinux: { user: 'u', role: 'r', type: 't', level: 'l' },
    },
  },
};

test('what the agent asks for arrives as it asked for it', () => {
  const sandbox = sandboxConfigOf(wire('PodSandboxConfig', sandboxConfigTo(sandboxConfig)));
  assert.deepEqual(plain(sandbox), plain(sandboxConfig));
  const container = containerConfigOf(wire('ContainerConfig', containerConfigTo(containerConfig)));
  assert.deepEqual(plain(container), plain(containerConfig));
  const auth = { username: 'u', password: 'p', serverAddress: 'https://r' };
  assert.deepEqual(authOf(wire('AuthConfig', authTo(auth))), [auth]);
  assert.deepEqual([0, 1, 1000, 1001].map(secondsTo), [0, 1, 1, 2]);
});

test('what is hidden of /proc is told, since other runtimes hide nothing by themselves', () => {
  const paths = (privileged: boolean) => {
    const { maskedPaths: _, readonlyPaths: __, ...security } = containerConfig.linux.security;
    const config = { ...containerConfig, linux: { resources: {}, security: { ...security, privileged } } };
    const { maskedPaths, readonlyPaths } = containerConfigTo(config).linux!.securityContext!;
    return [maskedPaths!.includes('/proc/kcore'), readonlyPaths!.includes('/proc/sys')];
  };
  assert.deepEqual(paths(false), [true, true]);
  assert.deepEqual(paths(true), [false, false]);
});

const sandboxStatus: PodSandboxStatus = {
  id: 's1',
  metadata: sandboxConfig.metadata,
  state: 'ready',
  createdAt: 1_700_000_000_000.125,
  labels: { a: 'b' },
  annotations: { c: 'd' },
  runtimeHandler: 'runc',
  ips: ['10.0.0.1', 'fd00::1'],
  namespaces: { network: 'pod', pid: 'container', ipc: 'pod' },
};
const containerStatus: ContainerStatus = {
  id: 'c1',
  podSandboxId: 's1',
  metadata: containerConfig.metadata,
  image: 'busybox',
  imageRef: digest,
  imageDigestRef: `docker.io/library/busybox@${digest}`,
  state: 'exited',
  createdAt: 1,
  startedAt: 2.5,
  finishedAt: 3,
  exitCode: 137,
  reason: 'OOMKilled',
  message: 'm',
  labels: {},
  annotations: {},
  mounts: containerConfig.mounts,
  logPath: '/log',
  pid: 0,
  user: { uid: 1, gid: 2, supplementalGroups: [3] },
  resources: containerConfig.linux.resources,
  stopSignal: 'SIGTERM',
};

test('what the runtime says is understood as it was meant', () => {
  assert.deepEqual(
    plain(sandboxStatusOf(wire('PodSandboxStatus', sandboxStatusTo(sandboxStatus)))),
    plain(sandboxStatus),
  );
  assert.deepEqual(
    plain(containerStatusOf(wire('ContainerStatus', containerStatusTo(containerStatus)), 's1')),
    plain(containerStatus),
  );
  const { id, podSandboxId, metadata, image, imageRef, state, createdAt, labels, annotations } =
    containerStatus;
  const listed = { id, podSandboxId, metadata, image, imageRef, state, createdAt, labels, annotations };
  assert.deepEqual(containerOf(wire('Container', containerTo(listed))), listed);
  const found = { id: digest, repoTags: ['a:1'], repoDigests: [], size: 5, uid: 0, pinned: true };
  assert.deepEqual(plain(imageOf(wire('Image', imageTo(found)))), found);
  assert.equal(milliseconds(1_700_000_000_123_456_789n), 1_700_000_000_123.456);
});

test('answers of older and newer runtimes are good enough', () => {
  const old = containerOf(
    wire('Container', { id: 'c', image: { image: 'b' }, imageRef: digest, state: 'CONTAINER_RUNNING' }),
  );
  assert.deepEqual([old.image, old.imageRef], ['b', digest]);
  const strange = containerStatusOf(
    wire('ContainerStatus', {
      id: 'c',
      state: 9,
      stopSignal: 999,
      mounts: [{ containerPath: '/x', propagation: 7 }, { containerPath: '/y' }],
    }),
    's',
  );
  assert.equal(strange.state, 'unknown');
  assert.equal(strange.stopSignal, undefined);
  assert.deepEqual(
    strange.mounts.map(({ containerPath }) => containerPath),
    ['/y'],
  );
  const bare = sandboxStatusOf(wire('PodSandboxStatus', { id: 's', state: 9 }));
  assert.deepEqual([bare.state, bare.ips], ['notready', []]);
  // containerd tells of deprecations in the same place.
  const status = wire('StatusResponse', {
    status: {
      conditions: [
        { type: 'RuntimeReady', status: true },
        { type: 'ContainerdHasNoDeprecationWarnings', status: false, reason: 'x' },
      ],
    },
  });
  assert.deepEqual(
    conditionsOf(status).map(({ type }) => type),
    ['RuntimeReady'],
  );
});

test('the configuration that containers need is kept in the sandbox, and not shown', () => {
  const { annotations } = withMemory(sandboxConfig);
  const listed = { ...sandboxStatus, annotations };
  const { logDirectory, hostname, linux } = remembered(listed)!;
  assert.deepEqual(
    [logDirectory, hostname, linux],
    [sandboxConfig.logDirectory, 'host', sandboxConfig.linux],
  );
  assert.deepEqual(withoutMemory(listed).annotations, sandboxConfig.annotations);
  assert.equal(remembered(sandboxStatus), undefined);
});

test('failures have a code of ours', () => {
  const code = (method: string, grpc: number, details = 'x') =>
    failureOf(method, { code: grpc, details }).code;
  assert.deepEqual(
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16].map((number) => code('ListContainers', number)),
    [
      'UNAVAILABLE',
      'RUNTIME_FAILED',
      'INVALID_ARGUMENT',
      'DEADLINE_EXCEEDED',
      'NOT_FOUND',
      'ALREADY_EXISTS',
      'PERMISSION_DENIED',
      'RUNTIME_FAILED',
      'FAILED_PRECONDITION',
      'UNAVAILABLE',
      'RUNTIME_FAILED',
      'UNIMPLEMENTED',
      'RUNTIME_FAILED',
      'UNAVAILABLE',
      'RUNTIME_FAILED',
      'UNAUTHENTICATED',
    ],
  );
  assert.equal(code('RunPodSandbox', 2), 'SANDBOX_CREATE_FAILED');
  assert.equal(code('CreateContainer', 2), 'CONTAINER_CREATE_FAILED');
  assert.equal(code('StartContainer', 13), 'CONTAINER_START_FAILED');
  assert.equal(code('PullImage', 5), 'IMAGE_NOT_FOUND');
  assert.equal(code('PullImage', 2, 'RegistryUnavailable: down'), 'REGISTRY_UNAVAILABLE');
  assert.equal(
    code('PullImage', 2, 'unexpected status from HEAD request: 401 Unauthorized'),
    'IMAGE_PULL_DENIED',
  );
  assert.equal(code('PullImage', 2, 'insufficient_scope: authorization failed'), 'IMAGE_PULL_DENIED');
  assert.equal(code('PullImage', 2, 'no space left'), 'RUNTIME_FAILED');
  // The agent reads how it begins.
  assert.equal(
    failureOf('PullImage', { code: 2, details: 'SignatureValidationFailed: x' }).message,
    'SignatureValidationFailed: x',
  );
});

test('two looks give the events between them', () => {
  const sandbox = sandboxConfig.metadata;
  const states = ['created', 'running', 'ended'] as const;
  const seen = (state: Seen['state'] | undefined) =>
    new Map<string, Seen>(state === undefined ? [] : [['c', { state, sandbox }]]);
  const types = (before: Seen['state'] | undefined, after: Seen['state'] | undefined) =>
    eventsBetween(seen(before), seen(after), 5).map(({ type }) => type);
  for (const state of states) assert.deepEqual(types(state, state), []);
  assert.deepEqual(types(undefined, 'created'), ['created']);
  assert.deepEqual(types(undefined, 'running'), ['created', 'started']);
  assert.deepEqual(types(undefined, 'ended'), ['created', 'stopped']);
  assert.deepEqual(types('created', 'running'), ['started']);
  assert.deepEqual(types('created', 'ended'), ['stopped']);
  assert.deepEqual(types('running', 'ended'), ['stopped']);
  assert.deepEqual(types('running', undefined), ['deleted']);
  assert.deepEqual(eventsBetween(seen('running'), seen('ended'), 5), [
    { type: 'stopped', containerId: 'c', at: 5, sandbox },
  ]);
});

test('an endpoint that is no unix socket is refused', () => {
  for (const endpoint of ['tcp://127.0.0.1:1', 'run/containerd.sock', 'unix://run/x.sock']) {
    assert.throws(() => makeCriClient({ endpoint, clock, log }), { code: 'CONFIG_INVALID' }, endpoint);
  }
});

/** A runtime that does only what it is told to. */
async function pretend(t: TestContext, handlers: Partial<Handlers>): Promise<CriClient> {
  const socket = join(temporaryFolder(t), 's');
  const missing = new Proxy(handlers, {
    get: (known, name) =>
      known[name as keyof Handlers] ??
      (() => Promise.reject(new KeelsonError('UNIMPLEMENTED', `no ${String(name)}`))),
  }) as Handlers;
  const edge = makeGrpcEdge(missing, log);
  const server = createServer((connection) => edge.serve(connection));
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  const client = makeCriClient({ endpoint: `unix://${socket}`, timeoutMs: 2000, clock, log });
  t.after(() => {
    client.close();
    edge.close();
    server.close();
  });
  return client;
}

/** The next event that is wanted. */
function heard(client: CriClient, wanted: (event: ContainerEvent) => boolean): Promise<ContainerEvent> {
  return new Promise((resolve) => {
    const end = client.runtime.containerEvents((event) => {
      if (!wanted(event)) return;
      end();
      resolve(event);
    });
  });
}

test('calls end with their signal and their deadline', async (t) => {
  const arrived = Promise.withResolvers<void>();
  const cancelled = Promise.withResolvers<unknown>();
  const hang = (_: unknown, { signal }: { signal: AbortSignal }) =>
    new Promise<never>((_resolve, reject) => {
      signal.addEventListener('abort', () => {
        cancelled.resolve(signal.reason);
        reject(signal.reason);
      });
      arrived.resolve();
    });
  const client = await pretend(t, { PullImage: hang, Version: hang });
  const ending = new AbortController();
  const pull = client.images.pullImage({ image: 'busybox' }, { signal: ending.signal });
  await arrived.promise;
  ending.abort(new KeelsonError('ABORTED', 'the pod has gone'));
  await assert.rejects(pull, { code: 'ABORTED', message: 'the pod has gone' });
  // The runtime hears of it.
  assert.ok((await cancelled.promise) instanceof KeelsonError);
  await assert.rejects(client.runtime.version(), { code: 'DEADLINE_EXCEEDED' });
});

test('a runtime without events, and one that only pretends to have them, is listed', async (t) => {
  for (const GetContainerEvents of [undefined, () => new Promise<void>(() => {})]) {
    let state: 'CONTAINER_RUNNING' | 'CONTAINER_EXITED' = 'CONTAINER_RUNNING';
    const client = await pretend(t, {
      ...(GetContainerEvents && { GetContainerEvents }),
      ListPodSandbox: async () => ({
        items: [{ id: 's', metadata: sandboxConfig.metadata, state: 'SANDBOX_READY' }],
      }),
      async ListContainers() {
        const containers = [{ id: 'c', podSandboxId: 's', state }];
        // After the first look.
        state = 'CONTAINER_EXITED';
        return { containers };
      },
    });
    const { type, containerId, sandbox } = await heard(client, () => true);
    assert.deepEqual([type, containerId, sandbox], ['stopped', 'c', sandboxConfig.metadata]);
  }
});

test('credentials are tried in turn, then nobody is asked for, and the first refusal is told', async (t) => {
  const tried: string[] = [];
  let right = 'second';
  const client = await pretend(t, {
    async PullImage({ image, auth }) {
      assert.equal(image?.image, 'docker.io/library/busybox:latest');
      const name = auth?.username ?? 'anonymous';
      tried.push(name);
      if (name === right) return { imageRef: 'docker.io/library/busybox@sha256:1' };
      throw new KeelsonError('PERMISSION_DENIED', `not for ${name}`);
    },
    ImageStatus: async () => ({ image: { id: digest } }),
    RemoveImage: () => Promise.reject(new KeelsonError('NOT_FOUND', 'gone')),
  });
  const auths = [{ username: 'first' }, { username: 'second' }];
  const pull = () => client.images.pullImage({ image: 'busybox' }, { auths });
  assert.equal(await pull(), digest, 'the id, also where the answer was a digest');
  assert.deepEqual(tried, ['first', 'second']);
  right = 'somebody else';
  await assert.rejects(pull(), { code: 'IMAGE_PULL_DENIED', message: /not for first/ });
  assert.deepEqual(tried.slice(2), ['first', 'second', 'anonymous']);
  await assert.rejects(client.images.imageStatus({ image: 'A B' }), { code: 'IMAGE_NAME_INVALID' });
  await client.images.removeImage({ image: 'busybox' });
});

test('pods on another keelson, which is restarted in the middle', { skip: cannotRun }, async (t) => {
  const machine = await makeMachine(t);
  const socket = join(machine.root, 'cri.sock');
  const serve = () =>
    serveCri({
      socket,
      runtime: machine.runtime,
      images: fakeImages(machine.layer, machine.leases),
      log,
      clock,
    });
  let server = await serve();
  const client = makeCriClient({ endpoint: socket, clock, log });
  t.after(async () => {
    client.close();
    await server.close();
  });
  const { runtime } = client;
  assert.equal((await runtime.version()).runtimeName, 'keelson');
  assert.equal(await client.cgroupDriver(), 'cgroupfs');
  assert.ok((await runtime.status()).some(({ type, status }) => type === 'RuntimeReady' && status));
  assert.ok((await runtime.handlers()).length > 0);
  assert.deepEqual(await runtime.features(), {
    supplementalGroupsPolicy: true,
    userNamespacesHostNetwork: false,
    mountOptions: true,
  });

  const config = machine.sandboxConfig();
  const sandbox = await runtime.runPodSandbox(config, '');
  assert.equal((await runtime.podSandboxStatus(sandbox)).state, 'ready');
  assert.deepEqual((await runtime.listPodSandbox({ labels: { app: 'test' } }))[0]?.annotations, {});
  assert.deepEqual(await runtime.listPodSandbox({ labels: { app: 'other' } }), []);
  const command = ['sh', '-c', 'echo hello; sleep 1000'];
  const id = await runtime.createContainer(sandbox, machine.containerConfig(command));
  const started = heard(client, ({ type, containerId }) => type === 'started' && containerId === id);
  await runtime.startContainer(id);
  assert.equal((await started).sandbox.uid, config.metadata.uid);
  const status = await runtime.containerStatus(id);
  assert.deepEqual([status.state, status.podSandboxId], ['running', sandbox]);
  const said = await runtime.execSync(id, ['sh', '-c', 'echo out; echo err >&2; exit 4'], 10_000);
  assert.deepEqual([String(said.stdout), String(said.stderr), said.exitCode], ['out\n', 'err\n', 4]);
  await assert.rejects(runtime.startContainer(id), { code: 'FAILED_PRECONDITION' });
  await assert.rejects(runtime.containerStatus('nobody'), { code: 'NOT_FOUND' });
  await assert.rejects(runtime.createContainer('nobody', machine.containerConfig(command)), {
    code: 'NOT_FOUND',
  });

  // Away, the container ends meanwhile, and back: told without an event of the runtime's own.
  await server.close();
  await assert.rejects(runtime.version(), { code: 'UNAVAILABLE' });
  const stopped = heard(client, ({ type, containerId }) => type === 'stopped' && containerId === id);
  await machine.runtime.stopContainer(id, 0);
  server = await serve();
  await stopped;
  assert.equal((await runtime.containerStatus(id)).exitCode, 137);

  await runtime.stopContainer('nobody', 0);
  await runtime.removeContainer(id);
  await runtime.removeContainer(id);
  await runtime.stopPodSandbox(sandbox);
  await runtime.removePodSandbox(sandbox);
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});
