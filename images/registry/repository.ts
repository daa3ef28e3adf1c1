/**
 * A repository as a client sees it (OCI distribution-spec 1.1, Docker registry v2): manifests, small blobs and layers,
 * from the mirrors and the registry in the order of the node's configuration. What one endpoint does not have, refuses
 * or lies about is asked of the next, and the error names them all.
 */
import { createHash } from 'node:crypto';
import type { Readable } from 'node:stream';
import type { AuthConfig } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { describe, isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { HttpResponse } from '../../runtime/host/http.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { type Descriptor, largestManifest, manifestTypes, parseDocument } from '../manifest.ts';
import { credentialsFor, mirrorCredentials } from './auth.ts';
import { readBody } from './body.ts';
import type { Clients } from './clients.ts';
import { type Connection, connect, headerText, unavailable } from './connection.ts';
import { combine, type Failure, isEndpointsOwn } from './failures.ts';
import { foreignBlob } from './foreign.ts';
import type { Health } from './health.ts';
import type { Hosts } from './hosts.ts';
import { withRetries } from './retry.ts';

export { unavailable } from './connection.ts';
export { withRetries } from './retry.ts';

/** What all pulls of the node share. */
export interface RegistryOptions {
  readonly hosts: Hosts;
  readonly clients: Clients;
  readonly health: Health;
  readonly clock: Clock;
  readonly log: Logger;
  /** The node's own credentials for a mirror at `host`, besides those of the pull that name it. Default: none. */
  readonly mirrorAuths?: (host: string) => Promise<readonly AuthConfig[]>;
}

/** One repository for one pull: what is learnt about authentication and about liars is kept here. */
export interface Repository extends LayerSource {
  /**
   * The manifest or index that `reference` (a tag or digest) names, verified where it is a digest.
   * Throws IMAGE_NOT_FOUND, IMAGE_PULL_DENIED, IMAGE_DIGEST_MISMATCH, IMAGE_INVALID, REGISTRY_UNAVAILABLE, ABORTED.
   */
  manifest(
    reference: string,
    signal?: AbortSignal,
  ): Promise<{ bytes: Buffer; mediaType: string | undefined; digest: string }>;
  /** A small blob, whole and verified. Throws as `manifest`. */
  document(blob: Descriptor, signal?: AbortSignal): Promise<Buffer>;
  /**
   * The bytes that `blob` gave last were not the blob's, for the reason in `error`: who sent them is not asked for it
   * again. Throws when nobody else is left to ask: `error`, or one that names all endpoints.
   */
  distrust(blob: Descriptor, error: KeelsonError): void;
}

/** Where the compressed layers of an image come from: a repository of a registry, or an archive. */
export interface LayerSource {
  /** For messages: `docker.io/library/busybox`, or the archive's path. */
  readonly name: string;
  /**
   * The bytes of a blob from `offset` on, neither verified nor bounded; `offset` of the answer is where they begin in
   * truth, which may be 0. The body must be read or destroyed. Who asks again was not served well: then another
   * endpoint is the first to be asked. Throws IMAGE_NOT_FOUND, IMAGE_PULL_DENIED, REGISTRY_UNAVAILABLE, ABORTED.
   */
  blob(
    blob: Descriptor,
    offset: number,
    signal?: AbortSignal,
  ): Promise<{ readonly body: AsyncIterable<Buffer>; readonly offset: number }>;
}

/** What is known of one blob in one pull. */
interface BlobHistory {
  last: Connection | undefined;
  /** How often an endpoint has begun to send it. */
  readonly answers: Map<Connection, number>;
  readonly lied: Map<Connection, KeelsonError>;
}

export function digestOf(bytes: Buffer, algorithm: string): string {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}`;
}

/** Throws CONFIG_INVALID where the configuration of this registry cannot be read or leaves nobody to ask. */
export async function openRepository(
  options: RegistryOptions,
  domain: string,
  path: string,
  auths: readonly AuthConfig[],
): Promise<Repository> {
  const { hosts, clients, health, clock, log } = options;
  const name = `${domain}/${path}`;
  const connections = await Promise.all(
    (await hosts.endpoints(domain)).map(async (endpoint) =>
      connect({
        endpoint,
        http: clients.client(endpoint.client),
        clock,
        health,
        domain,
        repository: path,
        credentials: endpoint.isRegistry
          ? credentialsFor(auths, domain)
          : [
              ...mirrorCredentials(auths, endpoint.host),
              ...((await options.mirrorAuths?.(endpoint.host)) ?? []),
            ],
      }),
    ),
  );
  const [pullers, resolvers] = [
    connections.filter(({ endpoint }) => endpoint.canPull),
    connections.filter(({ endpoint }) => endpoint.canResolve),
  ];
  const blobs = new Map<string, BlobHistory>();
  const historyOf = (digest: string): BlobHistory => {
    const found = blobs.get(digest) ?? { last: undefined, answers: new Map(), lied: new Map() };
    blobs.set(digest, found);
    return found;
  };

  /** What `ask` gets from the first of `candidates` that has it; else one error for all, `before` included. */
  const askEach = async <T>(
    candidates: readonly Connection[],
    what: string,
    ask: (connection: Connection) => Promise<T>,
    before: readonly Failure[] = [],
  ): Promise<T> => {
    const failures = [...before];
    const isDead = ({ endpoint }: Connection) => health.deadBecause(endpoint.name);
    const someAlive = candidates.some((connection) => isDead(connection) === undefined);
    for (const connection of candidates) {
      const { endpoint } = connection;
      // The registry itself is asked even so: no other has the last word on what exists.
      const dead = someAlive && !endpoint.isRegistry ? isDead(connection) : undefined;
      if (dead !== undefined) {
        const details = { answered: false };
        const error = new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: ${dead}`, { details });
        failures.push({ endpoint, error });
        continue;
      }
      try {
        return await ask(connection);
      } catch (error) {
        if (!isEndpointsOwn(error)) throw error;
        failures.push({ endpoint, error });
        if (connection !== candidates.at(-1)) {
          log.info({ endpoint: endpoint.name, why: describe(error) }, 'the next endpoint is asked');
        }
      }
    }
    if (failures.length > 0) throw combine(what, failures);
    throw new KeelsonError('CONFIG_INVALID', `${what}: the node's hosts.toml leaves no endpoint to ask`, {
      hint: 'one with the capabilities "pull" and, for tags, "resolve" is needed',
    });
  };

  const manifest: Repository['manifest'] = (reference, signal) => {
    const isDigest = reference.includes(':');
    const what = `manifest ${name}${isDigest ? '@' : ':'}${reference}`;
    const ask = async (connection: Connection) => {
      const accept = { accept: manifestTypes.join(', ') };
      const response = await connection.get(`manifests/${reference}`, accept, what, signal);
      const bytes = await readDocument(response, largestManifest, what, signal);
      const named = isDigest ? reference : headerText(response, 'docker-content-digest');
      const algorithm = named?.startsWith('sha512:') ? 'sha512' : 'sha256';
      const digest = digestOf(bytes, algorithm);
      if (named !== undefined && named !== digest) {
        throw new KeelsonError(
          'IMAGE_DIGEST_MISMATCH',
          `${what}: the registry sent ${digest} for ${named.slice(0, 200)}`,
        );
      }
      // The login page of a network on the way is no reason not to ask the next one.
      if (!isDigest) parseDocument(bytes, what);
      return { bytes, mediaType: headerText(response, 'content-type'), digest };
    };
    return withRetries(clock, signal, () => askEach(isDigest ? pullers : resolvers, what, ask));
  };

  const document: Repository['document'] = (blob, signal) => {
    const what = `blob ${name}@${blob.digest}`;
    const ask = async (connection: Connection) => {
      const response = await connection.get(`blobs/${blob.digest}`, { accept: '*/*' }, what, signal);
      const bytes = await readDocument(response, Math.min(blob.size, largestManifest), what, signal);
      const digest = digestOf(bytes, blob.digest.split(':')[0]!);
      if (digest !== blob.digest) {
        throw new KeelsonError('IMAGE_DIGEST_MISMATCH', `${what}: the registry sent ${digest}`);
      }
      return bytes;
    };
    return withRetries(clock, signal, () => askEach(pullers, what, ask));
  };

  const liars = ({ lied }: BlobHistory): Failure[] =>
    [...lied].map(([{ endpoint }, error]) => ({ endpoint, error }));

  return {
    name,
    manifest,
    document,
    async blob(blob, offset, signal) {
      const what = `layer ${name}@${blob.digest}`;
      const history = historyOf(blob.digest);
      const answers = (connection: Connection) => history.answers.get(connection) ?? 0;
      const candidates = pullers
        .filter((connection) => !history.lied.has(connection))
        .sort((a, b) => answers(a) - answers(b));
      const ask = async (connection: Connection) => {
        const found = await openBlob(connection, blob, offset, what, signal);
        history.last = connection;
        history.answers.set(connection, answers(connection) + 1);
        return found;
      };
      try {
        return await askEach(candidates, what, ask, liars(history));
      } catch (error) {
        // Not where only mirrors may be asked: the addresses lead out of the site.
        const mayLeave = connections.some(({ endpoint }) => endpoint.isRegistry);
        if (!mayLeave || blob.urls === undefined || !isEndpointsOwn(error)) throw error;
        history.last = undefined;
        return foreignBlob(clients, blob.urls, offset, error, what, signal);
      }
    },
    distrust(blob, error) {
      const history = historyOf(blob.digest);
      const { last } = history;
      // Nobody sent it: what is wrong was here, or at an address of its own.
      if (last === undefined) throw error;
      history.last = undefined;
      history.lied.set(last, error);
      log.warn({ endpoint: last.endpoint.name, why: describe(error) }, 'an endpoint sent a wrong layer');
      if (pullers.some((connection) => !history.lied.has(connection))) return;
      throw combine(`layer ${name}@${blob.digest}`, liars(history));
    },
  };
}

