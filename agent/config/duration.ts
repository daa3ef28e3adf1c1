/** Durations as Go writes them (time.ParseDuration): `10s`, `1m30s`, `0s`, `1.5h`. */

const unitMs: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3, // U+00B5
  μs: 1e-3, // U+03BC
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
};
/** Go keeps durations as int64 nanoseconds. */
const longestMs = 2 ** 63 / 1e6;

/** The duration in milliseconds (may have a fraction, may be negative), or undefined where `text` is not one. */
export function parseDuration(text: string): number | undefined {
  const match = /^([+-]?)(.+)$/s.exec(text);
  if (match === null) return undefined;
  const body = match[2]!;
  if (body === '0') return 0;
  const part = /(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)/y;
  let total = 0;
  while (part.lastIndex < body.length) {
    const found = part.exec(body);
    if (found === null) return undefined;
    total += Number(found[1]) * unitMs[found[2]!]!;
  }
  if (total > longestMs) return undefined;
  return match[1] === '-' ? -total : total;
}

/** Milliseconds (not negative) as Go prints a time.Duration: `1m30s`, `4h0m0s`, `100ms`, `0s`. */
export function printDuration(ms: number): string {
  if (ms === 0) return '0s';
  if (ms < 1) return ms < 1e-3 ? `${Math.round(ms * 1e6)}ns` : `${trim(ms * 1e3)}µs`;
  if (ms < 1000) return `${trim(ms)}ms`;
  const hours = Math.floor(ms / 3_600_000);
  const minutes = Math.floor((ms % 3_600_000) / 60_000);
  const seconds = trim((ms % 60_000) / 1000);
  if (hours > 0) return `${hours}h${minutes}m${seconds}s`;
  return minutes > 0 ? `${minutes}m${seconds}s` : `${seconds}s`;
}

function trim(value: number): string {
  return String(Number(value.toFixed(6)));
}
