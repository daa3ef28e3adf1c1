/**
 * Credentials as docker writes them: `config.json` (a map `auths`) and the older `.dockercfg` (the map alone), in
 * secrets of the types kubernetes.io/dockerconfigjson and kubernetes.io/dockercfg and in files of the node. Pure.
 */
import { createHash } from 'node:crypto';

export interface Login {
  readonly username: string;
  readonly password: string;
  readonly email?: string;
  /** An OAuth2 refresh token, to be shown to the registry's token service. */
  readonly identityToken?: string;
  /** A bearer token for the registry itself. */
  readonly registryToken?: string;
}

export interface DockerEntry {
  /** As written: `https://index.docker.io/v1/`, `registry.example:5000/team`, `*.example.org`. */
  readonly address: string;
  readonly login: Login;
}

export interface DockerConfig {
  /** In the order of the text; those that hold no credential (docker's mark for a credential store) are left out. */
  readonly entries: readonly DockerEntry[];
  /** What could not be read, in words that hold none of the content but the hosts. */
  readonly faults: readonly string[];
  /** There is nothing to be had of it: it is not JSON, or not of this form. */
  readonly unusable: boolean;
}

type Shape = 'json' | 'legacy';

/**
 * Reads `text`. Field names are taken in any case, as Go does. `serveraddress` is not looked at: as for kubelet, what
 * an entry is for is said by its key. Where `auth` is given it counts, and not `username` and `password`.
 */
export function parseDockerConfig(text: string, shape: Shape): DockerConfig {
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    return { entries: [], faults: ['it is not valid JSON'], unusable: true };
  }
  if (!isMap(document)) return { entries: [], faults: ['it is not a JSON object'], unusable: true };
  const map = shape === 'json' ? fieldsOf(document).get('auths') : document;
  if (map === undefined || map === null) return { entries: [], faults: [], unusable: false };
  if (!isMap(map)) return { entries: [], faults: ['its "auths" is not an object'], unusable: true };
  const entries: DockerEntry[] = [];
  const faults: string[] = [];
  for (const [address, value] of Object.entries(map)) {
    const login = value === null ? undefined : readLogin(value);
    if (typeof login === 'string') faults.push(`the entry for ${shown(address)}: ${login}`);
    else if (login !== undefined && holdsSomething(login)) entries.push({ address, login });
  }
  return { entries, faults, unusable: false };
}

/** The login, or what is wrong with it. */
function readLogin(value: unknown): Login | string {
  if (!isMap(value)) return 'it is not an object';
  const fields = fieldsOf(value);
  const texts: Record<string, string> = {};
  for (const name of ['username', 'password', 'email', 'auth', 'identitytoken', 'registrytoken']) {
    const given = fields.get(name) ?? '';
    if (typeof given !== 'string') return `"${name}" is not a string`;
    texts[name] = given.toWellFormed();
  }
  const { auth, email, identitytoken, registrytoken } = texts;
  const pair = auth ? decodeAuth(auth) : { username: texts['username']!, password: texts['password']! };
  if (pair === undefined) return '"auth" is not the base64 of "user:password"';
  return {
    ...pair,
    ...(email && { email }),
    ...(identitytoken && { identityToken: identitytoken }),
    ...(registrytoken && { registryToken: registrytoken }),
  };
}

export function holdsSomething({ username, password, identityToken, registryToken }: Login): boolean {
  return Boolean(username || password || identityToken || registryToken);
}

/** With or without padding, over several lines too; but no blanks, and nothing else that base64 has not. */
function decodeAuth(auth: string): { username: string; password: string } | undefined {
  const text = auth.replace(/[\r\n]/g, '');
  const padded = auth.trimEnd().endsWith('=');
  const pattern = padded
    ? /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)$/
    : /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2,3})?$/;
  if (!pattern.test(text)) return undefined;
  const decoded = Buffer.from(text, 'base64').toString('utf8');
  const colon = decoded.indexOf(':');
  if (colon === -1) return undefined;
  return { username: decoded.slice(0, colon), password: decoded.slice(colon + 1) };
}

/**
 * kubelet's CredentialHash: SHA-256, in hexadecimal, of the login as Go's encoding/json writes kubelet's AuthConfig.
 * The tokens, which kubelet does not read, are at the places that they have in that type.
 */
export function loginHash(login: Login): string {
  const fields = [
    ['username', login.username],
    ['password', login.password],
    ['email', login.email],
    ['identitytoken', login.identityToken],
    ['registrytoken', login.registryToken],
  ] as const;
  const written = fields.flatMap(([name, value]) => (value ? [`"${name}":${goJson(value)}`] : []));
  return createHash('sha256')
    .update(`{${written.join(',')}}`)
    .digest('hex');
}

/** Go escapes these besides what JSON must. */
function goJson(text: string): string {
  return JSON.stringify(text).replace(
    /[<>&\u2028\u2029]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

function fieldsOf(map: Readonly<Record<string, unknown>>): Map<string, unknown> {
  return new Map(Object.entries(map).map(([name, value]) => [name.toLowerCase(), value]));
}

function isMap(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** An address may hold a user and a password before its host. */
function shown(address: string): string {
  const text = address.slice(address.lastIndexOf('@') + 1);
  return JSON.stringify(text.length > 100 ? `${text.slice(0, 100)}…` : text);
}
