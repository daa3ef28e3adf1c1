/** A method of runtime.v1 as grpc-js takes it, for servers and clients. */
import type { MethodDefinition } from '@grpc/grpc-js';
import { decode } from './decode.ts';
import { encode } from './encode.ts';
import type { MessageName } from './types.ts';

export function definitionOf(
  service: string,
  method: string,
  [request, response, stream]: readonly [MessageName, MessageName, 'stream'?],
): MethodDefinition<unknown, unknown> {
  return {
    path: `/runtime.v1.${service}/${method}`,
    requestStream: false,
    responseStream: stream !== undefined,
    requestDeserialize: (bytes) => decode(request, bytes),
    requestSerialize: (message) => encode(request, message as never),
    responseDeserialize: (bytes) => decode(response, bytes),
    responseSerialize: (message) => encode(response, message as never),
  };
}
