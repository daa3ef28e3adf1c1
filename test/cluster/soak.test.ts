/**
 * Pods made, changed and deleted at random while the agent is killed at random and the node loses its power. At the
 * end everything is as the apiserver says, no container was restarted twice for one exit, no line of a log and no exit
 * code is lost, and nothing is left. A short form by default; `npm run test:soak` is the long one.
 * KEELSON_SOAK_SECONDS, KEELSON_SOAK_PODS (made in all, about) and KEELSON_SOAK_SEED.
 */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, readlink, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import type { Pod } from 'kubernetes-types/core/v1.js';
import { makeClient } from '../../agent/apiserver/client.ts';
import { loadKubeconfig } from '../../agent/apiserver/kubeconfig.ts';
import type { ApiserverClient } from '../../agent/apiserver/types.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { isError } from '../../runtime/host/errors.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { waitFor } from '../peers/process.ts';
import { checkLogs, checkRuns, type Deeds, logsOf, runsOf } from './soak/books.ts';
import { configName, kindOf, kinds, namespace, podOf } from './soak/pods.ts';
import { isReady, type Stage, setStage, skip, statusOf } from './stage.ts';

const folder = `/api/v1/namespaces/${namespace}/pods`;
const seconds = Number(process.env['KEELSON_SOAK_SECONDS'] ?? 30);
const total = Number(process.env['KEELSON_SOAK_PODS'] ?? 20);
const seed = Number(process.env['KEELSON_SOAK_SEED'] ?? Date.now() % 100_000);
/** The node takes 110 pods, and those that end hold their place for a while. */
const mostAtOnce = Math.min(80, Math.ceil(total / 2));
const rebootsWanted = Math.max(1, Math.floor(seconds / 200));

/** What the storm did and what is to come of it. */
interface World {
  readonly stage: Stage;
  readonly client: ApiserverClient;
  /** Where the containers write. */
  readonly books: string;
  /** By uid. */
  readonly images: Map<string, number>;
  readonly rebootTimes: number[];
  kills: number;
  /** What the ConfigMap says. */
  page: string;
  /** Names of the static pods that there are. */
  readonly statics: Map<string, number>;
}

test('soak', { skip }, async (t) => {
  t.diagnostic(`seed ${seed}, ${seconds} s, ${total} pods`);
  const stage = await setStage(t, { crashLoopBackOff: { maxContainerRestartPeriod: '3s' } });
  const { node, cluster } = stage;
  await stage.makeNamespace(namespace);
  const client = makeClient({
    access: await loadKubeconfig(cluster.adminKubeconfig),
    clock: systemClock,
    log: makeLogger('silent'),
    userAgent: 'keelson-soak',
  });
  t.after(() => client.close());
  const world: World = {
    stage,
    client,
    books: join(node.paths.folder, 'books'),
    images: new Map(),
    rebootTimes: [],
    kills: 0,
    page: 'none',
    statics: new Map(),
  };
  await mkdir(world.books);
  await writePage(world, 'first');
  const nothing = { traces: await node.traces(), files: await filesOf(stage), open: await openFiles(stage) };
  await t.test('pods come, change and go, and the agent is killed', (part) => storm(part, world));
  await t.test('every pod ends as the apiserver says', () => settled(world));
  await t.test('no container is restarted twice for one exit, no log and no exit code is lost', () =>
    checkAll(world),
  );
  await t.test('nothing is left on the node', async () => {
    for (const name of world.statics.keys()) await rm(manifestOf(world, name));
    for (const { metadata } of await stage.pods(namespace)) await remove(client, metadata!.name!, 0.5);
    await stage.readyPods(namespace, 0, 180_000);
    await node.tracesBecome(nothing.traces, 120_000);
    const before = new Set(nothing.files);
    let left: string[] = [];
    await waitFor(
      'the files of pods to go',
      async () => {
        left = (await filesOf(stage)).filter((path) => !before.has(path));
        return left.length === 0 ? true : undefined;
      },
      { deadlineMs: 30_000, everyMs: 500 },
    ).catch((cause: unknown) => {
      throw new Error(`left behind:\n${left.join('\n')}`, { cause });
    });
    const open = await openFiles(stage);
    const told = `${nothing.open.length} open files before, ${open.length} after:\n${open.join('\n')}`;
    assert.ok(open.length <= nothing.open.length + 16, told);
    // The host's own it keeps, to come back to them.
    const own = await Promise.all(
      ['net', 'ipc', 'uts', 'mnt', 'pid', 'user', 'cgroup'].map((kind) =>
        readlink(`/proc/${node.agent.pid}/ns/${kind}`),
      ),
    );
    const namespaces = open.filter(
      (target) => /^\w+:\[\d+\]$/.test(target) && !/^(pipe|socket):/.test(target),
    );
    assert.deepEqual(
      namespaces.filter((target) => !own.includes(target)).map((target) => target.split(':')[0]),
      ['mnt'],
      'one more, which its OCI runtimes get to see',
    );
  });
});

