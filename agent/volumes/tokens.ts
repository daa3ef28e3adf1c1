/**
 * Tokens of service accounts for pods (TokenRequest): kept until they are due for renewal, asked for once however
 * many want them, and kept on when renewal fails, because an old token is better than no pod.
 */
import type { Clock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { ApiserverClient } from '../apiserver/types.ts';

export interface TokenKey {
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly podName: string;
  readonly podUid: string;
  /** Default: the apiserver's own. */
  readonly audience?: string;
  /** Default 3600. */
  readonly expirationSeconds?: number;
}

export interface Token {
  readonly text: string;
  /** Wall clock, milliseconds: when it should be asked for again. */
  readonly renewAt: number;
}

export interface Tokens {
  /** Throws what the client throws, or VOLUME_FAILED, where there is no token at all. */
  get(key: TokenKey, signal?: AbortSignal): Promise<Token>;
  /** Takes over a token of an earlier process, where it is for this pod and not yet expired. */
  adopt(key: TokenKey, text: string): void;
  forget(podUid: string): void;
}

interface Kept extends Token {
  readonly expiresAt: number;
}

interface TokenAnswer {
  readonly spec?: { readonly expirationSeconds?: unknown };
  readonly status?: { readonly token?: unknown };
}

const day = 86_400_000;
/** Renewals of many pods that started together are spread over this time. */
const jitterMs = 10_000;
const retryMs = 30_000;
const defaultSeconds = 3600;

/** When to renew: at 80 % of the lifetime, or after a day, earlier by up to 10 s. Pure; `jitter` is from 0 to 1. */
export function renewalTime(issuedAt: number, expiresAt: number, jitter: number): number {
  const lifetime = expiresAt - issuedAt;
  const spread = Math.min(jitterMs, lifetime * 0.1) * jitter;
  return Math.min(issuedAt + day, issuedAt + lifetime * 0.8) - spread;
}

export function makeTokens(options: {
  readonly client: ApiserverClient | undefined;
  readonly clock: Clock;
  readonly log: Logger;
  /** From 0 to 1. Default Math.random. */
  readonly random?: () => number;
}): Tokens {
  const { client, clock, log, random = Math.random } = options;
  /** By pod, then by the rest of the key. */
  const kept = new Map<string, Map<string, Kept>>();
  const running = new Map<string, Promise<Token>>();
  const rest = (key: TokenKey) =>
    JSON.stringify([key.namespace, key.serviceAccount, key.audience, key.expirationSeconds]);
  const keep = (key: TokenKey, token: Kept) => {
    const ofPod = kept.get(key.podUid) ?? new Map<string, Kept>();
    kept.set(key.podUid, ofPod.set(rest(key), token));
  };

  const request = async (key: TokenKey, signal: AbortSignal | undefined): Promise<Token> => {
    if (client === undefined) {
      throw new KeelsonError(
        'VOLUME_FAILED',
        'a service account token needs an apiserver, and none is configured',
      );
    }
    const asked = key.expirationSeconds ?? defaultSeconds;
    const askedAt = clock.now();
    const answer = await client.create<TokenAnswer>(
      `/api/v1/namespaces/${key.namespace}/serviceaccounts/${key.serviceAccount}/token`,
      {
        apiVersion: 'authentication.k8s.io/v1',
        kind: 'TokenRequest',
        spec: {
          audiences: key.audience ? [key.audience] : [],
          expirationSeconds: asked,
          boundObjectRef: { apiVersion: 'v1', kind: 'Pod', name: key.podName, uid: key.podUid },
        },
      },
      { signal },
    );
    const text = answer.status?.token;
    if (typeof text !== 'string' || text === '') {
      throw new KeelsonError(
        'API_GARBAGE',
        `the apiserver answered a token request for ${key.namespace}/${key.serviceAccount} without a token`,
      );
    }
    // The apiserver may grant less or more. Counted from our own clock, which need not agree with the server's.
    const granted = answer.spec?.expirationSeconds;
    const expiresAt = askedAt + 1000 * (typeof granted === 'number' && granted > 0 ? granted : asked);
    const token: Kept = { text, expiresAt, renewAt: renewalTime(askedAt, expiresAt, random()) };
    keep(key, token);
    return token;
  };

  const renew = async (key: TokenKey, old: Kept | undefined, signal?: AbortSignal): Promise<Token> => {
    try {
      return await request(key, signal);
    } catch (error) {
      if (old === undefined) throw error;
      const left = Math.round((old.expiresAt - clock.now()) / 1000);
      log.warn(
        { err: error, pod: key.podName, namespace: key.namespace },
        `cannot renew the token of service account ${key.serviceAccount}, ${left > 0 ? `${left} s before it expires` : 'which has expired'}; the old one is kept`,
      );
      const again: Kept = { ...old, renewAt: clock.now() + retryMs * (1 + random()) };
      if (kept.get(key.podUid)?.has(rest(key))) keep(key, again);
      return again;
    }
  };

  return {
    async get(key, signal) {
      const old = kept.get(key.podUid)?.get(rest(key));
      if (old !== undefined && clock.now() < old.renewAt) return old;
      const id = `${key.podUid} ${rest(key)}`;
      let pending = running.get(id);
      if (pending === undefined) {
        pending = renew(key, old, signal).finally(() => running.delete(id));
        running.set(id, pending);
      }
      return pending;
    },
    adopt(key, text) {
      if (kept.get(key.podUid)?.has(rest(key))) return;
      const claims = claimsOf(text);
      if (claims === undefined || claims.podUid !== key.podUid || claims.expiresAt <= clock.now()) return;
      const { issuedAt, expiresAt, dueAt } = claims;
      keep(key, { text, expiresAt, renewAt: renewalTime(issuedAt, dueAt, random()) });
    },
    forget(podUid) {
      kept.delete(podUid);
    },
  };
}

interface Claims {
  readonly issuedAt: number;
  readonly expiresAt: number;
  /** The apiserver gives some tokens a year, and wants them renewed as if they had what was asked for. */
  readonly dueAt: number;
  readonly podUid: string;
}

/** The times in a token (RFC 7519) and the pod that it is bound to. Not verified: it is our own file. */
function claimsOf(token: string): Claims | undefined {
  try {
    const claims = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString('utf8')) as {
      readonly iat?: unknown;
      readonly exp?: unknown;
      readonly 'kubernetes.io'?: { readonly pod?: { readonly uid?: unknown }; readonly warnafter?: unknown };
    } | null;
    const own = claims?.['kubernetes.io'];
    const podUid = own?.pod?.uid;
    if (typeof claims?.iat !== 'number' || typeof claims.exp !== 'number' || typeof podUid !== 'string') {
      return undefined;
    }
    const due = typeof own?.warnafter === 'number' ? Math.min(own.warnafter, claims.exp) : claims.exp;
    return { issuedAt: claims.iat * 1000, expiresAt: claims.exp * 1000, dueAt: due * 1000, podUid };
  } catch {
    return undefined;
  }
}
