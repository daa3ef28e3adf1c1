/** Which credentials are for an image, and in which order they are tried: kubelet's DockerKeyring. Pure. */
import type { AuthConfig } from '../../../runtime/api.ts';
import type { Secret } from '../../apiserver/types.ts';
import { registryOf } from '../image_name.ts';
import { addressMatches, credentialKey } from './address.ts';
import { type DockerEntry, type Login, loginHash, parseDockerConfig } from './docker_config.ts';

export interface Coordinates {
  readonly uid: string;
  readonly namespace: string;
  readonly name: string;
}

/** Whom a credential belongs to. `node`: every pod of the node may use it. */
export type CredentialSource =
  | { readonly kind: 'node' }
  | ({ readonly kind: 'secret' | 'serviceAccount' } & Coordinates);

export interface Credential {
  readonly auth: AuthConfig;
  /** kubelet's CredentialHash. */
  readonly hash: string;
  readonly source: CredentialSource;
}

/** The entries of one secret, file or provider. */
export interface CredentialSet {
  readonly source: CredentialSource;
  readonly entries: readonly DockerEntry[];
}

/** Docker's own registry under the name that `docker login` writes. */
const dockerHubKey = 'index.docker.io';

/**
 * The credentials in `sets` for `repository` (`docker.io/library/busybox`). Addresses go backwards by name, so that
 * the longer path comes before the shorter and a name before a glob; under one address, the sets' order.
 * Only `localhost/…` differs from kubelet, which takes it for an image of Docker's registry.
 */
export function lookUp(repository: string, sets: readonly CredentialSet[]): Credential[] {
  const byKey = new Map<string, { login: Login; source: CredentialSource }[]>();
  for (const { source, entries } of sets) {
    for (const { address, login } of entries) {
      const key = credentialKey(address);
      if (key === undefined) continue;
      const listed = byKey.get(key) ?? [];
      listed.push({ login, source });
      byKey.set(key, listed);
    }
  }
  const keys = [...byKey.keys()].filter((key) => addressMatches(key, repository));
  if (keys.length === 0 && registryOf(repository) === 'docker.io') keys.push(dockerHubKey);
  return keys
    .sort((a, b) => (a < b ? 1 : -1))
    .flatMap((key) => byKey.get(key) ?? [])
    .map(({ login, source }) => ({
      auth: authOf(login, registryOf(repository)),
      hash: loginHash(login),
      source,
    }));
}

/** For the image service: bound to the registry of the image, so that no mirror and no redirect is shown it. */
function authOf(login: Login, registry: string): AuthConfig {
  const { username, password, identityToken, registryToken } = login;
  return {
    ...(username !== ''
      ? { username, password }
      : password !== '' && { auth: Buffer.from(`:${password}`).toString('base64') }),
    ...(identityToken !== undefined && { identityToken }),
    ...(registryToken !== undefined && { registryToken }),
    serverAddress: registry,
  };
}

const keysOfTypes: Readonly<Record<string, string>> = {
  'kubernetes.io/dockerconfigjson': '.dockerconfigjson',
  'kubernetes.io/dockercfg': '.dockercfg',
};

/** The credentials of a pull secret, and what of it cannot be read. */
export function setOfSecret(secret: Secret): { set: CredentialSet; faults: readonly string[] } {
  const { metadata, type = 'Opaque', data } = secret;
  const source: CredentialSource = {
    kind: 'secret',
    uid: metadata?.uid ?? '',
    namespace: metadata?.namespace ?? '',
    name: metadata?.name ?? '',
  };
  const none = (fault: string) => ({ set: { source, entries: [] }, faults: [fault] });
  const key = Object.hasOwn(keysOfTypes, type) ? keysOfTypes[type]! : undefined;
  if (key === undefined) {
    return none(`its type is ${type}, not ${Object.keys(keysOfTypes).join(' or ')}`);
  }
  const raw = data?.[key];
  if (typeof raw !== 'string' || raw === '') return none(`it has no ${key}`);
  const { entries, faults } = parseDockerConfig(
    Buffer.from(raw, 'base64').toString('utf8'),
    key === '.dockercfg' ? 'legacy' : 'json',
  );
  return { set: { source, entries }, faults };
}
