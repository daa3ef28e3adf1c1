/**
 * The main job, once, for real: a registry with an image, an apiserver, a node, a pod of two containers and a static
 * pod; a page from the pod's address, the table of pods, the logs, the timeline of the start; and nothing left behind.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { get } from 'node:https';
import { join } from 'node:path';
import type { Pod } from '../agent/apiserver/types.ts';
import { describe } from '../runtime/host/errors.ts';
import { startDevApiserver } from './peers/apiserver.ts';
import { busyboxImage, pushImage } from './peers/image.ts';
import { startNode, type TestNode } from './peers/node.ts';
import { waitFor } from './peers/process.ts';
import { startRegistry } from './peers/registry.ts';

const namespace = 'default';
const started = performance.now();
const undo: (() => Promise<unknown>)[] = [];

function say(text: string): void {
  console.log(`${((performance.now() - started) / 1000).toFixed(2).padStart(7)} s  ${text}`);
}

/** One call to the development apiserver; throws with the answer's message. */
async function call<T>(url: string, method = 'GET', body?: object): Promise<T> {
  const response = await fetch(url, {
    method,
    headers: { 'content-type': 'application/json' },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const answer = (await response.json()) as { message?: string };
  if (!response.ok) throw new Error(`${method} ${url}: ${response.status} ${answer.message}`);
  return answer as T;
}

/** A pod of two containers: a web server, and a companion that fetches its page over their shared network. */
function webPod(image: string, nodeName: string): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'web', namespace },
    spec: {
      nodeName,
      terminationGracePeriodSeconds: 2,
      containers: [
        {
          name: 'server',
          image,
          command: ['httpd', '-f', '-v', '-p', '8080', '-h', '/www'],
          ports: [{ containerPort: 8080 }],
        },
        {
          name: 'visitor',
          image,
          command: ['sh', '-c'],
          args: [
            'i=0; until wget -q -O - http://127.0.0.1:8080/index.html; do i=$((i+1)); [ $i -gt 50 ] && exit 1; sleep 0.1; done;' +
              ' echo "visited by $(hostname)"; exec sleep 3600',
          ],
        },
      ],
    },
  };
}

/** A static pod: what runs when no apiserver was ever there. */
function staticPod(image: string): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'clock', namespace },
    spec: {
      terminationGracePeriodSeconds: 1,
      containers: [
        { name: 'clock', image, command: ['sh', '-c', 'echo started at $(date); exec sleep 3600'] },
      ],
    },
  };
}

/** Waits for what has no event of its own here; a dead agent ends the wait at once. */
function until<T>(node: TestNode, what: string, probe: () => Promise<T | undefined>): Promise<T> {
  return waitFor(what, probe, { deadlineMs: 60_000, everyMs: 10, daemon: node.agent });
}

function isReady(pod: Pod): boolean {
  return pod.status?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True') ?? false;
}

/** One question to the node's HTTPS API, authenticated by a token that the node has the apiserver review. */
async function ask(node: TestNode, path: string): Promise<string> {
  const ca = await readFile(join(node.paths.kubeletDir, 'pki/kubelet.crt'));
  return new Promise((resolve, reject) => {
    get(
      `https://127.0.0.1:${node.ports.api}/${path}`,
      { ca, servername: node.name, headers: { authorization: 'Bearer quickstart' } },
      (response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (chunk) => {
          text += chunk;
        });
        response.on('end', () =>
          response.statusCode === 200 ? resolve(text) : reject(new Error(`${response.statusCode} ${text}`)),
        );
      },
    ).on('error', reject);
  });
}

function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i]! + 2))
        .join('')
        .trimEnd(),
    )
    .join('\n');
}

function podRow(pod: Pod): string[] {
  const statuses = pod.status?.containerStatuses ?? [];
  return [
    pod.metadata!.namespace!,
    pod.metadata!.name!,
    `${statuses.filter((status) => status.ready).length}/${pod.spec!.containers.length}`,
    pod.status?.phase ?? 'Pending',
    String(statuses.reduce((sum, status) => sum + status.restartCount, 0)),
    pod.status?.podIP ?? '<none>',
  ];
}

interface Reached {
  readonly stage: string;
  /** Unix milliseconds. */
  readonly at: number;
}

