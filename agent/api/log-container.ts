/** Which container's log a request means, and kubelet's words for why there is none. Pure. */
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { Pod, PodContainerStatus } from '../apiserver/types.ts';

/**
 * The id (without `containerd://` and the like) of the container whose log is meant, by the pod's status. Throws
 * NOT_FOUND where pod or container do not exist, FAILED_PRECONDITION where there is no log yet or no more.
 */
export function containerForLogs(
  pod: Pod | undefined,
  podName: string,
  container: string,
  previous: boolean,
): string {
  if (pod === undefined) throw new KeelsonError('NOT_FOUND', `pod "${podName}" does not exist`);
  const { containers = [], initContainers = [], ephemeralContainers = [] } = pod.spec ?? {};
  if (![...containers, ...initContainers, ...ephemeralContainers].some(({ name }) => name === container)) {
    throw new KeelsonError('NOT_FOUND', `container "${container}" not found in pod "${podName}"`);
  }
  const {
    containerStatuses = [],
    initContainerStatuses = [],
    ephemeralContainerStatuses = [],
  } = pod.status ?? {};
  const status = [...containerStatuses, ...initContainerStatuses, ...ephemeralContainerStatuses].find(
    ({ name }) => name === container,
  );
  const about = `container "${container}" in pod "${podName}"`;
  const refuse = (message: string) => new KeelsonError('FAILED_PRECONDITION', message);
  if (status === undefined) throw refuse(`${about} is not available`);
  const id = previous ? status.lastState?.terminated?.containerID : currentId(status);
  if (id !== undefined && id !== '') return id.slice(id.indexOf('://') < 0 ? 0 : id.indexOf('://') + 3);
  if (previous) throw refuse(`previous terminated ${about} not found`);
  const { waiting, running, terminated } = status.state ?? {};
  if (running === undefined && terminated === undefined && waiting !== undefined) {
    const reasons: Readonly<Record<string, string>> = {
      ErrImagePull: "image can't be pulled",
      ImagePullBackOff: 'trying and failing to pull image',
    };
    throw refuse(
      `${about} is waiting to start: ${reasons[waiting.reason ?? ''] ?? waiting.reason ?? 'unknown'}`,
    );
  }
  throw refuse(
    terminated !== undefined ? `${about} is terminated` : `${about} is waiting to start - no logs yet`,
  );
}

/** The container that runs, else the one that ran last. */
function currentId({ state, lastState, containerID }: PodContainerStatus): string | undefined {
  if (state?.running !== undefined) return containerID;
  return state?.terminated?.containerID || lastState?.terminated?.containerID;
}
