/** Kubernetes quantities (k8s.io/apimachinery, resource.Quantity): `500m`, `1.5Gi`, `2e3`, `100M`. */
import { KeelsonError } from '../../runtime/host/errors.ts';

/** An exact fraction: quantities have decimals that binary floating point lacks. */
interface Fraction {
  readonly numerator: bigint;
  readonly denominator: bigint;
}

const binary: Readonly<Record<string, bigint>> = {
  Ki: 1n << 10n,
  Mi: 1n << 20n,
  Gi: 1n << 30n,
  Ti: 1n << 40n,
  Pi: 1n << 50n,
  Ei: 1n << 60n,
};
/** Powers of ten. */
const decimal: Readonly<Record<string, number>> = {
  n: -9,
  u: -6,
  m: -3,
  '': 0,
  k: 3,
  M: 6,
  G: 9,
  T: 12,
  P: 15,
  E: 18,
};
const form = /^([+-]?)(\d*)(?:\.(\d*))?((?:[eE][+-]?\d+)|[KMGTPE]i|[numkMGTPE]?)$/;
/** Longer ones cannot be meant, and BigInt work on them is slow. */
const longestText = 64;
/** 10^30 is far over the int64 that the apiserver keeps. */
const largestExponent = 30;

/**
 * The value in base units (bytes, cores), with a fraction where it has one.
 * Throws INVALID_ARGUMENT for what is not a quantity.
 */
export function parseQuantity(text: string): number {
  const { numerator, denominator } = parse(text);
  // Division of two doubles rounds once; both are exact below 2^53, which covers what a node has.
  return Number(numerator) / Number(denominator);
}

/** The value in thousandths (millicores), rounded up as Quantity.MilliValue does. Throws INVALID_ARGUMENT. */
export function milli(text: string): number {
  const { numerator, denominator } = parse(text);
  return Number(roundUp(numerator * 1000n, denominator));
}

/** The value in whole base units, rounded up as Quantity.Value does. Throws INVALID_ARGUMENT. */
export function wholeUnits(text: string): number {
  const { numerator, denominator } = parse(text);
  return Number(roundUp(numerator, denominator));
}

/** True for what `parseQuantity` takes. */
export function isQuantity(text: string): boolean {
  return read(text) !== undefined;
}

/** Bytes in the canonical binary form: the largest unit that needs no fraction (`1Gi`, `24684084Ki`, `1000`). */
export function formatBytes(bytes: number): string {
  if (!Number.isSafeInteger(bytes)) {
    throw new KeelsonError('INVALID_ARGUMENT', `${bytes} is not a whole number of bytes`);
  }
  if (bytes === 0) return '0';
  let value = bytes;
  let unit = '';
  for (const next of ['Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei']) {
    if (value % 1024 !== 0) break;
    value /= 1024;
    unit = next;
  }
  return `${value}${unit}`;
}

/** Thousandths in the canonical decimal form: `2`, `1930m`. */
export function formatMilli(thousandths: number): string {
  if (!Number.isSafeInteger(thousandths)) {
    throw new KeelsonError('INVALID_ARGUMENT', `${thousandths} is not a whole number of thousandths`);
  }
  return thousandths % 1000 === 0 ? String(thousandths / 1000) : `${thousandths}m`;
}

function parse(text: string): Fraction {
  const fraction = read(text);
  if (fraction !== undefined) return fraction;
  throw new KeelsonError(
    'INVALID_ARGUMENT',
    `${JSON.stringify(String(text).slice(0, 80))} is not a quantity`,
    {
      hint: 'quantities look like 500m, 2, 1.5Gi or 100M',
    },
  );
}

function read(text: string): Fraction | undefined {
  if (typeof text !== 'string' || text.length > longestText) return undefined;
  const match = form.exec(text);
  if (match === null) return undefined;
  const [, sign, whole = '', part = '', suffix = ''] = match;
  if (whole === '' && part === '') return undefined;
  const digits = BigInt(whole + part) * (sign === '-' ? -1n : 1n);
  const scale = 10n ** BigInt(part.length);
  const unit = binary[suffix];
  if (unit !== undefined) return { numerator: digits * unit, denominator: scale };
  const exponent = decimal[suffix] ?? Number(suffix.slice(1));
  if (Math.abs(exponent) > largestExponent) return undefined;
  return exponent >= 0
    ? { numerator: digits * 10n ** BigInt(exponent), denominator: scale }
    : { numerator: digits, denominator: scale * 10n ** BigInt(-exponent) };
}

/** Away from zero, as Go's Quantity rounds. */
function roundUp(numerator: bigint, denominator: bigint): bigint {
  const quotient = numerator / denominator;
  if (quotient * denominator === numerator) return quotient;
  return numerator < 0n ? quotient - 1n : quotient + 1n;
}
