/** Who asks: client certificates, bearer tokens (TokenReview), nobody. */
import { createHmac, randomBytes } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { TLSSocket } from 'node:tls';
import { LRUCache } from 'lru-cache';
import type { Clock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { ApiserverClient } from '../apiserver/types.ts';

export interface User {
  readonly name: string;
  readonly uid?: string;
  readonly groups: readonly string[];
  readonly extra?: Readonly<Record<string, readonly string[]>>;
}

export interface Authenticator {
  /** The user of a request. Throws UNAUTHENTICATED; other errors where the apiserver could not be asked. */
  authenticate(request: IncomingMessage, signal: AbortSignal): Promise<User>;
}

interface TokenReview {
  readonly status?: {
    readonly authenticated?: boolean;
    readonly user?: {
      readonly username?: string;
      readonly uid?: string;
      readonly groups?: readonly string[];
      readonly extra?: Readonly<Record<string, readonly string[]>>;
    };
  };
}

const tokenReviews = '/apis/authentication.k8s.io/v1/tokenreviews';
const everyone = 'system:authenticated';

/** The user that a verified certificate names: CN is the name, O are the groups. Pure. */
export function userOfSubject(subject: {
  readonly CN?: string | readonly string[];
  readonly O?: string | readonly string[];
}): User | undefined {
  // More than one common name: the last one counts, as in Go.
  const name = [subject.CN ?? []].flat().at(-1);
  if (name === undefined || name === '') return undefined;
  return { name, groups: [subject.O ?? []].flat() };
}

/** The token of an Authorization header; undefined where it has none. Pure. */
export function bearerToken(header: string | undefined): string | undefined {
  return /^bearer +([^\s]+) *$/i.exec(header ?? '')?.[1];
}

function authenticated(user: User): User {
  return user.groups.includes(everyone) ? user : { ...user, groups: [...user.groups, everyone] };
}

export function makeAuthenticator(options: {
  /** Requests without credentials are `system:anonymous`. */
  readonly anonymous: boolean;
  /** Bearer tokens are reviewed by the apiserver. */
  readonly webhook: boolean;
  readonly client?: ApiserverClient;
  readonly clock: Clock;
  /** Milliseconds that the review of a token counts. Default 120,000. */
  readonly cacheMs?: number;
}): Authenticator {
  const { anonymous, webhook, client, clock, cacheMs = 120_000 } = options;
  /** By a keyed digest, so that memory holds no tokens. `false`: not authenticated. */
  const reviews = new LRUCache<string, User | false>({
    max: 1000,
    ttl: cacheMs,
    ttlResolution: 0,
    perf: { now: () => clock.monotonic() },
  });
  const digestKey = randomBytes(32);
  const refused = (why: string) => new KeelsonError('UNAUTHENTICATED', why);

  const review = async (token: string, signal: AbortSignal): Promise<User | false> => {
    const key = createHmac('sha256', digestKey).update(token).digest('base64');
    const known = reviews.get(key);
    if (known !== undefined) return known;
    const answer = await client!.create<TokenReview>(
      tokenReviews,
      { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview', spec: { token } },
      { signal, deadlineMs: 10_000 },
    );
    const { authenticated: accepted, user } = answer.status ?? {};
    const found: User | false =
      accepted === true && typeof user?.username === 'string' && user.username !== ''
        ? { name: user.username, uid: user.uid, groups: user.groups ?? [], extra: user.extra }
        : false;
    reviews.set(key, found);
    return found;
  };

  return {
    async authenticate(request, signal) {
      const socket = request.socket as TLSSocket;
      const certificate =
        typeof socket.getPeerCertificate === 'function' ? socket.getPeerCertificate() : undefined;
      const presented = certificate !== undefined && Object.keys(certificate).length > 0;
      if (presented && socket.authorized) {
        const user = userOfSubject(certificate.subject);
        if (user !== undefined) return authenticated(user);
      }
      if (request.headers.authorization !== undefined) {
        const token = bearerToken(request.headers.authorization);
        const user =
          token !== undefined && webhook && client !== undefined ? await review(token, signal) : false;
        if (user === false) throw refused('the bearer token is not accepted');
        return authenticated(user);
      }
      // Bad credentials do not make an anonymous user.
      if (presented) throw refused('the client certificate is not accepted');
      if (!anonymous) throw refused('no credentials were given');
      return { name: 'system:anonymous', groups: ['system:unauthenticated'] };
    },
  };
}
