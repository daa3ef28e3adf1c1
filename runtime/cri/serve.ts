/**
 * The CRI v1 on a unix socket, for crictl and for kubelets of others. Listening costs next to nothing; what speaks gRPC is
 * loaded when somebody connects.
 */
import { chmod, lstat, mkdtemp, rename, rm } from 'node:fs/promises';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { dirname, join } from 'node:path';
import type { Image, ImageService } from '../api.ts';
import type { Clock } from '../host/clock.ts';
import { describe, errnoOf, KeelsonError } from '../host/errors.ts';
import { ensureFolder } from '../host/files.ts';
import type { Logger } from '../host/log.ts';
import type { ServedRuntime } from './runtime_service.ts';

export interface CriOptions {
  /** Absolute path; at most 100 bytes, as the kernel wants it. */
  readonly socket: string;
  readonly runtime: ServedRuntime;
  readonly images: ImageService;
  readonly log: Logger;
  readonly clock: Clock;
  /** Where exec, attach and port-forward are served. Default: a free port on 127.0.0.1, idle for 4 h at most. */
  readonly streaming?: { readonly address?: string; readonly port?: number; readonly idleMs?: number };
  /** Takes the pod CIDRs of UpdateRuntimeConfig, as a list with commas. Default: nobody. */
  podCidrs?(cidrs: string): Promise<void>;
  /** What the verbose status of the runtime tells besides. */
  info?(): Promise<Readonly<Record<string, unknown>>>;
  /** What the verbose status of an image tells. */
  describeImage?(image: Image): Readonly<Record<string, unknown>>;
}

export interface CriServer {
  readonly socket: string;
  /** Breaks off the calls that are under way and removes the socket. */
  close(): Promise<void>;
}

/**
 * Listens on `socket`, mode 0600 from its first moment on. A socket that a killed process left is replaced. Throws
 * UNAVAILABLE where another process answers on it or the path cannot be a socket.
 */
export async function serveCri(options: CriOptions): Promise<CriServer> {
  const { socket: path, log } = options;
  if (Buffer.byteLength(path) > 100) {
    throw new KeelsonError('UNAVAILABLE', `${path} is too long for a socket`, {
      hint: 'set keelson.criSocket to a path of at most 100 bytes',
    });
  }
  await ensureFolder(dirname(path));
  if (await answers(path)) {
    throw new KeelsonError('UNAVAILABLE', `another process listens on ${path}`, {
      hint: 'stop it first, or set keelson.criSocket',
    });
  }
  let edge: Promise<Edge> | undefined;
  const connections = new Set<Socket>();
  const server = createServer({ pauseOnConnect: true }, (connection) => {
    connections.add(connection);
    connection.on('close', () => connections.delete(connection));
    connection.on('error', () => {}); // The caller has gone.
    edge ??= loadEdge(options);
    edge.then(
      ({ serve }) => {
        if (!connection.destroyed) serve(connection);
        connection.resume();
      },
      (error: unknown) => {
        log.error({ err: error }, 'the CRI cannot be served');
        connection.destroy();
      },
    );
  });
  const made = await bind(server, path);
  log.info({ socket: path }, 'serving the CRI');
  return {
    socket: path,
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      await (await edge?.catch(() => undefined))?.close();
      for (const connection of connections) connection.destroy();
      await closed;
      // A newer process may have put its own in place.
      const there = await lstat(path).catch(() => undefined);
      if (there?.ino === made.ino && there.dev === made.dev) await rm(path, { force: true });
    },
  };
}

interface Edge {
  serve(connection: Socket): void;
  close(): Promise<void>;
}

/** What is loaded with the first connection. */
export function loadModules() {
  return Promise.all([
    import('./server.ts'),
    import('./runtime_service.ts'),
    import('./image_service.ts'),
    import('../streaming/server.ts'),
  ]);
}

async function loadEdge(options: CriOptions): Promise<Edge> {
  const { runtime, images, clock, log } = options;
  const [{ makeGrpcEdge }, { makeRuntimeHandlers }, { makeImageHandlers }, { makeStreaming }] =
    await loadModules();
  const { address, port, idleMs } = options.streaming ?? {};
  // It listens when the first URL is asked for.
  const streaming = makeStreaming({ runtime, clock, log, address, port, idleMs });
  const info = options.info ?? (async () => ({}));
  const handlers = {
    ...makeRuntimeHandlers({ runtime, streaming, clock, info, podCidrs: options.podCidrs }),
    ...makeImageHandlers({ images, clock, describe: options.describeImage }),
  };
  const { serve, close } = makeGrpcEdge(handlers, log);
  return {
    serve,
    async close() {
      close();
      await streaming.close();
    },
  };
}

/** Whether anybody accepts connections on `path`. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const connection = createConnection(path, () => {
      connection.destroy();
      resolve(true);
    });
    connection.once('error', () => resolve(false));
  });
}

/**
 * A socket gets its mode from the umask, which the whole process shares; so it is made in a folder that only root may
 * enter and renamed when its mode is right. The rename also replaces a stale one in one step.
 */
async function bind(server: Server, path: string) {
  const folder = await mkdtemp(join(dirname(path), '.cri-'));
  try {
    const hidden = join(folder, 's');
    await new Promise<void>((resolve, reject) => {
      // Kept: an accept that fails later (no file descriptors left) must not end the process.
      server.on('error', reject);
      server.listen(hidden, () => resolve());
    });
    await chmod(hidden, 0o600);
    await rename(hidden, path);
    return await lstat(path);
  } catch (error) {
    server.close();
    throw new KeelsonError('UNAVAILABLE', `cannot listen on ${path}: ${errnoOf(error) ?? describe(error)}`, {
      cause: error,
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
