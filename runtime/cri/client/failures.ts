/** What a call to another runtime failed with, in words of ours. Pure. */
import { type ErrorCode, grpcStatus, KeelsonError } from '../../host/errors.ts';

export interface GrpcFailure {
  readonly code: number;
  /** What the server says. */
  readonly details: string;
}

const codes = new Map<number, ErrorCode>([
  // Not by us: then the signal tells. The runtime is going down.
  [grpcStatus.CANCELLED, 'UNAVAILABLE'],
  [grpcStatus.ABORTED, 'UNAVAILABLE'],
  [grpcStatus.INVALID_ARGUMENT, 'INVALID_ARGUMENT'],
  [grpcStatus.DEADLINE_EXCEEDED, 'DEADLINE_EXCEEDED'],
  [grpcStatus.NOT_FOUND, 'NOT_FOUND'],
  [grpcStatus.ALREADY_EXISTS, 'ALREADY_EXISTS'],
  [grpcStatus.PERMISSION_DENIED, 'PERMISSION_DENIED'],
  [grpcStatus.FAILED_PRECONDITION, 'FAILED_PRECONDITION'],
  [grpcStatus.UNIMPLEMENTED, 'UNIMPLEMENTED'],
  [grpcStatus.UNAVAILABLE, 'UNAVAILABLE'],
  [grpcStatus.UNAUTHENTICATED, 'UNAUTHENTICATED'],
]);

/** Of calls that fail for many reasons which no code of gRPC is for. */
const unspecific: Readonly<Record<string, ErrorCode>> = {
  RunPodSandbox: 'SANDBOX_CREATE_FAILED',
  CreateContainer: 'CONTAINER_CREATE_FAILED',
  StartContainer: 'CONTAINER_START_FAILED',
};

/** containerd says in words only that the registry wants somebody else. */
const denied = /insufficient_scope|authorization failed|\b40[13] (?:Unauthorized|Forbidden)|access denied/i;

export function failureOf(method: string, { code, details }: GrpcFailure): KeelsonError {
  const known = codes.get(code);
  // pullFailure of the agent reads how the message begins.
  if (method === 'PullImage') return new KeelsonError(pullCode(known, details), details);
  const message = `the container runtime failed at ${method}: ${details}`;
  if (known === 'UNAVAILABLE') {
    return new KeelsonError('UNAVAILABLE', message, {
      hint: 'is it running, and is containerRuntimeEndpoint its socket?',
    });
  }
  return new KeelsonError(known ?? unspecific[method] ?? 'RUNTIME_FAILED', message);
}

function pullCode(known: ErrorCode | undefined, details: string): ErrorCode {
  if (known === 'NOT_FOUND') return 'IMAGE_NOT_FOUND';
  if (known === 'PERMISSION_DENIED' || known === 'UNAUTHENTICATED') return 'IMAGE_PULL_DENIED';
  if (details.startsWith('RegistryUnavailable')) return 'REGISTRY_UNAVAILABLE';
  if (known === undefined && denied.test(details)) return 'IMAGE_PULL_DENIED';
  return known ?? 'RUNTIME_FAILED';
}
