/**
 * What keelson expects of an apiserver, as checks that run against the development apiserver (test/peers) and against
 * kube-apiserver (test/cluster): where the two differ, the development apiserver is wrong.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import type { Lease } from 'kubernetes-types/coordination/v1.js';
import type { ConfigMap, Node, Pod, Service } from 'kubernetes-types/core/v1.js';
import { makeHttpClient, type TlsOptions } from '../../runtime/host/http.ts';
import { waitFor } from './process.ts';

export interface Answered<T> {
  readonly status: number;
  readonly body: T;
}

/** A metav1.Status as far as it is checked. */
interface Failed {
  readonly kind: string;
  readonly reason: string;
  readonly message: string;
  readonly code: number;
  readonly details?: { readonly causes?: readonly { readonly field: string; readonly reason: string }[] };
}

interface Event {
  readonly type: string;
  readonly object: Pod & Failed;
}

/** An apiserver to be checked, and a namespace of its own for each check. */
export interface CheckedApiserver {
  call<T = Failed>(method: string, path: string, body?: unknown, contentType?: string): Promise<Answered<T>>;
  /** Opens a watch; `next` gives the next event that is not a bookmark, or any with `bookmarks`. */
  watch(path: string): Promise<{ next(bookmarks?: boolean): Promise<Event>; close(): void }>;
  /** `/api/v1/namespaces/<its own>`. */
  readonly space: string;
  readonly namespace: string;
}

/** Makes the client and the namespace, with its default service account and kube-root-ca.crt, runs, and tidies up. */
export async function withApiserver(
  url: string,
  tls: TlsOptions | undefined,
  run: (api: CheckedApiserver) => Promise<void>,
): Promise<void> {
  const http = makeHttpClient({ tls });
  const namespace = `check-${randomBytes(4).toString('hex')}`;
  const call: CheckedApiserver['call'] = async (method, path, body, contentType = 'application/json') => {
    const response = await http.request({
      method,
      url: new URL(path, url),
      headers: { 'content-type': contentType, accept: 'application/json' },
      body: body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body),
    });
    return { status: response.statusCode, body: (await response.body.json()) as never };
  };
  const space = `/api/v1/namespaces/${namespace}`;
  const watch: CheckedApiserver['watch'] = async (path) => {
    const abort = new AbortController();
    const response = await http.request({ method: 'GET', url: new URL(path, url), signal: abort.signal });
    const lines = linesOf(response.body);
    return {
      async next(bookmarks = false) {
        for (;;) {
          const { value, done } = await lines.next();
          assert.equal(done, false, 'the watch ended');
          const event = JSON.parse(value!) as Event;
          if (bookmarks || event.type !== 'BOOKMARK') return event;
        }
      },
      close: () => abort.abort(),
    };
  };
  try {
    const made = await call('POST', '/api/v1/namespaces', { metadata: { name: namespace } });
    assert.equal(made.status, 201, JSON.stringify(made.body));
    for (const path of ['serviceaccounts/default', 'configmaps/kube-root-ca.crt']) {
      const there = async () => ((await call('GET', `${space}/${path}`)).status === 200 ? true : undefined);
      await waitFor(`${path} in ${namespace}`, there, { deadlineMs: 30_000 });
    }
    await run({ call, watch, space, namespace });
  } finally {
    await call('DELETE', space).catch(() => {});
    await http.destroy();
  }
}

async function* linesOf(body: AsyncIterable<Buffer>): AsyncGenerator<string> {
  let rest = '';
  for await (const chunk of body) {
    const lines = (rest + chunk.toString('utf8')).split('\n');
    rest = lines.pop()!;
    yield* lines;
  }
}

const pod = (name: string, spec: object = {}, metadata: object = {}) => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name, ...metadata },
  spec: { containers: [{ name: 'main', image: 'example/app:1' }], ...spec },
});

/** A pod that is bound; no node of the name exists, so that nobody touches it. */
const boundPod = (name: string, spec: object = {}, metadata: object = {}) =>
  pod(name, { nodeName: 'no-such-node', ...spec }, metadata);

const strategic = 'application/strategic-merge-patch+json';

