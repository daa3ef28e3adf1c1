/**
 * Pods made, changed and deleted at random while the agent is killed at random. At the end everything is as the
 * apiserver says, no container was restarted twice for one exit, and nothing is left. A short form by default;
 * `npm run test:soak` is the long one. KEELSON_SOAK_SECONDS, KEELSON_SOAK_PODS (made in all) and KEELSON_SOAK_SEED.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
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
import { isReady, makePod, type Stage, setStage, skip, statusOf, webServer } from './stage.ts';

const namespace = 'soak';
const folder = `/api/v1/namespaces/${namespace}/pods`;
const seconds = Number(process.env['KEELSON_SOAK_SECONDS'] ?? 30);
const total = Number(process.env['KEELSON_SOAK_PODS'] ?? 20);
const seed = Number(process.env['KEELSON_SOAK_SEED'] ?? Date.now() % 100_000);
/** The node takes 110 pods, and those that end hold their place for a while. */
const mostAtOnce = Math.min(80, Math.ceil(total / 2));

const kinds = ['serve', 'crash', 'job', 'stubborn'] as const;
type Kind = (typeof kinds)[number];

test('soak', { skip }, async (t) => {
  t.diagnostic(`seed ${seed}, ${seconds} s, ${total} pods`);
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  const client = makeClient({
    access: await loadKubeconfig(stage.cluster.adminKubeconfig),
    clock: systemClock,
    log: makeLogger('silent'),
    userAgent: 'keelson-soak',
  });
  t.after(() => client.close());
  await t.test('pods come, change and go, and the agent is killed', (part) => storm(part, stage, client));
  await t.test('every pod ends as the apiserver says', () => settled(stage));
  await t.test('no container is restarted twice for one exit', () => restarts(stage));
  await t.test('nothing is left on the node', async () => {
    for (const { metadata } of await stage.pods(namespace)) await remove(client, metadata!.name!, 0.5);
    await stage.readyPods(namespace, 0, 180_000);
    await stage.node.tracesBecome(nothing, 120_000);
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

/** Every run of the container leaves a line in a volume: what is counted cannot be told wrongly by a status. */
const noted = (script: string) => ['sh', '-c', `echo run >> /data/runs; ${script}`];

function podOf({ images }: Stage, name: string, kind: Kind, random: number): Pod {
  const scripts: Readonly<Record<Kind, string>> = {
    serve: 'trap "exit 0" TERM; sleep 100000 & wait',
    crash: `sleep ${(random * 5).toFixed(1)}; exit 3`,
    job: `sleep ${(random * 5).toFixed(1)}; exit ${random < 0.5 ? 0 : 4}`,
    stubborn: 'trap "" TERM; while :; do sleep 1000; done',
  };
  const container = { ...webServer(images.one), command: noted(scripts[kind]), ports: [] };
  const pod = makePod(namespace, name, {
    restartPolicy: kind === 'job' ? 'Never' : 'Always',
    containers: [{ ...container, volumeMounts: [{ name: 'data', mountPath: '/data' }] }],
    volumes: [{ name: 'data', emptyDir: {} }],
  });
  return { ...pod, metadata: { ...pod.metadata, labels: { kind } } };
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

async function storm(t: TestContext, stage: Stage, client: ApiserverClient): Promise<void> {
  const random = makeRandom(seed);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;
  const { node, images } = stage;
  const end = performance.now() + seconds * 1000;
  const everyMs = (seconds * 1000) / (total * 3);
  const alive = new Set<string>();
  let made = 0;
  let changed = 0;
  let kills = 0;
  const kill = async () => {
    kills++;
    await node.kill9();
    if (random() < 0.3) await pause(random() * 3000);
    await node.start();
  };
  let nextKill = performance.now() + random() * 8000;
  while (performance.now() < end || made < total) {
    const dice = random();
    if (made < total && (alive.size === 0 || (dice < 0.4 && alive.size < mostAtOnce))) {
      const name = `p${made++}`;
      await client.create(folder, podOf(stage, name, pick(kinds), random()));
      alive.add(name);
    } else if (dice < 0.65 && alive.size > 0) {
      const image = pick([images.one, images.two]);
      const body = {
        spec: { containers: [{ name: 'web', image }] },
        metadata: { annotations: { dice: `${dice}` } },
      };
      await client.patch(`${folder}/${pick([...alive])}`, 'strategic', body).catch(ignoreGone);
      changed++;
    } else if (alive.size > total / 10) {
      const name = pick([...alive]);
      alive.delete(name);
      await remove(client, name, random());
    }
    if (performance.now() > nextKill) {
      await kill();
      nextKill = performance.now() + 1000 + random() * 10_000;
    }
    await pause(random() * 2 * everyMs);
  }
  await kill();
  t.diagnostic(`${made} pods made, ${changed} changed, ${alive.size} kept; the agent killed ${kills} times`);
}

const kindOf = ({ metadata }: Pod) => metadata?.labels?.['kind'] as Kind;

function asItShouldBe(pod: Pod): boolean {
  if (pod.metadata?.deletionTimestamp !== undefined) return false;
  const status = statusOf(pod);
  switch (kindOf(pod)) {
    case 'job':
      return (
        ['Succeeded', 'Failed'].includes(pod.status?.phase ?? '') && status?.state?.terminated !== undefined
      );
    case 'crash':
      return pod.status?.phase === 'Running' && (status?.restartCount ?? 0) > 0;
    default:
      return isReady(pod) && status?.image === pod.spec?.containers[0]?.image;
  }
}

async function settled(stage: Stage): Promise<void> {
  await stage.nodeReports();
  let wrong: readonly Pod[] = [];
  try {
    await waitFor(
      'every pod to be as it should',
      async () => {
        wrong = (await stage.pods(namespace)).filter((pod) => !asItShouldBe(pod));
        return wrong.length === 0 ? true : undefined;
      },
      { deadlineMs: 180_000, everyMs: 500, daemon: stage.node.agent },
    );
  } catch (cause) {
    const lines = wrong.map((pod) => `${pod.metadata?.name} ${kindOf(pod)} ${JSON.stringify(pod.status)}`);
    throw new Error(`not as they should be:\n${lines.join('\n')}`, { cause });
  }
}

async function restarts(stage: Stage): Promise<void> {
  const pods = await stage.pods(namespace);
  assert.ok(pods.length > 0, 'no pods');
  for (const pod of pods) {
    const path = join('pods', pod.metadata!.uid!, 'volumes/kubernetes.io~empty-dir/data/runs');
    // What has ended for good has given its volumes back.
    const text = await readFile(join(stage.node.paths.kubeletDir, path), 'utf8').catch(() => undefined);
    const status = statusOf(pod)!;
    const about = `${pod.metadata!.name} ${kindOf(pod)} ${JSON.stringify(status)}`;
    if (kindOf(pod) === 'job') {
      assert.equal(status.restartCount, 0, about);
      continue;
    }
    assert.ok(text !== undefined, `the volume is gone: ${about}`);
    const runs = text.split('\n').length - 1;
    // One may have begun since the status was read; a kill between the making of a container and its start costs a number.
    assert.ok(runs <= status.restartCount + 2, `${runs} runs: ${about}`);
    // An exit is 10 s apart from the restart after the next: more in this time were restarts without an exit.
    const exits = kindOf(pod) === 'crash' ? Number.POSITIVE_INFINITY : 8;
    assert.ok(runs <= exits, `${runs} runs: ${about}`);
  }
}
