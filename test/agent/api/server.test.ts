/** The API over real TLS, with certificates of an authority that the test makes with OpenSSL. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import type { X509Certificate } from 'node:crypto';
import {
  appendFileSync,
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { request as httpRequest } from 'node:http';
import { Agent, type RequestOptions, request } from 'node:https';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { startHealthz } from '../../../agent/api/healthz.ts';
import { containerForLogs } from '../../../agent/api/log-container.ts';
import { type NodeApiOptions, startNodeApi } from '../../../agent/api/server.ts';
import type { Pod } from '../../../agent/apiserver/types.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import type { StreamHandlers } from '../../../runtime/streaming/types.ts';
import { type Review, reviewClient } from './reviews.ts';

const line = (content: string) => `2026-10-06T00:00:00.000000001Z stdout F ${content}\n`;
const openssl = (...args: string[]) => execFileSync('openssl', args, { stdio: ['ignore', 'pipe', 'ignore'] });

function authority(folder: string, name: string) {
  const key = join(folder, `${name}-ca.key`);
  const cert = join(folder, `${name}-ca.crt`);
  openssl(
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-keyout',
    key,
    '-out',
    cert,
    '-subj',
    `/CN=${name}`,
    '-days',
    '2',
  );
  return {
    cert,
    issue(subject: string, usage = 'clientAuth', days = '1') {
      const base = join(folder, `${name}-${Math.random().toString(36).slice(2)}`);
      openssl(
        'req',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:P-256',
        '-nodes',
        '-keyout',
        `${base}.key`,
        '-out',
        `${base}.csr`,
        '-subj',
        subject,
      );
      writeFileSync(`${base}.ext`, `extendedKeyUsage=${usage}\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n`);
      openssl(
        'x509',
        '-req',
        '-in',
        `${base}.csr`,
        '-CA',
        cert,
        '-CAkey',
        key,
        '-CAcreateserial',
        '-out',
        `${base}.crt`,
        '-days',
        days,
        '-extfile',
        `${base}.ext`,
      );
      return {
        certFile: `${base}.crt`,
        keyFile: `${base}.key`,
        cert: readFileSync(`${base}.crt`),
        key: readFileSync(`${base}.key`),
      };
    },
  };
}

const folder = mkdtempSync(join(tmpdir(), 'keelson-test-api-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
const good = authority(folder, 'good');
const bad = authority(folder, 'bad');
const apiserver = good.issue('/O=system:masters/O=ops/CN=kube-apiserver');

async function api(
  t: TestContext,
  change: Partial<NodeApiOptions> = {},
  answer?: (review: Review) => object,
) {
  const root = mkdtempSync(join(folder, 'node-'));
  const logPath = join(root, '0.log');
  writeFileSync(logPath, '');
  const { client, asked } = reviewClient(answer ?? (() => ({ allowed: true })));
  const state = { running: true, exits: new Set<() => void>(), ok: true };
  const pod = {
    metadata: { name: 'web', namespace: 'shop', uid: 'u1' },
    spec: { containers: [{ name: 'app' }, { name: 'new' }] },
    status: {
      containerStatuses: [
        { name: 'app', state: { running: {} }, containerID: 'keelson://c1' },
        { name: 'new', state: { waiting: { reason: 'ContainerCreating' } } },
      ],
    },
  } as unknown as Pod;
  const server = await startNodeApi({
    address: '127.0.0.1',
    port: 0,
    tls: { selfSignedFolder: join(root, 'pki'), names: ['edge-1', 'localhost'], ips: ['127.0.0.1'] },
    clientCaFile: good.cert,
    authentication: { anonymous: false, webhook: true },
    authorization: { mode: 'Webhook' },
    client,
    nodeName: 'edge-1',
    log: makeLogger('silent'),
    clock: systemClock,
    pods: () => [pod],
    container(namespace, name, container, previous) {
      containerForLogs(namespace === 'shop' && name === 'web' ? pod : undefined, name, container, previous);
      return {
        logPath,
        running: () => state.running,
        onExit(listener) {
          state.exits.add(listener);
          return () => state.exits.delete(listener);
        },
      };
    },
    healthy: () => ({ ok: state.ok, message: 'no runtime' }),
    ...change,
  });
  t.after(() => server.close());
  /** Sends a request; resolves with the headers. */
  const send = (path: string, options: RequestOptions = {}): Promise<IncomingMessage> =>
    new Promise((resolve, reject) => {
      const sent = request(
        {
          host: '127.0.0.1',
          port: server.port,
          path,
          agent: false,
          rejectUnauthorized: false,
          cert: apiserver.cert,
          key: apiserver.key,
          ...options,
        },
        resolve,
      );
      sent.on('error', reject);
      sent.end();
    });
  const get = async (path: string, options: RequestOptions = {}) => {
    const response = await send(path, options);
    let body = '';
    for await (const chunk of response) body += chunk;
    return { status: response.statusCode, body, type: response.headers['content-type'] };
  };
  const exit = () => {
    state.running = false;
    for (const listener of state.exits) listener();
  };
  return { root, logPath, asked, state, server, send, get, exit };
}

