/**
 * The mounts that OCI runtimes get to see. A full node has a thousand mounts, five to ten for each pod, and runc reads the
 * whole list of them several times for each container, copies it with the container's mount namespace, and takes the copy
 * apart again: at a hundred pods that is a good part of its processor time. So it runs in a mount namespace of its own, with
 * what the system has (proc, sys, dev, the file systems of keelson's folders and of programs) and nothing of other pods;
 * for the creation of a container what that one needs is added.
 *
 * Namespaces are entered on the main thread, in one synchronous stretch: nothing else can run meanwhile, and all
 * other threads stay where they are.
 */
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { mountPoints } from '../host/mounts/mountinfo.ts';
import type { Patience } from '../host/mounts/patience.ts';
import {
  attachMount,
  cloneFlags,
  copyMount,
  copyMountAside,
  fchdir,
  mount,
  mountFlags,
  setns,
  umountFlags,
  unmount,
  unshare,
} from '../host/syscalls.ts';

export interface MountView {
  /** Calls `start`, which must be synchronous and short; a process that it starts sees the view. */
  within<T>(start: () => T): T;
  /**
   * A mount namespace with the view and what is mounted at and below these paths, as a descriptor that the caller closes:
   * `own` ones answer at once, `others` may not. Paths whose file system the view lacks, and `/`, cannot be added. Throws SYSCALL_FAILED, VOLUME_FAILED where one
   * does not answer, ABORTED.
   */
  extend(own: readonly string[], others: readonly string[], signal?: AbortSignal): Promise<number>;
  /** Absolute path of nsenter(1). */
  readonly nsenter: string;
  close(): void;
}

/** Always seen: what the kernel offers, with all below it. */
const systemFolders = ['/proc', '/sys', '/dev'];
/** Where programs, their libraries and their settings lie, with all below them. */
const programFolders = ['/usr', '/lib', '/lib64', '/bin', '/sbin', '/etc', '/opt'];
/** systemd and D-Bus listen there; what is mounted below it is others' business. */
const socketFolder = '/run';

const isWithin = (path: string, folder: string) =>
  path === folder || folder === '/' || path.startsWith(`${folder}/`);

/**
 * Which mounts of `mountinfo`, the text of /proc/<pid>/mountinfo, hold none of `folders` and nothing of the system:
 * those that are mounted last come first. Pure.
 */
export function needlessMounts(mountinfo: string, folders: readonly string[]): string[] {
  return mountPoints(mountinfo)
    .filter((path) => ![...folders, ...programFolders, socketFolder].some((folder) => isWithin(folder, path)))
    .filter(
      (path) =>
        folders.some((folder) => isWithin(path, folder)) ||
        ![...systemFolders, ...programFolders].some((folder) => isWithin(path, folder)),
    )
    .reverse();
}

/** `folders` are those that OCI runtimes work in or come from. Throws SYSCALL_FAILED. Not for worker threads. */
export function makeMountView(folders: readonly string[], nsenter: string, patience: Patience): MountView {
  const own = openSync('/proc/thread-self/ns/mnt', 'r');
  const comeBack = (folder: number) => {
    try {
      setns(own, cloneFlags.NEWNS);
      fchdir(folder);
    } catch (error) {
      // In the wrong namespace every further step would be done out of sight of the host.
      writeSync(2, `cannot return to the own mount namespace, ending: ${String(error)}\n`);
      process.kill(process.pid, 'SIGKILL');
    }
  };
  /** Calls `work`, which may change the mount namespace of this thread. */
  const away = <T>(work: () => T): T => {
    // setns wants a working folder that no other thread shares, and changes it; threads begun since share it again.
    unshare(cloneFlags.FS);
    const folder = openSync('.', 'r');
    try {
      try {
        return work();
      } finally {
        comeBack(folder);
      }
    } finally {
      closeSync(folder);
    }
  };
  const here = () => openSync('/proc/thread-self/ns/mnt', 'r');
  let view: number;
  try {
    view = away(() => {
      unshare(cloneFlags.NEWNS);
      mount(null, '/', null, mountFlags.REC | mountFlags.PRIVATE);
      const mountinfo = readFileSync('/proc/thread-self/mountinfo', 'utf8');
      for (const path of needlessMounts(mountinfo, folders)) {
        unmount(path, umountFlags.NOFOLLOW | umountFlags.DETACH);
      }
      return here();
    });
  } catch (error) {
    closeSync(own);
    throw error;
  }
  return {
    nsenter,
    within: (start) =>
      away(() => {
        setns(view, cloneFlags.NEWNS);
        return start();
      }),
    async extend(own, others, signal) {
      const copies = await Promise.allSettled(
        [...new Set(others)].map(async (path) => {
          const copy = () => copyMountAside(path, { recursive: true });
          return { path, tree: await patience.ask(path, copy, signal, closeSync) };
        }),
      );
      const trees = copies.flatMap((copy) => (copy.status === 'fulfilled' ? [copy.value] : []));
      try {
        for (const copy of copies) if (copy.status === 'rejected') throw copy.reason;
        for (const path of own) trees.push({ path, tree: copyMount(path, { recursive: true }) });
        // Folders before what is mounted in them.
        trees.sort((a, b) => a.path.length - b.path.length);
        return away(() => {
          setns(view, cloneFlags.NEWNS);
          unshare(cloneFlags.NEWNS);
          for (const { path, tree } of trees) attachMount(tree, path);
          return here();
        });
      } finally {
        for (const { tree } of trees) closeSync(tree);
      }
    },
    close() {
      closeSync(own);
      closeSync(view);
    },
  };
}
