/** A server whose every answer a test decides: for the faults that a real apiserver does not give on demand. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { TestContext } from 'node:test';
import { type ClientOptions, type ClusterClient, makeClient } from '../../../agent/apiserver/client.ts';
import { plainAccess } from '../../../agent/apiserver/kubeconfig.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { makeLogger } from '../../../runtime/host/log.ts';

export interface Asked {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: IncomingMessage['headers'];
  readonly body: string;
}

export type Handler = (asked: Asked, response: ServerResponse) => void;

export interface Fake {
  readonly url: string;
  readonly asked: Asked[];
  client(options?: Partial<ClientOptions>): ClusterClient;
}

export const silent = makeLogger('silent');

/** Everything that it starts ends with the test. */
export async function startFake(t: TestContext, handler: Handler): Promise<Fake> {
  const asked: Asked[] = [];
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://x');
    const one: Asked = {
      method: request.method ?? '',
      path: pathname,
      query: searchParams,
      headers: request.headers,
      body: Buffer.concat(chunks).toString('utf8'),
    };
    asked.push(one);
    handler(one, response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const clients: ClusterClient[] = [];
  t.after(async () => {
    await Promise.all(clients.map((client) => client.close()));
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return {
    url,
    asked,
    client(options = {}) {
      const client = makeClient({
        access: plainAccess(url),
        clock: systemClock,
        log: silent,
        userAgent: 'keelson-test',
        ...options,
      });
      clients.push(client);
      return client;
    },
  };
}

export function json(
  response: ServerResponse,
  status: number,
  body: unknown,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(JSON.stringify(body));
}

export function statusBody(code: number, reason: string, message = reason): object {
  return { kind: 'Status', apiVersion: 'v1', status: 'Failure', code, reason, message };
}

/** Resolves as soon as `check` holds; looks after every turn of the event loop and timers, without a deadline of its own. */
export async function until(check: () => boolean): Promise<void> {
  while (!check()) await new Promise((resolve) => setTimeout(resolve, 2));
}

/** mulberry32: the same numbers each run. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Runs timers at once, in order, and keeps the time that they would have taken. */
export function fastClock(realFromMs = 30_001): import('../../../runtime/host/clock.ts').Clock & {
  readonly waits: number[];
  advance(ms: number): void;
} {
  let elapsed = 0;
  const waits: number[] = [];
  return {
    waits,
    advance(ms) {
      elapsed += ms;
    },
    now: () => 1_700_000_000_000 + elapsed,
    monotonic: () => elapsed,
    after(ms, callback) {
      // Deadlines and silence limits must not fire only because time is quick here.
      if (ms >= realFromMs) {
        const far = setTimeout(callback, ms);
        return () => clearTimeout(far);
      }
      waits.push(ms);
      const timer = setTimeout(() => {
        elapsed += ms;
        callback();
      }, 1);
      return () => clearTimeout(timer);
    },
  };
}