const nobody = { cert: undefined, key: undefined };

test('health, pods and unknown paths', async (t) => {
  const { get, state } = await api(t);
  assert.deepEqual(await get('/healthz'), { status: 200, body: 'ok', type: 'text/plain; charset=utf-8' });
  assert.equal((await get('/healthz/ping')).body, 'ok');
  assert.equal((await get('/healthz/nonsense')).status, 404);
  state.ok = false;
  assert.deepEqual(await get('/healthz/syncloop'), {
    status: 500,
    body: 'healthz check failed: no runtime\n',
    type: 'text/plain; charset=utf-8',
  });
  assert.equal((await get('/healthz/ping')).status, 200);
  const pods = await get('/pods');
  assert.equal(pods.type, 'application/json');
  const list = JSON.parse(pods.body);
  assert.deepEqual(
    [list.kind, list.apiVersion, list.items.length, list.items[0].metadata.name],
    ['PodList', 'v1', 1, 'web'],
  );
  assert.equal((await get('/nothing')).status, 404);
  assert.equal((await get('/a/../pods')).status, 400);
  assert.equal((await get('/pods', { method: 'DELETE' })).status, 405);
});

test('metrics are for those who may read them', async (t) => {
  const family = { name: 'x_total', help: 'X.', type: 'counter' as const, samples: [{ value: 7 }] };
  const { get, asked } = await api(t, { metrics: [{ families: () => [family] }] }, ({ spec }) => ({
    allowed: spec.user === 'kube-apiserver',
  }));
  assert.deepEqual(await get('/metrics'), {
    status: 200,
    body: '# HELP x_total X.\n# TYPE x_total counter\nx_total 7\n',
    type: 'text/plain; version=0.0.4; charset=utf-8',
  });
  assert.equal(asked[0]!.spec.resourceAttributes?.subresource, 'metrics');
  assert.equal((await get('/metrics', nobody)).status, 401);
  const other = good.issue('/CN=visitor');
  assert.equal((await get('/metrics', { cert: other.cert, key: other.key })).status, 403);
  assert.equal((await get('/metrics', { method: 'POST' })).status, 405);
});

test('a certificate of the configured authority makes a user with groups', async (t) => {
  const { get, asked } = await api(t);
  assert.equal((await get('/pods')).status, 200);
  assert.deepEqual(
    {
      user: asked[0]!.spec.user,
      groups: asked[0]!.spec.groups,
      attributes: asked[0]!.spec.resourceAttributes,
    },
    {
      user: 'kube-apiserver',
      groups: ['system:masters', 'ops', 'system:authenticated'],
      attributes: { verb: 'get', version: 'v1', resource: 'nodes', subresource: 'pods', name: 'edge-1' },
    },
  );
});

test("refused: nobody, another authority, a server's certificate, an expired one, one without a name", async (t) => {
  const { get, asked } = await api(t, { authentication: { anonymous: true, webhook: true } });
  const issued = {
    foreign: bad.issue('/O=system:masters/CN=kube-apiserver'),
    server: good.issue('/O=system:masters/CN=kube-apiserver', 'serverAuth'),
    expired: good.issue('/O=system:masters/CN=kube-apiserver', 'clientAuth', '-1'),
    nameless: good.issue('/O=system:masters'),
  };
  for (const [name, { cert, key }] of Object.entries(issued)) {
    const { status, body } = await get('/pods', { cert, key });
    assert.deepEqual([status, body], [401, 'Unauthorized'], name);
  }
  assert.equal(asked.length, 0, 'nobody was taken for a user');
  assert.equal((await get('/pods', nobody)).status, 200);
  assert.equal(asked[0]!.spec.user, 'system:anonymous');
  const strict = await api(t);
  assert.equal((await strict.get('/pods', nobody)).status, 401);
});

