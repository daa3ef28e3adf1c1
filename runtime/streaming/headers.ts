/**
 * The compressed header blocks of SPDY/3: one zlib stream (RFC 1950) for each direction of a session, flushed after
 * each block. Reading keeps the last 32 KiB as the dictionary of the next block, so that every block is taken apart by
 * one bounded synchronous call. Writing stores instead of compressing: what is sent is a handful of empty blocks.
 */
import { constants, inflateRawSync } from 'node:zlib';

/** Names are lower case; a header that came several times holds its values in their order. */
export type Headers = ReadonlyMap<string, readonly string[]>;

/** Thrown for bytes that are not such a block. The session cannot go on: its zlib stream is lost. */
export class HeaderError extends Error {}

/** Bytes of a block after decompression; the blocks of real clients have about a hundred. */
const largestBlock = 64 << 10;
const mostHeaders = 256;
const windowSize = 32 << 10;

const lengthPrefixed = (words: string) =>
  words.split(' ').map((word) => Buffer.concat([uint32(word.length), Buffer.from(word, 'latin1')]));

/** The dictionary of SPDY/3 (draft-mbelshe-httpbis-spdy-00, section 2.6.10.1): 1,423 bytes with the id 0xe3c6a7c2. */
export const headerDictionary: Buffer = Buffer.concat([
  ...lengthPrefixed(
    'options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age ' +
      'allow authorization cache-control connection content-base content-encoding content-language content-length ' +
      'content-location content-md5 content-range content-type date etag expect expires from host if-match ' +
      'if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma ' +
      'proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade ' +
      'user-agent vary via warning www-authenticate method get status',
  ),
  Buffer.concat([uint32(6), Buffer.from('200 OK', 'latin1')]),
  ...lengthPrefixed('version HTTP/1.1 url public set-cookie keep-alive origin'),
  Buffer.from(
    '100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505' +
      '203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized' +
      '403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable' +
      'Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT' +
      'chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,' +
      'text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.',
    'latin1',
  ),
]);

/** RFC 1950: deflate with a 32 KiB window, and a dictionary, whose Adler-32 follows. */
const zlibHeader = Buffer.from([0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2]);

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/** Takes the blocks of one direction apart, in their order. Throws HeaderError. */
export function makeHeaderReader(): (block: Buffer) => Headers {
  let window: Buffer | undefined;
  return (block) => {
    let body = block;
    if (window === undefined) {
      checkZlibHeader(block);
      body = block.subarray(zlibHeader.length);
    }
    const dictionary = window ?? headerDictionary;
    let bytes: Buffer;
    try {
      bytes = inflateRawSync(body, {
        dictionary,
        finishFlush: constants.Z_SYNC_FLUSH,
        maxOutputLength: largestBlock,
      });
    } catch (error) {
      throw new HeaderError('a header block cannot be decompressed', { cause: error });
    }
    window = Buffer.concat([dictionary, bytes]).subarray(-windowSize);
    return readBlock(bytes);
  };
}

function checkZlibHeader(block: Buffer): void {
  const sound =
    block.length >= zlibHeader.length &&
    block.readUInt16BE(0) % 31 === 0 &&
    (block[0]! & 0x0f) === 8 &&
    (block[1]! & 0x20) !== 0 &&
    block.compare(zlibHeader, 2, 6, 2, 6) === 0;
  if (!sound) throw new HeaderError('a header block does not begin with the zlib header of SPDY/3');
}

/** Name/value pairs, each with a length of 32 bits before it; several values of a name are separated by NUL. */
function readBlock(bytes: Buffer): Headers {
  let at = 0;
  const number = () => {
    if (at + 4 > bytes.length) throw new HeaderError('a header block ends too early');
    at += 4;
    return bytes.readUInt32BE(at - 4);
  };
  const text = () => {
    const length = number();
    if (length > bytes.length - at) throw new HeaderError('a header block ends too early');
    at += length;
    return bytes.toString('utf8', at - length, at);
  };
  const count = number();
  if (count > mostHeaders) throw new HeaderError(`a header block has ${count} headers`);
  const headers = new Map<string, readonly string[]>();
  for (let index = 0; index < count; index++) {
    const name = text().toLowerCase();
    headers.set(name, [...(headers.get(name) ?? []), ...text().split('\0')]);
  }
  if (at !== bytes.length) throw new HeaderError('a header block has bytes left over');
  return headers;
}

/** Makes the blocks of one direction, in their order. */
export function makeHeaderWriter(): (headers: Headers) => Buffer {
  let begun = false;
  return (headers) => {
    const parts = [uint32(headers.size)];
    for (const [name, values] of headers) {
      for (const part of [Buffer.from(name.toLowerCase()), Buffer.from(values.join('\0'))]) {
        parts.push(uint32(part.length), part);
      }
    }
    const bytes = Buffer.concat(parts);
    const blocks: Buffer[] = begun ? [] : [zlibHeader];
    begun = true;
    for (let at = 0; at < bytes.length; at += 0xffff) {
      // RFC 1951, 3.2.4: a block that is not the last and is not compressed.
      const piece = bytes.subarray(at, at + 0xffff);
      const head = Buffer.alloc(5);
      head.writeUInt16LE(piece.length, 1);
      head.writeUInt16LE(piece.length ^ 0xffff, 3);
      blocks.push(head, piece);
    }
    // An empty block, as a flush makes it: Go hands out what it has read only when it sees one.
    blocks.push(Buffer.from([0, 0, 0, 0xff, 0xff]));
    return Buffer.concat(blocks);
  };
}
