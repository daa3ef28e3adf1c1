/** What is mounted in a container and how mounts travel between it and the host. Pure, but for reading mountinfo. */

import { readFileSync } from 'node:fs';
import { posix } from 'node:path';
import type { Mount } from '../api.ts';
import { KeelsonError } from '../host/errors.ts';
import { unescapePath } from '../host/mounts/mountinfo.ts';
import { idMappings, type OciMount } from './config.ts';
import type { OciFeatures } from './features.ts';

/** A line of /proc/<pid>/mountinfo (proc_pid_mountinfo(5)). */
export interface MountPoint {
  readonly path: string;
  readonly shared: boolean;
  readonly slave: boolean;
}

/** Pure. Lines that are not of the form are passed over. */
export function parseMountinfo(text: string): MountPoint[] {
  const found: MountPoint[] = [];
  for (const line of text.split('\n')) {
    const fields = line.split(' ');
    const path = fields[4];
    const end = fields.indexOf('-', 6);
    if (path === undefined || end === -1) continue;
    const optional = fields.slice(6, end);
    found.push({
      path: unescapePath(path),
      shared: optional.some((field) => field.startsWith('shared:')),
      slave: optional.some((field) => field.startsWith('master:')),
    });
  }
  return found;
}

/** The mounts of this process. About 0.2 ms. */
export function readMounts(): MountPoint[] {
  return parseMountinfo(readFileSync('/proc/self/mountinfo', 'latin1'));
}

/** The mount that `path` (absolute, without links) lies on: the deepest, and of several there the last. Pure. */
export function mountOf(path: string, mounts: readonly MountPoint[]): MountPoint | undefined {
  let best: MountPoint | undefined;
  for (const mount of mounts) {
    const over = mount.path === '/' || path === mount.path || path.startsWith(`${mount.path}/`);
    if (over && (best === undefined || mount.path.length >= best.path.length)) best = mount;
  }
  return best;
}

export interface SandboxFiles {
  readonly resolvConf: string;
  readonly hostname: string;
  readonly shm: string;
}

export interface MountPlan {
  readonly mounts: readonly OciMount[];
  readonly rootfsPropagation?: 'rshared' | 'rslave';
}

/**
 * The mounts of a container in order: the system's own, the sandbox's files, then the wanted ones, shallow before deep.
 * A wanted mount replaces a default one at the same place (a wanted /dev also those below it), as in containerd.
 * Pure. Throws CONTAINER_CONFIG_INVALID for places that are not absolute, for propagation that the host side lacks and for
 * what the runtime cannot do (RROUnsupported).
 */
export function planMounts(options: {
  readonly wanted: readonly Mount[];
  readonly files: SandboxFiles;
  readonly privileged: boolean;
  readonly readonlyRootfs: boolean;
  readonly hostMounts: readonly MountPoint[];
  readonly features: Pick<OciFeatures, 'recursiveReadonly' | 'idmap'>;
}): MountPlan {
  const { wanted, files, privileged, readonlyRootfs, hostMounts, features } = options;
  const places = new Set<string>();
  for (const { containerPath, hostPath } of wanted) {
    for (const [what, path] of [
      ['containerPath', containerPath],
      ['hostPath', hostPath],
    ] as const) {
      if (!path.startsWith('/') || path.includes('\0')) {
        throw invalid(`the ${what} of a mount must be an absolute path, not ${JSON.stringify(path)}`);
      }
    }
    places.add(clean(containerPath));
  }
  const protect = privileged ? 'rw' : 'ro';
  const system: OciMount[] = [
    { destination: '/proc', type: 'proc', source: 'proc', options: ['nosuid', 'noexec', 'nodev'] },
    {
      destination: '/dev',
      type: 'tmpfs',
      source: 'tmpfs',
      options: ['nosuid', 'strictatime', 'mode=755', 'size=65536k'],
    },
    {
      destination: '/dev/pts',
      type: 'devpts',
      source: 'devpts',
      options: ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5'],
    },
    { destination: '/dev/mqueue', type: 'mqueue', source: 'mqueue', options: ['nosuid', 'noexec', 'nodev'] },
    { destination: '/sys', type: 'sysfs', source: 'sysfs', options: ['nosuid', 'noexec', 'nodev', protect] },
    {
      destination: '/sys/fs/cgroup',
      type: 'cgroup',
      source: 'cgroup',
      options: ['nosuid', 'noexec', 'nodev', 'relatime', protect],
    },
  ];
  const own = [
    bind('/dev/shm', files.shm, []),
    bind('/etc/hostname', files.hostname, [readonlyRootfs ? 'ro' : 'rw']),
    bind('/etc/resolv.conf', files.resolvConf, [readonlyRootfs ? 'ro' : 'rw']),
  ];
  const keeps = ({ destination }: OciMount) =>
    !places.has(destination) && !(places.has('/dev') && destination.startsWith('/dev/'));
  let rootfsPropagation: MountPlan['rootfsPropagation'];
  const binds = wanted.map((mount): OciMount => {
    const { uidMappings = [], gidMappings = [] } = mount;
    const mapped = uidMappings.length > 0 || gidMappings.length > 0;
    if (mapped) checkMappings(mount, features.idmap);
    const host = mountOf(clean(mount.hostPath), hostMounts);
    let travels = 'rprivate';
    if (mount.propagation === 'bidirectional') {
      if (!host?.shared) throw notPropagated(mount, host, 'shared');
      rootfsPropagation = 'rshared';
      travels = 'rshared';
    } else if (mount.propagation === 'host-to-container') {
      if (!host?.shared && !host?.slave) throw notPropagated(mount, host, 'shared or slave');
      rootfsPropagation ??= 'rslave';
      travels = 'rslave';
    }
    const more = mountOptions(mount);
    const access = accessOf(mount, features.recursiveReadonly);
    return {
      ...bind(clean(mount.containerPath), mount.hostPath, [access, travels, ...more]),
      ...(mapped ? { uidMappings: idMappings(uidMappings), gidMappings: idMappings(gidMappings) } : {}),
    };
  });
  const depth = ({ destination }: OciMount) => (destination === '/' ? 0 : destination.split('/').length);
  return {
    mounts: [
      ...system.filter(keeps),
      ...[...own.filter(keeps), ...binds].sort((a, b) => depth(a) - depth(b)),
    ],
    rootfsPropagation,
  };
}

