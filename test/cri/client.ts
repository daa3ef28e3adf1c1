/** A client of the CRI for tests: grpc-js over the unix socket, with our messages. */
import { Client, credentials, type ServiceError } from '@grpc/grpc-js';
import { decode } from '../../runtime/cri/wire/decode.ts';
import { encode } from '../../runtime/cri/wire/encode.ts';
import { services } from '../../runtime/cri/wire/services.ts';
import type { MessageName, Wire, WireInput } from '../../runtime/cri/wire/types.ts';

type Services = typeof services;
type Methods = Services['RuntimeService'] & Services['ImageService'];
type MethodName = keyof Methods;
type Unary = {
  [Name in MethodName]: Methods[Name] extends readonly [MessageName, MessageName] ? Name : never;
}[MethodName];
type Streaming = Exclude<MethodName, Unary>;
type Request<Name extends MethodName> = WireInput<Methods[Name][0]>;
type Response<Name extends MethodName> = Wire<Methods[Name][1]>;

export interface CriClient {
  call<Name extends Unary>(
    name: Name,
    request: Request<Name>,
    options?: { readonly deadlineMs?: number; readonly signal?: AbortSignal },
  ): Promise<Response<Name>>;
  /** All messages until the end of the stream. */
  collect<Name extends Streaming>(name: Name, request: Request<Name>): Promise<Response<Name>[]>;
  /** Calls `heard` for each message until `stop`. `failed` resolves with the error that ends the stream. */
  listen<Name extends Streaming>(
    name: Name,
    request: Request<Name>,
    heard: (message: Response<Name>) => void,
  ): { stop(): void; readonly failed: Promise<ServiceError> };
  /** Bytes as they are instead of a request. */
  raw(name: MethodName, bytes: Buffer): Promise<Buffer>;
  close(): void;
}

export function criClient(socket: string): CriClient {
  const client = new Client(`unix:${socket}`, credentials.createInsecure(), {
    'grpc.max_receive_message_length': 16 * 2 ** 20,
    'grpc.max_send_message_length': -1,
  });
  const kindOf = (name: MethodName) =>
    (({ ...services.RuntimeService, ...services.ImageService }) as Methods)[name];
  const pathOf = (name: MethodName) =>
    `/runtime.v1.${name in services.ImageService ? 'ImageService' : 'RuntimeService'}/${name}`;
  const stream = (name: Streaming, request: unknown) =>
    client.makeServerStreamRequest(
      pathOf(name),
      (message: unknown) => encode(kindOf(name)[0], message as never),
      (bytes: Buffer) => decode(kindOf(name)[1], bytes),
      request,
    );
  return {
    call: (name, request, { deadlineMs, signal } = {}) =>
      new Promise((resolve, reject) => {
        const call = client.makeUnaryRequest(
          pathOf(name),
          (message: unknown) => encode(kindOf(name)[0], message as never),
          (bytes: Buffer) => decode(kindOf(name)[1], bytes),
          request,
          deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs },
          (error, response) => (error === null ? resolve(response as never) : reject(error)),
        );
        signal?.addEventListener('abort', () => call.cancel(), { once: true });
      }),
    collect: (name, request) =>
      new Promise((resolve, reject) => {
        const messages: unknown[] = [];
        const call = stream(name, request);
        call.on('data', (message) => messages.push(message));
        call.on('error', reject);
        call.on('end', () => resolve(messages as never));
      }),
    listen(name, request, heard) {
      const call = stream(name, request);
      call.on('data', heard as (message: unknown) => void);
      const failed = new Promise<ServiceError>((resolve) => call.on('error', resolve));
      return { stop: () => call.cancel(), failed };
    },
    raw: (name, bytes) =>
      new Promise((resolve, reject) => {
        const same = (buffer: Buffer) => buffer;
        client.makeUnaryRequest(pathOf(name), same, same, bytes, (error, response) =>
          error === null ? resolve(response!) : reject(error),
        );
      }),
    close: () => client.close(),
  };
}
