/** A plugin's gRPC services on a unix socket, in this process; what they answer is the test's. */
import { rm } from 'node:fs/promises';
import { Server, ServerCredentials, type ServiceDefinition, status } from '@grpc/grpc-js';
import type { Service } from '../../agent/plugins/channel.ts';
import { registration } from '../../agent/plugins/registration.ts';
import { methodDefinition } from '../../runtime/host/protobuf/definition.ts';
import type { Schema } from '../../runtime/host/protobuf/schema.ts';

/** Answers a request, or throws an error with a gRPC `code`. */
export type Methods = Readonly<Record<string, (request: never) => unknown>>;

export interface Served {
  /** Ends it, calls under way too; the socket is removed. */
  close(): Promise<void>;
}

export function grpcError(code: keyof typeof status, message: string): Error {
  return Object.assign(new Error(message), { code: status[code], details: message });
}

/** A promise that never settles: for methods that hang. */
export const never = new Promise<never>(() => {});

export async function serve(
  socket: string,
  services: readonly { readonly service: Service<Schema>; readonly methods: Methods }[],
): Promise<Served> {
  const server = new Server();
  for (const { service, methods } of services) {
    const definition: Record<string, unknown> = {};
    const handlers: Record<string, unknown> = {};
    for (const [method, kinds] of Object.entries(service.methods)) {
      definition[method] = methodDefinition(service.schema, `/${service.name}/${method}`, kinds);
      handlers[method] = (
        call: { request: never },
        answer: (error: unknown, value?: unknown) => void,
      ): void => {
        const body = methods[method];
        Promise.resolve()
          .then(() => {
            if (body === undefined) throw grpcError('UNIMPLEMENTED', 'not implemented');
            return body(call.request);
          })
          .then(
            (value) => answer(null, value ?? {}),
            (error: Error & { code?: number }) =>
              answer({ code: error.code ?? status.UNKNOWN, details: error.message }),
          );
      };
    }
    server.addService(definition as ServiceDefinition, handlers as never);
  }
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) =>
      error === null ? resolve() : reject(error),
    );
  });
  return {
    async close() {
      server.forceShutdown();
      await rm(socket, { force: true });
    },
  };
}

/** What a plugin heard of its registration. */
export interface Heard {
  readonly pluginRegistered: boolean;
  readonly error: string;
}

/** The registration service of a plugin; `until` waits for what it is told, and throws after 20 s. */
export async function serveRegistration(
  socket: string,
  info: { type?: string; name: string; endpoint?: string; supportedVersions?: readonly string[] },
  changed: Methods = {},
): Promise<Served & { readonly heard: readonly Heard[]; until(count: number): Promise<Heard> }> {
  const heard: Heard[] = [];
  const waiting: (() => void)[] = [];
  const served = await serve(socket, [
    {
      service: registration,
      methods: {
        GetInfo: () => ({ type: 'CSIPlugin', supportedVersions: ['1.0.0'], ...info }),
        NotifyRegistrationStatus: (told: Heard) => {
          heard.push(told);
          for (const wake of waiting.splice(0)) wake();
        },
        ...changed,
      },
    },
  ]);
  return {
    ...served,
    heard,
    async until(count) {
      const late = AbortSignal.timeout(20_000);
      while (heard.length < count) {
        await new Promise<void>((resolve, reject) => {
          waiting.push(resolve);
          late.onabort = () =>
            reject(new Error(`${info.name} was told ${heard.length} times, not ${count}, in 20 s`));
        });
      }
      return heard[count - 1]!;
    },
  };
}
