/** The query of a log request (core/v1 PodLogOptions as the apiserver passes it on). Pure. */
import { KeelsonError } from '../../runtime/host/errors.ts';

export interface LogOptions {
  readonly follow: boolean;
  readonly previous: boolean;
  readonly timestamps: boolean;
  /** Absent: all lines. */
  readonly tailLines?: number;
  /** Unix milliseconds; only lines from then on. */
  readonly since?: number;
  readonly limitBytes?: number;
  readonly stream: 'all' | 'stdout' | 'stderr';
}

const streams: ReadonlyMap<string, LogOptions['stream']> = new Map([
  ['All', 'all'],
  ['Stdout', 'stdout'],
  ['Stderr', 'stderr'],
]);

/**
 * Reads the options. Throws INVALID_ARGUMENT, with `details.status` 400 for what cannot be read and 422 for what is
 * out of range, as kubelet answers. What the node need not know (`container`, `pretty`…) is passed over.
 */
export function parseLogOptions(query: URLSearchParams, now: number): LogOptions {
  const refuse = (status: number, message: string) =>
    new KeelsonError('INVALID_ARGUMENT', message, { details: { status } });
  // apimachinery: everything but "0" and "false" is true.
  const flag = (name: string) => {
    const value = query.get(name);
    return value !== null && value !== '0' && value.toLowerCase() !== 'false';
  };
  const integer = (name: string): number | undefined => {
    const value = query.get(name);
    if (value === null) return undefined;
    if (!/^[+-]?\d{1,19}$/.test(value))
      throw refuse(400, `Unable to decode query: ${name} must be a whole number`);
    return Number(value);
  };
  const least = (name: string, value: number | undefined, minimum: number) => {
    if (value !== undefined && value < minimum)
      throw refuse(422, `Invalid request: ${name} must be at least ${minimum}`);
    return value;
  };
  // "tail" is the older name.
  const tail = query.get('tail') || null;
  const tailLines =
    tail === 'all' ? undefined : least('tailLines', integer(tail === null ? 'tailLines' : 'tail'), 0);
  const sinceSeconds = least('sinceSeconds', integer('sinceSeconds'), 1);
  const sinceText = query.get('sinceTime') || null;
  const sinceTime = sinceText === null || sinceText === 'null' ? undefined : parseTime(sinceText);
  if (Number.isNaN(sinceTime))
    throw refuse(400, 'Unable to decode query: sinceTime must be a time by RFC 3339');
  if (sinceSeconds !== undefined && sinceTime !== undefined) {
    throw refuse(422, 'Invalid request: at most one of sinceTime or sinceSeconds may be specified');
  }
  const wanted = query.get('stream') ?? 'All';
  const stream = streams.get(wanted);
  if (stream === undefined) throw refuse(422, 'Invalid request: stream must be All, Stdout or Stderr');
  if (stream !== 'all' && tailLines !== undefined) {
    throw refuse(422, 'Invalid request: tailLines and a specific stream are mutually exclusive');
  }
  return {
    follow: flag('follow'),
    previous: flag('previous'),
    timestamps: flag('timestamps'),
    tailLines,
    since: sinceSeconds === undefined ? sinceTime : now - sinceSeconds * 1000,
    limitBytes: least('limitBytes', integer('limitBytes'), 1),
    stream,
  };
}

/** Unix milliseconds of an RFC 3339 time; NaN for anything else. */
function parseTime(text: string): number {
  return /^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$/.test(text)
    ? Date.parse(text)
    : Number.NaN;
}
