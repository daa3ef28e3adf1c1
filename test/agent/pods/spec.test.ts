/** From the specification to what the runtime and the kernel are asked for. */
import assert from 'node:assert/strict';
import { basename, dirname } from 'node:path';
import { test } from 'node:test';
import type { Pod, PodContainer } from '../../../agent/apiserver/types.ts';
import { refusalOf } from '../../../agent/pods/spec/admission.ts';
import { makeContainerConfig, subPathMounts } from '../../../agent/pods/spec/container_config.ts';
import { hostsFile } from '../../../agent/pods/spec/hosts.ts';
import {
  cgroupOf,
  containerResources,
  cpuQuota,
  cpuShares,
  oomScoreAdj,
  podCgroup,
  podCgroupParents,
  podCgroupResources,
  qosClassOf,
  uidOfCgroup,
} from '../../../agent/pods/spec/qos.ts';
import {
  kernelHostname,
  makeSandboxConfig,
  parseResolvConf,
  podDns,
  podHostname,
  portMappings,
} from '../../../agent/pods/spec/sandbox_config.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { makePod } from './objects.ts';

const settings = { driver: 'cgroupfs', root: '/', cpuCfsQuota: true, cpuCfsPeriodUs: 100_000 } as const;
const needing = (requests?: Record<string, string>, limits?: Record<string, string>): PodContainer => ({
  name: 'app',
  image: 'x:1',
  resources: { ...(requests ? { requests } : {}), ...(limits ? { limits } : {}) },
});

const classes: [string, PodContainer[], string][] = [
  ['nothing', [needing()], 'BestEffort'],
  ['a request', [needing({ cpu: '100m' })], 'Burstable'],
  ['limits only', [needing(undefined, { cpu: '1', memory: '1Gi' })], 'Guaranteed'],
  [
    'requests that are the limits',
    [needing({ cpu: '1', memory: '1Gi' }, { cpu: '1000m', memory: '1024Mi' })],
    'Guaranteed',
  ],
  [
    'requests below the limits',
    [needing({ cpu: '500m', memory: '1Gi' }, { cpu: '1', memory: '1Gi' })],
    'Burstable',
  ],
  ['one of two', [needing(undefined, { cpu: '1', memory: '1Gi' }), { name: 'b' }], 'Burstable'],
  ['zero', [needing({ cpu: '0' })], 'BestEffort'],
];
for (const [what, containers, wanted] of classes) {
  test(`${what} makes a ${wanted} pod`, () => assert.equal(qosClassOf(makePod({ containers })), wanted));
}

test('cgroups are named as kubelet names them', () => {
  const uid = 'aaaa-bbbb';
  const pod = (containers: PodContainer[]) => makePod({ containers }, { metadata: { name: 'p', uid } });
  const full = needing(undefined, { cpu: '1', memory: '1Gi' });
  assert.equal(podCgroup(pod([needing()]), settings).path, '/kubepods/besteffort/podaaaa-bbbb');
  assert.equal(podCgroup(pod([full]), settings).parent, '/kubepods/podaaaa-bbbb');
  assert.deepEqual(podCgroup(pod([needing({ cpu: '1' })]), { ...settings, driver: 'systemd' }), {
    path: '/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podaaaa_bbbb.slice',
    parent: 'kubepods-burstable-podaaaa_bbbb.slice',
  });
  assert.equal(
    podCgroup(pod([full]), { ...settings, driver: 'systemd' }).path,
    '/kubepods.slice/kubepods-podaaaa_bbbb.slice',
  );
  assert.equal(podCgroup(pod([full]), { ...settings, root: '/own/' }).path, '/own/kubepods/podaaaa-bbbb');
  assert.deepEqual(podCgroup(pod([full]), { ...settings, driver: 'systemd', root: '/my-own/' }), {
    path: '/my_own.slice/my_own-kubepods.slice/my_own-kubepods-podaaaa_bbbb.slice',
    parent: 'my_own-kubepods-podaaaa_bbbb.slice',
  });
});

