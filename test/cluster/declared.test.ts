/** Each feature that the node declares, used: what the control plane lets through because of it must really be done. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import type { ContainerStatus, Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { isReady, makePod, setStage, skip } from './stage.ts';

const namespace = 'declared';
type Needs = { requests?: Record<string, string>; limits?: Record<string, string> };
type Now = { resources?: Needs; allocatedResources?: Record<string, string> };

const unified = existsSync('/sys/fs/cgroup/cgroup.controllers');
const unsettled = (pod: Pod) =>
  pod.status?.conditions?.some(({ type }) => /^PodResize(Pending|InProgress)$/.test(type)) ?? false;
const needs = (cpu: string, memory: string): Needs => ({
  requests: { cpu, memory },
  limits: { cpu, memory },
});

test('declared features', { skip, timeout: 400_000 }, async (t) => {
  const stage = await setStage(t);
  const { cluster, node, images } = stage;
  await stage.makeNamespace(namespace);
  const sleeper = (name: string, more: object = {}) => ({
    name,
    image: images.one,
    command: ['sleep', '100000'],
    ...more,
  });
  const resize = (name: string, spec: object) =>
    cluster.kubectl([
      ...['patch', 'pod', name, '-n', namespace, '--subresource', 'resize', '-p', JSON.stringify({ spec })],
    ]);
  /** Bytes of memory that the group may have. */
  const memoryOf = async (path: string) =>
    Number(
      await readFile(
        unified
          ? `/sys/fs/cgroup${node.cgroupRoot}${path}/memory.max`
          : `/sys/fs/cgroup/memory${node.cgroupRoot}${path}/memory.limit_in_bytes`,
        'utf8',
      ),
    );
  const idOf = (status: ContainerStatus) => status.containerID!.replace(/^.*\/\//, '');

  await t.test(
    'InPlacePodLevelResourcesVerticalScaling: a pod as a whole grows and shrinks in place',
    async () => {
      const spec = { nodeName: node.name, containers: [sleeper('main')], resources: needs('100m', '64Mi') };
      await cluster.apply(makePod(namespace, 'whole', spec as PodSpec));
      const first = await stage.pod(namespace, 'whole', isReady);
      const path = `/kubepods/pod${first.metadata!.uid}`;
      assert.equal(await memoryOf(path), 64 * 2 ** 20);
      for (const [cpu, memory, bytes] of [
        ['200m', '96Mi', 96 * 2 ** 20],
        ['50m', '32Mi', 32 * 2 ** 20],
      ] as const) {
        await resize('whole', { resources: needs(cpu, memory) });
        const done = await stage.pod(
          namespace,
          'whole',
          (pod) => (pod.status as unknown as Now).resources?.limits?.['memory'] === memory && !unsettled(pod),
        );
        assert.deepEqual((done.status as unknown as Now).resources, needs(cpu, memory));
        assert.deepEqual((done.status as unknown as Now).allocatedResources, needs(cpu, memory).requests);
        const [main] = done.status!.containerStatuses!;
        assert.equal(main!.restartCount, 0);
        assert.equal(main!.containerID, first.status!.containerStatuses![0]!.containerID);
        // The container, which has no limit of its own, has that of the pod.
        for (const group of [path, `${path}/${idOf(main!)}`])
          assert.equal(await memoryOf(group), bytes, group);
      }
    },
  );

  await t.test(
    'InPlacePodLevelResourcesVerticalScaling: not below what is in use, and the status says what there still is',
    async () => {
      await resize('whole', { resources: needs('50m', '10Ki') });
      type Told = { type: string; reason?: string; message?: string };
      const progressOf = (pod: Pod) =>
        (pod.status?.conditions as Told[] | undefined)?.find(({ type }) => type === 'PodResizeInProgress');
      const failed = await stage.pod(namespace, 'whole', (pod) => progressOf(pod)?.reason === 'Error');
      assert.match(progressOf(failed)!.message!, /memory limit \(\d+\) below current usage/);
      const now = failed.status as unknown as Now;
      assert.deepEqual(now.allocatedResources, { cpu: '50m', memory: '10Ki' });
      assert.equal(now.resources!.limits!['memory'], '32Mi');
      await resize('whole', { resources: needs('50m', '64Mi') });
      const again = await stage.pod(
        namespace,
        'whole',
        (pod) => (pod.status as unknown as Now).resources?.limits?.['memory'] === '64Mi' && !unsettled(pod),
      );
      assert.equal(await memoryOf(`/kubepods/pod${again.metadata!.uid}`), 64 * 2 ** 20);
    },
  );

  await t.test(
    'InPlacePodVerticalScalingInitContainers: one that runs is resized in place, or anew',
    async () => {
      const init = (name: string, restartPolicy: string) => ({
        nodeName: node.name,
        initContainers: [
          sleeper(name, {
            resources: needs('100m', '64Mi'),
            resizePolicy: [
              { resourceName: 'cpu', restartPolicy: 'NotRequired' },
              { resourceName: 'memory', restartPolicy },
            ],
            // Only a sidecar may be made anew.
            ...(restartPolicy === 'NotRequired' ? {} : { restartPolicy: 'Always' }),
          }),
        ],
        containers: [sleeper('main', { resources: needs('100m', '32Mi') })],
      });
      await cluster.apply(
        makePod(namespace, 'inplace', init('first', 'NotRequired') as PodSpec),
        makePod(namespace, 'anew', init('first', 'RestartContainer') as PodSpec),
      );
      const statusOf = (pod: Pod) => pod.status?.initContainerStatuses?.[0];
      for (const name of ['inplace', 'anew']) {
        const before = await stage.pod(namespace, name, (pod) => statusOf(pod)?.state?.running !== undefined);
        await resize(name, { initContainers: [{ name: 'first', resources: needs('200m', '96Mi') }] });
        const after = await stage.pod(
          namespace,
          name,
          (pod) =>
            statusOf(pod)?.state?.running !== undefined &&
            (statusOf(pod) as unknown as Now).resources?.limits?.['memory'] === '96Mi' &&
            !unsettled(pod),
        );
        const [old, now] = [statusOf(before)!, statusOf(after)!];
        assert.deepEqual((now as unknown as Now).resources, needs('200m', '96Mi'));
        assert.equal(now.restartCount, name === 'anew' ? 1 : 0);
        assert.equal(now.containerID === old.containerID, name === 'inplace');
        const path = `/kubepods/pod${after.metadata!.uid}/${idOf(now)}`;
        assert.equal(await memoryOf(path), 96 * 2 ** 20);
      }
    },
  );

  await t.test(
    'RestartAllContainersOnContainerExits: an exit begins the pod over, in its sandbox',
    async () => {
      const rules = [{ action: 'RestartAllContainers', exitCodes: { operator: 'In', values: [42] } }];
      await cluster.apply(
        makePod(namespace, 'over', {
          nodeName: node.name,
          initContainers: [sleeper('init', { command: ['true'] })],
          containers: [
            sleeper('bystander'),
            sleeper('source', {
              // Once, and then it stays.
              command: ['sh', '-c', 'test -f /data/once && sleep 100000; touch /data/once; exit 42'],
              restartPolicy: 'Never',
              restartPolicyRules: rules,
              volumeMounts: [{ name: 'data', mountPath: '/data' }],
            }),
          ],
          volumes: [{ name: 'data', emptyDir: {} }],
        } as PodSpec),
      );
      const pod = await stage.pod(
        namespace,
        'over',
        (one) =>
          isReady(one) && (one.status?.containerStatuses ?? []).every(({ restartCount }) => restartCount > 0),
      );
      assert.deepEqual(
        [...pod.status!.initContainerStatuses!, ...pod.status!.containerStatuses!].map(
          ({ name, restartCount }) => [name, restartCount],
        ),
        [
          ['init', 1],
          ['bystander', 1],
          ['source', 1],
        ],
      );
    },
  );
});
