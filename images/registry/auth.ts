/**
 * Getting past a registry's 401: WWW-Authenticate challenges (RFC 9110 section 11.6.1), Basic, and Bearer tokens by
 * the token specification of the Docker registry (GET with a scope; POST with a refresh token for identity tokens).
 */

import type { AuthConfig } from '../../runtime/api.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { HttpClient } from '../../runtime/host/http.ts';
import { isObject } from '../manifest.ts';
import { isAddressOf } from '../reference.ts';
import { readBody } from './body.ts';

export interface Challenge {
  /** Lower case. */
  readonly scheme: string;
  readonly parameters: Readonly<Record<string, string>>;
}

/** What is sent in the Authorization header, or undefined to go without one. */
export type Authorization = string | undefined;

const largestTokenAnswer = 1 << 20;

/** Reads a WWW-Authenticate header, which may hold several challenges. What cannot be read is left out. */
export function parseChallenges(header: string): Challenge[] {
  const token = /[A-Za-z0-9!#$%&'*+.^_`|~-]+/y;
  const found: { scheme: string; parameters: Record<string, string> }[] = [];
  let at = 0;
  const skip = () => {
    while (at < header.length && ' \t,'.includes(header[at]!)) at++;
  };
  const word = (): string | undefined => {
    token.lastIndex = at;
    const match = token.exec(header);
    if (match === null) return undefined;
    at = token.lastIndex;
    return match[0];
  };
  for (skip(); at < header.length; skip()) {
    const name = word();
    if (name === undefined) break;
    if (header[at] !== '=') {
      found.push({ scheme: name.toLowerCase(), parameters: Object.create(null) });
      continue;
    }
    at++;
    let value = '';
    if (header[at] === '"') {
      for (at++; at < header.length && header[at] !== '"'; at++) {
        if (header[at] === '\\') at++;
        value += header[at] ?? '';
      }
      at++;
    } else {
      value = word() ?? '';
    }
    const last = found.at(-1);
    if (last !== undefined) last.parameters[name.toLowerCase()] = value;
  }
  return found;
}

/**
 * The credentials of `auths` that may be shown to `domain`, in order. One that names another registry is never
 * used; one that names none was meant for this pull.
 */
export function credentialsFor(auths: readonly AuthConfig[], domain: string): AuthConfig[] {
  return auths.filter(
    (auth) =>
      (auth.username || auth.auth || auth.identityToken || auth.registryToken) &&
      (!auth.serverAddress || isAddressOf(auth.serverAddress, domain)),
  );
}

/** User and password of a credential, from its fields or its `auth`; undefined where it has none. */
export function basicOf(auth: AuthConfig): { user: string; password: string } | undefined {
  if (auth.username) return { user: auth.username, password: auth.password ?? '' };
  if (!auth.auth) return undefined;
  const decoded = Buffer.from(auth.auth, 'base64').toString('utf8').replace(/\0+$/, '');
  const colon = decoded.indexOf(':');
  if (colon === -1) return undefined;
  return { user: decoded.slice(0, colon), password: decoded.slice(colon + 1) };
}

/**
 * The Authorization that answers `challenges` with `credential` (undefined: as anonymous). Undefined where this
 * credential has no answer to any of them. `scope` is what is asked for where the challenge names none.
 * Throws IMAGE_PULL_DENIED where the token service refuses, REGISTRY_UNAVAILABLE where it does not answer.
 */
export async function authorize(options: {
  readonly http: HttpClient;
  readonly challenges: readonly Challenge[];
  readonly credential: AuthConfig | undefined;
  readonly scope: string;
  /** The registry speaks https: then credentials are not sent to a token service without it. */
  readonly secure: boolean;
  /** Names registry and repository in messages. */
  readonly what: string;
  readonly signal?: AbortSignal;
}): Promise<Authorization> {
  const { challenges, credential } = options;
  if (credential?.registryToken) return `Bearer ${headerSafe(credential.registryToken, options.what)}`;
  const basic = credential === undefined ? undefined : basicOf(credential);
  const bearer = challenges.find(({ scheme }) => scheme === 'bearer');
  if (bearer !== undefined) return `Bearer ${await fetchToken(bearer, basic, options)}`;
  if (basic !== undefined && challenges.some(({ scheme }) => scheme === 'basic')) return basicHeader(basic);
  return undefined;
}

function basicHeader({ user, password }: { user: string; password: string }): string {
  return `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
}

async function fetchToken(
  challenge: Challenge,
  basic: { user: string; password: string } | undefined,
  options: Parameters<typeof authorize>[0],
): Promise<string> {
  const { realm = '', service, scope = options.scope } = challenge.parameters;
  const { what, credential } = options;
  if (!URL.canParse(realm) || !/^https?:$/.test(new URL(realm).protocol)) {
    throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: the registry names no usable token service`);
  }
  const url = new URL(realm);
  url.username = '';
  url.password = '';
  const where = `${what}: token service ${url.origin}`;
  const identity = credential?.identityToken;
  if (options.secure && url.protocol === 'http:' && (basic !== undefined || identity)) {
    throw new KeelsonError('IMAGE_PULL_DENIED', `${where} does not use https, so it gets no credentials`);
  }
  let request: { method: string; headers: Record<string, string>; body?: string };
  if (identity) {
    const form = new URLSearchParams({
      grant_type: 'refresh_token',
      refresh_token: identity,
      client_id: 'keelson',
      scope,
      service: service ?? '',
    });
    request = {
      method: 'POST',
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      body: form.toString(),
    };
  } else {
    if (service) url.searchParams.set('service', service);
    for (const part of scope.split(' ')) if (part) url.searchParams.append('scope', part);
    request = { method: 'GET', headers: basic === undefined ? {} : { authorization: basicHeader(basic) } };
  }
  const response = await options.http.request({ ...request, url, signal: options.signal });
  const body = await readBody(response.body, largestTokenAnswer, where, options.signal);
  const status = response.statusCode;
  if (status === 400 || status === 401 || status === 403) {
    throw new KeelsonError('IMAGE_PULL_DENIED', `${where} refused (${status})`, { details: { status } });
  }
  if (status !== 200) {
    throw new KeelsonError('REGISTRY_UNAVAILABLE', `${where} answered ${status}`, { details: { status } });
  }
  let token: unknown;
  try {
    const json: unknown = JSON.parse(body.toString('utf8'));
    token = isObject(json) ? json['token'] || json['access_token'] : undefined;
  } catch {
    // Not JSON: said below, without the body, which might hold a token.
  }
  if (typeof token !== 'string' || token === '') {
    throw new KeelsonError('REGISTRY_UNAVAILABLE', `${where} gave no token`);
  }
  return headerSafe(token, where);
}

/** A token goes into a header: anything but visible ASCII would be an injection or a mistake. */
function headerSafe(token: string, where: string): string {
  if (/^[\x21-\x7e]+$/.test(token)) return token;
  throw new KeelsonError('IMAGE_PULL_DENIED', `${where}: the token has characters that no token has`);
}