for (const driver of ['cgroupfs', 'systemd'] as const) {
  test(`pods are found again by their cgroups, ${driver}`, () => {
    const own = { ...settings, driver, root: '/own' };
    const uid = '5a84f322-aaad-422b-9cc9-b1d1611bf3f9';
    for (const qos of ['Guaranteed', 'Burstable', 'BestEffort'] as const) {
      const { path } = cgroupOf(uid, qos, own);
      assert.ok(podCgroupParents(own).includes(dirname(path)), path);
      assert.equal(uidOfCgroup(basename(path), own), uid);
    }
    for (const other of ['burstable', 'kubepods-burstable.slice', 'besteffort', 'system.slice', 'pod']) {
      assert.equal(uidOfCgroup(other, own), undefined);
    }
  });
}

test('shares, quota and limits', () => {
  assert.deepEqual([0, 1, 500, 1000, 1e9].map(cpuShares), [2, 2, 512, 1024, 262_144]);
  assert.deepEqual(
    [0, 1, 500, 2000].map((milli) => cpuQuota(milli, 100_000)),
    [0, 1000, 50_000, 200_000],
  );
  assert.deepEqual(containerResources(needing({ cpu: '250m' }, { cpu: '500m', memory: '64Mi' }), settings), {
    cpuShares: 256,
    cpuQuota: 50_000,
    cpuPeriod: 100_000,
    memoryLimitBytes: 64 * 2 ** 20,
  });
  assert.deepEqual(
    containerResources(needing({ cpu: '250m' }, { cpu: '500m' }), { ...settings, cpuCfsQuota: false }),
    {
      cpuShares: 256,
    },
  );
});

test('a pod is limited only where all its containers are', () => {
  const limited = needing({ cpu: '100m', memory: '1Mi' }, { cpu: '200m', memory: '2Mi' });
  const both = podCgroupResources(makePod({ containers: [limited, { ...limited, name: 'b' }] }), settings);
  assert.deepEqual(both, {
    cpuShares: 204,
    cpuQuota: 40_000,
    cpuPeriod: 100_000,
    memoryLimitBytes: 4 * 2 ** 20,
    pidsLimit: undefined,
  });
  const half = podCgroupResources(makePod({ containers: [limited, { name: 'b' }] }), {
    ...settings,
    podPidsLimit: 99,
  });
  assert.deepEqual(half, { cpuShares: 102, pidsLimit: 99 });
});

test('init containers count as the largest, sidecars on top', () => {
  const of = (name: string, cpu: string, rest: Partial<PodContainer> = {}): PodContainer => ({
    ...needing({ cpu }),
    name,
    ...rest,
  });
  const pod = makePod({
    initContainers: [of('s', '100m', { restartPolicy: 'Always' }), of('i', '900m')],
    containers: [of('app', '500m')],
  });
  assert.equal(podCgroupResources(pod, settings).cpuShares, 1024);
});

test('who is killed first for want of memory', () => {
  const gib = 2 ** 30;
  const score = (pod: Pod) => oomScoreAdj(pod, pod.spec!.containers[0]!, 8 * gib);
  assert.equal(score(makePod({ containers: [needing()] })), 1000);
  assert.equal(score(makePod({ containers: [needing(undefined, { cpu: '1', memory: '1Gi' })] })), -997);
  assert.equal(score(makePod({ containers: [needing({ memory: '2Gi' })] })), 750);
  assert.equal(score(makePod({ containers: [needing({ memory: '1' })] })), 999);
  assert.equal(score(makePod({ containers: [needing({ memory: '9Gi' })] })), 3);
  assert.equal(score(makePod({ priorityClassName: 'system-node-critical' })), -997);
});

const host = { servers: ['192.0.2.53'], searches: ['example.org'], options: ['timeout:1'] };
const dnsSettings = { clusterDns: ['10.96.0.10'], clusterDomain: 'cluster.local', host };
const cluster = {
  servers: ['10.96.0.10'],
  searches: ['default.svc.cluster.local', 'svc.cluster.local', 'cluster.local', 'example.org'],
  options: ['ndots:5'],
};
const policies: [NonNullable<Pod['spec']>['dnsPolicy'], boolean, object][] = [
  ['ClusterFirst', false, cluster],
  ['ClusterFirst', true, host],
  ['ClusterFirstWithHostNet', true, cluster],
  ['Default', false, host],
  ['None', false, { servers: ['1.1.1.1'], searches: [], options: [] }],
];
for (const [dnsPolicy, hostNetwork, wanted] of policies) {
  test(`dnsPolicy ${dnsPolicy}${hostNetwork ? ' on the host network' : ''}`, () => {
    const dnsConfig = dnsPolicy === 'None' ? { nameservers: ['1.1.1.1'] } : undefined;
    assert.deepEqual(podDns(makePod({ dnsPolicy, hostNetwork, dnsConfig }), dnsSettings).dns, wanted);
  });
}

