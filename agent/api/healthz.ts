/** Is the node's agent well? Plain HTTP on a loopback port, for watchdogs on the machine; the same answer as over TLS. */
import type { ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { KeelsonError } from '../../runtime/host/errors.ts';

export interface Health {
  readonly ok: boolean;
  readonly message: string;
}

/** Answers `/healthz` (all checks) and `/healthz/<check>`; false for a check that does not exist. */
export function answerHealth(check: string, health: Health, response: ServerResponse): boolean {
  if (!['', 'ping', 'log', 'syncloop'].includes(check)) return false;
  // ping only says that somebody answers.
  const well = check === 'ping' || check === 'log' || health.ok;
  response.writeHead(well ? 200 : 500, {
    'content-type': 'text/plain; charset=utf-8',
    'x-content-type-options': 'nosniff',
  });
  response.end(well ? 'ok' : `healthz check failed: ${health.message}\n`);
  return true;
}

/** Starts the health server. Port 0 lets the kernel choose. Throws UNAVAILABLE where the port cannot be had. */
export async function startHealthz(options: {
  readonly address: string;
  readonly port: number;
  readonly healthy: () => Health;
}): Promise<{ readonly port: number; close(): Promise<void> }> {
  const { createServer } = await import('node:http');
  const server = createServer((request, response) => {
    request.resume();
    const path = (request.url ?? '').split('?')[0]!;
    const check = /^\/healthz(?:\/([a-z]+))?\/?$/.exec(path);
    if (request.method !== 'GET' && request.method !== 'HEAD') response.writeHead(405).end();
    else if (check === null || !answerHealth(check[1] ?? '', options.healthy(), response)) {
      response.writeHead(404).end('404 page not found\n');
    }
  });
  await listen(server, options.address, options.port, 'the health check');
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** Listens. Throws UNAVAILABLE that says what the port is for. */
export function listen(
  server: import('node:net').Server,
  address: string,
  port: number,
  what: string,
): Promise<void> {
  return new Promise((resolve, reject) => {
    // Kept: an accept that fails later (no file descriptors left) must not end the process.
    server.on('error', (error) =>
      reject(
        new KeelsonError(
          'UNAVAILABLE',
          `cannot listen on ${address} port ${port} for ${what}: ${error.message}`,
          {
            cause: error,
            hint: 'another program (a kubelet?) may use the port; stop it or choose another one in the configuration',
          },
        ),
      ),
    );
    server.listen({ host: address, port }, () => resolve());
  });
}
