/** What is asked over the socket may be anything: its fields are read with these. Pure. */
import { KeelsonError } from '../../runtime/host/errors.ts';

export type Request = Readonly<Record<string, unknown>>;

export function textOf(request: Request, name: string): string {
  const value = request[name];
  if (typeof value === 'string' && value !== '') return value;
  throw new KeelsonError('INVALID_ARGUMENT', `${name}: a text is expected`);
}

export function flagOf(request: Request, name: string): boolean {
  const value = request[name] ?? false;
  if (typeof value === 'boolean') return value;
  throw new KeelsonError('INVALID_ARGUMENT', `${name}: true or false is expected`);
}

/** A number that is not negative; undefined where there is none. */
export function amountOf(request: Request, name: string): number | undefined {
  const value = request[name] ?? undefined;
  if (value === undefined || (typeof value === 'number' && value >= 0)) return value;
  throw new KeelsonError('INVALID_ARGUMENT', `${name}: a number is expected`);
}

export function textsOf(request: Request, name: string): readonly string[] {
  const value = request[name];
  if (Array.isArray(value) && value.every((entry) => typeof entry === 'string')) return value;
  throw new KeelsonError('INVALID_ARGUMENT', `${name}: a list of texts is expected`);
}
