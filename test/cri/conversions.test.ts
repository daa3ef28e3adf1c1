/** The wire and runtime/api.ts: times, enums, filters and everything else that is turned into one another. */
import assert from 'node:assert/strict';
import { constants } from 'node:os';
import { test } from 'node:test';
import type { ContainerStatus } from '../../runtime/api.ts';
import {
  authOf,
  containerConfigOf,
  millisecondsOf,
  resourcesOf,
  sandboxConfigOf,
} from '../../runtime/cri/from_wire.ts';
import {
  containerStates,
  eventTypes,
  groupPolicies,
  nameOf,
  namespaceModes,
  profileTypes,
  propagations,
  protocols,
  sandboxStates,
  signalNameOf,
  signalOf,
  wordOf,
} from '../../runtime/cri/names.ts';
import { sendInParts } from '../../runtime/cri/parts.ts';
import {
  containerStatusTo,
  execResultTo,
  imageTo,
  infoOf,
  nanoseconds,
  sandboxStatusTo,
} from '../../runtime/cri/to_wire.ts';
import { decode } from '../../runtime/cri/wire/decode.ts';
import { encode } from '../../runtime/cri/wire/encode.ts';
import { enums } from '../../runtime/cri/wire/enums.ts';
import type { MessageName, WireInput } from '../../runtime/cri/wire/types.ts';
import { signalNumber } from '../../runtime/processes.ts';

/** As it arrives. */
function wire<Name extends MessageName>(name: Name, message: WireInput<Name>) {
  return decode(name, encode(name, message));
}

test('milliseconds become nanoseconds without rounding errors', () => {
  for (const [milliseconds, expected] of [
    [0, 0n],
    [1, 1_000_000n],
    [1_700_000_000_123, 1_700_000_000_123_000_000n],
    [1_700_000_000_123.456, 1_700_000_000_123_456_000n],
    [123.999_999_9, 124_000_000n],
  ] as const) {
    assert.equal(nanoseconds(milliseconds), expected);
  }
});

test('seconds become milliseconds', () => {
  assert.equal(millisecondsOf(0n, 'x'), 0);
  assert.equal(millisecondsOf(30n, 'x'), 30_000);
  assert.equal(millisecondsOf(2n ** 62n, 'x'), 1_000_000_000);
  assert.throws(() => millisecondsOf(-1n, 'x'), { code: 'INVALID_ARGUMENT' });
});

test('every value of an enum has a word and comes back', () => {
  for (const [names, values] of [
    [namespaceModes, enums.NamespaceMode],
    [sandboxStates, enums.PodSandboxState],
    [containerStates, enums.ContainerState],
    [eventTypes, enums.ContainerEventType],
    [propagations, enums.MountPropagation],
    [protocols, enums.Protocol],
    [profileTypes, enums.ProfileType],
    [groupPolicies, enums.SupplementalGroupsPolicy],
  ] as [Record<string, string>, readonly string[]][]) {
    assert.deepEqual(Object.keys(names), values);
    for (const value of values) assert.equal(nameOf(names, wordOf(names, value, 'x')), value);
  }
  assert.throws(() => wordOf(namespaceModes, 17, 'x'), { code: 'INVALID_ARGUMENT' });
});

test('every signal of the wire is one that the runtime can send, and comes back', () => {
  for (const name of enums.Signal.slice(1)) {
    const signal = signalOf(name)!;
    assert.ok(signalNumber(signal) !== undefined, signal);
    // The old name of the same signal.
    const expected = name === 'SIGNAL_SIGCLD' ? 'SIGNAL_SIGCHLD' : name;
    assert.equal(signalNameOf(signal, constants.signals), expected);
  }
  assert.equal(signalOf('SIGNAL_RUNTIME_DEFAULT'), undefined);
  assert.equal(signalNameOf('term', constants.signals), 'SIGNAL_SIGTERM');
  assert.equal(signalNameOf('9', constants.signals), 'SIGNAL_SIGKILL');
  assert.equal(signalNameOf('nonsense', constants.signals), 'SIGNAL_RUNTIME_DEFAULT');
});

const metadata = { name: 'p', uid: 'u', namespace: 'n', attempt: 2 };

test('the smallest sandbox has the defaults of the CRI', () => {
  assert.deepEqual(sandboxConfigOf(wire('PodSandboxConfig', { metadata })), {
    metadata,
    hostname: '',
    logDirectory: '',
    dns: undefined,
    portMappings: [],
    labels: {},
    annotations: {},
    linux: {
      cgroupParent: '',
      sysctls: {},
      security: {
        namespaces: { network: 'pod', pid: 'pod', ipc: 'pod' },
        privileged: undefined,
        seccomp: undefined,
        apparmor: undefined,
        selinux: undefined,
      },
    },
  });
});

