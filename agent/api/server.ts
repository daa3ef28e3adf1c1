/** The node's HTTPS API: what the apiserver and monitoring ask of a node (kubelet's port 10250). */
import { type IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Clock } from '../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { ApiserverClient, Pod } from '../apiserver/types.ts';
import type { MetricsSource } from '../metrics/source.ts';
import { answerError, answerJson, answerMethodNotAllowed, answerText } from './answer.ts';
import { makeAuthenticator } from './authn.ts';
import { makeAuthorizer } from './authz.ts';
import { type Health, listen } from './healthz.ts';
import type { ContainerLog } from './logs.ts';
import { serveRead } from './reads/serve.ts';
import { attributesOf, parseTarget, type Route, routeOf, type Target } from './request.ts';
import type { NodeStats } from './stats/types.ts';
import type { CheckpointOptions } from './streams/checkpoint.ts';
import type { StreamsOptions } from './streams/serve.ts';
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
  /** For `/metrics/probes`. Default: none. */
  readonly probeMetrics?: readonly MetricsSource[];
  /** For exec, attach, run, port-forward and `/runningpods/`; without it they are not there. */
  readonly streams?: Omit<StreamsOptions, 'pods'>;
  /** For `/stats/summary`, `/metrics/resource` and `/metrics/cadvisor`; loaded with the first of these requests. */
  readonly stats?: () => Promise<NodeStats>;
  /** For `/checkpoint/`; without it it is not there. */
  readonly checkpoints?: CheckpointOptions;
  /** For `/configz`: a KubeletConfiguration without secrets. */
  readonly configuration?: () => unknown;
  /** The folder that `/logs/` shows; none: it is disabled. */
  readonly systemLogs?: string;
  /** False: nothing that looks into containers (enableDebuggingHandlers). Default true. */
  readonly debugging?: boolean;
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

  /** Who asks, for what, and may they? Throws what the request is refused with. */
  const admit = async (request: IncomingMessage, signal: AbortSignal): Promise<Target> => {
    const target = parseTarget(request.url ?? '');
    const user = await authenticator.authenticate(request, signal).catch((error: unknown) => {
      if (isError(error, 'UNAUTHENTICATED')) throw error;
      // Whoever nobody knows is not told of the apiserver either.
      if (!signal.aborted) log.warn({ err: error }, 'a caller could not be authenticated');
      throw new KeelsonError('UNAUTHENTICATED', 'the apiserver could not be asked', { cause: error });
    });
    await authorizer.authorize(user, attributesOf(request.method ?? '', target), signal);
    return target;
  };

  /** Serves it or answers, by `respond`, with why not. `left` takes who is told that the caller has gone. */
  const handle = async (
    request: IncomingMessage,
    respond: () => ServerResponse,
    left: (listener: () => void) => void,
    serve: (target: Target, signal: AbortSignal) => Promise<void>,
  ): Promise<void> => {
    // Who was believed because of an authority that has been replaced must come again.
    if (verifiedWith.get(request.socket) !== authority) return void request.socket.destroy();
    const gone = new AbortController();
    const stop = () => gone.abort();
    left(stop);
    shutdown.signal.addEventListener('abort', stop);
    try {
      await serve(await admit(request, gone.signal), gone.signal);
    } catch (error) {
      if (!gone.signal.aborted) answerError(error, request, respond(), log);
      else request.socket.destroy();
    } finally {
      shutdown.signal.removeEventListener('abort', stop);
    }
  };

  const onRequest = (request: IncomingMessage, response: ServerResponse): void => {
    request.resume();
    const left = (listener: () => void) => response.once('close', listener);
    const serve = (target: Target, signal: AbortSignal) =>
      servePlain(options, request, response, target, signal);
    void handle(request, () => response, left, serve);
  };

  const upgraded = new Set<Duplex>();
  /** A connection that shall become one of streams. */
  const onUpgrade = (request: IncomingMessage, socket: Duplex, head: Buffer): void => {
    upgraded.add(socket);
    socket.on('error', () => {});
    socket.once('close', () => upgraded.delete(socket));
    /** Only a refusal is an answer in HTTP. */
    const respond = () => {
      const response = new ServerResponse(request);
      response.shouldKeepAlive = false;
      response.assignSocket(socket as Socket);
      response.once('finish', () => socket.end(() => socket.destroy()));
      return response;
    };
    const left = (listener: () => void) => socket.once('close', listener);
    void handle(request, respond, left, async (target) => {
      const route = routeOf(target);
      if (route.kind !== 'streaming' || route.verb === 'run') {
        throw new KeelsonError('NOT_FOUND', '404 page not found');
      }
      const { serveStream, streams } = await loadStreams(options, route.verb);
      await serveStream(streams, route, target, request, socket, head);
    });
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
        shouldUpgradeCallback: wantsStreams,
      },
      onRequest,
    );
    server.on('upgrade', onUpgrade);
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
        for (const socket of upgraded) socket.destroy();
      }),
  };
}

/** Other upgrades (h2c) are passed over: such a request is answered as any other. */
function wantsStreams(request: IncomingMessage): boolean {
  return /^(?:websocket$|.*spdy\/3\.1)/i.test(request.headers.upgrade ?? '');
}

async function servePlain(
  options: NodeApiOptions,
  request: IncomingMessage,
  response: ServerResponse,
  target: Target,
  signal: AbortSignal,
): Promise<void> {
  const route = routeOf(target);
  if (options.debugging === false && looksInside.includes(target.segments[0] ?? '')) {
    return answerText(response, 405, 'Debug endpoints are disabled.\n');
  }
  if (route.kind === 'checkpoint') return makeCheckpoint(options, request, response, route, target, signal);
  if (route.kind !== 'streaming') return serveRead(options, request, response, route, target, signal);
  if (route.verb !== 'run') {
    if (request.method !== 'GET' && request.method !== 'POST') {
      return answerMethodNotAllowed(response, 'GET, POST');
    }
    throw new KeelsonError('INVALID_ARGUMENT', 'Upgrade request required');
  }
  if (request.method !== 'POST') return answerMethodNotAllowed(response, 'POST');
  const { runCommand, streams } = await loadStreams(options, 'run');
  answerJson(response, await runCommand(streams, route, target, signal));
}

async function makeCheckpoint(
  { checkpoints, pods, clock }: NodeApiOptions,
  request: IncomingMessage,
  response: ServerResponse,
  route: Extract<Route, { readonly kind: 'checkpoint' }>,
  { query }: Target,
  signal: AbortSignal,
): Promise<void> {
  if (checkpoints === undefined) throw new KeelsonError('NOT_FOUND', '404 page not found');
  if (request.method !== 'POST') return answerMethodNotAllowed(response, 'POST');
  const { checkpoint } = await import('./streams/checkpoint.ts');
  answerJson(response, await checkpoint(checkpoints, pods(), clock, route, query, signal));
}

/** First segments of what kubelet serves only with enableDebuggingHandlers. */
const looksInside = [
  'run',
  'exec',
  'attach',
  'portForward',
  'containerLogs',
  'runningpods',
  'logs',
  'configz',
];

/** What an agent that nobody runs kubectl exec on pays nothing for. Throws UNIMPLEMENTED where there are no streams. */
async function loadStreams(options: NodeApiOptions, verb: string) {
  const { streams, pods, debugging = true } = options;
  if (streams === undefined || !debugging) {
    throw new KeelsonError('UNIMPLEMENTED', `${verb} is not served by this node`);
  }
  const { serveStream, runCommand } = await import('./streams/serve.ts');
  return { serveStream, runCommand, streams: { ...streams, pods } };
}
