/** The kinds of fields that a configuration table is made of: what each accepts and what it becomes. */
import { isDeepStrictEqual } from 'node:util';
import { parseDuration } from './duration.ts';

export type Path = readonly (string | number)[];

/** Where reading puts what it finds; nothing is thrown, so that all faults of a file are told at once. */
export interface Findings {
  fault(path: Path, message: string): void;
  /** `known`: the names that were possible at this place. */
  unknown(path: Path, known: readonly string[]): void;
  /** A field that is set, away from its default, and that keelson does not act on. */
  ignored(path: Path): void;
}

/** `T` is what reading gives, `R` what a file may hold. */
export interface Field<T, R = unknown> {
  /** For error messages: "boolean", "duration such as 10s". */
  readonly expects: string;
  /** keelson does something with it. */
  readonly acted: boolean;
  /** The fields inside, for objects. */
  readonly fields?: Fields;
  /** `undefined` and `null` give the default. */
  read(raw: unknown, path: Path, findings: Findings): T;
  /** Only for inference. */
  readonly raw?: R;
}

export type Fields = Readonly<Record<string, Field<unknown>>>;
export type ValuesOf<F extends Fields> = {
  readonly [K in keyof F]: F[K] extends Field<infer T, unknown> ? T : never;
};
export type RawOf<F extends Fields> = {
  readonly [K in keyof F]?: F[K] extends Field<unknown, infer R> ? R | undefined : never;
};

interface Options {
  /** Default false: a warning is given when the field is set. */
  readonly acted?: boolean;
  /**
   * The field is a pointer in the Go type, so that `0`, `""` and `0s` are values. In the other fields they mean
   * "not set", which is what kubeadm relies on when it writes them out.
   */
  readonly keepZero?: boolean;
}
interface Range {
  readonly min?: number;
  readonly max?: number;
}

/** Says what a value is, without showing long ones. */
function show(raw: unknown): string {
  if (raw === null) return 'null';
  if (Array.isArray(raw)) return 'a list';
  if (typeof raw === 'object') return 'a map';
  const text = JSON.stringify(raw) ?? String(raw);
  return `${typeof raw} ${text.length > 60 ? `${text.slice(0, 60)}…` : text}`;
}

/** A field of one value. `convert` gives undefined where the value is not of the kind, a string to say why not. */
function scalar<T, R>(
  expects: string,
  zero: (value: T) => boolean,
  fallback: T | undefined,
  options: Options,
  convert: (raw: unknown) => { value: T } | { fault: string } | undefined,
): Field<T | undefined, R> {
  return {
    expects,
    acted: options.acted ?? false,
    read(raw, path, findings) {
      if (raw === undefined || raw === null) return fallback;
      const result = convert(raw);
      if (result === undefined) {
        const quoted = expects.startsWith('string') && (typeof raw === 'number' || typeof raw === 'boolean');
        findings.fault(
          path,
          `expected ${article(expects)}, got ${show(raw)}${quoted ? ': put it in quotes' : ''}`,
        );
        return fallback;
      }
      if ('fault' in result) {
        findings.fault(path, result.fault);
        return fallback;
      }
      return !options.keepZero && zero(result.value) ? fallback : result.value;
    },
  };
}

function article(noun: string): string {
  return `${/^[aeiou]/.test(noun) ? 'an' : 'a'} ${noun}`;
}

export function boolean(options: Options & { default: boolean }): Field<boolean, boolean>;
export function boolean(options?: Options): Field<boolean | undefined, boolean>;
export function boolean(options: Options & { default?: boolean } = {}) {
  // Booleans are never "zero means not set": where the default is true, kubelet's field is a pointer.
  return scalar<boolean, boolean>(
    'boolean (true or false)',
    () => false,
    options.default,
    options,
    (raw) => (typeof raw === 'boolean' ? { value: raw } : undefined),
  );
}

interface StringOptions extends Options {
  readonly oneOf?: readonly string[];
  readonly pattern?: RegExp;
  /** What `pattern` means, for the message. */
  readonly expects?: string;
}
export function string(options: StringOptions & { default: string }): Field<string, string>;
export function string(options?: StringOptions): Field<string | undefined, string>;
export function string(options: StringOptions & { default?: string } = {}) {
  return scalar<string, string>(
    options.expects === undefined ? 'string' : `string: ${options.expects}`,
    (value) => value === '',
    options.default,
    options,
    (raw) => {
      if (typeof raw !== 'string') return undefined;
      if (raw === '') return { value: raw };
      if (options.oneOf !== undefined && !options.oneOf.includes(raw)) {
        return { fault: `expected one of ${options.oneOf.join(', ')}, got ${show(raw)}` };
      }
      if (options.pattern !== undefined && !options.pattern.test(raw)) {
        return { fault: `expected ${article(options.expects ?? 'other string')}, got ${show(raw)}` };
      }
      return { value: raw };
    },
  );
}

