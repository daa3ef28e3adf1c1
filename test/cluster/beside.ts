/** A stock kubelet in the cluster of a stage, over a keelson runtime of its own: what the same pods do on both is compared. */
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { Node } from 'kubernetes-types/core/v1.js';
import { type Kubelet, startKubelet } from '../peers/kubelet.ts';
import { startNode, type TestNode } from '../peers/node.ts';
import { type Daemon, waitFor } from '../peers/process.ts';
import type { Stage } from './stage.ts';

/** Starts both and waits until the node is Ready; they end with `t`. `program`: of kubelet. */
export async function setKubelet(
  t: TestContext,
  { cluster }: Stage,
  program: string,
  config: Readonly<Record<string, unknown>> = {},
): Promise<{ readonly node: TestNode; readonly daemon: Daemon }> {
  let runtime: TestNode | undefined;
  let started: Kubelet | undefined;
  t.after(async () => {
    if (!t.passed) t.diagnostic(`the end of kubelet's log:\n${await started?.daemon.tail(4000)}`);
    await started?.end();
    await runtime?.cleanup();
  });
  const node = await startNode({ command: 'runtime' });
  runtime = node;
  const isUp = async () => ((await node.log()).includes('the runtime is up') ? true : undefined);
  await waitFor('the runtime', isUp, { deadlineMs: 30_000, daemon: node.agent });
  started = await startKubelet({
    program,
    node,
    kubeconfig: await cluster.makeNodeKubeconfig(node.name),
    clientCaFile: cluster.caFile,
    endpoint: `unix://${join(node.paths.runDir, 'keelson.sock')}`,
    config: {
      registryPullQPS: 0,
      staticPodPath: node.paths.staticPodPath,
      fileCheckFrequency: '1s',
      ...config,
    },
  });
  const { daemon } = started;
  const isReady = async () => {
    const object = await cluster.read<Node>(`/api/v1/nodes/${node.name}`);
    const conditions = object?.status?.conditions ?? [];
    return conditions.some(({ type, status }) => type === 'Ready' && status === 'True') ? true : undefined;
  };
  await waitFor('kubelet to be ready', isReady, { deadlineMs: 60_000, everyMs: 200, daemon });
  return { node, daemon };
}
