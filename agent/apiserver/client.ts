/** The client of one apiserver: JSON over HTTP/1.1, with a deadline and a bound on everything. */
import type { Clock } from '../../runtime/host/clock.ts';
import { sleep } from '../../runtime/host/clock.ts';
import { abortError, KeelsonError } from '../../runtime/host/errors.ts';
import {
  type HttpClient,
  type HttpResponse,
  makeHttpClient,
  requestError,
  type TlsOptions,
} from '../../runtime/host/http.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { completeList, eventOf, parseObject, retryAfter, statusError } from './answers.ts';
import type { ClusterAccess } from './credentials.ts';
import { makeLineSplitter } from './lines.ts';
import { makeTokenBucket } from './rates.ts';
import type { ApiserverClient, CallOptions, KubeList, KubeObject, PatchType, WatchEvent } from './types.ts';

export { apiStatus, retryAfterMs } from './answers.ts';

export interface ClientOptions {
  readonly access: ClusterAccess;
  readonly clock: Clock;
  readonly log: Logger;
  readonly userAgent: string;
  /** Calls per second, watches and heartbeats not counted (kubeAPIQPS). Absent or 0: no limit. */
  readonly clientQps?: number;
  /** Calls at once before the limit counts (kubeAPIBurst). Default 100. */
  readonly clientBurst?: number;
  /** Largest answer in bytes. Default 64 MiB. */
  readonly maxAnswerBytes?: number;
}

export interface ClusterClient extends ApiserverClient {
  readonly server: URL;
  /** Breaks all connections, watches too: for when heartbeats fail, since a dead peer does not close them. */
  resetConnections(): void;
}

/**
 * Calls, heartbeats (leases and the Node's status), events, reviews and watches have connections of their own: neither
 * many watches nor slow calls of pods may keep a lease from being renewed, events wait for nobody and nobody for them,
 * and strangers who try tokens at the node's API keep no pod from being reported. Heartbeats are at most three at once:
 * the lease, the Node's status, and a list of the Node. The rate of calls (kubeAPIQPS) is that of `calls` alone: events
 * have their recorder's, and reviews are held by their connections.
 */
const lanes = { calls: 8, heartbeats: 3, events: 1, reviews: 4, watches: 256 } as const;
type Lane = keyof typeof lanes;

/** The apiserver closes connections that were idle for 90 s. */
const keepAliveMs = 60_000;
const defaultDeadlineMs = 15_000;
const defaultWatchSeconds = 600;
const watchGraceMs = 30_000;
const maxWatchLineBytes = 16 << 20;
const patchContentTypes: Readonly<Record<PatchType, string>> = {
  strategic: 'application/strategic-merge-patch+json',
  merge: 'application/merge-patch+json',
  json: 'application/json-patch+json',
  apply: 'application/apply-patch+yaml',
};

/** The connections made with one set of certificates. */
interface Connections {
  readonly tls: TlsOptions;
  readonly lanes: Partial<Record<Lane, HttpClient>>;
  inFlight: number;
  retired: boolean;
}

interface Sent {
  readonly response: HttpResponse;
  /** Must be called when the answer has been read, or given up. */
  done(): void;
}

interface Request {
  readonly verb: string;
  readonly method: string;
  readonly path: string;
  readonly body?: object;
  readonly contentType?: string;
  readonly options?: CallOptions;
}