test('dnsConfig is merged, and what does not fit is told of', () => {
  const dnsConfig = {
    nameservers: ['1.1.1.1', '10.96.0.10', '2.2.2.2', '3.3.3.3'],
    searches: ['own.example'],
    options: [{ name: 'ndots', value: '2' }, { name: 'edns0' }],
  };
  const { dns, warnings } = podDns(makePod({ dnsConfig }), dnsSettings);
  assert.deepEqual(dns.servers, ['10.96.0.10', '1.1.1.1', '2.2.2.2']);
  assert.equal(dns.searches.at(-1), 'own.example');
  assert.deepEqual(dns.options, ['ndots:2', 'edns0']);
  assert.match(warnings[0]!, /^Nameserver limits were exceeded/);
  const long = podDns(
    makePod({ dnsConfig: { searches: Array.from({ length: 40 }, (_, i) => `s${i}.example`) } }),
    dnsSettings,
  );
  assert.equal(long.dns.searches.length, 32);
  const without = podDns(makePod(), { ...dnsSettings, clusterDns: [] });
  assert.match(without.missing!, /ClusterDNS IP .* using "ClusterFirst" policy\. Falling back to "Default"/);
  assert.equal(
    podDns(makePod({ dnsPolicy: 'Default' }), { ...dnsSettings, clusterDns: [] }).missing,
    undefined,
  );
});

test('resolv.conf is read as resolvers do', () => {
  assert.deepEqual(
    parseResolvConf(
      '# c\nnameserver 1.1.1.1\nnameserver 2.2.2.2\nsearch a\nsearch b. . c\noptions ndots:1\noptions ndots:3 rotate\n',
    ),
    { servers: ['1.1.1.1', '2.2.2.2'], searches: ['b', 'c'], options: ['ndots:3', 'rotate'] },
  );
});

test("host names: the pod's, its own, with subdomain, in full", () => {
  assert.deepEqual(podHostname(makePod(), 'c.l'), { hostname: 'web', domain: '' });
  const pod = makePod({ hostname: 'h', subdomain: 'sub' });
  assert.deepEqual(podHostname(pod, 'c.l'), { hostname: 'h', domain: 'sub.default.svc.c.l' });
  assert.equal(kernelHostname(pod, 'c.l'), 'h');
  assert.equal(
    kernelHostname(makePod({ hostname: 'h', subdomain: 'sub', setHostnameAsFQDN: true }), 'c.l'),
    'h.sub.default.svc.c.l',
  );
  const long = makePod({}, { metadata: { name: `${'a'.repeat(62)}-bcd`, uid: 'u' } });
  assert.equal(podHostname(long, 'c.l').hostname, 'a'.repeat(62));
  assert.throws(
    () =>
      kernelHostname(makePod({ hostname: 'h'.repeat(60), subdomain: 'sub', setHostnameAsFQDN: true }), 'c.l'),
    (error) => isError(error, 'POD_INVALID'),
  );
});

test("the hosts file has kubelet's words", () => {
  const pod = makePod({ hostAliases: [{ ip: '1.2.3.4', hostnames: ['a', 'b'] }] });
  assert.equal(
    hostsFile(pod, { hostname: 'h', domain: 'd.l' }, ['10.0.0.1', 'fd00::1'], ''),
    '# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' +
      'fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n' +
      '10.0.0.1\th.d.l\th\nfd00::1\th.d.l\th\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n',
  );
  const onHost = makePod({ hostNetwork: true });
  assert.equal(
    hostsFile(onHost, { hostname: 'h', domain: '' }, [], '127.0.0.1 x\n'),
    '# Kubernetes-managed hosts file (host network).\n127.0.0.1 x\n',
  );
});

