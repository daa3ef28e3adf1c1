/**
 * Pinned namespaces: a sandbox's network, IPC and UTS namespace, each held by a bind mount on a file instead of by a
 * process.
 *
 * They are made on the main thread, in one synchronous stretch of about a millisecond: leave the own namespaces, pin,
 * configure, come back. Nothing else can run meanwhile, and the threads of libuv's pool have namespaces of their own
 * that stay as they are. Nothing may be started inside: threads and children would inherit the sandbox's namespaces.
 */
import { closeSync, mkdirSync, openSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import type { UserNamespace } from './api.ts';
import { errnoOf, isError, KeelsonError } from './host/errors.ts';
import {
  cloneFlags,
  linkUp,
  mount,
  mountFlags,
  setHostname,
  setns,
  umountFlags,
  unmount,
  unmountAside,
  unshare,
} from './host/syscalls.ts';
import type { JoinedNamespaces } from './oci/spec.ts';

export interface WantedNamespaces {
  readonly network: boolean;
  readonly ipc: boolean;
  /** Undefined: the host's UTS namespace. */
  readonly hostname: string | undefined;
  readonly sysctls: Readonly<Record<string, string>>;
  /** The user namespace that owns the others; absent: the host's. */
  readonly users?: UserNamespace;
}

export interface Pins {
  readonly network?: string;
  readonly ipc?: string;
  readonly uts?: string;
  readonly user?: string;
}

export interface NamespacePinner {
  /**
   * Makes `folder` with the pins in it: new namespaces, or those of the process `owner`, which has a user namespace.
   * Throws SANDBOX_CREATE_FAILED; then nothing is left.
   */
  pin(folder: string, wanted: WantedNamespaces, owner?: number): Pins;
  /** Calls `work`, which must be synchronous and short, inside the network namespace at `path`. Throws SYSCALL_FAILED. */
  inNetwork<T>(path: string, work: () => T): T;
  close(): void;
}

const kinds = ['net', 'ipc', 'uts'] as const;

/** As containerd: unprivileged processes may use low ports and ping. */
const defaultSysctls: Readonly<Record<string, string>> = {
  'net.ipv4.ip_unprivileged_port_start': '0',
  'net.ipv4.ping_group_range': '0 2147483647',
};

/** Pure: which pins a sandbox has. */
export function pinPaths(
  folder: string,
  wanted: Pick<WantedNamespaces, 'network' | 'ipc' | 'hostname' | 'users'>,
): Pins {
  return {
    network: wanted.network ? `${folder}/net` : undefined,
    ipc: wanted.ipc ? `${folder}/ipc` : undefined,
    uts: wanted.hostname === undefined ? undefined : `${folder}/uts`,
    user: wanted.users === undefined ? undefined : `${folder}/user`,
  };
}

/** Pure: the pins as containers join them. */
export function joinedPins(folder: string, wanted: WantedNamespaces): Omit<JoinedNamespaces, 'pid'> {
  const { user, ...pins } = pinPaths(folder, wanted);
  return user === undefined || wanted.users === undefined
    ? pins
    : { ...pins, user: { path: user, uids: wanted.users.uids, gids: wanted.users.gids } };
}

/** The path of the network namespace, if it is still pinned: after a reboot there may be a mere file. */
export function pinnedNetwork(folder: string): string | undefined {
  const path = `${folder}/net`;
  const [pin, around] = [path, folder].map((place) => statSync(place, { throwIfNoEntry: false }));
  return pin === undefined || pin.dev === around?.dev ? undefined : path;
}

/**
 * The file of a sysctl that belongs to a namespace of the sandbox. Dots and slashes separate as in sysctl.d(5): the
 * first one tells which. Pure. Throws SANDBOX_CREATE_FAILED for one that is not the sandbox's to set.
 */
export function sysctlPath(
  name: string,
  wanted: Pick<WantedNamespaces, 'network' | 'ipc'> & Partial<Pick<WantedNamespaces, 'hostname'>>,
): string {
  const first = /[./]/.exec(name)?.[0];
  const path = first === '.' ? name.replace(/[./]/g, (c) => (c === '.' ? '/' : '.')) : name;
  const parts = path.split('/');
  const sound = parts.every((part) => /^[\w.:@-]+$/.test(part) && part !== '.' && part !== '..');
  const network = parts[0] === 'net';
  const ipc =
    /^kernel\/(shm[a-z_]*|msg[a-z]*|sem|sem_next_id|auto_msgmni)$/.test(path) ||
    path.startsWith('fs/mqueue/');
  const uts = path === 'kernel/domainname';
  if (!sound || parts.length < 2 || (!network && !ipc && !uts)) {
    throw new KeelsonError('SANDBOX_CREATE_FAILED', `sysctl ${name} does not belong to a pod`, {
      hint: 'only net.*, kernel.shm*, kernel.msg*, kernel.sem, kernel.domainname and fs.mqueue.* do',
    });
  }
  if ((network && !wanted.network) || (ipc && !wanted.ipc) || (uts && wanted.hostname === undefined)) {
    throw new KeelsonError(
      'SANDBOX_CREATE_FAILED',
      `sysctl ${name} cannot be set: the pod shares the node's ${network ? 'network' : ipc ? 'IPC' : 'UTS'} namespace`,
    );
  }
  return `/proc/sys/${path}`;
}

/** Opens the own namespaces once, to come back to. */
export function makeNamespacePinner(): NamespacePinner {
  const own = kinds.map((kind) => openSync(`/proc/self/ns/${kind}`, 'r'));
  const comeBack = () => {
    try {
      for (const fd of own) setns(fd);
    } catch (error) {
      // In the wrong namespace every further step would be done to a pod or to the wrong host.
      writeSync(2, `cannot return to the own namespaces, ending: ${String(error)}\n`);
      process.kill(process.pid, 'SIGKILL');
    }
  };
  return {
    pin(folder, wanted, owner) {
      const pins = pinPaths(folder, wanted);
      const sysctls: [file: string, value: string, needed: boolean][] = [];
      if (wanted.network) {
        for (const [name, value] of Object.entries(defaultSysctls)) {
          sysctls.push([sysctlPath(name, wanted), value, false]);
        }
      }
      for (const [name, value] of Object.entries(wanted.sysctls)) {
        sysctls.push([sysctlPath(name, wanted), value, true]);
      }
      mkdirSync(folder, { recursive: true, mode: 0o700 });
      const files = Object.values(pins).filter((path) => path !== undefined);
      try {
        if (files.length === 0) return pins;
        for (const file of files) closeSync(openSync(file, 'wx', 0o444));
        try {
          if (pins.user !== undefined) mount(`/proc/${owner}/ns/user`, pins.user, null, mountFlags.BIND);
          if (owner === undefined) {
            unshare(
              (wanted.network ? cloneFlags.NEWNET : 0) |
                (wanted.ipc ? cloneFlags.NEWIPC : 0) |
                (wanted.hostname === undefined ? 0 : cloneFlags.NEWUTS),
            );
          } else {
            enter(owner, pins);
          }
          for (const [kind, file] of [
            ['net', pins.network],
            ['ipc', pins.ipc],
            ['uts', pins.uts],
          ] as const) {
            if (file !== undefined) mount(`/proc/thread-self/ns/${kind}`, file, null, mountFlags.BIND);
          }
          if (wanted.hostname !== undefined) setHostname(wanted.hostname);
          if (wanted.network) linkUp('lo');
          for (const [file, value, needed] of sysctls) writeSysctl(file, value, needed);
        } finally {
          comeBack();
        }
        return pins;
      } catch (error) {
        unpin(folder);
        if (isError(error, 'SANDBOX_CREATE_FAILED')) throw error;
        throw new KeelsonError('SANDBOX_CREATE_FAILED', 'cannot make the namespaces of the sandbox', {
          cause: error,
        });
      }
    },
    inNetwork(path, work) {
      const fd = openSync(path, 'r');
      try {
        try {
          setns(fd, cloneFlags.NEWNET);
          return work();
        } finally {
          comeBack();
        }
      } finally {
        closeSync(fd);
      }
    },
    close() {
      for (const fd of own) closeSync(fd);
    },
  };
}

/** Into the namespaces of `owner` that are to be pinned. */
function enter(owner: number, pins: Pins): void {
  const wanted = { net: pins.network, ipc: pins.ipc, uts: pins.uts };
  for (const kind of kinds) {
    if (wanted[kind] === undefined) continue;
    const fd = openSync(`/proc/${owner}/ns/${kind}`, 'r');
    try {
      setns(fd);
    } finally {
      closeSync(fd);
    }
  }
}

function writeSysctl(file: string, value: string, needed: boolean): void {
  try {
    writeFileSync(file, value, { flag: 'r+' });
  } catch (error) {
    if (!needed) return;
    throw new KeelsonError(
      'SANDBOX_CREATE_FAILED',
      `cannot set ${file} to ${JSON.stringify(value)}: ${errnoOf(error) ?? 'failed'}`,
      { cause: error, hint: 'the kernel of the node does not know it, or refuses the value' },
    );
  }
}

const mounted = ['net', 'ipc', 'uts', 'user', 'pid', 'shm'] as const;
const detach = umountFlags.NOFOLLOW | umountFlags.DETACH;

/** Unmounts whatever is pinned or mounted in a sandbox's folder and removes the folder. Idempotent. */
export function unpin(folder: string): void {
  for (const name of mounted) while (unmount(`${folder}/${name}`, detach));
  rmSync(folder, { recursive: true, force: true });
}

/** `unpin` without holding up the main thread: each unmount waits for all processors. */
export async function unpinAside(folder: string): Promise<void> {
  for (const name of mounted) while (await unmountAside(`${folder}/${name}`, detach));
  await rm(folder, { recursive: true, force: true });
}
