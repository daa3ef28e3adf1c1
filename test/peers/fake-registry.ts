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
  readonly range: string | undefined;
}

/** What happens to a connection after `bytes` of the answer: it breaks, or nothing more comes. */
export interface Fault {
  readonly bytes: number;
  readonly how: 'break' | 'hang';
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
  /** Answers requests for a range of a blob with that range. Default true. */
  ranges: boolean;
  /** For the next requests of this blob, in turn. */
  fail(blob: Blob, ...faults: readonly Fault[]): void;
  /** Bytes of this blob that were sent in all. */
  served(blob: Blob): number;
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
  const faults = new Map<string, Fault[]>();
  const served = new Map<string, number>();

  const serveBlob = (digest: string, blob: Buffer, request: IncomingMessage, response: ServerResponse) => {
    const asked = /^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1];
    const from = registry.ranges ? Number(asked ?? 0) : 0;
    if (from > 0 && from >= blob.length) {
      response.writeHead(416, { 'content-range': `bytes */${blob.length}` }).end();
      return;
    }
    const fault = faults.get(digest)?.shift();
    const body = blob.subarray(from, fault === undefined ? undefined : from + fault.bytes);
    const headers = { 'content-type': 'application/octet-stream', 'content-length': blob.length - from };
    if (from === 0) response.writeHead(200, headers);
    else
      response.writeHead(206, {
        ...headers,
        'content-range': `bytes ${from}-${blob.length - 1}/${blob.length}`,
      });
    served.set(digest, (served.get(digest) ?? 0) + body.length);
    if (fault === undefined) response.end(body);
    else response.write(body, () => fault.how === 'break' && response.destroy());
  };
  const answer = (request: IncomingMessage, response: ServerResponse) => {
    const url = request.url ?? '';
    const { authorization, range } = request.headers;
    seen.push({ method: request.method ?? '', path: url, authorization, range, headers: request.headers });
    if (registry.intercept(request, response)) return;
    const path = url.replace(/\?.*/, '');
    const name = path.slice(path.lastIndexOf('/') + 1);
    const manifest = path.includes('/manifests/') ? manifests.get(name) : undefined;
    const blob = path.includes('/blobs/') ? blobs.get(name) : undefined;
    if (manifest !== undefined) {
      response.writeHead(200, { 'content-type': manifest.mediaType }).end(manifest.data);
    } else if (blob !== undefined) {
      serveBlob(name, blob, request, response);
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
    ranges: true,
    fail: ({ digest }, ...more) => void faults.set(digest, [...(faults.get(digest) ?? []), ...more]),
    served: ({ digest }) => served.get(digest) ?? 0,
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
