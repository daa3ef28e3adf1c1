/** Whether an image is to be pulled, and with which credentials. Pure. */
import type { AuthConfig } from '../../runtime/api.ts';
import type { PodContainer, Secret } from '../apiserver/types.ts';

export type PullPolicy = 'Always' | 'IfNotPresent' | 'Never';

/** The policy, by the API's default where none is given: Always for `:latest` and for no tag. */
export function pullPolicyOf(container: PodContainer): PullPolicy {
  const given = container.imagePullPolicy;
  if (given === 'Always' || given === 'IfNotPresent' || given === 'Never') return given;
  const image = container.image ?? '';
  if (image.includes('@')) return 'IfNotPresent';
  const tag = /:([\w][\w.-]{0,127})$/.exec(image.slice(image.lastIndexOf('/') + 1))?.[1];
  return tag === undefined || tag === 'latest' ? 'Always' : 'IfNotPresent';
}

interface Entry {
  readonly host: string;
  readonly path: string;
  readonly auth: AuthConfig;
}

/** Docker's own registry goes by many names. */
function canonicalHost(host: string): string {
  return ['index.docker.io', 'registry-1.docker.io', ''].includes(host) ? 'docker.io' : host;
}

function splitImage(image: string): { host: string; path: string } {
  const slash = image.indexOf('/');
  const first = slash < 0 ? '' : image.slice(0, slash);
  if (!/[.:]/.test(first) && first !== 'localhost') return { host: 'docker.io', path: image };
  return { host: canonicalHost(first), path: image.slice(slash + 1) };
}

/** `https://index.docker.io/v1/`, `*.example.org`, `example.org:5000/team`. */
function splitKey(key: string): { host: string; path: string } {
  const bare = key.replace(/^https?:\/\//, '').replace(/\/+$/, '');
  const slash = bare.indexOf('/');
  const host = canonicalHost(slash < 0 ? bare : bare.slice(0, slash));
  const path = slash < 0 ? '' : bare.slice(slash + 1);
  return { host, path: /^v[12]$/.test(path) ? '' : path };
}

/** Globs match within one part of the name, as kubelet's credential provider has it. */
function hostMatches(pattern: string, host: string): boolean {
  const wanted = pattern.split('.');
  const parts = host.split('.');
  return (
    wanted.length === parts.length &&
    wanted.every((part, index) => {
      const source = part.replace(/[\\^$+?.()|[\]{}]/g, '\\$&').replaceAll('*', '[^.:]*');
      return new RegExp(`^${source}$`).test(parts[index]!);
    })
  );
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined;
}

function entriesOf(secret: Secret): Entry[] {
  const modern = secret.type === 'kubernetes.io/dockerconfigjson';
  const raw = secret.data?.[modern ? '.dockerconfigjson' : '.dockercfg'];
  if (raw === undefined) return [];
  let parsed: unknown;
  try {
    parsed = JSON.parse(Buffer.from(raw, 'base64').toString('utf8'));
  } catch {
    return [];
  }
  const map = modern ? (parsed as { auths?: unknown } | null)?.auths : parsed;
  if (typeof map !== 'object' || map === null) return [];
  return Object.entries(map).flatMap(([key, value]) => {
    if (typeof value !== 'object' || value === null) return [];
    const fields = value as Record<string, unknown>;
    const auth: AuthConfig = {
      username: text(fields['username']),
      password: text(fields['password']),
      auth: text(fields['auth']),
      identityToken: text(fields['identitytoken']),
      registryToken: text(fields['registrytoken']),
      serverAddress: key,
    };
    const usable = auth.username ?? auth.auth ?? auth.identityToken ?? auth.registryToken;
    return usable === undefined ? [] : [{ ...splitKey(key), auth }];
  });
}

/** The credentials in `secrets` that are for `image`, the most specific first. Unreadable secrets count for nothing. */
export function authsFor(image: string, secrets: readonly Secret[]): AuthConfig[] {
  const { host, path } = splitImage(image);
  return secrets
    .flatMap(entriesOf)
    .filter(
      (entry) =>
        hostMatches(entry.host, host) &&
        (entry.path === '' || path === entry.path || path.startsWith(`${entry.path}/`)),
    )
    .sort((a, b) => b.path.length - a.path.length || b.host.length - a.host.length)
    .map(({ auth }) => auth);
}