async function openBlob(
  connection: Connection,
  blob: Descriptor,
  offset: number,
  what: string,
  signal?: AbortSignal,
): Promise<{ body: Readable; offset: number }> {
  const path = `blobs/${blob.digest}`;
  const range: Record<string, string> = offset > 0 ? { range: `bytes=${offset}-` } : {};
  let response: HttpResponse;
  try {
    response = await connection.get(path, { accept: '*/*', ...range }, what, signal);
  } catch (error) {
    // Range not satisfiable: what is there is shorter, or not to be had in pieces.
    if (offset === 0 || !isError(error, 'REGISTRY_UNAVAILABLE') || error.details['status'] !== 416)
      throw error;
    return openBlob(connection, blob, 0, what, signal);
  }
  if (response.statusCode === 200) return { body: response.body, offset: 0 };
  const begins = /^bytes (\d+)-/.exec(headerText(response, 'content-range') ?? '')?.[1];
  if (Number(begins) === offset) return { body: response.body, offset };
  response.body.destroy();
  throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: the registry sent another range than asked for`);
}

async function readDocument(response: HttpResponse, limit: number, what: string, signal?: AbortSignal) {
  try {
    return await readBody(response.body, limit, what, signal);
  } catch (error) {
    throw unavailable(error, what);
  }
}
