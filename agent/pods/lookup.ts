/** Finding a container of a pod for the node's API. */
import type { ContainerStatus } from '../../runtime/api.ts';
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
