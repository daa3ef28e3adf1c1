/**
 * `volumesInUse` of the Node's status: attached volumes that something here has, or is about to have. The attach and detach
 * controller takes none of them from under a mount.
 */
import { join } from 'node:path';
import { type Clock, sleep } from '../../../runtime/host/clock.ts';
import { listFolder } from '../../../runtime/host/files.ts';
import { keyedQueue } from '../../../runtime/host/keyed.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import type { ApiserverClient } from '../../apiserver/types.ts';
import { blockPaths, plugin, type VolumeData } from './paths.ts';
import { readData } from './users.ts';

export interface VolumesInUse {
  /** Resolves when the apiserver knows of it. Throws what the client throws; then it is not in use. */
  add(volume: VolumeData, signal: AbortSignal | undefined): Promise<void>;
  /** The apiserver is told, and again until it knows. */
  remove(volume: VolumeData): Promise<void>;
  /** Has the apiserver know what is on disk: after a start. */
  sync(): Promise<void>;
  close(): void;
}

const retryMs = 10_000;

/** kubelet's name for a volume in the Node's status. Pure. */
export const uniqueName = ({ driverName, volumeHandle }: VolumeData) =>
  `kubernetes.io/csi/${driverName}^${volumeHandle}`;

/** Names of the volumes that pods have, by what is on disk. */
export async function namesOnDisk(kubeletDir: string): Promise<Set<string>> {
  const names = new Set<string>();
  const pods = join(kubeletDir, 'pods');
  for (const uid of await listFolder(pods)) {
    const mounts = join(pods, uid, 'volumes', plugin);
    const folders = [
      ...(await listFolder(mounts)).map((name) => join(mounts, name)),
      ...(await listFolder(join(pods, uid, 'volumeDevices', plugin))).map(
        (name) => blockPaths(kubeletDir, name, uid).data,
      ),
    ];
    for (const folder of folders) {
      const data = await readData(folder).catch(() => undefined);
      if (data !== undefined && data.volumeLifecycleMode !== 'Ephemeral') names.add(uniqueName(data));
    }
  }
  return names;
}

export function makeVolumesInUse(options: {
  readonly kubeletDir: string;
  readonly client: ApiserverClient;
  readonly nodeName: string;
  readonly clock: Clock;
  readonly log: Logger;
}): VolumesInUse {
  const { kubeletDir, client, nodeName, clock, log } = options;
  const path = `/api/v1/nodes/${encodeURIComponent(nodeName)}/status`;
  const turns = keyedQueue();
  const stop = new AbortController();
  let names: Set<string> | undefined;
  /** What the apiserver was told last. */
  let told: string | undefined;

  const known = async (): Promise<Set<string>> => {
    names ??= await namesOnDisk(kubeletDir);
    return names;
  };

  /** Tells all of them, unless that is known. */
  const tell = (signal: AbortSignal | undefined): Promise<void> =>
    turns.run('', async () => {
      const list = [...(await known())].sort();
      const text = JSON.stringify(list);
      if (text === told) return;
      told = undefined;
      await client.patch(
        path,
        'merge',
        { status: { volumesInUse: list.length === 0 ? null : list } },
        signal === undefined ? {} : { signal },
      );
      told = text;
    });

  const tellUntilKnown = async (): Promise<void> => {
    while (!stop.signal.aborted) {
      try {
        return await tell(stop.signal);
      } catch (error) {
        if (stop.signal.aborted) return;
        log.warn({ err: error }, 'cannot tell which volumes are in use; trying again');
        await sleep(clock, retryMs, stop.signal).catch(() => {});
      }
    }
  };

  return {
    async add(volume, signal) {
      const all = await known();
      const name = uniqueName(volume);
      const isNew = !all.has(name);
      all.add(name);
      try {
        await tell(signal);
      } catch (error) {
        if (isNew) all.delete(name);
        throw error;
      }
    },
    async remove(volume) {
      (await known()).delete(uniqueName(volume));
      // Also where it was not among them: an earlier process may have said so.
      void tellUntilKnown();
    },
    sync: () => tell(stop.signal),
    close: () => stop.abort(),
  };
}
