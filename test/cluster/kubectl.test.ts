/** What people do with kubectl in pods, through the real apiserver: logs, exec, attach, port-forward, cp; and who may not. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { test } from 'node:test';
import type { Node } from 'kubernetes-types/core/v1.js';
import { exec } from '../../runtime/host/exec.ts';
import { clusterPrograms } from '../peers/binaries.ts';
import { freePorts } from '../peers/process.ts';
import { isReady, makePod, type Stage, setStage, skip, webServer } from './stage.ts';

const namespace = 'kubectl';

/** kubectl's own switches; the apiserver and the node follow. */
const transports = {
  WebSocket: {},
  SPDY: { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: 'false', KUBECTL_PORT_FORWARD_WEBSOCKETS: 'false' },
} as const;
type Env = Readonly<Record<string, string>>;

test('kubectl', { skip }, async (t) => {
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  await stage.cluster.apply(
    makePod(namespace, 'web', {
      volumes: [{ name: 'data', emptyDir: {} }],
      initContainers: [{ name: 'prepare', image: stage.images.one, command: ['echo', 'prepared'] }],
      containers: [
        { ...webServer(stage.images.one), volumeMounts: [{ name: 'data', mountPath: '/data' }] },
        {
          name: 'echo',
          image: stage.images.one,
          command: [
            'sh',
            '-c',
            'echo ready; while read line; do echo "got $line"; echo "no $line" >&2; done',
          ],
          stdin: true,
        },
        { name: 'shell', image: stage.images.one, command: ['sh'], stdin: true, tty: true },
      ],
    }),
  );
  await stage.pod(namespace, 'web', isReady);
  await t.test('the node declares that it takes WebSockets', async () => {
    const node = await stage.cluster.read<Node & { status: { declaredFeatures?: string[] } }>(
      `/api/v1/nodes/${stage.node.name}`,
    );
    assert.ok(node!.status.declaredFeatures?.includes('ExtendWebSocketsToKubelet'));
  });
  await t.test('logs with all flags', () => logs(stage));
  for (const [name, env] of Object.entries(transports)) {
    await t.test(`exec over ${name}`, () => execs(stage, env));
    await t.test(`exec carries much and keeps little over ${name}`, () => much(stage, env));
    await t.test(`attach over ${name}`, () => attach(stage, env));
    await t.test(`port-forward over ${name}`, () => forward(stage, env));
    await t.test(`cp over ${name}`, () => copy(stage, env));
    await t.test(`what came over ${name} has reached the node as such`, () => translated(stage));
  }
  await t.test('who may, and what is wrong, on the API itself', () => direct(stage));
  await t.test('configuration, running pods, system logs', () => tells(stage));
  await t.test('nothing is left on the node', async () => {
    await stage.cluster.kubectl(['-n', namespace, 'delete', 'pod', '--all', '--wait', '--timeout=60s'], {
      deadlineMs: 70_000,
    });
    await stage.node.tracesBecome(nothing);
  });
});

