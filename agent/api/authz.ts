/** What a user may do: everything (AlwaysAllow), or what the apiserver says (SubjectAccessReview). */
import { LRUCache } from 'lru-cache';
import type { Clock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { ApiserverClient } from '../apiserver/types.ts';
import type { User } from './authn.ts';
import type { Attributes } from './request.ts';

export interface Authorizer {
  /**
   * Passes when any of `wanted` is allowed. Throws PERMISSION_DENIED; INTERNAL where the apiserver could not be
   * asked: what nobody allowed is not done.
   */
  authorize(user: User, wanted: readonly Attributes[], signal: AbortSignal): Promise<void>;
}

interface SubjectAccessReview {
  readonly status?: { readonly allowed?: boolean; readonly denied?: boolean };
}

const accessReviews = '/apis/authorization.k8s.io/v1/subjectaccessreviews';

export function makeAuthorizer(options: {
  readonly mode: 'AlwaysAllow' | 'Webhook';
  readonly nodeName: string;
  readonly client?: ApiserverClient;
  readonly clock: Clock;
  /** Milliseconds that an answer counts. Defaults 300,000 and 30,000. */
  readonly allowCacheMs?: number;
  readonly denyCacheMs?: number;
}): Authorizer {
  const { mode, nodeName, client, clock, allowCacheMs = 300_000, denyCacheMs = 30_000 } = options;
  const answers = new LRUCache<string, boolean>({
    max: 1000,
    ttl: allowCacheMs,
    ttlResolution: 0,
    perf: { now: () => clock.monotonic() },
  });

  const review = async (
    user: User,
    { verb, subresource }: Attributes,
    signal: AbortSignal,
  ): Promise<boolean> => {
    const spec = {
      user: user.name,
      uid: user.uid,
      groups: user.groups,
      extra: user.extra,
      resourceAttributes: { verb, version: 'v1', resource: 'nodes', subresource, name: nodeName },
    };
    const key = JSON.stringify(spec);
    const known = answers.get(key);
    if (known !== undefined) return known;
    if (client === undefined) {
      throw new KeelsonError('UNAVAILABLE', 'there is no apiserver to ask');
    }
    const answer = await client.create<SubjectAccessReview>(
      accessReviews,
      { apiVersion: 'authorization.k8s.io/v1', kind: 'SubjectAccessReview', spec },
      { signal, deadlineMs: 10_000 },
    );
    const allowed = answer.status?.allowed === true && answer.status.denied !== true;
    answers.set(key, allowed, { ttl: allowed ? allowCacheMs : denyCacheMs });
    return allowed;
  };

  return {
    async authorize(user, wanted, signal) {
      if (mode === 'AlwaysAllow') return;
      for (const attributes of wanted) {
        let allowed: boolean;
        try {
          allowed = await review(user, attributes, signal);
        } catch (error) {
          throw new KeelsonError(
            'INTERNAL',
            `Authorization error (user=${user.name}, verb=${attributes.verb}, resource=nodes, subresource=${attributes.subresource})`,
            { cause: error },
          );
        }
        if (allowed) return;
      }
      throw new KeelsonError(
        'PERMISSION_DENIED',
        `Forbidden (user=${user.name}, verb=${wanted[0]?.verb ?? ''}, resource=nodes, subresource(s)=[${wanted
          .map(({ subresource }) => subresource)
          .join(' ')}])`,
      );
    },
  };
}
