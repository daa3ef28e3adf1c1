/** The agent on containerd: static pods and an apiserver's, both restarted in the middle, nothing left at the end. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { request } from 'node:https';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Node, Pod } from 'kubernetes-types/core/v1.js';
import { WebSocket } from 'ws';
import { makeCriClient } from '../../runtime/cri/client.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { exec } from '../../runtime/host/exec.ts';
import { listFolder } from '../../runtime/host/files.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { type DevApiserver, startDevApiserver } from '../peers/apiserver.ts';
import { type ContainerdService, findContainerd, prepareContainerd } from '../peers/containerd-service.ts';
import { busyboxImage, pauseImage, pushImage } from '../peers/image.ts';
import { startNode, type TestNode } from '../peers/node.ts';
import { waitFor } from '../peers/process.ts';
import { hasRegistry, startRegistry } from '../peers/registry.ts';

const programs = await findContainerd();
const skip =
  process.getuid?.() !== 0
    ? 'needs root'
    : 'missing' in programs
      ? programs.missing
      : hasRegistry()
        ? false
        : 'docker-registry is missing';

interface Stage {
  readonly node: TestNode;
  readonly apiserver: DevApiserver;
  readonly containerd: ContainerdService;
  readonly image: string;
}

async function setStage(t: TestContext): Promise<Stage> {
  assert.ok(!('missing' in programs));
  const registry = await startRegistry(t);
  const image = `${registry.host}/test/web:1`;
  const pause = `${registry.host}/test/pause:1`;
  await pushImage(registry.host, 'test/web:1', busyboxImage({ page: 'of containerd\n' }));
  await pushImage(registry.host, 'test/pause:1', pauseImage());
  const apiserver = await startDevApiserver();
  t.after(() => apiserver.close());
  const node = await startNode({
    start: false,
    kubeconfig: async ({ folder }) => {
      const file = join(folder, 'kubeconfig');
      const kubeconfig = {
        apiVersion: 'v1',
        kind: 'Config',
        clusters: [{ name: 'test', cluster: { server: apiserver.url } }],
        users: [{ name: 'node', user: {} }],
        contexts: [{ name: 'test', context: { cluster: 'test', user: 'node' } }],
        'current-context': 'test',
      };
      await writeFile(file, JSON.stringify(kubeconfig), { mode: 0o600 });
      return file;
    },
    config: {
      nodeStatusUpdateFrequency: '1s',
      authentication: { anonymous: { enabled: true } },
      authorization: { mode: 'AlwaysAllow' },
    },
  });
  const containerd = await prepareContainerd(programs, {
    folder: join(node.paths.folder, 'c'),
    cniConfDir: node.paths.cniConfDir,
    sandboxImage: pause,
  });
  t.after(async () => {
    if (!t.passed) {
      t.diagnostic(`the end of the agent's log:\n${await node.log(60000).catch(String)}`);
      t.diagnostic(`the end of containerd's log:\n${await containerd.daemon.tail(4000)}`);
    }
    await node.cleanup();
    await containerd.forgetNetworks();
  });
  return { node, apiserver, containerd, image };
}

const makePod = (name: string, spec: Pod['spec']): Pod => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name, namespace: 'default' },
  spec,
});

const isReady = ({ status }: Pod | Node) =>
  (status?.conditions as { type: string; status: string }[] | undefined)?.some(
    ({ type, status: value }) => type === 'Ready' && value === 'True',
  ) ?? false;

const idsOf = (pod: Pod) =>
  pod.status?.containerStatuses?.map(
    ({ name, containerID, restartCount }) => `${name} ${containerID} ${restartCount}`,
  );

test('the agent runs pods on containerd', { skip, timeout: 300_000 }, async (t) => {
  const { node, apiserver, containerd, image } = await setStage(t);
  const url = (path: string) => `${apiserver.url}/api/v1/${path}`;
  const pods = url('namespaces/default/pods');
  const read = async <T>(path: string) => {
    const response = await fetch(path);
    return response.ok ? ((await response.json()) as T) : undefined;
  };
  const until = <T>(what: string, probe: () => Promise<T | undefined>) =>
    waitFor(what, probe, { deadlineMs: 60_000, everyMs: 50, daemon: node.agent });
  const create = async (pod: Pod) => {
    const spec = { ...pod.spec, nodeName: node.name };
    const response = await fetch(pods, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...pod, spec }),
    });
    assert.ok(response.ok, await response.text());
  };
  const pod = (name: string, wanted: (pod: Pod) => boolean) =>
    until(`the pod ${name}`, async () => {
      const found = await read<Pod>(`${pods}/${name}`);
      return found !== undefined && wanted(found) ? found : undefined;
    });
  const ready = (wanted: boolean) =>
    until(`the node to be ${wanted ? '' : 'not '}ready`, async () => {
      const found = await read<Node>(url(`nodes/${node.name}`));
      return found !== undefined && isReady(found) === wanted ? found : undefined;
    });
  /** What is on the machine besides containerd itself. */
  const traces = async () =>
    (await node.traces()).filter((line) => !line.includes('bin/containerd --config'));

  await writeFile(
    join(node.paths.staticPodPath, 'clock.json'),
    JSON.stringify(
      makePod('clock', {
        terminationGracePeriodSeconds: 1,
        containers: [{ name: 'clock', image, command: ['sh', '-c', 'echo tick; exec sleep 3600'] }],
      }),
    ),
  );
  // The flag goes over the file, and the agent may come first.
  await node.start(['--container-runtime-endpoint', containerd.endpoint]);
  await until('the agent to wait for containerd', async () =>
    (await node.log()).includes('does not answer yet') ? true : undefined,
  );
  await containerd.start();
  const { status } = await ready(true);
  assert.ok(status!.nodeInfo!.containerRuntimeVersion.startsWith(`containerd://${containerd.version}`));
  assert.ok(!(await listFolder(node.paths.stateDir)).includes('state.db'), 'the own state is not opened');

  await until('the static pod to log', async () => {
    const [folder] = (await listFolder(node.paths.podLogsDir)).filter((name) => name.includes('clock'));
    const text = folder && (await readFile(join(node.paths.podLogsDir, folder, 'clock/0.log'), 'utf8'));
    return text && /^\S+ stdout F tick$/m.test(text) ? true : undefined;
  });
  await create(
    makePod('web', {
      terminationGracePeriodSeconds: 2,
      containers: [
        {
          name: 'server',
          image,
          command: ['httpd', '-f', '-v', '-p', '8080', '-h', '/www'],
          env: [{ name: 'IP', valueFrom: { fieldRef: { fieldPath: 'status.podIP' } } }],
          readinessProbe: { exec: { command: ['sh', '-c', 'test -n "$IP"'] }, periodSeconds: 1 },
          resources: { limits: { memory: '64Mi' } },
        },
        { name: 'idler', image, command: ['sleep', '3600'], securityContext: { runAsUser: 33 } },
      ],
    }),
  );
  const web = await pod('web', isReady);
  const page = await fetch(`http://${web.status!.podIP}:8080/index.html`);
  assert.equal(await page.text(), 'of containerd\n');
  for (const { containerID, imageID } of web.status!.containerStatuses!) {
    assert.match(containerID!, /^containerd:\/\/[0-9a-f]{64}$/);
    assert.match(imageID, /@sha256:[0-9a-f]{64}$/);
  }

  await streams(node, 'default/web');

  await create(
    makePod('crasher', {
      restartPolicy: 'Never',
      containers: [{ name: 'main', image, command: ['sh', '-c', 'exit 3'] }],
    }),
  );
  const crashed = await pod('crasher', ({ status }) => status?.phase === 'Failed');
  const { terminated } = crashed.status!.containerStatuses![0]!.state!;
  assert.deepEqual([terminated?.exitCode, terminated?.reason], [3, 'Error']);

  await create(makePod('lost', { containers: [{ name: 'main', image: image.replace('web', 'none') }] }));
  await pod('lost', ({ status }) => {
    const reason = status?.containerStatuses?.[0]?.state?.waiting?.reason;
    // A containerd that goes while it makes a sandbox forgets the shim of it.
    const hasSandbox = status?.podIP !== undefined;
    return hasSandbox && (reason === 'ErrImagePull' || reason === 'ImagePullBackOff');
  });

  // containerd goes and comes back: the pods have gone on, and the agent is there again.
  const before = idsOf(await pod('web', isReady));
  await containerd.stop();
  await ready(false);
  await containerd.start();
  await ready(true);
  assert.deepEqual(idsOf(await pod('web', isReady)), before);
  // So does the agent, which must know the sandboxes that it made: a container of the pod is started again in one.
  await node.restart9(['--container-runtime-endpoint', containerd.endpoint]);
  const client = makeCriClient({
    endpoint: containerd.endpoint,
    clock: systemClock,
    log: makeLogger('silent'),
  });
  t.after(() => client.close());
  const idler = web.status!.containerStatuses!.find(({ name }) => name === 'idler')!;
  await client.runtime.stopContainer(idler.containerID!.replace('containerd://', ''), 0);
  const again = await pod('web', (found) => isReady(found) && idsOf(found)!.join().includes(' 1'));
  assert.equal(again.status!.podIP, web.status!.podIP, 'in the same sandbox');

  for (const name of ['web', 'crasher', 'lost']) await fetch(`${pods}/${name}`, { method: 'DELETE' });
  await rm(join(node.paths.staticPodPath, 'clock.json'));
  await until('the pods to be gone', async () =>
    (await client.runtime.listPodSandbox()).length + (await client.runtime.listContainers()).length === 0
      ? true
      : undefined,
  );
  let left: string[] = [];
  await waitFor(
    'nothing to be left',
    async () => {
      left = await traces();
      return left.length === 0 ? true : undefined;
    },
    { deadlineMs: 30_000 },
  ).catch((error: unknown) => assert.fail(`left behind:\n${left.join('\n')}\n${String(error)}`));
  assert.ok((await client.images.imageStatus({ image })) !== undefined, 'images stay');
});