test('a bearer token is reviewed', async (t) => {
  const { get, asked } = await api(t, {}, ({ spec }) =>
    spec.token === undefined
      ? { allowed: spec.user === 'prometheus' }
      : { authenticated: spec.token === 'good', user: { username: 'prometheus' } },
  );
  const as = (token: string) => get('/pods', { ...nobody, headers: { authorization: `Bearer ${token}` } });
  assert.equal((await as('good')).status, 200);
  assert.equal((await as('bad')).status, 401);
  assert.equal(asked.length, 3);
});

test("forbidden, and no answer from the apiserver, in kubelet's words", async (t) => {
  const no = await api(t, {}, () => ({ allowed: false }));
  assert.deepEqual(await no.get('/pods'), {
    status: 403,
    body: 'Forbidden (user=kube-apiserver, verb=get, resource=nodes, subresource(s)=[pods proxy])',
    type: 'text/plain; charset=utf-8',
  });
  const down = await api(t, {}, () => {
    throw new Error('connection refused');
  });
  const { status, body } = await down.get('/containerLogs/shop/web/app');
  assert.equal(status, 500);
  assert.match(
    body,
    /^Authorization error \(user=kube-apiserver, verb=get, resource=nodes, subresource=proxy\)$/,
  );
});

test('a token that cannot be reviewed is refused, without a word on the apiserver', async (t) => {
  const { get } = await api(t, {}, () => {
    throw new Error('connect ECONNREFUSED 10.9.8.7:6443');
  });
  const { status, body } = await get('/pods', { ...nobody, headers: { authorization: 'Bearer x' } });
  assert.equal(status, 401);
  assert.equal(body, 'Unauthorized');
});

const webSocket = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
};
const spdy = { connection: 'Upgrade', upgrade: 'SPDY/3.1' };

/** A runtime with one running container, and streams that only tell what they were asked for. */
function streams() {
  const asked: object[] = [];
  const take =
    (verb: string): StreamHandlers['exec'] & StreamHandlers['portForward'] =>
    async (_request, socket, _head, session: object) => {
      asked.push({ verb, ...session });
      socket.end('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n');
    };
  const running = {
    id: 'c1',
    podSandboxId: 's1',
    metadata: { name: 'app', attempt: 0 },
    image: 'i',
    createdAt: 1,
    labels: { 'io.kubernetes.pod.uid': 'u1', 'io.kubernetes.container.name': 'app' },
  };
  const runtime = {
    listContainers: async ({ labels = {} }: { labels?: Record<string, string> } = {}) =>
      Object.entries(labels).every(
        ([key, value]) => (running.labels as Record<string, string>)[key] === value,
      )
        ? [running, { ...running, id: 'older', createdAt: 0 }]
        : [],
    listPodSandbox: async () => [
      { id: 's1', createdAt: 1, metadata: { name: 'web', namespace: 'shop', uid: 'u1' } },
    ],
    execSync: async (_id: string, [first]: readonly string[]) => ({
      stdout: Buffer.from('out'),
      stderr: Buffer.from('err'),
      exitCode: first === 'false' ? 1 : 0,
    }),
  };
  const handlers = { exec: take('exec'), attach: take('attach'), portForward: take('portForward') };
  return {
    asked,
    options: { runtime, handlers: async () => handlers } as unknown as NonNullable<NodeApiOptions['streams']>,
  };
}

test('exec, attach, run and portForward are authorized as create, and not there without a runtime', async (t) => {
  const { get, asked } = await api(t);
  for (const path of ['/exec/shop/web/app?command=sh', '/attach/shop/web/u1/app', '/portForward/shop/web']) {
    for (const options of [{ method: 'POST', headers: spdy }, { headers: webSocket }]) {
      const { status, body } = await get(path, options);
      assert.equal(status, 501, path);
      assert.match(body, /is not served by this node/);
    }
  }
  assert.equal((await get('/run/shop/web/app?cmd=x', { method: 'POST' })).status, 501);
  assert.deepEqual(
    [
      ...new Set(
        asked.map(({ spec }) => `${spec.resourceAttributes!.verb} ${spec.resourceAttributes!.subresource}`),
      ),
    ],
    ['create proxy'],
  );
  const { options, asked: served } = streams();
  const refused = await api(t, { streams: options }, ({ spec }) => ({
    allowed: spec.resourceAttributes!.verb === 'get',
  }));
  for (const headers of [webSocket, spdy]) {
    for (const method of ['GET', 'POST', 'PUT', 'HEAD']) {
      const answer = await refused.get('/exec/shop/web/app?command=sh&output=1', { headers, method });
      assert.equal(answer.status, 403, method);
    }
  }
  assert.equal((await refused.get('/exec/shop/web/app', { ...nobody, headers: webSocket })).status, 401);
  assert.deepEqual(served, []);
});

