/** Which pod, container and sandbox a request for a stream means, and kubelet's words for why there is none. */
import type { Container, RuntimeService } from '../../../runtime/api.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { Pod } from '../../apiserver/types.ts';
import { labelNames } from '../../pods/spec/pod.ts';

type Lists = Pick<RuntimeService, 'listContainers' | 'listPodSandbox'>;

/** What the path of a request names. */
export interface Named {
  readonly namespace: string;
  readonly pod: string;
  readonly uid?: string;
  readonly container: string;
}

/** The newest pod of the name: one that is on its way out may still be there. Throws NOT_FOUND. Pure. */
export function findPod(pods: readonly Pod[], { namespace, pod: name }: Named): Pod {
  const found = pods.findLast(({ metadata }) => metadata?.name === name && metadata.namespace === namespace);
  if (found !== undefined) return found;
  throw new KeelsonError('NOT_FOUND', 'pod does not exist');
}

const isUid = (pod: Pod, { uid }: Named) => uid === undefined || uid === pod.metadata?.uid;

/**
 * The id of the running container, of whatever kind: main, init or ephemeral. Throws FAILED_PRECONDITION where there is
 * none, `missing` being what is said.
 */
export async function findRunning(
  runtime: Lists,
  pod: Pod,
  named: Named,
  missing = `container not found (${JSON.stringify(named.container)})`,
): Promise<string> {
  const running = isUid(pod, named)
    ? await runtime.listContainers({
        state: 'running',
        labels: { [labelNames.podUid]: pod.metadata?.uid ?? '', [labelNames.containerName]: named.container },
      })
    : [];
  const [found] = [...running].sort(newestFirst);
  if (found !== undefined) return found.id;
  throw new KeelsonError('FAILED_PRECONDITION', missing);
}

/** The id of the pod's sandbox. Throws NOT_FOUND for another uid, FAILED_PRECONDITION where none is ready. */
export async function findSandbox(runtime: Lists, pod: Pod, named: Named): Promise<string> {
  if (!isUid(pod, named)) throw new KeelsonError('NOT_FOUND', 'pod not found');
  const ready = await runtime.listPodSandbox({
    state: 'ready',
    labels: { [labelNames.podUid]: pod.metadata?.uid ?? '' },
  });
  const [found] = [...ready].sort(newestFirst);
  if (found !== undefined) return found.id;
  throw new KeelsonError(
    'FAILED_PRECONDITION',
    `pod not found (${JSON.stringify(`${named.pod}_${named.namespace}`)})`,
  );
}

function newestFirst(a: Pick<Container, 'createdAt'>, b: Pick<Container, 'createdAt'>): number {
  return b.createdAt - a.createdAt;
}

/** Whether the container was made with a terminal: that of an attachment cannot be chosen. Throws FAILED_PRECONDITION. Pure. */
export function hasTerminal({ spec }: Pod, { namespace, pod, container }: Named): boolean {
  const { containers = [], initContainers = [], ephemeralContainers = [] } = spec ?? {};
  const found = [...containers, ...initContainers, ...ephemeralContainers].find(
    ({ name }) => name === container,
  );
  if (found !== undefined) return found.tty ?? false;
  throw new KeelsonError(
    'FAILED_PRECONDITION',
    `container ${container} not found in pod ${pod}_${namespace}`,
  );
}
