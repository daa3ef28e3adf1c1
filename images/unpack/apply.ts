/**
 * Writes the entries of one layer into its folder, in the form that overlayfs wants of a lower layer.
 *
 * Every path is absolute and every call is synchronous, because all of it runs in a thread whose root is the layer's
 * folder: whatever a name or a link says, the kernel cannot resolve it to anything outside. Semantics follow
 * containerd's archive application and the OCI layer specification.
 */
import {
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  type PathLike,
  rmSync,
  type Stats,
  symlinkSync,
  writeSync,
} from 'node:fs';
import { errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import { mkfifo, mknod, setTimes, setXattr } from '../../runtime/host/syscalls.ts';
import { type Entry, type EntrySink, show } from './entries.ts';
import type { UnpackLimits } from './protocol.ts';

export interface Applier extends EntrySink {
  /** Gives the folders their times, which later entries have changed. Call once, after the last entry. */
  finish(): { size: number; inodes: number };
  /** Lets go of the open file after a failure. */
  abandon(): void;
}

const whiteoutPrefix = '.wh.';
const whiteoutMeta = '.wh..wh.';
const opaqueMarker = '.wh..wh..opq';
const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW, S_IFCHR, S_IFBLK } = constants;
const nodeTypes = { char: S_IFCHR, block: S_IFBLK } as const;

export function makeApplier(limits: UnpackLimits): Applier {
  /** Folders that are known to be there, so that not every entry asks for its parents. */
  let known = new Set<string>(['']);
  const folderTimes = new Map<string, bigint>();
  let size = 0;
  let inodes = 1;
  let entries = 0;
  let open: { fd: number; path: PathLike & (string | Buffer); entry: Entry } | undefined;

  const makeFolder = (path: string) => {
    try {
      mkdirSync(native(path), 0o755);
      inodes++;
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
      const found = lstatSync(native(path));
      if (found.isDirectory()) return;
      remove(path, found);
      mkdirSync(native(path), 0o755);
      // A whiteout and a folder of one name in one layer: the lower folder goes, the new one comes in its place.
      if (isWhiteout(found)) setOpaque(path);
    }
    // The umask of the process, and a setgid parent, must not have a say.
    lchownSync(native(path), 0, 0);
    chmodSync(native(path), 0o755);
  };

  /** The folder of an entry: what is missing of it is made (root, 0755). It may lead through links, inside the jail. */
  const ensureParents = (parts: readonly string[]): string => {
    const parent = joined(parts.slice(0, -1));
    if (known.has(parent)) return parent;
    for (let depth = 1; depth < parts.length; depth++) {
      const path = joined(parts.slice(0, depth));
      if (known.has(path)) continue;
      const found = lstatOrNothing(path);
      if (found === undefined || isWhiteout(found)) makeFolder(path);
      known.add(path);
    }
    return parent;
  };

  const remove = (path: string, found: Stats) => {
    if (found.isDirectory() || found.isSymbolicLink()) known = new Set(['']);
    folderTimes.delete(path);
    rmSync(native(path), { recursive: true });
  };

  /** Runs `create`; where something of that name exists already, that goes first. */
  const replacing = (path: string, create: () => void) => {
    try {
      create();
    } catch (error) {
      if (errnameOf(error) !== 'EEXIST') throw error;
      remove(path, lstatSync(native(path)));
      create();
    }
    inodes++;
  };

  /** The folder that `path` is or, as a link, leads to. */
  const setOpaque = (path: string) =>
    setXattr(native(`${path}/.`), 'trusted.overlay.opaque', Buffer.from('y'));

  const whiteOut = (path: string) => {
    try {
      mknod(native(path), S_IFCHR, 0, 0);
      inodes++;
    } catch (error) {
      if (errnameOf(error) !== 'EEXIST') throw error;
      // The layer has put something there itself, which stays; a folder must not let the lower one shine through.
      if (lstatSync(native(path)).isDirectory()) setOpaque(path);
    }
  };

  const setAttributes = (path: string, entry: Entry) => {
    lchownSync(native(path), entry.uid, entry.gid);
    if (entry.type !== 'symlink') chmodSync(native(path), entry.mode);
    setXattrs(path, entry);
  };

  const begin = (entry: Entry) => {
    entries++;
    if (entries > limits.entries) {
      throw new KeelsonError('LAYER_UNSAFE', `it has more than ${limits.entries} entries`);
    }
    const { parts } = entry;
    if (parts.length === 0) {
      if (entry.type !== 'directory')
        throw new KeelsonError('LAYER_UNSAFE', 'an entry would replace the root');
      setAttributes('/', entry);
      folderTimes.set('/', entry.mtimeNs);
      return;
    }
    const name = parts.at(-1)!;
    if (name === opaqueMarker) {
      ensureParents(parts);
      return setOpaque(joined(parts.slice(0, -1)));
    }
    if (parts.some((part) => part.startsWith(whiteoutMeta))) return; // What AUFS kept for itself.
    if (name.startsWith(whiteoutPrefix)) {
      const hidden = name.slice(whiteoutPrefix.length);
      if (hidden === '' || hidden === '.' || hidden === '..') {
        throw new KeelsonError('LAYER_UNSAFE', `${show(parts.join('/'))} is a whiteout of nothing`);
      }
      return whiteOut(`${ensureParents(parts)}/${hidden}`);
    }
    create(`${ensureParents(parts)}/${name}`, entry);
  };

  const create = (path: string, entry: Entry) => {
    const { type } = entry;
    if (type === 'directory') {
      makeFolder(path);
      known.add(path);
      setAttributes(path, entry);
      folderTimes.set(path, entry.mtimeNs);
      return;
    }
    if (type === 'file') {
      const target = native(path);
      replacing(path, () => {
        open = { fd: openSync(target, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600), path: target, entry };
      });
      return;
    }
    if (type === 'link') {
      const source = native(`/${entry.target}`);
      if (entry.target === joined(entry.parts).slice(1)) return; // A link to itself: it is there already, or never.
      replacing(path, () => linkSync(source, native(path)));
      inodes--;
      return;
    }
    replacing(path, () => {
      if (type === 'symlink') symlinkSync(native(entry.target), native(path));
      else if (type === 'fifo') mkfifo(native(path), entry.mode);
      else mknod(native(path), nodeTypes[type] | entry.mode, entry.major, entry.minor);
    });
    setAttributes(path, entry);
    setTimes(native(path), entry.mtimeNs, entry.mtimeNs);
  };

  const abandon = () => {
    if (open !== undefined) closeSync(open.fd);
    open = undefined;
  };

  return {
    begin: (entry) => explained(entry, () => begin(entry)),
    data(piece) {
      if (open === undefined) return; // The content of a whiteout, which means nothing.
      const { fd, entry } = open;
      explained(entry, () => {
        for (let at = 0; at < piece.length; ) at += writeSync(fd, piece, at, piece.length - at);
      });
      size += piece.length;
    },
    end() {
      if (open === undefined) return;
      const { fd, path, entry } = open;
      explained(entry, () => {
        // Owner first: changing it clears setuid, setgid and capabilities.
        fchownSync(fd, entry.uid, entry.gid);
        fchmodSync(fd, entry.mode);
        setXattrs(path, entry);
        setTimes(path, entry.mtimeNs, entry.mtimeNs);
      });
      abandon();
    },
    finish() {
      for (const [path, ns] of folderTimes) {
        if (lstatOrNothing(path)?.isDirectory()) setTimes(native(path), ns, ns);
      }
      return { size, inodes };
    },
    abandon,
  };
}