test('checkpoints: for those who may, in kubelet’s words where there is none', async (t) => {
  const calls: unknown[] = [];
  let fails: KeelsonError | undefined;
  const runtime = {
    async listContainers({ labels = {} }: { labels?: Readonly<Record<string, string>> } = {}) {
      return labels['io.kubernetes.container.name'] === 'app' ? [{ id: 'c1', createdAt: 1 }] : [];
    },
    async checkpointContainer(...[id, location, timeoutMs]: [string, string, number]) {
      calls.push([id, location, timeoutMs]);
      if (fails !== undefined) throw fails;
    },
  } as unknown as NonNullable<NodeApiOptions['checkpoints']>['runtime'];
  const { get, asked } = await api(
    t,
    {
      checkpoints: { runtime, folder: '/kubelet/checkpoints' },
      clock: { ...systemClock, now: () => Date.UTC(2026, 0, 2, 3, 4, 5, 678) },
      debugging: false,
    },
    () => ({ allowed: true }),
  );
  const post = (path: string) => get(path, { method: 'POST' });
  const made = await post('/checkpoint/shop/web/app?timeout=3&timeout=7');
  const location = '/kubelet/checkpoints/checkpoint-web_shop-app-2026-01-02T03:04:05Z.tar';
  assert.deepEqual([made.status, made.type], [200, 'application/json']);
  assert.equal(made.body, `{"items":["${location}"]}`);
  assert.deepEqual(calls.splice(0), [['c1', location, 7000]]);
  const wanted = asked.at(-1)?.spec.resourceAttributes;
  assert.deepEqual([wanted?.verb, wanted?.subresource], ['create', 'checkpoint']);
  for (const [path, status, body] of [
    ['/checkpoint/shop/none/app', 404, 'pod does not exist'],
    ['/checkpoint/shop/web/none', 404, 'container none does not exist'],
    ['/checkpoint/shop/web/app?timeout=x', 404, 'cannot parse value of timeout parameter'],
    ['/checkpoint/shop/web/new', 500, 'checkpointing of shop/web/new failed (container new not found)'],
    ['/checkpoint/shop/web', 404, '404 page not found'],
    ['/checkpoint/shop/web/u1/app', 404, '404 page not found'],
  ] as const) {
    const refused = await post(path);
    assert.deepEqual([refused.status, refused.body], [status, body], path);
  }
  assert.deepEqual(calls, []);
  fails = new KeelsonError('DEPENDENCY_MISSING', 'criu is not here', { hint: 'install it' });
  const failed = await post('/checkpoint/shop/web/app');
  const why = 'checkpointing of shop/web/app failed (criu is not here (install it))';
  assert.deepEqual([failed.status, failed.body], [500, why]);
  assert.equal((await get('/checkpoint/shop/web/app')).status, 405);
  calls.length = 0;
  const strict = await api(t, { checkpoints: { runtime, folder: '/x' } }, () => ({ allowed: false }));
  assert.equal((await strict.get('/checkpoint/shop/web/app', { method: 'POST' })).status, 403);
  assert.deepEqual(calls, []);
  const without = await api(t);
  assert.equal((await without.get('/checkpoint/shop/web/app', { method: 'POST' })).status, 404);
});

