import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Pod, PodContainer } from '../../../agent/apiserver/types.ts';
import { decodeManifest } from '../../../agent/manifests/decode.ts';
import { defaultPod } from '../../../agent/manifests/defaults.ts';
import { apiReference, validatePod } from '../../../agent/manifests/validate.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { webManifest } from './pods.ts';

const origin = {
  file: '/etc/kubernetes/manifests/web.yaml',
  nodeName: 'Edge-1',
  seen: '2026-01-01T00:00:00.000000Z',
};
const container = (over: Partial<PodContainer> = {}): PodContainer => ({ name: 'c', image: 'i', ...over });
const pod = (spec: object = {}, metadata: object = {}): Pod => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name: 'p', ...metadata },
  spec: { containers: [container()], ...spec },
});

test('a manifest becomes a complete static pod', async () => {
  const found = await decodeManifest(webManifest, origin);
  const uid = found.metadata!.uid!;
  assert.match(uid, /^[0-9a-f]{32}$/);
  assert.deepEqual(found.metadata, {
    name: 'web-edge-1',
    namespace: 'default',
    uid,
    labels: { app: 'web' },
    annotations: {
      'kubernetes.io/config.source': 'file',
      'kubernetes.io/config.hash': uid,
      'kubernetes.io/config.seen': origin.seen,
    },
  });
  const spec = found.spec!;
  assert.equal(spec.nodeName, 'Edge-1');
  assert.deepEqual(spec.tolerations, [{ operator: 'Exists', effect: 'NoExecute' }]);
  assert.equal(found.status?.phase, 'Pending');
  const [main] = spec.containers;
  assert.deepEqual(main!.args, ['22:22', '2026-01-01'], 'times and dates are text');
  assert.deepEqual(main!.ports, [{ containerPort: 80, hostPort: 80, protocol: 'TCP' }]);
  assert.deepEqual(main!.resources, {
    limits: { cpu: '1', memory: '64Mi' },
    requests: { cpu: '1', memory: '64Mi' },
  });
  assert.equal(spec.volumes![0]!.emptyDir!.sizeLimit, '1048576');
  assert.equal(spec.volumes![1]!.downwardAPI!.defaultMode, 0o440);
});

test('the uid follows content, node and file, not the way of writing', async () => {
  const uid = async (text: string, over: Partial<typeof origin> = {}) =>
    (await decodeManifest(text, { ...origin, ...over })).metadata!.uid;
  const first = await uid(webManifest);
  const json = JSON.stringify({
    spec: { containers: [{ image: 'i', name: 'c' }] },
    metadata: { name: 'p' },
    kind: 'Pod',
    apiVersion: 'v1',
  });
  assert.equal(await uid(`# comment\n${webManifest}`, { seen: 'later' }), first);
  assert.notEqual(await uid(webManifest, { nodeName: 'other' }), first);
  assert.notEqual(await uid(webManifest, { file: '/other' }), first);
  assert.notEqual(await uid(webManifest.replace('web:1.0', 'web:1.1')), first);
  assert.equal(
    await uid(json),
    await uid(
      'apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}], volumes: }',
    ),
  );
  assert.equal(await uid(json.replace('"name":"p"', '"name":"p","uid":"own"')), 'own');
});

test('every default of the apiserver', () => {
  const found = defaultPod(
    pod({
      containers: [
        container({
          ports: [{ containerPort: 1 }],
          env: [{ name: 'A', valueFrom: { fieldRef: { fieldPath: 'metadata.name' } } }],
          readinessProbe: { grpc: { port: 1 } },
          startupProbe: { tcpSocket: { port: 1 }, periodSeconds: 3 },
          lifecycle: { preStop: { httpGet: { port: 1 } }, postStart: { exec: { command: ['a'] } } },
          resources: { requests: { cpu: '1' }, limits: { cpu: '2', memory: '1Gi' } },
        }),
      ],
      volumes: [
        { name: 'none' },
        { name: 's', secret: { secretName: 'x' } },
        { name: 'm', configMap: { name: 'x', defaultMode: 0o400 } },
        { name: 'h', hostPath: { path: '/x' } },
        { name: 'p', projected: { sources: [{ serviceAccountToken: { path: 't' } }] } },
      ],
    }),
  );
  const spec = found.spec!;
  assert.deepEqual(
    [spec.restartPolicy, spec.dnsPolicy, spec.terminationGracePeriodSeconds, spec.enableServiceLinks],
    ['Always', 'ClusterFirst', 30, true],
  );
  assert.deepEqual([spec.schedulerName, spec.securityContext], ['default-scheduler', {}]);
  const main = spec.containers[0]!;
  assert.deepEqual(main, {
    name: 'c',
    image: 'i',
    imagePullPolicy: 'Always',
    terminationMessagePath: '/dev/termination-log',
    terminationMessagePolicy: 'File',
    ports: [{ containerPort: 1, protocol: 'TCP' }],
    env: [{ name: 'A', valueFrom: { fieldRef: { apiVersion: 'v1', fieldPath: 'metadata.name' } } }],
    readinessProbe: {
      grpc: { port: 1, service: '' },
      timeoutSeconds: 1,
      periodSeconds: 10,
      successThreshold: 1,
      failureThreshold: 3,
    },
    startupProbe: {
      tcpSocket: { port: 1 },
      timeoutSeconds: 1,
      periodSeconds: 3,
      successThreshold: 1,
      failureThreshold: 3,
    },
    lifecycle: {
      preStop: { httpGet: { port: 1, path: '/', scheme: 'HTTP' } },
      postStart: { exec: { command: ['a'] } },
    },
    resources: { requests: { cpu: '1', memory: '1Gi' }, limits: { cpu: '2', memory: '1Gi' } },
  });
  assert.deepEqual(spec.volumes, [
    { name: 'none', emptyDir: {} },
    { name: 's', secret: { secretName: 'x', defaultMode: 0o644 } },
    { name: 'm', configMap: { name: 'x', defaultMode: 0o400 } },
    { name: 'h', hostPath: { path: '/x', type: '' } },
    {
      name: 'p',
      projected: {
        defaultMode: 0o644,
        sources: [{ serviceAccountToken: { path: 't', expirationSeconds: 3600 } }],
      },
    },
  ]);
  assert.deepEqual(defaultPod(found), found, 'defaulting is idempotent');
});

