/**
 * `npm run bench`: how long a pod takes from the create call to the status Running as a watch sees it, with the image
 * present and nodeName set, on a real kube-apiserver; and what the agent and its monitors cost in memory.
 * The last line is one JSON object. The agent runs a copy of Node.js, so that it shares no pages with this process.
 */
import { copyFile, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { makeClient } from '../../agent/apiserver/client.ts';
import { loadKubeconfig } from '../../agent/apiserver/kubeconfig.ts';
import type { ApiserverClient, Pod } from '../../agent/apiserver/types.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { startCluster } from '../peers/cluster.ts';
import { busyboxImage, pushImage } from '../peers/image.ts';
import { startNode, type TestNode } from '../peers/node.ts';
import { waitFor } from '../peers/process.ts';
import { startRegistry } from '../peers/registry.ts';
import { nodePss } from './memory.ts';
import { round, type Spread, spread } from './statistics.ts';

const namespace = 'default';
const sequentialPods = 20;
const burstPods = 30;
/** Long enough for unpack workers to end and for garbage to be collected. */
const idleMs = 20_000;

interface Watcher {
  /** Resolves with the monotonic time at which the pod's status was first Running (or the pod was gone). */
  running(name: string): Promise<number>;
  gone(name: string): Promise<number>;
}

/** One watch over the namespace, as any controller would hold it. */
function watchPods(client: ApiserverClient, signal: AbortSignal): Watcher {
  const seen = new Map<string, PromiseWithResolvers<number>>();
  const at = (key: string) => {
    let entry = seen.get(key);
    if (entry === undefined) {
      entry = Promise.withResolvers<number>();
      seen.set(key, entry);
    }
    return entry;
  };
  void (async () => {
    for await (const { type, object } of client.watch<Pod>(`/api/v1/namespaces/${namespace}/pods`, {
      signal,
    })) {
      const now = performance.now();
      const name = object.metadata?.name;
      if (type === 'DELETED') at(`gone ${name}`).resolve(now);
      else if (isRunning(object)) at(`running ${name}`).resolve(now);
    }
  })().catch((error: unknown) => {
    if (!signal.aborted) console.error('the watch broke', error);
  });
  return {
    running: (name) => at(`running ${name}`).promise,
    gone: (name) => at(`gone ${name}`).promise,
  };
}

function isRunning(pod: Pod): boolean {
  const statuses = pod.status?.containerStatuses ?? [];
  return (
    pod.status?.phase === 'Running' && statuses.length > 0 && statuses.every(({ state }) => state?.running)
  );
}

function podNamed(name: string, image: string, nodeName: string): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace },
    spec: {
      nodeName,
      terminationGracePeriodSeconds: 1,
      containers: [
        {
          name: 'main',
          image,
          imagePullPolicy: 'IfNotPresent',
          command: ['sh', '-c', 'trap exit TERM; sleep 3600 & wait'],
        },
      ],
    },
  };
}

/** When each stage was reached, in milliseconds since the watch event, over the starts that the agent logged. */
async function stages(node: TestNode): Promise<Record<string, Spread>> {
  const reached = new Map<string, number[]>();
  for (const line of (await node.log(4 << 20)).split('\n')) {
    if (!line.includes('"msg":"pod started"') || !line.includes('"pod":"one-')) continue;
    const logged = JSON.parse(line) as { stages: readonly { stage: string; ms: number }[] };
    for (const { stage, ms } of logged.stages) reached.set(stage, [...(reached.get(stage) ?? []), ms]);
  }
  return Object.fromEntries([...reached].map(([stage, values]) => [stage, spread(values, 1)]));
}

