/**
 * Header blocks of tar archives that hold images: what is needed to find files in one (ustar, GNU and pax names and
 * sizes), and to write one. Archives of layers are read elsewhere.
 */
import { KeelsonError } from '../../runtime/host/errors.ts';

export const blockSize = 512;

export interface TarHeader {
  /** As it stands, at most 256 bytes; longer names come in an entry before. */
  readonly name: string;
  /** Bytes of content; 0 for entries that have none whatever they claim. */
  readonly size: number;
  /** The type flag: `0` file, `1` hard link, `2` symlink, `5` folder, `L`, `K`, `x`, `g` for what describes others. */
  readonly type: string;
  readonly linkName: string;
}

/** Nothing follows the header of links, devices, folders and fifos. */
const withoutContent = '123456';

/** The header in `block` (512 bytes); undefined for an empty block. Throws IMAGE_INVALID. Pure. */
export function decodeHeader(block: Buffer): TarHeader | undefined {
  let sum = 8 * 32;
  for (let at = 0; at < blockSize; at++) if (at < 148 || at >= 156) sum += block[at]!;
  if (sum === 8 * 32 && block.every((byte) => byte === 0)) return undefined;
  if (octal(block, 148, 8) !== sum) throw broken('a header has a wrong checksum');
  const type = block[156] === 0 ? '0' : String.fromCharCode(block[156]!);
  const name = text(block, 0, 100);
  const prefix = block.toString('latin1', 257, 263) === 'ustar\0' ? text(block, 345, 155) : '';
  const size = withoutContent.includes(type) ? 0 : number(block, 124, 12);
  if (!Number.isSafeInteger(size)) throw broken('a header has no usable size');
  return { name: prefix === '' ? name : `${prefix}/${name}`, size, type, linkName: text(block, 157, 100) };
}

/** The header of a regular file (ustar; sizes of 8 GiB and more as GNU writes them). Names of up to 100 bytes. Pure. */
export function encodeHeader(name: string, size: number, type: '0' | '5' = '0'): Buffer {
  const block = Buffer.alloc(blockSize);
  if (Buffer.byteLength(name) > 100)
    throw new KeelsonError('INTERNAL', `${name} is too long for a tar header`);
  block.write(name);
  block.write(type === '5' ? '0000755\0' : '0000644\0', 100, 'latin1');
  block.write('0000000\0', 108, 'latin1');
  block.write('0000000\0', 116, 'latin1');
  if (size < 8 ** 11) block.write(`${size.toString(8).padStart(11, '0')}\0`, 124, 'latin1');
  else {
    block[124] = 0x80;
    block.writeBigUInt64BE(BigInt(size), 128);
  }
  block.write('00000000000\0', 136, 'latin1');
  block.write('        ', 148, 'latin1');
  block.write(type, 156, 'latin1');
  block.write('ustar\x0000', 257, 'latin1');
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

/** Bytes that fill the last block of a content of `size` bytes. */
export function paddingOf(size: number): number {
  return (blockSize - (size % blockSize)) % blockSize;
}

function text(block: Buffer, at: number, length: number): string {
  const end = block.indexOf(0, at);
  return block.toString('utf8', at, end === -1 || end > at + length ? at + length : end);
}

function octal(block: Buffer, at: number, length: number): number {
  const digits = block
    .toString('latin1', at, at + length)
    .replace(/\0.*$/s, '')
    .trim();
  if (!/^[0-7]*$/.test(digits)) throw broken('a header has a number that is not octal');
  return digits === '' ? 0 : Number.parseInt(digits, 8);
}

function number(block: Buffer, at: number, length: number): number {
  if ((block[at]! & 0x80) === 0) return octal(block, at, length);
  let value = block[at]! & 0x7f;
  for (let next = at + 1; next < at + length; next++) value = value * 256 + block[next]!;
  return value;
}

function broken(why: string): KeelsonError {
  return new KeelsonError('IMAGE_INVALID', `it is not a tar archive, or broken: ${why}`);
}