test('streams: what reaches the runtime, and what is wrong', async (t) => {
  const { options, asked } = streams();
  const { get, send, server } = await api(t, { streams: options });
  const upgrade = (path: string, headers: Record<string, string> = spdy) =>
    new Promise<number>((resolve, reject) => {
      const sent = request({
        host: '127.0.0.1',
        port: server.port,
        path,
        headers,
        agent: false,
        rejectUnauthorized: false,
        cert: apiserver.cert,
        key: apiserver.key,
      });
      sent.on('upgrade', (response, socket) => {
        socket.destroy();
        resolve(response.statusCode!);
      });
      sent.on('response', (response) => {
        response.resume();
        resolve(response.statusCode!);
      });
      sent.on('error', reject);
      sent.end();
    });
  const none = { stdin: false, stdout: false, stderr: false, tty: false };
  const cases: readonly (readonly [string, object])[] = [
    [
      '/exec/shop/web/app?command=a&command=b%20c&input=1&output=1&error=1',
      {
        verb: 'exec',
        ...none,
        stdin: true,
        stdout: true,
        stderr: true,
        containerId: 'c1',
        command: ['a', 'b c'],
      },
    ],
    [
      '/exec/shop/web/u1/app?command=a&output=1&error=1&tty=1&input=true',
      { verb: 'exec', ...none, stdout: true, tty: true, containerId: 'c1', command: ['a'] },
    ],
    [
      '/attach/shop/web/app?output=1&error=1&tty=1',
      { verb: 'attach', ...none, stdout: true, containerId: 'c1' },
    ],
    ['/portForward/shop/web', { verb: 'portForward', podSandboxId: 's1', ports: [] }],
    ['/portForward/shop/web/u1', { verb: 'portForward', podSandboxId: 's1', ports: [] }],
  ];
  for (const [path, wanted] of cases) {
    assert.equal(await upgrade(path), 101, path);
    assert.deepEqual(asked.pop(), wanted, path);
  }
  assert.equal(await upgrade('/portForward/shop/web?port=80,443&port=1', webSocket), 101);
  assert.deepEqual(asked.pop(), { verb: 'portForward', podSandboxId: 's1', ports: [80, 443, 1] });
  assert.equal(
    await upgrade('/portForward/shop/web', {
      ...webSocket,
      'sec-websocket-protocol': 'SPDY/3.1+portforward.k8s.io',
    }),
    101,
  );
  asked.pop();
  for (const [path, headers, status, body] of [
    ['/exec/shop/none/app?command=a&output=1', spdy, 404, 'pod does not exist'],
    ['/exec/shop/web/new?command=a&output=1', spdy, 400, 'container not found ("new")'],
    ['/exec/shop/web/other/app?command=a&output=1', spdy, 400, 'container not found ("app")'],
    ['/exec/shop/web/app?command=a', spdy, 400, 'you must specify at least 1 of stdin, stdout, stderr'],
    ['/exec/shop/web/app?output=1', spdy, 400, 'you must specify a command'],
    ['/exec/shop/web/app?command=a&output=1', {}, 400, 'Upgrade request required'],
    [
      '/exec/shop/web/app?command=a&output=1',
      { connection: 'upgrade', upgrade: 'h2c' },
      400,
      'Upgrade request required',
    ],
    ['/attach/shop/web/new?output=1', spdy, 400, 'container new not found in pod web_shop'],
    ['/portForward/shop/web/other', spdy, 404, 'pod not found'],
    ['/portForward/shop/web', webSocket, 400, 'query parameter "port" is required'],
    ['/portForward/shop/web?port=', webSocket, 400, 'query parameter "port" cannot be empty'],
    ['/portForward/shop/web?port=0', webSocket, 400, 'port "0" must be > 0'],
    ['/portForward/shop/web?port=65536', webSocket, 400, 'unable to parse "65536" as a port'],
    [
      `/portForward/shop/web?port=${'1,'.repeat(200)}1`,
      webSocket,
      400,
      'at most 100 ports can be forwarded at once',
    ],
    ['/run/shop/web/app?cmd=x', webSocket, 404, '404 page not found'],
    ['/pods', webSocket, 404, '404 page not found'],
    ['/exec/../pods', webSocket, 400, 'the path of the request is not valid'],
  ] as const) {
    const answer = await get(path, { headers });
    assert.deepEqual([answer.status, answer.body], [status, body], path);
  }
  assert.deepEqual(asked, []);
  const ran = await get('/run/shop/web/app?cmd=a%20b', { method: 'POST' });
  assert.deepEqual([ran.status, ran.body], [200, 'outerr']);
  const failed = await get('/run/shop/web/app?cmd=false', { method: 'POST' });
  assert.deepEqual([failed.status, failed.body], [500, "command 'false' exited with 1: err"]);
  assert.equal((await get('/run/shop/web/app?cmd=a')).status, 405);
  assert.equal((await send('/exec/shop/web/app', { method: 'DELETE' })).statusCode, 405);
});

