/**
 * The GET of probes and hooks (kubelet's pkg/probe/http): one connection per request, certificates not verified, no
 * proxy, redirects followed on the same host only.
 */
import type { PodContainer } from '../../apiserver/types.ts';
import { authorityOf, portOf, userAgent } from './address.ts';
import { exchange, requestHead } from './exchange.ts';

export type HttpGetAction = NonNullable<NonNullable<PodContainer['readinessProbe']>['httpGet']>;

export interface HttpAnswer {
  readonly status: number;
  /** The first 10 KiB. */
  readonly body: string;
}

const bodyBytes = 10 * 1024;
const mostRedirects = 10;
const redirects: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

/** One GET, ready to be sent as often as is wanted. */
export interface HttpRequest {
  readonly url: URL;
  readonly headers: Readonly<Record<string, string | string[]>>;
  readonly secure: boolean;
  /** An address or a name, without the brackets of a URL. */
  readonly host: string;
  readonly port: number;
  readonly path: string;
  /** As text, once it has been sent in the clear. */
  head?: string;
}

/** Throws FAILED_PRECONDITION as `urlOf` does. */
export function requestOf(
  container: PodContainer,
  action: HttpGetAction,
  podIp: string,
  purpose: 'probe' | 'lifecycle',
): HttpRequest {
  return requestTo(urlOf(container, action, podIp), headersOf(action, purpose));
}

export function requestTo(url: URL, headers: HttpRequest['headers']): HttpRequest {
  const secure = url.protocol === 'https:';
  return {
    ...{ url, headers, secure },
    host: url.hostname.replace(/^\[|\]$/g, ''),
    port: Number(url.port || (secure ? 443 : 80)),
    path: url.pathname + url.search,
  };
}

/** The URL that the action asks for. Throws FAILED_PRECONDITION for a port that is none. */
export function urlOf(container: PodContainer, action: HttpGetAction, podIp: string): URL {
  const path = action.path ?? '/';
  const url = new URL(
    `${(action.scheme || 'HTTP').toLowerCase()}://${authorityOf(action.host || podIp, portOf(container, action.port))}/`,
  );
  const [, target = '', query] = /^([^?#]*)(?:\?([^#]*))?/.exec(path)!;
  url.pathname = target.startsWith('/') ? target : `/${target}`;
  if (query !== undefined) url.search = query;
  return url;
}

/** The action's headers, with kubelet's own where it has none; an empty Accept means none. */
export function headersOf(
  action: HttpGetAction,
  purpose: 'probe' | 'lifecycle',
): Readonly<Record<string, string | string[]>> {
  const headers = new Map<string, { name: string; values: string[] }>();
  for (const { name, value } of action.httpHeaders ?? []) {
    const known = headers.get(name.toLowerCase());
    if (known === undefined) headers.set(name.toLowerCase(), { name, values: [value] });
    else known.values.push(value);
  }
  if (!headers.has('user-agent'))
    headers.set('user-agent', { name: 'User-Agent', values: [userAgent(purpose)] });
  if (!headers.has('accept')) headers.set('accept', { name: 'Accept', values: ['*/*'] });
  else if (headers.get('accept')!.values[0] === '') headers.delete('accept');
  const host = headers.get('host');
  if (host !== undefined) {
    if (host.values[0] === '') headers.delete('host');
    else host.values.length = 1;
  }
  return Object.fromEntries(
    Array.from(headers.values(), ({ name, values }) => [name, values.length === 1 ? values[0]! : values]),
  );
}

/**
 * The answer after redirects; one to another host is the answer itself. Rejects with an error in the words of Go's
 * client (`Get "URL": ...`) when there is none; `signal` ends it.
 */
export async function httpGet(request: HttpRequest, signal: AbortSignal): Promise<HttpAnswer> {
  const { url } = request;
  let sent = request;
  for (let count = 0; ; count++) {
    const { location, ...answer } = await getOnce(sent, signal);
    if (location === undefined || !redirects.has(answer.status)) return answer;
    const { url: at, headers } = sent;
    const next = URL.canParse(location, at) ? new URL(location, at) : undefined;
    if (next === undefined) throw new Error(`Get "${at}": failed to parse Location header "${location}"`);
    if (next.hostname !== url.hostname || !/^https?:$/.test(next.protocol)) return answer;
    if (count + 1 >= mostRedirects) throw new Error(`Get "${next}": stopped after 10 redirects`);
    // A Host header of the caller's names the host of the first request; it holds for paths on it only.
    const kept = /^[a-z]+:/i.test(location)
      ? Object.fromEntries(Object.entries(headers).filter(([name]) => name.toLowerCase() !== 'host'))
      : headers;
    sent = requestTo(next, kept);
  }
}

async function getOnce(
  request: HttpRequest,
  signal: AbortSignal,
): Promise<HttpAnswer & { location?: string }> {
  const { url, headers, secure, host, port, path } = request;
  try {
    if (!secure) request.head ??= requestHead(path, url.host, headers);
    const { status, location, body } =
      request.head === undefined
        ? await (await import('./https_get.ts')).exchangeByTls(host, port, path, headers, bodyBytes, signal)
        : await exchange(host, port, request.head, bodyBytes, signal);
    return { status, location, body: body.toString('utf8') };
  } catch (cause) {
    const error = cause instanceof Error ? cause : new Error('canceled');
    const { code } = error as { code?: string };
    throw Object.assign(new Error(`Get "${url}": ${goWords(error)}`, { cause }), { code });
  }
}

/** What kubelet's events say of a connection that did not come about, so that people find what they know. */
export function goWords(error: Error & { code?: string; syscall?: string }): string {
  const { code, address, port } = error as { code?: string; address?: string; port?: number };
  const known: Readonly<Record<string, string>> = {
    ECONNREFUSED: 'connect: connection refused',
    EHOSTUNREACH: 'connect: no route to host',
    ENETUNREACH: 'connect: network is unreachable',
    ETIMEDOUT: 'i/o timeout',
  };
  const words = code === undefined ? undefined : known[code];
  if (words !== undefined && address !== undefined && port !== undefined)
    return `dial tcp ${authorityOf(address, port)}: ${words}`;
  if (code === 'ECONNRESET')
    return error.message === 'socket hang up' ? 'EOF' : 'read: connection reset by peer';
  return error.message || String(code);
}
