/**
 * The error convention of the whole project, on one page.
 *
 * - Everything that fails on purpose throws a `KeelsonError` with a `code` from the catalogue below. Codes are
 *   stable: users, tests and log filters may rely on them. Add codes, do not rename them.
 * - The message says what failed, on what, and why; `hint` says what to do about it. `cause` keeps the error below.
 * - A code is mapped once to a gRPC status code (the CRI edge) and at most once to a pod reason (the `reason` that
 *   kubectl shows). Nobody else maps.
 * - Any other error that reaches an edge is a bug in keelson and is reported as INTERNAL.
 */

/** gRPC status codes (grpc/doc/statuscodes.md) that the catalogue uses. */
export const grpcStatus = {
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;

type GrpcName = keyof typeof grpcStatus;
interface Entry {
  readonly grpc: GrpcName;
  /** The reason that users of Kubernetes know for it, where there is one. */
  readonly reason?: string;
}

const catalogue = {
  // general
  ABORTED: { grpc: 'CANCELLED' },
  DEADLINE_EXCEEDED: { grpc: 'DEADLINE_EXCEEDED' },
  INTERNAL: { grpc: 'INTERNAL' },
  INVALID_ARGUMENT: { grpc: 'INVALID_ARGUMENT' },
  NOT_FOUND: { grpc: 'NOT_FOUND' },
  ALREADY_EXISTS: { grpc: 'ALREADY_EXISTS' },
  FAILED_PRECONDITION: { grpc: 'FAILED_PRECONDITION' },
  RESOURCE_EXHAUSTED: { grpc: 'RESOURCE_EXHAUSTED' },
  UNAVAILABLE: { grpc: 'UNAVAILABLE' },
  UNIMPLEMENTED: { grpc: 'UNIMPLEMENTED' },
  PERMISSION_DENIED: { grpc: 'PERMISSION_DENIED' },
  UNAUTHENTICATED: { grpc: 'UNAUTHENTICATED' },
  // the floor
  EXEC_FAILED: { grpc: 'INTERNAL' },
  EXEC_NOT_FOUND: { grpc: 'FAILED_PRECONDITION' },
  EXEC_OUTPUT_TOO_LARGE: { grpc: 'RESOURCE_EXHAUSTED' },
  SYSCALL_FAILED: { grpc: 'INTERNAL' },
  DATABASE_LOCKED: { grpc: 'FAILED_PRECONDITION' },
  DATABASE_CORRUPT: { grpc: 'DATA_LOSS' },
  // configuration of the node
  CONFIG_INVALID: { grpc: 'INVALID_ARGUMENT' },
  DEPENDENCY_MISSING: { grpc: 'FAILED_PRECONDITION' },
  // images
  IMAGE_NAME_INVALID: { grpc: 'INVALID_ARGUMENT', reason: 'InvalidImageName' },
  IMAGE_NOT_FOUND: { grpc: 'NOT_FOUND', reason: 'ErrImagePull' },
  IMAGE_NOT_PRESENT: { grpc: 'NOT_FOUND', reason: 'ErrImageNeverPull' },
  IMAGE_PULL_DENIED: { grpc: 'PERMISSION_DENIED', reason: 'ErrImagePull' },
  IMAGE_UNSUPPORTED: { grpc: 'FAILED_PRECONDITION', reason: 'ErrImagePull' },
  IMAGE_PLATFORM_MISSING: { grpc: 'NOT_FOUND', reason: 'ErrImagePull' },
  IMAGE_DIGEST_MISMATCH: { grpc: 'DATA_LOSS', reason: 'ErrImagePull' },
  IMAGE_INVALID: { grpc: 'DATA_LOSS', reason: 'ErrImagePull' },
  LAYER_DAMAGED: { grpc: 'DATA_LOSS', reason: 'ErrImagePull' },
  LAYER_UNSAFE: { grpc: 'INVALID_ARGUMENT', reason: 'ErrImagePull' },
  STORAGE_FULL: { grpc: 'RESOURCE_EXHAUSTED', reason: 'ErrImagePull' },
  REGISTRY_UNAVAILABLE: { grpc: 'UNAVAILABLE', reason: 'RegistryUnavailable' },
  // network
  CNI_NOT_CONFIGURED: { grpc: 'UNAVAILABLE', reason: 'NetworkNotReady' },
  CNI_CONFIG_INVALID: { grpc: 'FAILED_PRECONDITION', reason: 'FailedCreatePodSandBox' },
  CNI_PLUGIN_FAILED: { grpc: 'UNAVAILABLE', reason: 'FailedCreatePodSandBox' },
  CNI_PLUGIN_MISSING: { grpc: 'FAILED_PRECONDITION', reason: 'FailedCreatePodSandBox' },
  // sandboxes and containers
  /** Another runtime failed and did not say how. */
  RUNTIME_FAILED: { grpc: 'UNKNOWN' },
  SANDBOX_CREATE_FAILED: { grpc: 'INTERNAL', reason: 'FailedCreatePodSandBox' },
  CONTAINER_CONFIG_INVALID: { grpc: 'INVALID_ARGUMENT', reason: 'CreateContainerConfigError' },
  CONTAINER_CREATE_FAILED: { grpc: 'INTERNAL', reason: 'CreateContainerError' },
  CONTAINER_START_FAILED: { grpc: 'INTERNAL', reason: 'RunContainerError' },
  // pods
  POD_INVALID: { grpc: 'INVALID_ARGUMENT', reason: 'InvalidPod' },
  VOLUME_FAILED: { grpc: 'INTERNAL', reason: 'FailedMount' },
  // the apiserver
  API_UNREACHABLE: { grpc: 'UNAVAILABLE' },
  API_STATUS: { grpc: 'UNKNOWN' },
  API_GARBAGE: { grpc: 'DATA_LOSS' },
} as const satisfies Record<string, Entry>;

export type ErrorCode = keyof typeof catalogue;

export interface KeelsonErrorOptions {
  /** What the user can do about it, as a sentence. */
  readonly hint?: string;
  readonly cause?: unknown;
  /** Machine-readable facts, such as an HTTP status. Never a secret. */
  readonly details?: Readonly<Record<string, unknown>>;
}

/** The one error class. `code` is stable; `message` is for people; neither ever carries a secret. */
export class KeelsonError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: ErrorCode, message: string, options: KeelsonErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'KeelsonError';
    this.code = code;
    this.hint = options.hint;
    this.details = options.details ?? {};
  }
}

