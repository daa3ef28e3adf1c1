import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ConfigMap, Pod, PodContainer, Secret, Service } from '../../../agent/apiserver/types.ts';
import {
  type EnvOptions,
  expand,
  expandCommand,
  makeEnv,
  referencesOf,
  valueKey,
} from '../../../agent/pods/env.ts';
import { isError } from '../../../runtime/host/errors.ts';

const base64 = (text: string | Buffer) => Buffer.from(text).toString('base64');
const settings: ConfigMap = { metadata: { name: 'settings' }, data: { a: '1', b: 'two' } };
const keys: Secret = { metadata: { name: 'keys' }, data: { user: base64('me'), nul: base64('a\0b') } };

function options(container: Partial<PodContainer>, over: Partial<EnvOptions> = {}): EnvOptions {
  const full: PodContainer = { name: 'main', ...container };
  const pod: Pod = {
    metadata: {
      name: 'web',
      namespace: 'ns',
      uid: 'u-1',
      labels: { app: 'web', 'x.io/tier': 'front' },
      annotations: { note: 'a "b"\n\u0001é' },
    },
    spec: {
      nodeName: 'node-1',
      serviceAccountName: 'sa',
      containers: [full, { name: 'other', resources: { limits: { memory: '64Mi' } } }],
      initContainers: [{ name: 'init', resources: { requests: { cpu: '1500m' } } }],
    },
  };
  return {
    pod,
    container: full,
    values: new Map<string, ConfigMap | Secret>([
      [valueKey('configmaps', 'settings'), settings],
      [valueKey('secrets', 'keys'), keys],
    ]),
    services: [],
    podIPs: ['10.1.0.5', 'fd00::5'],
    hostIPs: ['192.168.0.1', 'fd01::1'],
    nodeName: 'node-1',
    allocatable: { cpu: '3500m', memory: '1000Ki', 'ephemeral-storage': '10Gi' },
    ...over,
  };
}
function env(container: Partial<PodContainer>, over: Partial<EnvOptions> = {}): Record<string, string> {
  const list = makeEnv(options(container, over));
  assert.equal(new Set(list.map(({ key }) => key)).size, list.length, 'a name twice');
  return Object.fromEntries(list.map(({ key, value }) => [key, value]));
}
function refused(container: Partial<PodContainer>, message: RegExp, over: Partial<EnvOptions> = {}) {
  assert.throws(
    () => makeEnv(options(container, over)),
    (error) => isError(error, 'CONTAINER_CONFIG_INVALID') && message.test(error.message),
  );
}
const field = (fieldPath: string) => ({ env: [{ name: 'V', valueFrom: { fieldRef: { fieldPath } } }] });

test('plain values keep their order', () => {
  const list = makeEnv(
    options({ env: [{ name: 'B', value: '2' }, { name: 'A', value: '1' }, { name: 'C' }] }),
  );
  assert.deepEqual(list, [
    { key: 'B', value: '2' },
    { key: 'A', value: '1' },
    { key: 'C', value: '' },
  ]);
});

test('$(VAR) sees what is defined before it, then services', () => {
  const services: Service[] = [
    {
      metadata: { name: 'db', namespace: 'ns' },
      spec: { clusterIP: '10.0.0.9', ports: [{ port: 5432 }] },
    },
  ];
  const found = env(
    {
      envFrom: [{ configMapRef: { name: 'settings' } }],
      env: [
        { name: 'EARLY', value: '$(LATE)' },
        { name: 'LATE', value: 'late' },
        { name: 'AFTER', value: '$(LATE)-$(a)-$(DB_SERVICE_HOST)-$(NONE)-$$(LATE)' },
        { name: 'a', value: 'again $(a)' },
        { name: 'DB_SERVICE_PORT', value: 'own' },
        { name: 'SHADOW', value: '$(DB_SERVICE_PORT)' },
      ],
    },
    { services },
  );
  assert.equal(found['EARLY'], '$(LATE)');
  assert.equal(found['AFTER'], 'late-1-10.0.0.9-$(NONE)-$(LATE)');
  assert.equal(found['a'], 'again 1');
  assert.equal(found['DB_SERVICE_PORT'], 'own');
  assert.equal(found['SHADOW'], 'own');
  assert.equal(found['DB_SERVICE_HOST'], '10.0.0.9');
});

