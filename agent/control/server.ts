/** The agent's control socket: the command line's door to the process that owns the state. See protocol.ts. */
import { chmod, lstat, mkdtemp, rename, rm } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import type { Clock } from '../../runtime/host/clock.ts';
import { describe, isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { Handler, Handlers } from './images.ts';
import { encodeError, maxRequestBytes, socketName, type Verb } from './protocol.ts';
import { thinStream } from './stream.ts';

export interface ControlServerOptions {
  readonly runDir: string;
  readonly handlers: Partial<Handlers>;
  readonly log: Logger;
  readonly clock: Clock;
}

export interface ControlServer {
  /** The socket's path. */
  readonly path: string;
  /** Aborts what is being done, tells the callers, and removes the socket. */
  close(): Promise<void>;
}

/**
 * Listens on `<runDir>/control.sock`, mode 0600 from its first moment on. A socket that a killed agent left is replaced.
 * Throws UNAVAILABLE where another agent answers on it or the path cannot be a socket.
 */
export async function startControl(options: ControlServerOptions): Promise<ControlServer> {
  const { runDir, handlers, log, clock } = options;
  const path = join(runDir, socketName);
  if (await answers(path)) {
    throw new KeelsonError('UNAVAILABLE', `another agent listens on ${path}`, {
      hint: 'stop it first, or give this one its own runDir and stateDir',
    });
  }
  const stopping = new AbortController();
  const running = new Set<Promise<void>>();
  const { createServer } = await import('node:http');
  const server = createServer({ keepAliveTimeout: 1000 }, (request, response) => {
    const work = serve(handlers, request, response, { stop: stopping.signal, log, clock });
    running.add(work);
    void work.finally(() => running.delete(work));
  });
  server.on('clientError', (_error, socket) => socket.destroy());
  const made = await bind(server, runDir, path);

  return {
    path,
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      stopping.abort(new KeelsonError('ABORTED', 'the agent is stopping'));
      await Promise.allSettled(running);
      server.closeAllConnections();
      await closed;
      // A newer agent may have put its own in place.
      const there = await lstat(path).catch(() => undefined);
      if (there?.ino === made.ino && there.dev === made.dev) await rm(path, { force: true });
    },
  };
}

/** Whether anybody accepts connections on `path`. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(path, () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/**
 * A socket gets its mode from the umask, which the whole process shares; so it is made in a folder that only root may
 * enter and renamed when its mode is right. The rename also replaces a stale one in one step.
 */
async function bind(server: import('node:http').Server, runDir: string, path: string) {
  const folder = await mkdtemp(join(runDir, '.c-'));
  const first = join(folder, 's');
  try {
    await new Promise<void>((resolve, reject) => {
      // Kept: an accept that fails later (no file descriptors left) must not end the process.
      server.on('error', reject);
      server.listen({ path: first }, () => resolve());
    });
    await chmod(first, 0o600);
    await rename(first, path);
    return await lstat(path);
  } catch (error) {
    server.close();
    throw new KeelsonError('UNAVAILABLE', `cannot listen on ${path}: ${(error as Error).message}`, {
      cause: error,
      hint: 'runDir must be on a local file system, in a path of less than 90 characters',
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Bytes of events that a caller may leave unread. */
const mostUnread = 8 << 20;

interface Context {
  readonly stop: AbortSignal;
  readonly log: Logger;
  readonly clock: Clock;
}

/** Answers one request. Never rejects. */
async function serve(
  handlers: Partial<Handlers>,
  request: IncomingMessage,
  response: ServerResponse,
  { stop, log, clock }: Context,
): Promise<void> {
  const gone = new AbortController();
  response.once('close', () => gone.abort(new KeelsonError('ABORTED', 'the caller has gone')));
  response.on('error', () => {}); // It has gone; `close` says so too.
  const signal = AbortSignal.any([stop, gone.signal]);
  const started = clock.monotonic();
  let verb = '';
  const line = (status: number, content: object): boolean => {
    if (gone.signal.aborted) return true;
    if (!response.headersSent) response.writeHead(status, { 'content-type': 'application/x-ndjson' });
    return response.write(`${JSON.stringify(content)}\n`);
  };
  try {
    verb = verbOf(request, handlers);
    const body = await bodyOf(request, signal);
    const stream = thinStream(clock, (progress) => line(200, { progress }));
    response.on('drain', stream.drained);
    const handler = handlers[verb as Verb] as Handler<Verb>;
    const all = (progress: unknown) => {
      if (response.writableLength > mostUnread) {
        gone.abort(new KeelsonError('UNAVAILABLE', 'the caller does not keep up'));
        response.destroy();
      } else line(200, { progress });
    };
    // Of numbers the newest is enough; each event counts.
    const onProgress = verb === 'runtime/events' ? all : stream.tell;
    const result = await handler(body, { signal, onProgress });
    stream.end();
    line(200, { result });
    log.debug({ verb, ms: Math.round(clock.monotonic() - started) }, 'done for the command line');
  } catch (error) {
    if (!isError(error)) log.error({ err: error, verb }, 'a request of the command line failed');
    else
      log.debug({ verb, code: error.code, message: describe(error) }, 'a request of the command line failed');
    line(statusOf(error), { error: encodeError(error) });
  }
  // What was not read of a request that was too long is not waited for.
  if (!request.complete) response.once('finish', () => request.destroy());
  response.end();
}

function verbOf(request: IncomingMessage, handlers: Partial<Handlers>): Verb {
  const path = request.url ?? '';
  const verb = path.startsWith('/v1/') ? path.slice(4) : '';
  if (!Object.hasOwn(handlers, verb)) {
    const shown = JSON.stringify(path.slice(0, 100));
    throw new KeelsonError('NOT_FOUND', `the agent knows no verb ${shown}`, {
      hint: 'it may be of another version than the command line: restart it',
      details: { status: 404 },
    });
  }
  if (request.method !== 'POST') {
    throw new KeelsonError('INVALID_ARGUMENT', `${verb} is a POST`, { details: { status: 405 } });
  }
  return verb as Verb;
}

async function bodyOf(
  request: IncomingMessage,
  signal: AbortSignal,
): Promise<Readonly<Record<string, unknown>>> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      bytes += chunk.length;
      if (bytes > maxRequestBytes) {
        throw new KeelsonError('INVALID_ARGUMENT', `a request has at most ${maxRequestBytes} bytes`, {
          details: { status: 413 },
        });
      }
      chunks.push(chunk);
    }
  } catch (error) {
    if (isError(error)) throw error;
    throw new KeelsonError('ABORTED', 'the request ended in its middle', { cause: signal.reason ?? error });
  }
  let body: unknown;
  try {
    body = JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch {
    // The parser's own words would quote the text, and with it a password.
    throw new KeelsonError('INVALID_ARGUMENT', 'the request is not JSON');
  }
  if (typeof body === 'object' && body !== null && !Array.isArray(body))
    return body as Record<string, unknown>;
  throw new KeelsonError('INVALID_ARGUMENT', 'the request is not a JSON object');
}

function statusOf(error: unknown): number {
  if (!isError(error)) return 500;
  const given = error.details['status'];
  if (typeof given === 'number' && given >= 400 && given < 600) return given;
  switch (error.code) {
    case 'INVALID_ARGUMENT':
    case 'IMAGE_NAME_INVALID':
      return 400;
    case 'NOT_FOUND':
    case 'IMAGE_NOT_PRESENT':
    case 'IMAGE_NOT_FOUND':
      return 404;
    case 'UNIMPLEMENTED':
      return 501;
    default:
      return 500;
  }
}
