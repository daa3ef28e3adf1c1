/**
 * HTTP/1.1 as a client: undici's pools without the rest of undici.
 *
 * The package's index also loads fetch, caches, WebSocket and mocks, which costs an idle agent 10 MiB; its
 * dispatcher and `request` are therefore taken from their own files, and the proxy's only when there is a proxy. Only
 * this file knows that.
 */
import { createRequire } from 'node:module';
import type { SecureContext } from 'node:tls';
import type { Agent, Dispatcher, Pool, ProxyAgent } from 'undici';
import { abortError, errnoOf, KeelsonError } from './errors.ts';

const require = createRequire(import.meta.url);
const AgentClass = require('undici/lib/dispatcher/agent.js') as new (options: Agent.Options) => Agent;
const request = require('undici/lib/api/api-request.js') as (
  this: Dispatcher,
  options: Dispatcher.RequestOptions,
) => Promise<Dispatcher.ResponseData>;

export interface TlsOptions {
  /** PEM. Default: the system's authorities as Node knows them. */
  readonly ca?: string | Buffer;
  readonly cert?: string | Buffer;
  readonly key?: string | Buffer;
  /** PEM, trusted besides the system's authorities. */
  readonly extraCa?: readonly (string | Buffer)[];
  /** PEM, instead of `cert` and `key` where there are several. */
  readonly pairs?: readonly { readonly cert: string | Buffer; readonly key: string | Buffer }[];
  readonly serverName?: string;
  /** Do not verify the server. Only where a user's configuration says so. */
  readonly insecure?: boolean;
}

export interface HttpOptions {
  readonly tls?: TlsOptions;
  /** Milliseconds to connect, TLS included. Default 10,000. */
  readonly connectTimeoutMs?: number;
  /** Connections per origin. Default 16. */
  readonly connections?: number;
  /** Milliseconds that an unused connection is kept. Default 4,000. */
  readonly keepAliveMs?: number;
  /**
   * The HTTP proxy for a URL, with user and password where it wants them; undefined to connect directly. Plain http
   * is sent to the proxy, https through a tunnel (CONNECT). Default: never a proxy.
   */
  readonly proxyFor?: (url: URL) => URL | undefined;
}

export interface HttpRequest {
  readonly method: string;
  /** http: or https:, with path and query. Never carries credentials. */
  readonly url: URL;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Buffer;
  readonly signal?: AbortSignal;
  /** Milliseconds until the response headers. Default 30,000; 0 for no limit. */
  readonly headersTimeoutMs?: number;
  /** Milliseconds between two pieces of the body. Default 30,000; 0 for no limit. */
  readonly bodyTimeoutMs?: number;
}

/** `body` is a Readable with `.text()`, `.json()` and `.dump()`; it must be read or dumped. */
export type HttpResponse = Dispatcher.ResponseData;

export interface HttpClient {
  /**
   * Sends one request; resolves with the headers of any status. Does not follow redirects.
   * Throws UNAVAILABLE (`details.errno` where the system gave one), DEADLINE_EXCEEDED or ABORTED.
   */
  request(options: HttpRequest): Promise<HttpResponse>;
  /** Breaks what is in flight and closes all connections. */
  destroy(): Promise<void>;
}