test('a name that is set twice has its last value; earlier references saw the first', () => {
  const found = env({
    env: [
      { name: 'A', value: '1' },
      { name: 'B', value: '$(A)' },
      { name: 'A', value: '2' },
    ],
  });
  assert.deepEqual(found, { A: '2', B: '1' });
});

test('a value that comes from elsewhere is not expanded', () => {
  const values = new Map([[valueKey('configmaps', 'c'), { data: { k: '$(A)' } }]]);
  const found = env(
    {
      env: [
        { name: 'A', value: '1' },
        { name: 'B', valueFrom: { configMapKeyRef: { name: 'c', key: 'k' } } },
      ],
    },
    { values },
  );
  assert.equal(found['B'], '$(A)');
});

test('envFrom: prefix, later ones win, env wins over all', () => {
  const found = env(
    {
      envFrom: [
        { prefix: 'P_', configMapRef: { name: 'settings' } },
        { configMapRef: { name: 'settings' } },
        { prefix: 'S_', secretRef: { name: 'keys2' } },
        { configMapRef: { name: 'none', optional: true } },
        { secretRef: { name: 'none', optional: true } },
      ],
      env: [{ name: 'a', value: 'own' }],
    },
    {
      values: new Map<string, ConfigMap | Secret>([
        [valueKey('configmaps', 'settings'), settings],
        [valueKey('secrets', 'keys2'), { data: { user: base64('me') } }],
      ]),
    },
  );
  assert.deepEqual(found, { P_a: '1', P_b: 'two', a: 'own', b: 'two', S_user: 'me' });
});