test('a whole sandbox', () => {
  const config = sandboxConfigOf(
    wire('PodSandboxConfig', {
      metadata,
      hostname: 'h',
      logDirectory: '/l',
      dnsConfig: { servers: ['1.1.1.1'], searches: ['a.b'], options: ['ndots:2'] },
      portMappings: [
        { protocol: 'UDP', containerPort: 53, hostPort: 5353, hostIp: '127.0.0.1' },
        { containerPort: 80 },
      ],
      labels: { a: 'b' },
      annotations: { c: 'd' },
      linux: {
        cgroupParent: '/x',
        sysctls: { 'net.ipv4.ip_forward': '1' },
        securityContext: {
          namespaceOptions: { network: 'NODE', pid: 'NODE', ipc: 'NODE' },
          privileged: true,
          seccompProfilePath: 'runtime/default',
        },
      },
    }),
  );
  assert.deepEqual(config.portMappings, [
    { protocol: 'UDP', containerPort: 53, hostPort: 5353, hostIp: '127.0.0.1' },
    { protocol: 'TCP', containerPort: 80, hostPort: undefined, hostIp: undefined },
  ]);
  assert.deepEqual(config.dns, { servers: ['1.1.1.1'], searches: ['a.b'], options: ['ndots:2'] });
  const { namespaces, privileged, seccomp } = config.linux.security;
  assert.deepEqual([namespaces.network, namespaces.pid, namespaces.ipc], ['node', 'node', 'node']);
  assert.equal(privileged, true);
  assert.deepEqual(seccomp, { type: 'RuntimeDefault' });
});

const smallest = { metadata: { name: 'c' }, image: { image: 'i' } };

test('profiles: the new field before the old one, each of its forms', () => {
  const profiles = (securityContext: WireInput<'LinuxContainerSecurityContext'>) => {
    const { security } = containerConfigOf(
      wire('ContainerConfig', { ...smallest, linux: { securityContext } }),
    ).linux;
    return [security.seccomp, security.apparmor];
  };
  assert.deepEqual(profiles({}), [undefined, undefined]);
  assert.deepEqual(profiles({ seccompProfilePath: 'docker/default', apparmorProfile: 'localhost/x' }), [
    { type: 'RuntimeDefault' },
    { type: 'Localhost', localhostRef: 'x' },
  ]);
  assert.deepEqual(
    profiles({ seccompProfilePath: 'unconfined', seccomp: { profileType: 'RuntimeDefault' } }),
    [{ type: 'RuntimeDefault', localhostRef: undefined }, undefined],
  );
  assert.throws(() => profiles({ seccompProfilePath: 'odd' }), { code: 'INVALID_ARGUMENT' });
});

test('a whole container', () => {
  const config = containerConfigOf(
    wire('ContainerConfig', {
      metadata: { name: 'c', attempt: 3 },
      image: { image: 'sha256:1', userSpecifiedImage: 'busybox:1' },
      command: ['a'],
      args: ['b'],
      workingDir: '/w',
      envs: [{ key: 'K', value: Buffer.from('é') }],
      mounts: [
        { containerPath: '/c', hostPath: '/h', readonly: true, propagation: 'PROPAGATION_BIDIRECTIONAL' },
      ],
      devices: [{ containerPath: '/dev/x', hostPath: '/dev/y', permissions: 'rw' }],
      logPath: 'c.log',
      stdin: true,
      stdinOnce: true,
      tty: true,
      stopSignal: 'SIGNAL_SIGRTMINPLUS3',
      linux: {
        securityContext: {
          capabilities: { addCapabilities: ['NET_ADMIN'], dropCapabilities: ['ALL'] },
          namespaceOptions: { pid: 'TARGET', targetId: 't' },
          runAsUser: { value: 0 },
          runAsGroup: { value: 7 },
          supplementalGroups: [1, 2],
          supplementalGroupsPolicy: 'Strict',
          noNewPrivs: true,
          readonlyRootfs: true,
          maskedPaths: ['/m'],
          readonlyPaths: ['/r'],
        },
      },
    }),
  );
  assert.equal(config.userImage, 'busybox:1');
  assert.equal(config.image.image, 'sha256:1');
  assert.deepEqual(config.envs, [{ key: 'K', value: 'é' }]);
  assert.equal(config.mounts[0]?.propagation, 'bidirectional');
  assert.equal(config.stopSignal, 'SIGRTMIN+3');
  const { security } = config.linux;
  assert.equal(security.runAsUser, 0, 'root is not "no user"');
  assert.equal(security.runAsGroup, 7);
  assert.deepEqual(security.supplementalGroups, [1, 2]);
  assert.equal(security.supplementalGroupsPolicy, 'strict');
  assert.deepEqual([security.namespaces.pid, security.namespaces.targetId], ['target', 't']);
  assert.deepEqual(security.capabilities?.drop, ['ALL']);
});

