/** Device nodes of the host, as a container is given them. */
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { KeelsonError } from '../host/errors.ts';
import type { OciDevice } from './config.ts';

export type GrantedDevice = OciDevice & { readonly access: string };

/** In /dev, but of a container's own making or no devices. */
const notDevices = new Set(['pts', 'shm', 'fd', 'mqueue', 'console', '.lxc', '.lxd-mounts', '.udev']);

/** The devices that a container asks for; folders stand for all in them. Throws CONTAINER_CONFIG_INVALID. */
export async function wantedDevices(
  wanted: readonly {
    readonly containerPath: string;
    readonly hostPath: string;
    readonly permissions: string;
  }[],
): Promise<GrantedDevice[]> {
  const lists = await Promise.all(
    wanted.map(async ({ containerPath, hostPath, permissions }) => {
      if (!/^[rwm]{0,3}$/.test(permissions) || !containerPath.startsWith('/')) {
        throw new KeelsonError(
          'CONTAINER_CONFIG_INVALID',
          `device ${hostPath}: permissions ${JSON.stringify(permissions)} at ${JSON.stringify(containerPath)} make no sense`,
        );
      }
      const info = await stat(hostPath).catch(() => undefined);
      const found = info?.isDirectory()
        ? await devicesBelow(hostPath, containerPath)
        : [await deviceAt(hostPath, containerPath)].filter((device) => device !== undefined);
      if (found.length === 0) {
        throw new KeelsonError('CONTAINER_CONFIG_INVALID', `${hostPath} is no device on this node`);
      }
      return found.map((device) => ({ ...device, access: permissions || 'rwm' }));
    }),
  );
  return lists.flat();
}

/** All devices of the host, for privileged containers. */
export async function hostDevices(root = '/dev'): Promise<GrantedDevice[]> {
  return (await devicesBelow(root, '/dev')).map((device) => ({ ...device, access: 'rwm' }));
}

async function devicesBelow(folder: string, place: string): Promise<OciDevice[]> {
  const entries = await readdir(folder, { withFileTypes: true });
  const lists = await Promise.all(
    entries
      .filter(({ name }) => !notDevices.has(name))
      .map(async (entry): Promise<OciDevice[]> => {
        const path = join(folder, entry.name);
        if (entry.isDirectory()) return devicesBelow(path, join(place, entry.name));
        if (!entry.isCharacterDevice() && !entry.isBlockDevice()) return [];
        // A link is left to what it leads to.
        const device = await deviceAt(path, join(place, entry.name));
        return device === undefined ? [] : [device];
      }),
  );
  return lists.flat();
}

/** The device node at `hostPath`, links followed, as it is to be at `place`; undefined where there is none. */
export async function deviceAt(hostPath: string, place: string): Promise<OciDevice | undefined> {
  const info = await stat(hostPath, { bigint: true }).catch(() => undefined);
  const type = info?.isCharacterDevice() ? 'c' : info?.isBlockDevice() ? 'b' : undefined;
  if (info === undefined || type === undefined) return undefined;
  const { rdev } = info;
  return {
    path: place,
    type,
    // glibc's gnu_dev_major and gnu_dev_minor.
    major: Number(((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn)),
    minor: Number((rdev & 0xffn) | ((rdev >> 12n) & ~0xffn)),
    fileMode: Number(info.mode) & 0o777,
    uid: Number(info.uid),
    gid: Number(info.gid),
  };
}
