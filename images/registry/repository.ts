/**
 * A registry as a client sees it (OCI distribution-spec 1.1, Docker registry v2): manifests, small blobs and layers
 * of one repository. Authenticates when asked to, follows redirects itself, tries transient failures again, and
 * never shows credentials to any host but the registry and the token service that it names.
 */
import { createHash } from 'node:crypto';
import type { AuthConfig } from '../../runtime/api.ts';
import { type Clock, sleep } from '../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { HttpClient, HttpResponse } from '../../runtime/host/http.ts';
import { type Descriptor, largestManifest, manifestTypes } from '../manifest.ts';
import { endpointOf, isLoopback } from '../reference.ts';
import { type Authorization, authorize, credentialsFor, parseChallenges } from './auth.ts';
import { readBody } from './body.ts';

export interface RegistryOptions {
  readonly http: HttpClient;
  readonly clock: Clock;
  /** `host` or `host:port` of registries that speak plain http. Those on this machine do anyway. */
  readonly insecureRegistries: readonly string[];
}

/** One repository of one registry for one pull: what is learnt about authentication is kept here. */
export interface Repository extends LayerSource {
  /**
   * The manifest or index that `reference` (a tag or digest) names, verified where it is a digest.
   * Throws IMAGE_NOT_FOUND, IMAGE_PULL_DENIED, IMAGE_DIGEST_MISMATCH, REGISTRY_UNAVAILABLE, ABORTED.
   */
  manifest(
    reference: string,
    signal?: AbortSignal,
  ): Promise<{ bytes: Buffer; mediaType: string | undefined; digest: string }>;
  /** A small blob, whole and verified. Throws as `manifest`, and IMAGE_INVALID. */
  document(blob: Descriptor, signal?: AbortSignal): Promise<Buffer>;
}

/** Where the compressed layers of an image come from: a repository of a registry, or an archive. */
export interface LayerSource {
  /** For messages: `docker.io/library/busybox`, or the archive's path. */
  readonly name: string;
  /**
   * The bytes of a blob from `offset` on, neither verified nor bounded; `offset` of the answer is where they begin in
   * truth, which may be 0. The body must be read or destroyed. Throws IMAGE_NOT_FOUND, IMAGE_PULL_DENIED,
   * REGISTRY_UNAVAILABLE, ABORTED.
   */
  blob(
    blob: Descriptor,
    offset: number,
    signal?: AbortSignal,
  ): Promise<{ readonly body: AsyncIterable<Buffer>; readonly offset: number }>;
}

/** Milliseconds before each further try of something transient. */
export const retryDelays: readonly number[] = [100, 400];
const mostRedirects = 5;

/** Runs `body` again, after a wait, for as long as it fails with REGISTRY_UNAVAILABLE and tries are left. */
export async function withRetries<T>(
  clock: Clock,
  signal: AbortSignal | undefined,
  body: () => Promise<T>,
): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await body();
    } catch (error) {
      const delay = retryDelays[attempt];
      if (delay === undefined || !isError(error, 'REGISTRY_UNAVAILABLE')) throw error;
      await sleep(clock, delay, signal);
    }
  }
}