test('mounts, devices and namespaces come back in the status as they were asked for', () => {
  const ids = [{ hostId: 100_000, containerId: 0, length: 65_536 }];
  const usernsOptions = { mode: 'POD', uids: ids, gids: ids } as const;
  const image = `sha256:${'a'.repeat(64)}`;
  const config = containerConfigOf(
    wire('ContainerConfig', {
      ...smallest,
      mounts: [
        {
          containerPath: '/a',
          hostPath: '/h',
          readonly: true,
          recursiveReadOnly: true,
          selinuxRelabel: true,
        },
        { containerPath: '/b', hostPath: '/h', uidMappings: ids, gidMappings: ids, mountOptions: ['nosuid'] },
        {
          containerPath: '/c',
          readonly: true,
          image: { image, userSpecifiedImage: 'data:1' },
          imageSubPath: 'x/y',
        },
      ],
      CDIDevices: [{ name: 'vendor.com/class=name' }],
      linux: {
        resources: { memoryLimitInBytes: 5, memorySwapLimitInBytes: 9 },
        securityContext: {
          namespaceOptions: { usernsOptions },
          selinuxOptions: { level: 's0:c1,c2' },
          capabilities: { addAmbientCapabilities: ['NET_BIND_SERVICE'] },
        },
      },
    }),
  );
  assert.deepEqual(config.cdiDevices, [{ name: 'vendor.com/class=name' }]);
  const { security, resources } = config.linux;
  assert.deepEqual(security.namespaces.user, { mode: 'pod', uids: ids, gids: ids });
  assert.equal(security.selinux?.level, 's0:c1,c2');
  assert.deepEqual(security.capabilities?.addAmbient, ['NET_BIND_SERVICE']);
  const sent = wire('ContainerStatus', containerStatusTo({ ...status, mounts: config.mounts, resources }));
  assert.deepEqual(
    sent.mounts.map((one) => [one.recursiveReadOnly, one.selinuxRelabel, one.mountOptions, one.imageSubPath]),
    [
      [true, true, [], ''],
      [false, false, ['nosuid'], ''],
      [false, false, [], 'x/y'],
    ],
  );
  assert.deepEqual(sent.mounts[1]?.uidMappings, ids);
  assert.equal(sent.mounts[2]?.image?.imageRef, image);
  assert.equal(sent.resources?.linux?.memorySwapLimitInBytes, 9n);
  assert.throws(
    () =>
      containerConfigOf(
        wire('ContainerConfig', {
          ...smallest,
          linux: { securityContext: { namespaceOptions: { usernsOptions: { mode: 'TARGET' } } } },
        }),
      ),
    { code: 'INVALID_ARGUMENT' },
  );
});

test('an image is mounted read-only or not at all', () => {
  const mounts = [{ containerPath: '/c', image: { image: 'i' } }];
  assert.throws(() => containerConfigOf(wire('ContainerConfig', { ...smallest, mounts })), {
    code: 'INVALID_ARGUMENT',
  });
});

test('zeros of resources are not set, and the greatest is no limit', () => {
  const none = resourcesOf(wire('LinuxContainerResources', {}));
  assert.equal(none.cpuShares, undefined);
  assert.equal(none.memoryLimitBytes, undefined);
  const some = resourcesOf(
    wire('LinuxContainerResources', {
      cpuQuota: -1,
      memoryLimitInBytes: 2n ** 63n - 1n,
      oomScoreAdj: -997,
      hugepageLimits: [{ pageSize: '2MB', limit: 2n ** 63n }],
      unified: { 'memory.high': '1' },
    }),
  );
  assert.equal(some.cpuQuota, -1);
  assert.equal(some.memoryLimitBytes, Number.MAX_SAFE_INTEGER);
  assert.equal(some.oomScoreAdj, -997);
  assert.deepEqual(some.hugepageLimits, [{ pageSize: '2MB', limit: Number.MAX_SAFE_INTEGER }]);
  assert.throws(() => resourcesOf(wire('LinuxContainerResources', { cpuShares: 2n ** 55n })), {
    code: 'INVALID_ARGUMENT',
  });
});