test('the pull policy follows the tag', () => {
  const cases: readonly [string, string][] = [
    ['web', 'Always'],
    ['web:latest', 'Always'],
    ['reg:5000/web', 'Always'],
    ['reg:5000/web:latest', 'Always'],
    ['web:1', 'IfNotPresent'],
    ['reg:5000/web:1', 'IfNotPresent'],
    ['web@sha256:abc', 'IfNotPresent'],
    ['web:1@sha256:abc', 'IfNotPresent'],
  ];
  for (const [image, expected] of cases) {
    const found = defaultPod(pod({ containers: [container({ image })] }));
    assert.equal(found.spec!.containers[0]!.imagePullPolicy, expected, image);
  }
});

test('what is wrong in a pod is told with its field', () => {
  const of = (over: Partial<PodContainer>) => pod({ containers: [container(over)] });
  const volume = (over: object) => pod({ volumes: [{ name: 'v', ...over }] });
  const cases: readonly [Pod, string][] = [
    [pod({}, { name: 'UPPER' }), 'metadata.name'],
    [pod({}, { name: undefined }), 'metadata.name'],
    [pod({}, { name: 'a'.repeat(254) }), 'metadata.name'],
    [pod({}, { namespace: 'a.b' }), 'metadata.namespace'],
    [pod({}, { uid: '../x' }), 'metadata.uid'],
    [{ metadata: { name: 'p' } }, 'spec'],
    [pod({ containers: [] }), 'spec.containers'],
    [pod({ restartPolicy: 'Sometimes' }), 'spec.restartPolicy'],
    [pod({ dnsPolicy: 'None' }), 'spec.dnsConfig.nameservers'],
    [pod({ terminationGracePeriodSeconds: -1 }), 'spec.terminationGracePeriodSeconds'],
    [pod({ hostname: 'a_b' }), 'spec.hostname'],
    [pod({ containers: [container(), container()] }), 'spec.containers[1].name'],
    [pod({ initContainers: [container()] }), 'spec.containers[0].name'],
    [of({ name: 'Bad' }), 'spec.containers[0].name'],
    [of({ image: '' }), 'spec.containers[0].image'],
    [of({ image: ' i' }), 'spec.containers[0].image'],
    [of({ imagePullPolicy: 'Often' }), 'spec.containers[0].imagePullPolicy'],
    [of({ ports: [{ containerPort: 0 }] }), 'spec.containers[0].ports[0].containerPort'],
    [of({ ports: [{ containerPort: 70000 }] }), 'spec.containers[0].ports[0].containerPort'],
    [of({ ports: [{ containerPort: 1, protocol: 'tcp' }] }), 'spec.containers[0].ports[0].protocol'],
    [of({ ports: [{ containerPort: 1, hostIP: 'x' }] }), 'spec.containers[0].ports[0].hostIP'],
    [of({ ports: [{ containerPort: 1, name: 'not_a_name' }] }), 'spec.containers[0].ports[0].name'],
    [
      of({
        ports: [
          { containerPort: 1, hostPort: 5 },
          { containerPort: 2, hostPort: 5 },
        ],
      }),
      'spec.containers[0].ports[1].hostPort',
    ],
    [of({ env: [{ name: 'A=B' }] }), 'spec.containers[0].env[0].name'],
    [of({ env: [{ name: '' }] }), 'spec.containers[0].env[0].name'],
    [
      of({ env: [{ name: 'A', value: '1', valueFrom: { fieldRef: { fieldPath: 'x' } } }] }),
      'spec.containers[0].env[0]',
    ],
    [of({ volumeMounts: [{ name: 'x', mountPath: '/x' }] }), 'spec.containers[0].volumeMounts[0].name'],
    [of({ resources: { limits: { cpu: 'much' } } }), 'spec.containers[0].resources.limits.cpu'],
    [of({ livenessProbe: {} }), 'spec.containers[0].livenessProbe'],
    [
      of({ livenessProbe: { exec: { command: ['a'] }, tcpSocket: { port: 1 } } }),
      'spec.containers[0].livenessProbe',
    ],
    [volume({ emptyDir: {}, hostPath: { path: '/x' } }), 'spec.volumes[0]'],
    [volume({ hostPath: { path: 'x' } }), 'spec.volumes[0].hostPath.path'],
    [volume({ emptyDir: { sizeLimit: 'big' } }), 'spec.volumes[0].emptyDir.sizeLimit'],
    [pod({ volumes: [{ name: 'v' }, { name: 'v' }] }), 'spec.volumes[1].name'],
    [
      pod({
        volumes: [{ name: 'v' }],
        containers: [container({ volumeMounts: [{ name: 'v', mountPath: '/a', subPath: 'x/../../y' }] })],
      }),
      'spec.containers[0].volumeMounts[0].subPath',
    ],
    [pod({ containers: 'web' }), 'spec.containers'],
    [pod({ containers: [null] }), 'spec.containers[0]'],
    [pod({ hostNetwork: 'yes' }), 'spec.hostNetwork'],
    [of({ args: [1] as unknown as string[] }), 'spec.containers[0].args[0]'],
    [of({ env: [{ name: 'A', value: 1 as unknown as string }] }), 'spec.containers[0].env[0].value'],
  ];
  for (const [broken, field] of cases) {
    const error = validatePod(broken);
    assert.equal(error?.code, 'POD_INVALID', field);
    assert.ok((error.details['fields'] as string[]).includes(field), `${field}: ${error.message}`);
    assert.ok(error.message.includes(field));
  }
  assert.equal(validatePod(pod()), undefined);
  assert.equal(validatePod(defaultPod(pod())), undefined);
});

