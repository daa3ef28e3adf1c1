/** Watches the monitors of all containers, so that one that is killed is noticed at once. */
import { setTimeout as sleep } from 'node:timers/promises';
import { isAlive, type ProcessIdentity } from '../processes.ts';
import { watchLine } from './line.ts';

export interface MonitorWatch {
  /** From now on, or anew. */
  watch(id: string, bundle: string, monitor: ProcessIdentity): void;
  close(): void;
}

/** `onGone` is called with the id of each container whose monitor has ended, after exits or by a kill. */
export function makeMonitorWatch(onGone: (id: string) => void): MonitorWatch {
  const watched = new Map<string, () => void>();
  return {
    watch(id, bundle, monitor) {
      watched.get(id)?.();
      const end = watchLine(bundle, async () => {
        if (watched.get(id) === end) watched.delete(id);
        // The kernel closes what a process has open just before it is gone.
        for (let wait = 1; isAlive(monitor) && wait < 2000; wait *= 2) await sleep(wait);
        onGone(id);
      });
      watched.set(id, end);
    },
    close() {
      for (const end of watched.values()) end();
      watched.clear();
    },
  };
}
