/** A container's root file system: an overlay of the image's layers and a writable folder of its own. */
import { chmod, chown, lstat, mkdir } from 'node:fs/promises';
import { KeelsonError } from './host/errors.ts';
import { mount, umountFlags, unmount } from './host/syscalls.ts';
import { resolveInside } from './oci/user.ts';

/** Everything of one container on disk. */
export interface ContainerFolders {
  /** config.json, fifos, pid files; gone after a reboot. */
  readonly bundle: string;
  readonly rootfs: string;
  /** What the container writes; stays over a reboot. */
  readonly data: string;
}

/** mount(2) takes one page of options. */
const maxOptions = 4095;

/** Pure. Throws CONTAINER_CREATE_FAILED where the layers' paths do not fit. */
export function overlayOptions(layers: readonly string[], data: string): string {
  // Backslashes escape what overlayfs itself gives a meaning to.
  const quote = (path: string) => path.replace(/[\\:,]/g, '\\$&');
  const options = [
    `lowerdir=${layers.map(quote).join(':')}`,
    `upperdir=${quote(`${data}/upper`)}`,
    `workdir=${quote(`${data}/work`)}`,
  ].join(',');
  if (Buffer.byteLength(options) <= maxOptions) return options;
  throw new KeelsonError(
    'CONTAINER_CREATE_FAILED',
    `the image has too many layers to mount (${layers.length}): their paths exceed one page`,
    { hint: 'squash the image, or give keelson a stateDir with a shorter path' },
  );
}

/** Makes the folders and mounts. The root folder looks as in the topmost layer. */
export async function mountRootfs(folders: ContainerFolders, layers: readonly string[]): Promise<void> {
  const { rootfs, data } = folders;
  const top = layers[0];
  if (top === undefined) throw new KeelsonError('CONTAINER_CREATE_FAILED', 'the image has no layers');
  const upper = `${data}/upper`;
  const [info] = await Promise.all([
    lstat(top),
    mkdir(upper, { recursive: true, mode: 0o755 }),
    mkdir(`${data}/work`, { recursive: true, mode: 0o755 }),
    mkdir(rootfs, { recursive: true, mode: 0o755 }),
  ]);
  if (info.uid !== 0 || info.gid !== 0) await chown(upper, info.uid, info.gid);
  await chmod(upper, info.mode & 0o7777);
  mount('overlay', rootfs, 'overlay', 0, overlayOptions(layers, data));
}

/** Unmounts `path` if it is mounted; what still uses it keeps it until it lets go. */
export function unmountRootfs(path: string): void {
  // Twice mounted by a crash between mount and row is not possible, but costs nothing to undo.
  while (unmount(path, umountFlags.NOFOLLOW | umountFlags.DETACH));
}

/**
 * Makes the folders that the image declares as volumes, where they are missing, as CRI-O's `mkdir` does: Kubernetes
 * gives them no storage of their own.
 */
export async function makeImageVolumes(rootfs: string, volumes: readonly string[]): Promise<void> {
  for (const volume of volumes) {
    let known = '';
    for (const part of volume.split('/').filter((name) => name !== '' && name !== '.')) {
      if (part === '..') break;
      const parent = await resolveInside(rootfs, known === '' ? '/' : known);
      if (parent === undefined) break;
      known = `${known}/${part}`;
      if ((await resolveInside(rootfs, known)) === undefined) {
        // EEXIST: a link that leads nowhere; the image wanted it so.
        await mkdir(`${parent}/${part}`, { mode: 0o755 }).catch(() => {});
      }
    }
  }
}
