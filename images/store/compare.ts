/**
 * Whether a layer's folder is what its archive says: every name, type, mode, owner, time, link target and attribute,
 * and nothing besides. Contents are the digest's business. Takes entries as the unpacker does (unpack/apply.ts).
 * Synchronous, for a thread of its own.
 */
import { type BigIntStats, constants, lstatSync, readdirSync, readlinkSync } from 'node:fs';
import { errnoOf } from '../../runtime/host/errors.ts';
import { readXattr } from '../../runtime/host/syscalls.ts';
import { type Entry, show } from '../tar/entries.ts';

/** What is expected at a path. Names of one file (hard links) share one. */
interface Expected {
  type: Entry['type'] | 'whiteout';
  /** Undefined: a folder that no entry made. */
  entry: Entry | undefined;
  opaque: boolean;
  inode?: bigint;
}

export interface Comparison {
  /** As the unpacker counts them. */
  readonly inodes: number;
  /** Bytes of the files. */
  readonly size: number;
  /** In words, at most `mostProblems` of them and a number; empty where all is right. */
  readonly problems: readonly string[];
}

export interface Comparer {
  /** The next entry of the archive. */
  add(entry: Entry): void;
  /** After the last entry. `goOn` is called for each file, and ends it by throwing. */
  compare(folder: string, goOn: () => void): Comparison;
}

const mostProblems = 5;
const mostLinks = 40;
const whiteoutPrefix = '.wh.';
const whiteoutMeta = '.wh..wh.';
const opaqueMarker = '.wh..wh..opq';
const typeBits = {
  file: constants.S_IFREG,
  directory: constants.S_IFDIR,
  symlink: constants.S_IFLNK,
  char: constants.S_IFCHR,
  whiteout: constants.S_IFCHR,
  block: constants.S_IFBLK,
  fifo: constants.S_IFIFO,
} as const;

export function makeComparer(): Comparer {
  /** By path below the root, without a slash before it; byte strings. */
  const expected = new Map<string, Expected>();
  const root: Expected = { type: 'directory', entry: undefined, opaque: false };
  expected.set('', root);

  const forget = (path: string) => {
    const old = expected.get(path);
    expected.delete(path);
    if (old?.type !== 'directory') return;
    for (const other of expected.keys()) if (other.startsWith(`${path}/`)) expected.delete(other);
  };
  const makeFolder = (path: string, entry: Entry | undefined) => {
    const old = expected.get(path);
    if (old?.type === 'directory') {
      old.entry = entry ?? old.entry;
      return;
    }
    if (old !== undefined) forget(path);
    expected.set(path, { type: 'directory', entry, opaque: old?.type === 'whiteout' });
  };
  /** The true path of a folder, through links, made where it is missing. */
  const folderAt = (parts: readonly string[], links = 0): string => {
    let path = '';
    for (const [at, part] of parts.entries()) {
      const next = joined(path, part);
      const found = expected.get(next);
      if (found?.type === 'symlink' && links < mostLinks) {
        const { target } = found.entry!;
        const from = target.startsWith('/') || path === '' ? [] : path.split('/');
        return folderAt([...resolved(from, target), ...parts.slice(at + 1)], links + 1);
      }
      if (found === undefined || found.type === 'whiteout') makeFolder(next, undefined);
      path = next;
    }
    return path;
  };
  const place = (parts: readonly string[]) => joined(folderAt(parts.slice(0, -1)), parts.at(-1)!);

  const addMarker = (parts: readonly string[], name: string) => {
    if (name === opaqueMarker) {
      expected.get(folderAt(parts.slice(0, -1)))!.opaque = true;
      return;
    }
    if (parts.some((part) => part.startsWith(whiteoutMeta))) return;
    const path = place([...parts.slice(0, -1), name.slice(whiteoutPrefix.length)]);
    const old = expected.get(path);
    if (old === undefined) expected.set(path, { type: 'whiteout', entry: undefined, opaque: false });
    else if (old.type === 'directory') old.opaque = true;
  };

  return {
    add(entry) {
      const { parts, type } = entry;
      const name = parts.at(-1);
      if (name === undefined) {
        root.entry = entry;
        return;
      }
      if (name.startsWith(whiteoutPrefix) || parts.some((part) => part.startsWith(whiteoutMeta))) {
        return addMarker(parts, name);
      }
      const path = place(parts);
      if (type === 'directory') return makeFolder(path, entry);
      if (type !== 'link') {
        forget(path);
        expected.set(path, { type, entry, opaque: false });
        return;
      }
      const source = place(entry.target.split('/'));
      const found = expected.get(source);
      if (source === path || found === undefined) return;
      forget(path);
      expected.set(path, found);
    },
    compare(folder, goOn) {
      const problems: string[] = [];
      let wrong = 0;
      const report = (path: string, what: string) => {
        wrong++;
        if (problems.length < mostProblems)
          problems.push(`${path === '' ? 'its folder' : show(path)} ${what}`);
      };
      const seen = new Set<string>();
      const pending = [''];
      for (let path = pending.pop(); path !== undefined; path = pending.pop()) {
        goOn();
        const wanted = expected.get(path);
        if (wanted === undefined) {
          report(path, 'is not in the archive');
          continue;
        }
        seen.add(path);
        const bytes = Buffer.from(path === '' ? folder : `${folder}/`);
        const where = path === '' ? bytes : Buffer.concat([bytes, Buffer.from(path, 'latin1')]);
        try {
          const stat = lstatSync(where, { bigint: true });
          for (const what of differences(where, stat, wanted)) report(path, what);
          if (!stat.isDirectory()) continue;
          for (const name of readdirSync(where, 'buffer'))
            pending.push(joined(path, name.toString('latin1')));
        } catch (error) {
          report(path, `cannot be read: ${errnoOf(error) ?? String(error)}`);
        }
      }
      for (const path of expected.keys()) if (!seen.has(path)) report(path, 'is missing');
      if (wrong > problems.length) problems.push(`and ${wrong - problems.length} more`);
      const unique = new Set(expected.values());
      let size = 0;
      for (const { type, entry } of unique) if (type === 'file') size += entry!.size;
      return { inodes: unique.size, size, problems };
    },
  };
}

