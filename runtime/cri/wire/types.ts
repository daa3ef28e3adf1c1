/** The messages of runtime.v1 as TypeScript sees them, and the tables that the two directions work with. */
import { calls } from './calls.ts';
import { configs } from './configs.ts';
import { enums } from './enums.ts';
import { states } from './states.ts';

export const messages = { ...configs, ...calls, ...states };

type Messages = typeof messages;
type Enums = typeof enums;
export type MessageName = keyof Messages;

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

type TypeOf<Field> = Field extends readonly [number, infer Type] ? Type : never;
type Single<Type> = Type extends keyof Scalars
  ? Scalars[Type]
  : Type extends keyof Enums
    ? Enums[Type][number] | number
    : Type extends MessageName
      ? Wire<Type>
      : never;
type Decoded<Type> = Type extends `${infer Item}[]`
  ? readonly Single<Item>[]
  : Type extends MessageName
    ? Wire<Type> | undefined
    : Single<Type>;

/** A decoded message. */
export type Wire<Name extends MessageName> = {
  readonly [Field in keyof Messages[Name]]: Decoded<TypeOf<Messages[Name][Field]>>;
};

type SingleInput<Type> = Type extends 'int64' | 'uint64'
  ? bigint | number
  : Type extends MessageName
    ? WireInput<Type>
    : Single<Type>;
/** A message to encode: what is absent has its default. */
export type WireInput<Name extends MessageName> = {
  readonly [Field in keyof Messages[Name]]?:
    | (TypeOf<Messages[Name][Field]> extends `${infer Item}[]`
        ? readonly SingleInput<Item>[]
        : SingleInput<TypeOf<Messages[Name][Field]>>)
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

const tables = new Map<string, Table>();

export function tableOf(name: string): Table {
  const known = tables.get(name);
  if (known !== undefined) return known;
  const entries = Object.entries(messages[name as MessageName]) as [string, readonly [number, string]][];
  const fields = entries.map(([field, [number, type]]) => ({
    name: field,
    number,
    type: type.replace('[]', ''),
    list: type.endsWith('[]'),
  }));
  const table = { fields, byNumber: new Map(fields.map((field) => [field.number, field])) };
  tables.set(name, table);
  return table;
}

/** The names of an enum; undefined for what is none. */
export function namesOf(type: string): readonly string[] | undefined {
  return Object.hasOwn(enums, type) ? enums[type as keyof Enums] : undefined;
}

export const lengthDelimited = 2;

/** protobuf.dev/programming-guides/encoding: 0 varint, 1 eight bytes, 2 length and bytes. */
export function wireTypeOf(type: string): number {
  if (type === 'double') return 1;
  const delimited = type === 'string' || type === 'bytes' || type === 'map' || Object.hasOwn(messages, type);
  return delimited ? lengthDelimited : 0;
}