/** Numbers from 0 to below 1, the same for the same seed (mulberry32). */
function makeRandom(from: number): () => number {
  let state = from;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

async function remove(client: ApiserverClient, name: string, random: number): Promise<void> {
  // One in five is deleted by force.
  const options = { apiVersion: 'v1', kind: 'DeleteOptions', gracePeriodSeconds: random < 0.2 ? 0 : 1 };
  await client.delete(`${folder}/${name}`, options).catch(ignoreGone);
}

function ignoreGone(error: unknown): void {
  if (!isError(error, 'API_STATUS') || ![404, 409, 422].includes(Number(error.details['status'])))
    throw error;
}

async function writePage(world: World, page: string): Promise<void> {
  const metadata = { name: configName, namespace };
  await world.stage.cluster.apply({ apiVersion: 'v1', kind: 'ConfigMap', metadata, data: { page } });
  world.page = page;
}

const manifestOf = ({ stage }: World, name: string) => join(stage.node.paths.staticPodPath, `${name}.json`);

/** Makes, changes or removes a static pod. */
async function changeStatic(world: World, name: string, version: number): Promise<void> {
  const path = manifestOf(world, name);
  if (world.statics.has(name) && version % 3 === 0) {
    await rm(path);
    world.statics.delete(name);
    return;
  }
  const pod = podOf(
    world.stage,
    world.books,
    `${name}-${version}`,
    version % 2 === 0 ? 'serve' : 'crash',
    0.5,
  );
  await writeFile(`${path}.tmp`, JSON.stringify({ ...pod, metadata: { ...pod.metadata, name } }));
  await rename(`${path}.tmp`, path);
  world.statics.set(name, version);
}

async function storm(t: TestContext, world: World): Promise<void> {
  const { stage, client, books } = world;
  const random = makeRandom(seed);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;
  const { node, images } = stage;
  const begin = performance.now();
  const end = begin + seconds * 1000;
  const everyMs = (seconds * 1000) / (total * 3);
  const alive = new Map<string, string>();
  let made = 0;
  let changed = 0;
  let versions = 0;
  const start = async () => {
    if (random() < 0.3) await pause(random() * 3000);
    await node.start();
  };
  let nextKill: number | undefined = begin + random() * 8000;
  let nextLook = begin;
  while (performance.now() < end || made < kinds.length) {
    // Half of the time the agent gets as far as to answer: on a slow machine nothing would ever come about else.
    if (nextKill === undefined && (await answers(node))) nextKill = performance.now() + random() * 10_000;
    const dice = random();
    if (made < total && (alive.size === 0 || (dice < 0.35 && alive.size < mostAtOnce))) {
      const name = `p${made}`;
      // Each kind comes, also in the short form.
      const kind = made < kinds.length ? kinds[made]! : pick(kinds);
      const pod = await client.create<Pod>(folder, podOf(stage, books, name, kind, random()));
      made++;
      alive.set(name, pod.metadata!.uid!);
    } else if (dice < 0.5 && alive.size > 0) {
      const [name, uid] = pick([...alive]);
      const before = await client.get<Pod>(`${folder}/${name}`).catch(ignoreGone);
      const image = pick([images.one, images.two]);
      const body = {
        spec: { containers: [{ name: 'web', image }] },
        metadata: { annotations: { dice: `${dice}` } },
      };
      if (before?.spec?.containers[0]?.image !== image)
        world.images.set(uid, (world.images.get(uid) ?? 0) + 1);
      await client.patch(`${folder}/${name}`, 'strategic', body).catch(ignoreGone);
      changed++;
    } else if (dice < 0.57 && alive.size > 0) {
      const limits = { cpu: pick(['300m', '400m', '500m']), memory: pick(['64Mi', '96Mi']) };
      const body = { spec: { containers: [{ name: 'web', resources: { limits } }] } };
      const [name] = pick([...alive]);
      // Refused for those that have no limits: that would change their class.
      await client.patch(`${folder}/${name}/resize`, 'strategic', body).catch(ignoreGone);
      changed++;
    } else if (dice < 0.6) await writePage(world, `page ${dice}`);
    else if (dice < 0.65) await changeStatic(world, pick(['s0', 's1', 's2']), ++versions);
    else if (dice < 0.67 && world.statics.size > 0) {
      // Only the mirror: the static pod goes on.
      await remove(client, `${pick([...world.statics.keys()])}-${node.name.toLowerCase()}`, random());
    } else if (alive.size > total / 10) {
      const [name] = pick([...alive]);
      alive.delete(name);
      await remove(client, name, random());
    }
    if (performance.now() > nextLook) {
      await checkTwins();
      nextLook = performance.now() + 2000;
    }
    if (performance.now() > begin + ((world.rebootTimes.length + 0.5) / rebootsWanted) * seconds * 1000) {
      await node.losePower();
      world.rebootTimes.push(Date.now());
      await start();
    } else if (nextKill !== undefined && performance.now() > nextKill) {
      world.kills++;
      await node.kill9();
      await start();
      nextKill = random() < 0.5 ? undefined : performance.now() + 1000 + random() * 10_000;
    }
    await pause(random() * 2 * everyMs);
  }
  world.kills++;
  await node.restart9();
  t.diagnostic(
    `${made} pods made, ${changed} changed, ${alive.size} kept; the agent killed ${world.kills} times, the power lost ${world.rebootTimes.length} times`,
  );
}

async function answers({ ports }: Stage['node']): Promise<boolean> {
  const url = `http://127.0.0.1:${ports.healthz}/healthz`;
  return fetch(url, { signal: AbortSignal.timeout(2000) }).then(
    ({ ok }) => ok,
    () => false,
  );
}

/** No container runs twice at this moment. */
async function checkTwins(): Promise<void> {
  const seen = new Map<string, string>();
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const read = (file: string) => readFile(`/proc/${pid}/${file}`, 'utf8').catch(() => '');
    const isFirst = /^NSpid:\t\d+\s.*\b1$/m.test(await read('status'));
    const book = isFirst ? /(?:^|\0)SOAK_BOOK=([^\0]+)/.exec(await read('environ'))?.[1] : undefined;
    if (book === undefined) continue;
    const other = seen.get(book);
    assert.equal(other, undefined, `${book} runs twice: processes ${other} and ${pid}`);
    seen.set(book, pid);
  }
}

