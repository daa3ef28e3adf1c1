/**
 * The HTTP clients of this room: one for all endpoints with the same settings (certificates, time to connect, proxy),
 * since each keeps its own connections.
 */
import { createHash, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { type HttpClient, makeHttpClient, type TlsOptions } from '../../runtime/host/http.ts';
import type { HostSettings } from './hosts_toml.ts';

/** The settings of a connection; those with the same `key` are the same. */
export interface ClientSettings {
  readonly key: string;
  readonly tls: TlsOptions;
  /** Milliseconds; 0 for no limit. */
  readonly connectTimeoutMs: number;
  readonly proxy: URL | undefined;
}

export interface Clients {
  /** The client is the node's: nobody closes it but `close`. */
  client(settings: ClientSettings): HttpClient;
  /** Breaks what is in flight and closes all connections. */
  close(): Promise<void>;
}

/** `proxyFor` is what the environment says; an endpoint's own proxy goes before it. */
export function makeClients(proxyFor: (url: URL) => URL | undefined): Clients {
  const clients = new Map<string, HttpClient>();
  return {
    client(settings) {
      const { key, tls, connectTimeoutMs, proxy } = settings;
      let found = clients.get(key);
      if (found === undefined) {
        // One whose settings are gone from the files has no connections any more soon: it costs next to nothing.
        found = makeHttpClient({
          tls,
          connectTimeoutMs,
          proxyFor: proxy === undefined ? proxyFor : () => proxy,
        });
        clients.set(key, found);
      }
      return found;
    },
    async close() {
      await Promise.all([...clients.values()].map((client) => client.destroy()));
    },
  };
}

export function clientSettings(
  tls: TlsOptions,
  connectTimeoutMs: number,
  proxy: URL | undefined,
): ClientSettings {
  const hash = createHash('sha256');
  for (const part of [...(tls.extraCa ?? []), ...(tls.pairs ?? []).flatMap(({ cert, key }) => [cert, key])]) {
    hash.update(`${part.length} `).update(part);
  }
  const key = [hash.digest('hex'), tls.insecure === true, connectTimeoutMs, proxy?.href ?? ''].join(' ');
  return { key, tls, connectTimeoutMs, proxy };
}

/**
 * Reads what the settings name, and makes sure that it is what it should be, so that the error can name the file.
 * Throws CONFIG_INVALID; `where` names the file with the settings and the endpoint.
 */
export async function readTls(settings: HostSettings, where: string): Promise<TlsOptions> {
  const read = async (path: string, field: string) => {
    try {
      return await readFile(path);
    } catch (error) {
      throw unreadable(`${where}: ${field}: ${path}`, error);
    }
  };
  const extraCa = await Promise.all(
    settings.ca.map(async (path) => {
      const pem = await read(path, 'ca');
      try {
        new X509Certificate(pem);
      } catch (cause) {
        throw new KeelsonError('CONFIG_INVALID', `${where}: ca: ${path} is not a certificate in PEM`, {
          cause,
        });
      }
      return pem;
    }),
  );
  const { createSecureContext } = await import('node:tls'); // Only where a registry needs it.
  const pairs = await Promise.all(
    settings.client.map(async (pair) => {
      const cert = await read(pair.cert, 'client');
      const key = pair.key === undefined ? cert : await read(pair.key, 'client');
      try {
        createSecureContext({ cert, key });
      } catch (cause) {
        throw new KeelsonError(
          'CONFIG_INVALID',
          `${where}: client: ${pair.cert} and ${pair.key ?? 'the same file'} are not a certificate and its key in PEM`,
          { cause },
        );
      }
      return { cert, key };
    }),
  );
  return {
    ...(extraCa.length > 0 && { extraCa }),
    ...(pairs.length > 0 && { pairs }),
    ...(settings.skipVerify && { insecure: true }),
  };
}

/** A file of the configuration of a registry that is there, or is named, but cannot be read. */
export function unreadable(what: string, cause: unknown): KeelsonError {
  return new KeelsonError('CONFIG_INVALID', `${what} cannot be read (${errnoOf(cause) ?? 'unknown error'})`, {
    cause,
    hint: 'images of this registry cannot be pulled until it can be read',
  });
}
