/**
 * gRPC around the handlers of runtime_service.ts and image_service.ts.
 *
 * A deadline or a cancellation of the caller aborts the signal of the call; errors become the gRPC code of their place in
 * the catalogue and their description as message. The module is loaded with the first
 * connection: it needs several MiB, and most nodes have no other kubelet.
 */
import type { Socket } from 'node:net';
import {
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import { describe, grpcCodeOf, isError, KeelsonError } from '../host/errors.ts';
import type { Logger } from '../host/log.ts';
import type { CallContext, Handlers } from './handlers.ts';
import { definitionOf } from './wire/definition.ts';
import { services } from './wire/services.ts';

/** The kubelet's own limit is 16 MiB: what it may send must fit, with what surrounds it. */
const maxRequestBytes = 17 * 2 ** 20;

export interface GrpcEdge {
  /** Serves the CRI on an accepted connection. */
  serve(connection: Socket): void;
  /** Breaks off what is under way. */
  close(): void;
}

export function makeGrpcEdge(handlers: Handlers, log: Logger): GrpcEdge {
  const server = new Server({
    'grpc.max_receive_message_length': maxRequestBytes,
    'grpc.max_send_message_length': -1,
  });
  for (const [name, methods] of Object.entries(services)) {
    const entries = Object.entries(methods);
    server.addService(
      Object.fromEntries(entries.map(([method, kind]) => [method, definitionOf(name, method, kind)])),
      Object.fromEntries(
        entries.map(([method, [, , stream]]) => [
          method,
          stream === undefined ? unary(method, handlers, log) : streaming(method, handlers, log),
        ]),
      ) as UntypedServiceImplementation,
    );
  }
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  return {
    serve: (connection) => injector.injectConnection(connection),
    close() {
      injector.destroy();
      server.forceShutdown();
    },
  };
}

type AnyHandler = (request: unknown, call: CallContext) => Promise<unknown>;
type AnyCall = Pick<ServerUnaryCall<unknown, unknown>, 'getDeadline'> & {
  on(event: 'cancelled', listener: () => void): unknown;
};

/** Aborts when the caller gives up or his deadline passes. */
function signalOf(call: AnyCall): AbortSignal {
  const controller = new AbortController();
  call.on('cancelled', () => {
    const deadline = Number(call.getDeadline());
    const late = Number.isFinite(deadline) && Date.now() >= deadline;
    controller.abort(
      late
        ? new KeelsonError('DEADLINE_EXCEEDED', 'not done within the deadline of the call')
        : new KeelsonError('ABORTED', 'the caller cancelled'),
    );
  });
  return controller.signal;
}

function statusOf(error: unknown, method: string, log: Logger): { code: number; details: string } {
  // What is not ours is a bug.
  if (!isError(error)) log.error({ err: error, method }, 'a call failed in a way that nobody foresaw');
  // Headers of HTTP/2 carry it.
  return { code: grpcCodeOf(error), details: describe(error).slice(0, 4096).toWellFormed() };
}

function unary(method: string, handlers: Handlers, log: Logger) {
  const handler = handlers[method as keyof Handlers] as AnyHandler;
  return (
    call: ServerUnaryCall<unknown, unknown>,
    answer: (error: object | null, value?: unknown) => void,
  ) => {
    const signal = signalOf(call);
    handler(call.request, { signal, send: () => Promise.resolve() }).then(
      (value) => answer(null, value),
      (error: unknown) => {
        log.debug({ err: error, method }, 'call failed');
        answer(statusOf(error, method, log));
      },
    );
  };
}

function streaming(method: string, handlers: Handlers, log: Logger) {
  const handler = handlers[method as keyof Handlers] as AnyHandler;
  return (call: ServerWritableStream<unknown, unknown>) => {
    const signal = signalOf(call);
    call.on('error', () => {}); // The caller has gone; the signal says so.
    const send = (message: unknown) =>
      new Promise<void>((resolve, reject) => {
        if (signal.aborted) return reject(signal.reason);
        const end = () => {
          call.off('drain', taken);
          signal.removeEventListener('abort', gone);
        };
        const taken = () => {
          end();
          resolve();
        };
        const gone = () => {
          end();
          reject(signal.reason);
        };
        if (call.write(message)) return resolve();
        call.once('drain', taken);
        signal.addEventListener('abort', gone, { once: true });
      });
    handler(call.request, { signal, send }).then(
      () => call.end(),
      (error: unknown) => {
        if (signal.aborted) return;
        log.debug({ err: error, method }, 'call failed');
        call.emit('error', statusOf(error, method, log));
      },
    );
  };
}