async function logs(stage: Stage): Promise<void> {
  const { cluster, images } = stage;
  const script = [
    'for i in 1 2 3 4 5; do echo out $i; done; echo err >&2; sleep 3; echo late',
    'if [ -e /state/once ]; then sleep 1000; fi; touch /state/once; exit 3',
  ].join('; ');
  await cluster.apply(
    makePod(namespace, 'logs', {
      volumes: [{ name: 'state', emptyDir: {} }],
      initContainers: [{ name: 'first', image: images.one, command: ['echo', 'initialized'] }],
      containers: [
        {
          name: 'main',
          image: images.one,
          command: ['sh', '-c', script],
          volumeMounts: [{ name: 'state', mountPath: '/state' }],
        },
        { name: 'other', image: images.one, command: ['sh', '-c', 'echo other; sleep 1000'] },
      ],
    }),
  );
  const read = (...args: string[]) => cluster.kubectl(['-n', namespace, 'logs', 'logs', ...args]);
  await stage.pod(
    namespace,
    'logs',
    ({ status }) => status?.containerStatuses?.find(({ name }) => name === 'main')?.restartCount === 1,
  );
  // The second run is followed until it has said all.
  const following = cluster.follow(['-n', namespace, 'logs', 'logs', '-c', 'main', '-f']);
  for await (const line of createInterface(following.stdout)) if (line === 'late') break;
  following.stop();
  await following.ended;
  const whole = await read('-c', 'main');
  assert.deepEqual(whole.split('\n').sort(), [
    '',
    'err',
    'late',
    'out 1',
    'out 2',
    'out 3',
    'out 4',
    'out 5',
  ]);
  assert.equal(await read('-c', 'main', '--tail=1'), 'late\n');
  assert.equal(await read('-c', 'main', '--tail=0'), '');
  assert.equal(await read('-c', 'main', '--limit-bytes=5'), whole.slice(0, 5));
  assert.equal(await read('-c', 'main', '--since=1h'), whole);
  const stamped = (await read('-c', 'main', '--timestamps')).trimEnd().split('\n');
  for (const line of stamped)
    assert.match(line, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (out \d|err|late)$/);
  const late = stamped.at(-1)!.split(' ')[0]!;
  // The apiserver passes whole seconds on.
  const since = `${late.slice(0, 19)}Z`;
  assert.equal(await read('-c', 'main', `--since-time=${since}`), 'late\n');
  assert.match(await read('-c', 'main', '--previous'), /^out 1\n[\s\S]*late\n$/);
  assert.equal(await read('-c', 'first'), 'initialized\n');
  const all = (await read('--all-containers', '--prefix')).trimEnd().split('\n');
  assert.ok(all.includes('[pod/logs/other] other'));
  assert.ok(all.includes('[pod/logs/first] initialized'));
  // The apiserver passes `stream` on only with a feature that it has switched off: the node's own API has it.
  const as = { cert: cluster.kubeletClient.cert, key: cluster.kubeletClient.key };
  const raw = async (query: string) =>
    (await ask(stage, `/containerLogs/${namespace}/logs/main?${query}`, { as })).body;
  assert.equal(await raw('stream=Stderr'), 'err\n');
  assert.doesNotMatch(await raw('stream=Stdout'), /err/);
  assert.equal(await raw('stream=All'), whole);
  const refused = await cluster.tryKubectl(['-n', namespace, 'logs', 'logs', '-c', 'first', '--previous']);
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /previous terminated container "first" in pod "logs" not found/);
}

async function execs(stage: Stage, env: Env): Promise<void> {
  const { cluster } = stage;
  const run = (args: readonly string[], options = {}) =>
    cluster.tryKubectl(['-n', namespace, 'exec', ...args], { env, maxOutput: 64 << 20, ...options });
  const both = await run(['web', '-c', 'web', '--', 'sh', '-c', 'echo out; echo err >&2; exit 7']);
  assert.deepEqual([both.code, both.stdout.toString()], [7, 'out\n']);
  assert.match(both.stderr, /^err\ncommand terminated with exit code 7\n$/);
  assert.equal((await run(['web', '-c', 'web', '--', 'true'])).code, 0);
  assert.equal((await run(['web', '-c', 'web', '--', 'sh', '-c', 'kill -9 $$'])).code, 137);
  const input = randomBytes(8 << 20);
  const cat = await run(['-i', 'web', '-c', 'web', '--', 'cat'], { input });
  assert.equal(cat.code, 0);
  assert.equal(sha(cat.stdout), sha(input));
  const terminal = await inTerminal(
    stage,
    [
      'exec',
      '-it',
      'web',
      '-c',
      'web',
      '--',
      'sh',
      '-c',
      'stty size; tty; read line; echo "<$line>"; exit 5',
    ],
    env,
    'hello\n',
  );
  assert.equal(terminal.code, 5);
  assert.match(terminal.stdout.toString(), /\d+ \d+\r\n\/dev\/pts\/\d+\r\n[\s\S]*<hello>\r\n/);
  const missing = await run(['web', '-c', 'web', '--', 'no-such-program']);
  assert.notEqual(missing.code, 0);
  assert.match(missing.stderr, /no-such-program/);
  const ended = await run(['web', '-c', 'prepare', '--', 'true']);
  assert.equal(ended.code, 1);
  assert.match(ended.stderr, /container not found \("prepare"\)/);
}

/** The command under a terminal of script(1). */
async function inTerminal({ cluster }: Stage, args: readonly string[], env: Env, input: string) {
  const programs = await clusterPrograms();
  assert.ok(!('missing' in programs));
  const command = [programs.kubectl, '-n', namespace, ...args].map((arg) => `'${arg}'`).join(' ');
  return exec('script', ['-qefc', `stty rows 33 cols 90; ${command}`, '/dev/null'], {
    input,
    deadlineMs: 60_000,
    okCodes: 'any',
    env: {
      ...env,
      PATH: process.env['PATH']!,
      HOME: cluster.folder,
      KUBECONFIG: cluster.adminKubeconfig,
      TERM: 'xterm',
      SHELL: '/bin/sh',
    },
  });
}