function accessOf(mount: Mount, recursiveReadonly: boolean): 'ro' | 'rw' | 'rro' {
  if (!mount.recursiveReadonly) return mount.readonly ? 'ro' : 'rw';
  if (!mount.readonly) throw invalid(`the recursive read-only mount ${mount.containerPath} is not read-only`);
  if (mount.propagation !== 'private') {
    throw invalid(
      `the recursive read-only mount ${mount.containerPath} must not propagate (${mount.propagation})`,
    );
  }
  if (recursiveReadonly) return 'rro';
  throw invalid(
    // The kubelet knows it by its first word.
    `RROUnsupported: the runtime handler does not support recursive read-only mounts (${mount.hostPath})`,
    'it takes Linux 5.12 and runc 1.1 or crun 1.8.6',
  );
}

const knownOptions = new Set([
  'noexec',
  'nodev',
  'nosuid',
  'noatime',
  'nodiratime',
  'relatime',
  'nosymfollow',
]);

function mountOptions({ mountOptions: options = [], containerPath }: Mount): readonly string[] {
  const unknown = options.find((option) => !knownOptions.has(option));
  if (unknown === undefined) return options;
  throw invalid(
    `mount option ${JSON.stringify(unknown)} of ${containerPath} is not one of ${[...knownOptions].join(', ')}`,
  );
}

function checkMappings({ containerPath, uidMappings = [], gidMappings = [] }: Mount, idmap: boolean): void {
  if (uidMappings.length === 0 || gidMappings.length === 0) {
    throw invalid(`the idmapped mount ${containerPath} needs mappings of users and of groups`);
  }
  if (idmap) return;
  throw invalid(
    `the runtime handler does not support idmapped mounts (${containerPath})`,
    'it takes runc 1.2 or crun 1.9, and Linux 5.19',
  );
}

function bind(destination: string, source: string, options: readonly string[]): OciMount {
  return { destination, type: 'bind', source, options: ['rbind', ...options] };
}

function clean(path: string): string {
  const normal = posix.normalize(path);
  return normal.length > 1 && normal.endsWith('/') ? normal.slice(0, -1) : normal;
}

function invalid(message: string, hint?: string): KeelsonError {
  return new KeelsonError('CONTAINER_CONFIG_INVALID', message, { hint });
}

function notPropagated(mount: Mount, host: MountPoint | undefined, needed: string): KeelsonError {
  const on = host?.path ?? '/';
  return invalid(
    `mount propagation ${mount.propagation} of ${mount.hostPath}: it is on the mount ${on}, which is not ${needed}`,
    `run "mount --make-rshared ${on}" on the node, as systemd does for /`,
  );
}
