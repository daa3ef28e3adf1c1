/** What every cluster test stands on: a control plane, a registry with two versions of an image, a keelson node. */
import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import type { Event, Node, Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { clusterPrograms } from '../peers/binaries.ts';
import { type Cluster, startCluster } from '../peers/cluster.ts';
import { busyboxImage, pushImage } from '../peers/image.ts';
import { startNode, type TestNode, type TestNodeOptions } from '../peers/node.ts';
import { waitFor } from '../peers/process.ts';
import { hasRegistry, startRegistry } from '../peers/registry.ts';

const found = await clusterPrograms();

/** Why the tests cannot run on this machine; false where they can. */
export const skip: string | false =
  'missing' in found ? found.missing : hasRegistry() ? false : 'docker-registry is missing';

export interface Stage {
  readonly cluster: Cluster;
  readonly node: TestNode;
  /** Host of the registry, for images that it does not have. */
  readonly registry: string;
  /** The same program; `/www/index.html` says `one` or `two`. */
  readonly images: { readonly one: string; readonly two: string };
  /** Makes a namespace whose service account is there. */
  makeNamespace(name: string): Promise<void>;
  pods(namespace: string): Promise<Pod[]>;
  /** Waits until the pod is as wanted and returns it. Fails with the pod's status and events. */
  pod(namespace: string, name: string, wanted: (pod: Pod) => boolean, deadlineMs?: number): Promise<Pod>;
  /** Waits for an event about the pod. */
  event(
    namespace: string,
    pod: string,
    wanted: (event: Event) => boolean,
    deadlineMs?: number,
  ): Promise<Event>;
  /** Waits until the namespace has as many pods, all Ready or, for 0, none. */
  readyPods(namespace: string, count: number, deadlineMs?: number): Promise<Pod[]>;
  /** Container id and restart count of every container, by pod uid and container name. */
  containers(namespace: string): Promise<ReadonlyMap<string, string>>;
  /** Waits until the node has reported Ready after this call. */
  nodeReports(): Promise<void>;
}

/** Starts all of it; it ends with `t`. `config`: of the node, over what is set here. */
export async function setStage(t: TestContext, config: TestNodeOptions['config'] = {}): Promise<Stage> {
  const registry = await startRegistry(t);
  const images = { one: `${registry.host}/test/web:1`, two: `${registry.host}/test/web:2` };
  await pushImage(registry.host, 'test/web:1', busyboxImage({ page: 'one\n' }));
  await pushImage(registry.host, 'test/web:2', busyboxImage({ page: 'two\n' }));
  let cluster: Cluster | undefined;
  let node: TestNode | undefined;
  // In this order: a node that is cleaned up first does not write into a log that nobody reads.
  t.after(async () => {
    if (!t.passed && node !== undefined) t.diagnostic(`the end of the agent's log:\n${await node.log(8000)}`);
    await node?.cleanup();
    await cluster?.close();
  });
  cluster = await startCluster();
  node = await startNode({
    kubeconfig: ({ name }) => cluster!.makeNodeKubeconfig(name),
    config: { authentication: { x509: { clientCAFile: cluster.caFile } }, registryPullQPS: 0, ...config },
  });
  const stage = makeStage(cluster, node, registry.host, images);
  await stage.nodeReports();
  return stage;
}

function makeStage(cluster: Cluster, node: TestNode, registry: string, images: Stage['images']): Stage {
  const list = async <T>(path: string) => (await cluster.read<{ items: T[] }>(path))?.items ?? [];
  const pods = (namespace: string) => list<Pod>(`/api/v1/namespaces/${namespace}/pods`);
  const events = (namespace: string) => list<Event>(`/api/v1/namespaces/${namespace}/events`);
  /** Waits, and adds what the cluster says, of one pod or all, to a failure. */
  const wait = async <T>(
    namespace: string,
    name: string | undefined,
    what: string,
    probe: () => Promise<T | undefined>,
    deadlineMs = 60_000,
  ) => {
    try {
      return await waitFor(what, probe, { deadlineMs, everyMs: 100, daemon: undefined });
    } catch (error) {
      const about = (found: string | undefined) => name === undefined || found === name;
      const shown = (await pods(namespace)).filter(({ metadata }) => about(metadata!.name));
      const told = (await events(namespace)).filter(({ involvedObject }) => about(involvedObject.name));
      const lines = [
        ...shown.map((pod) => `${pod.metadata!.name} ${JSON.stringify(pod.status)}`),
        ...told.map((event) => `${event.involvedObject.name} ${event.reason}: ${event.message}`),
        ...(node.agent.endedBy === undefined ? [] : [`the agent ended: ${node.agent.endedBy}`]),
      ];
      throw new Error(`${what}\n${lines.join('\n')}`, { cause: error });
    }
  };
  return {
    cluster,
    node,
    registry,
    images,
    async makeNamespace(name) {
      await cluster.kubectl(['create', 'namespace', name]);
      for (const object of ['serviceaccount/default', 'configmap/kube-root-ca.crt']) {
        await cluster.kubectl(['wait', '--for=create', object, '-n', name, '--timeout=60s'], {
          deadlineMs: 70_000,
        });
      }
    },
    pods,
    pod: (namespace, name, wanted, deadlineMs) =>
      wait(
        namespace,
        name,
        `pod ${name} does not become as it should`,
        async () => {
          const pod = await cluster.read<Pod>(`/api/v1/namespaces/${namespace}/pods/${name}`);
          return pod !== undefined && wanted(pod) ? pod : undefined;
        },
        deadlineMs,
      ),
    event: (namespace, pod, wanted, deadlineMs) =>
      wait(
        namespace,
        pod,
        `no such event about pod ${pod}`,
        async () =>
          (await events(namespace)).find((event) => event.involvedObject.name === pod && wanted(event)),
        deadlineMs,
      ),
    readyPods: (namespace, count, deadlineMs = 120_000) =>
      wait(
        namespace,
        undefined,
        `not ${count} ready pods`,
        async () => {
          const all = await pods(namespace);
          return all.length === count && all.every(isReady) ? all : undefined;
        },
        deadlineMs,
      ),
    async containers(namespace) {
      const statuses = (await pods(namespace)).flatMap(({ metadata, status }) =>
        (status?.containerStatuses ?? []).map(
          ({ name, containerID, restartCount }) =>
            [`${metadata!.uid}/${name}`, `${containerID} ${restartCount}`] as const,
        ),
      );
      return new Map(statuses);
    },
    async nodeReports() {
      const path = `/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/${node.name}`;
      const renewed = async () =>
        (await cluster.read<{ spec: { renewTime: string } }>(path))?.spec.renewTime ?? 'never';
      const before = await renewed();
      const reported = async () => {
        const object = await cluster.read<Node>(`/api/v1/nodes/${node.name}`);
        const ready = object?.status?.conditions?.find(({ type }) => type === 'Ready');
        return ready?.status === 'True' && (await renewed()) !== before ? true : undefined;
      };
      await waitFor('the node to be Ready', reported, {
        deadlineMs: 90_000,
        everyMs: 100,
        daemon: node.agent,
      });
    },
  };
}

export const isReady = (pod: Pod): boolean =>
  pod.status?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True') ?? false;

/** The status of the pod's only container, or of the one named. */
export const statusOf = (pod: Pod, container?: string) =>
  pod.status?.containerStatuses?.find(({ name }) => container === undefined || name === container);

/** What every container of `before` is, it still is: same id, no restart. */
export function assertSameContainers(
  before: ReadonlyMap<string, string>,
  after: ReadonlyMap<string, string>,
): void {
  assert.ok(before.size > 0, 'no containers before');
  assert.deepEqual(
    [...before].filter(([key, value]) => after.get(key) !== value),
    [],
  );
}

/** A shell that serves `/www` and ends at once when told to. */
export const webServer = (image: string): PodSpec['containers'][number] => ({
  name: 'web',
  image,
  command: ['sh', '-c', 'httpd -p 8080 -h /www; trap "exit 0" TERM; sleep 100000 & wait'],
  ports: [{ containerPort: 8080 }],
});

export const makePod = (namespace: string, name: string, spec: PodSpec): Pod => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name, namespace },
  spec: { terminationGracePeriodSeconds: 1, ...spec },
});

/** The page that a pod serves, fetched from the host. */
export async function pageOf(pod: Pod): Promise<string> {
  const response = await fetch(`http://${pod.status!.podIP}:8080/index.html`, {
    signal: AbortSignal.timeout(5000),
  });
  return (await response.text()).trim();
}