async function much(stage: Stage, env: Env): Promise<void> {
  const { cluster, node } = stage;
  const bytes = 200_000_000;
  const programs = await clusterPrograms();
  assert.ok(!('missing' in programs));
  // From here on counts what it takes at most.
  await writeFile(`/proc/${node.agent.pid}/clear_refs`, '5');
  const peak = async () =>
    Number(/VmHWM:\s+(\d+) kB/.exec(await readFile(`/proc/${node.agent.pid}/status`, 'utf8'))![1]) * 1024;
  const before = await peak();
  const command = `head -c ${bytes} /dev/zero | ${programs.kubectl} -n ${namespace} exec -i web -c web -- cat | wc -c`;
  const { stdout } = await exec('sh', ['-c', command], {
    deadlineMs: 120_000,
    env: { ...env, PATH: process.env['PATH']!, HOME: cluster.folder, KUBECONFIG: cluster.adminKubeconfig },
  });
  assert.equal(Number(stdout.toString()), bytes);
  const grown = (await peak()) - before;
  assert.ok(grown < 100 << 20, `grew by ${grown >> 20} MiB`);
}

async function attach(stage: Stage, env: Env): Promise<void> {
  const { cluster } = stage;
  const word = randomBytes(4).toString('hex');
  const programs = await clusterPrograms();
  assert.ok(!('missing' in programs));
  const child = spawn(programs.kubectl, ['-n', namespace, 'attach', '-i', 'web', '-c', 'echo'], {
    env: { ...env, PATH: process.env['PATH']!, HOME: cluster.folder, KUBECONFIG: cluster.adminKubeconfig },
  });
  try {
    child.stdin.write(`${word}\n`);
    const says = async (stream: Readable, wanted: string) => {
      for await (const line of createInterface(stream)) if (line === wanted) return;
      assert.fail(`attach ended without ${wanted}`);
    };
    const late = setTimeout(() => child.kill('SIGKILL'), 30_000);
    await Promise.all([says(child.stdout, `got ${word}`), says(child.stderr, `no ${word}`)]);
    clearTimeout(late);
  } finally {
    child.kill('SIGKILL');
  }
  // Ctrl-P Ctrl-Q is not kubectl's; the shell's own end is the end of the attachment.
  const terminal = await inTerminal(
    stage,
    ['attach', '-it', 'web', '-c', 'shell'],
    env,
    `echo a${word}b; exit\n`,
  );
  assert.match(terminal.stdout.toString(), new RegExp(`a${word}b\\r\\n`));
}