const cli = fileURLToPath(new URL('../../agent/cli.ts', import.meta.url));

/** GET. */
function read(url: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const sent = request(url, { rejectUnauthorized: false, agent: false }, (response) => {
      text(response).then(resolve, reject);
    });
    sent.on('error', reject);
    sent.end();
  });
}

/** The command line's verbs, streams among them, reach into containerd. */
async function streams(node: TestNode, pod: string): Promise<void> {
  const run = async (args: readonly string[], input?: Buffer) =>
    exec(process.execPath, [cli, args[0]!, '--config', node.paths.configFile, ...args.slice(1)], {
      input,
      deadlineMs: 60_000,
      okCodes: 'any',
      maxOutput: 32 << 20,
      env: { PATH: process.env['PATH']!, HOME: node.paths.folder },
    });
  const both = await run(['exec', `${pod}/server`, '--', 'sh', '-c', 'echo out; echo err >&2; exit 7']);
  assert.deepEqual([both.code, both.stdout.toString(), both.stderr], [7, 'out\n', 'err\n']);
  const bytes = randomBytes(4 << 20);
  const cat = await run(['exec', '-i', `${pod}/server`, '--', 'cat'], bytes);
  assert.equal(cat.code, 0, cat.stderr);
  assert.ok(cat.stdout.equals(bytes));
  const missing = await run(['exec', `${pod}/server`, '--', 'no-such-program']);
  assert.notEqual(missing.code, 0);
  assert.match(missing.stderr, /no-such-program/);
  const listed = await run(['ps', '--json']);
  assert.match(listed.stdout.toString(), /"name":\s*"server"/);
  const stats = await run(['stats', '--json']);
  assert.equal(stats.code, 0, stats.stderr);
  assert.match(stats.stdout.toString(), /"workingSet":\s*\d+/);
  const inspected = await run(['inspect', `${pod}/server`]);
  assert.equal(inspected.code, 0, inspected.stderr);
  assert.match(inspected.stdout.toString(), /runtimeSpec/);
  const logged = await run(['logs', `${pod}/idler`]);
  assert.deepEqual([logged.code, logged.stdout.toString()], [0, '']);

  // The node's own API, over a WebSocket: what the runtime does not speak is translated.
  const query = 'output=1&error=1&command=sh&command=-c&command=echo+out%3B+exit+3';
  const path = `wss://127.0.0.1:${node.ports.api}/exec/${pod}/server?${query}`;
  const socket = new WebSocket(path, 'v5.channel.k8s.io', { rejectUnauthorized: false });
  const channels = new Map<number, string>();
  socket.on('message', (message: Buffer) => {
    channels.set(message[0]!, (channels.get(message[0]!) ?? '') + message.subarray(1).toString());
  });
  await once(socket, 'close', { signal: AbortSignal.timeout(30_000) });
  assert.equal(channels.get(1), 'out\n');
  assert.match(channels.get(3)!, /"reason":"ExitCode","message":"3"/);
  const summary = JSON.parse(await read(`https://127.0.0.1:${node.ports.api}/stats/summary`)) as {
    pods: { podRef: { name: string }; containers: { name: string; memory: { workingSetBytes: number } }[] }[];
  };
  const web = summary.pods.find(({ podRef }) => podRef.name === 'web');
  assert.ok(web!.containers.every(({ memory }) => memory.workingSetBytes > 0));
  assert.match(
    await read(`https://127.0.0.1:${node.ports.api}/metrics/cadvisor`),
    /^machine_cpu_cores \d+$/m,
  );

  const forwarding = spawn(
    process.execPath,
    [cli, 'port-forward', '--config', node.paths.configFile, '--json', pod, '0:8080'],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  try {
    const [line] = (await once(createInterface(forwarding.stdout), 'line', {
      signal: AbortSignal.timeout(30_000),
    })) as [string];
    const { local } = JSON.parse(line) as { local: number };
    const pages = Array.from({ length: 3 }, async () => {
      const page = await fetch(`http://127.0.0.1:${local}/index.html`, {
        signal: AbortSignal.timeout(30_000),
      });
      return page.text();
    });
    assert.deepEqual(await Promise.all(pages), Array(3).fill('of containerd\n'));
  } finally {
    forwarding.kill('SIGKILL');
  }
}
