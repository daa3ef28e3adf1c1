/** Objects into the binary form of messages of protocol buffers, version 3. */
import {
  type Field,
  type InputOf,
  lengthDelimited,
  type NameIn,
  namesOf,
  type Schema,
  tableOf,
  wireTypeOf,
} from './schema.ts';

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

function numberOf(schema: Schema, type: string, value: unknown): bigint | number {
  if (typeof value === 'boolean') return value ? 1 : 0;
  if (typeof value === 'bigint') return value;
  if (typeof value === 'number') return Math.trunc(value);
  const index = namesOf(schema, type)?.indexOf(String(value)) ?? -1;
  if (index < 0) throw new TypeError(`${type} has no ${String(value)}`);
  return index;
}

/** The bytes of one value without tag and length. */
function bytesOf(schema: Schema, type: string, value: unknown): Buffer {
  if (typeof value === 'string') return Buffer.from(value, 'utf8');
  if (Buffer.isBuffer(value)) return value;
  return encode(schema, type, value as InputOf<Schema, string>);
}

function put(schema: Schema, chunks: Buffer[], { number, type }: Field, value: unknown): void {
  const wireType = wireTypeOf(schema, type);
  const head: number[] = [];
  varint(number * 8 + wireType, head);
  if (wireType === lengthDelimited) {
    const bytes = bytesOf(schema, type, value);
    varint(bytes.length, head);
    chunks.push(Buffer.from(head), bytes);
  } else if (wireType === 1) {
    const bytes = Buffer.alloc(8);
    bytes.writeDoubleLE(Number(value));
    chunks.push(Buffer.from(head), bytes);
  } else {
    varint(numberOf(schema, type, value), head);
    chunks.push(Buffer.from(head));
  }
}

function putEntries(
  schema: Schema,
  chunks: Buffer[],
  field: Field,
  map: Readonly<Record<string, string>>,
): void {
  const key = { name: 'key', number: 1, type: 'string', list: false };
  const val = { name: 'value', number: 2, type: 'string', list: false };
  for (const [name, value] of Object.entries(map)) {
    const entry: Buffer[] = [];
    put(schema, entry, key, name);
    put(schema, entry, val, value);
    put(schema, chunks, { ...field, type: 'bytes' }, Buffer.concat(entry));
  }
}

function putPacked(schema: Schema, chunks: Buffer[], field: Field, values: readonly unknown[]): void {
  const packed: number[] = [];
  for (const value of values) varint(numberOf(schema, field.type, value), packed);
  put(schema, chunks, { ...field, type: 'bytes' }, Buffer.from(packed));
}

/** What has its default is left out. Throws a TypeError for the name of an enum that there is not. */
export function encode<S extends Schema, Name extends NameIn<S>>(
  schema: S,
  name: Name,
  message: InputOf<S, Name>,
): Buffer {
  const chunks: Buffer[] = [];
  for (const field of tableOf(schema, name).fields) {
    const value = (message as Readonly<Record<string, unknown>>)[field.name];
    if (value === undefined) continue;
    const { type, list } = field;
    if (type === 'map') {
      putEntries(schema, chunks, field, value as Record<string, string>);
    } else if (list) {
      const values = value as readonly unknown[];
      if (wireTypeOf(schema, type) === 0) {
        if (values.length > 0) putPacked(schema, chunks, field, values);
      } else {
        for (const item of values) put(schema, chunks, field, item);
      }
    } else if (!isDefault(schema, type, value)) {
      put(schema, chunks, field, value);
    }
  }
  return Buffer.concat(chunks);
}

function isDefault(schema: Schema, type: string, value: unknown): boolean {
  if (value === 0 || value === 0n || value === '' || value === false) return true;
  return Buffer.isBuffer(value) ? value.length === 0 : value === namesOf(schema, type)?.[0];
}
