/**
 * `npm run bench:runtime`: what the calls of the container runtime interface take in `keelson runtime` and in
 * containerd, one at a time and 8 at a time, through the same client, in turn in one run, with the same runc, images and
 * kind of network; beside them the floor that runc, the bridge plugin and the kernel set. On a machine of its own inside
 * this one, which takes everything with it at the end. The last line is one JSON object.
 *   --rounds N       counted rounds (default 5), after one warm-up
 *   --pods N         pods of one round, one at a time (default 6); at 8 at a time 16
 *   --only A,B       of keelson, containerd (default both)
 *   --critest        critest's own benchmarks, too, for both
 *   --profile DIR    a CPU profile of keelson in this folder
 */
import { mkdir, mkdtemp } from 'node:fs/promises';
import { loadavg, tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';
import { removeTree } from '../../runtime/host/files.ts';
import { criClient } from '../cri/client.ts';
import { pushImages, sandboxImage } from '../critest/images.ts';
import { runApart, settleApart } from '../critest/machine.ts';
import { type Peer, peers, type ServedRuntime, startRuntime } from '../critest/runtimes.ts';
import { containerdPrograms } from '../peers/containerd.ts';
import { type CriTools, criTools } from '../peers/cri-tools.ts';
import { cacheFolder } from '../peers/go-programs.ts';
import { busyboxImage, pauseImage, pushImage } from '../peers/image.ts';
import { nginxFiles } from '../peers/nginx.ts';
import { startRegistry } from '../peers/registry.ts';
import { benchmarkOf } from './runtime/critest.ts';
import { type FloorBench, floorBench, noFloors } from './runtime/floor.ts';
import {
  bringUp,
  manyAtATime,
  noTimes,
  oneAtATime,
  type Target,
  type Times,
  takeDown,
} from './runtime/pods.ts';
import { jsonLine, type PeerResult, table } from './runtime/report.ts';

const lanes = 8;
const podsInLanes = 16;
const image = 'registry.k8s.io/bench/busybox:1';
/** For what a runtime still does in the background after its last answer. */
const pauseMs = 500;

interface Running {
  readonly peer: Peer;
  readonly served: ServedRuntime;
  readonly target: Target;
  readonly result: { one: Times; many: Times; podsPerSecond: number[] };
}

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    pods: { type: 'string', default: '6' },
    only: { type: 'string', default: peers.join(',') },
    critest: { type: 'boolean', default: false },
    profile: { type: 'string' },
    // Set by the run itself: the folder that it has made, in the machine that it has made.
    inside: { type: 'string' },
  },
});
const count = (name: 'rounds' | 'pods') => {
  if (/^[1-9]\d{0,3}$/.test(values[name])) return Number(values[name]);
  throw new KeelsonError('INVALID_ARGUMENT', `--${name} ${values[name]}: not a number`);
};
const [rounds, pods] = [count('rounds'), count('pods')];
const only = values.only.split(',') as Peer[];
for (const name of only) {
  if (!peers.includes(name))
    throw new KeelsonError('INVALID_ARGUMENT', `--only ${name}: not one of ${peers}`);
}

const tools = await criTools();
if ('missing' in tools) throw new KeelsonError('DEPENDENCY_MISSING', tools.missing);
process.exitCode = await (values.inside === undefined ? outside() : inside(tools, values.inside));

/** Downloads what needs a network, makes the machine, and takes it away again. */
async function outside(): Promise<number> {
  const ending = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => ending.abort());
  if (only.includes('containerd')) await containerdPrograms(cacheFolder(), ending.signal);
  if (values.critest) await nginxFiles(ending.signal);
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-bench-runtime-'));
  try {
    const again = [process.execPath, fileURLToPath(import.meta.url), ...process.argv.slice(2)];
    return await runApart(basename(folder), [...again, '--inside', folder], ending.signal);
  } finally {
    await removeTree(folder);
  }
}

async function inside(cri: CriTools, folder: string): Promise<number> {
  await settleApart();
  await mkdir(join(folder, 'tmp'));
  // Of everything from here on: it goes with the folder.
  process.env['TMPDIR'] = join(folder, 'tmp');
  const registry = await startRegistry();
  const running: Running[] = [];
  try {
    await pushImage(registry.host, 'bench/busybox:1', busyboxImage());
    await pushImage(registry.host, sandboxImage.slice(sandboxImage.indexOf('/') + 1), pauseImage('sandbox'));
    const { signal } = new AbortController();
    if (values.critest) await pushImages(registry.host, cri, signal);
    for (const peer of only) running.push(await startPeer(peer, folder, registry.host, cri, signal));
    await introduce(signal);
    const floor = noFloors();
    await measure(running, floor, folder);
    console.log(table(resultsOf(running), floor, lanes).join('\n'));
    const critest: Record<string, unknown> = {};
    if (values.critest) {
      for (const { peer, served } of running) {
        critest[peer] = await benchmarkOf(cri, served.socket, join(folder, peer));
        console.log(`critest -benchmark, ${peer}: ${JSON.stringify(critest[peer], null, 2)}`);
      }
    }
    const load = loadavg().map((value) => Number(value.toFixed(2)));
    console.log(`load at the end: ${load.join(' ')}`);
    const more = values.critest ? { load, critest } : { load };
    console.log(jsonLine(resultsOf(running), floor, more));
    return 0;
  } catch (error) {
    for (const { peer, served } of running)
      console.error(`${peer}'s log:\n${await served.daemon.tail(4000)}`);
    console.error(error);
    return 1;
  } finally {
    for (const { served, target } of running) {
      target.cri.close();
      await served.daemon.stop();
    }
    await registry.close();
  }
}