export function makeHttpClient(options: HttpOptions = {}): HttpClient {
  const { tls = {} } = options;
  const pools = {
    connections: options.connections ?? 16,
    pipelining: 1,
    keepAliveTimeout: options.keepAliveMs ?? 4000,
  };
  const connect = {
    timeout: options.connectTimeoutMs ?? 10_000,
    ...(tls.extraCa === undefined && tls.pairs === undefined
      ? { ca: tls.ca, cert: tls.cert, key: tls.key }
      : { secureContext: contextOf(tls) }),
    servername: tls.serverName,
    rejectUnauthorized: !tls.insecure,
    keepAlive: true,
  };
  const agent = new AgentClass({ ...pools, connect });
  const proxies = new Map<string, ProxyAgent>();
  const throughProxy = (proxy: URL): Dispatcher => {
    let found = proxies.get(proxy.href);
    if (found === undefined) {
      found = makeProxyAgent(proxy, pools, connect);
      proxies.set(proxy.href, found);
    }
    return found;
  };
  return {
    async request(wanted) {
      const { url, signal } = wanted;
      const proxy = options.proxyFor?.(url);
      const through = proxy === undefined ? '' : ` through the proxy ${proxy.origin}`;
      const what = `${wanted.method} ${url.origin}${url.pathname}${through}`;
      if (signal?.aborted) throw abortError(signal, what);
      try {
        return await request.call(proxy === undefined ? agent : throughProxy(proxy), {
          origin: url.origin,
          path: url.pathname + url.search,
          method: wanted.method as Dispatcher.HttpMethod,
          headers: { ...wanted.headers },
          body: wanted.body ?? null,
          signal,
          headersTimeout: wanted.headersTimeoutMs ?? 30_000,
          bodyTimeout: wanted.bodyTimeoutMs ?? 30_000,
        });
      } catch (error) {
        throw requestError(error, what, signal);
      }
    },
    async destroy() {
      await Promise.all([agent, ...proxies.values()].map((each) => each.destroy()));
    },
  };
}

/** Made once: reading all the system's authorities for each connection would hold up the process. */
function contextOf(tls: TlsOptions): SecureContext {
  const { createSecureContext, getCACertificates } = require('node:tls') as typeof import('node:tls');
  const own = tls.ca === undefined ? getCACertificates('default') : [tls.ca];
  return createSecureContext({
    ca: tls.extraCa === undefined && tls.ca === undefined ? undefined : [...own, ...(tls.extraCa ?? [])],
    cert: tls.pairs?.map(({ cert }) => cert) ?? tls.cert,
    key: tls.pairs?.map(({ key }) => key) ?? tls.key,
  });
}

function makeProxyAgent(
  proxy: URL,
  pools: { readonly connections: number; readonly pipelining: number; readonly keepAliveTimeout: number },
  connect: { readonly timeout: number },
): ProxyAgent {
  const ProxyAgentClass = require('undici/lib/dispatcher/proxy-agent.js') as new (
    options: ProxyAgent.Options,
  ) => ProxyAgent;
  const PoolClass = require('undici/lib/dispatcher/pool.js') as new (
    origin: URL,
    options: Pool.Options,
  ) => Pool;
  const credentials = [proxy.username, proxy.password].map(decoded).join(':');
  return new ProxyAgentClass({
    ...pools,
    uri: proxy.origin,
    token: credentials === ':' ? undefined : `Basic ${Buffer.from(credentials).toString('base64')}`,
    proxyTunnel: false, // Plain http needs none; https gets one all the same.
    requestTls: connect,
    proxyTls: { timeout: connect.timeout },
    // A proxy that is silent about a tunnel is to cost no more than a host that is silent.
    clientFactory: (origin, given) => {
      const pool = new PoolClass(origin, { ...(given as Pool.Options), headersTimeout: connect.timeout });
      return Object.assign(pool, { connect: require('undici/lib/api/api-connect.js') });
    },
  });
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // A bare `%` in a password.
  }
}

/** What a failed request or a failed read of a response body means. `what` names the request, without secrets. */
export function requestError(error: unknown, what: string, signal?: AbortSignal): KeelsonError {
  if (error instanceof KeelsonError) return error;
  if (signal?.aborted) return abortError(signal, what);
  const code = (error as { code?: unknown } | null)?.code;
  const message = error instanceof Error ? error.message : String(error);
  const slow =
    code === 'UND_ERR_HEADERS_TIMEOUT' ||
    code === 'UND_ERR_BODY_TIMEOUT' ||
    code === 'UND_ERR_CONNECT_TIMEOUT';
  return new KeelsonError(slow ? 'DEADLINE_EXCEEDED' : 'UNAVAILABLE', `${what}: ${message || String(code)}`, {
    cause: error,
    details: { errno: errnoOf(error), code },
  });
}
