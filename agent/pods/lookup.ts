/** What the node's API asks of pods: the pod with its status of now, a container's log. */
import type { ContainerStatus } from '../../runtime/api.ts';
import type { Pod, PodStatus } from '../apiserver/types.ts';
import type { ObservedPod } from './types.ts';

export interface ContainerLog {
  /** The container's id. */
  readonly id: string;
  /** Absolute path; the file may not be there yet. */
  readonly logPath: string;
  /** False once it has ended. */
  running(): boolean;
  /** Calls `listener` once when it has ended; returns the function that ends the waiting. */
  onExit(listener: () => void): () => void;
}

/** The newest container of the name, or with `previous` the one that ended before it. */
export function findContainer(
  observed: ObservedPod,
  name: string,
  previous: boolean,
  exitListeners: Set<() => void>,
  now: () => ObservedPod,
): ContainerLog | undefined {
  const all = observed.containers.filter(({ metadata }) => metadata.name === name);
  const found: ContainerStatus | undefined = previous ? all[1] : all[0];
  if (found === undefined) return undefined;
  const { id, logPath } = found;
  return {
    id,
    logPath,
    running,
    onExit(listener) {
      const onAny = () => {
        if (running()) return;
        exitListeners.delete(onAny);
        listener();
      };
      exitListeners.add(onAny);
      return () => exitListeners.delete(onAny);
    },
  };

  function running(): boolean {
    return now().containers.some((container) => container.id === id && container.state !== 'exited');
  }
}

/** The pod with the status that it has now, whether or not it is written. */
export function withStatus({ pod, status }: { readonly pod: Pod; readonly status?: PodStatus }): Pod {
  return status === undefined ? pod : { ...pod, status: { ...pod.status, ...status } };
}

/** Where the running containers of a pod log. */
export function runningLogs({
  containers,
}: ObservedPod): { readonly id: string; readonly logPath: string }[] {
  return containers
    .filter(({ state, logPath }) => state === 'running' && logPath !== '')
    .map(({ id, logPath }) => ({ id, logPath }));
}