export function makeClient(options: ClientOptions): ClusterClient {
  const { access, clock, log, userAgent } = options;
  const { maxAnswerBytes = 64 << 20 } = options;
  const bucket = options.clientQps
    ? makeTokenBucket({ perSecond: options.clientQps, burst: options.clientBurst ?? 100 })
    : undefined;
  const requests = new Map<string, number>();
  const prefix = access.server.pathname.replace(/\/$/, '');
  const all = new Set<Connections>();
  let current: Connections | undefined;
  let closed = false;

  function connectionsFor(tls: TlsOptions): Connections {
    if (current !== undefined && current.tls === tls) return current;
    if (current !== undefined) retire(current);
    current = { tls, lanes: {}, inFlight: 0, retired: false };
    all.add(current);
    return current;
  }

  /** New requests go over new connections; what is under way may finish. */
  function retire(connections: Connections): void {
    connections.retired = true;
    if (connections.inFlight === 0) destroy(connections);
  }

  function destroy(connections: Connections): void {
    all.delete(connections);
    for (const http of Object.values(connections.lanes)) http.destroy().catch(() => {});
  }

  function urlOf(path: string, query: Readonly<Record<string, string>> = {}): URL {
    const url = new URL(prefix + path, access.server);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    return url;
  }

  async function send(
    request: Request,
    lane: Lane,
    query: Readonly<Record<string, string>> | undefined,
    timeouts: { headersTimeoutMs: number; bodyTimeoutMs: number },
    signal: AbortSignal | undefined,
  ): Promise<Sent> {
    const what = `${request.method} ${request.path}`;
    const { tls, authorization } = await access.credentials(signal);
    if (closed) throw new KeelsonError('ABORTED', `${what}: the client is closed`);
    if (signal?.aborted) throw abortError(signal, what);
    const connections = connectionsFor(tls);
    connections.lanes[lane] ??= makeHttpClient({ tls, connections: lanes[lane], keepAliveMs });
    const counter = `${request.verb} ${resourceOf(request.path)}`;
    requests.set(counter, (requests.get(counter) ?? 0) + 1);
    connections.inFlight++;
    let finished = false;
    const done = () => {
      if (finished) return;
      finished = true;
      connections.inFlight--;
      if (connections.retired && connections.inFlight === 0) destroy(connections);
    };
    try {
      const response = await connections.lanes[lane]!.request({
        method: request.method,
        url: urlOf(request.path, query),
        headers: {
          accept: 'application/json',
          'user-agent': userAgent,
          ...(authorization === undefined ? {} : { authorization }),
          ...(request.body === undefined
            ? {}
            : { 'content-type': request.contentType ?? 'application/json' }),
        },
        body: request.body === undefined ? undefined : JSON.stringify(request.body),
        signal,
        ...timeouts,
      });
      response.body.on('error', () => {}); // Told by the reads; a stream that nobody reads any more has no reader.
      if (response.statusCode === 401) access.refused();
      return { response, done };
    } catch (error) {
      done();
      throw unreachable(error, what, signal);
    }
  }

  /** Reads an answer to its end. */
  async function read(sent: Sent, what: string, signal: AbortSignal | undefined): Promise<Buffer> {
    const chunks: Buffer[] = [];
    let size = 0;
    try {
      for await (const chunk of sent.response.body as AsyncIterable<Buffer>) {
        size += chunk.length;
        if (size > maxAnswerBytes) {
          throw new KeelsonError('API_GARBAGE', `${what}: the answer is larger than ${maxAnswerBytes} bytes`);
        }
        chunks.push(chunk);
      }
      return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
    } catch (error) {
      throw unreachable(error, what, signal);
    } finally {
      sent.done();
    }
  }

  async function call(request: Request): Promise<Buffer> {
    const { signal: outer, query, deadlineMs = defaultDeadlineMs } = request.options ?? {};
    const what = `${request.method} ${request.path}`;
    if (outer?.aborted) throw abortError(outer, what);
    const lane = laneOf(request.path);
    const until = clock.monotonic() + deadlineMs;
    const controller = new AbortController();
    const { signal } = controller;
    const onAbort = () => controller.abort(abortError(outer!, what));
    outer?.addEventListener('abort', onAbort, { once: true });
    const cancelDeadline = clock.after(deadlineMs, () =>
      controller.abort(
        new KeelsonError(
          'DEADLINE_EXCEEDED',
          `${what}: no answer from ${access.server.host} within ${deadlineMs} ms`,
        ),
      ),
    );
    try {
      const waitMs = lane === 'calls' ? (bucket?.reserve(clock.monotonic()) ?? 0) : 0;
      if (waitMs > 0) await sleep(clock, waitMs, signal);
      for (let attempt = 0; ; attempt++) {
        // The deadline is the one limit: undici's own would only add to it.
        const sent = await send(request, lane, query, { headersTimeoutMs: 0, bodyTimeoutMs: 0 }, signal);
        const body = await read(sent, what, signal);
        const { statusCode, headers } = sent.response;
        if (statusCode >= 200 && statusCode < 300) return body;
        const after = retryAfter(headers, clock.now());
        if (statusCode === 429 && after !== undefined) {
          // A server that says 0 must not be asked in a loop.
          const pauseMs = Math.max(after, Math.min(1000, 50 * 2 ** attempt));
          if (clock.monotonic() + pauseMs < until) {
            log.debug({ what, pauseMs }, 'the apiserver asks to wait');
            await sleep(clock, pauseMs, signal);
            continue;
          }
        }
        throw statusError(what, statusCode, body, after);
      }
    } finally {
      cancelDeadline();
      outer?.removeEventListener('abort', onAbort);
    }
  }

  async function object<T>(request: Request): Promise<T> {
    return parseObject(await call(request), `${request.method} ${request.path}`) as T;
  }

  async function* watch<T>(path: string, watchOptions: CallOptions = {}): AsyncGenerator<WatchEvent<T>> {
    const { signal } = watchOptions;
    const query = { ...watchOptions.query, watch: '1' };
    const request: Request = { verb: 'WATCH', method: 'GET', path };
    const what = `watch of ${path}`;
    const seconds = Number(watchOptions.query?.['timeoutSeconds'] ?? defaultWatchSeconds);
    const timeouts = { headersTimeoutMs: 30_000, bodyTimeoutMs: seconds * 1000 + watchGraceMs };
    const sent = await send(request, 'watches', query, timeouts, signal);
    const { statusCode, headers, body } = sent.response;
    if (statusCode !== 200) {
      const text = await read(sent, what, signal);
      throw statusError(what, statusCode, text, retryAfter(headers, clock.now()));
    }
    const lines = makeLineSplitter(maxWatchLineBytes);
    try {
      for await (const chunk of body as AsyncIterable<Buffer>) {
        for (const line of lines.push(chunk)) yield eventOf<T>(line, what);
      }
      const rest = lines.end();
      if (rest !== undefined) yield eventOf<T>(rest, what);
    } catch (error) {
      throw unreachable(error, what, signal);
    } finally {
      body.destroy();
      sent.done();
    }
  }

  return {
    server: access.server,
    requests,
    get: <T>(path: string, callOptions?: CallOptions) =>
      object<T>({ verb: 'GET', method: 'GET', path, options: callOptions }),
    async list<T>(path: string, callOptions?: CallOptions) {
      const list = await object<KubeList<T> & KubeObject>({
        verb: 'LIST',
        method: 'GET',
        path,
        options: callOptions,
      });
      return completeList(list, path);
    },
    create: <T>(path: string, body: object, callOptions?: CallOptions) =>
      object<T>({ verb: 'CREATE', method: 'POST', path, body, options: callOptions }),
    replace: <T>(path: string, body: object, callOptions?: CallOptions) =>
      object<T>({ verb: 'REPLACE', method: 'PUT', path, body, options: callOptions }),
    patch: <T>(path: string, type: PatchType, body: object, callOptions?: CallOptions) =>
      object<T>({
        verb: 'PATCH',
        method: 'PATCH',
        path,
        body,
        contentType: patchContentTypes[type],
        options: callOptions,
      }),
    async delete(path, body, callOptions) {
      await call({ verb: 'DELETE', method: 'DELETE', path, body, options: callOptions });
    },
    watch,
    resetConnections() {
      current = undefined;
      for (const connections of [...all]) destroy(connections);
    },
    async close() {
      closed = true;
      current = undefined;
      const connections = [...all];
      all.clear();
      await Promise.all(connections.flatMap((one) => Object.values(one.lanes).map((http) => http.destroy())));
    },
  };
}