test('a sandbox carries what CNI plugins and log shippers look for', () => {
  const containers: PodContainer[] = [
    {
      name: 'a',
      ports: [
        { containerPort: 80, hostPort: 8080, hostIP: '127.0.0.1' },
        { containerPort: 80, hostPort: 8080, hostIP: '127.0.0.1' },
        { containerPort: 53, protocol: 'UDP' },
      ],
    },
  ];
  const pod = makePod(
    {
      containers,
      shareProcessNamespace: true,
      securityContext: { sysctls: [{ name: 'net.x', value: '1' }] },
    },
    { metadata: { name: 'web', namespace: 'ns', uid: 'u', labels: { app: 'web' } } },
  );
  const config = makeSandboxConfig(pod, 2, host, {
    podLogsDir: '/logs',
    clusterDomain: 'c.l',
    cgroupParent: '/kubepods/podu',
  });
  assert.deepEqual(config.metadata, { name: 'web', namespace: 'ns', uid: 'u', attempt: 2 });
  assert.equal(config.logDirectory, '/logs/ns_web_u');
  assert.deepEqual(config.labels, {
    app: 'web',
    'io.kubernetes.pod.name': 'web',
    'io.kubernetes.pod.namespace': 'ns',
    'io.kubernetes.pod.uid': 'u',
  });
  assert.deepEqual(portMappings(pod), [
    { protocol: 'TCP', containerPort: 80, hostPort: 8080, hostIp: '127.0.0.1' },
    { protocol: 'UDP', containerPort: 53 },
  ]);
  assert.deepEqual(config.linux.security.namespaces, { network: 'pod', ipc: 'pod', pid: 'pod' });
  assert.deepEqual(config.linux.sysctls, { 'net.x': '1' });
});

function configOf(pod: Pod, rest: Partial<Parameters<typeof makeContainerConfig>[0]> = {}) {
  return makeContainerConfig({
    pod,
    container: pod.spec!.containers[0]!,
    attempt: 3,
    imageId: 'sha256:abc',
    imageUser: {},
    env: [],
    command: [],
    args: [],
    volumes: new Map([
      ['data', { name: 'data', hostPath: '/v/data', readOnly: false }],
      ['token', { name: 'token', hostPath: '/v/token', readOnly: true }],
    ]),
    subPaths: new Map(),
    hostsFile: '/pod/etc-hosts',
    terminationFile: '/pod/containers/app/3',
    cgroup: settings,
    security: { seccompRoot: '/seccomp', seccompDefault: false },
    memoryCapacity: 2 ** 33,
    ...rest,
  });
}

test('a container carries names, count and what is needed to end it', () => {
  const config = configOf(makePod({ terminationGracePeriodSeconds: 7 }));
  assert.deepEqual(config.metadata, { name: 'app', attempt: 3 });
  assert.equal(config.logPath, 'app/3.log');
  assert.equal(config.labels['io.kubernetes.container.name'], 'app');
  assert.equal(config.annotations['io.kubernetes.container.restartCount'], '3');
  assert.equal(config.annotations['io.kubernetes.pod.terminationGracePeriod'], '7');
  assert.equal(config.annotations['io.kubernetes.container.terminationMessagePath'], '/dev/termination-log');
  assert.match(config.annotations['io.kubernetes.container.hash'] ?? '', /^[0-9a-f]{16}$/);
});

test('mounts: volumes, the hosts file unless one is mounted there, the message file', () => {
  const mounts = (
    volumeMounts: NonNullable<PodContainer['volumeMounts']>,
    subPaths = new Map<number, string>(),
  ) => configOf(makePod({ containers: [{ name: 'app', volumeMounts }] }), { subPaths }).mounts;
  const own = [
    { containerPath: '/etc/hosts', hostPath: '/pod/etc-hosts', readonly: false, propagation: 'private' },
    {
      containerPath: '/dev/termination-log',
      hostPath: '/pod/containers/app/3',
      readonly: false,
      propagation: 'private',
    },
  ];
  assert.deepEqual(
    mounts([
      { name: 'data', mountPath: '/data', readOnly: true, mountPropagation: 'HostToContainer' },
      { name: 'token', mountPath: 'rel' },
    ]),
    [
      { containerPath: '/data', hostPath: '/v/data', readonly: true, propagation: 'host-to-container' },
      { containerPath: '/rel', hostPath: '/v/token', readonly: true, propagation: 'private' },
      ...own,
    ],
  );
  assert.deepEqual(
    mounts([{ name: 'data', mountPath: '/etc/hosts', subPath: 'h' }], new Map([[0, '/pinned']])),
    [{ containerPath: '/etc/hosts', hostPath: '/pinned', readonly: false, propagation: 'private' }, own[1]],
  );
  assert.throws(
    () => mounts([{ name: 'none', mountPath: '/x' }]),
    /cannot find volume "none" to mount into container "app"/,
  );
});