async function asItShouldBe(world: World, pod: Pod): Promise<boolean> {
  if (pod.metadata?.deletionTimestamp !== undefined) return false;
  const status = statusOf(pod, 'web');
  const image = pod.spec?.containers[0]?.image;
  switch (kindOf(pod)) {
    case 'job':
      return (
        ['Succeeded', 'Failed'].includes(pod.status?.phase ?? '') && status?.state?.terminated !== undefined
      );
    case 'crash':
    case 'sick':
    case 'stack':
      return pod.status?.phase === 'Running' && (status?.restartCount ?? 0) > 0;
    case 'config': {
      const path = join('pods', pod.metadata!.uid!, 'volumes/kubernetes.io~configmap/cfg/page');
      const page = await readFile(join(world.stage.node.paths.kubeletDir, path), 'utf8').catch(() => '');
      return isReady(pod) && status?.image === image && page === world.page;
    }
    default: {
      const wanted = pod.spec?.containers[0]?.resources?.limits?.['cpu'];
      return isReady(pod) && status?.image === image && status?.resources?.limits?.['cpu'] === wanted;
    }
  }
}

async function settled(world: World): Promise<void> {
  const { stage, statics } = world;
  await stage.nodeReports();
  let wrong: readonly Pod[] = [];
  try {
    await waitFor(
      'every pod to be as it should',
      async () => {
        const pods = await stage.pods(namespace);
        const good = await Promise.all(pods.map((pod) => asItShouldBe(world, pod)));
        wrong = pods.filter((_, index) => !good[index]);
        const mirrors = pods.filter(({ metadata }) => metadata?.annotations?.['kubernetes.io/config.mirror']);
        return wrong.length === 0 && mirrors.length === statics.size ? true : undefined;
      },
      { deadlineMs: 240_000, everyMs: 1000, daemon: stage.node.agent },
    );
  } catch (cause) {
    const lines = wrong.map((pod) => `${pod.metadata?.name} ${kindOf(pod)} ${JSON.stringify(pod)}`);
    throw new Error(`not as they should be:\n${lines.join('\n')}`, { cause });
  }
}