function resultsOf(running: readonly Running[]): ReadonlyMap<string, PeerResult> {
  return new Map(running.map(({ peer, result }) => [peer, result]));
}

async function startPeer(
  peer: Peer,
  parent: string,
  registry: string,
  { crictl }: CriTools,
  signal: AbortSignal,
): Promise<Running> {
  const folder = join(parent, peer);
  // As on a real machine: what need not outlive a boot is in memory. The other runtime's network cache is, too.
  for (const name of ['run', 'cni-cache']) {
    await mkdir(join(folder, name), { recursive: true });
    await exec('mount', ['-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', join(folder, name)], {
      deadlineMs: 5000,
      signal,
    });
  }
  const index = peers.indexOf(peer);
  const network = {
    name: `bench-${peer}`,
    bridge: `bench${index}`,
    subnet: `10.${92 + index}.0.0/16`,
  };
  if (peer === 'keelson' && values.profile !== undefined) {
    const options = `--cpu-prof --cpu-prof-dir=${resolve(values.profile)}`;
    process.env['NODE_OPTIONS'] = options;
  }
  const served = await startRuntime(peer, { folder, registry, crictl, signal, network }).finally(() => {
    delete process.env['NODE_OPTIONS'];
  });
  const cri = criClient(served.socket);
  await cri.call('PullImage', { image: { image } }, { deadlineMs: 60_000 });
  const target = { cri, image, logs: join(folder, 'log/pods'), cgroup: `/bench-${peer}` };
  return { peer, served, target, result: { one: noTimes(), many: noTimes(), podsPerSecond: [] } };
}

async function introduce(signal: AbortSignal): Promise<void> {
  const { stdout } = await exec('runc', ['--version'], { deadlineMs: 10_000, signal });
  const theirs = only.includes('containerd')
    ? [`containerd ${(await containerdPrograms(cacheFolder(), signal)).version}`]
    : [];
  const versions = [`Node.js ${process.versions.node}`, ...theirs, stdout.toString('utf8').split('\n')[0]];
  console.log(`${versions.join(', ')}; load at the start: ${loadavg()[0]!.toFixed(2)}`);
}

/** All rounds, the peers in turn, the next one first each time. */
async function measure(
  running: readonly Running[],
  floor: ReturnType<typeof noFloors>,
  folder: string,
): Promise<void> {
  const own = running.find(({ peer }) => peer === 'keelson');
  const held = own && (await bringUp(own.target, noTimes()));
  let floorOf: FloorBench | undefined;
  if (held !== undefined) {
    const bundle = join(folder, 'keelson/run/containers', held.container);
    floorOf = await floorBench(bundle, join(folder, 'floor'), await pluginFolder(), '/bench-floor');
  }
  for (let turn = 0; turn <= rounds; turn++) {
    const first = turn % running.length;
    for (const { peer, target, result } of [...running.slice(first), ...running.slice(0, first)]) {
      const kept = turn === 0 ? { one: noTimes(), many: noTimes(), podsPerSecond: [] } : result;
      await oneAtATime(target, pods, kept.one);
      await delay(pauseMs);
      const perSecond = await manyAtATime(target, podsInLanes, lanes, kept.many);
      kept.podsPerSecond.push(perSecond);
      await delay(pauseMs);
      console.log(
        `${(turn === 0 ? 'warm-up' : `round ${turn}`).padEnd(8)} ${peer.padEnd(10)} ${perSecond.toFixed(1)} pods/s at ${lanes}`,
      );
    }
    const kept = turn === 0 ? noFloors() : floor;
    for (let pod = 0; pod < pods; pod++) await floorOf?.measure(kept);
  }
  if (held !== undefined) await takeDown(own!.target, held, noTimes());
}

async function pluginFolder(): Promise<string> {
  const { stdout } = await exec('sh', ['-c', 'ls -d /opt/cni/bin /usr/lib/cni 2> /dev/null | head -1'], {
    deadlineMs: 5000,
  });
  return stdout.toString('utf8').trim();
}
