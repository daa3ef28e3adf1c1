/** Getting past a registry's 401: WWW-Authenticate challenges (RFC 9110 section 11.6.1), and who may be shown what. */

import type { AuthConfig } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { HttpClient } from '../../runtime/host/http.ts';
import { isAddressOf } from '../reference.ts';
import { fetchToken } from './token.ts';

export interface Challenge {
  /** Lower case. */
  readonly scheme: string;
  readonly parameters: Readonly<Record<string, string>>;
}

/** What is sent in the Authorization header, or undefined to go without one. */
export type Authorization = string | undefined;

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
 * used; one that names none was meant for the registry of this pull.
 */
export function credentialsFor(auths: readonly AuthConfig[], domain: string): AuthConfig[] {
  return auths.filter(
    (auth) => isCredential(auth) && (!auth.serverAddress || isAddressOf(auth.serverAddress, domain)),
  );
}

/**
 * The credentials of `auths` that may be shown to the mirror at `host`: only those that name it. containerd shows a
 * mirror also those that name nobody, which with kubelets are all of them: whoever runs a mirror, or takes its
 * name, then learns the registry's passwords. A mirror that wants others gets them by `header` in its hosts.toml.
 */
export function mirrorCredentials(auths: readonly AuthConfig[], host: string): AuthConfig[] {
  return auths.filter(
    (auth) => isCredential(auth) && auth.serverAddress && isAddressOf(auth.serverAddress, host),
  );
}

function isCredential(auth: AuthConfig): boolean {
  return Boolean(auth.username || auth.auth || auth.identityToken || auth.registryToken);
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

export interface AuthorizeOptions {
  readonly http: HttpClient;
  readonly clock: Clock;
  readonly challenges: readonly Challenge[];
  /** Undefined: as anonymous. */
  readonly credential: AuthConfig | undefined;
  /** What is asked for where the challenge names nothing. */
  readonly scope: string;
  /** The registry speaks https: then credentials are not sent to a token service without it. */
  readonly secure: boolean;
  /** Names registry and repository in messages. */
  readonly what: string;
  readonly signal?: AbortSignal;
}

/**
 * The Authorization that answers `challenges` with `credential`. Undefined where this credential has no answer to any
 * of them. Throws IMAGE_PULL_DENIED where the token service refuses, REGISTRY_UNAVAILABLE where it does not answer.
 */
export async function authorize(options: AuthorizeOptions): Promise<Authorization> {
  const { challenges, credential } = options;
  if (credential?.registryToken) return `Bearer ${headerSafe(credential.registryToken, options.what)}`;
  const basic = credential === undefined ? undefined : basicOf(credential);
  const bearer = challenges.find(({ scheme }) => scheme === 'bearer');
  if (bearer !== undefined)
    return `Bearer ${headerSafe(await fetchToken(bearer, basic, options), options.what)}`;
  if (basic !== undefined && challenges.some(({ scheme }) => scheme === 'basic')) return basicHeader(basic);
  return undefined;
}

export function basicHeader({ user, password }: { user: string; password: string }): string {
  return `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
}

/** A token goes into a header: anything but visible ASCII would be an injection or a mistake. */
function headerSafe(token: string, what: string): string {
  if (/^[\x21-\x7e]+$/.test(token)) return token;
  throw new KeelsonError('IMAGE_PULL_DENIED', `${what}: the token has characters that no token has`);
}