/** True when `error` is a KeelsonError, of one of `codes` where any are given. */
export function isError(error: unknown, ...codes: ErrorCode[]): error is KeelsonError {
  return error instanceof KeelsonError && (codes.length === 0 || codes.includes(error.code));
}

/** The gRPC status code for `error`; INTERNAL for what is not ours. */
export function grpcCodeOf(error: unknown): number {
  return grpcStatus[error instanceof KeelsonError ? catalogue[error.code].grpc : 'INTERNAL'];
}

/** The pod reason for `error`, or `fallback` where the catalogue has none for its code. */
export function reasonOf(error: unknown, fallback: string): string {
  const entry: Entry | undefined = error instanceof KeelsonError ? catalogue[error.code] : undefined;
  return entry?.reason ?? fallback;
}

/** One line for people: the message, then the causes that add something, then the hint. */
export function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  let text = error.message;
  for (
    let cause = error.cause, depth = 0;
    cause instanceof Error && depth < 5;
    cause = cause.cause, depth++
  ) {
    if (!text.includes(cause.message)) text += `: ${cause.message}`;
  }
  const hint = error instanceof KeelsonError ? error.hint : undefined;
  return hint === undefined || text.includes(hint) ? text : `${text} (${hint})`;
}

/** The error for an aborted signal: its own reason where that is one of ours, else ABORTED. */
export function abortError(signal: AbortSignal, what: string): KeelsonError {
  if (signal.reason instanceof KeelsonError) return signal.reason;
  const timedOut = signal.reason instanceof Error && signal.reason.name === 'TimeoutError';
  return new KeelsonError(
    timedOut ? 'DEADLINE_EXCEEDED' : 'ABORTED',
    `${what} was ${timedOut ? 'not done in time' : 'cancelled'}`,
    {
      cause: signal.reason,
    },
  );
}

/** `error.code` of a system error (`ENOENT`, …), or undefined. */
export function errnoOf(error: unknown): string | undefined {
  const code = error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
  return typeof code === 'string' && /^E[A-Z0-9]+$/.test(code) ? code : undefined;
}