test('connections that are left open in the middle of an upgrade end with the API', async (t) => {
  const { options } = streams();
  let entered = () => {};
  const inside = new Promise<void>((resolve) => {
    entered = resolve;
  });
  const hanging = async () => {
    entered();
    return new Promise<never>(() => {});
  };
  const { server } = await api(t, { streams: { ...options, handlers: hanging } });
  const sent = request({
    host: '127.0.0.1',
    port: server.port,
    path: '/exec/shop/web/app?command=a&output=1',
    headers: spdy,
    agent: false,
    rejectUnauthorized: false,
    cert: apiserver.cert,
    key: apiserver.key,
  });
  const ended = new Promise<void>((resolve) => sent.once('error', () => resolve()));
  sent.end();
  await inside;
  await server.close();
  await ended;
});

test('configuration, system logs and what is switched off', async (t) => {
  const logs = mkdtempSync(join(folder, 'logs-'));
  writeFileSync(join(logs, 'a&b.log'), 'content\n');
  writeFileSync(join(logs, 'empty'), '');
  const { get } = await api(t, {
    configuration: () => ({ kind: 'KubeletConfiguration' }),
    systemLogs: logs,
  });
  assert.deepEqual(JSON.parse((await get('/configz')).body), {
    kubeletconfig: { kind: 'KubeletConfiguration' },
  });
  assert.equal((await get('/logs/a&b.log')).body, 'content\n');
  assert.deepEqual(await get('/logs/empty'), { status: 200, body: '', type: 'text/plain; charset=utf-8' });
  const page = await get('/logs/');
  assert.match(page.body, /<pre>\n<a href="a&b\.log">a&#38;b\.log<\/a>\n<a href="empty">empty<\/a>\n<\/pre>/);
  assert.equal((await get('/logs')).status, 301);
  for (const path of ['/logs/none', '/logs/empty/x', '/logs/%2e%2e/x', '/logs/a%2fb']) {
    assert.ok([400, 404].includes((await get(path)).status!), path);
  }
  const closed = await api(t, { debugging: false, streams: streams().options, systemLogs: logs });
  for (const path of ['/logs/', '/containerLogs/shop/web/app', '/runningpods/', '/exec/shop/web/app']) {
    assert.deepEqual([path, (await closed.get(path)).status], [path, 405]);
  }
  assert.equal((await closed.get('/exec/shop/web/app?output=1&command=a', { headers: spdy })).status, 501);
  assert.equal((await closed.get('/pods')).status, 200);
  const without = await api(t);
  assert.deepEqual((await without.get('/logs/')).status, 405);
});

test('logs: whole, with options, and the words of what is wrong', async (t) => {
  const { get, logPath } = await api(t);
  writeFileSync(logPath, line('one') + line('two'));
  const logs = '/containerLogs/shop/web';
  assert.deepEqual(await get(`${logs}/app`), {
    status: 200,
    body: 'one\ntwo\n',
    type: 'text/plain; charset=utf-8',
  });
  assert.equal(
    (await get(`${logs}/app?tailLines=1&timestamps=true`)).body,
    '2026-10-06T00:00:00.000000001Z two\n',
  );
  assert.equal((await get(`${logs}/app?sinceSeconds=1`)).body, '');
  for (const [path, status, body] of [
    [`${logs}/new`, 400, 'container "new" in pod "web" is waiting to start: ContainerCreating'],
    [`${logs}/app?previous=true`, 400, 'previous terminated container "app" in pod "web" not found'],
    [`${logs}/other`, 404, 'container "other" not found in pod "web"'],
    ['/containerLogs/shop/gone/app', 404, 'pod "gone" does not exist'],
    [`${logs}/app?tailLines=x`, 400, 'Unable to decode query: tailLines must be a whole number'],
    [`${logs}/app?limitBytes=0`, 422, 'Invalid request: limitBytes must be at least 1'],
  ] as const) {
    const answer = await get(path);
    assert.deepEqual([answer.status, answer.body], [status, body]);
  }
  assert.equal((await get(`${logs}/app`, { method: 'POST' })).status, 405);
});

test('follow: the headers come at once, lines as they are written, the end with the container', async (t) => {
  const { send, logPath, exit } = await api(t);
  const response = await send('/containerLogs/shop/web/app?follow=true');
  assert.equal(response.statusCode, 200);
  const chunks = response[Symbol.asyncIterator]();
  for (const content of ['one', 'two']) {
    appendFileSync(logPath, line(content));
    assert.equal(String((await chunks.next()).value), `${content}\n`);
  }
  appendFileSync(logPath, line('last'));
  exit();
  assert.equal(String((await chunks.next()).value), 'last\n');
  assert.equal((await chunks.next()).done, true);
});

/** Open files under the test's folder, and watches, of this process. */
function held(): { files: number; watches: number } {
  const files = readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith(folder);
    } catch {
      return false;
    }
  }).length;
  return { files, watches: process.getActiveResourcesInfo().filter((name) => name === 'FSEventWrap').length };
}