function joined(parts: readonly string[]): string {
  return parts.length === 0 ? '' : `/${parts.join('/')}`;
}

/** A byte-string name for the file system: as text where it is ASCII, which is quicker, else as its bytes. */
function native(path: string): string | Buffer {
  return /^[\x01-\x7f]*$/.test(path) ? path : Buffer.from(path, 'latin1');
}

function isWhiteout(stat: Stats): boolean {
  return stat.isCharacterDevice() && stat.rdev === 0;
}

function lstatOrNothing(path: string): Stats | undefined {
  return lstatSync(native(path), { throwIfNoEntry: false });
}

/**
 * Only what programs in containers rely on. Above all nothing of trusted.overlay or user.overlay: such an attribute
 * would make overlayfs show other files than those of the layer.
 */
function setXattrs(path: string | Buffer, entry: Entry): void {
  for (const [name, value] of entry.xattrs) {
    const wanted =
      name === 'security.capability' || (name.startsWith('user.') && !name.startsWith('user.overlay.'));
    const possible = name === 'security.capability' || entry.type === 'file' || entry.type === 'directory';
    if (!wanted || !possible) continue;
    try {
      setXattr(typeof path === 'string' ? native(path) : path, name, value);
    } catch (error) {
      // A file system without them: the files are more use without than none at all.
      if (errnameOf(error) !== 'ENOTSUP' && errnameOf(error) !== 'EOPNOTSUPP') throw error;
    }
  }
}

function errnameOf(error: unknown): string | undefined {
  if (isError(error, 'SYSCALL_FAILED')) return String(error.details['errno']);
  return errnoOf(error);
}

/** Failures that the archive is to blame for; others are the machine's. */
const archiveFaults = new Set([
  'ENOTDIR',
  'EISDIR',
  'ENOENT',
  'EEXIST',
  'ELOOP',
  'ENAMETOOLONG',
  'EINVAL',
  'EMLINK',
  'EPERM',
  'EXDEV',
]);

/** Runs `body`; what the file system refuses is told with the entry's name. */
function explained<T>(entry: Entry, body: () => T): T {
  try {
    return body();
  } catch (error) {
    const errno = errnameOf(error);
    if (errno === undefined) throw error;
    const what = `${show(entry.parts.join('/'))} (${entry.type}): ${errno}`;
    if (errno === 'ENOSPC' || errno === 'EDQUOT') {
      throw new KeelsonError('STORAGE_FULL', `${what}: no space is left for the layer`, {
        cause: error,
        hint: 'free some space or remove images that nobody needs',
      });
    }
    throw new KeelsonError(
      archiveFaults.has(errno) ? 'IMAGE_INVALID' : 'SYSCALL_FAILED',
      `${what}${entry.type === 'link' && errno === 'ENOENT' ? `: the layer has no ${show(entry.target)}` : ''}`,
      { cause: error, details: { errno } },
    );
  }
}
