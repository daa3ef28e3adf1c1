/**
 * Calls of a plugin's gRPC service over its unix socket. Loads the gRPC library: import it only when a plugin is there.
 */
import { Client, type ServiceError } from '@grpc/grpc-js';
import { abortError, type ErrorCode, grpcStatus, KeelsonError } from '../../runtime/host/errors.ts';
import { methodDefinition } from '../../runtime/host/protobuf/definition.ts';
import type { InputOf, NameIn, Schema, WireOf } from '../../runtime/host/protobuf/schema.ts';
import { patientCredentials } from './pending.ts';

/** A service: its methods as [request, response]. */
export interface Service<S extends Schema> {
  readonly schema: S;
  /** `package.Service`. */
  readonly name: string;
  readonly methods: Readonly<Record<string, readonly [NameIn<S>, NameIn<S>]>>;
}

export interface CallLimits {
  /** Milliseconds. */
  readonly deadlineMs: number;
  readonly signal?: AbortSignal | undefined;
}

type Methods<Of> = Of extends { readonly methods: infer M } ? M : never;
type SchemaOf<Of> = Of extends { readonly schema: infer S extends Schema } ? S : never;
type Part<Of, Name extends keyof Methods<Of>, Index extends 0 | 1> = Methods<Of>[Name] extends readonly [
  infer Request,
  infer Response,
]
  ? Index extends 0
    ? Request
    : Response
  : never;
export type Request<Of, Name extends keyof Methods<Of>> = InputOf<
  SchemaOf<Of>,
  Part<Of, Name, 0> & NameIn<SchemaOf<Of>>
>;
export type Answer<Of, Name extends keyof Methods<Of>> = WireOf<
  SchemaOf<Of>,
  Part<Of, Name, 1> & NameIn<SchemaOf<Of>>
>;

export interface Channel<Of> {
  /**
   * Throws with the words that Go's gRPC has for a status, `details.grpc` its number, and a code of the same name;
   * the signal's reason where that has ended the call.
   */
  call<Name extends keyof Methods<Of> & string>(
    method: Name,
    request: Request<Of, Name>,
    limits: CallLimits,
  ): Promise<Answer<Of, Name>>;
  close(): void;
}

/** Plugins answer little: what is longer is no answer. */
const maxAnswerBytes = 4 * 2 ** 20;

/** `socket`: an absolute path. Connects with the first call. */
export function openChannel<S extends Schema, const Of extends Service<S>>(
  socket: string,
  service: Of & { readonly schema: S },
): Channel<Of> {
  const client = new Client(`unix:${socket}`, patientCredentials(), {
    'grpc.max_receive_message_length': maxAnswerBytes,
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1000,
    // A plugin that was put in another's place has the same path: their connections must not be shared.
    'grpc.use_local_subchannel_pool': 1,
  });
  return {
    call: (method, request, { deadlineMs, signal }) =>
      new Promise((resolve, reject) => {
        if (signal?.aborted) return reject(abortError(signal, method));
        const { path, requestSerialize, responseDeserialize } = methodDefinition(
          service.schema,
          `/${service.name}/${method}`,
          service.methods[method]!,
        );
        const options = { deadline: Date.now() + deadlineMs };
        const done = (error: ServiceError | null, answer: unknown) => {
          signal?.removeEventListener('abort', cancel);
          if (error === null) resolve(answer as never);
          else reject(signal?.aborted ? abortError(signal, method) : failureOf(error));
        };
        const call = client.makeUnaryRequest(
          path,
          requestSerialize,
          responseDeserialize,
          request,
          options,
          done,
        );
        const cancel = () => call.cancel();
        signal?.addEventListener('abort', cancel, { once: true });
      }),
    close: () => client.close(),
  };
}

/** The names of the statuses in Go's words, by number. */
const goNames = [
  'OK',
  'Canceled',
  'Unknown',
  'InvalidArgument',
  'DeadlineExceeded',
  'NotFound',
  'AlreadyExists',
  'PermissionDenied',
  'ResourceExhausted',
  'FailedPrecondition',
  'Aborted',
  'OutOfRange',
  'Unimplemented',
  'Internal',
  'Unavailable',
  'DataLoss',
  'Unauthenticated',
];
const codes = new Map<number, ErrorCode>([
  [grpcStatus.CANCELLED, 'UNAVAILABLE'],
  [grpcStatus.INVALID_ARGUMENT, 'INVALID_ARGUMENT'],
  [grpcStatus.DEADLINE_EXCEEDED, 'DEADLINE_EXCEEDED'],
  [grpcStatus.NOT_FOUND, 'NOT_FOUND'],
  [grpcStatus.ALREADY_EXISTS, 'ALREADY_EXISTS'],
  [grpcStatus.PERMISSION_DENIED, 'PERMISSION_DENIED'],
  [grpcStatus.RESOURCE_EXHAUSTED, 'RESOURCE_EXHAUSTED'],
  [grpcStatus.FAILED_PRECONDITION, 'FAILED_PRECONDITION'],
  [grpcStatus.UNIMPLEMENTED, 'UNIMPLEMENTED'],
  [grpcStatus.UNAVAILABLE, 'UNAVAILABLE'],
  [grpcStatus.UNAUTHENTICATED, 'UNAUTHENTICATED'],
]);

/** What a call failed with. Pure. */
export function failureOf({ code, details }: { code: number; details: string }): KeelsonError {
  return new KeelsonError(
    codes.get(code) ?? 'INTERNAL',
    `rpc error: code = ${goNames[code] ?? `Code(${code})`} desc = ${details}`,
    { details: { grpc: code } },
  );
}
