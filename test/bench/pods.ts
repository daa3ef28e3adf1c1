/**
 * `npm run bench:pods`: how long pods take from the create call to the status Running, and from the delete call until they
 * are gone, as a watch sees them: one at a time, 30 at once and 110 at once, on keelson and on a stock kubelet with Debian's
 * containerd, in turn in one run, on one real kube-apiserver, with the same image (present), the same pods (nodeName set, a
 * grace of 1 s, a program that ends at TERM) and the same kind of network. Also what each asks of the apiserver, the processor
 * time, and the memory. On a machine of its own inside this one, which takes everything with it at the end. The last line
 * is one JSON object. `npm run bench` is the same with `--only keelson`.
 *   --rounds N       counted rounds (default 3), after one warm-up
 *   --pods N         pods of one round, one at a time (default 6)
 *   --only A,B       of keelson, kubelet (default both)
 *   --profile DIR    a CPU profile of keelson in this folder
 */
import { copyFile, mkdir, mkdtemp } from 'node:fs/promises';
import { loadavg, tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { makeClient } from '../../agent/apiserver/client.ts';
import { loadKubeconfig } from '../../agent/apiserver/kubeconfig.ts';
import type { ApiserverClient } from '../../agent/apiserver/types.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { removeTree } from '../../runtime/host/files.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { runApart, settleApart } from '../critest/machine.ts';
import { furnish } from '../e2e/place.ts';
import { clusterPrograms, kubeletProgram } from '../peers/binaries.ts';
import { type Cluster, startCluster } from '../peers/cluster.ts';
import { findContainerd } from '../peers/containerd-service.ts';
import { busyboxImage, pauseImage, pushImage } from '../peers/image.ts';
import { waitFor } from '../peers/process.ts';
import { type Registry, startRegistry } from '../peers/registry.ts';
import { auditOptions, type BenchNode, type Peer, peers, startPeer } from './pods/place.ts';
import { type Lane, openLane } from './pods/pods.ts';
import {
  aloneLine,
  besideLine,
  type Memory,
  noTimes,
  type PeerResult,
  type Times,
  table,
} from './pods/report.ts';
import { requestsOf } from './pods/requests.ts';
import { type Spread, spread } from './statistics.ts';

/** Long enough for garbage to be collected. */
const idleMs = 20_000;

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '3' },
    pods: { type: 'string', default: '6' },
    only: { type: 'string', default: peers.join(',') },
    profile: { type: 'string' },
    // Set by the run itself: the folder that it has made, in the machine that it has made.
    inside: { type: 'string' },
  },
});
const count = (name: 'rounds' | 'pods') => {
  if (/^[1-9]\d{0,3}$/.test(values[name])) return Number(values[name]);
  throw new KeelsonError('INVALID_ARGUMENT', `--${name} ${values[name]}: not a number`);
};
const [rounds, podsInTurn] = [count('rounds'), count('pods')];
const only = values.only.split(',') as Peer[];
for (const name of only) {
  if (!peers.includes(name))
    throw new KeelsonError('INVALID_ARGUMENT', `--only ${name}: not one of ${peers}`);
}
process.exitCode = await (values.inside === undefined ? outside() : inside(values.inside));

/** Builds and downloads what needs a network, makes the machine, and takes it away again. */
async function outside(): Promise<number> {
  const ending = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => ending.abort());
  const wanted = [
    clusterPrograms(),
    ...(only.includes('kubelet') ? [kubeletProgram(), findContainerd()] : []),
  ];
  for (const found of await Promise.all(wanted)) {
    if (typeof found !== 'string' && 'missing' in found)
      throw new KeelsonError('DEPENDENCY_MISSING', found.missing);
  }
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-bench-pods-'));
  try {
    const again = [process.execPath, fileURLToPath(import.meta.url), ...process.argv.slice(2)];
    return await runApart(basename(folder), [...again, '--inside', folder], ending.signal);
  } finally {
    await removeTree(folder);
  }
}