test('credentials: what is empty is not there, and none at all are none', () => {
  assert.deepEqual(authOf(undefined), []);
  assert.deepEqual(authOf(wire('AuthConfig', {})), []);
  assert.deepEqual(authOf(wire('AuthConfig', { serverAddress: 'r' })), []);
  assert.deepEqual(authOf(wire('AuthConfig', { username: 'u', password: 'p' })), [
    { username: 'u', password: 'p' },
  ]);
});

const status: ContainerStatus = {
  id: 'id',
  podSandboxId: 'pod',
  metadata: { name: 'c', attempt: 1 },
  image: 'busybox:1',
  imageRef: 'sha256:1',
  imageDigestRef: 'busybox@sha256:2',
  state: 'exited',
  createdAt: 1000,
  startedAt: 2000,
  finishedAt: 3000,
  exitCode: 137,
  reason: 'OOMKilled',
  message: 'm',
  labels: {},
  annotations: {},
  logPath: '/l',
  mounts: [],
  pid: 0,
  user: { uid: 0, gid: 5, supplementalGroups: [6] },
  stopSignal: 'SIGTERM',
};

test('the status of a container', () => {
  const sent = wire('ContainerStatus', containerStatusTo(status));
  assert.equal(sent.state, 'CONTAINER_EXITED');
  assert.deepEqual(
    [sent.createdAt, sent.startedAt, sent.finishedAt],
    [1_000_000_000n, 2_000_000_000n, 3_000_000_000n],
  );
  assert.deepEqual([sent.imageId, sent.imageRef], ['sha256:1', 'busybox@sha256:2']);
  assert.equal(sent.image?.image, 'busybox:1');
  assert.deepEqual(sent.user?.linux, { uid: 0n, gid: 5n, supplementalGroups: [6n] });
  assert.equal(sent.stopSignal, 'SIGNAL_SIGTERM');
});

test('addresses of a sandbox: the first, then the others', () => {
  const sandbox = {
    id: 's',
    metadata,
    state: 'ready',
    createdAt: 1,
    labels: {},
    annotations: {},
    runtimeHandler: 'runc',
    namespaces: { network: 'pod', pid: 'container', ipc: 'pod' },
  } as const;
  const ips = (all: readonly string[]) =>
    wire('PodSandboxStatus', sandboxStatusTo({ ...sandbox, ips: all })).network;
  assert.deepEqual(ips(['10.0.0.1', 'fd00::1']), { ip: '10.0.0.1', additionalIps: [{ ip: 'fd00::1' }] });
  assert.deepEqual(ips([]), { ip: '', additionalIps: [] });
});

test('the user 0 of an image is told, and no user is not', () => {
  const image = { id: 'i', repoTags: [], repoDigests: [], size: 5, pinned: false };
  assert.deepEqual(wire('Image', imageTo({ ...image, uid: 0 })).uid, { value: 0n });
  assert.equal(wire('Image', imageTo({ ...image, username: 'web' })).uid, undefined);
});

test('output is cut only where both do not fit, and fairly', () => {
  const most = 16 * 2 ** 20 - 1024;
  const cut = (out: number, err: number) => {
    const result = execResultTo({ stdout: Buffer.alloc(out), stderr: Buffer.alloc(err), exitCode: 0 });
    const bytes = encode('ExecSyncResponse', result).length;
    assert.ok(bytes <= 16 * 2 ** 20, `${bytes} bytes`);
    return [result.stdout!.length, result.stderr!.length];
  };
  assert.deepEqual(cut(5, 7), [5, 7]);
  assert.deepEqual(cut(16 << 20, 0), [most, 0]);
  assert.deepEqual(cut(16 << 20, 1000), [most - 1000, 1000]);
  assert.deepEqual(cut(16 << 20, 16 << 20), [most / 2, most / 2]);
});

test('facts become JSON, each on its own', () => {
  assert.deepEqual(infoOf({ config: { a: 1 }, gone: undefined, list: [] }), {
    config: '{"a":1}',
    list: '[]',
  });
});

test('parts hold everything once, in order, and none is too large', async () => {
  const items = Array.from({ length: 50 }, (_, index) => ({ ip: `${index} ${'x'.repeat(60_000)}` }));
  const parts: (readonly { ip?: string }[])[] = [];
  await sendInParts('PodIP', items, async (part) => void parts.push(part));
  assert.deepEqual(parts.flat(), items);
  assert.ok(parts.length >= 3 && parts.every((part) => part.length > 0 && part.length < 20));
  const large = [{ ip: 'y'.repeat(3 << 20) }, { ip: 'z' }];
  const alone: number[] = [];
  await sendInParts('PodIP', large, async (part) => void alone.push(part.length));
  assert.deepEqual(alone, [1, 1], 'one that is too large goes alone');
  await sendInParts('PodIP', [], () => Promise.reject(new Error('nothing is to be sent')));
});
