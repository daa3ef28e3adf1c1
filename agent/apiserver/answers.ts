/** What an apiserver's answers mean: metav1.Status, Retry-After, garbage. Pure. */
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { KubeList, KubeObject, WatchEvent } from './types.ts';

/** metav1.Status, as far as it is read. */
interface Status {
  readonly message?: unknown;
  readonly reason?: unknown;
  readonly code?: unknown;
  readonly details?: { readonly retryAfterSeconds?: unknown; readonly causes?: unknown } | null;
}

/** The HTTP status of an API_STATUS error, else undefined. */
export function apiStatus(error: unknown): number | undefined {
  if (!(error instanceof KeelsonError) || error.code !== 'API_STATUS') return undefined;
  const status = error.details['status'];
  return typeof status === 'number' ? status : undefined;
}

/** The wait that the server asked for with an API_STATUS error, else undefined. */
export function retryAfterMs(error: unknown): number | undefined {
  const wait = error instanceof KeelsonError ? error.details['retryAfterMs'] : undefined;
  return typeof wait === 'number' ? wait : undefined;
}

/** Milliseconds of a Retry-After header (seconds or a date), or undefined. */
export function retryAfter(
  headers: Readonly<Record<string, string | string[] | undefined>>,
  nowMs: number,
): number | undefined {
  const value = headers['retry-after'];
  if (typeof value !== 'string') return undefined;
  if (/^\d{1,9}$/.test(value)) return Number(value) * 1000;
  const at = Date.parse(value);
  return Number.isNaN(at) ? undefined : Math.max(0, at - nowMs);
}

/** The error for an answer that is not a success. `body` may be anything: proxies answer with HTML. */
export function statusError(
  what: string,
  httpStatus: number,
  body: Buffer,
  retryAfterHeaderMs?: number,
): KeelsonError {
  let status: Status = {};
  try {
    const parsed: unknown = JSON.parse(body.toString('utf8'));
    if (typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed)) status = parsed;
  } catch {
    // Not from the apiserver itself; the HTTP status says enough.
  }
  return errorOf(what, httpStatus, status, retryAfterHeaderMs);
}

/** The error that the object of a watch's ERROR event stands for. */
export function watchError(what: string, object: unknown): KeelsonError {
  const status: Status = typeof object === 'object' && object !== null ? object : {};
  const code = typeof status.code === 'number' ? status.code : status.reason === 'Expired' ? 410 : 500;
  return errorOf(what, code, status);
}

function errorOf(what: string, httpStatus: number, status: Status, headerMs?: number): KeelsonError {
  const reason = typeof status.reason === 'string' ? status.reason.slice(0, 100) : '';
  const said = typeof status.message === 'string' ? status.message.slice(0, 2000) : '';
  const seconds = status.details?.retryAfterSeconds;
  const hint =
    httpStatus === 401
      ? 'the credentials of the kubeconfig were refused: look for an expired certificate or token'
      : undefined;
  const numbers = reason === '' ? `${httpStatus}` : `${httpStatus} ${reason}`;
  return new KeelsonError('API_STATUS', `${what}: ${said === '' ? 'answered' : said} (${numbers})`, {
    hint,
    details: {
      status: httpStatus,
      reason,
      retryAfterMs: headerMs ?? (typeof seconds === 'number' && seconds > 0 ? seconds * 1000 : undefined),
    },
  });
}

/** A JSON object. Throws API_GARBAGE, without the text: it may hold secrets. */
export function parseObject(text: Buffer, what: string): object {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text.toString('utf8'));
  } catch {
    throw new KeelsonError('API_GARBAGE', `${what}: the answer is not JSON`);
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw new KeelsonError('API_GARBAGE', `${what}: the answer is not a JSON object`);
  }
  return parsed;
}

/** Items of a list carry no kind of their own (Kubernetes API Concepts, "Collections"): they get it here. */
export function completeList<T>(list: KubeList<T> & KubeObject, path: string): KubeList<T> {
  const items: unknown = list.items ?? [];
  if (!Array.isArray(items) || typeof list.metadata !== 'object' || list.metadata === null) {
    throw new KeelsonError('API_GARBAGE', `GET ${path}: the answer is no list`);
  }
  const { kind, apiVersion } = list;
  for (const item of items) {
    if (typeof item !== 'object' || item === null) {
      throw new KeelsonError('API_GARBAGE', `GET ${path}: an item of the list is no object`);
    }
    if (kind?.endsWith('List')) {
      item.kind ??= kind.slice(0, -'List'.length);
      item.apiVersion ??= apiVersion;
    }
  }
  return { metadata: list.metadata, items: items as T[] };
}

/** One line of a watch. Throws API_GARBAGE. */
export function eventOf<T>(line: Buffer, what: string): WatchEvent<T> {
  const event = parseObject(line, what);
  const { type, object } = event as { type?: unknown; object?: unknown };
  const known = ['ADDED', 'MODIFIED', 'DELETED', 'BOOKMARK', 'ERROR'];
  if (typeof type !== 'string' || !known.includes(type) || typeof object !== 'object' || object === null) {
    throw new KeelsonError('API_GARBAGE', `${what}: a line is no watch event`);
  }
  return event as unknown as WatchEvent<T>;
}
