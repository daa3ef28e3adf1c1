/** Resizes of a pod as a whole, with containers that live by its limits and whose policy is to be made anew. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { isReady, makePod, setStage, skip } from './stage.ts';

const namespace = 'resize-restart';

test('a change of the pod alone restarts the containers that have no limit of their own', {
  skip,
  timeout: 300_000,
}, async (t) => {
  const stage = await setStage(t);
  const { cluster, node, images } = stage;
  await stage.makeNamespace(namespace);
  const sleeper = (name: string, more: object = {}) => ({
    name,
    image: images.one,
    command: ['sleep', '100000'],
    resizePolicy: [{ resourceName: 'memory', restartPolicy: 'RestartContainer' }],
    ...more,
  });
  const spec = {
    nodeName: node.name,
    terminationGracePeriodSeconds: 1,
    containers: [sleeper('bare'), sleeper('own', { resources: { limits: { memory: '16Mi' } } })],
    resources: { limits: { cpu: '500m', memory: '64Mi' } },
  };
  await cluster.apply(makePod(namespace, 'whole', spec as unknown as PodSpec));
  await stage.pod(namespace, 'whole', isReady);
  const restarts = (pod: Pod) =>
    Object.fromEntries(pod.status!.containerStatuses!.map(({ name, restartCount }) => [name, restartCount]));
  type Now = { resources?: { limits?: Record<string, string> } };
  const resize = async (limits: { cpu: string; memory: string }) => {
    const patch = JSON.stringify({ spec: { resources: { limits } } });
    await cluster.kubectl([
      ...['patch', 'pod', 'whole', '-n', namespace, '--subresource', 'resize', '-p', patch],
    ]);
    const settled = (pod: Pod) => {
      const now = (pod.status as Now).resources?.limits;
      const told = pod.status!.conditions!.some(({ type }) => /^PodResize/.test(type));
      return isReady(pod) && !told && now?.['cpu'] === limits.cpu && now?.['memory'] === limits.memory;
    };
    return stage.pod(namespace, 'whole', settled);
  };
  assert.deepEqual(restarts(await resize({ cpu: '500m', memory: '96Mi' })), { bare: 1, own: 0 });
  // What has no such policy is changed in place.
  const cpu = await resize({ cpu: '700m', memory: '96Mi' });
  assert.deepEqual(restarts(cpu), { bare: 1, own: 0 });
});