type IntegerOptions = Options & Range & { readonly bits?: 32 | 64 };
export function integer(options: IntegerOptions & { default: number }): Field<number, number>;
export function integer(options?: IntegerOptions): Field<number | undefined, number>;
export function integer(options: IntegerOptions & { default?: number } = {}) {
  const limit = options.bits === 64 ? Number.MAX_SAFE_INTEGER : 2 ** 31 - 1;
  const { min = -limit, max = limit } = options;
  return scalar<number, number>(
    'integer',
    (value) => value === 0,
    options.default,
    options,
    (raw) => {
      if (typeof raw !== 'number' || !Number.isInteger(raw)) return undefined;
      if (raw === 0 && !options.keepZero) return { value: 0 };
      if (raw < min || raw > max) return { fault: `must be from ${min} to ${max}, got ${raw}` };
      return { value: raw };
    },
  );
}

export function float(options: Options & Range & { default: number }): Field<number, number>;
export function float(options?: Options & Range): Field<number | undefined, number>;
export function float(options: Options & Range & { default?: number } = {}) {
  return scalar<number, number>(
    'number',
    (value) => value === 0,
    options.default,
    options,
    (raw) => {
      if (typeof raw !== 'number' || !Number.isFinite(raw)) return undefined;
      const { min = -Number.MAX_VALUE, max = Number.MAX_VALUE } = options;
      return raw < min || raw > max ? { fault: `must be from ${min} to ${max}, got ${raw}` } : { value: raw };
    },
  );
}

/** Go durations; the value is milliseconds. `default` is written as in a file. */
export function duration(options: Options & { default: string }): Field<number, string>;
export function duration(options?: Options): Field<number | undefined, string>;
export function duration(options: Options & { default?: string } = {}) {
  return scalar<number, string>(
    'duration such as "10s", "1m30s" or "0s"',
    (value) => value === 0,
    options.default === undefined ? undefined : parseDuration(options.default),
    options,
    (raw) => {
      const value = typeof raw === 'string' ? parseDuration(raw) : undefined;
      if (value === undefined) return undefined;
      return value < 0 ? { fault: `must not be negative, got ${show(raw)}` } : { value };
    },
  );
}

/** The grammar of k8s.io/apimachinery resource.Quantity. */
export const quantityPattern =
  /^[+-]?(\d+(\.\d*)?|\.\d+)(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?\d+)?$/;

export function list<T, R>(
  item: Field<T, R>,
  options: Options & { default?: readonly NonNullable<T>[] } = {},
): Field<readonly NonNullable<T>[], readonly R[]> {
  const fallback = options.default ?? [];
  return {
    expects: `list of ${item.expects}`,
    acted: options.acted ?? false,
    ...(item.fields === undefined ? {} : { fields: item.fields }),
    read(raw, path, findings) {
      if (raw === undefined || raw === null) return fallback;
      if (!Array.isArray(raw)) {
        findings.fault(path, `expected ${article(`list of ${item.expects}`)}, got ${show(raw)}`);
        return fallback;
      }
      const values: NonNullable<T>[] = [];
      raw.forEach((entry: unknown, index) => {
        const empty = entry === null || entry === '';
        if (empty) findings.fault([...path, index], 'must not be empty');
        const value = empty ? undefined : item.read(entry, [...path, index], findings);
        if (value !== undefined && value !== null) values.push(value);
      });
      return values;
    },
  };
}

/** A map with free keys. */
export function map<T, R>(
  item: Field<T, R>,
  options: Options & { default?: Readonly<Record<string, NonNullable<T>>> } = {},
): Field<Readonly<Record<string, NonNullable<T>>>, Readonly<Record<string, R>>> {
  const fallback = options.default ?? {};
  return {
    expects: `map of ${item.expects}`,
    acted: options.acted ?? false,
    read(raw, path, findings) {
      if (raw === undefined || raw === null) return fallback;
      if (typeof raw !== 'object' || Array.isArray(raw)) {
        findings.fault(path, `expected ${article(`map of ${item.expects}`)}, got ${show(raw)}`);
        return fallback;
      }
      const values: Record<string, NonNullable<T>> = Object.create(null);
      for (const [key, entry] of Object.entries(raw)) {
        const value = item.read(entry, [...path, key], findings);
        if (value !== undefined && value !== null) values[key] = value;
      }
      return { ...values };
    },
  };
}

/** A map with the keys of `fields` and no others. Inside, each field says for itself whether it is acted on. */
export function object<F extends Fields>(fields: F): Field<ValuesOf<F>, RawOf<F>> {
  return {
    expects: 'map',
    acted: true,
    fields,
    read(raw, path, findings) {
      const isMap = typeof raw === 'object' && raw !== null && !Array.isArray(raw);
      if (raw !== undefined && raw !== null && !isMap)
        findings.fault(path, `expected a map, got ${show(raw)}`);
      const given: Readonly<Record<string, unknown>> = isMap ? { ...raw } : {};
      for (const key of Object.keys(given)) {
        if (!Object.hasOwn(fields, key)) findings.unknown([...path, key], Object.keys(fields));
      }
      const values: Record<string, unknown> = {};
      for (const [key, field] of Object.entries(fields)) {
        const own = Object.hasOwn(given, key) ? given[key] : undefined;
        values[key] = field.read(own, [...path, key], findings);
        if (own === undefined || field.acted) continue;
        if (!isDeepStrictEqual(values[key], field.read(undefined, path, findings))) {
          findings.ignored([...path, key]);
        }
      }
      return values as ValuesOf<F>;
    },
  };
}