test('a static pod may not refer to objects of the API', async () => {
  const cases: readonly [object, string][] = [
    [{ serviceAccountName: 'x' }, 'serviceaccounts'],
    [{ imagePullSecrets: [{ name: 'x' }] }, 'secrets'],
    [{ volumes: [{ name: 'v', secret: { secretName: 'x' } }] }, 'secrets'],
    [{ volumes: [{ name: 'v', configMap: { name: 'x' } }] }, 'configmaps'],
    [{ volumes: [{ name: 'v', projected: { sources: [{ secret: { name: 'x' } }] } }] }, 'secrets'],
    [{ volumes: [{ name: 'v', persistentVolumeClaim: { claimName: 'x' } }] }, 'persistentvolumeclaims'],
    [{ containers: [container({ envFrom: [{ configMapRef: { name: 'x' } }] })] }, 'configmaps'],
    [
      {
        containers: [
          container({ env: [{ name: 'A', valueFrom: { secretKeyRef: { name: 'x', key: 'k' } } }] }),
        ],
      },
      'secrets',
    ],
  ];
  for (const [spec, kind] of cases) {
    assert.equal(apiReference(pod(spec)), kind);
    await assert.rejects(
      decodeManifest(JSON.stringify(pod(spec)), origin),
      (error) => isError(error, 'POD_INVALID') && error.message.includes(`may not reference ${kind}`),
    );
  }
  assert.equal(apiReference(pod()), undefined);
});

test('mutated manifests give a valid pod or POD_INVALID, nothing else', async () => {
  let seed = 7;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed % below;
  };
  const pieces = [
    '\0',
    '\t',
    '\n',
    ' ',
    '- ',
    ':',
    '[',
    ']',
    '{}',
    '{',
    '&a ',
    '*a',
    '!!',
    '|',
    '0',
    '-1',
    '"',
    "'",
    '~',
    'null',
    '<<: ',
    '#',
    '\ud800',
  ];
  let accepted = 0;
  for (let round = 0; round < 400; round++) {
    const text = [...webManifest];
    for (let change = 0; change <= random(3); change++) {
      text.splice(random(text.length), random(5), pieces[random(pieces.length)]!);
    }
    try {
      const found = await decodeManifest(text.join(''), origin);
      assert.equal(validatePod(found), undefined);
      accepted++;
    } catch (error) {
      assert.ok(isError(error, 'POD_INVALID'), `round ${round}: ${(error as Error).stack}\n${text.join('')}`);
    }
  }
  assert.ok(accepted > 20, `only ${accepted} accepted: the mutations are too coarse to test anything`);
});

// With every key compared to all others this takes minutes, in which the process does nothing else.
test('a large map does not hold up the process', { timeout: 60_000 }, async () => {
  const keys = Array.from({ length: 60_000 }, (_, index) => `    k${index}: v\n`).join('');
  const text = `apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n${keys}`;
  await assert.rejects(decodeManifest(text, origin), /spec: is required/);
  await assert.rejects(decodeManifest(`${text}    k5: w\n`, origin), /keys must be unique at line 60006/);
});