test('subPath must stay in its volume', () => {
  const volumes = new Map([['data', { name: 'data', hostPath: '/v/data', readOnly: false }]]);
  const of = (mount: object) =>
    subPathMounts({ name: 'app', volumeMounts: [{ name: 'data', mountPath: '/x', ...mount }] }, volumes, [
      { key: 'A', value: 'b/c' },
    ]);
  assert.deepEqual(of({ subPathExpr: 'x/$(A)/$$(A)' }), [
    { index: 0, volume: 'data', volumePath: '/v/data', subPath: 'x/b/c/$(A)' },
  ]);
  for (const bad of [{ subPath: '/abs' }, { subPath: 'a/../..' }, { subPathExpr: '$(NONE)' }])
    assert.throws(
      () => of(bad),
      (error) => isError(error, 'CONTAINER_CONFIG_INVALID'),
    );
});

const node = {
  name: 'n1',
  labels: { zone: 'a', size: '5' },
  allocatable: { cpu: '2', memory: '1Gi', pods: '3' },
};
const selecting = (operator: string, key: string, values?: string[]) =>
  makePod({
    affinity: {
      nodeAffinity: {
        requiredDuringSchedulingIgnoredDuringExecution: {
          nodeSelectorTerms: [{ matchExpressions: [{ key, operator, values }] }],
        },
      },
    },
  });
const port = (hostPort: number, hostIP?: string) =>
  makePod({ containers: [{ name: 'a', ports: [{ containerPort: 80, hostPort, hostIP }] }] });
const refusals: [string, Pod, Pod[], string | undefined][] = [
  ['a plain pod', makePod(), [], undefined],
  ['one too many', makePod(), [makePod(), makePod(), makePod()], 'OutOfpods'],
  [
    'too much cpu',
    makePod({ containers: [needing({ cpu: '1500m' })] }),
    [makePod({ containers: [needing({ cpu: '1' })] })],
    'OutOfcpu',
  ],
  [
    'just enough cpu',
    makePod({ containers: [needing({ cpu: '1' })] }),
    [makePod({ containers: [needing({ cpu: '1' })] })],
    undefined,
  ],
  ['too much memory', makePod({ containers: [needing({ memory: '2Gi' })] }), [], 'OutOfmemory'],
  [
    'a resource that the node does not know is one of the cluster',
    makePod({ containers: [needing({ 'example.org/gpu': '1' })] }),
    [],
    undefined,
  ],
  [
    'huge pages that the node lacks',
    makePod({ containers: [needing({ 'hugepages-2Mi': '2Mi' })] }),
    [],
    'OutOfhugepages-2Mi',
  ],
  ['another zone', makePod({ nodeSelector: { zone: 'b' } }), [], 'NodeAffinity'],
  ['this zone', makePod({ nodeSelector: { zone: 'a' } }), [], undefined],
  ['affinity In', selecting('In', 'zone', ['a', 'b']), [], undefined],
  ['affinity NotIn', selecting('NotIn', 'zone', ['a']), [], 'NodeAffinity'],
  ['affinity Gt', selecting('Gt', 'size', ['4']), [], undefined],
  ['affinity Exists', selecting('Exists', 'none'), [], 'NodeAffinity'],
  ['a taken port', port(80), [port(80)], 'NodePorts'],
  ['a port on another address', port(80, '10.0.0.1'), [port(80, '10.0.0.2')], undefined],
  ['a port on all addresses', port(80), [port(80, '10.0.0.2')], 'NodePorts'],
  [
    'user namespaces, which its handler is asked about',
    makePod({ hostUsers: false } as object),
    [],
    undefined,
  ],
];
for (const [what, pod, others, reason] of refusals) {
  test(`admission: ${what}: ${reason ?? 'taken'}`, () =>
    assert.equal(refusalOf(pod, others, node)?.reason, reason));
}
