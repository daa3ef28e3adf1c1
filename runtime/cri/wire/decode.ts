/** The binary form of the messages of runtime.v1 into objects. */
import { decode as decodeMessage } from '../../host/protobuf/decode.ts';
import { type MessageName, schema, type Wire } from './types.ts';

/** Throws INVALID_ARGUMENT for bytes that are no such message. */
export function decode<Name extends MessageName>(name: Name, bytes: Buffer): Wire<Name> {
  return decodeMessage(schema, name, bytes);
}
