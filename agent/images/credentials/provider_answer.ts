/** What is said to a credential provider and what it says: CredentialProviderRequest and -Response. Pure. */
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { parseDuration } from '../../config/duration.ts';
import { registryOf } from '../image_name.ts';
import type { DockerEntry } from './docker_config.ts';

export interface ProviderAnswer {
  readonly cacheKeyType: 'Image' | 'Registry' | 'Global';
  /** Milliseconds; undefined: the provider's default. */
  readonly cacheMs: number | undefined;
  readonly entries: readonly DockerEntry[];
}

/** JSON for standard input. `account`: only for providers with token attributes. */
export function providerRequest(
  apiVersion: string,
  image: string,
  account?: { readonly token: string; readonly annotations: Readonly<Record<string, string>> },
): string {
  return JSON.stringify({
    kind: 'CredentialProviderRequest',
    apiVersion,
    image,
    ...(account !== undefined && { serviceAccountToken: account.token }),
    ...(account !== undefined &&
      Object.keys(account.annotations).length > 0 && { serviceAccountAnnotations: account.annotations }),
  });
}

/** Throws FAILED_PRECONDITION with a message that holds nothing of `text` but its version. */
export function parseProviderAnswer(text: string, apiVersion: string): ProviderAnswer {
  let answer: unknown;
  try {
    answer = JSON.parse(text);
  } catch {
    throw bad('the answer is not JSON');
  }
  if (!isMap(answer)) throw bad('the answer is not a JSON object');
  if (answer['kind'] !== 'CredentialProviderResponse')
    throw bad('the answer is not a CredentialProviderResponse');
  if (answer['apiVersion'] !== apiVersion) {
    const got = typeof answer['apiVersion'] === 'string' ? answer['apiVersion'].slice(0, 100) : 'none';
    throw bad(`the answer is of apiVersion ${got}, not ${apiVersion}`);
  }
  const { cacheKeyType } = answer as { cacheKeyType?: unknown };
  if (cacheKeyType !== 'Image' && cacheKeyType !== 'Registry' && cacheKeyType !== 'Global')
    throw bad('the answer has no cacheKeyType that is Image, Registry or Global');
  const duration = answer['cacheDuration'] ?? undefined;
  const cacheMs = typeof duration === 'string' ? parseDuration(duration) : undefined;
  if (duration !== undefined && cacheMs === undefined)
    throw bad('the cacheDuration of the answer is not a duration such as "5m"');
  const auth = answer['auth'] ?? {};
  if (!isMap(auth)) throw bad('the auth of the answer is not an object');
  const entries = Object.entries(auth).map(([address, value]) => {
    const login = value ?? {};
    if (!isMap(login)) throw bad('an auth of the answer is not an object');
    const [username, password] = [login['username'] ?? '', login['password'] ?? ''];
    if (typeof username !== 'string' || typeof password !== 'string')
      throw bad('a username or password in the answer is not a string');
    return { address, login: { username: username.toWellFormed(), password: password.toWellFormed() } };
  });
  return { cacheKeyType, cacheMs, entries };
}

/** Under what an answer about `repository` is kept, and where one for it is looked for, in order. */
export function cacheKeys(repository: string): Readonly<Record<ProviderAnswer['cacheKeyType'], string>> {
  return {
    Image: `image ${repository}`,
    Registry: `registry ${registryOf(repository)}`,
    Global: 'global',
  };
}

function isMap(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function bad(why: string): KeelsonError {
  return new KeelsonError('FAILED_PRECONDITION', why);
}
