/** SELinux labels of a container's process and files (container-selinux(8), selinux_contexts "container_contexts"). */
import { existsSync, readFileSync } from 'node:fs';
import { lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { SelinuxOption } from '../api.ts';
import { errnoOf, isError, KeelsonError } from '../host/errors.ts';
import { setXattr } from '../host/syscalls.ts';

export interface SelinuxLabels {
  /** Of the process. */
  readonly process: string;
  /** Of the files that are the container's. */
  readonly mount: string;
}

export interface Selinux {
  readonly enabled: boolean;
  /**
   * The labels for the given parts, `level` where none is given; undefined where the host has no SELinux or the container
   * is privileged. Throws CONTAINER_CONFIG_INVALID for parts that are none.
   */
  labelsFor(
    options: SelinuxOption | undefined,
    privileged: boolean,
    level: string,
  ): SelinuxLabels | undefined;
  /** Gives `path`, and all in it, the label. Throws CONTAINER_CREATE_FAILED; not where the file system has no labels. */
  relabel(path: string, label: string): Promise<void>;
}

/** Paths that would make the node unusable if they were relabelled. */
const never = new Set([
  '/',
  '/bin',
  '/boot',
  '/dev',
  '/etc',
  '/home',
  '/lib',
  '/lib64',
  '/opt',
  '/proc',
  '/root',
]);
for (const path of ['/run', '/sbin', '/srv', '/sys', '/tmp', '/usr', '/var', '/var/lib', '/var/log'])
  never.add(path);

/**
 * `wanted`: labels are used where the host can. Containers with labels see volumes only where those were relabelled, so it
 * is somebody's decision. `root` is /, and something else in tests.
 */
export function makeSelinux(wanted: boolean, root = '/'): Selinux {
  const enabled = wanted && existsSync(join(root, 'sys/fs/selinux/enforce'));
  const base = enabled ? readContexts(root) : undefined;
  return {
    enabled,
    labelsFor(options, privileged, level) {
      checkOption(options);
      if (base === undefined || privileged) return undefined;
      return labelsOf(base, { ...options, level: options?.level || level });
    },
    async relabel(path, label) {
      if (never.has(path)) {
        throw new KeelsonError(
          'CONTAINER_CONFIG_INVALID',
          `${path} belongs to the system: it is not relabelled for a container`,
        );
      }
      await relabelTree(path, label);
    },
  };
}

/** Two categories of the 1024, as every pod gets them, such as `s0:c12,c345`: from its random id (hexadecimal). Pure. */
export function levelFor(sandboxId: string): string {
  const first = Number.parseInt(sandboxId.slice(0, 8), 16) % 1023;
  const second = first + 1 + (Number.parseInt(sandboxId.slice(8, 16), 16) % (1023 - first));
  return `s0:c${first},c${second}`;
}

/** Also where there is no SELinux: what is no label anywhere is refused. Pure. */
export function checkOption(option: SelinuxOption | undefined): void {
  for (const [part, text] of Object.entries(option ?? {})) {
    const sound = part === 'level' ? /^[\w.,:-]*$/ : /^\w*$/;
    if (text !== undefined && !sound.test(text)) {
      throw new KeelsonError('CONTAINER_CONFIG_INVALID', `SELinux ${part} ${JSON.stringify(text)} is none`);
    }
  }
}

/** The file's type stays that of container files; everything else goes with the process. Pure. */
export function labelsOf(base: SelinuxLabels, { user, role, type, level }: SelinuxOption): SelinuxLabels {
  const [baseUser, baseRole, baseType] = base.process.split(':');
  const [fileUser, fileRole, fileType] = base.mount.split(':');
  return {
    process: [user || baseUser, role || baseRole, type || baseType, level || 's0'].join(':'),
    mount: [user || fileUser, fileRole, fileType, level || 's0'].join(':'),
  };
}

/** `process = "system_u:system_r:container_t:s0"` and the like. Pure. */
export function parseContexts(text: string): SelinuxLabels {
  const value = (key: string) => new RegExp(`^${key}\\s*=\\s*"([^"]+)"`, 'm').exec(text)?.[1];
  return {
    process: value('process') ?? 'system_u:system_r:container_t:s0',
    mount: value('file') ?? 'system_u:object_r:container_file_t:s0',
  };
}

function readContexts(root: string): SelinuxLabels {
  try {
    const config = readFileSync(join(root, 'etc/selinux/config'), 'utf8');
    const policy = /^\s*SELINUXTYPE=(\w+)/m.exec(config)?.[1] ?? 'targeted';
    return parseContexts(readFileSync(join(root, 'etc/selinux', policy, 'contexts/lxc_contexts'), 'utf8'));
  } catch {
    return parseContexts('');
  }
}

async function relabelTree(path: string, label: string): Promise<void> {
  const info = await lstat(path);
  try {
    setXattr(path, 'security.selinux', Buffer.from(`${label}\0`));
  } catch (error) {
    const errno = isError(error, 'SYSCALL_FAILED') ? error.details['errno'] : errnoOf(error);
    if (errno === 'ENOTSUP' || errno === 'EOPNOTSUPP') return;
    throw new KeelsonError('CONTAINER_CREATE_FAILED', `${path} cannot be relabelled: ${errno}`, {
      cause: error,
    });
  }
  if (!info.isDirectory()) return;
  for (const name of await readdir(path)) await relabelTree(join(path, name), label);
}
