/**
 * What the header of one archive entry means: pax(5), ustar and GNU headers as a checked `Entry`.
 *
 * Names are byte strings (one character for each byte, `latin1`): names in archives need not be UTF-8.
 */
import type { ErrorCode } from '../../runtime/host/errors.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';

export type EntryType = 'file' | 'directory' | 'symlink' | 'link' | 'char' | 'block' | 'fifo';

/** A piece of a sparse file that the archive has: the rest of the file is a hole. Bytes. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
}

export interface Entry {
  readonly type: EntryType;
  /** Below the root, without `.`, `..` or empty parts; no parts at all for the root itself. */
  readonly parts: readonly string[];
  /** Of a symlink: as it stands. Of a hard link: cleaned like the name. */
  readonly target: string;
  /** Bytes of the content in the archive; of a sparse file the sum of its extents. */
  readonly size: number;
  /** For a sparse file: where its content goes, and how long the file is. */
  readonly sparse?: { readonly extents: readonly Extent[]; readonly size: number };
  /** Permission bits with setuid, setgid and sticky. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Since the epoch; the nanoseconds count upwards from the second. */
  readonly mtime: { readonly seconds: number; readonly nanoseconds: number };
  readonly major: number;
  readonly minor: number;
  readonly xattrs: readonly (readonly [name: string, value: Buffer])[];
}

/** One 512-byte header, with the long names of GNU tar put in; nothing of it checked but its numbers. */
export interface RawHeader {
  readonly name: string;
  readonly linkName: string;
  /** The type flag, one character. */
  readonly flag: string;
  readonly size: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtime: number;
  readonly major: number;
  readonly minor: number;
}

const entryTypes: Readonly<Record<string, EntryType>> = {
  '0': 'file',
  '\0': 'file',
  '7': 'file',
  S: 'file',
  '1': 'link',
  '2': 'symlink',
  '3': 'char',
  '4': 'block',
  '5': 'directory',
  '6': 'fifo',
};
const xattrPrefix = 'SCHILY.xattr.';
/** The largest id that chown takes (2^32 - 1 means: leave it). */
const largestId = 2 ** 32 - 2;
/** More pieces than any real sparse file has. */
const mostExtents = 1_000_000;

/** Records of a pax header (`LENGTH key=value\n`), values as bytes. Throws IMAGE_INVALID. */
export function parsePax(body: Buffer): Map<string, Buffer> {
  const records = new Map<string, Buffer>();
  const extents: string[] = [];
  for (let at = 0; at < body.length; ) {
    const space = body.indexOf(0x20, at);
    const digits = space === -1 ? '' : body.toString('latin1', at, Math.min(space, at + 12));
    const length = /^\d+$/.test(digits) ? Number(digits) : 0;
    const end = at + length;
    const equals = body.indexOf(0x3d, space);
    if (length === 0 || end > body.length || equals === -1 || equals >= end || body[end - 1] !== 0x0a) {
      throw bad('IMAGE_INVALID', 'a pax header is broken');
    }
    const key = body.toString('latin1', space + 1, equals);
    const value = body.subarray(equals + 1, end - 1);
    // Version 0.0 of sparse files repeats two keys for each piece, which a map would not keep.
    if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') extents.push(value.toString('latin1'));
    else records.set(key, value);
    at = end;
  }
  if (extents.length > 0) records.set('GNU.sparse.map', Buffer.from(extents.join(',')));
  return records;
}

/** What a header and the pax records before it say. Throws IMAGE_INVALID, IMAGE_UNSUPPORTED, LAYER_UNSAFE. */
export function readEntry(header: RawHeader, pax: ReadonlyMap<string, Buffer>): Entry {
  const name = text(pax, 'GNU.sparse.name') ?? text(pax, 'path') ?? header.name;
  const parts = cleanName(name);
  const flagged = entryTypes[header.flag];
  if (flagged === undefined) throw bad('IMAGE_UNSUPPORTED', `${show(name)} is an entry of an unknown type`);
  // Archives older than ustar know a folder only by the slash at its end.
  const type = flagged === 'file' && name.endsWith('/') && parts.length > 0 ? 'directory' : flagged;
  const linkName = text(pax, 'linkpath') ?? header.linkName;
  if (type === 'symlink' && (linkName === '' || linkName.includes('\0'))) {
    throw bad('IMAGE_INVALID', `${show(name)} is a link without a usable target`);
  }
  // Nothing follows the header of the others, whatever size it claims (as for Go's archive/tar, so for containerd and
  // for scanners): taken as content, other entries could hide there.
  const claimed = pax.has('size') ? number(pax.get('size')!, 'size', name) : header.size;
  const size = type === 'file' ? claimed : 0;
  if (!Number.isSafeInteger(size) || size < 0) throw bad('IMAGE_INVALID', `${show(name)} has no usable size`);
  const id = (key: 'uid' | 'gid'): number => {
    const value = pax.has(key) ? number(pax.get(key)!, key, name) : header[key];
    if (Number.isInteger(value) && value >= 0 && value <= largestId) return value;
    throw bad('IMAGE_INVALID', `${show(name)} has no usable ${key}`);
  };
  const { mode } = header;
  return {
    type,
    parts,
    target: type === 'link' ? cleanName(linkName).join('/') : linkName,
    size,
    mode: mode >= 0 ? mode & 0o7777 : 0,
    uid: id('uid'),
    gid: id('gid'),
    mtime: pax.has('mtime') ? paxTime(pax.get('mtime')!, name) : atSecond(header.mtime, 0),
    major: header.major >>> 0,
    minor: header.minor >>> 0,
    xattrs: pax.size === 0 ? [] : xattrsOf(pax),
  };
}