async function checkAll(world: World): Promise<void> {
  const pods = await world.stage.pods(namespace);
  assert.ok(pods.length > 0, 'no pods');
  await checkTwins();
  for (const { metadata } of pods) await checkPod(world, metadata!.name!);
}

/** Reads until the status is the same before and after the books and logs: then they are of one moment. */
async function checkPod(world: World, name: string): Promise<void> {
  const { stage } = world;
  const read = async () => (await stage.cluster.read<Pod>(`${folder}/${name}`))!;
  await waitFor(
    `a moment at which pod ${name} does not change`,
    async () => {
      const pod = await read();
      const judgements = await judge(world, pod);
      // A run that has just begun or ended is in the book before it is in the status.
      await pause(300);
      const again = await read();
      if (JSON.stringify(again.status) !== JSON.stringify(pod.status)) return undefined;
      if ((await judge(world, pod)).books !== judgements.books) return undefined;
      for (const check of judgements.checks) check();
      return true;
    },
    { deadlineMs: 60_000, everyMs: 50, daemon: stage.node.agent },
  );
}

async function judge(world: World, pod: Pod): Promise<{ books: string; checks: (() => void)[] }> {
  const { stage, books, images, kills } = world;
  const { uid: id, name, annotations, creationTimestamp } = pod.metadata!;
  const uid = annotations?.['kubernetes.io/config.hash'] ?? id!;
  const reboots = world.rebootTimes.filter((time) => time >= Date.parse(creationTimestamp!) - 1000).length;
  const deeds: Deeds = {
    images: images.get(id!) ?? 0,
    kills,
    reboots: annotations?.['kubernetes.io/config.mirror'] ? world.rebootTimes.length : reboots,
  };
  const all = [];
  for (const container of [...(pod.spec?.initContainers ?? []), ...pod.spec!.containers]) {
    const about = `${name} ${kindOf(pod)} ${container.name}`;
    const book = container.env?.find((one) => one.name === 'SOAK_BOOK')?.value;
    const text = await readFile(join(books, book!), 'utf8').catch(() => '');
    const logs = await logsOf(
      join(stage.node.paths.podLogsDir, `${namespace}_${name}_${uid}`, container.name),
    );
    const status = [
      ...(pod.status?.containerStatuses ?? []),
      ...(pod.status?.initContainerStatuses ?? []),
    ].find((one) => one.name === container.name);
    all.push({
      text,
      check() {
        assert.ok(status !== undefined, `no status: ${about}`);
        const runs = runsOf(text, about);
        checkRuns(runs, status, deeds, about);
        checkLogs(runs, logs, status, about);
      },
    });
  }
  return { books: all.map(({ text }) => text).join('\n'), checks: all.map(({ check }) => check) };
}

/** Every file and folder of the node that pods may leave something in, but for what outlives them on purpose. */
async function filesOf({ node }: Stage): Promise<string[]> {
  const { runDir, kubeletDir, podLogsDir, containerLogsDir, stateDir, folder: root } = node.paths;
  const places = [
    runDir,
    kubeletDir,
    podLogsDir,
    containerLogsDir,
    join(stateDir, 'containers'),
    join(stateDir, 'sandboxes'),
  ];
  const found = await Promise.all(
    places.map(async (place) =>
      (await readdir(place, { recursive: true }).catch(() => [])).map((path) =>
        join(place, path).slice(root.length),
      ),
    ),
  );
  return found
    .flat()
    .filter((path) => !/^\/(kubelet\/(image_manager\b.*|pki\b.*|pods)|run\/oci(\/\w+)?)$/.test(path))
    .sort();
}

/** What the agent has open. */
async function openFiles({ node }: Stage): Promise<string[]> {
  const place = `/proc/${node.agent.pid}/fd`;
  const targets = await Promise.all(
    (await readdir(place)).map((fd) => readlink(join(place, fd)).catch(() => '')),
  );
  return targets.filter(Boolean).sort();
}