/** Closing takes some turns of the event loop, on both sides. */
async function settles(check: () => boolean): Promise<void> {
  for (let turn = 0; turn < 2000 && !check(); turn++) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.ok(check(), 'something is still held');
}

test('a thousand followers that go away leave nothing', async (t) => {
  const { send, logPath, state } = await api(t);
  writeFileSync(logPath, line('one'));
  const before = held();
  for (let batch = 0; batch < 20; batch++) {
    await Promise.all(
      Array.from({ length: 50 }, async (_, index) => {
        const response = await send('/containerLogs/shop/web/app?follow=true');
        if (index % 2 === 0) await response[Symbol.asyncIterator]().next();
        response.destroy();
      }),
    );
  }
  await settles(() => state.exits.size === 0);
  await settles(() => held().files === before.files && held().watches === before.watches);
});

test('a client that does not read stops the reading of the file', async (t) => {
  const { send, logPath, exit } = await api(t);
  const part = line('x'.repeat(1000)).repeat(1000);
  for (let index = 0; index < 40; index++) appendFileSync(logPath, part);
  const response = await send('/containerLogs/shop/web/app?follow=true');
  for (let turn = 0; turn < 40; turn++) await new Promise((resolve) => setTimeout(resolve, 5));
  // What is changed in the file now is seen by the client only if it was not read yet.
  const file = openSync(logPath, 'r+');
  const changed = line('y'.repeat(1000)).repeat(1000);
  writeSync(file, changed, part.length * 39);
  closeSync(file);
  exit();
  let bytes = 0;
  let end = '';
  for await (const chunk of response) {
    bytes += chunk.length;
    end = `${end}${chunk}`.slice(-1_001_000);
  }
  assert.equal(bytes, 40 * 1000 * 1001);
  assert.equal(end, `${'y'.repeat(1000)}\n`.repeat(1000));
});

test('closing the API ends its streams', async (t) => {
  const { send, server, state } = await api(t);
  const response = await send('/containerLogs/shop/web/app?follow=true');
  response.on('error', () => {});
  await server.close();
  await new Promise((resolve) => response.once('close', resolve));
  await settles(() => state.exits.size === 0);
});

test('a self-signed certificate names the node, and is kept over a restart', async (t) => {
  const first = await api(t);
  const peer = (port: number) =>
    new Promise<X509Certificate>((resolve, reject) => {
      const sent = request(
        { host: '127.0.0.1', port, path: '/healthz', agent: false, rejectUnauthorized: false },
        (response) => {
          response.resume();
          resolve((response.socket as import('node:tls').TLSSocket).getPeerX509Certificate()!);
        },
      );
      sent.on('error', reject);
      sent.end();
    });
  const shown = await peer(first.server.port);
  assert.equal(shown.checkHost('edge-1'), 'edge-1');
  assert.ok(shown.checkIP('127.0.0.1'));
  // It can be pinned.
  assert.equal(
    (await first.get('/healthz', { rejectUnauthorized: true, ca: shown.toString(), servername: 'localhost' }))
      .status,
    200,
  );
  const second = await api(t, {
    tls: { selfSignedFolder: join(first.root, 'pki'), names: ['edge-1', 'localhost'], ips: ['127.0.0.1'] },
  });
  assert.equal((await peer(second.server.port)).fingerprint256, shown.fingerprint256);
});

