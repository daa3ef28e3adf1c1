/**
 * One endpoint as one pull uses it: requests below its API root, with redirects, authentication and errors in the
 * words of this room. Never shows credentials to any host but the endpoint and the token service that it names.
 */
import type { AuthConfig } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { HttpClient, HttpResponse } from '../../runtime/host/http.ts';
import { type Authorization, authorize, type Challenge, parseChallenges } from './auth.ts';
import { readBody } from './body.ts';
import { type Health, saysDead } from './health.ts';
import type { Endpoint } from './hosts.ts';
import { parseRetryAfter } from './retry.ts';

export interface Connection {
  readonly endpoint: Endpoint;
  /**
   * The answer with status 200, or 206 where a range was asked for, to GET of `path` (`manifests/latest`). Throws
   * IMAGE_NOT_FOUND, IMAGE_PULL_DENIED, REGISTRY_UNAVAILABLE, ABORTED; messages begin with `what`.
   */
  get(
    path: string,
    headers: Readonly<Record<string, string>>,
    what: string,
    signal?: AbortSignal,
  ): Promise<HttpResponse>;
}

const mostRedirects = 5;

export function connect(options: {
  readonly endpoint: Endpoint;
  readonly http: HttpClient;
  readonly clock: Clock;
  readonly health: Health;
  /** The registry and the repository in the image's name. */
  readonly domain: string;
  readonly repository: string;
  /** Those that may be shown to this endpoint. */
  readonly credentials: readonly AuthConfig[];
}): Connection {
  const { endpoint, http, clock, health, domain, repository, credentials } = options;
  const base = new URL(`${endpoint.scheme}://${endpoint.host}${endpoint.path}/${repository}/`);
  const scope = `repository:${repository}:pull`;
  let authorization: Authorization;
  /** The credential that was accepted last, to begin with it when a token has run out. */
  let accepted: AuthConfig | undefined;
  let authorizing: Promise<unknown> = Promise.resolve();
  /** What other hosts want that the endpoint redirects to, as registry.k8s.io does: by origin, and as anonymous. */
  const elsewhere = new Map<string, string>();

  /** One request with redirects followed; any status but 3xx. The body of the answer is the caller's. */
  const send = async (
    url: URL,
    asked: Readonly<Record<string, string>>,
    what: string,
    signal?: AbortSignal,
  ): Promise<{ response: HttpResponse; from: URL }> => {
    let target = url;
    for (let hop = 0; hop <= mostRedirects; hop++) {
      const own = target.origin === base.origin;
      const headers: Record<string, string> = { ...(own && endpoint.headers), ...asked };
      const given = own ? authorization : elsewhere.get(target.origin);
      if (given !== undefined) headers['authorization'] = given;
      let response: HttpResponse;
      try {
        response = await http.request({ method: 'GET', url: target, headers, signal });
      } catch (error) {
        if (own && saysDead(error)) health.failed(endpoint.name, error.message);
        throw error;
      }
      if (own) health.answered(endpoint.name);
      const location = response.headers['location'];
      if (![301, 302, 303, 307, 308].includes(response.statusCode)) return { response, from: target };
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
  type Answer = Awaited<ReturnType<typeof send>>;

  /** As `send`; a token that another host wants is fetched as anonymous, since no credential is for that host. */
  const sendAnywhere = async (...request: Parameters<typeof send>): Promise<Answer> => {
    const answer = await send(...request);
    const { response, from } = answer;
    if (from.origin === base.origin || response.statusCode !== 401) return answer;
    const [, , what, signal] = request;
    const challenges = challengesOf(response);
    try {
      const [credential, secure] = [undefined, from.protocol === 'https:'];
      const found = await authorize({ http, clock, challenges, credential, scope, secure, what, signal });
      if (found === undefined || found === elsewhere.get(from.origin)) return answer;
      elsewhere.set(from.origin, found);
    } catch {
      return answer; // Its refusal says more than what its token service did.
    }
    await response.body.dump();
    return send(...request);
  };

  /** Whether the endpoint wants (other) credentials. Another host has no say about that, and gets none. */
  const isRefused = ({ response, from }: Answer) =>
    from.origin === base.origin && (response.statusCode === 401 || response.statusCode === 403);

  /** Sends; on 401 gets an authorization with each credential in turn, then as anonymous. */
  const sendAuthorized = async (
    url: URL,
    asked: Readonly<Record<string, string>>,
    what: string,
    signal?: AbortSignal,
  ): Promise<Answer> => {
    const used = authorization;
    const answer = await sendAnywhere(url, asked, what, signal);
    if (!isRefused(answer) || answer.response.statusCode === 403) return answer;
    await answer.response.body.dump(); // Before anything that can fail: unread, it would keep its connection.
    // One at a time: of many requests whose token has run out, the first gets a new one for all.
    const turn = authorizing.then(async () => {
      let last = answer;
      if (authorization !== used) {
        last = await sendAnywhere(url, asked, what, signal);
        if (!isRefused(last)) return last;
        await last.response.body.dump();
      }
      const challenges = challengesOf(last.response);
      let refusal: KeelsonError | undefined;
      const first = accepted === undefined ? [] : [accepted];
      for (const credential of [...first, ...credentials.filter((each) => each !== accepted), undefined]) {
        let found: Authorization;
        try {
          const secure = endpoint.scheme === 'https';
          found = await authorize({ http, clock, challenges, credential, scope, secure, what, signal });
        } catch (error) {
          if (!isError(error, 'IMAGE_PULL_DENIED')) throw error;
          refusal = error;
          continue;
        }
        if (found === undefined) continue;
        authorization = found;
        last = await sendAnywhere(url, asked, what, signal);
        if (!isRefused(last)) {
          accepted = credential;
          return last;
        }
        await last.response.body.dump();
      }
      authorization = undefined;
      throw denied(what, last.response.statusCode, credentials.length, refusal);
    });
    authorizing = turn.catch(() => {});
    return turn;
  };

  return {
    endpoint,
    async get(path, headers, what, signal) {
      const url = new URL(path, base);
      if (!endpoint.isRegistry) url.searchParams.set('ns', domain);
      let answer: Answer;
      try {
        answer = await sendAuthorized(url, headers, what, signal);
      } catch (error) {
        throw unavailable(error, what);
      }
      const { response, from } = answer;
      const status = response.statusCode;
      if (status === 200 || (status === 206 && headers['range'] !== undefined)) return response;
      const own = from.origin === base.origin;
      const said = await errorText(response, signal);
      // Without its query, which may be a signature.
      const where = own ? said : `${said} at ${from.origin}${from.pathname}, where the registry redirects to`;
      if (status === 404) {
        throw new KeelsonError('IMAGE_NOT_FOUND', `${what}: not found${where}`, {
          details: { status },
          hint: 'check the name and the tag, and that the image was pushed there',
        });
      }
      if (isRefused(answer)) throw denied(what, status, credentials.length);
      const header = headerText(response, 'retry-after');
      throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: the registry answered ${status}${where}`, {
        // What a storage behind the registry says is about one link, and the next may be better.
        details: {
          status: own ? status : undefined,
          retryAfterMs: parseRetryAfter(header, clock.now()),
        },
        hint: status === 429 ? 'it limits how often it may be asked; a mirror on the site helps' : undefined,
      });
    },
  };
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

function challengesOf(response: HttpResponse): readonly Challenge[] {
  const header = response.headers['www-authenticate'];
  return parseChallenges(Array.isArray(header) ? header.join(', ') : (header ?? ''));
}

export function headerText(response: HttpResponse, name: string): string | undefined {
  const value = response.headers[name];
  return typeof value === 'string' ? value : value?.[0];
}

/** What a registry says about its refusal (`errors[].message`), short and printable, in brackets; or nothing. */
async function errorText(response: HttpResponse, signal?: AbortSignal): Promise<string> {
  try {
    const body = await readBody(response.body, 64 << 10, 'error answer', signal);
    const json = JSON.parse(body.toString('utf8')) as { errors?: { code?: unknown; message?: unknown }[] };
    const said = json.errors?.[0]?.message ?? json.errors?.[0]?.code;
    if (typeof said !== 'string') return '';
    return ` (${said.replace(/[^\x20-\x7e]/g, '?').slice(0, 200)})`;
  } catch {
    return '';
  }
}