function* differences(path: Buffer, stat: BigIntStats, wanted: Expected): Generator<string> {
  const { type, entry } = wanted;
  if ((Number(stat.mode) & constants.S_IFMT) !== typeBits[type as keyof typeof typeBits]) {
    yield `is no ${type}`;
    return;
  }
  if (wanted.inode !== undefined) {
    // Another name of a file that has been looked at.
    if (wanted.inode !== stat.ino) yield 'is not linked to what it should be';
    return;
  }
  wanted.inode = stat.ino;
  if (type === 'whiteout') {
    if (stat.rdev !== 0n) yield 'is no whiteout';
    return;
  }
  const [uid, gid] = [entry?.uid ?? 0, entry?.gid ?? 0];
  if (Number(stat.uid) !== uid || Number(stat.gid) !== gid) {
    yield `belongs to ${stat.uid}:${stat.gid} instead of ${uid}:${gid}`;
  }
  const mode = Number(stat.mode) & 0o7777;
  if (type !== 'symlink' && mode !== (entry?.mode ?? 0o755)) {
    yield `has mode ${mode.toString(8)} instead of ${(entry?.mode ?? 0o755).toString(8)}`;
  }
  if (type === 'directory') {
    const opaque = readXattr(path, 'trusted.overlay.opaque');
    if (opaque !== 'unsupported' && (opaque?.toString() === 'y') !== wanted.opaque) {
      yield wanted.opaque ? 'is not opaque' : 'is opaque';
    }
  }
  if (entry === undefined) return;
  if (!sameTime(stat.mtimeNs, entry.mtime)) yield 'has another time';
  if (type === 'file') {
    const size = entry.sparse?.size ?? entry.size;
    if (Number(stat.size) !== size) yield `has ${stat.size} bytes instead of ${size}`;
  }
  if (type === 'symlink' && readlinkSync(path, 'buffer').toString('latin1') !== entry.target) {
    yield 'leads elsewhere';
  }
  if ((type === 'char' || type === 'block') && stat.rdev !== deviceNumber(entry.major, entry.minor)) {
    yield 'is another device';
  }
  for (const [name, value] of entry.xattrs) {
    if (!isKept(name, type)) continue;
    const found = readXattr(path, name);
    if (found !== 'unsupported' && !found?.equals(value)) yield `has another ${name}`;
  }
}

/** The attributes that the unpacker sets. */
function isKept(name: string, type: Expected['type']): boolean {
  if (name === 'security.capability') return true;
  return (
    (type === 'file' || type === 'directory') && name.startsWith('user.') && !name.startsWith('user.overlay.')
  );
}

/** Some file systems keep whole seconds only, or none after 2038 or before 1970. */
function sameTime(ns: bigint, { seconds, nanoseconds }: Entry['mtime']): boolean {
  if (seconds < 0 || seconds >= 2 ** 31) return true;
  const rest = ns % 1_000_000_000n;
  return ns / 1_000_000_000n === BigInt(seconds) && (rest === BigInt(nanoseconds) || rest === 0n);
}

/** As glibc's makedev. */
function deviceNumber(major: number, minor: number): bigint {
  return (
    (BigInt(major & 0xfff) << 8n) |
    (BigInt(major & ~0xfff) << 32n) |
    BigInt(minor & 0xff) |
    (BigInt(minor & ~0xff) << 12n)
  );
}

function joined(folder: string, name: string): string {
  return folder === '' ? name : `${folder}/${name}`;
}

/** `target` seen from the folder `from`; what climbs above the root stays there, as the kernel has it. */
function resolved(from: readonly string[], target: string): string[] {
  const parts = [...from];
  for (const part of target.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') parts.pop();
    else parts.push(part);
  }
  return parts;
}