function failed(answer: Answered<Failed>, status: number, reason: string, message?: string): void {
  assert.deepEqual([answer.status, answer.body.reason], [status, reason], JSON.stringify(answer.body));
  assert.equal(answer.body.kind, 'Status');
  assert.equal(answer.body.code, status);
  if (message !== undefined) assert.equal(answer.body.message, message);
}

/** The answer's body, which must be a success. */
async function ok<T>(answer: Promise<Answered<T>>): Promise<T> {
  const { status, body } = await answer;
  assert.ok(status >= 200 && status < 300, `${status} ${JSON.stringify(body)}`);
  return body;
}

export const checks: Readonly<Record<string, (api: CheckedApiserver) => Promise<void>>> = {
  async 'a pod gets its defaults, its service account and its QoS class'({ call, space, namespace }) {
    const container = {
      name: 'main',
      image: 'example/app',
      ports: [{ containerPort: 80 }],
      env: [{ name: 'IP', valueFrom: { fieldRef: { fieldPath: 'status.podIP' } } }],
      readinessProbe: { httpGet: { port: 80 } },
      resources: { limits: { cpu: '100m' } },
    };
    const volumes = [{ name: 'scratch' }, { name: 'config', configMap: { name: 'c' } }];
    const made = await ok(
      call<Pod>('POST', `${space}/pods`, boundPod('a', { containers: [container], volumes })),
    );
    const access = made.spec!.volumes!.find(({ projected }) => projected !== undefined)!;
    assert.match(access.name, /^kube-api-access-[a-z0-9]{5}$/);
    // An admission plugin that keelson has no use for.
    delete (made.spec as { tolerations?: unknown }).tolerations;
    assert.deepEqual(made.spec, {
      nodeName: 'no-such-node',
      restartPolicy: 'Always',
      dnsPolicy: 'ClusterFirst',
      terminationGracePeriodSeconds: 30,
      schedulerName: 'default-scheduler',
      securityContext: {},
      enableServiceLinks: true,
      priority: 0,
      preemptionPolicy: 'PreemptLowerPriority',
      serviceAccount: 'default',
      serviceAccountName: 'default',
      volumes: [
        { name: 'scratch', emptyDir: {} },
        { name: 'config', configMap: { name: 'c', defaultMode: 420 } },
        {
          name: access.name,
          projected: {
            defaultMode: 420,
            sources: [
              { serviceAccountToken: { expirationSeconds: 3607, path: 'token' } },
              { configMap: { name: 'kube-root-ca.crt', items: [{ key: 'ca.crt', path: 'ca.crt' }] } },
              {
                downwardAPI: {
                  items: [
                    { path: 'namespace', fieldRef: { apiVersion: 'v1', fieldPath: 'metadata.namespace' } },
                  ],
                },
              },
            ],
          },
        },
      ],
      containers: [
        {
          name: 'main',
          image: 'example/app',
          imagePullPolicy: 'Always',
          ports: [{ containerPort: 80, protocol: 'TCP' }],
          env: [{ name: 'IP', valueFrom: { fieldRef: { apiVersion: 'v1', fieldPath: 'status.podIP' } } }],
          readinessProbe: {
            httpGet: { port: 80, path: '/', scheme: 'HTTP' },
            timeoutSeconds: 1,
            periodSeconds: 10,
            successThreshold: 1,
            failureThreshold: 3,
          },
          resources: { limits: { cpu: '100m' }, requests: { cpu: '100m' } },
          terminationMessagePath: '/dev/termination-log',
          terminationMessagePolicy: 'File',
          volumeMounts: [
            { name: access.name, readOnly: true, mountPath: '/var/run/secrets/kubernetes.io/serviceaccount' },
          ],
        },
      ],
    });
    assert.deepEqual(made.status, { phase: 'Pending', qosClass: 'Burstable' });
    assert.deepEqual([made.metadata!.namespace, made.metadata!.generation], [namespace, 1]);
    assert.match(made.metadata!.uid!, /^[0-9a-f-]{36}$/);
    assert.match(made.metadata!.creationTimestamp!, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
    const plain = await ok(
      call<Pod>('POST', `${space}/pods`, pod('b', { automountServiceAccountToken: false })),
    );
    assert.equal(plain.spec!.volumes, undefined);
    assert.equal(plain.spec!.containers[0]!.imagePullPolicy, 'IfNotPresent');
    assert.equal(plain.status!.qosClass, 'BestEffort');
    const limits = { cpu: '1', memory: '1Mi' };
    const containers = [{ name: 'main', image: 'x@sha256:00', resources: { limits } }];
    const sure = await ok(call<Pod>('POST', `${space}/pods`, pod('c', { containers })));
    assert.equal(sure.status!.qosClass, 'Guaranteed');
  },

  async 'a mirror pod has no service account'({ call, space }) {
    const annotations = { 'kubernetes.io/config.mirror': 'hash', 'kubernetes.io/config.source': 'file' };
    const made = await ok(call<Pod>('POST', `${space}/pods`, boundPod('m', {}, { annotations })));
    assert.equal(made.spec!.volumes, undefined);
    assert.equal(made.spec!.serviceAccountName, undefined);
  },

  async 'what is not there, is there already or is nonsense is refused as always'({
    call,
    space,
    namespace,
  }) {
    failed(await call('GET', `${space}/pods/none`), 404, 'NotFound', 'pods "none" not found');
    const leases = `/apis/coordination.k8s.io/v1/namespaces/${namespace}/leases`;
    failed(
      await call('GET', `${leases}/none`),
      404,
      'NotFound',
      'leases.coordination.k8s.io "none" not found',
    );
    failed(await call('GET', `${space}/pods/none/nonsense`), 404, 'NotFound');
    assert.equal((await call('GET', '/api/v1/nonsense').catch(() => ({ status: 404 }))).status, 404);
    const nowhere = await call('POST', '/api/v1/namespaces/nowhere-at-all/pods', pod('a'));
    failed(nowhere, 404, 'NotFound', 'namespaces "nowhere-at-all" not found');
    await ok(call('POST', `${space}/pods`, pod('a')));
    failed(await call('POST', `${space}/pods`, pod('a')), 409, 'AlreadyExists', 'pods "a" already exists');
    failed(await call('POST', `${space}/pods`, '{"kind":'), 400, 'BadRequest');
    failed(await call('POST', `${space}/pods`, { ...pod('b'), kind: 'Node' }), 400, 'BadRequest');
    failed(await call('POST', `${space}/pods`, pod('b', {}, { namespace: 'other' })), 400, 'BadRequest');
    failed(await call('PATCH', `${space}/pods/a`, {}, 'application/nonsense'), 415, 'UnsupportedMediaType');
    const stranger = await call('POST', `${space}/pods`, pod('b', { serviceAccountName: 'stranger' }));
    const why = `pods "b" is forbidden: error looking up service account ${namespace}/stranger: serviceaccount "stranger" not found`;
    failed(stranger, 403, 'Forbidden', why);
    failed(await call('GET', `${space}/pods?fieldSelector=spec.nonsense%3D1`), 400, 'BadRequest');
  },

  async 'an invalid object is refused with the fields that are wrong'({ call, space }) {
    const containers = (...list: object[]) => ({ containers: list });
    const one = (more: object) => containers({ name: 'main', image: 'x:1', ...more });
    const cases: [object, string[]][] = [
      [pod('a', containers()), ['spec.containers']],
      [pod('a', containers({ name: 'main' })), ['spec.containers[0].image']],
      [pod('a', containers({ name: 'Main', image: 'x:1' })), ['spec.containers[0].name']],
      [
        pod('a', containers({ name: 'main', image: 'x:1' }, { name: 'main', image: 'x:1' })),
        ['spec.containers[1].name'],
      ],
      [pod('A_b'), ['metadata.name']],
      [
        pod('a', one({ volumeMounts: [{ name: 'v', mountPath: '/v' }] })),
        ['spec.containers[0].volumeMounts[0].name'],
      ],
      [pod('a', one({ ports: [{ containerPort: 70_000 }] })), ['spec.containers[0].ports[0].containerPort']],
      [pod('a', one({ imagePullPolicy: 'Sometimes' })), ['spec.containers[0].imagePullPolicy']],
      [pod('a', { volumes: [{ name: 'v' }, { name: 'v' }] }), ['spec.volumes[1].name']],
      [pod('a', { restartPolicy: 'Maybe' }), ['spec.restartPolicy']],
      [pod('a', {}, { labels: { key: 'a b' } }), ['metadata.labels']],
    ];
    for (const [object, fields] of cases) {
      const answer = await call('POST', `${space}/pods`, object);
      failed(answer, 422, 'Invalid');
      const told = answer.body.details?.causes?.map(({ field }) => field);
      assert.deepEqual(told, fields, answer.body.message);
    }
    const missing = await call('POST', `${space}/pods`, pod('a', containers({ name: 'main' })));
    assert.equal(missing.body.message, 'Pod "a" is invalid: spec.containers[0].image: Required value');
    const configMap = { metadata: { name: 'c' }, data: { 'a/b': '' } };
    failed(await call('POST', `${space}/configmaps`, configMap), 422, 'Invalid');
    const event = {
      metadata: { name: 'e' },
      involvedObject: { namespace: 'elsewhere', kind: 'Pod', name: 'a' },
    };
    failed(await call('POST', `${space}/events`, event), 422, 'Invalid');
  },

  async 'writes of the object and of its status keep apart, and old resource versions are refused'({
    call,
    space,
  }) {
    const path = `${space}/pods/a`;
    const made = await ok(call<Pod>('POST', `${space}/pods`, boundPod('a')));
    const running = await ok(
      call<Pod>('PUT', `${path}/status`, {
        ...made,
        spec: { ...made.spec, nodeName: 'elsewhere' },
        status: { phase: 'Running', qosClass: 'BestEffort' },
      }),
    );
    assert.deepEqual([running.spec!.nodeName, running.status!.phase], ['no-such-node', 'Running']);
    failed(await call('PUT', path, made), 409, 'Conflict');
    const fresh = {
      ...running,
      metadata: { ...running.metadata, labels: { a: 'b' } },
      status: { phase: 'Failed' },
    };
    const labelled = await ok(call<Pod>('PUT', path, fresh));
    assert.deepEqual([labelled.status!.phase, labelled.metadata!.labels], ['Running', { a: 'b' }]);
    const other = {
      ...labelled,
      metadata: { ...labelled.metadata, uid: '00000000-0000-0000-0000-000000000000' },
    };
    failed(await call('PUT', path, other), 409, 'Conflict');
    const renamed = { ...labelled, metadata: { ...labelled.metadata, name: 'b' } };
    failed(await call('PUT', path, renamed), 400, 'BadRequest');
    failed(
      await call('PUT', path, { ...labelled, spec: { ...labelled.spec, nodeName: 'x' } }),
      422,
      'Invalid',
    );
    const same = await ok(call<Pod>('PUT', path, labelled));
    assert.equal(same.metadata!.resourceVersion, labelled.metadata!.resourceVersion, 'nothing was written');
    failed(await call('PUT', `${space}/pods/none`, boundPod('none')), 404, 'NotFound');
  },

  async 'a status is patched strategically'({ call, space }) {
    const path = `${space}/pods/a`;
    const made = await ok(call<Pod>('POST', `${space}/pods`, boundPod('a')));
    const patch = (status: object, uid = made.metadata!.uid) =>
      call<Pod & Failed>('PATCH', `${path}/status`, { metadata: { uid }, status }, strategic);
    const condition = (type: string, status: string) => ({ type, status, lastProbeTime: null });
    await ok(
      patch({
        phase: 'Running',
        podIP: '10.0.0.1',
        podIPs: [{ ip: '10.0.0.1' }],
        conditions: [condition('Ready', 'False'), condition('Initialized', 'True')],
        containerStatuses: [
          { name: 'main', image: 'x', imageID: '', ready: true, restartCount: 0, state: { running: {} } },
          { name: 'other', image: 'x', imageID: '', ready: true, restartCount: 0, state: { running: {} } },
        ],
      }),
    );
    const second = await ok(
      patch({
        phase: null,
        $setElementOrder: undefined,
        conditions: [condition('Ready', 'True'), { $patch: 'delete', type: 'Initialized' }],
        containerStatuses: [
          {
            name: 'main',
            image: 'x',
            imageID: '',
            ready: false,
            restartCount: 1,
            state: { waiting: { reason: 'CrashLoopBackOff' } },
          },
        ],
      }),
    );
    const seen = second.status!.conditions!.map(({ type, status }) => [type, status]);
    assert.deepEqual(seen, [['Ready', 'True']]);
    assert.equal(second.status!.containerStatuses!.length, 1, 'container statuses are one value');
    assert.deepEqual(second.status!.containerStatuses![0]!.state, {
      waiting: { reason: 'CrashLoopBackOff' },
    });
    assert.deepEqual(second.status!.podIPs, [{ ip: '10.0.0.1' }]);
    const again = await ok(patch({ conditions: [condition('Ready', 'True')] }));
    assert.equal(again.metadata!.resourceVersion, second.metadata!.resourceVersion, 'nothing was written');
    failed(await patch({}, '00000000-0000-0000-0000-000000000000'), 422, 'Invalid');
    const ordered = await ok(
      patch({
        '$setElementOrder/conditions': [{ type: 'PodScheduled' }, { type: 'Ready' }],
        conditions: [condition('PodScheduled', 'True')],
      } as object),
    );
    assert.deepEqual(
      ordered.status!.conditions!.map(({ type }) => type),
      ['PodScheduled', 'Ready'],
    );
  },

  async 'objects are patched by merge and by JSON patch'({ call, space }) {
    const path = `${space}/configmaps/c`;
    const data = { a: '1', b: '2' };
    await ok(call('POST', `${space}/configmaps`, { metadata: { name: 'c', labels: { x: 'y' } }, data }));
    const merged = await ok(
      call<ConfigMap>('PATCH', path, { data: { a: null, c: '3' } }, 'application/merge-patch+json'),
    );
    assert.deepEqual(merged.data, { b: '2', c: '3' });
    const steps = [
      { op: 'test', path: '/data/b', value: '2' },
      { op: 'add', path: '/data/d~1e', value: '4' },
      { op: 'move', from: '/data/c', path: '/data/f' },
      { op: 'remove', path: '/data/d~1e' },
      { op: 'replace', path: '/data/b', value: '5' },
      { op: 'copy', from: '/data/b', path: '/data/g' },
    ];
    const edited = await ok(call<ConfigMap>('PATCH', path, steps, 'application/json-patch+json'));
    assert.deepEqual(edited.data, { b: '5', f: '3', g: '5' });
    const wrong = [{ op: 'test', path: '/data/b', value: 'no' }];
    failed(await call('PATCH', path, wrong, 'application/json-patch+json'), 422, 'Invalid');
    const absent = [{ op: 'remove', path: '/data/none' }];
    failed(await call('PATCH', path, absent, 'application/json-patch+json'), 422, 'Invalid');
    await ok(call('PATCH', path, { immutable: true }, 'application/merge-patch+json'));
    const late = await call('PATCH', path, { data: { b: '6' } }, 'application/merge-patch+json');
    failed(late, 422, 'Invalid');
  },

  async 'a node is registered and its status merged'({ call, namespace }) {
    const path = `/api/v1/nodes/${namespace}`;
    const labels = { 'kubernetes.io/hostname': namespace };
    await ok(
      call('POST', '/api/v1/nodes', { metadata: { name: namespace, labels }, status: { images: [] } }),
    );
    try {
      const patch = (status: object) => ok(call<Node>('PATCH', `${path}/status`, { status }, strategic));
      await patch({
        capacity: { cpu: '2' },
        addresses: [
          { type: 'InternalIP', address: '10.0.0.1' },
          { type: 'Hostname', address: 'a' },
        ],
        images: [{ names: ['a'] }],
        conditions: [{ type: 'Ready', status: 'False' }],
      });
      const { status } = await patch({
        capacity: { memory: '1Gi' },
        addresses: [{ type: 'InternalIP', address: '10.0.0.2' }],
        images: [{ names: ['b'] }],
        conditions: [{ type: 'Ready', status: 'True' }],
      });
      assert.deepEqual(status!.capacity, { cpu: '2', memory: '1Gi' });
      const addresses = status!.addresses!.map(({ type, address }) => `${type} ${address}`).sort();
      assert.deepEqual(addresses, ['Hostname a', 'InternalIP 10.0.0.2']);
      assert.deepEqual(status!.images, [{ names: ['b'] }]);
      assert.equal(status!.conditions!.find(({ type }) => type === 'Ready')!.status, 'True');
    } finally {
      await call('DELETE', path);
    }
  },

  async 'a bound pod is deleted in two steps, others at once'({ call, space }) {
    const path = `${space}/pods/a`;
    const made = await ok(call<Pod>('POST', `${space}/pods`, boundPod('a')));
    const preconditions = { uid: '00000000-0000-0000-0000-000000000000' };
    failed(await call('DELETE', path, { preconditions }), 409, 'Conflict');
    await ok(call('DELETE', path));
    const ending = await ok(call<Pod>('GET', path));
    assert.equal(ending.metadata!.deletionGracePeriodSeconds, 30);
    assert.equal(ending.metadata!.generation, 2);
    const left = Date.parse(ending.metadata!.deletionTimestamp!) - Date.now();
    assert.ok(left > 20_000 && left <= 31_000, `${left} ms left`);
    const longer = await ok(call<Pod>('DELETE', path, { gracePeriodSeconds: 60 }));
    assert.equal(longer.metadata!.deletionGracePeriodSeconds, 30, 'a grace period is not extended');
    const shorter = await ok(call<Pod>('DELETE', path, { gracePeriodSeconds: 5 }));
    assert.equal(shorter.metadata!.deletionGracePeriodSeconds, 5);
    const last = { gracePeriodSeconds: 0, preconditions: { uid: made.metadata!.uid } };
    await ok(call('DELETE', path, last));
    failed(await call('GET', path), 404, 'NotFound');
    failed(await call('DELETE', path, last), 404, 'NotFound');

    await ok(call('POST', `${space}/pods`, pod('unbound', { schedulerName: 'nobody' })));
    await ok(call('DELETE', `${space}/pods/unbound`));
    failed(await call('GET', `${space}/pods/unbound`), 404, 'NotFound');

    await ok(call('POST', `${space}/pods`, boundPod('done')));
    await ok(call('PATCH', `${space}/pods/done/status`, { status: { phase: 'Succeeded' } }, strategic));
    await ok(call('DELETE', `${space}/pods/done`));
    failed(await call('GET', `${space}/pods/done`), 404, 'NotFound');

    const finalizers = ['example.org/hold'];
    await ok(call('POST', `${space}/pods`, boundPod('held', {}, { finalizers })));
    await ok(call('DELETE', `${space}/pods/held`, { gracePeriodSeconds: 0 }));
    assert.equal((await ok(call<Pod>('GET', `${space}/pods/held`))).metadata!.deletionGracePeriodSeconds, 0);
    await ok(
      call('PATCH', `${space}/pods/held`, { metadata: { finalizers: null } }, 'application/merge-patch+json'),
    );
    failed(await call('GET', `${space}/pods/held`), 404, 'NotFound');
  },

  async 'a watch tells every change after the list, as its selector sees it'({ call, watch, space }) {
    await ok(call('POST', `${space}/pods`, boundPod('before', {}, { labels: { watched: 'yes' } })));
    type PodList = { metadata: { resourceVersion: string }; items: Pod[]; kind: string };
    const list = await ok(call<PodList>('GET', `${space}/pods?labelSelector=watched%3Dyes`));
    assert.deepEqual([list.kind, list.items.length], ['PodList', 1]);
    const from = `resourceVersion=${list.metadata.resourceVersion}`;
    const query = `${space}/pods?watch=true&allowWatchBookmarks=true&labelSelector=watched%3Dyes`;
    const stream = await watch(`${query}&${from}`);
    try {
      const merge = 'application/merge-patch+json';
      await ok(call('POST', `${space}/pods`, boundPod('a')));
      await ok(call('PATCH', `${space}/pods/a`, { metadata: { labels: { watched: 'yes' } } }, merge));
      await ok(call('PATCH', `${space}/pods/a/status`, { status: { phase: 'Running' } }, merge));
      await ok(call('PATCH', `${space}/pods/a`, { metadata: { labels: { watched: 'no' } } }, merge));
      await ok(call('DELETE', `${space}/pods/before`, { gracePeriodSeconds: 0 }));
      const seen: Event[] = [];
      for (let i = 0; i < 5; i++) seen.push(await stream.next());
      assert.deepEqual(
        seen.map(({ type, object }) => `${type} ${object.metadata!.name} ${object.status?.phase}`),
        [
          'ADDED a Pending',
          'MODIFIED a Running',
          'DELETED a Running',
          'MODIFIED before Pending',
          'DELETED before Pending',
        ],
      );
      const versions = seen.map(({ object }) => Number(object.metadata!.resourceVersion));
      assert.deepEqual(
        versions,
        versions.toSorted((a, b) => a - b),
      );
    } finally {
      stream.close();
    }
    const initial = await watch(
      `${space}/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dno-such-node`,
    );
    const first = await initial.next(true);
    assert.deepEqual([first.type, first.object.metadata!.name], ['ADDED', 'a']);
    const mark = await initial.next(true);
    assert.equal(mark.type, 'BOOKMARK');
    assert.equal(mark.object.metadata!.annotations!['k8s.io/initial-events-end'], 'true');
    initial.close();
    const single = await watch(`${space}/pods?watch=1&fieldSelector=metadata.name%3Da`);
    assert.equal((await single.next()).object.metadata!.name, 'a');
    single.close();
  },

  async 'lists are selected and paged'({ call, space }) {
    for (const [name, tier] of [
      ['a', 'front'],
      ['b', 'back'],
      ['c', 'front'],
    ] as const) {
      await ok(call('POST', `${space}/configmaps`, { metadata: { name, labels: { tier } } }));
    }
    type List = { metadata: { continue?: string }; items: ConfigMap[] };
    const names = async (query: string) => {
      const { items } = await ok(call<List>('GET', `${space}/configmaps?${query}`));
      return items.map(({ metadata }) => metadata!.name).join(',');
    };
    const select = (text: string) => names(`labelSelector=${encodeURIComponent(text)}`);
    assert.equal(await select('tier=front'), 'a,c');
    assert.equal(await select('tier!=front,tier'), 'b');
    assert.equal(await select('tier in (front,back)'), 'a,b,c');
    assert.equal(await select('tier notin (front),tier'), 'b');
    assert.equal(await select('!tier'), 'kube-root-ca.crt');
    assert.equal(await names(`fieldSelector=${encodeURIComponent('metadata.name=b')}`), 'b');
    const first = await ok(call<List>('GET', `${space}/configmaps?limit=2&labelSelector=tier`));
    assert.equal(first.items.length, 2);
    const token = encodeURIComponent(first.metadata.continue!);
    const rest = await ok(
      call<List>('GET', `${space}/configmaps?limit=2&labelSelector=tier&continue=${token}`),
    );
    assert.deepEqual(
      [rest.items.length, rest.items[0]!.metadata!.name, rest.metadata.continue ?? ''],
      [1, 'c', ''],
    );
  },

  async 'a pod is bound once'({ call, space }) {
    await ok(call('POST', `${space}/pods`, pod('a', { schedulerName: 'nobody' })));
    const binding = { metadata: { name: 'a' }, target: { kind: 'Node', name: 'no-such-node' } };
    assert.equal((await call('POST', `${space}/pods/a/binding`, binding)).status, 201);
    const bound = await ok(call<Pod>('GET', `${space}/pods/a`));
    assert.equal(bound.spec!.nodeName, 'no-such-node');
    assert.equal(bound.status!.conditions!.find(({ type }) => type === 'PodScheduled')!.status, 'True');
    failed(await call('POST', `${space}/pods/a/binding`, binding), 409, 'Conflict');
  },

  async 'a service account gives tokens bound to a pod'({ call, space, namespace }) {
    const made = await ok(call<Pod>('POST', `${space}/pods`, boundPod('a')));
    const boundObjectRef = { apiVersion: 'v1', kind: 'Pod', name: 'a', uid: made.metadata!.uid };
    const path = `${space}/serviceaccounts/default/token`;
    type Token = { status: { token: string; expirationTimestamp: string } };
    const wanted = { spec: { audiences: ['somebody'], expirationSeconds: 1200, boundObjectRef } };
    const { status, body } = await call<Token>('POST', path, wanted);
    assert.equal(status, 201, JSON.stringify(body));
    const claims = JSON.parse(Buffer.from(body.status.token.split('.')[1]!, 'base64url').toString()) as {
      sub: string;
    };
    assert.equal(claims.sub, `system:serviceaccount:${namespace}:default`);
    const left = Date.parse(body.status.expirationTimestamp) - Date.now();
    assert.ok(left > 1_100_000 && left < 1_300_000, `${left} ms left`);
    const wrong = { ...boundObjectRef, uid: '00000000-0000-0000-0000-000000000000' };
    failed(await call('POST', path, { spec: { boundObjectRef: wrong } }), 409, 'Conflict');
    failed(await call('POST', path, { spec: { boundObjectRef: { ...wrong, name: 'b' } } }), 404, 'NotFound');
    failed(await call('POST', path, { spec: { expirationSeconds: 10 } }), 422, 'Invalid');
    failed(await call('POST', `${space}/serviceaccounts/none/token`, { spec: {} }), 404, 'NotFound');
  },

  async 'leases and events are made by PUT too, and services get an address'({ call, space, namespace }) {
    const path = `/apis/coordination.k8s.io/v1/namespaces/${namespace}/leases/l`;
    const lease = { metadata: { name: 'l' }, spec: { holderIdentity: 'me', leaseDurationSeconds: 40 } };
    const { status, body } = await call<Lease>('PUT', path, lease);
    assert.equal(status, 201, JSON.stringify(body));
    const renewed = { ...body, spec: { ...body.spec, renewTime: '2030-01-01T00:00:00.000000Z' } };
    assert.equal((await call<Lease>('PUT', path, renewed)).status, 200);
    failed(await call('PUT', path, body), 409, 'Conflict');
    const ports = [{ port: 80 }];
    const service = await ok(
      call<Service>('POST', `${space}/services`, { metadata: { name: 's' }, spec: { ports } }),
    );
    assert.match(service.spec!.clusterIP!, /^10\./);
    assert.equal(service.spec!.type, 'ClusterIP');
    const involvedObject = { kind: 'Pod', namespace, name: 'a' };
    const event = { metadata: { generateName: 'e.' }, involvedObject, reason: 'Tested', type: 'Normal' };
    const made = await ok(call<{ metadata: { name: string } }>('POST', `${space}/events`, event));
    assert.match(made.metadata.name, /^e\.[a-z0-9]{5}$/);
  },

  async 'reviews are answered'({ call }) {
    const review = (group: string, plural: string, body: object) =>
      call<{ status: object }>('POST', `/apis/${group}.k8s.io/v1/${plural}`, body);
    const token = await review('authentication', 'tokenreviews', { spec: { token: 'nonsense' } });
    assert.equal(token.status, 201);
    assert.equal(typeof token.body.status, 'object');
    const attributes = { verb: 'get', resource: 'nodes', subresource: 'log' };
    const spec = { user: 'admin', groups: ['system:masters'], resourceAttributes: attributes };
    const access = await review('authorization', 'subjectaccessreviews', { spec });
    assert.equal(access.status, 201);
    assert.equal((access.body.status as { allowed: boolean }).allowed, true);
  },

  async 'a deleted namespace takes what is in it'({ call, space }) {
    await ok(call('POST', `${space}/configmaps`, { metadata: { name: 'c' } }));
    await ok(call('DELETE', space));
    const gone = async () => ((await call('GET', `${space}/configmaps/c`)).status === 404 ? true : undefined);
    await waitFor('the namespace to be gone', gone, { deadlineMs: 60_000 });
  },
};
