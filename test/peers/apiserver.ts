/**
 * A small development apiserver: plain HTTP on the loopback, everything in memory. It stands in for kube-apiserver in
 * the quickstart, in fast tests, and for faults that a real one does not give on demand. What it accepts and answers
 * is checked against the real one by test/peers/apiserver-conformance.ts.
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type Answer, makeAnswers } from './apiserver/answers.ts';
import { makeObjects } from './apiserver/objects.ts';
import { targetOf } from './apiserver/resources.ts';
import { StatusError } from './apiserver/status.ts';
import { makeStore } from './apiserver/store.ts';
import { makeWatches } from './apiserver/watches.ts';

/** Which requests a fault is for; all where absent. `path` is with its query. */
export type RequestMatcher = (method: string, path: string) => boolean;

export interface Faults {
  /** Milliseconds that every answer waits. */
  delayMs: number;
  /** The next `count` matching requests get this status, and change nothing. */
  failNext(
    count: number,
    answer: { status: number; retryAfterSeconds?: number },
    matches?: RequestMatcher,
  ): void;
  /** The next `count` matching requests are done, but answered with 200 and something that is not JSON. */
  garbageNext(count: number, matches?: RequestMatcher): void;
  /** The next `count` matching requests are done, but their connections break instead of an answer. */
  breakNext(count: number, matches?: RequestMatcher): void;
  /** Breaks the connections of all watches, in the middle of the stream. */
  breakWatches(): void;
  /** Ends all watches as a server does at their timeout. */
  endWatches(): void;
  /** Sends half an event on all watches. */
  garbleWatches(): void;
  /** Forgets the history: watches and pages from before get 410. */
  expire(): void;
  /** No connection is answered any more, as if the server had been killed. Data stays. */
  stop(): Promise<void>;
  /** Listens again on the same port. */
  start(): Promise<void>;
}

export interface DevApiserver {
  /** `http://127.0.0.1:PORT`. */
  readonly url: string;
  readonly port: number;
  readonly faults: Faults;
  /** Watches that are open. */
  readonly watches: number;
  /** One call over HTTP; throws an Error with the status' message. A fault counts for it too. */
  call<T>(method: string, path: string, body?: unknown, contentType?: string): Promise<T>;
  close(): Promise<void>;
}

export interface DevApiserverOptions {
  /** Default 0: chosen by the kernel. */
  readonly port?: number;
  /** Changes that are remembered for watches. Default 5,000. */
  readonly historyLimit?: number;
  /** Milliseconds between bookmarks of a watch that allows them. Default 5,000. */
  readonly bookmarkMs?: number;
  /** Told of every request before it is answered. */
  readonly onRequest?: (method: string, path: string) => void;
  /** What the ConfigMap kube-root-ca.crt of each namespace holds. */
  readonly authority?: string;
  /** Milliseconds since the epoch. Default: the system's clock. */
  readonly now?: () => number;
}

interface Fault {
  left: number;
  readonly kind: 'fail' | 'garbage' | 'break';
  readonly matches: RequestMatcher;
  readonly answer?: { status: number; retryAfterSeconds?: number };
}

/** Starts one with the namespaces default, kube-system, kube-public and kube-node-lease. */
export async function startDevApiserver(options: DevApiserverOptions = {}): Promise<DevApiserver> {
  const store = makeStore(options.historyLimit ?? 5000);
  const now = options.now ?? Date.now;
  const authority = options.authority ?? '-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n';
  const objects = makeObjects(store, now, authority);
  const watches = makeWatches(store, options.bookmarkMs ?? 5000);
  const answers = makeAnswers(store, objects, watches);
  const pending: Fault[] = [];

  for (const name of ['default', 'kube-system', 'kube-public', 'kube-node-lease']) {
    objects.create(targetOf('/api/v1/namespaces')!, {
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: { name },
    });
  }
  objects.create(targetOf('/api/v1/namespaces/default/services')!, {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { name: 'kubernetes', labels: { component: 'apiserver', provider: 'kubernetes' } },
    spec: { ports: [{ name: 'https', protocol: 'TCP', port: 443, targetPort: 6443 }] },
  });

  const takeFault = (method: string, path: string): Fault | undefined => {
    const fault = pending.find(({ left, matches }) => left > 0 && matches(method, path));
    if (fault !== undefined) fault.left--;
    return fault;
  };

  const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const path = request.url ?? '/';
    const method = request.method ?? 'GET';
    options.onRequest?.(method, path);
    if (faults.delayMs > 0) await new Promise((resolve) => setTimeout(resolve, faults.delayMs));
    const fault = takeFault(method, path);
    if (fault?.kind === 'fail') {
      const { status, retryAfterSeconds } = fault.answer!;
      request.resume();
      if (retryAfterSeconds !== undefined) response.setHeader('retry-after', String(retryAfterSeconds));
      const reason = status === 429 ? 'TooManyRequests' : 'InternalError';
      return reply(response, status, new StatusError(status, reason, 'a fault that the test asked for'));
    }
    let result: Answer | undefined;
    try {
      result = await answers.answer(request, response, new URL(`http://localhost${path}`));
    } catch (error) {
      const status =
        error instanceof StatusError ? error : new StatusError(500, 'InternalError', String(error));
      result = { code: status.code, body: status };
    }
    if (fault?.kind === 'break') response.destroy();
    else if (fault?.kind === 'garbage') response.end('{"kind":"Pod","metadata":{"name":"\u0000');
    else if (result !== undefined) reply(response, result.code, result.body);
  };

  let server: Server;
  let port = options.port ?? 0;
  const listen = async () => {
    server = createServer((request, response) => void handle(request, response));
    server.listen(port, '127.0.0.1');
    await once(server, 'listening');
    port = (server.address() as AddressInfo).port;
  };
  const stop = async () => {
    if (!server.listening) return;
    const closed = once(server, 'close');
    server.close();
    server.closeAllConnections();
    await closed;
  };
  const always: RequestMatcher = () => true;
  const faults: Faults = {
    delayMs: 0,
    failNext: (left, given, matches = always) =>
      void pending.push({ left, kind: 'fail', matches, answer: given }),
    garbageNext: (left, matches = always) => void pending.push({ left, kind: 'garbage', matches }),
    breakNext: (left, matches = always) => void pending.push({ left, kind: 'break', matches }),
    breakWatches: () => watches.each((response) => response.destroy()),
    endWatches: () => watches.each((response) => response.end()),
    garbleWatches: () => watches.each((response) => response.end('{"type":"MODIFIED","object":{"kind":')),
    expire() {
      store.compact();
      answers.forgetPages();
    },
    stop,
    start: listen,
  };
  await listen();
  const url = `http://127.0.0.1:${port}`;
  return {
    url,
    port,
    faults,
    get watches() {
      return watches.count;
    },
    async call<T>(method: string, path: string, body?: unknown, contentType = 'application/json') {
      const response = await fetch(`${url}${path}`, {
        method,
        headers: { 'content-type': contentType },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
      const text = await response.text();
      if (response.ok) return JSON.parse(text) as T;
      throw new Error(
        `${method} ${path}: ${response.status} ${(JSON.parse(text) as { message?: string }).message}`,
      );
    },
    close: stop,
  };
}

function reply(response: ServerResponse, code: number, body: unknown): void {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  response.writeHead(code, { 'content-type': typeof body === 'string' ? 'text/plain' : 'application/json' });
  response.end(text);
}
