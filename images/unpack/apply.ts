/**
 * Writes the entries of one layer into its folder, in the form that overlayfs wants of a lower layer.
 *
 * Every path is absolute and every call is synchronous, because all of it runs in a thread whose root is the layer's
 * folder: whatever a name or a link says, the kernel cannot resolve it to anything outside. Semantics follow
 * containerd's archive application and the OCI layer specification.
 */
import {
  chmodSync,
  constants,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  rmSync,
  type Stats,
  symlinkSync,
} from 'node:fs';
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { mkfifo, mknod, setTimes, setXattr } from '../../runtime/host/syscalls.ts';
import { type Entry, show } from '../tar/entries.ts';
import type { TarSink } from '../tar/reader.ts';
import type { UnpackLimits } from './protocol.ts';
import type { TarMap } from './tar_map.ts';
import { type ContentWriter, errnameOf, explained, whereSupported } from './writer.ts';

export interface Applier extends TarSink {
  /** Gives the folders their times, which later entries have changed. Call once, when all contents are written. */
  finish(): { size: number; inodes: number };
  /** Lets go of the open file after a failure. */
  abandon(): void;
  /** False where the layer replaces files of its own: then the folder does not have all that the archive had. */
  isMapped(): boolean;
}

const whiteoutPrefix = '.wh.';
const whiteoutMeta = '.wh..wh.';
const opaqueMarker = '.wh..wh..opq';
const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW, S_IFCHR, S_IFBLK } = constants;
const nodeTypes = { char: S_IFCHR, block: S_IFBLK } as const;
const noXattrs: Entry['xattrs'] = [];

/** An open file, and how much of its content has come. */
interface OpenFile {
  readonly fd: number;
  readonly entry: Entry;
  /** A new file has the right owner already. */
  readonly isRoots: boolean;
  done: number;
  extent: number;
}

