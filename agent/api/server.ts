/** The node's HTTPS API: what the apiserver and monitoring ask of a node (kubelet's port 10250). */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { Clock } from '../../runtime/host/clock.ts';
import { describe, isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { ApiserverClient, Pod } from '../apiserver/types.ts';
import type { MetricsSource } from '../metrics/source.ts';
import { makeAuthenticator } from './authn.ts';
import { makeAuthorizer } from './authz.ts';
import { answerHealth, type Health, listen } from './healthz.ts';
import { parseLogOptions } from './log-options.ts';
import { type ContainerLog, streamLog } from './logs.ts';
import { attributesOf, parseTarget, type Route, routeOf, type Target } from './request.ts';
import { makeTlsSource, type TlsContext, type TlsFiles } from './tls.ts';

export type { Health } from './healthz.ts';
export type { ContainerLog } from './logs.ts';

export interface NodeApiOptions {
  readonly address: string;
  /** 0: the kernel chooses. */
  readonly port: number;
  readonly tls: TlsFiles;
  readonly clientCaFile?: string;
  readonly authentication: { readonly anonymous: boolean; readonly webhook: boolean };
  readonly authorization: { readonly mode: 'AlwaysAllow' | 'Webhook' };
  /** For reviews; without it tokens are refused and mode Webhook refuses everything. */
  readonly client?: ApiserverClient;
  readonly nodeName: string;
  readonly log: Logger;
  readonly clock: Clock;
  /** All pods of the node with their newest status. */
  readonly pods: () => readonly Pod[];
  /** Throws NOT_FOUND or FAILED_PRECONDITION in kubelet's words (`containerForLogs`). */
  readonly container: (
    namespace: string,
    pod: string,
    container: string,
    previous: boolean,
  ) => ContainerLog | Promise<ContainerLog>;
  readonly healthy: () => Health;
  /** For `/metrics`. Default: none. */
  readonly metrics?: readonly MetricsSource[];
  /** For `/metrics/probes`, which are scraped apart as with kubelet. Default: none. */
  readonly probeMetrics?: readonly MetricsSource[];
}

export interface NodeApi {
  readonly port: number;
  /** Ends all streams and connections. */
  close(): Promise<void>;
}

/** Starts the API. Throws CONFIG_INVALID for certificates that cannot be read or used, UNAVAILABLE for the port. */
export async function startNodeApi(options: NodeApiOptions): Promise<NodeApi> {
  const { log, clock, clientCaFile } = options;
  const authenticator = makeAuthenticator({ ...options.authentication, client: options.client, clock });
  const authorizer = makeAuthorizer({ ...options, mode: options.authorization.mode });
  const source = makeTlsSource({ tls: options.tls, clientCaFile, clock, log });
  const shutdown = new AbortController();

  const context = await source.load();
  let authority = context.ca;
  /** What the peer of each connection was verified with. */
  const verifiedWith = new WeakMap<Socket, string | undefined>();

  const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    // Who was believed because of an authority that has been replaced must come again.
    if (verifiedWith.get(request.socket) !== authority) return void request.socket.destroy();
    request.resume();
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    const stop = () => gone.abort();
    shutdown.signal.addEventListener('abort', stop);
    try {
      const target = parseTarget(request.url ?? '');
      const user = await authenticator.authenticate(request, gone.signal).catch((error: unknown) => {
        if (isError(error, 'UNAUTHENTICATED')) throw error;
        // Whoever nobody knows is not told of the apiserver either.
        if (!gone.signal.aborted) log.warn({ err: error }, 'a caller could not be authenticated');
        throw new KeelsonError('UNAUTHENTICATED', 'the apiserver could not be asked', { cause: error });
      });
      await authorizer.authorize(user, attributesOf(request.method ?? '', target), gone.signal);
      await serve(options, request, response, routeOf(target), target, gone.signal);
    } catch (error) {
      if (!gone.signal.aborted) answerError(error, request, response, log);
      else response.destroy();
    } finally {
      shutdown.signal.removeEventListener('abort', stop);
    }
  };

  const [{ createServer }, { constants }] = await Promise.all([import('node:https'), import('node:crypto')]);
  const secure = ({ cert, key, ca }: TlsContext) => ({
    cert,
    key,
    ca,
    minVersion: 'TLSv1.2' as const,
    // Every connection is verified anew: a resumed one would outlive the authority that it was verified with.
    secureOptions: constants.SSL_OP_NO_TICKET,
  });
  let server: import('node:https').Server;
  try {
    server = createServer(
      {
        ...secure(context),
        requestCert: clientCaFile !== undefined,
        rejectUnauthorized: false, // Tokens are credentials too: who is whom is decided for each request.
        keepAliveTimeout: 90_000,
      },
      (request, response) => void handle(request, response),
    );
  } catch (error) {
    throw new KeelsonError(
      'CONFIG_INVALID',
      `the certificate or key of the node's API cannot be used: ${(error as Error).message}`,
      { cause: error, hint: 'check tlsCertFile, tlsPrivateKeyFile and authentication.x509.clientCAFile' },
    );
  }
  server.on('secureConnection', (socket) => verifiedWith.set(socket, authority));
  server.on('tlsClientError', (error) => log.debug({ err: error }, 'TLS handshake failed'));
  server.on('clientError', (_error, socket) => (socket as Socket).destroy());
  await listen(server, options.address, options.port, "the node's API").catch((error) => {
    source.close();
    throw error;
  });
  source.watch((renewed) => {
    try {
      server.setSecureContext(secure(renewed));
      if (renewed.ca !== authority) {
        authority = renewed.ca;
        server.closeIdleConnections();
      }
      log.info("the certificates of the node's API were read again");
    } catch (error) {
      log.warn({ err: error }, "the certificates of the node's API stay as they are");
    }
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        source.close();
        shutdown.abort();
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function serve(
  options: NodeApiOptions,
  request: IncomingMessage,
  response: ServerResponse,
  route: Route,
  target: Target,
  signal: AbortSignal,
): Promise<void> {
  if (route.kind === 'streaming') {
    throw new KeelsonError('UNIMPLEMENTED', `${route.verb} is not implemented by this node`);
  }
  if (route.kind === 'unknown') throw new KeelsonError('NOT_FOUND', '404 page not found');
  if (request.method !== 'GET') {
    response.writeHead(405, { allow: 'GET', 'content-type': 'text/plain; charset=utf-8' });
    response.end('Method Not Allowed');
    return;
  }
  if (route.kind === 'healthz') {
    if (!answerHealth(route.check, options.healthy(), response))
      throw new KeelsonError('NOT_FOUND', '404 page not found');
    return;
  }
  if (route.kind === 'pods') {
    const list = { kind: 'PodList', apiVersion: 'v1', metadata: {}, items: options.pods() };
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify(list));
    return;
  }
  if (route.kind === 'metrics') {
    const { contentType, metricsText } = await import('../metrics/text.ts');
    const text = await metricsText((route.probes ? options.probeMetrics : options.metrics) ?? []);
    response.writeHead(200, { 'content-type': contentType });
    response.end(text);
    return;
  }
  const logOptions = parseLogOptions(target.query, options.clock.now());
  const log = await options.container(route.namespace, route.pod, route.container, logOptions.previous);
  let begun = false;
  const begin = () => {
    if (begun) return;
    begun = true;
    response.writeHead(200, {
      'content-type': 'text/plain; charset=utf-8',
      'x-content-type-options': 'nosniff',
    });
    response.flushHeaders();
  };
  if (logOptions.follow) begin(); // Whoever follows a silent container must see that the stream stands.
  await streamLog({
    log,
    options: logOptions,
    signal,
    write: async (chunk) => {
      begin();
      if (response.write(chunk) || signal.aborted) return;
      await new Promise<void>((resolve) => {
        const done = () => {
          response.off('drain', done);
          signal.removeEventListener('abort', done);
          resolve();
        };
        response.on('drain', done);
        signal.addEventListener('abort', done);
      });
    },
  });
  begin();
  response.end();
}

/** HTTP status for `error`. */
function statusOf(error: unknown): number {
  if (!isError(error)) return 500;
  const given = error.details['status'];
  if (typeof given === 'number' && error.code === 'INVALID_ARGUMENT') return given;
  switch (error.code) {
    case 'INVALID_ARGUMENT':
    case 'FAILED_PRECONDITION':
      return 400;
    case 'UNAUTHENTICATED':
      return 401;
    case 'PERMISSION_DENIED':
      return 403;
    case 'NOT_FOUND':
      return 404;
    case 'UNIMPLEMENTED':
      return 501;
    default:
      return 500;
  }
}

function answerError(error: unknown, request: IncomingMessage, response: ServerResponse, log: Logger): void {
  const status = statusOf(error);
  const path = (request.url ?? '').split('?')[0];
  if (status === 500) log.warn({ err: error, path }, "a request of the node's API failed");
  else log.debug({ path, status, message: describe(error) }, "a request of the node's API was refused");
  // Half of an answer must not look like a whole one.
  if (response.headersSent) return void response.destroy();
  const message = status === 401 ? 'Unauthorized' : error instanceof Error ? error.message : String(error);
  response.writeHead(status, {
    'content-type': 'text/plain; charset=utf-8',
    'x-content-type-options': 'nosniff',
    ...(status === 401 ? { 'www-authenticate': 'Bearer' } : {}),
  });
  response.end(message);
}