function unreachable(error: unknown, what: string, signal: AbortSignal | undefined): KeelsonError {
  const failure = requestError(error, what, signal);
  if (failure.code !== 'UNAVAILABLE') return failure;
  return new KeelsonError('API_UNREACHABLE', failure.message, {
    cause: failure.cause,
    details: failure.details,
  });
}

/** Which connections a call takes: heartbeats are leases, and the node itself with its status. */
function laneOf(path: string): Exclude<Lane, 'watches'> {
  if (path.startsWith('/apis/coordination.k8s.io/') || path.startsWith('/api/v1/nodes')) return 'heartbeats';
  if (/^\/apis\/auth(entication|orization)\.k8s\.io\//.test(path)) return 'reviews';
  return /^\/api\/v1\/namespaces\/[^/]+\/events(\/|$)/.test(path) ? 'events' : 'calls';
}

/** `pods`, `pods/status`, `namespaces` and the like. */
export function resourceOf(path: string): string {
  const parts = path.split('/').filter((part) => part !== '');
  const rest = parts.slice(parts[0] === 'apis' ? 3 : 2);
  const scoped = rest[0] === 'namespaces' && rest.length > 2 ? rest.slice(2) : rest;
  const [resource = 'other', , subresource] = scoped;
  return subresource === undefined ? resource : `${resource}/${subresource}`;
}
