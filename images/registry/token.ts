/**
 * Bearer tokens by the token specification of the Docker registry: GET with a scope and Basic credentials or none,
 * and for identity tokens POST with a refresh token (OAuth 2), which some services only know as GET.
 */
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { HttpResponse } from '../../runtime/host/http.ts';
import { isObject } from '../manifest.ts';
import { type AuthorizeOptions, basicHeader, type Challenge } from './auth.ts';
import { readBody } from './body.ts';
import { parseRetryAfter } from './retry.ts';

const largestAnswer = 1 << 20;
/** What services answer to a POST that they do not know. */
const noPost = [404, 405];

/** As `authorize` for a Bearer challenge; the token as the service sent it. */
export async function fetchToken(
  challenge: Challenge,
  basic: { user: string; password: string } | undefined,
  options: AuthorizeOptions,
): Promise<string> {
  const { realm = '', service, scope = options.scope } = challenge.parameters;
  const { what, credential, http, signal } = options;
  if (!URL.canParse(realm) || !/^https?:$/.test(new URL(realm).protocol)) {
    throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: the registry names no usable token service`);
  }
  const url = new URL(realm);
  url.username = '';
  url.password = '';
  url.hash = '';
  const where = `${what}: token service ${url.origin}`;
  const identity = credential?.identityToken;
  if (options.secure && url.protocol === 'http:' && (basic !== undefined || identity)) {
    throw new KeelsonError('IMAGE_PULL_DENIED', `${where} does not use https, so it gets no credentials`);
  }
  const get = (user: { user: string; password: string } | undefined) => {
    const asked = new URL(url);
    if (service) asked.searchParams.set('service', service);
    for (const part of scope.split(' ')) if (part) asked.searchParams.append('scope', part);
    const headers: Record<string, string> = user === undefined ? {} : { authorization: basicHeader(user) };
    return http.request({ method: 'GET', url: asked, headers, signal });
  };
  if (!identity) return readToken(await get(basic), where, options);
  const form = new URLSearchParams({
    grant_type: 'refresh_token',
    refresh_token: identity,
    client_id: 'keelson',
    scope,
    service: service ?? '',
  });
  const response = await http.request({
    method: 'POST',
    url,
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    body: form.toString(),
    signal,
  });
  if (!noPost.includes(response.statusCode)) return readToken(response, where, options);
  await response.body.dump();
  return readToken(await get(basic ?? { user: '', password: identity }), where, options);
}

async function readToken(response: HttpResponse, where: string, options: AuthorizeOptions): Promise<string> {
  const body = await readBody(response.body, largestAnswer, where, options.signal);
  const status = response.statusCode;
  if (status === 400 || status === 401 || status === 403) {
    throw new KeelsonError('IMAGE_PULL_DENIED', `${where} refused (${status})`, { details: { status } });
  }
  if (status !== 200) {
    const header = response.headers['retry-after'];
    const retryAfterMs = parseRetryAfter(
      typeof header === 'string' ? header : header?.[0],
      options.clock.now(),
    );
    throw new KeelsonError('REGISTRY_UNAVAILABLE', `${where} answered ${status}`, {
      details: { status, retryAfterMs },
    });
  }
  const token = tokenOf(body);
  if (token === undefined) throw new KeelsonError('REGISTRY_UNAVAILABLE', `${where} gave no token`);
  return token;
}

/** The token in the answer of a token service; undefined where there is none. Never says what else is in it. */
export function tokenOf(body: Buffer): string | undefined {
  try {
    const json: unknown = JSON.parse(body.toString('utf8'));
    const token = isObject(json) ? json['token'] || json['access_token'] : undefined;
    return typeof token === 'string' && token !== '' ? token : undefined;
  } catch {
    return undefined;
  }
}
