/** What a handler of a CRI method is: from a decoded request to the message that answers it. */
import type { services } from './wire/services.ts';
import type { MessageName, Wire, WireInput } from './wire/types.ts';

export interface CallContext<Message = unknown> {
  /** Aborted when the caller cancels or his deadline passes; its reason is a KeelsonError. */
  readonly signal: AbortSignal;
  /** Of streams: resolves when more may be sent; rejects with the signal's reason when the caller has gone. */
  send(message: Message): Promise<void>;
}

type Handler<Kind> = Kind extends readonly [
  infer Request extends MessageName,
  infer Response extends MessageName,
]
  ? (request: Wire<Request>, call: CallContext) => Promise<WireInput<Response>>
  : Kind extends readonly [infer Request extends MessageName, infer Response extends MessageName, 'stream']
    ? (request: Wire<Request>, call: CallContext<WireInput<Response>>) => Promise<void>
    : never;

type HandlersOf<Methods> = { readonly [Method in keyof Methods]: Handler<Methods[Method]> };

export type RuntimeHandlers = HandlersOf<(typeof services)['RuntimeService']>;
export type ImageHandlers = HandlersOf<(typeof services)['ImageService']>;
export type Handlers = RuntimeHandlers & ImageHandlers;
