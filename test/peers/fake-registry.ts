/** A registry inside the test process, for what a real one does not do: lie, break off, refuse, count. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createTlsServer, type ServerOptions } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { Blob, BuiltImage } from './image.ts';

export interface SeenRequest {
  readonly method: string;
  readonly path: string;
  readonly authorization: string | undefined;
  readonly headers: IncomingMessage['headers'];
}

export interface FakeRegistry {
  readonly host: string;
  readonly seen: readonly SeenRequest[];
  /** How often a path that ends so was asked for. */
  count(ending: string): number;
  /** Serves a blob at /v2/<any>/blobs/<digest>, with other bytes than its own where given. */
  blob(blob: Blob, bytes?: Buffer): void;
  /** Serves a manifest at /v2/<any>/manifests/<name> and by its digest. */
  manifest(name: string, blob: Blob): void;
  /** Serves a whole image as `name`. */
  image(name: string, image: BuiltImage): void;
  /** Asked first; returns true where it has answered itself. */
  intercept: (request: IncomingMessage, response: ServerResponse) => boolean;
  close(): Promise<void>;
}

/** With `tls` it speaks https. */
export async function startFakeRegistry(
  t: { after(fn: () => Promise<void>): void },
  tls?: ServerOptions,
): Promise<FakeRegistry> {
  const blobs = new Map<string, Buffer>();
  const manifests = new Map<string, Blob>();
  const seen: SeenRequest[] = [];
  const answer = (request: IncomingMessage, response: ServerResponse) => {
    const url = request.url ?? '';
    const { headers } = request;
    seen.push({ method: request.method ?? '', path: url, authorization: headers.authorization, headers });
    if (registry.intercept(request, response)) return;
    const path = url.replace(/\?.*/, '');
    const name = path.slice(path.lastIndexOf('/') + 1);
    const manifest = path.includes('/manifests/') ? manifests.get(name) : undefined;
    const blob = path.includes('/blobs/') ? blobs.get(name) : undefined;
    if (manifest !== undefined) {
      response.writeHead(200, { 'content-type': manifest.mediaType }).end(manifest.data);
    } else if (blob !== undefined) {
      response.writeHead(200, { 'content-type': 'application/octet-stream' }).end(blob);
    } else {
      response.writeHead(404, { 'content-type': 'application/json' });
      response.end('{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}');
    }
  };
  const server = (tls === undefined ? createServer(answer) : createTlsServer(tls, answer)).listen(
    0,
    '127.0.0.1',
  );
  await once(server, 'listening');
  const registry: FakeRegistry = {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    seen,
    count: (ending) => seen.filter(({ path }) => path.endsWith(ending)).length,
    blob: (blob, bytes = blob.data) => void blobs.set(blob.digest, bytes),
    manifest(name, blob) {
      manifests.set(name, blob);
      manifests.set(blob.digest, blob);
    },
    image(name, image) {
      registry.manifest(name, image.manifest);
      for (const blob of [image.config, ...image.layers]) registry.blob(blob);
    },
    intercept: () => false,
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
  t.after(registry.close);
  return registry;
}
