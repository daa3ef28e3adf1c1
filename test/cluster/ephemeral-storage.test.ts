/** Pods that write more than they may are evicted, on a real apiserver. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { PodSpec } from 'kubernetes-types/core/v1.js';
import { isReady, makePod, type Stage, setStage, skip } from './stage.ts';

const namespace = 'storage';

test('ephemeral storage', { skip }, async (t) => {
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  await t.test('a pod inside its limits stays, those beyond go', () => limits(stage));
  await t.test('nothing is left on the node', () => stage.node.tracesBecome(nothing));
});

/** Writes `mib` to `path`, then waits, and does not heed the signal to end. */
const writer = ({ images }: Stage, name: string, path: string, mib: number, limit?: string) => ({
  name,
  image: images.one,
  command: [
    'sh',
    '-c',
    `trap '' TERM; dd if=/dev/zero of=${path} bs=1M count=${mib}; while true; do sleep 1; done`,
  ],
  volumeMounts: [{ name: 'v', mountPath: '/data' }],
  ...(limit === undefined ? {} : { resources: { limits: { 'ephemeral-storage': limit } } }),
});

async function limits(stage: Stage): Promise<void> {
  const { cluster } = stage;
  const sized = (sizeLimit?: string) => [
    { name: 'v', emptyDir: sizeLimit === undefined ? {} : { sizeLimit } },
  ];
  const specs: Record<string, PodSpec> = {
    // What nobody mounts stops nobody.
    inside: {
      containers: [writer(stage, 'a', '/data/x', 5, '50Mi')],
      volumes: [...sized('10Mi'), { name: 'unused', secret: { secretName: 'none' } }],
    },
    volume: { containers: [writer(stage, 'a', '/data/x', 11)], volumes: sized('10Mi') },
    layer: {
      containers: [writer(stage, 'a', '/x', 11, '10Mi'), writer(stage, 'b', '/x', 1, '20Mi')],
      volumes: sized(),
    },
    whole: {
      containers: [writer(stage, 'a', '/data/x', 31, '10Mi'), writer(stage, 'b', '/x', 1, '20Mi')],
      volumes: sized(),
    },
  };
  for (const [name, spec] of Object.entries(specs))
    await cluster.apply(
      makePod(namespace, name, { nodeName: stage.node.name, terminationGracePeriodSeconds: 600, ...spec }),
    );
  const messages: Record<string, string> = {
    volume: 'Usage of EmptyDir volume "v" exceeds the limit "10Mi". ',
    layer: 'Container a exceeded its local ephemeral storage limit "10Mi". ',
    whole: 'Pod ephemeral local storage usage exceeds the total limit of containers 30Mi. ',
  };
  for (const [name, message] of Object.entries(messages)) {
    const { status } = await stage.pod(namespace, name, (pod) => pod.status?.phase === 'Failed', 150_000);
    assert.equal(status!.reason, 'Evicted');
    assert.equal(status!.message, message);
    assert.ok(
      !status!.conditions!.some(({ type }) => type === 'DisruptionTarget'),
      'no one else needs its place',
    );
    assert.equal(status!.containerStatuses![0]!.state!.terminated!.exitCode, 137, 'it did not end by itself');
    const event = await stage.event(namespace, name, ({ reason }) => reason === 'Evicted');
    assert.deepEqual([event.type, event.message], ['Warning', message]);
  }
  await stage.pod(namespace, 'inside', isReady, 5_000);
  await cluster.kubectl(['-n', namespace, 'delete', 'pods', '--all', '--timeout=60s', '--grace-period=1'], {
    deadlineMs: 70_000,
  });
}
