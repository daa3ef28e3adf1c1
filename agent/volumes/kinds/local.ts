/** local persistent volumes: a folder or a disk of this node (kubelet's kubernetes.io/local-volume). */
import { mkdir, realpath, rmdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf, KeelsonError } from '../../../runtime/host/errors.ts';
import { keyedQueue } from '../../../runtime/host/keyed.ts';
import type { Patience } from '../../../runtime/host/mounts/patience.ts';
import { unmountAside } from '../../../runtime/host/syscalls.ts';
import type { Pod } from '../../apiserver/types.ts';
import { mountsBelow } from '../mounts.ts';
import { bind, isMounted, makeReadOnly, mountDevice } from './filesystem.ts';
import type { Giving } from './giving.ts';
import type { VolumeKind, VolumeRequest } from './kind.ts';

export interface LocalOptions {
  /** kubelet's root folder. */
  readonly kubeletDir: string;
  readonly patience: Patience;
  readonly giving: Giving;
  readonly warn: (pod: Pod, reason: string, message: string) => void;
}

export function localKind({ kubeletDir, patience, giving, warn }: LocalOptions): VolumeKind {
  /** Pods that share a volume take turns: the first one gives it to its group. */
  const turns = keyedQueue();
  const globalFolder = (specName: string) =>
    join(kubeletDir, 'plugins/kubernetes.io/local-volume/mounts', specName);

  /** The folder of the node that pods get; a disk is mounted first. */
  async function source(request: VolumeRequest, path: string, isDisk: boolean): Promise<string> {
    if (!isDisk) return path;
    const folder = globalFolder(request.specName);
    // The apiserver keeps an empty one as it is.
    const fsType = request.source.local!.fsType || 'ext4';
    const options = [...(request.readOnly ? ['ro'] : []), ...request.mountOptions];
    await mountDevice(path, folder, fsType, options, request.signal);
    return folder;
  }

  async function mountFor(request: VolumeRequest, path: string, isDisk: boolean): Promise<void> {
    const { pod, folder, specName, signal } = request;
    const readOnly = request.readOnly && !isWritten(request);
    // One that was cut short may not be read-only yet.
    if (await isMounted(folder)) return readOnly ? makeReadOnly(folder) : undefined;
    // Before the disk is mounted for the node: by it the pod is known to have something to take away.
    await mkdir(folder, { recursive: true, mode: 0o750 });
    const from = await source(request, path, isDisk);
    const others = await podsWith(from, join(kubeletDir, 'pods'));
    const { fsGroup, fsGroupChangePolicy: changePolicy } = pod.spec?.securityContext ?? {};
    if (fsGroup !== undefined && others > 0) {
      const { gid } = await stat(from);
      if (gid !== fsGroup)
        warn(
          pod,
          'AlreadyMountedVolume',
          `The requested fsGroup is ${fsGroup}, but the volume ${specName} has GID ${gid}. The volume may not be shareable.`,
        );
    }
    // Before the pod has it: cut short, it is done again.
    if (fsGroup !== undefined && others === 0 && !readOnly)
      await giving.give({ pod, folder: from, shown: folder, gid: fsGroup, changePolicy, signal });
    await bind(from, folder, readOnly);
  }

  return {
    plugin: 'kubernetes.io~local-volume',
    has: ({ local }) => !!local,
    async setUp(request) {
      const { folder, readOnly, block, specName, signal } = request;
      const { path } = request.source.local!;
      if (path.split('/').includes('..'))
        throw new KeelsonError('VOLUME_FAILED', `invalid path: ${path} must not contain '..'`);
      const { real, kind } = await patience.ask(path, () => look(path), signal);
      if (block) {
        if (kind === 'disk') return { hostPath: real, readOnly, device: true };
        throw new KeelsonError('VOLUME_FAILED', `local volume ${specName}: ${path} is not a block device`);
      }
      if (kind === undefined)
        throw new KeelsonError(
          'VOLUME_FAILED',
          `only directory and block device are supported: ${path} is neither`,
        );
      await turns.run(specName, () => mountFor(request, real, kind === 'disk'));
      return { hostPath: folder, readOnly };
    },
    tearDown({ specName, folder }) {
      return turns.run(specName, async () => {
        if (await isMounted(folder)) await unmountAside(folder);
        const shared = globalFolder(specName);
        if (await isMounted(shared)) {
          if ((await podsWith(shared, join(kubeletDir, 'pods'))) > 0) return;
          await unmountAside(shared);
        }
        await rmdir(shared).catch((error: unknown) => {
          if (!['ENOENT', 'ENOTEMPTY'].includes(errnoOf(error) ?? '')) throw error;
        });
      });
    },
  };
}

/** A pod may have a volume twice, with one folder for both: containers get the one that is read-only as such. Pure. */
function isWritten({ pod, name }: VolumeRequest): boolean {
  const claims = (pod.spec?.volumes ?? []).map((volume) => ({
    name: volume.name,
    claim: volume.persistentVolumeClaim,
  }));
  const own = claims.find((one) => one.name === name)?.claim?.claimName;
  return claims.some(({ claim }) => claim !== undefined && claim.claimName === own && !claim.readOnly);
}

async function look(path: string): Promise<{ real: string; kind: 'folder' | 'disk' | undefined }> {
  try {
    const real = await realpath(path);
    const facts = await stat(real);
    return { real, kind: facts.isDirectory() ? 'folder' : facts.isBlockDevice() ? 'disk' : undefined };
  } catch (error) {
    throw new KeelsonError('VOLUME_FAILED', `local volume path ${path} cannot be used`, { cause: error });
  }
}

/** How many mounts below `podsDir` show the same folder as `path`. */
async function podsWith(path: string, podsDir: string): Promise<number> {
  const own = await stat(path);
  const points = await mountsBelow(await realpath(podsDir).catch(() => podsDir));
  const same = await Promise.all(
    points
      .filter((point) => point.includes('/volumes/kubernetes.io~local-volume/'))
      .map((point) =>
        stat(point).then(
          ({ dev, ino }) => dev === own.dev && ino === own.ino,
          () => false,
        ),
      ),
  );
  return same.filter(Boolean).length;
}
