/** emptyDir volumes: on disk, in memory (tmpfs) or in huge pages. */
import { chmod, chown, lstat, mkdir, rename } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { removeTree, temporaryPrefix } from '../../runtime/host/files.ts';
import { mount } from '../../runtime/host/syscalls.ts';
import { parseQuantity, wholeUnits } from '../apiserver/quantity.ts';
import type { Pod, Volume } from '../apiserver/types.ts';
import type { VolumeKind } from './kinds/kind.ts';
import { isMountPoint, mountTmpfs } from './mounts.ts';

/** What a volume is that says nothing of itself, too. */
export function emptyDirKind(): VolumeKind {
  return {
    plugin: 'kubernetes.io~empty-dir',
    has: (source) => !!source.emptyDir || Object.values(source).every((one) => !one),
    async setUp({ pod, source: { emptyDir }, folder }) {
      await makeEmptyDir(folder, emptyDir ?? {}, pod);
      return { hostPath: folder, readOnly: false };
    },
  };
}

type EmptyDir = NonNullable<Volume['emptyDir']>;

/**
 * Makes the volume at `folder`, whose parent exists. What is there already is left as its containers made it.
 * Throws VOLUME_FAILED for an unknown medium, else the error of the file system.
 */
async function makeEmptyDir(folder: string, source: EmptyDir, pod: Pod): Promise<void> {
  const medium = source.medium ?? '';
  const fsGroup = pod.spec?.securityContext?.fsGroup;
  if (medium === '') return makeOnDisk(folder, fsGroup);
  const isHuge = medium === 'HugePages' || medium.startsWith('HugePages-');
  if (medium !== 'Memory' && !isHuge) {
    throw new KeelsonError('VOLUME_FAILED', `unknown storage medium "${medium}"`);
  }
  await mkdir(folder, { recursive: true });
  if (await isMountPoint(folder)) return;
  // Owner and mode come with the mount, so that a crash cannot leave it half made.
  const rights = (sticky: number) => [
    `mode=${sticky + (fsGroup === undefined ? 0 : 2)}777`,
    `gid=${fsGroup ?? 0}`,
  ];
  if (isHuge) {
    mount('nodev', folder, 'hugetlbfs', 0, [...rights(0), `pagesize=${hugePageSize(medium, pod)}`].join(','));
  } else {
    const size = memoryLimit(source, pod);
    // A tmpfs has the sticky bit by itself, and keeps it in pods.
    mountTmpfs(folder, size === undefined ? rights(1) : [...rights(1), `size=${size}`]);
  }
}

/** A folder of mode 0777. It gets its name last: where it is, it is complete. */
async function makeOnDisk(folder: string, fsGroup: number | undefined): Promise<void> {
  try {
    const facts = await lstat(folder);
    if (facts.isDirectory()) return;
    throw new KeelsonError('VOLUME_FAILED', `${folder} is not a folder`);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
  const half = join(dirname(folder), `${temporaryPrefix}${basename(folder)}`);
  await removeTree(half);
  await mkdir(half);
  if (fsGroup !== undefined) await chown(half, 0, fsGroup);
  await chmod(half, fsGroup === undefined ? 0o777 : 0o2777);
  await rename(half, folder);
}

/** Bytes: the smaller of sizeLimit and what all containers may use together; undefined where neither is set. Pure. */
export function memoryLimit(source: EmptyDir, pod: Pod): number | undefined {
  const limits = (pod.spec?.containers ?? []).map(({ resources }) => resources?.limits?.['memory']);
  const bounded = limits.length > 0 && limits.every((limit) => limit !== undefined);
  const total = bounded ? limits.reduce((sum, limit) => sum + wholeUnits(limit!), 0) : 0;
  const own = source.sizeLimit === undefined ? 0 : wholeUnits(source.sizeLimit);
  const candidates = [total, own].filter((bytes) => bytes > 0);
  return candidates.length === 0 ? undefined : Math.min(...candidates);
}

/**
 * Bytes of a page: the medium says it, or the only size that the pod asks for. What is not asked for cannot be mounted
 * (getPageSizeMountOption). Throws VOLUME_FAILED. Pure.
 */
export function hugePageSize(medium: string, pod: Pod): number {
  const prefix = 'hugepages-';
  const own = medium === 'HugePages' ? undefined : pageSizeOf(medium.slice('HugePages-'.length), medium);
  const { containers = [], initContainers = [] } = pod.spec ?? {};
  const ofPod = (pod.spec as { resources?: { requests?: object; limits?: object } } | undefined)?.resources;
  const asked = new Set<number>();
  for (const needs of [ofPod, ...[...containers, ...initContainers].map(({ resources }) => resources)]) {
    for (const name of Object.keys({ ...needs?.limits, ...needs?.requests })) {
      if (!name.startsWith(prefix)) continue;
      const size = pageSizeOf(name.slice(prefix.length), name);
      if (own === undefined || size === own) asked.add(size);
    }
  }
  const [size, ...others] = asked;
  if (others.length > 0) {
    throw new KeelsonError(
      'VOLUME_FAILED',
      `medium: ${medium} can't be used if container requests multiple huge page sizes`,
      { hint: 'name the size in the medium, such as HugePages-2Mi' },
    );
  }
  if (size === undefined)
    throw new KeelsonError(
      'VOLUME_FAILED',
      `medium ${medium}: hugePages storage requested, but there is no resource request for huge pages`,
    );
  return size;
}

function pageSizeOf(text: string, from: string): number {
  try {
    return parseQuantity(text);
  } catch (cause) {
    throw new KeelsonError('VOLUME_FAILED', `${JSON.stringify(from)} names no size of huge pages`, { cause });
  }
}
