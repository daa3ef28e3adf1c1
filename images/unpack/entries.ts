/**
 * Tar archives as a sequence of checked entries: tar-stream parses, this file says what its headers mean.
 *
 * Names are byte strings (one character for each byte, `latin1`): names in archives need not be UTF-8.
 */

import { extract, type Header } from 'tar-stream';
import type { ErrorCode } from '../../runtime/host/errors.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';

export type EntryType = 'file' | 'directory' | 'symlink' | 'link' | 'char' | 'block' | 'fifo';

export interface Entry {
  readonly type: EntryType;
  /** Below the root, without `.`, `..` or empty parts; no parts at all for the root itself. */
  readonly parts: readonly string[];
  /** Of a symlink: as it stands. Of a hard link: cleaned like the name. */
  readonly target: string;
  readonly size: number;
  /** Permission bits with setuid, setgid and sticky. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
  readonly major: number;
  readonly minor: number;
  readonly xattrs: readonly (readonly [name: string, value: Buffer])[];
}

/** Where entries go. All calls are in order and synchronous; what they throw ends the archive. */
export interface EntrySink {
  begin(entry: Entry): void;
  /** A piece of the content of the file that was begun last. Not kept after the call. */
  data(piece: Buffer): void;
  /** The entry that was begun last is complete. */
  end(): void;
}

const entryTypes: Readonly<Record<string, EntryType>> = {
  file: 'file',
  'contiguous-file': 'file',
  directory: 'directory',
  symlink: 'symlink',
  link: 'link',
  'character-device': 'char',
  'block-device': 'block',
  fifo: 'fifo',
};
const xattrPrefix = 'SCHILY.xattr.';
/** The largest id that chown takes (2^32 - 1 means: leave it). */
const largestId = 2 ** 32 - 2;

/** Records of a pax header (`LENGTH key=value\n`), values as bytes. Throws IMAGE_INVALID. */
export function parsePax(body: Buffer): Map<string, Buffer> {
  const records = new Map<string, Buffer>();
  for (let at = 0; at < body.length; ) {
    const space = body.indexOf(0x20, at);
    const digits = space === -1 ? '' : body.toString('latin1', at, Math.min(space, at + 12));
    const length = /^\d+$/.test(digits) ? Number(digits) : 0;
    const end = at + length;
    const equals = body.indexOf(0x3d, space);
    if (length === 0 || end > body.length || equals === -1 || equals >= end || body[end - 1] !== 0x0a) {
      throw bad('IMAGE_INVALID', 'a pax header is broken');
    }
    records.set(body.toString('latin1', space + 1, equals), body.subarray(equals + 1, end - 1));
    at = end;
  }
  return records;
}

/** What a header of tar-stream and the pax records before it say. Throws IMAGE_INVALID, IMAGE_UNSUPPORTED, LAYER_UNSAFE. */
export function readEntry(header: Header, pax: ReadonlyMap<string, Buffer>): Entry {
  const name = pax.get('path')?.toString('latin1') ?? header.name;
  const parts = cleanName(name);
  // Archives older than ustar know a folder only by the slash at its end.
  const isOldFolder = header.type === 'file' && name.endsWith('/') && parts.length > 0;
  const type = entryTypes[isOldFolder ? 'directory' : (header.type ?? '')];
  if (type === undefined) throw bad('IMAGE_UNSUPPORTED', `${show(name)} is an entry of an unknown type`);
  for (const key of pax.keys()) {
    if (key.startsWith('GNU.sparse.')) throw bad('IMAGE_UNSUPPORTED', `${show(name)} is a sparse file`);
  }
  const linkName = pax.get('linkpath')?.toString('latin1') ?? header.linkname ?? '';
  if (type === 'symlink' && (linkName === '' || linkName.includes('\0'))) {
    throw bad('IMAGE_INVALID', `${show(name)} is a link without a usable target`);
  }
  const size = pax.has('size') ? number(pax.get('size')!, 'size', name) : (header.size ?? 0);
  if (!Number.isSafeInteger(size) || size < 0) throw bad('IMAGE_INVALID', `${show(name)} has no usable size`);
  const id = (key: 'uid' | 'gid'): number => {
    const value = pax.has(key) ? number(pax.get(key)!, key, name) : (header[key] ?? 0);
    if (Number.isInteger(value) && value >= 0 && value <= largestId) return value;
    throw bad('IMAGE_INVALID', `${show(name)} has no usable ${key}`);
  };
  const { mode = 0, devmajor = 0, devminor = 0 } = header;
  return {
    type,
    parts,
    target: type === 'link' ? cleanName(linkName).join('/') : linkName,
    size,
    mode: (Number.isInteger(mode) && mode >= 0 ? mode : 0) & 0o7777,
    uid: id('uid'),
    gid: id('gid'),
    mtimeNs: pax.has('mtime') ? paxTime(pax.get('mtime')!, name) : headerTime(header.mtime),
    major: devmajor >>> 0,
    minor: devminor >>> 0,
    xattrs: [...pax]
      .filter(([key]) => key.startsWith(xattrPrefix))
      .map(([key, value]) => [key.slice(xattrPrefix.length), value] as const),
  };
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

function number(text: Buffer, key: string, name: string): number {
  const digits = text.toString('latin1');
  if (/^\d{1,16}$/.test(digits)) return Number(digits);
  throw bad('IMAGE_INVALID', `${show(name)} has no usable ${key}`);
}

const earliest = -(2n ** 31n);
const latest = 2n ** 34n;

function paxTime(text: Buffer, name: string): bigint {
  const match = /^(-?)(\d{1,12})(?:\.(\d*))?$/.exec(text.toString('latin1'));
  if (match === null) throw bad('IMAGE_INVALID', `${show(name)} has no usable time`);
  const [, sign, seconds = '0', fraction = ''] = match;
  const ns = BigInt(seconds) * 1_000_000_000n + BigInt(fraction.slice(0, 9).padEnd(9, '0'));
  return clampTime(sign === '-' ? -ns : ns);
}

function headerTime(mtime: Date | undefined): bigint {
  let ms = mtime?.getTime() ?? 0;
  // Only base-256 fields are negative, and tar-stream takes the ones' complement of them.
  if (ms < 0) ms -= 1000;
  return Number.isFinite(ms) ? clampTime(BigInt(Math.trunc(ms)) * 1_000_000n) : 0n;
}

/** To what every Linux file system can hold. */
function clampTime(ns: bigint): bigint {
  const [low, high] = [earliest * 1_000_000_000n, latest * 1_000_000_000n];
  return ns < low ? low : ns > high ? high : ns;
}

/** A name from an archive, for messages. */
export function show(name: string): string {
  const text = Buffer.from(name.slice(0, 300), 'latin1').toString('utf8');
  return JSON.stringify(text);
}

function bad(code: ErrorCode, message: string): KeelsonError {
  return new KeelsonError(code, message);
}

/** Options that the published types of tar-stream lack. */
const parserOptions: object = { filenameEncoding: 'latin1', allowUnknownFormat: true };

/** The parts of tar-stream's parser (its version is pinned in package.json) that it keeps to itself. */
interface ParserInternals {
  _header: { readonly type: string | null; size: number | null } | null;
  _buffer: { shift(size: number): Buffer };
  _consumeHeader(): boolean;
  _decodeLongHeader(body: Buffer): void;
  _applyLongHeaders(): void;
}

/**
 * Nothing follows the header of these, whatever size it claims (as for Go's archive/tar, so for containerd and for
 * scanners): taken as content, other entries could hide there.
 */
const withoutContent = new Set<string | null>([
  'directory',
  'symlink',
  'link',
  'character-device',
  'block-device',
  'fifo',
]);

/**
 * Reads the archive `source` to its end and hands its entries to `sink`. Rejects with what `source` or `sink` threw,
 * or with IMAGE_INVALID for a broken archive. What follows the end marker of the archive is read and ignored.
 *
 * Three things that the public interface of the parser hides are watched from inside: the bytes of pax headers (it
 * decodes them as UTF-8, which destroys security.capability), the size of entries that have no content, and the end
 * marker (two empty blocks).
 */
export async function readArchive(source: AsyncIterable<Buffer>, sink: EntrySink): Promise<void> {
  const parser = extract(parserOptions);
  const internals = parser as unknown as ParserInternals;
  let pax: ReadonlyMap<string, Buffer> = new Map();
  let emptyBlocks = 0;
  let failure: unknown;
  let wake = () => {};

  const consumeHeader = internals._consumeHeader;
  internals._consumeHeader = function () {
    if (emptyBlocks >= 2) {
      this._buffer.shift(512);
      return true;
    }
    const more = consumeHeader.call(this);
    emptyBlocks = this._header === null ? emptyBlocks + 1 : 0;
    return more;
  };
  const decodeLongHeader = internals._decodeLongHeader;
  internals._decodeLongHeader = function (body) {
    if (this._header?.type === 'pax-header') pax = parsePax(body);
    decodeLongHeader.call(this, body);
  };
  const applyLongHeaders = internals._applyLongHeaders;
  internals._applyLongHeaders = function () {
    applyLongHeaders.call(this);
    if (withoutContent.has(this._header!.type)) this._header!.size = 0;
  };

  const guard = (body: () => void) => {
    if (failure !== undefined) return;
    try {
      body();
    } catch (error) {
      failure = error;
      parser.destroy();
    }
  };
  parser.on('entry', (header, content, next) => {
    content.on('error', () => {}); // The parser's own error event tells.
    guard(() => {
      const entry = readEntry(header, pax);
      pax = new Map();
      sink.begin(entry);
      if (header.size === 0) {
        sink.end();
        // Not at once: the parser would call us again from inside, once deeper for each entry.
        queueMicrotask(() => next());
        return;
      }
      content.on('data', (piece) =>
        guard(() => {
          if (entry.type === 'file') sink.data(piece as Buffer);
        }),
      );
      content.on('end', () => {
        guard(() => sink.end());
        next();
      });
    });
  });
  parser.on('drain', () => wake());
  parser.on('error', (error) => {
    failure ??= asBroken(error);
  });
  let closed = false;
  parser.on('close', () => {
    closed = true;
    wake();
  });
  const event = () =>
    new Promise<void>((resolve) => {
      wake = resolve;
    });

  try {
    for await (const chunk of source) {
      if (failure !== undefined) throw failure;
      if (!parser.write(chunk) && !closed) await event();
    }
    if (failure !== undefined) throw failure;
    // After the end marker odd bytes may be left over, which would look like a cut archive.
    if (emptyBlocks < 2) {
      parser.end(null);
      while (!closed) await event();
      if (failure !== undefined) throw failure;
    }
  } finally {
    parser.destroy();
  }
}

function asBroken(error: unknown): KeelsonError {
  if (error instanceof KeelsonError) return error;
  const why = error instanceof Error ? error.message : String(error);
  return new KeelsonError('IMAGE_INVALID', `not a tar archive: ${why}`, { cause: error });
}
