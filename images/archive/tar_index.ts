/**
 * Where the files of an uncompressed tar archive lie: one pass over its headers, which skips the contents. Layers are
 * then read in place, however large the archive is.
 */
import type { FileHandle } from 'node:fs/promises';
import { abortError, KeelsonError } from '../../runtime/host/errors.ts';
import { parsePax } from '../tar/entries.ts';
import { blockSize, decodeHeader, paddingOf } from './tar_headers.ts';

/** Where a name leads: to bytes of the archive, or to another name. */
export type TarMember =
  | { readonly offset: number; readonly size: number }
  /** Cleaned; undefined where it leads out of the archive. */
  | { readonly link: string | undefined };

/** Entries, and bytes of all names together, that an archive of images may have. */
const mostEntries = 200_000;
const mostNameBytes = 16 << 20;
/** Bytes of a long name or pax header. */
const longestExtension = 1 << 20;
const windowSize = 4096;

/**
 * `name` below the root of an archive: without `.` and empty parts, `..` worked off; undefined where it leads out of
 * it. `from` is the folder that a relative name begins in. Absolute names are below the root. Pure.
 */
export function cleanMember(name: string, from = ''): string | undefined {
  const parts: string[] = [];
  for (const part of (name.startsWith('/') ? name : `${from}/${name}`).split('/')) {
    if (part === '' || part === '.') continue;
    if (part !== '..') parts.push(part);
    else if (parts.pop() === undefined) return undefined;
  }
  return parts.join('/');
}

/**
 * The files and links of the tar archive in `file`, by cleaned name; of two with one name the later counts, as when it
 * is unpacked. Entries with names that lead out of it cannot be reached and are left out.
 * Throws IMAGE_INVALID, ABORTED.
 */
export async function indexTar(file: FileHandle, signal?: AbortSignal): Promise<Map<string, TarMember>> {
  const { size: end } = await file.stat();
  const members = new Map<string, TarMember>();
  const window = Buffer.allocUnsafe(windowSize);
  let windowAt = 0;
  let windowEnd = 0;
  /** `length` bytes at `at`; fewer at the end of the file. The bytes are valid until the next call. */
  const bytesAt = async (at: number, length: number): Promise<Buffer> => {
    if (length > windowSize) return readFully(file, at, Buffer.allocUnsafe(length));
    if (at < windowAt || at + length > windowEnd) {
      windowAt = at;
      windowEnd = at + (await readFully(file, at, window)).length;
    }
    return window.subarray(at - windowAt, Math.min(at - windowAt + length, windowEnd - windowAt));
  };
  let at = 0;
  let emptyBlocks = 0;
  let entries = 0;
  let nameBytes = 0;
  let long: { name?: string; link?: string; size?: number } = {};
  while (emptyBlocks < 2 && at < end) {
    if (signal?.aborted) throw abortError(signal, 'reading the archive');
    const block = await bytesAt(at, blockSize);
    if (block.length < blockSize) throw invalid('it is cut off in the middle of a header');
    const header = decodeHeader(block);
    at += blockSize;
    if (header === undefined) {
      emptyBlocks++;
      continue;
    }
    emptyBlocks = 0;
    if (++entries > mostEntries) throw invalid(`it has more than ${mostEntries} entries`);
    const { type } = header;
    const isExtension = type === 'L' || type === 'K' || type === 'x';
    const size = isExtension ? header.size : (long.size ?? header.size);
    const next = at + size + paddingOf(size);
    if (at + size > end) throw invalid('it is cut off: an entry is larger than what is left of the file');
    if (isExtension) {
      if (size > longestExtension) throw invalid('a name or pax header is longer than any sensible one');
      const body = Buffer.from(await bytesAt(at, size));
      const text = body.toString('utf8').replace(/\0.*$/s, '');
      if (type === 'L') long = { ...long, name: text };
      else if (type === 'K') long = { ...long, link: text };
      else long = { ...long, ...paxOf(body) };
    } else if (type !== 'g') {
      const name = cleanMember(long.name ?? header.name);
      const link = long.link ?? header.linkName;
      if (name !== undefined && name !== '') {
        nameBytes += name.length + link.length;
        if (nameBytes > mostNameBytes) throw invalid('its names are longer than any sensible ones');
        if (type === '0' || type === '7') members.set(name, { offset: at, size });
        // Hard links count from the root of the archive, symbolic ones from where they stand.
        else if (type === '1') members.set(name, { link: cleanMember(link) });
        else if (type === '2') members.set(name, { link: cleanMember(link, name.replace(/[^/]*$/, '')) });
      }
      long = {};
    }
    at = next;
  }
  if (entries === 0) throw invalid('it is empty');
  // Half a copy that ends between two entries would otherwise look whole.
  if (emptyBlocks === 0) throw invalid('it is cut off: it has no end marker');
  return members;
}

/** Fills `into` from `at` on; what is returned is shorter at the end of the file. */
export async function readFully(file: FileHandle, at: number, into: Buffer): Promise<Buffer> {
  let filled = 0;
  while (filled < into.length) {
    const { bytesRead } = await file.read(into, filled, into.length - filled, at + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return into.subarray(0, filled);
}

function paxOf(body: Buffer): { name?: string; link?: string; size?: number } {
  const records = parsePax(body);
  const size = records.get('size')?.toString('latin1');
  if (size !== undefined && !/^\d{1,15}$/.test(size)) throw invalid('a pax header has no usable size');
  return {
    ...(records.has('path') && { name: records.get('path')!.toString('utf8') }),
    ...(records.has('linkpath') && { link: records.get('linkpath')!.toString('utf8') }),
    ...(size !== undefined && { size: Number(size) }),
  };
}

function invalid(why: string): KeelsonError {
  return new KeelsonError('IMAGE_INVALID', why);
}
