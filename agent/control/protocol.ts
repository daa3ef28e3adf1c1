/**
 * What the command line and the agent say to each other over `<runDir>/control.sock`, and how it is written.
 *
 * HTTP/1.1 on a unix socket: `POST /v1/<verb>` with a JSON object as its body. The answer is a stream of JSON lines:
 * any number of `{"progress":…}`, then one `{"result":…}` or one `{"error":…}`. Closing the connection aborts the
 * operation. Why HTTP and not gRPC: the agent has node:http loaded for the node's API anyway, and does not load a gRPC
 * library while nobody speaks the CRI to it.
 */
import type { ArchiveFormat, AuthConfig, Image, LayerReport, PullProgress } from '../../runtime/api.ts';
import { describe, type ErrorCode, KeelsonError } from '../../runtime/host/errors.ts';

/** An image that a name, an id or the beginning of an id has led to. */
export interface RemovedImage {
  readonly id: string;
  /** The names that went with it. */
  readonly names: readonly string[];
}

/** Every verb: what it is asked with, what it tells on its way, and what it ends with. Paths are absolute. */
export interface Verbs {
  'images/list': { request: Record<string, never>; progress: never; result: readonly Image[] };
  'images/pull': {
    /** No `auths`: the node's own credentials for the image, where it has any. */
    request: { image: string; auths?: readonly AuthConfig[] };
    progress: PullProgress;
    result: Image;
  };
  'images/remove': { request: { image: string }; progress: never; result: RemovedImage };
  'images/import': {
    request: { path: string; pin?: boolean };
    progress: PullProgress;
    result: readonly Image[];
  };
  'images/export': {
    request: { images: readonly string[]; path: string; format: ArchiveFormat };
    progress: never;
    /** The images as they were found: ids where the beginning of one was given. */
    result: { images: readonly string[] };
  };
  'images/verify': {
    request: { repair?: boolean };
    progress: LayerReport;
    result: readonly LayerReport[];
  };
}

export type Verb = keyof Verbs;

export interface CallOptions<V extends Verb> {
  readonly signal: AbortSignal;
  readonly onProgress?: (progress: Verbs[V]['progress']) => void;
}

/** Whoever does the verbs: the running agent, over its socket, or this process itself. All errors are KeelsonErrors. */
export interface Control {
  call<V extends Verb>(
    verb: V,
    request: Verbs[V]['request'],
    options: CallOptions<V>,
  ): Promise<Verbs[V]['result']>;
}

/** The file name of the socket, in the run folder. */
export const socketName = 'control.sock';

/** Bytes that a request may have. */
export const maxRequestBytes = 1 << 20;

/** An error on its way through the socket. */
export interface WireError {
  readonly code: string;
  readonly message: string;
  readonly hint?: string;
  readonly details?: Readonly<Record<string, unknown>>;
  /** Messages of the errors below, the nearest first. */
  readonly causes?: readonly string[];
}

/** What is not a KeelsonError is a bug, and goes as INTERNAL. */
export function encodeError(error: unknown): WireError {
  if (!(error instanceof KeelsonError)) return { code: 'INTERNAL', message: describe(error) };
  const causes: string[] = [];
  for (let cause = error.cause; cause instanceof Error && causes.length < 5; cause = cause.cause) {
    causes.push(cause.message);
  }
  return {
    code: error.code,
    message: error.message,
    hint: error.hint,
    ...(Object.keys(error.details).length === 0 ? {} : { details: error.details }),
    ...(causes.length === 0 ? {} : { causes }),
  };
}

/** The same error again. A code that only a newer agent knows is kept as it is. */
export function decodeError(wire: unknown): KeelsonError {
  const { code, message, hint, details, causes } = (wire ?? {}) as Record<string, unknown>;
  const below = (Array.isArray(causes) ? causes : []).reduceRight<Error | undefined>(
    (cause, text) => new Error(String(text), cause === undefined ? undefined : { cause }),
    undefined,
  );
  return new KeelsonError(
    (typeof code === 'string' ? code : 'INTERNAL') as ErrorCode,
    typeof message === 'string' ? message : 'the agent failed and did not say why',
    {
      ...(typeof hint === 'string' ? { hint } : {}),
      ...(typeof details === 'object' && details !== null
        ? { details: details as Record<string, unknown> }
        : {}),
      ...(below === undefined ? {} : { cause: below }),
    },
  );
}
