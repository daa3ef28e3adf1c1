/**
 * The root folder of an unpack thread: its own (unshare of CLONE_FS), and whenever file system work is done, the folder of
 * the layer whose turn it is. After the first layer has begun the thread can see no other file of the machine: all that it
 * needs is loaded before, and only synchronous file calls are used, because asynchronous ones run on threads of the
 * pool, whose root is the machine's.
 */
import { chroot, cloneFlags, fchdir, unshare } from '../../runtime/host/syscalls.ts';

export interface Jail {
  /** Makes `folder` (a descriptor, which gets out of any jail) the root of this thread. */
  enter(folder: number): void;
  /** The descriptor will be closed: its number may soon be another folder's. */
  leave(folder: number): void;
}

/** Call once in a thread, before anything else. */
export function makeJail(): Jail {
  unshare(cloneFlags.FS);
  let inside = -1;
  return {
    enter(folder) {
      if (inside === folder) return;
      inside = -1;
      fchdir(folder);
      chroot('.');
      inside = folder;
    },
    leave(folder) {
      if (inside === folder) inside = -1;
    },
  };
}
