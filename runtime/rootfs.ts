/** A container's root file system: an overlay of the image's layers and a writable folder of its own. */
import { readdirSync } from 'node:fs';
import { chmod, chown, lstat, mkdir } from 'node:fs/promises';
import { basename } from 'node:path';
import type { IdMapping } from './api.ts';
import { KeelsonError } from './host/errors.ts';
import { mountAside, mountFlags, mountShifted, umountFlags, unmount, unmountAside } from './host/syscalls.ts';
import { resolveInside } from './oci/user.ts';
import { outsideId } from './security/userns.ts';

/** Everything of one container on disk. */
export interface ContainerFolders {
  /** config.json, fifos, pid files; gone after a reboot. */
  readonly bundle: string;
  readonly rootfs: string;
  /** What the container writes; stays over a reboot. */
  readonly data: string;
}

/** How the files of layers appear in a container. */
export interface LayerView {
  /** Where it has a user namespace. */
  readonly ids?: LayerIds;
  /** The SELinux label of all of them, where the host has SELinux. */
  readonly label?: string;
}

/** How ids of the layers appear in a container with a user namespace. */
export interface LayerIds {
  /** Path of the pinned user namespace. */
  readonly namespace: string;
  readonly uids: readonly IdMapping[];
  readonly gids: readonly IdMapping[];
}

/** mount(2) takes one page of options. */
const maxOptions = 4095;

/** Pure; without `data` for a read-only mount of several layers. Throws CONTAINER_CREATE_FAILED where paths do not fit. */
export function overlayOptions(layers: readonly string[], data?: string, label?: string): string {
  // Backslashes escape what overlayfs itself gives a meaning to.
  const quote = (path: string) => path.replace(/[\\:,]/g, '\\$&');
  const writable =
    data === undefined ? [] : [`upperdir=${quote(`${data}/upper`)}`, `workdir=${quote(`${data}/work`)}`];
  // Quoted, since levels contain commas.
  const labelled = label === undefined ? [] : [`context="${label}"`];
  const options = [`lowerdir=${layers.map(quote).join(':')}`, ...writable, ...labelled].join(',');
  if (Buffer.byteLength(options) <= maxOptions) return options;
  throw new KeelsonError(
    'CONTAINER_CREATE_FAILED',
    `the image has too many layers to mount (${layers.length}): their paths exceed one page`,
    { hint: 'squash the image, or give keelson a stateDir with a shorter path' },
  );
}

/** Makes the folders and mounts. The root folder looks as in the topmost layer. */
export async function mountRootfs(
  folders: ContainerFolders,
  layers: readonly string[],
  { ids, label }: LayerView = {},
): Promise<void> {
  const { bundle, rootfs, data } = folders;
  const top = layers[0];
  if (top === undefined) throw new KeelsonError('CONTAINER_CREATE_FAILED', 'the image has no layers');
  const upper = `${data}/upper`;
  const [info] = await Promise.all([
    lstat(top),
    mkdir(upper, { recursive: true, mode: 0o755 }),
    mkdir(`${data}/work`, { recursive: true, mode: 0o755 }),
    mkdir(rootfs, { recursive: true, mode: 0o755 }),
  ]);
  const uid = ids === undefined ? info.uid : outsideId(ids.uids, info.uid);
  const gid = ids === undefined ? info.gid : outsideId(ids.gids, info.gid);
  if (uid !== 0 || gid !== 0) await chown(upper, uid, gid);
  await chmod(upper, info.mode & 0o7777);
  await withIds(bundle, rootfs, layers, ids, (lower) =>
    mountAside('overlay', rootfs, 'overlay', 0, overlayOptions(lower, data, label)),
  );
}

/** Mounts an image's layers to be read at `target`, which is made. `bundle` is that of the container. */
export async function mountImage(
  bundle: string,
  target: string,
  layers: readonly string[],
  { ids, label }: LayerView = {},
): Promise<void> {
  // overlayfs wants two layers at least where there is nothing to write to.
  const empty = `${bundle}/empty`;
  await mkdir(target, { recursive: true, mode: 0o755 });
  await mkdir(empty, { recursive: true, mode: 0o755 });
  await withIds(bundle, target, layers, ids, (lower) =>
    mountAside(
      'overlay',
      target,
      'overlay',
      mountFlags.RDONLY,
      overlayOptions([...lower, empty], undefined, label),
    ),
  );
}

/**
 * Lets `body` mount layers whose ids are shifted at `target`; the overlay keeps what it needs of them. Others of the bundle
 * may be mounted at the same time.
 */
async function withIds(
  bundle: string,
  target: string,
  layers: readonly string[],
  ids: LayerIds | undefined,
  body: (layers: readonly string[]) => Promise<void>,
): Promise<void> {
  if (ids === undefined) return body(layers);
  const places = layers.map((_, index) => `${bundle}/${shiftedFolder}/${basename(target)}-${index}`);
  for (const place of places) await mkdir(place, { recursive: true, mode: 0o700 });
  try {
    layers.forEach((layer, index) => {
      mountShifted(layer, places[index]!, ids.namespace);
    });
    await body(places);
  } finally {
    for (const place of places) unmountRootfs(place);
  }
}

const shiftedFolder = 'shifted';
const imagesFolder = 'images';

/** Where the image volumes of a container are mounted. */
export function imageMountPlace(bundle: string, index: number): string {
  return `${bundle}/${imagesFolder}/${index}`;
}

/** Unmounts `path` if it is mounted; what still uses it keeps it until it lets go. */
export function unmountRootfs(path: string): void {
  // Twice mounted by a crash between mount and row is not possible, but costs nothing to undo.
  while (unmount(path, umountFlags.NOFOLLOW | umountFlags.DETACH));
}

/** Unmounts all that is mounted in a container's bundle. */
export async function unmountBundle(bundle: string): Promise<void> {
  const below = [imagesFolder, shiftedFolder].flatMap((folder) =>
    namesIn(`${bundle}/${folder}`).map((name) => `${bundle}/${folder}/${name}`),
  );
  for (const path of [`${bundle}/rootfs`, ...below]) {
    while (await unmountAside(path, umountFlags.NOFOLLOW | umountFlags.DETACH));
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
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