async function forward(stage: Stage, env: Env): Promise<void> {
  const { cluster } = stage;
  const programs = await clusterPrograms();
  assert.ok(!('missing' in programs));
  const [local, refused] = (await freePorts(2)) as [number, number];
  const child = spawn(
    programs.kubectl,
    ['-n', namespace, 'port-forward', 'pod/web', `${local}:8080`, `${refused}:81`],
    {
      env: { ...env, PATH: process.env['PATH']!, HOME: cluster.folder, KUBECONFIG: cluster.adminKubeconfig },
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  );
  try {
    let said = '';
    child.stderr.on('data', (chunk) => {
      said += chunk;
    });
    let lines = 0;
    for await (const line of createInterface(child.stdout)) {
      if (/^Forwarding from 127\.0\.0\.1/.test(line) && ++lines === 2) break;
    }
    assert.equal(lines, 2, said);
    const page = async () => {
      const response = await fetch(`http://127.0.0.1:${local}/index.html`, {
        headers: { connection: 'close' },
        signal: AbortSignal.timeout(20_000),
      });
      return (await response.text()).trim();
    };
    assert.deepEqual(await Promise.all(Array.from({ length: 10 }, page)), Array(10).fill('one'));
    // A refused port ends its own connection with a word on why. kubectl gives the session up then.
    await assert.rejects(fetch(`http://127.0.0.1:${refused}/`, { signal: AbortSignal.timeout(20_000) }));
    if (!/nobody listens/.test(said))
      await once(child.stderr, 'data', { signal: AbortSignal.timeout(20_000) });
    assert.match(said, /error forwarding port 81 to pod \w+: .*nobody listens on port 81/);
  } finally {
    child.kill('SIGKILL');
  }
}

/** The apiserver counts the WebSockets that it turned into SPDY for a node that does not take them. */
async function translated({ cluster }: Stage): Promise<void> {
  const metrics = await cluster.kubectl(['get', '--raw', '/metrics']);
  const counted = metrics
    .split('\n')
    .filter((line) => /^apiserver_stream_(translator|tunnel)_requests_total\{.* [1-9]/.test(line));
  assert.deepEqual(counted, []);
}

async function copy(stage: Stage, env: Env): Promise<void> {
  const { cluster } = stage;
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-cp-'));
  try {
    const content = randomBytes(3 << 20);
    await mkdir(join(folder, 'in/sub'), { recursive: true });
    await writeFile(join(folder, 'in/sub/data'), content);
    await writeFile(join(folder, 'in/with space'), 'x');
    const cp = (from: string, to: string) =>
      cluster.kubectl(['-n', namespace, 'cp', '-c', 'web', from, to], { env });
    await cluster.kubectl(['-n', namespace, 'exec', 'web', '-c', 'web', '--', 'rm', '-rf', '/copied'], {
      env,
    });
    await cp(join(folder, 'in'), 'web:/copied');
    await cp('web:/copied', join(folder, 'out'));
    assert.equal(sha(await readFile(join(folder, 'out/sub/data'))), sha(content));
    assert.equal(await readFile(join(folder, 'out/with space'), 'utf8'), 'x');
  } finally {
    await rm(folder, { recursive: true });
  }
}

const sha = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

/** A request to the node's API. */
async function ask(
  { node }: Stage,
  path: string,
  options: {
    readonly as?: { readonly cert: string; readonly key: string };
    readonly method?: string;
    readonly headers?: Readonly<Record<string, string>>;
  } = {},
): Promise<{ readonly status: number; readonly body: string; readonly upgraded: boolean }> {
  const pair = options.as && {
    cert: await readFile(options.as.cert),
    key: await readFile(options.as.key),
  };
  return new Promise((resolve, reject) => {
    const sent = request({
      ...pair,
      host: '127.0.0.1',
      port: node.ports.api,
      path,
      method: options.method ?? 'GET',
      headers: options.headers,
      rejectUnauthorized: false,
      agent: false,
      timeout: 30_000,
    });
    sent.on('timeout', () => sent.destroy(new Error(`no answer to ${path}`)));
    sent.on('error', reject);
    sent.on('upgrade', (response, socket) => {
      socket.destroy();
      resolve({ status: response.statusCode!, body: '', upgraded: true });
    });
    sent.on('response', async (response) => {
      let body = '';
      for await (const chunk of response) body += chunk;
      resolve({ status: response.statusCode!, body, upgraded: false });
    });
    sent.end();
  });
}

const webSocket = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
  'sec-websocket-protocol': 'v5.channel.k8s.io',
};
const spdy = {
  connection: 'Upgrade',
  upgrade: 'SPDY/3.1',
  'x-stream-protocol-version': 'v4.channel.k8s.io',
};

async function direct(stage: Stage): Promise<void> {
  const { cluster } = stage;
  const rule = (name: string, verbs: string[], resources: string[]) => ({
    apiVersion: 'rbac.authorization.k8s.io/v1',
    kind: 'ClusterRole',
    metadata: { name },
    rules: [{ apiGroups: [''], resources, verbs }],
  });
  const bind = (role: string, subject: object) => ({
    apiVersion: 'rbac.authorization.k8s.io/v1',
    kind: 'ClusterRoleBinding',
    metadata: { name: role },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: role },
    subjects: [subject],
  });
  const user = (name: string) => ({ apiGroup: 'rbac.authorization.k8s.io', kind: 'User', name });
  await cluster.apply(
    rule('reader', ['get'], ['nodes/proxy', 'nodes/stats', 'nodes/metrics', 'nodes/log']),
    bind('reader', user('reader')),
    rule('runner', ['create'], ['nodes/proxy']),
    bind('runner', { kind: 'ServiceAccount', name: 'default', namespace }),
    rule('healthy', ['get'], ['nodes/healthz']),
    bind('healthy', user('healthy')),
  );
  const pairOf = async (name: string) => {
    await cluster.makeKubeconfig(name);
    return { cert: join(cluster.folder, `${name}.crt`), key: join(cluster.folder, `${name}.key`) };
  };
  const [reader, healthy] = [await pairOf('reader'), await pairOf('healthy')];
  const command = `/exec/${namespace}/web/web?command=true&output=1`;
  // Whoever may only read gets logs, and no shell, whatever the method and the protocol.
  assert.equal(
    (await ask(stage, `/containerLogs/${namespace}/web/prepare`, { as: reader })).body,
    'prepared\n',
  );
  for (const headers of [webSocket, spdy]) {
    for (const method of ['GET', 'POST']) {
      for (const path of [
        command,
        `/attach/${namespace}/web/echo?output=1`,
        `/portForward/${namespace}/web?port=8080`,
      ]) {
        const { status, body } = await ask(stage, path, { as: reader, headers, method });
        assert.equal(status, 403, `${method} ${path}`);
        assert.match(body, /verb=create, resource=nodes, subresource\(s\)=\[proxy\]/);
      }
    }
  }
  assert.equal(
    (await ask(stage, `/run/${namespace}/web/web?cmd=true`, { as: reader, method: 'POST' })).status,
    403,
  );
  // Fine-grained: the own subresource is enough, and for nothing else.
  assert.equal((await ask(stage, '/healthz', { as: healthy })).body, 'ok');
  assert.equal((await ask(stage, '/pods', { as: healthy })).status, 403);
  assert.equal((await ask(stage, '/configz', { as: healthy })).status, 403);
  assert.equal((await ask(stage, '/pods', { as: reader })).status, 200);
  assert.equal((await ask(stage, '/pods')).status, 401);
  assert.equal((await ask(stage, command, { headers: webSocket })).status, 401);

  // A token of a service account that may create.
  const token = (await cluster.kubectl(['-n', namespace, 'create', 'token', 'default'])).trim();
  const bearer = { authorization: `Bearer ${token}` };
  const as = (path: string, headers: Readonly<Record<string, string>>, method = 'POST') =>
    ask(stage, path, { method, headers: { ...bearer, ...headers } });
  assert.equal((await as(command, webSocket, 'GET')).status, 101);
  assert.equal((await as(command, spdy)).status, 101);
  const uid = (await stage.pod(namespace, 'web', () => true)).metadata!.uid!;
  assert.equal((await as(`/exec/${namespace}/web/${uid}/web?command=true&output=1`, spdy)).status, 101);
  assert.equal((await as(`/portForward/${namespace}/web/${uid}`, spdy)).status, 403, 'no such protocol');
  const forwarding = { ...spdy, 'x-stream-protocol-version': 'portforward.k8s.io' };
  assert.equal((await as(`/portForward/${namespace}/web/${uid}`, forwarding)).status, 101);
  const ran = await as(`/run/${namespace}/web/web?cmd=echo%20ran`, {});
  assert.deepEqual([ran.status, ran.body], [200, 'ran\n']);
  assert.equal((await as(`/run/${namespace}/web/web?cmd=false`, {})).status, 500);
  const wrong: readonly (readonly [string, Readonly<Record<string, string>>, number, RegExp])[] = [
    [`/exec/${namespace}/none/web?command=true&output=1`, spdy, 404, /^pod does not exist$/],
    [`/exec/${namespace}/web/none?command=true&output=1`, spdy, 400, /^container not found \("none"\)$/],
    [
      `/exec/${namespace}/web/other-uid/web?command=true&output=1`,
      spdy,
      400,
      /^container not found \("web"\)$/,
    ],
    [`/exec/${namespace}/web/web?command=true`, spdy, 400, /at least 1 of stdin, stdout, stderr/],
    [`/exec/${namespace}/web/web?output=1`, spdy, 400, /command/],
    [command, {}, 400, /^Upgrade request required$/],
    [`/attach/${namespace}/web/none?output=1`, webSocket, 400, /container none not found in pod web_kubectl/],
    [`/portForward/${namespace}/web/other-uid`, forwarding, 404, /^pod not found$/],
    [`/portForward/${namespace}/none`, forwarding, 404, /^pod does not exist$/],
    [`/portForward/${namespace}/web`, webSocket, 400, /query parameter "port" is required/],
  ];
  for (const [path, headers, status, message] of wrong) {
    const answer = await as(path, headers, headers === webSocket ? 'GET' : 'POST');
    assert.equal(answer.status, status, `${path}: ${answer.body}`);
    assert.match(answer.body, message, path);
  }
}