interface Running {
  readonly node: BenchNode;
  readonly lane: Lane;
  readonly namespace: string;
  readonly times: Times;
  pods: number;
  readonly memory: { none?: Memory; many?: Memory };
}

async function inside(folder: string): Promise<number> {
  await settleApart();
  await furnish(folder);
  // Of everything from here on: it goes with the folder.
  process.env['TMPDIR'] = join(folder, 'tmp');
  await mkdir(process.env['TMPDIR']);
  const ownNode = join(folder, 'node');
  await copyFile(process.execPath, ownNode);
  const undo: (() => Promise<unknown>)[] = [];
  try {
    const registry = await startRegistry();
    undo.push(() => registry.close());
    const audit = await auditOptions(folder);
    const cluster = await startCluster(undefined, audit.options);
    undo.push(() => cluster.close());
    const running = await bringUp({ folder, ownNode, registry, cluster }, undo);
    console.log(`Node.js ${process.versions.node}; load at the start: ${loadavg()[0]!.toFixed(2)}`);
    for (let turn = 0; turn <= rounds; turn++) {
      const first = turn % running.length;
      for (const one of [...running.slice(first), ...running.slice(0, first)]) {
        await measure(one, turn).catch(async (error: unknown) => {
          for (const { logFile, tail } of one.node.daemons) console.error(`${logFile}:\n${await tail(8000)}`);
          throw error;
        });
      }
    }
    const results = new Map<Peer, PeerResult>();
    for (const { node, namespace, times, pods, memory } of running) {
      const requests = await requestsOf(audit.file, node.name, namespace);
      results.set(node.peer, { times, pods, requests, memory: { none: memory.none!, many: memory.many! } });
      for (const [stage, { median, min, max }] of Object.entries(await stages(node)))
        console.log(`${`  ${node.peer}, ${stage}`.padEnd(38)}${median} (${min} to ${max})`);
    }
    console.log(table(results).join('\n'));
    const load = loadavg().map((value) => Number(value.toFixed(2)));
    const [own, theirs] = [results.get('keelson'), results.get('kubelet')];
    console.log(
      own !== undefined && theirs !== undefined
        ? besideLine(own, theirs, { rounds, load })
        : aloneLine(only[0]!, [...results.values()][0]!, { rounds, load }),
    );
    return 0;
  } finally {
    for (const step of undo.reverse()) await step().catch((error: unknown) => console.error(error));
  }
}

interface Ground {
  readonly folder: string;
  readonly ownNode: string;
  readonly registry: Registry;
  readonly cluster: Cluster;
}

/** Starts the nodes, and has each pull the image with a first pod. */
async function bringUp(
  { folder, ownNode, registry, cluster }: Ground,
  undo: (() => Promise<unknown>)[],
): Promise<Running[]> {
  const image = `${registry.host}/bench/busybox:1`;
  await pushImage(registry.host, 'bench/busybox:1', busyboxImage());
  const sandboxImage = `${registry.host}/bench/pause:1`;
  await pushImage(registry.host, 'bench/pause:1', pauseImage('sandbox'));
  const log = makeLogger('warn');
  const client = makeClient({
    access: await loadKubeconfig(cluster.adminKubeconfig),
    clock: systemClock,
    log,
    userAgent: 'keelson-bench',
  });
  undo.push(() => client.close());
  const end = new AbortController();
  undo.push(async () => end.abort());
  const nodeOptions =
    values.profile === undefined ? undefined : `--cpu-prof --cpu-prof-dir=${resolve(values.profile)}`;
  const running: Running[] = [];
  for (const peer of only) {
    const node = await startPeer(peer, { cluster, folder, sandboxImage, ownNode, nodeOptions });
    undo.push(() => node.close());
    await ready(client, node);
    const namespace = `bench-${peer}`;
    await cluster.apply({ apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } });
    for (const object of ['serviceaccount/default', 'configmap/kube-root-ca.crt'])
      await cluster.kubectl(['wait', '--for=create', object, '-n', namespace, '--timeout=50s']);
    const lane = openLane({ client, namespace, nodeName: node.name, image, log, signal: end.signal });
    try {
      await lane.start('warm');
      await lane.remove('warm');
    } catch (error) {
      for (const { tail } of node.daemons) console.error(await tail(6000));
      throw error;
    }
    running.push({ node, lane, namespace, times: noTimes(), pods: 1, memory: {} });
  }
  await delay(idleMs);
  for (const { node, memory } of running) memory.none = await node.memory();
  return running;
}

