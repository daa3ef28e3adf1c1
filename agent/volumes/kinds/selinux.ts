/**
 * The label with which a file system is mounted, so that its files need not be labelled one by one (CSIDriver
 * `seLinuxMount`, KEP-1710; volumeutil.GetMountSELinuxLabel).
 */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { Pod } from '../../apiserver/types.ts';
import type { CsiDriverObject, CsiVolume } from '../csi/decide.ts';

interface Options {
  readonly user?: string;
  readonly role?: string;
  readonly type?: string;
  readonly level?: string;
}

/**
 * The context of files of every container that mounts the volume; undefined where it is not mounted with one: no
 * SELinux (`base` undefined), a driver that cannot, a pod that wants its files labelled one by one, or no level to
 * go by, which the runtime would choose. Throws VOLUME_FAILED where containers want different ones. Pure.
 *
 * @param name of the volume in the pod
 * @param base the host's context of containers' files, such as `system_u:object_r:container_file_t:s0`
 */
export function mountLabel(
  pod: Pod,
  name: string,
  volume: CsiVolume,
  object: CsiDriverObject | undefined,
  base: string | undefined,
): string | undefined {
  if (base === undefined || object?.spec.seLinuxMount !== true) return undefined;
  if (volume.mode !== 'Persistent' || volume.block) return undefined;
  const ofPod = pod.spec?.securityContext as
    | { seLinuxOptions?: Options; seLinuxChangePolicy?: string }
    | undefined;
  const { initContainers = [], containers = [], ephemeralContainers = [] } = pod.spec ?? {};
  const labels = new Set<string>();
  for (const { volumeMounts = [], securityContext } of [
    ...initContainers,
    ...containers,
    ...ephemeralContainers,
  ]) {
    if (!volumeMounts.some((mount) => mount.name === name)) continue;
    const options = securityContext?.seLinuxOptions ?? ofPod?.seLinuxOptions;
    // Those without any take what comes.
    if (options !== undefined) labels.add(labelOf(options, base));
  }
  if (labels.size > 1)
    throw new KeelsonError(
      'VOLUME_FAILED',
      `multiple SELinux labels found: ${[...labels].sort().join(',')}`,
      { hint: 'give all containers that mount the volume the same seLinuxOptions' },
    );
  const [label] = labels;
  return !label || ofPod?.seLinuxChangePolicy === 'Recursive' ? undefined : label;
}

/** The type of files stays the host's; empty where nothing says which level. */
function labelOf(options: Options, base: string): string {
  if (!options.level) return '';
  const [user, role, type] = base.split(':');
  return [options.user || user, role, type, options.level].join(':');
}

/** The volume, mounted with the label. Quoted, since levels have commas. */
export function withLabel(volume: CsiVolume, label: string | undefined): CsiVolume {
  if (label === undefined) return volume;
  return { ...volume, mountOptions: [...volume.mountOptions, `context="${label}"`] };
}

/** As `base` of `mountLabel`. `root` is /, and something else in tests. */
export async function fileContext(root = '/'): Promise<string | undefined> {
  if (!existsSync(join(root, 'sys/fs/selinux/enforce'))) return undefined;
  const text = (path: string) => readFile(join(root, path), 'utf8').catch(() => '');
  const policy = /^\s*SELINUXTYPE=(\w+)/m.exec(await text('etc/selinux/config'))?.[1] ?? 'targeted';
  const contexts = await text(`etc/selinux/${policy}/contexts/lxc_contexts`);
  return /^file\s*=\s*"([^"]+)"/m.exec(contexts)?.[1] ?? 'system_u:object_r:container_file_t:s0';
}
