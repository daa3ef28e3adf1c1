/** The messages of runtime.v1 as TypeScript sees them. */
import type { InputOf, WireOf } from '../../host/protobuf/schema.ts';
import { calls } from './calls.ts';
import { configs } from './configs.ts';
import { enums } from './enums.ts';
import { states } from './states.ts';

export const messages = { ...configs, ...calls, ...states };
export const schema = { name: 'runtime.v1', messages, enums } as const;

export type MessageName = keyof typeof messages;
/** A decoded message. */
export type Wire<Name extends MessageName> = WireOf<typeof schema, Name>;
/** A message to encode: what is absent has its default. */
export type WireInput<Name extends MessageName> = InputOf<typeof schema, Name>;