test('what is missing is an error with the words of kubelet, unless it is optional', () => {
  const from = (valueFrom: NonNullable<PodContainer['env']>[number]['valueFrom']) => ({
    env: [{ name: 'V', valueFrom }],
  });
  refused({ envFrom: [{ configMapRef: { name: 'none' } }] }, /^configmap "none" not found$/);
  refused({ envFrom: [{ secretRef: { name: 'none' } }] }, /^secret "none" not found$/);
  refused(from({ configMapKeyRef: { name: 'none', key: 'a' } }), /^configmap "none" not found$/);
  refused(from({ secretKeyRef: { name: 'none', key: 'a' } }), /^secret "none" not found$/);
  refused(
    from({ configMapKeyRef: { name: 'settings', key: 'z' } }),
    /^couldn't find key z in ConfigMap ns\/settings$/,
  );
  refused(from({ secretKeyRef: { name: 'keys', key: 'z' } }), /^couldn't find key z in Secret ns\/keys$/);
  for (const optional of [
    from({ configMapKeyRef: { name: 'none', key: 'a', optional: true } }),
    from({ secretKeyRef: { name: 'none', key: 'a', optional: true } }),
    from({ configMapKeyRef: { name: 'settings', key: 'z', optional: true } }),
    from({ secretKeyRef: { name: 'keys', key: 'z', optional: true } }),
  ]) {
    assert.deepEqual(env(optional), {});
  }
  refused(from({ configMapKeyRef: { name: 'settings', key: 'constructor' } }), /couldn't find key/);
});

test('an optional key that is not there leaves what envFrom set', () => {
  const found = env({
    envFrom: [{ configMapRef: { name: 'settings' } }],
    env: [
      { name: 'a', valueFrom: { configMapKeyRef: { name: 'settings', key: 'z', optional: true } } },
      { name: 'b', valueFrom: { secretKeyRef: { name: 'keys', key: 'user' } } },
    ],
  });
  assert.deepEqual(found, { a: '1', b: 'me' });
});

test('a NUL byte cannot be in an environment', () => {
  refused(
    { envFrom: [{ secretRef: { name: 'keys' } }] },
    /variable nul of container main contains a NUL byte/,
  );
});

test('an unsupported source is refused by name', () => {
  refused({ env: [{ name: 'V', valueFrom: { otherRef: {} } as object }] }, /from otherRef, which is not/);
  refused({ env: [{ name: 'V', valueFrom: {} }] }, /from nowhere/);
});

test('fields of the pod', () => {
  const cases: readonly [string, string][] = [
    ['metadata.name', 'web'],
    ['metadata.namespace', 'ns'],
    ['metadata.uid', 'u-1'],
    ["metadata.labels['app']", 'web'],
    ["metadata.labels['x.io/tier']", 'front'],
    ["metadata.labels['none']", ''],
    ["metadata.labels['constructor']", ''],
    ["metadata.annotations['note']", 'a "b"\n\u0001é'],
    ['metadata.labels', 'app="web"\nx.io/tier="front"'],
    ['metadata.annotations', 'note="a \\"b\\"\\n\\x01é"'],
    ['spec.nodeName', 'node-1'],
    ['spec.serviceAccountName', 'sa'],
    ['status.podIP', '10.1.0.5'],
    ['status.podIPs', '10.1.0.5,fd00::5'],
    ['status.hostIP', '192.168.0.1'],
    ['status.hostIPs', '192.168.0.1,fd01::1'],
  ];
  for (const [path, expected] of cases) assert.deepEqual(env(field(path)), { V: expected }, path);
  refused(field('spec.containers'), /unsupported fieldPath: spec\.containers/);
  refused(field("metadata.name['x']"), /does not support subscript/);
  refused(field("metadata.labels['-bad-']"), /invalid key subscript in metadata\.labels\['-bad-'\]/);
  refused(field("metadata.labels['a/b/c']"), /invalid key subscript/);
});

test('a pod on the host network has the addresses of the host', () => {
  const base = options(field('status.podIPs'), { podIPs: [] });
  const pod = { ...base.pod, spec: { ...base.pod.spec!, hostNetwork: true } };
  assert.deepEqual(makeEnv({ ...base, pod }), [{ key: 'V', value: '192.168.0.1,fd01::1' }]);
  assert.deepEqual(makeEnv(base), [{ key: 'V', value: '' }]);
});

test('resources are divided by the divisor and rounded up; limits default to allocatable', () => {
  const resources = {
    requests: { cpu: '250m', memory: '100Mi', 'hugepages-2Mi': '4Mi' },
    limits: { cpu: '1100m', memory: '0' },
  };
  const cases: readonly [string, string | undefined, string | undefined, string][] = [
    ['requests.cpu', undefined, undefined, '1'],
    ['requests.cpu', '1m', undefined, '250'],
    ['limits.cpu', undefined, undefined, '2'],
    ['limits.cpu', '1m', undefined, '1100'],
    ['limits.cpu', '0', undefined, '2'],
    ['requests.memory', undefined, undefined, '104857600'],
    ['requests.memory', '1Mi', undefined, '100'],
    ['requests.memory', '1Gi', undefined, '1'],
    ['limits.memory', '1', undefined, '1024000'],
    ['limits.memory', '1Mi', undefined, '1'],
    ['limits.ephemeral-storage', '1Gi', undefined, '10'],
    ['requests.ephemeral-storage', undefined, undefined, '0'],
    ['requests.hugepages-2Mi', '1Mi', undefined, '4'],
    ['limits.hugepages-2Mi', '1Mi', undefined, '0'],
    ['limits.memory', '1Mi', 'other', '64'],
    ['limits.cpu', '1m', 'other', '3500'],
    ['requests.cpu', '1m', 'init', '1500'],
  ];
  for (const [resource, divisor, containerName, expected] of cases) {
    const found = env({
      resources,
      env: [{ name: 'V', valueFrom: { resourceFieldRef: { resource, divisor, containerName } } }],
    });
    assert.equal(found['V'], expected, `${resource} / ${divisor} of ${containerName}`);
  }
  const of = (resource: string, containerName?: string) => ({
    env: [{ name: 'V', valueFrom: { resourceFieldRef: { resource, containerName } } }],
  });
  refused(of('limits.gpu'), /unsupported container resource : limits\.gpu/);
  refused(of('cpu'), /unsupported container resource/);
  refused(of('limits.cpu', 'nobody'), /container nobody not found/);
});

test('limits that are not set are those of the pod where it has some (KEP-2837)', () => {
  const base = options({});
  const limits = { cpu: '1250m', memory: '64Mi', 'hugepages-2Mi': '4Mi' };
  const cases: readonly [string, string, object, string][] = [
    ['limits.cpu', '1m', { limits }, '1250'],
    ['limits.memory', '1Mi', { limits }, '64'],
    ['limits.hugepages-2Mi', '1Mi', { limits }, '0'],
    ['limits.ephemeral-storage', '1Gi', { limits: { 'ephemeral-storage': '1Gi' } }, '10'],
    ['limits.memory', '1Ki', { limits: { memory: '0' } }, '1000'],
    ['limits.memory', '1Ki', { requests: { memory: '64Mi' } }, '1000'],
  ];
  for (const [resource, divisor, resources, expected] of cases) {
    const pod = { ...base.pod, spec: { ...base.pod.spec!, resources } as Pod['spec'] };
    const container = {
      ...base.container,
      env: [{ name: 'V', valueFrom: { resourceFieldRef: { resource, divisor } } }],
    };
    assert.deepEqual(makeEnv({ ...base, pod, container }), [{ key: 'V', value: expected }], resource);
  }
});

const kubernetes: Service = {
  metadata: { name: 'kubernetes', namespace: 'default' },
  spec: { clusterIP: '10.96.0.1', ports: [{ name: 'https', port: 443, protocol: 'TCP' }] },
};

test('the variables of a service, docker-link ones too', () => {
  assert.deepEqual(env({}, { services: [kubernetes] }), {
    KUBERNETES_SERVICE_HOST: '10.96.0.1',
    KUBERNETES_SERVICE_PORT: '443',
    KUBERNETES_SERVICE_PORT_HTTPS: '443',
    KUBERNETES_PORT: 'tcp://10.96.0.1:443',
    KUBERNETES_PORT_443_TCP: 'tcp://10.96.0.1:443',
    KUBERNETES_PORT_443_TCP_PROTO: 'tcp',
    KUBERNETES_PORT_443_TCP_PORT: '443',
    KUBERNETES_PORT_443_TCP_ADDR: '10.96.0.1',
  });
  const dns: Service = {
    metadata: { name: 'my-dns', namespace: 'ns' },
    spec: {
      clusterIP: 'fd00::10',
      ports: [
        { name: 'dns-udp', port: 53, protocol: 'UDP' },
        { name: 'm', port: 9153 },
      ],
    },
  };
  const found = env({}, { services: [dns] });
  assert.equal(found['MY_DNS_PORT'], 'udp://[fd00::10]:53');
  assert.equal(found['MY_DNS_SERVICE_PORT_DNS_UDP'], '53');
  assert.equal(found['MY_DNS_PORT_9153_TCP'], 'tcp://[fd00::10]:9153');
  assert.equal(found['MY_DNS_PORT_53_UDP_ADDR'], 'fd00::10');
});

test('which services a pod sees', () => {
  const service = (name: string, namespace: string, clusterIP?: string): Service => ({
    metadata: { name, namespace },
    spec: { clusterIP, ports: [{ port: 1 }] },
  });
  const services = [
    kubernetes,
    service('own', 'ns', '10.0.0.1'),
    service('headless', 'ns', 'None'),
    service('external', 'ns'),
    service('foreign', 'other', '10.0.0.2'),
    service('neighbour', 'default', '10.0.0.3'),
  ];
  const hosts = (base: EnvOptions, enableServiceLinks?: boolean) =>
    makeEnv({ ...base, services, pod: { ...base.pod, spec: { ...base.pod.spec!, enableServiceLinks } } })
      .map(({ key }) => key)
      .filter((key) => key.endsWith('_SERVICE_HOST'));
  assert.deepEqual(hosts(options({})), ['KUBERNETES_SERVICE_HOST', 'OWN_SERVICE_HOST']);
  assert.deepEqual(hosts(options({}), true), ['KUBERNETES_SERVICE_HOST', 'OWN_SERVICE_HOST']);
  assert.deepEqual(hosts(options({}), false), ['KUBERNETES_SERVICE_HOST']);
  const shadow = service('kubernetes', 'ns', '10.0.0.7');
  for (const order of [
    [kubernetes, shadow],
    [shadow, kubernetes],
  ]) {
    assert.equal(env({}, { services: order })['KUBERNETES_SERVICE_HOST'], '10.0.0.7');
  }
});

test('expansion, case by case', () => {
  const values: Record<string, string> = { A: 'a', B: '$(A)', E: '', 'x y': 'space' };
  const cases: readonly [string, string][] = [
    ['$(A)', 'a'],
    ['$(A)$(A)', 'aa'],
    ['$(B)', '$(A)'],
    ['$(E)', ''],
    ['$$(A)', '$(A)'],
    ['$$$(A)', '$a'],
    ['$$$$(A)', '$$(A)'],
    ['$(NOPE)', '$(NOPE)'],
    ['$()', '$()'],
    ['$', '$'],
    ['$$', '$'],
    ['a$', 'a$'],
    ['$(A', '$(A'],
    ['$(A$(A)', '$(A$(A)'],
    ['$($$', '$($'],
    ['$A $(A)', '$A a'],
    ['$é$(A)', '$éa'],
    ['$(x y)', 'space'],
    ['$(A))', 'a)'],
    ['$[A]', '$[A]'],
    ['', ''],
  ];
  for (const [text, expected] of cases)
    assert.equal(
      expand(text, (name) => values[name]),
      expected,
      text,
    );
});

test('command and args are expanded with the final environment', () => {
  const found = expandCommand({ command: ['sh', '$(A)'], args: ['$$(A)', '$(B)'] }, [
    { key: 'A', value: '1' },
  ]);
  assert.deepEqual(found, { command: ['sh', '1'], args: ['$(A)', '$(B)'] });
  assert.deepEqual(expandCommand({}, []), { command: [], args: [] });
});

test('what the environments refer to, each once, optional only where all are', () => {
  const pod: Pod = {
    spec: {
      initContainers: [{ name: 'i', envFrom: [{ secretRef: { name: 's', optional: true } }] }],
      containers: [
        {
          name: 'c',
          envFrom: [{ configMapRef: { name: 'm', optional: true } }],
          env: [
            { name: 'A', valueFrom: { configMapKeyRef: { name: 'm', key: 'k' } } },
            { name: 'B', valueFrom: { secretKeyRef: { name: 's', key: 'k', optional: true } } },
            { name: 'C', value: 'set', valueFrom: { secretKeyRef: { name: 'unused', key: 'k' } } },
          ],
        },
      ],
    },
  };
  assert.deepEqual(referencesOf(pod), [
    { kind: 'secrets', name: 's', optional: true },
    { kind: 'configmaps', name: 'm', optional: false },
  ]);
  assert.deepEqual(referencesOf(pod, pod.spec!.initContainers![0]), [
    { kind: 'secrets', name: 's', optional: true },
  ]);
});
