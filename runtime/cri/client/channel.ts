/** Calls of runtime.v1 to a unix socket. The connection is made with the first call, and again when it has broken. */
import { Client, credentials, type ServiceError } from '@grpc/grpc-js';
import { abortError } from '../../host/errors.ts';
import { definitionOf } from '../wire/definition.ts';
import { services } from '../wire/services.ts';
import type { MessageName, Wire, WireInput } from '../wire/types.ts';
import { failureOf } from './failures.ts';

type Services = typeof services;
type Methods = Services['RuntimeService'] & Services['ImageService'];
type MethodName = keyof Methods;
export type UnaryName = {
  [Name in MethodName]: Methods[Name] extends readonly [MessageName, MessageName] ? Name : never;
}[MethodName];
export type StreamName = Exclude<MethodName, UnaryName>;
type Request<Name extends MethodName> = WireInput<Methods[Name][0]>;
export type Answer<Name extends MethodName> = Wire<Methods[Name][1]>;

export interface CallLimits {
  /** Milliseconds; absent: the call may take as long as it takes. */
  readonly deadlineMs?: number;
  readonly signal?: AbortSignal;
}

export interface Channel {
  /** Throws the errors of failures.ts, and the signal's reason where that has ended it. UNAVAILABLE while nobody listens. */
  call<Name extends UnaryName>(name: Name, request: Request<Name>, limits: CallLimits): Promise<Answer<Name>>;
  /** Calls `heard` for each message; resolves when the other side ends the stream. Throws as `call`. */
  stream<Name extends StreamName>(
    name: Name,
    request: Request<Name>,
    heard: (message: Answer<Name>) => void,
    signal: AbortSignal,
  ): Promise<void>;
  close(): void;
}

/** Lists of a node with many containers come in one message; other clients of the CRI take 16 MiB. */
const maxAnswerBytes = 64 * 2 ** 20;

/** `socket`: an absolute path. */
export function openChannel(socket: string): Channel {
  const client = new Client(`unix:${socket}`, credentials.createInsecure(), {
    'grpc.max_receive_message_length': maxAnswerBytes,
    'grpc.max_send_message_length': -1,
    // A runtime that is started again is found soon; a refused connection to a socket costs nothing.
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1000,
  });
  const definition = (name: MethodName) => {
    const service = name in services.ImageService ? 'ImageService' : 'RuntimeService';
    const kind = { ...services.RuntimeService, ...services.ImageService }[name] as Parameters<
      typeof definitionOf
    >[2];
    return definitionOf(service, name, kind);
  };
  const errorOf = (name: MethodName, error: ServiceError, signal: AbortSignal | undefined) =>
    signal?.aborted ? abortError(signal, `${name} of the container runtime`) : failureOf(name, error);
  /** Cancels `call` with `signal`; returns what ends that. */
  const bind = (call: { cancel(): void }, signal: AbortSignal | undefined) => {
    const cancel = () => call.cancel();
    if (signal?.aborted) cancel();
    signal?.addEventListener('abort', cancel, { once: true });
    return () => signal?.removeEventListener('abort', cancel);
  };
  return {
    call: (name, request, { deadlineMs, signal }) =>
      new Promise((resolve, reject) => {
        const { path, requestSerialize, responseDeserialize } = definition(name);
        const options = deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs };
        const call = client.makeUnaryRequest(
          path,
          requestSerialize,
          responseDeserialize,
          request,
          options,
          (error, answer) => {
            unbind();
            if (error === null) resolve(answer as never);
            else reject(errorOf(name, error, signal));
          },
        );
        const unbind = bind(call, signal);
      }),
    stream: (name, request, heard, signal) =>
      new Promise((resolve, reject) => {
        const { path, requestSerialize, responseDeserialize } = definition(name);
        const call = client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, request);
        const unbind = bind(call, signal);
        call.on('data', heard as (message: unknown) => void);
        call.on('error', (error: ServiceError) => {
          unbind();
          reject(errorOf(name, error, signal));
        });
        call.on('end', () => {
          unbind();
          resolve();
        });
      }),
    close: () => client.close(),
  };
}
