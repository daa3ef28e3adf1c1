/**
 * The binary form of messages of protocol buffers, version 3, into objects.
 *
 * Fields that are not known are skipped. Decoded scalars, lists and maps are always there, messages only where they were
 * sent. int64 and uint64 are bigints, since times in nanoseconds do not fit a number; enums are their names, or the number
 * where this version has no name for it.
 */
import { KeelsonError } from '../errors.ts';
import {
  type Field,
  lengthDelimited,
  type NameIn,
  namesOf,
  type Schema,
  tableOf,
  type WireOf,
  wireTypeOf,
} from './schema.ts';

/**
 * Elements of lists, maps and messages in one message, at most: an empty one is two bytes on the wire, and a hundred times
 * that in memory.
 */
const maxElements = 1 << 18;

const text = new TextDecoder('utf-8', { fatal: true });

function malformed(why: string): KeelsonError {
  return new KeelsonError('INVALID_ARGUMENT', `not a message that can be read: ${why}`);
}

interface Reader {
  readonly schema: Schema;
  readonly bytes: Buffer;
  at: number;
  elements: number;
}

function readVarint(reader: Reader): bigint {
  let value = 0n;
  let low = 0;
  for (let index = 0; index < 10; index++) {
    const byte = reader.bytes[reader.at++];
    if (byte === undefined) throw malformed('it ends in the middle of a number');
    if (index < 4) {
      low |= (byte & 0x7f) << (7 * index);
      if (byte < 0x80) return BigInt(low);
      if (index === 3) value = BigInt(low);
    } else {
      value |= BigInt(byte & 0x7f) << BigInt(7 * index);
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
  }
  throw malformed('a number is too long');
}

function readBytes(reader: Reader, end: number): Buffer {
  const length = Number(readVarint(reader));
  const start = reader.at;
  if (length > end - start) throw malformed('a field is longer than what holds it');
  reader.at = start + length;
  return reader.bytes.subarray(start, reader.at);
}

function readText(reader: Reader, end: number): string {
  try {
    return text.decode(readBytes(reader, end));
  } catch (error) {
    if (error instanceof KeelsonError) throw error;
    throw malformed('a string is not UTF-8');
  }
}

function count(reader: Reader): void {
  if (++reader.elements > maxElements) throw malformed(`it has more than ${maxElements} elements`);
}

function skip(reader: Reader, wireType: number, end: number): void {
  if (wireType === 0) readVarint(reader);
  else if (wireType === 1) reader.at += 8;
  else if (wireType === 2) readBytes(reader, end);
  else if (wireType === 5) reader.at += 4;
  else throw malformed(`wire type ${wireType}`);
  if (reader.at > end) throw malformed('it ends in the middle of a field');
}

function readNumber(reader: Reader, type: string): unknown {
  const raw = readVarint(reader);
  switch (type) {
    case 'bool':
      return raw !== 0n;
    case 'int32':
      return Number(BigInt.asIntN(32, raw));
    case 'uint32':
      return Number(BigInt.asUintN(32, raw));
    case 'int64':
      return BigInt.asIntN(64, raw);
    case 'uint64':
      return raw;
    default: {
      const value = Number(BigInt.asIntN(32, raw));
      return namesOf(reader.schema, type)?.[value] ?? value;
    }
  }
}

function readEntry(reader: Reader, end: number): [string, string] {
  const stop = readBytes(reader, end).length;
  const from = reader.at - stop;
  const limit = reader.at;
  reader.at = from;
  let key = '';
  let value = '';
  while (reader.at < limit) {
    const tag = Number(readVarint(reader));
    if (tag === 10) key = readText(reader, limit);
    else if (tag === 18) value = readText(reader, limit);
    else skip(reader, tag & 7, limit);
  }
  return [key, value];
}

function readMessage(reader: Reader, name: string, end: number): Record<string, unknown> {
  const { fields, byNumber } = tableOf(reader.schema, name);
  const message: Record<string, unknown> = {};
  const maps = new Map<string, [string, string][]>();
  for (const field of fields) message[field.name] = defaultOf(reader.schema, field);
  while (reader.at < end) {
    const tag = Number(readVarint(reader));
    if (reader.at > end || tag > 0xffff_ffff || tag < 8) throw malformed('a tag makes no sense');
    const wireType = tag % 8;
    const field = byNumber.get(Math.floor(tag / 8));
    if (field === undefined) {
      skip(reader, wireType, end);
      continue;
    }
    const { type, list } = field;
    const wanted = wireTypeOf(reader.schema, type);
    if (wireType === lengthDelimited && wanted === 0 && list) {
      // Packed: the numbers of a list one after another.
      const bytes = readBytes(reader, end);
      const stop = reader.at;
      reader.at = stop - bytes.length;
      while (reader.at < stop) {
        count(reader);
        (message[field.name] as unknown[]).push(readNumber(reader, type));
      }
      if (reader.at > stop) throw malformed('a packed list ends in the middle of a number');
      continue;
    }
    if (wireType !== wanted) throw malformed(`${name}.${field.name} has wire type ${wireType}`);
    if (type === 'map') {
      count(reader);
      const entries = maps.get(field.name) ?? [];
      entries.push(readEntry(reader, end));
      maps.set(field.name, entries);
      continue;
    }
    const value = readOne(reader, type, end);
    if (list) {
      count(reader);
      (message[field.name] as unknown[]).push(value);
    } else {
      message[field.name] = value;
    }
  }
  if (reader.at > end) throw malformed('it ends in the middle of a field');
  for (const [field, entries] of maps) message[field] = Object.fromEntries(entries);
  return message;
}

function readOne(reader: Reader, type: string, end: number): unknown {
  switch (wireTypeOf(reader.schema, type)) {
    case 0:
      return readNumber(reader, type);
    case 1: {
      if (reader.at + 8 > end) throw malformed('it ends in the middle of a field');
      reader.at += 8;
      return reader.bytes.readDoubleLE(reader.at - 8);
    }
  }
  if (type === 'string') return readText(reader, end);
  // A copy, since the whole request would live as long as a part of it.
  if (type === 'bytes') return Buffer.from(readBytes(reader, end));
  count(reader);
  const length = readBytes(reader, end).length;
  const stop = reader.at;
  reader.at = stop - length;
  return readMessage(reader, type, stop);
}

function defaultOf(schema: Schema, { type, list }: Field): unknown {
  if (list) return [];
  switch (type) {
    case 'string':
      return '';
    case 'bytes':
      return Buffer.alloc(0);
    case 'bool':
      return false;
    case 'int32':
    case 'uint32':
    case 'double':
      return 0;
    case 'int64':
    case 'uint64':
      return 0n;
    case 'map':
      return {};
    default:
      return namesOf(schema, type)?.[0];
  }
}

/** Throws INVALID_ARGUMENT for bytes that are no such message. */
export function decode<S extends Schema, Name extends NameIn<S>>(
  schema: S,
  name: Name,
  bytes: Buffer,
): WireOf<S, Name> {
  const reader = { schema, bytes, at: 0, elements: 0 };
  return readMessage(reader, name, bytes.length) as unknown as WireOf<S, Name>;
}