test('configured certificates, and an authority, that change while it runs are taken up', async (t) => {
  const files = mkdtempSync(join(folder, 'tls-'));
  const paths = { certFile: join(files, 'tls.crt'), keyFile: join(files, 'tls.key') };
  const put = (name: string, content: Buffer) => {
    writeFileSync(join(files, `.${name}`), content);
    renameSync(join(files, `.${name}`), join(files, name));
  };
  const one = good.issue('/CN=one', 'serverAuth');
  put('tls.crt', one.cert);
  put('tls.key', one.key);
  put('ca.crt', readFileSync(good.cert));
  const { get, server } = await api(t, {
    tls: { ...paths, selfSignedFolder: join(files, 'unused'), names: [], ips: [] },
    clientCaFile: join(files, 'ca.crt'),
  });
  const trusted = { rejectUnauthorized: true, ca: readFileSync(good.cert), servername: 'localhost' };
  assert.equal((await get('/pods', trusted)).status, 200);
  const kept = new Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => kept.destroy());
  assert.equal((await get('/pods', { agent: kept })).status, 200);
  const name = () =>
    new Promise<string>((resolve, reject) => {
      const sent = request(
        {
          host: '127.0.0.1',
          port: server.port,
          path: '/healthz',
          agent: new Agent({ maxCachedSessions: 0 }),
          rejectUnauthorized: false,
        },
        (response) => {
          response.resume();
          resolve(String((response.socket as import('node:tls').TLSSocket).getPeerCertificate().subject.CN));
        },
      );
      sent.on('error', reject);
      sent.end();
    });
  assert.equal(await name(), 'one');
  const two = good.issue('/CN=two', 'serverAuth');
  put('tls.crt', two.cert);
  put('tls.key', two.key);
  put('ca.crt', readFileSync(bad.cert));
  while ((await name()) !== 'two') await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal((await get('/pods', trusted)).status, 401);
  const again = await get('/pods', { agent: kept }).catch(() => undefined);
  assert.notEqual(again?.status, 200, 'a connection outlived the authority that it was verified with');
  const foreign = bad.issue('/CN=new-apiserver');
  assert.equal((await get('/pods', { cert: foreign.cert, key: foreign.key })).status, 200);
});

test('certificates that cannot be used, and a port that is taken, are said', async (t) => {
  const garbage = join(folder, 'garbage.pem');
  writeFileSync(garbage, 'no certificate');
  const tls = { certFile: garbage, keyFile: garbage, selfSignedFolder: folder, names: [], ips: [] };
  await assert.rejects(
    api(t, { tls }),
    (error) => isError(error, 'CONFIG_INVALID') && /tlsCertFile/.test(error.hint ?? ''),
  );
  await assert.rejects(
    api(t, { clientCaFile: join(folder, 'missing.crt') }),
    (error) => isError(error, 'CONFIG_INVALID') && /clientCAFile.*missing\.crt/.test(error.message),
  );
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
  t.after(() => other.close());
  const { port } = other.address() as import('node:net').AddressInfo;
  await assert.rejects(
    api(t, { port }),
    (error) => isError(error, 'UNAVAILABLE') && error.message.includes(String(port)),
  );
});

test('bytes that are no TLS and no HTTP do not disturb others', async (t) => {
  const { get, server } = await api(t);
  const { connect } = await import('node:net');
  await Promise.all(
    Array.from({ length: 20 }, (_, index) => {
      const socket = connect(server.port, '127.0.0.1');
      socket.on('error', () => {});
      socket.end(Buffer.alloc(index * 100, index));
      return new Promise((resolve) => socket.once('close', resolve));
    }),
  );
  assert.equal((await get('/healthz')).status, 200);
});

test('the plain health check', async (t) => {
  let ok = true;
  const server = await startHealthz({
    address: '127.0.0.1',
    port: 0,
    healthy: () => ({ ok, message: 'lagging' }),
  });
  t.after(() => server.close());
  const get = (path: string, method = 'GET') =>
    new Promise<string>((resolve, reject) => {
      const sent = httpRequest(
        { host: '127.0.0.1', port: server.port, path, method, agent: false },
        (response) => {
          let body = '';
          response.on('data', (chunk) => {
            body += chunk;
          });
          response.on('end', () => resolve(`${response.statusCode} ${body}`));
        },
      );
      sent.on('error', reject);
      sent.end();
    });
  assert.equal(await get('/healthz'), '200 ok');
  ok = false;
  assert.equal(await get('/healthz'), '500 healthz check failed: lagging\n');
  assert.equal(await get('/healthz/ping'), '200 ok');
  assert.equal(await get('/pods'), '404 404 page not found\n');
  assert.equal(await get('/healthz', 'POST'), '405 ');
});