export function makeApplier(
  limits: UnpackLimits,
  writer: ContentWriter,
  map: TarMap,
  umask = process.umask(),
): Applier {
  /** Folders that are known to be there, so that not every entry asks for its parents. */
  let known = new Set<string>(['']);
  /** Those of them that this layer made: no links, and without setgid where the set says so. */
  const made = new Map<string, { setgid: boolean }>([['', { setgid: false }]]);
  const folderTimes = new Map<string, Entry['mtime']>();
  let size = 0;
  let inodes = 1;
  let entries = 0;
  let mapped = true;
  let open: OpenFile | undefined;

  /** Does a new file get this mode from being made, without a chmod? */
  const comesRight = (mode: number) => (mode & umask) === 0 && mode <= 0o777;

  const makeFolder = (path: string, mode: number) => {
    let replaced: Stats | undefined;
    try {
      mkdirSync(native(path), mode);
      inodes++;
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
      const found = lstatSync(native(path));
      if (!found.isDirectory()) {
        remove(path, found);
        mkdirSync(native(path), mode);
        // A whiteout and a folder of one name in one layer: the lower folder goes, the new one comes in its place.
        if (isWhiteout(found)) setOpaque(path);
      }
      replaced = found;
    }
    // The umask of the process, and a setgid parent, must not have a say.
    const isPlain = replaced === undefined && isOurs(path) && comesRight(mode);
    if (!isPlain) {
      lchownSync(native(path), 0, 0);
      chmodSync(native(path), mode);
    }
    // Below a link the path would not be the true one.
    if (made.has(parentOf(path))) made.set(path, { setgid: false });
  };

  /** Is the folder of `path` one that this layer made, and that gives new files no group of its own? */
  const isOurs = (path: string) => made.get(parentOf(path))?.setgid === false;

  /** The folder of an entry: what is missing of it is made (root, 0755). It may lead through links, inside the jail. */
  const ensureParents = (parts: readonly string[]): string => {
    const parent = joined(parts, parts.length - 1);
    if (known.has(parent)) return parent;
    for (let depth = 1; depth < parts.length; depth++) {
      const path = joined(parts, depth);
      if (known.has(path)) continue;
      const found = lstatOrNothing(path);
      if (found === undefined || isWhiteout(found)) makeFolder(path, 0o755);
      known.add(path);
    }
    return parent;
  };

  const remove = (path: string, found: Stats) => {
    if (found.isDirectory() || found.isSymbolicLink()) known = new Set(['']);
    // Their contents were in the archive, and will be nowhere else.
    if (found.isDirectory() || found.isFile()) mapped = false;
    if (found.isDirectory()) {
      // What was below it is forgotten too.
      made.clear();
      made.set('', { setgid: true });
    }
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

  const setAttributes = (path: string, entry: Entry, isRoots: boolean) => {
    const { uid, gid, mode, type } = entry;
    if (!isRoots || uid !== 0 || gid !== 0) {
      lchownSync(native(path), uid, gid);
      if (type !== 'symlink') chmodSync(native(path), mode);
    } else if (type !== 'symlink' && !comesRight(mode)) chmodSync(native(path), mode);
    for (const [name, value] of wantedXattrs(entry)) {
      whereSupported(() => setXattr(native(path), name, value));
    }
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
      setAttributes('/', entry, false);
      made.set('', { setgid: (entry.mode & 0o2000) !== 0 });
      folderTimes.set('/', entry.mtime);
      return;
    }
    const name = parts.at(-1)!;
    if (name.startsWith(whiteoutPrefix) || parts.some((part) => part.startsWith(whiteoutMeta))) {
      return beginMarker(parts, name);
    }
    create(`${ensureParents(parts)}/${name}`, entry);
  };

  const beginMarker = (parts: readonly string[], name: string) => {
    if (name === opaqueMarker) {
      ensureParents(parts);
      return setOpaque(joined(parts, parts.length - 1));
    }
    if (parts.some((part) => part.startsWith(whiteoutMeta))) return; // What AUFS kept for itself.
    const hidden = name.slice(whiteoutPrefix.length);
    if (hidden === '' || hidden === '.' || hidden === '..') {
      throw new KeelsonError('LAYER_UNSAFE', `${show(parts.join('/'))} is a whiteout of nothing`);
    }
    whiteOut(`${ensureParents(parts)}/${hidden}`);
  };

  const openFile = (path: string, entry: Entry) => {
    const parentIsOurs = isOurs(path);
    // What no layer made could be a link: the name says nothing of where the file is then.
    if (!parentIsOurs && !made.has(parentOf(path))) mapped = false;
    const isRoots = parentIsOurs && entry.uid === 0 && entry.gid === 0;
    const isPlain = isRoots && comesRight(entry.mode);
    writer.beforeOpen();
    replacing(path, () => {
      // With an owner to come the file is closed to everybody until then.
      const fd = openSync(
        native(path),
        O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW,
        isPlain ? entry.mode : 0o600,
      );
      open = { fd, entry, isRoots, done: 0, extent: 0 };
    });
    const { sparse } = entry;
    const extents = sparse?.extents ?? (entry.size > 0 ? [{ offset: 0, length: entry.size }] : []);
    if (mapped) for (const { offset, length } of extents) map.content(path.slice(1), offset, length);
    if (sparse !== undefined) writer.resize(open!.fd, sparse.size);
  };

  const create = (path: string, entry: Entry) => {
    const { type } = entry;
    if (type === 'file') return openFile(path, entry);
    if (type === 'directory') {
      makeFolder(path, entry.mode & 0o777);
      known.add(path);
      setAttributes(path, entry, true);
      if (made.has(path)) made.set(path, { setgid: (entry.mode & 0o2000) !== 0 });
      folderTimes.set(path, entry.mtime);
      return;
    }
    if (type === 'link') {
      const source = native(`/${entry.target}`);
      if (entry.target === joined(entry.parts, entry.parts.length).slice(1)) return; // To itself: there, or never.
      replacing(path, () => linkSync(source, native(path)));
      inodes--;
      return;
    }
    replacing(path, () => {
      if (type === 'symlink') symlinkSync(native(entry.target), native(path));
      else if (type === 'fifo') mkfifo(native(path), entry.mode);
      else mknod(native(path), nodeTypes[type] | entry.mode, entry.major, entry.minor);
    });
    setAttributes(path, entry, isOurs(path));
    setTimes(native(path), entry.mtime.seconds, entry.mtime.nanoseconds);
  };

  /** Content of a sparse file goes to its pieces, one after the other. */
  const writeSparse = (file: OpenFile, chunk: Buffer, start: number, end: number) => {
    for (let at = start; at < end; ) {
      const extent = file.entry.sparse!.extents[file.extent]!;
      const length = Math.min(end - at, extent.length - file.done);
      writer.write(file.fd, chunk, at, at + length, extent.offset + file.done);
      at += length;
      file.done += length;
      if (file.done < extent.length) continue;
      file.done = 0;
      file.extent++;
    }
  };

  const named = (entry: Entry) => () => {
    const missing = entry.type === 'link' ? ` to ${show(entry.target)}` : '';
    return `${show(entry.parts.join('/'))} (${entry.type}${missing})`;
  };

  return {
    meta: (bytes) => map.meta(bytes),
    begin: (entry) => explained(() => begin(entry), named(entry)),
    content(chunk, start, end) {
      // The content of a whiteout means nothing, but it was there.
      if (open === undefined) return map.meta(chunk.subarray(start, end));
      const { fd, entry } = open;
      if (entry.sparse === undefined) {
        explained(() => writer.write(fd, chunk, start, end, -1), named(entry));
      } else writeSparse(open, chunk, start, end);
      size += end - start;
    },
    end() {
      if (open === undefined) return;
      const { fd, entry, isRoots } = open;
      open = undefined;
      const { uid, gid, mode, mtime } = entry;
      const isPlain = isRoots && comesRight(mode);
      const attributes = {
        uid: isRoots ? -1 : uid,
        gid,
        mode: isPlain ? -1 : mode,
        seconds: mtime.seconds,
        nanoseconds: mtime.nanoseconds,
        xattrs: wantedXattrs(entry),
      };
      explained(() => writer.finish(fd, attributes), named(entry));
    },
    finish() {
      for (const [path, { seconds, nanoseconds }] of folderTimes) {
        if (lstatOrNothing(path)?.isDirectory()) setTimes(native(path), seconds, nanoseconds);
      }
      return { size, inodes };
    },
    abandon() {
      if (open !== undefined) writer.close(open.fd);
      open = undefined;
    },
    isMapped: () => mapped,
  };
}

function parentOf(path: string): string {
  return path.slice(0, path.lastIndexOf('/'));
}

/** The path of the first `depth` parts, with a slash before each. */
function joined(parts: readonly string[], depth: number): string {
  let path = '';
  for (let at = 0; at < depth; at++) path += `/${parts[at]}`;
  return path;
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
function wantedXattrs(entry: Entry): Entry['xattrs'] {
  if (entry.xattrs.length === 0) return noXattrs;
  const hasContent = entry.type === 'file' || entry.type === 'directory';
  return entry.xattrs.filter(([name]) => {
    if (name === 'security.capability') return true;
    return hasContent && name.startsWith('user.') && !name.startsWith('user.overlay.');
  });
}
