/** What images bring besides a root file system: images mounted as volumes, and the volumes that an image declares. */
import { chmod, chown } from 'node:fs/promises';
import { posix } from 'node:path';
import type { Mount } from '../api.ts';
import type { Context } from '../context.ts';
import { describe, isError, KeelsonError } from '../host/errors.ts';
import { type ContainerFolders, imageMountPlace, type LayerView, mountImage } from '../rootfs.ts';
import { resolveInside } from './user.ts';

/**
 * Mounts the images among `mounts` in the container's bundle, and keeps them for the container `id` as long as it is
 * there. Returns the mounts with the host paths. Throws CONTAINER_CONFIG_INVALID for contradictions,
 * CONTAINER_CREATE_FAILED (ImageVolumeMountFailed) for an image or a path in it that is not there.
 */
export async function mountImageVolumes(
  { images }: Pick<Context, 'images'>,
  places: ContainerFolders,
  id: string,
  mounts: readonly Mount[],
  view: LayerView,
): Promise<readonly Mount[]> {
  const ready: Mount[] = [];
  for (const [index, mount] of mounts.entries()) {
    const { image, imageSubPath = '', containerPath } = mount;
    if (image === undefined) {
      if (imageSubPath !== '') throw invalid(`mount ${containerPath} has an imageSubPath but no image`);
      ready.push(mount);
      continue;
    }
    if (mount.hostPath !== '') throw invalid(`mount ${containerPath} has both an image and a host path`);
    if (mount.propagation !== 'private') throw invalid(`the image mount ${containerPath} cannot propagate`);
    const target = imageMountPlace(places.bundle, index);
    try {
      const found = await images.forContainer(image.image);
      images.lease(found.id, id);
      await mountImage(places.bundle, target, found.layers, view);
    } catch (error) {
      if (isError(error, 'ABORTED')) throw error;
      throw failed(`image ${image.image} cannot be mounted at ${containerPath}: ${describe(error)}`, error);
    }
    const hostPath = await insideOf(target, imageSubPath);
    if (hostPath === undefined) {
      throw failed(
        `${JSON.stringify(imageSubPath)} is not in image ${image.image}, wanted at ${containerPath}`,
      );
    }
    // Its ids are those of the pod already.
    ready.push({ ...mount, hostPath, readonly: true, uidMappings: undefined, gidMappings: undefined });
  }
  return ready;
}

async function insideOf(root: string, path: string): Promise<string | undefined> {
  if (path.includes('\0') || path.startsWith('/') || path.split('/').includes('..')) return undefined;
  return path === '' ? root : resolveInside(root, path);
}

/**
 * The volumes that the image declares, as mounts of themselves: so a container whose root is read-only can write to
 * them, and what it writes goes when it goes, as in containerd, whose volumes begin with a copy of what the image has
 * there. Where something else is mounted at the place or above it, that is the volume.
 */
export async function declaredVolumes(
  rootfs: string,
  volumes: readonly string[],
  mounts: readonly Mount[],
): Promise<Mount[]> {
  const taken = mounts.map(({ containerPath }) => posix.resolve('/', containerPath));
  const found: Mount[] = [];
  for (const volume of volumes) {
    const place = posix.resolve('/', volume);
    if (place === '/' || taken.some((path) => place === path || place.startsWith(`${path}/`))) continue;
    const hostPath = await resolveInside(rootfs, place);
    if (hostPath === undefined || hostPath === rootfs) continue;
    found.push({ containerPath: place, hostPath, readonly: false, propagation: 'private' });
  }
  return found;
}

/** Lets the pod's mapped root, and nobody else on the node, walk to a root file system below `folders`. */
export async function openForGroup(
  shared: readonly string[],
  own: readonly string[],
  gid: number,
): Promise<void> {
  for (const folder of shared) await chmod(folder, 0o711);
  for (const folder of own) {
    await chown(folder, 0, gid);
    await chmod(folder, 0o710);
  }
}

function invalid(message: string): KeelsonError {
  return new KeelsonError('CONTAINER_CONFIG_INVALID', message);
}

function failed(message: string, cause?: unknown): KeelsonError {
  // The kubelet knows it by its first word.
  return new KeelsonError('CONTAINER_CREATE_FAILED', `ImageVolumeMountFailed: ${message}`, { cause });
}
