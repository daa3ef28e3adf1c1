/**
 * What pods have on disk: volumes and logs. Folders are walked, which is work for the disk, so what was found counts for
 * a minute, as with kubelet (volumeStatsAggPeriod).
 */
import { lstat, readdir, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../../runtime/host/clock.ts';
import { makePatience } from '../../../runtime/host/mounts/patience.ts';
import type { Pod } from '../../apiserver/types.ts';
import type { MeasuredVolume, Storage } from './summary.ts';

export interface StorageReader {
  /** Of the file system at `path`, which need not exist; undefined where it cannot be asked. `used` else what it says. */
  filesystem(
    path: string,
    used?: { readonly bytes: number; readonly inodes: number },
  ): Promise<Storage | undefined>;
  /** Of a folder with all below it on the same file system. */
  folder(path: string): Promise<Storage | undefined>;
  volumes(pod: Pod): Promise<readonly MeasuredVolume[]>;
  /** Forgets folders that were not asked for in the last minutes. */
  forget(): void;
}

interface Used {
  readonly bytes: number;
  readonly inodes: number;
}

const keepMs = 60_000;
const forgetMs = 600_000;
/** Block size of st_blocks, whatever the file system's own is. */
const statBlock = 512;
/** Deeper and wider than any volume that people make; what is more is not counted. */
const mostEntries = 1_000_000;

/** Bytes on disk and inodes below `root`, hard links once, without other file systems. Empty for what is not there. */
export async function measure(root: string): Promise<Used> {
  const linked = new Set<bigint>();
  let bytes = 0;
  let inodes = 0;
  const top = await lstat(root, { bigint: true }).catch(() => undefined);
  if (top === undefined) return { bytes, inodes };
  const folders = [root];
  bytes += Number(top.blocks) * statBlock;
  inodes++;
  for (let folder = folders.pop(); folder !== undefined && inodes < mostEntries; folder = folders.pop()) {
    const names = await readdir(folder).catch(() => []);
    for (const name of names) {
      const path = join(folder, name);
      const found = await lstat(path, { bigint: true }).catch(() => undefined);
      if (found === undefined || found.dev !== top.dev) continue;
      if (found.nlink > 1n && !found.isDirectory()) {
        if (linked.has(found.ino)) continue;
        linked.add(found.ino);
      }
      bytes += Number(found.blocks) * statBlock;
      inodes++;
      if (found.isDirectory()) folders.push(path);
    }
  }
  return { bytes, inodes };
}

/** Folders of kinds of volumes below that of the pod; `own`: on the node's own storage. */
const kinds = new Map<string, { readonly own: boolean }>([
  ['kubernetes.io~empty-dir', { own: true }],
  ['kubernetes.io~configmap', { own: true }],
  ['kubernetes.io~secret', { own: false }],
  ['kubernetes.io~projected', { own: false }],
  ['kubernetes.io~downward-api', { own: true }],
  ['kubernetes.io~csi', { own: false }],
  ['kubernetes.io~nfs', { own: false }],
  ['kubernetes.io~local-volume', { own: false }],
]);

export interface StorageOptions {
  readonly kubeletDir: string;
  readonly clock: Clock;
  /** What the driver of a CSI volume says of the volume in that folder, or of that device; undefined: nothing, the file system tells. */
  readonly csiUsage?: ((folder: string) => Promise<Omit<Storage, 'at'> | undefined>) | undefined;
}

export function makeStorageReader(options: StorageOptions): StorageReader {
  const { kubeletDir, clock, csiUsage } = options;
  /** A volume's server may be gone. */
  const patience = makePatience({ clock });
  const known = new Map<string, { at: number; asked: number; work: Promise<Used> }>();

  const used = (path: string): Promise<Used> => {
    const now = clock.monotonic();
    const before = known.get(path);
    if (before !== undefined && now - before.at < keepMs) {
      before.asked = now;
      return before.work;
    }
    const work = measure(path);
    known.set(path, { at: now, asked: now, work });
    return work;
  };

  const filesystem: StorageReader['filesystem'] = async (path, given) => {
    const found = await patience.ask(path, () => statfs(path)).catch(() => undefined);
    if (found === undefined) return undefined;
    const { bsize, blocks, bavail, bfree, files, ffree } = found;
    return {
      at: clock.now(),
      capacityBytes: blocks * bsize,
      availableBytes: bavail * bsize,
      usedBytes: given?.bytes ?? (blocks - bfree) * bsize,
      inodes: files,
      inodesFree: ffree,
      inodesUsed: given?.inodes ?? files - ffree,
    };
  };
  const folder = async (path: string) => filesystem(path, await used(path));

  return {
    filesystem,
    folder,
    async volumes(pod) {
      const uid = pod.metadata?.uid ?? '';
      const root = join(kubeletDir, 'pods', uid, 'volumes');
      const parent = await lstat(root).catch(() => undefined);
      if (parent === undefined) return [];
      const found = await Promise.all(
        [...kinds].map(async ([kind, { own }]) =>
          Promise.all(
            (await readdir(join(root, kind)).catch(() => [])).map(async (name) =>
              measureVolume(join(root, kind, name), name, kind, own, parent.dev),
            ),
          ),
        ),
      );
      const devices = join(kubeletDir, 'pods', uid, 'volumeDevices', 'kubernetes.io~csi');
      const told = await Promise.all(
        (await readdir(devices).catch(() => [])).map((name) => askDriver(join(devices, name), name)),
      );
      return [...found.flat(), ...told].filter((volume) => volume !== undefined);

      async function askDriver(path: string, name: string): Promise<MeasuredVolume | undefined> {
        const said = await csiUsage?.(path);
        if (said === undefined) return undefined;
        const { claim, volume } = claimOf(pod, name);
        return { name: volume, claim, ephemeral: false, storage: { at: clock.now(), ...said } };
      }

      async function measureVolume(
        path: string,
        name: string,
        kind: string,
        own: boolean,
        nodeDevice: number,
      ): Promise<MeasuredVolume | undefined> {
        const isCsi = kind === 'kubernetes.io~csi';
        const said = isCsi ? await askDriver(path, name) : undefined;
        if (said !== undefined) return said;
        const inside = isCsi ? join(path, 'mount') : path;
        const at = await patience.ask(inside, () => lstat(inside)).catch(() => undefined);
        if (at === undefined) return undefined;
        const mounted = at.dev !== nodeDevice;
        // A file system of its own knows itself; memory counts as memory.
        const storage = mounted ? await filesystem(inside) : await folder(inside);
        if (storage === undefined) return undefined;
        const { claim, volume } = claimOf(pod, name);
        return { name: volume, claim, ephemeral: own && !mounted, storage };
      }
    },
    forget() {
      const now = clock.monotonic();
      for (const [path, { asked }] of known) if (now - asked > forgetMs) known.delete(path);
    },
  };
}

/** The volume of the pod that a folder is of: those of claims may be named for their PersistentVolume. Pure. */
function claimOf(pod: Pod, folder: string) {
  const namespace = pod.metadata?.namespace ?? '';
  const volumes = pod.spec?.volumes ?? [];
  const found = volumes.find(({ name }) => name === folder);
  const claims = volumes.filter(
    ({ persistentVolumeClaim, ephemeral }) => persistentVolumeClaim !== undefined || ephemeral !== undefined,
  );
  const volume = found ?? (claims.length === 1 ? claims[0] : undefined);
  const claim =
    volume?.persistentVolumeClaim?.claimName ??
    (volume?.ephemeral === undefined ? undefined : `${pod.metadata?.name}-${volume.name}`);
  return {
    volume: volume?.name ?? folder,
    claim: claim === undefined ? undefined : { name: claim, namespace },
  };
}
