/** A method of runtime.v1 as grpc-js takes it, for servers and clients. */
import type { MethodDefinition } from '@grpc/grpc-js';
import { methodDefinition } from '../../host/protobuf/definition.ts';
import { type MessageName, schema } from './types.ts';

export function definitionOf(
  service: string,
  method: string,
  kinds: readonly [MessageName, MessageName, 'stream'?],
): MethodDefinition<unknown, unknown> {
  return methodDefinition(schema, `/runtime.v1.${service}/${method}`, kinds);
}
