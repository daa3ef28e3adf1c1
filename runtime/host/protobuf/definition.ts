/** A method of a gRPC service as grpc-js takes it, for servers and clients. */
import type { MethodDefinition } from '@grpc/grpc-js';
import { decode } from './decode.ts';
import { encode } from './encode.ts';
import type { NameIn, Schema } from './schema.ts';

/** `path`: `/package.Service/Method`. */
export function methodDefinition<S extends Schema>(
  schema: S,
  path: string,
  [request, response, stream]: readonly [NameIn<S>, NameIn<S>, 'stream'?],
): MethodDefinition<unknown, unknown> {
  return {
    path,
    requestStream: false,
    responseStream: stream !== undefined,
    requestDeserialize: (bytes) => decode(schema, request, bytes),
    requestSerialize: (message) => encode(schema, request, message as never),
    responseDeserialize: (bytes) => decode(schema, response, bytes),
    responseSerialize: (message) => encode(schema, response, message as never),
  };
}