async function ready(client: ApiserverClient, { name, daemons }: BenchNode): Promise<void> {
  const isReady = async () => {
    const { status, spec } = await client.get<{
      status?: { conditions?: { type: string; status: string }[] };
      spec?: { taints?: object[] };
    }>(`/api/v1/nodes/${name}`);
    const is = status?.conditions?.some((one) => one.type === 'Ready' && one.status === 'True');
    return is && (spec?.taints ?? []).length === 0 ? true : undefined;
  };
  await waitFor(`${name} to be Ready`, isReady, { deadlineMs: 240_000, daemon: daemons[0]! });
}

/** One round of one node; round 0 does not count, but for the memory at 30 pods, which takes its time. */
async function measure(one: Running, turn: number): Promise<void> {
  const { node, lane } = one;
  const times = turn === 0 ? noTimes() : one.times;
  const named = (kind: string, size: number) =>
    Array.from({ length: size }, (_, i) => `${kind}-${turn}-${i}`);
  for (const name of named('one', podsInTurn)) {
    times.one.push(await lane.start(name));
    times.deleteOne.push(await lane.remove(name));
  }
  for (const [size, started, removed] of [
    [30, times.burst30, times.delete30],
    [110, times.burst110, times.delete110],
  ] as const) {
    await node.cpu.quiet();
    const names = named(`burst${size}`, size);
    const before = await Promise.all([node.cpu.used(), node.cpu.usedByDaemons()]);
    started.push(await lane.startAll(names));
    if (turn === 0 && size === 30) {
      await delay(idleMs);
      one.memory.many = await node.memory();
    }
    await node.cpu.quiet();
    removed.push(await lane.removeAll(names));
    if (size !== 110) continue;
    times.cpu.push(((await node.cpu.used()) - before[0]) / size);
    times.daemons.push(((await node.cpu.usedByDaemons()) - before[1]) / size);
  }
  one.pods += podsInTurn + 30 + 110;
  await node.cpu.quiet();
  const last = (values: readonly number[]) => (values.at(-1)! / 1000).toFixed(2);
  console.log(
    `${(turn === 0 ? 'warm-up' : `round ${turn}`).padEnd(8)} ${node.peer.padEnd(8)} one ${spread(times.one.slice(-podsInTurn)).median} ms, 30: ${last(times.burst30)} s, 110: ${last(times.burst110)} s; gone: ${spread(times.deleteOne.slice(-podsInTurn)).median} ms, ${last(times.delete30)} s, ${last(times.delete110)} s; load ${loadavg()[0]!.toFixed(2)}`,
  );
}

/** When each stage was reached, in milliseconds since the watch event, over the starts one at a time that the agent logged. */
async function stages(node: BenchNode): Promise<Record<string, Spread>> {
  const reached = new Map<string, number[]>();
  for (const line of (await node.log(64 << 20)).split('\n')) {
    if (!line.includes('"msg":"pod started"') || !/"pod":"(\S+\/)?one-[1-9]/.test(line)) continue;
    const logged = JSON.parse(line) as { stages: readonly { stage: string; ms: number }[] };
    for (const { stage, ms } of logged.stages) reached.set(stage, [...(reached.get(stage) ?? []), ms]);
  }
  return Object.fromEntries([...reached].map(([stage, values]) => [stage, spread(values, 1)]));
}
