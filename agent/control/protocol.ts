/**
 * What the command line and the agent say to each other over `<runDir>/control.sock`, and how it is written.
 *
 * HTTP/1.1 on a unix socket: `POST /v1/<verb>` with a JSON object as its body. The answer is a stream of JSON lines:
 * any number of `{"progress":…}`, then one `{"result":…}` or one `{"error":…}`. Closing the connection aborts the
 * operation. Why HTTP and not gRPC: the agent has node:http loaded for the node's API anyway, and does not load a gRPC
 * library while nobody speaks the CRI to it.
 */
import type {
  ArchiveFormat,
  AuthConfig,
  Container,
  ContainerEvent,
  ContainerStats,
  ContainerStatus,
  Image,
  LayerReport,
  PodSandboxMetadata,
  PodSandboxStats,
  PodSandboxStatus,
  PullProgress,
} from '../../runtime/api.ts';
import { describe, type ErrorCode, KeelsonError } from '../../runtime/host/errors.ts';

/** An image that a name, an id or the beginning of an id has led to. */
export interface RemovedImage {
  readonly id: string;
  /** The names that went with it. */
  readonly names: readonly string[];
}

/** A container with the pod that it is in. */
export interface ListedContainer extends Container {
  readonly pod: PodSandboxMetadata;
}
export interface ListedPod extends PodSandboxStatus {
  /** How many containers it has, and how many of them run. */
  readonly containers: { readonly running: number; readonly all: number };
}

/** Whether a name is one of a container or of a pod. See find.ts for what is a name. */
export type Kind = 'container' | 'pod';
export type Named = { readonly kind: Kind; readonly name: string };
/** What a name has led to; `name` is `NAMESPACE/POD` or `NAMESPACE/POD/CONTAINER`. */
export interface Found {
  readonly id: string;
  readonly name: string;
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

  'runtime/containers': {
    /** Of all pods and in all states, where nothing else is said. */
    request: { pod?: string };
    progress: never;
    result: readonly ListedContainer[];
  };
  'runtime/pods': { request: Record<string, never>; progress: never; result: readonly ListedPod[] };
  'runtime/inspect': {
    request: Named;
    progress: never;
    result: {
      readonly status: ContainerStatus | PodSandboxStatus;
      readonly info: Readonly<Record<string, unknown>>;
    };
  };
  /** Of running containers; all of them where no names are given. */
  'runtime/container-stats': {
    request: { names: readonly string[] };
    progress: never;
    result: readonly (ContainerStats & { readonly pod: PodSandboxMetadata })[];
  };
  'runtime/pod-stats': {
    request: { names: readonly string[] };
    progress: never;
    result: readonly PodSandboxStats[];
  };
  /** Goes on until the caller leaves. The first message has no event: from then on none is missed. */
  'runtime/events': {
    request: Record<string, never>;
    progress: { readonly event?: ContainerEvent };
    result: never;
  };
  /** For a container: the stop signal, and KILL after `timeoutMs`. A pod's containers are killed at once. */
  'runtime/stop': { request: Named & { timeoutMs: number }; progress: never; result: Found };
  /** What runs is removed with `force` only: FAILED_PRECONDITION. */
  'runtime/remove': { request: Named & { force: boolean }; progress: never; result: Found };
  /** Where a container's log is; `previous`: that of the one that it took the place of. */
  'runtime/log': {
    request: { container: string; previous: boolean };
    progress: never;
    result: Found & { readonly logPath: string; readonly running: boolean };
  };
  /** Answers when the container does not run any more. */
  'runtime/wait': { request: { id: string }; progress: never; result: { readonly exitCode: number } };
  /** URLs of the streaming server, with a token in them that is good once, for a minute. */
  'runtime/exec': {
    request: { container: string; command: readonly string[]; stdin: boolean; tty: boolean };
    progress: never;
    result: { readonly url: string };
  };
  'runtime/attach': {
    request: { container: string; stdin: boolean };
    progress: never;
    /** What the container was made with. */
    result: { readonly url: string; readonly tty: boolean; readonly stdin: boolean };
  };
  'runtime/port-forward': {
    request: { pod: string };
    progress: never;
    result: Found & { readonly url: string };
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
