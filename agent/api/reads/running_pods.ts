/** `/runningpods/`: what the runtime runs, as pods with just the names that it knows. */
import type { RuntimeService } from '../../../runtime/api.ts';

/** A v1 PodList. */
export async function runningPods(
  runtime: Pick<RuntimeService, 'listContainers' | 'listPodSandbox'>,
): Promise<object> {
  const [sandboxes, containers] = await Promise.all([
    runtime.listPodSandbox({ state: 'ready' }),
    runtime.listContainers({ state: 'running' }),
  ]);
  const items = sandboxes.map(({ id, metadata: { name, namespace, uid } }) => ({
    metadata: { name, namespace, uid },
    spec: {
      containers: containers
        .filter(({ podSandboxId }) => podSandboxId === id)
        .map(({ metadata, image }) => ({ name: metadata.name, image })),
    },
    status: {},
  }));
  return { kind: 'PodList', apiVersion: 'v1', metadata: {}, items };
}