async function bench(undo: (() => Promise<unknown>)[]): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-bench-'));
  undo.push(() => rm(folder, { recursive: true, force: true }));
  const ownNode = join(folder, 'node');
  await copyFile(process.execPath, ownNode);

  const registry = await startRegistry();
  undo.push(() => registry.close());
  const image = `${registry.host}/bench/busybox:1`;
  await pushImage(registry.host, 'bench/busybox:1', busyboxImage());

  const cluster = await startCluster();
  undo.push(() => cluster.close());
  const node = await startNode({
    kubeconfig: ({ name }) => cluster.makeNodeKubeconfig(name),
    env: { KEELSON_NODE: ownNode },
  });
  undo.push(() => node.cleanup());
  const client = makeClient({
    access: await loadKubeconfig(cluster.adminKubeconfig),
    clock: systemClock,
    log: makeLogger('warn'),
    userAgent: 'keelson-bench',
  });
  undo.push(() => client.close());
  const ready = async <T>(what: string, path: string, test: (object: T) => boolean) =>
    waitFor(what, async () => (test(await client.get<T>(path)) ? true : undefined), {
      deadlineMs: 60_000,
      daemon: node.agent,
    });
  await ready<Pod>('the node to be Ready', `/api/v1/nodes/${node.name}`, ({ status }) =>
    Boolean(status?.conditions?.some(({ type, status: is }) => type === 'Ready' && is === 'True')),
  );
  await ready(
    'the default service account',
    `/api/v1/namespaces/${namespace}/serviceaccounts/default`,
    () => true,
  );

  const end = new AbortController();
  undo.push(async () => end.abort());
  const watcher = watchPods(client, end.signal);
  const pods = `/api/v1/namespaces/${namespace}/pods`;
  const start = async (name: string) => {
    const created = performance.now();
    await client.create(pods, podNamed(name, image, node.name));
    return (await watcher.running(name)) - created;
  };
  const remove = async (name: string) => {
    const asked = performance.now();
    await client.delete(`${pods}/${name}`);
    return (await watcher.gone(name)) - asked;
  };

  console.log(
    `kube-apiserver with ${process.version} on ${node.name}; warming up: the image is pulled by a first pod`,
  );
  await start('warm');
  await remove('warm');
  await delay(idleMs);
  const none = await nodePss(node.agent.pid, node.paths.folder);

  const one: number[] = [];
  const gone: number[] = [];
  for (let i = 0; i < sequentialPods; i++) {
    one.push(await start(`one-${i}`));
    gone.push(await remove(`one-${i}`));
  }
  const perStage = await stages(node);

  const names = Array.from({ length: burstPods }, (_, i) => `burst-${i}`);
  const burst = performance.now();
  await Promise.all(names.map(start));
  const burstMs = performance.now() - burst;
  await delay(idleMs);
  const many = await nodePss(node.agent.pid, node.paths.folder);
  const removal = performance.now();
  await Promise.all(names.map(remove));

  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  const print = (what: string, { median, min, max }: Spread) =>
    console.log(`${what.padEnd(40)} ${median} ms (${min} to ${max})`);
  print(`create to Running, ${sequentialPods} in turn`, spread(one));
  for (const [stage, values] of Object.entries(perStage)) print(`  ${stage}`, values);
  print('delete to gone, in turn', spread(gone));
  console.log(`${`${burstPods} at once, all Running`.padEnd(40)} ${burstMs.toFixed(0)} ms`);
  console.log(
    `${`${burstPods} at once, all gone`.padEnd(40)} ${(performance.now() - removal).toFixed(0)} ms`,
  );
  console.log(`PSS at 0 pods: agent ${none.agent.toFixed(1)} MiB`);
  console.log(
    `PSS at ${burstPods} pods: agent ${many.agent.toFixed(1)} MiB, ${many.conmons.length} conmons ${spread(many.conmons, 1).median} MiB each`,
  );
  console.log(
    JSON.stringify({
      bench: 'pods',
      one_ms: spread(one),
      burst30_ms: round(burstMs),
      pss_mib: {
        pods0: round(none.agent + sum(none.conmons), 1),
        pods30: round(many.agent + sum(many.conmons), 1),
      },
    }),
  );
}

const undo: (() => Promise<unknown>)[] = [];
try {
  await bench(undo);
} finally {
  for (const step of undo.reverse()) await step().catch((error: unknown) => console.error(error));
}
