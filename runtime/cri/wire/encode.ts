/** Objects into the binary form of the messages of runtime.v1. */
import { encode as encodeMessage } from '../../host/protobuf/encode.ts';
import { type MessageName, schema, type WireInput } from './types.ts';

/** What has its default is left out. Throws a TypeError for the name of an enum that there is not. */
export function encode<Name extends MessageName>(name: Name, message: WireInput<Name>): Buffer {
  return encodeMessage(schema, name, message);
}