export function digestOf(bytes: Buffer, algorithm: string): string {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}`;
}

export function openRepository(
  options: RegistryOptions,
  domain: string,
  path: string,
  auths: readonly AuthConfig[],
): Repository {
  const { http, clock } = options;
  const name = `${domain}/${path}`;
  const plain = isLoopback(domain) || options.insecureRegistries.includes(domain);
  const base = new URL(`${plain ? 'http' : 'https'}://${endpointOf(domain)}/v2/${path}/`);
  const scope = `repository:${path}:pull`;
  let authorization: Authorization;

  /** One request with redirects followed; any status but 3xx. The body of the answer is the caller's. */
  const send = async (
    url: URL,
    asked: Readonly<Record<string, string>>,
    what: string,
    signal?: AbortSignal,
  ): Promise<HttpResponse> => {
    let target = url;
    for (let hop = 0; hop <= mostRedirects; hop++) {
      const headers: Record<string, string> = { ...asked };
      if (authorization !== undefined && target.origin === base.origin)
        headers['authorization'] = authorization;
      const response = await http.request({ method: 'GET', url: target, headers, signal });
      const location = response.headers['location'];
      if (![301, 302, 303, 307, 308].includes(response.statusCode)) return response;
      await response.body.dump();
      if (typeof location !== 'string' || !URL.canParse(location, target)) {
        throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: redirect without a usable location`);
      }
      target = new URL(location, target);
      if (target.protocol !== 'https:' && target.protocol !== 'http:') {
        throw new KeelsonError(
          'REGISTRY_UNAVAILABLE',
          `${what}: redirect to ${target.protocol} is not followed`,
        );
      }
      target.username = '';
      target.password = '';
    }
    throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: more than ${mostRedirects} redirects`);
  };

  /** Sends; on 401 gets an authorization with each credential in turn, then as anonymous. */
  const sendAuthorized = async (
    url: URL,
    asked: Readonly<Record<string, string>>,
    what: string,
    signal?: AbortSignal,
  ) => {
    let response = await send(url, asked, what, signal);
    if (response.statusCode !== 401) return response;
    await response.body.dump(); // Before anything that can fail: unread, it would keep its connection.
    const header = response.headers['www-authenticate'];
    const challenges = parseChallenges(Array.isArray(header) ? header.join(', ') : (header ?? ''));
    const credentials = credentialsFor(auths, domain);
    let refusal: KeelsonError | undefined;
    for (const credential of [...credentials, undefined]) {
      try {
        authorization = await authorize({
          http,
          challenges,
          credential,
          scope,
          secure: !plain,
          what,
          signal,
        });
      } catch (error) {
        if (!isError(error, 'IMAGE_PULL_DENIED')) throw error;
        refusal = error;
        continue;
      }
      if (authorization === undefined) continue;
      response = await send(url, asked, what, signal);
      if (response.statusCode !== 401 && response.statusCode !== 403) return response;
      await response.body.dump();
    }
    authorization = undefined;
    throw denied(what, response.statusCode, credentials.length, refusal);
  };

  /** The answer with status 200, or 206 where a range was asked for, or the error that any other one means. */
  const get = async (
    url: URL,
    asked: Readonly<Record<string, string>>,
    what: string,
    signal?: AbortSignal,
  ): Promise<HttpResponse> => {
    let response: HttpResponse;
    try {
      response = await sendAuthorized(url, asked, what, signal);
    } catch (error) {
      throw unavailable(error, what);
    }
    const status = response.statusCode;
    if (status === 200 || (status === 206 && asked['range'] !== undefined)) return response;
    const said = await errorText(response);
    if (status === 404) {
      throw new KeelsonError('IMAGE_NOT_FOUND', `${what}: not found${said}`, {
        details: { status },
        hint: 'check the name and the tag, and that the image was pushed there',
      });
    }
    if (status === 401 || status === 403) throw denied(what, status, credentialsFor(auths, domain).length);
    throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: the registry answered ${status}${said}`, {
      details: { status },
    });
  };

  const manifest: Repository['manifest'] = (reference, signal) => {
    const isDigest = reference.includes(':');
    const what = `manifest ${name}${isDigest ? '@' : ':'}${reference}`;
    return withRetries(clock, signal, async () => {
      const response = await get(
        new URL(`manifests/${reference}`, base),
        { accept: manifestTypes.join(', ') },
        what,
        signal,
      );
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
      return { bytes, mediaType: headerText(response, 'content-type'), digest };
    });
  };

  const document: Repository['document'] = (blob, signal) => {
    const what = `blob ${name}@${blob.digest}`;
    return withRetries(clock, signal, async () => {
      const response = await get(new URL(`blobs/${blob.digest}`, base), { accept: '*/*' }, what, signal);
      const bytes = await readDocument(response, Math.min(blob.size, largestManifest), what, signal);
      const digest = digestOf(bytes, blob.digest.split(':')[0]!);
      if (digest !== blob.digest) {
        throw new KeelsonError('IMAGE_DIGEST_MISMATCH', `${what}: the registry sent ${digest}`);
      }
      return bytes;
    });
  };

  return {
    name,
    manifest,
    document,
    async blob(blob, offset, signal) {
      const what = `layer ${name}@${blob.digest}`;
      const asked = { accept: '*/*', ...(offset > 0 && { range: `bytes=${offset}-` }) };
      const response = await get(new URL(`blobs/${blob.digest}`, base), asked, what, signal);
      if (response.statusCode === 200) return { body: response.body, offset: 0 };
      const begins = /^bytes (\d+)-/.exec(headerText(response, 'content-range') ?? '')?.[1];
      if (Number(begins) === offset) return { body: response.body, offset };
      response.body.destroy();
      throw new KeelsonError(
        'REGISTRY_UNAVAILABLE',
        `${what}: the registry sent another range than asked for`,
      );
    },
  };
}

async function readDocument(response: HttpResponse, limit: number, what: string, signal?: AbortSignal) {
  try {
    return await readBody(response.body, limit, what, signal);
  } catch (error) {
    throw unavailable(error, what);
  }
}

/** A failed connection in the words of this room; anything else as it is. */
export function unavailable(error: unknown, what: string): unknown {
  if (!isError(error, 'UNAVAILABLE', 'DEADLINE_EXCEEDED')) return error;
  const why = isError(error, 'DEADLINE_EXCEEDED')
    ? 'the registry is too slow'
    : 'the registry cannot be reached';
  return new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: ${why}`, {
    cause: error,
    details: error.details,
  });
}

function denied(what: string, status: number, credentials: number, cause?: KeelsonError): KeelsonError {
  return new KeelsonError('IMAGE_PULL_DENIED', `${what}: the registry refused access (${status})`, {
    cause,
    details: { status },
    hint:
      credentials === 0
        ? 'if the image is private, the pod needs an imagePullSecret for this registry; many registries also answer so for images that do not exist'
        : 'none of the given credentials is accepted: check the imagePullSecrets',
  });
}

function headerText(response: HttpResponse, name: string): string | undefined {
  const value = response.headers[name];
  return typeof value === 'string' ? value : value?.[0];
}

/** What a registry says about its refusal (`errors[].message`), short and printable, in brackets; or nothing. */
async function errorText(response: HttpResponse): Promise<string> {
  try {
    const body = await readBody(response.body, 64 << 10, 'error answer');
    const json = JSON.parse(body.toString('utf8')) as { errors?: { code?: unknown; message?: unknown }[] };
    const said = json.errors?.[0]?.message ?? json.errors?.[0]?.code;
    if (typeof said !== 'string') return '';
    return ` (${said.replace(/[^\x20-\x7e]/g, '?').slice(0, 200)})`;
  } catch {
    return '';
  }
}
