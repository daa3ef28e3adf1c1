/** Objects into the binary form of the messages of runtime.v1. */
import {
  type Field,
  lengthDelimited,
  type MessageName,
  namesOf,
  tableOf,
  type WireInput,
  wireTypeOf,
} from './types.ts';

function varint(value: bigint | number, out: number[]): void {
  if (typeof value === 'number' && value >= 0 && value < 0x8000_0000) {
    let rest = value;
    for (; rest > 0x7f; rest >>>= 7) out.push((rest & 0x7f) | 0x80);
    out.push(rest);
    return;
  }
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest > 0x7fn; rest >>= 7n) out.push(Number(rest & 0x7fn) | 0x80);
  out.push(Number(rest));
}

function numberOf(type: string, value: unknown): bigint | number {
  if (typeof value === 'boolean') return value ? 1 : 0;
  if (typeof value === 'bigint') return value;
  if (typeof value === 'number') return Math.trunc(value);
  const index = namesOf(type)?.indexOf(String(value)) ?? -1;
  if (index < 0) throw new TypeError(`${type} has no ${String(value)}`);
  return index;
}

/** The bytes of one value without tag and length. */
function bytesOf(type: string, value: unknown): Buffer {
  if (typeof value === 'string') return Buffer.from(value, 'utf8');
  if (Buffer.isBuffer(value)) return value;
  return encode(type as MessageName, value as WireInput<MessageName>);
}

function put(chunks: Buffer[], { number, type }: Field, value: unknown): void {
  const wireType = wireTypeOf(type);
  const head: number[] = [];
  varint(number * 8 + wireType, head);
  if (wireType === lengthDelimited) {
    const bytes = bytesOf(type, value);
    varint(bytes.length, head);
    chunks.push(Buffer.from(head), bytes);
  } else if (wireType === 1) {
    const bytes = Buffer.alloc(8);
    bytes.writeDoubleLE(Number(value));
    chunks.push(Buffer.from(head), bytes);
  } else {
    varint(numberOf(type, value), head);
    chunks.push(Buffer.from(head));
  }
}

function putEntries(chunks: Buffer[], field: Field, map: Readonly<Record<string, string>>): void {
  const key = { name: 'key', number: 1, type: 'string', list: false };
  const val = { name: 'value', number: 2, type: 'string', list: false };
  for (const [name, value] of Object.entries(map)) {
    const entry: Buffer[] = [];
    put(entry, key, name);
    put(entry, val, value);
    put(chunks, { ...field, type: 'bytes' }, Buffer.concat(entry));
  }
}

function putPacked(chunks: Buffer[], field: Field, values: readonly unknown[]): void {
  const packed: number[] = [];
  for (const value of values) varint(numberOf(field.type, value), packed);
  put(chunks, { ...field, type: 'bytes' }, Buffer.from(packed));
}

/** What has its default is left out. Throws a TypeError for the name of an enum that there is not. */
export function encode<Name extends MessageName>(name: Name, message: WireInput<Name>): Buffer {
  const chunks: Buffer[] = [];
  for (const field of tableOf(name).fields) {
    const value = (message as Readonly<Record<string, unknown>>)[field.name];
    if (value === undefined) continue;
    const { type, list } = field;
    if (type === 'map') {
      putEntries(chunks, field, value as Record<string, string>);
    } else if (list) {
      const values = value as readonly unknown[];
      if (wireTypeOf(type) === 0) {
        if (values.length > 0) putPacked(chunks, field, values);
      } else {
        for (const item of values) put(chunks, field, item);
      }
    } else if (!isDefault(type, value)) {
      put(chunks, field, value);
    }
  }
  return Buffer.concat(chunks);
}

function isDefault(type: string, value: unknown): boolean {
  if (value === 0 || value === 0n || value === '' || value === false) return true;
  return Buffer.isBuffer(value) ? value.length === 0 : value === namesOf(type)?.[0];
}
