/**
 * Messages of protocol buffers version 3, declared as tables: what TypeScript sees of them, and what the two directions
 * work with. A message is `{ field: [number, type] }`; a type is a scalar, `map` (of strings), the name of a message or an
 * enum, or one of these with `[]`. A oneof is its fields.
 */

export type Message = Readonly<Record<string, readonly [number, string]>>;

export interface Schema {
  /** Said in errors: the package of the .proto file. */
  readonly name: string;
  readonly messages: Readonly<Record<string, Message>>;
  /** The names of the values, which count up from 0. */
  readonly enums: Readonly<Record<string, readonly string[]>>;
}

interface Scalars {
  string: string;
  bytes: Buffer;
  bool: boolean;
  int32: number;
  uint32: number;
  int64: bigint;
  uint64: bigint;
  double: number;
  map: Readonly<Record<string, string>>;
}

export type NameIn<S extends Schema> = keyof S['messages'] & string;

type TypeOf<Field> = Field extends readonly [number, infer Type] ? Type : never;
type Single<S extends Schema, Type> = Type extends keyof Scalars
  ? Scalars[Type]
  : Type extends keyof S['enums']
    ? S['enums'][Type][number] | number
    : Type extends NameIn<S>
      ? WireOf<S, Type>
      : never;
type Decoded<S extends Schema, Type> = Type extends `${infer Item}[]`
  ? readonly Single<S, Item>[]
  : Type extends NameIn<S>
    ? WireOf<S, Type> | undefined
    : Single<S, Type>;

/** A decoded message. */
export type WireOf<S extends Schema, Name extends NameIn<S>> = {
  readonly [Field in keyof S['messages'][Name]]: Decoded<S, TypeOf<S['messages'][Name][Field]>>;
};

type SingleInput<S extends Schema, Type> = Type extends 'int64' | 'uint64'
  ? bigint | number
  : Type extends NameIn<S>
    ? InputOf<S, Type>
    : Single<S, Type>;
/** A message to encode: what is absent has its default. */
export type InputOf<S extends Schema, Name extends NameIn<S>> = {
  readonly [Field in keyof S['messages'][Name]]?:
    | (TypeOf<S['messages'][Name][Field]> extends `${infer Item}[]`
        ? readonly SingleInput<S, Item>[]
        : SingleInput<S, TypeOf<S['messages'][Name][Field]>>)
    | undefined;
};

export interface Field {
  readonly name: string;
  readonly number: number;
  readonly type: string;
  readonly list: boolean;
}
export interface Table {
  readonly fields: readonly Field[];
  readonly byNumber: ReadonlyMap<number, Field>;
}

const tables = new WeakMap<Schema, Map<string, Table>>();

export function tableOf(schema: Schema, name: string): Table {
  let ofSchema = tables.get(schema);
  if (ofSchema === undefined) {
    ofSchema = new Map();
    tables.set(schema, ofSchema);
  }
  const known = ofSchema.get(name);
  if (known !== undefined) return known;
  const fields = Object.entries(schema.messages[name]!).map(([field, [number, type]]) => ({
    name: field,
    number,
    type: type.replace('[]', ''),
    list: type.endsWith('[]'),
  }));
  const table = { fields, byNumber: new Map(fields.map((field) => [field.number, field])) };
  ofSchema.set(name, table);
  return table;
}

/** The names of an enum; undefined for what is none. */
export function namesOf(schema: Schema, type: string): readonly string[] | undefined {
  return Object.hasOwn(schema.enums, type) ? schema.enums[type] : undefined;
}

export const lengthDelimited = 2;

/** protobuf.dev/programming-guides/encoding: 0 varint, 1 eight bytes, 2 length and bytes. */
export function wireTypeOf(schema: Schema, type: string): number {
  if (type === 'double') return 1;
  const delimited =
    type === 'string' || type === 'bytes' || type === 'map' || Object.hasOwn(schema.messages, type);
  return delimited ? lengthDelimited : 0;
}