function xattrsOf(pax: ReadonlyMap<string, Buffer>): [string, Buffer][] {
  return [...pax]
    .filter(([key]) => key.startsWith(xattrPrefix))
    .map(([key, value]) => [key.slice(xattrPrefix.length), Buffer.from(value)]);
}

function text(pax: ReadonlyMap<string, Buffer>, key: string): string | undefined {
  return pax.size === 0 ? undefined : pax.get(key)?.toString('latin1');
}

/** Absolute names are below the root; a name that climbs above it is an attack. */
function cleanName(name: string): string[] {
  const parts: string[] = [];
  if (name.includes('\0')) throw bad('LAYER_UNSAFE', `${show(name)} has a NUL in its name`);
  for (const part of name.split('/')) {
    if (part === '' || part === '.') continue;
    if (part !== '..') parts.push(part);
    else if (parts.pop() === undefined) throw bad('LAYER_UNSAFE', `${show(name)} leads out of the layer`);
  }
  return parts;
}

function number(bytes: Buffer, key: string, name: string): number {
  const digits = bytes.toString('latin1');
  if (/^\d{1,16}$/.test(digits)) return Number(digits);
  throw bad('IMAGE_INVALID', `${show(name)} has no usable ${key}`);
}

function paxTime(bytes: Buffer, name: string): Entry['mtime'] {
  const match = /^(-?)(\d{1,12})(?:\.(\d*))?$/.exec(bytes.toString('latin1'));
  if (match === null) throw bad('IMAGE_INVALID', `${show(name)} has no usable time`);
  const [, sign, whole, fraction = ''] = match;
  const nanoseconds = Number(fraction.slice(0, 9).padEnd(9, '0'));
  const seconds = Number(whole);
  if (sign === '') return atSecond(seconds, nanoseconds);
  return nanoseconds === 0 ? atSecond(-seconds, 0) : atSecond(-seconds - 1, 1_000_000_000 - nanoseconds);
}

/** Limited to what every Linux file system can hold. */
function atSecond(seconds: number, nanoseconds: number): Entry['mtime'] {
  if (!(seconds >= -(2 ** 31))) return { seconds: Number.isNaN(seconds) ? 0 : -(2 ** 31), nanoseconds: 0 };
  if (seconds >= 2 ** 34) return { seconds: 2 ** 34, nanoseconds: 0 };
  return { seconds: Math.trunc(seconds), nanoseconds };
}

/**
 * The map of a sparse file, from pairs of offset and length, checked: pieces in order, inside of the file, and together
 * as long as what the archive has of it. Throws IMAGE_INVALID.
 */
export function sparseFile(
  name: string,
  numbers: readonly number[],
  size: number,
  stored: number,
): NonNullable<Entry['sparse']> {
  const broken = () => bad('IMAGE_INVALID', `${show(name)} is a sparse file with a broken map`);
  if (numbers.length % 2 !== 0 || numbers.length > 2 * mostExtents || !Number.isSafeInteger(size))
    throw broken();
  const extents: Extent[] = [];
  let end = 0;
  let sum = 0;
  for (let at = 0; at < numbers.length; at += 2) {
    const [offset, length] = [numbers[at]!, numbers[at + 1]!];
    if (!(offset >= end) || !(length >= 0) || !(offset + length <= size)) throw broken();
    end = offset + length;
    sum += length;
    if (length > 0) extents.push({ offset, length });
  }
  if (sum !== stored) throw broken();
  return { extents, size };
}

/** A name from an archive, for messages. */
export function show(name: string): string {
  const shown = Buffer.from(name.slice(0, 300), 'latin1').toString('utf8');
  return JSON.stringify(shown);
}

function bad(code: ErrorCode, message: string): KeelsonError {
  return new KeelsonError(code, message);
}