/** The stages of a pod's start, from the lines that the agent and its runtime log once per start. */
async function timeline(node: TestNode, podName: string): Promise<string> {
  const lines = (await node.log(1 << 20)).split('\n');
  const said = <T>(message: string, name: string): T | undefined => {
    const line = lines.find((text) => text.includes(`"msg":"${message}"`) && text.includes(`"pod":"${name}`));
    return line === undefined ? undefined : (JSON.parse(line) as T);
  };
  const start = said<{ stages: readonly Reached[] }>('pod started', podName);
  const sandbox = said<{ pinned: number; connected: number }>('sandbox ready', `${namespace}/${podName}`);
  if (start === undefined || sandbox === undefined) return '(the agent logged no start)';
  const reached: Reached[] = [
    ...start.stages,
    { stage: 'namespaces', at: sandbox.pinned },
    { stage: 'cni', at: sandbox.connected },
  ];
  const zero = start.stages[0]!.at;
  const rows = reached
    .map(({ stage, at }) => ({ stage, ms: Math.max(0, at - zero) }))
    .sort((a, b) => a.ms - b.ms)
    .map(({ stage, ms }) => [stage, `${ms.toFixed(0)} ms`, '─'.repeat(Math.min(80, Math.round(ms / 4)))]);
  return table([['REACHED', 'AT', ''], ...rows]);
}

async function run(): Promise<void> {
  const registry = await startRegistry();
  undo.push(() => registry.close());
  const image = `${registry.host}/quickstart/web:1`;
  const built = busyboxImage({ page: '<h1>Hello from a pod that keelson runs</h1>\n' });
  await pushImage(registry.host, 'quickstart/web:1', built);
  say(`a registry at ${registry.host} with an image of ${built.layers.length} layers`);

  const apiserver = await startDevApiserver();
  undo.push(() => apiserver.close());
  say(`a development apiserver at ${apiserver.url}`);

  const node = await startNode({
    kubeconfig: async ({ folder }) => {
      const file = join(folder, 'kubeconfig');
      await writeFile(
        file,
        JSON.stringify({
          apiVersion: 'v1',
          kind: 'Config',
          clusters: [{ name: 'quickstart', cluster: { server: apiserver.url } }],
          users: [{ name: 'node', user: {} }],
          contexts: [{ name: 'quickstart', context: { cluster: 'quickstart', user: 'node' } }],
          'current-context': 'quickstart',
        }),
        { mode: 0o600 },
      );
      return file;
    },
    start: false,
  });
  undo.push(() => node.cleanup());
  await writeFile(join(node.paths.staticPodPath, 'clock.json'), JSON.stringify(staticPod(image)));
  await node.start();
  const object = (path: string) => `${apiserver.url}/api/v1/${path}`;
  await until(node, 'the node to be Ready', async () => {
    const found = await fetch(object(`nodes/${node.name}`));
    return found.ok && isReady((await found.json()) as Pod) ? true : undefined;
  });
  say(`keelson registered the node ${node.name}; it is Ready`);

  const pods = object(`namespaces/${namespace}/pods`);
  const created = performance.now();
  await call(pods, 'POST', webPod(image, node.name));
  const web = await until(node, 'the pod to be Ready', async () => {
    const pod = await call<Pod>(`${pods}/web`);
    return isReady(pod) ? pod : undefined;
  });
  say(
    `the pod web is Ready, ${(performance.now() - created).toFixed(0)} ms after it was created (pull included)`,
  );

  const page = await (await fetch(`http://${web.status!.podIP}:8080/index.html`)).text();
  say(`http://${web.status!.podIP}:8080/index.html says: ${page.trim()}`);
  const visited = await until(node, 'the companion to see the page', async () => {
    const text = await ask(node, `containerLogs/${namespace}/web/visitor?timestamps=true`);
    return text.includes('visited by') ? text : undefined;
  });
  const fixed = await until(node, 'the static pod to be Ready', async () => {
    const list = JSON.parse(await ask(node, 'pods')) as { items: Pod[] };
    return list.items.length === 2 && list.items.every(isReady) ? list.items : undefined;
  });

  console.log(
    `\n${table([['NAMESPACE', 'NAME', 'READY', 'STATUS', 'RESTARTS', 'IP'], ...fixed.map(podRow)])}`,
  );
  console.log(`\nlog of web/visitor:\n${visited.trimEnd()}`);
  console.log(`\nhow web started (times since the watch event):\n${await timeline(node, 'web')}\n`);

  await call(`${pods}/web`, 'DELETE');
  await until(node, 'the pod to be gone', async () =>
    (await fetch(`${pods}/web`)).status === 404 ? true : undefined,
  );
  say('the pod was deleted and is gone');
}

let failure: unknown;
try {
  await run();
} catch (error) {
  failure = error;
}
for (const step of undo.reverse()) {
  await step().catch((error: unknown) => {
    failure ??= error;
  });
}
if (failure === undefined) {
  say('everything was stopped and removed: nothing is left behind');
} else {
  console.error(`quickstart failed: ${describe(failure)}`);
  process.exitCode = 1;
}
