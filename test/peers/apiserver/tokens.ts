/** TokenRequest: tokens of service accounts, which look like JWTs and which nobody has signed. */
import { randomBytes, randomUUID } from 'node:crypto';
import { rfc3339 } from '../../../runtime/host/clock.ts';
import { resourceNamed, type StoredObject, type Target } from './resources.ts';
import { decodeMembers } from './shape.ts';
import { conflict, invalid } from './status.ts';
import { found, type Store } from './store.ts';

const pods = resourceNamed('pods');

/** POST serviceaccounts/NAME/token. Throws 404, 409 (bound to another pod of the name) or 422. */
export function createToken(store: Store, now: number, target: Target, given: StoredObject): StoredObject {
  const body = decodeMembers(given, ['spec']);
  const account = found(store, target);
  const spec = (body['spec'] ?? {}) as {
    audiences?: string[];
    expirationSeconds?: number;
    boundObjectRef?: { kind?: string; name?: string; uid?: string };
  };
  const seconds = spec.expirationSeconds ?? 3600;
  if (seconds < 600) {
    throw invalid({ plural: 'tokenrequests', kind: 'TokenRequest', group: 'authentication.k8s.io' }, '', [
      {
        field: 'spec.expirationSeconds',
        reason: 'FieldValueInvalid',
        message: `Invalid value: ${seconds}: may not specify a duration less than 10 minutes`,
      },
    ]);
  }
  const bound = spec.boundObjectRef;
  if (bound?.kind === 'Pod') {
    const { uid } = found(store, {
      resource: pods,
      namespace: target.namespace,
      name: bound.name,
      subresource: undefined,
    }).metadata;
    if (bound.uid && bound.uid !== uid) {
      const why = `the UID in the bound object reference (${bound.uid}) does not match the UID in record. The object might have been deleted and then recreated`;
      throw conflict(pods, bound.name!, why);
    }
  }
  const expires = rfc3339(now + seconds * 1000);
  const subject = `system:serviceaccount:${target.namespace}:${account.metadata.name}`;
  return {
    apiVersion: 'authentication.k8s.io/v1',
    kind: 'TokenRequest',
    metadata: { name: account.metadata.name, namespace: target.namespace, creationTimestamp: rfc3339(now) },
    spec: {
      ...spec,
      audiences: spec.audiences ?? ['https://kubernetes.default.svc'],
      expirationSeconds: seconds,
    },
    status: { token: opaqueToken(subject, expires), expirationTimestamp: expires },
  };
}

/** Looks like a JWT, is signed by nobody. */
function opaqueToken(subject: string, expires: string): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const claims = { sub: subject, exp: Date.parse(expires) / 1000, jti: randomUUID() };
  return `${part({ alg: 'RS256', typ: 'JWT' })}.${part(claims)}.${randomBytes(32).toString('base64url')}`;
}