async function tells(stage: Stage): Promise<void> {
  const { cluster, node } = stage;
  const proxied = (path: string) =>
    cluster.kubectl(['get', '--raw', `/api/v1/nodes/${node.name}/proxy/${path}`]);
  const { kubeletconfig } = JSON.parse(await proxied('configz')) as {
    kubeletconfig: Record<string, unknown>;
  };
  assert.equal(kubeletconfig['kind'], 'KubeletConfiguration');
  assert.equal(kubeletconfig['streamingConnectionIdleTimeout'], '4h0m0s');
  assert.equal(kubeletconfig['keelson'], undefined);
  const running = JSON.parse(await proxied('runningpods/')) as {
    items: { metadata: { name: string }; spec: { containers: { name: string }[] } }[];
  };
  const web = running.items.find(({ metadata }) => metadata.name === 'web');
  assert.ok(web?.spec.containers.some(({ name }) => name === 'echo'));
  assert.match(await proxied('logs/'), /<pre>\n/);

  await cluster.kubectl([
    ...['-n', namespace, 'exec', 'web', '-c', 'web', '--', 'sh', '-c'],
    'head -c 3000000 /dev/zero > /data/file',
  ]);
  type Fs = { usedBytes: number; capacityBytes: number; availableBytes: number; inodesUsed: number };
  interface Usage {
    cpu: { usageCoreNanoSeconds: number; time: string };
    memory: { workingSetBytes: number };
  }
  const summary = JSON.parse(await proxied('stats/summary')) as {
    node: Usage & { nodeName: string; fs: Fs; runtime: { imageFs: Fs }; rlimit: { curproc: number } };
    pods: (Usage & {
      podRef: { name: string; namespace: string; uid: string };
      network: { name: string; rxBytes: number };
      containers: (Usage & { name: string; rootfs: Fs; logs: Fs })[];
      volume: (Fs & { name: string })[];
      'ephemeral-storage': Fs;
    })[];
  };
  assert.equal(summary.node.nodeName, node.name);
  for (const fs of [summary.node.fs, summary.node.runtime.imageFs]) {
    assert.ok(fs.usedBytes > 0 && fs.usedBytes + fs.availableBytes <= fs.capacityBytes);
  }
  assert.ok(summary.node.rlimit.curproc > 10);
  const used = summary.pods.find(({ podRef }) => podRef.name === 'web' && podRef.namespace === namespace)!;
  assert.deepEqual([used.network.name, used.network.rxBytes > 0], ['eth0', true]);
  // The shell has ended with its attachment, and may be about to be started again.
  const others = used.containers.map(({ name }) => name).filter((name) => name !== 'shell');
  assert.deepEqual(others.sort(), ['echo', 'web']);
  for (const one of [summary.node, used, ...used.containers]) {
    assert.ok(one.cpu.usageCoreNanoSeconds > 0);
    assert.ok(one.memory.workingSetBytes > 0);
    assert.ok(Math.abs(Date.parse(one.cpu.time) - Date.now()) < 60_000);
  }
  const echo = used.containers.find(({ name }) => name === 'echo')!;
  assert.ok(echo.logs.usedBytes > 0 && echo.rootfs.inodesUsed >= 0);
  const data = used.volume.find(({ name }) => name === 'data')!;
  assert.ok(data.usedBytes >= 3_000_000 && data.usedBytes < 4_000_000, String(data.usedBytes));
  assert.ok(used['ephemeral-storage'].usedBytes >= data.usedBytes + echo.logs.usedBytes);
  const brief = JSON.parse(await proxied('stats/summary?only_cpu_and_memory=true')) as typeof summary;
  assert.equal(brief.node.fs, undefined);
  assert.ok(brief.pods.every(({ volume, memory }) => volume === undefined && memory !== undefined));

  const about = `pod="web",namespace="${namespace}"`;
  const resource = await proxied('metrics/resource');
  assert.match(resource, /^node_cpu_usage_seconds_total [\d.]+ \d{13}$/m);
  assert.match(resource, /^resource_scrape_error 0$/m);
  for (const name of ['cpu_usage_seconds_total', 'memory_working_set_bytes']) {
    assert.match(
      resource,
      new RegExp(`^container_${name}\\{container="echo",${about}\\} [\\d.]+ \\d{13}$`, 'm'),
    );
    assert.match(resource, new RegExp(`^pod_${name}\\{${about}\\} [\\d.]+ \\d{13}$`, 'm'));
  }
  const cadvisor = await proxied('metrics/cadvisor');
  assert.match(
    cadvisor,
    /^container_memory_working_set_bytes\{container="echo",.*pod="web".*\} \d+ \d{13}$/m,
  );
  assert.match(cadvisor, /^machine_cpu_cores \d+$/m);
}
