/**
 * The streaming server of the CRI: Exec, Attach and PortForward answer with a URL on it, and the kubelet, or crictl,
 * connects there. It is started with the first such call and listens on the loopback unless configured otherwise.
 */
import { randomBytes } from 'node:crypto';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import { type AddressInfo, isIPv6 } from 'node:net';
import type { Duplex } from 'node:stream';
import type { RuntimeService } from '../api.ts';
import type { Clock } from '../host/clock.ts';
import { KeelsonError } from '../host/errors.ts';
import type { Logger } from '../host/log.ts';
import { servePortForward } from './port_forward.ts';
import { serveRemoteCommand } from './remote_command.ts';
import { makeTokens } from './tokens.ts';
import type {
  AttachRequest,
  ExecRequest,
  PortForwardRequest,
  StreamHandlers,
  StreamingServer,
} from './types.ts';
import { refuse } from './upgrade.ts';

export interface StreamingOptions {
  readonly runtime: Pick<
    RuntimeService,
    'exec' | 'attach' | 'portForward' | 'containerStatus' | 'podSandboxStatus'
  >;
  readonly clock: Clock;
  readonly log: Logger;
  /** Default: 127.0.0.1. */
  readonly address?: string;
  /** Default 0: the kernel chooses. */
  readonly port?: number;
  /** Default: 4 h. */
  readonly idleMs?: number;
  /** How long a client may take to open its streams. Default: 30 s. */
  readonly creationMs?: number;
}

type Session =
  | ({ readonly verb: 'exec' } & ExecRequest)
  | ({ readonly verb: 'attach' } & AttachRequest)
  | ({ readonly verb: 'portforward' } & PortForwardRequest);

const headersDeadlineMs = 10_000;

export function makeStreaming(options: StreamingOptions): StreamingServer {
  const { runtime, clock, log, address = '127.0.0.1', port = 0 } = options;
  const { idleMs = 4 * 3600_000, creationMs = 30_000 } = options;
  const tokens = makeTokens<Session>(clock, () => randomBytes(6).toString('base64url'));
  const closing = new AbortController();
  const open = new Set<Promise<void>>();

  /** Counts a session as open until its end; whatever it throws is a bug that must not end the process. */
  const follow = (work: Promise<void>, socket: Duplex): Promise<void> => {
    const safe = work
      .catch((error: unknown) => {
        log.error({ err: error }, 'a streaming session failed');
        socket.destroy();
      })
      .finally(() => open.delete(safe));
    open.add(safe);
    return safe;
  };
  const limits = { clock, idleMs, creationMs, signal: closing.signal };
  const handlers: StreamHandlers = {
    exec: (request, socket, head, session) =>
      follow(
        serveRemoteCommand({
          ...limits,
          request,
          socket,
          head,
          wanted: session,
          async run(streams, gone) {
            try {
              const { containerId, command, tty } = session;
              return { exitCode: await runtime.exec(containerId, command, { ...streams, tty }, gone) };
            } catch (error) {
              return { error, doing: 'executing command in container' };
            }
          },
        }),
        socket,
      ),
    attach: (request, socket, head, session) =>
      follow(
        serveRemoteCommand({
          ...limits,
          request,
          socket,
          head,
          wanted: session,
          async run(streams, gone) {
            try {
              await runtime.attach(session.containerId, { ...streams, tty: session.tty }, gone);
              return { exitCode: 0 };
            } catch (error) {
              return { error, doing: 'attaching to container' };
            }
          },
        }),
        socket,
      ),
    portForward: (request, socket, head, session) =>
      follow(
        servePortForward({
          ...limits,
          request,
          socket,
          head,
          sandbox: session.podSandboxId,
          ports: session.ports,
          forward: (to, io, gone) => runtime.portForward(session.podSandboxId, to, io, gone),
        }),
        socket,
      ),
  };

  const handle = (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    const [, verb, token] = /^\/(exec|attach|portforward)\/([\w-]{8})(?:\?|$)/.exec(request.url ?? '') ?? [];
    const session = token === undefined ? undefined : tokens.consume(token, ({ verb: own }) => own === verb);
    if (session === undefined) return refuse(socket, 404, '404 page not found');
    if (session.verb === 'exec') void handlers.exec(request, socket, head, session);
    else if (session.verb === 'attach') void handlers.attach(request, socket, head, session);
    else void handlers.portForward(request, socket, head, session);
  };

  let listening: Promise<Server> | undefined;
  const listen = () =>
    new Promise<Server>((resolve, reject) => {
      const server = createServer({ headersTimeout: headersDeadlineMs }, (request, response) => {
        const known = /^\/(exec|attach|portforward)\//.test(request.url ?? '');
        response.writeHead(known ? 400 : 404, {
          'content-type': 'text/plain; charset=utf-8',
          connection: 'close',
        });
        response.end(
          known ? 'unable to upgrade: missing upgrade headers in request\n' : '404 page not found\n',
        );
      });
      server.on('upgrade', handle);
      server.on('clientError', (_error, socket) => socket.destroy());
      server.on('error', (error) => {
        listening = undefined;
        reject(
          new KeelsonError(
            'UNAVAILABLE',
            `cannot listen for streams on ${address}:${port}: ${error.message}`,
            {
              cause: error,
              hint: 'check the address and port of the streaming server',
            },
          ),
        );
      });
      server.listen(port, address, () => resolve(server));
    });

  const urlOf = async (session: Session): Promise<string> => {
    if (closing.signal.aborted) throw new KeelsonError('UNAVAILABLE', 'the streaming server is closed');
    listening ??= listen();
    const bound = (await listening).address() as AddressInfo;
    const host = isIPv6(bound.address) ? `[${bound.address}]` : bound.address;
    return `http://${host}:${bound.port}/${session.verb}/${tokens.add(session)}`;
  };

  const checkStreams = async ({ containerId, stdin, stdout, stderr, tty }: AttachRequest) => {
    const invalid = (message: string) => new KeelsonError('INVALID_ARGUMENT', message);
    if (tty && stderr) throw invalid('tty and stderr cannot both be true');
    if (!stdin && !stdout && !stderr) throw invalid('one of stdin, stdout, or stderr must be set');
    const { state } = await runtime.containerStatus(containerId);
    if (state !== 'running') {
      throw new KeelsonError('FAILED_PRECONDITION', `container ${containerId} is ${state}, not running`);
    }
  };

  return {
    handlers,
    async exec(request) {
      if (request.command.length === 0) throw new KeelsonError('INVALID_ARGUMENT', 'no command to run');
      await checkStreams(request);
      return urlOf({ ...request, verb: 'exec' });
    },
    async attach(request) {
      await checkStreams(request);
      return urlOf({ ...request, verb: 'attach' });
    },
    async portForward(request) {
      const { state } = await runtime.podSandboxStatus(request.podSandboxId);
      if (state !== 'ready') {
        throw new KeelsonError('FAILED_PRECONDITION', `sandbox ${request.podSandboxId} is not ready`);
      }
      return urlOf({ ...request, verb: 'portforward' });
    },
    async close() {
      closing.abort();
      const server = await listening?.catch(() => undefined);
      server?.closeAllConnections();
      await Promise.all([
        ...open,
        server === undefined ? undefined : new Promise<void>((resolve) => server.close(() => resolve())),
      ]);
    },
  };
}
