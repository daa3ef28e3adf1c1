/**
 * Image references: `[domain/]path[:tag][@digest]`, by the grammar and the normalisation of distribution/reference
 * (the rules that docker, containerd and kubelet share).
 */
import { KeelsonError } from '../runtime/host/errors.ts';

export interface Reference {
  /** Registry as the user knows it, with a port where given: `docker.io`, `127.0.0.1:5000`, `[::1]:5000`. */
  readonly domain: string;
  /** Repository below the registry: `library/busybox`. */
  readonly path: string;
  /** `latest` where neither a tag nor a digest was given. */
  readonly tag?: string;
  /** `sha256:…` or `sha512:…`. Where there is a digest it alone decides what is pulled. */
  readonly digest?: string;
}

export const defaultDomain = 'docker.io';
/** Where the registry of `docker.io` answers, and the older name that credentials for it may carry. */
const dockerEndpoint = 'registry-1.docker.io';
const dockerAliases = ['index.docker.io', dockerEndpoint];

const domainComponent = '(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])';
const domainPattern = new RegExp(
  `^(?:${domainComponent}(?:\\.${domainComponent})*|\\[[a-fA-F0-9:]+\\])(?::[0-9]+)?$`,
);
const componentPattern = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const tagPattern = /^\w[\w.-]{0,127}$/;
const digestLengths: Readonly<Record<string, number>> = { sha256: 64, sha512: 128 };
const longest = 255;

/** Throws IMAGE_NAME_INVALID with a message that says which part is wrong. */
export function parseReference(text: string): Reference {
  const fail = (why: string, hint?: string): never => {
    throw new KeelsonError('IMAGE_NAME_INVALID', `image name ${JSON.stringify(text)} is not valid: ${why}`, {
      hint,
    });
  };
  if (text === '') return fail('it is empty');
  if (text.length > 1024) return fail('it is longer than 1024 characters');
  if (/^[a-f0-9]{64}$/.test(text)) return fail('64 hexadecimal digits are an image id, not a name');

  const at = text.indexOf('@');
  const digest = at === -1 ? undefined : text.slice(at + 1);
  if (digest !== undefined && !isDigest(digest)) {
    fail(
      `${JSON.stringify(digest)} is not a digest`,
      'a digest is sha256: and 64 lower-case hexadecimal digits',
    );
  }
  const beforeDigest = at === -1 ? text : text.slice(0, at);

  const { domain, rest } = splitDomain(beforeDigest);
  if (!domainPattern.test(domain)) fail(`${JSON.stringify(domain)} is not a registry host`);
  const port = /:([0-9]+)$/.exec(domain)?.[1];
  if (port !== undefined && Number(port) > 65535) fail(`port ${port} does not exist`);

  const colon = rest.indexOf(':');
  const tag = colon === -1 ? undefined : rest.slice(colon + 1);
  if (tag !== undefined && !tagPattern.test(tag)) {
    fail(`${JSON.stringify(tag)} is not a tag`, 'a tag has at most 128 letters, digits, _, . and -');
  }
  let path = colon === -1 ? rest : rest.slice(0, colon);
  if (path === '') fail('the repository is missing');
  if (/[A-Z]/.test(path)) fail('the repository must be lower case', `did you mean ${text.toLowerCase()}?`);
  for (const component of path.split('/')) {
    if (!componentPattern.test(component)) {
      fail(
        component === ''
          ? 'a part of the repository is empty'
          : `${JSON.stringify(component)} in the repository`,
        'each part has lower-case letters and digits, with ., _, __ or - between them',
      );
    }
  }
  if (domain === defaultDomain && !path.includes('/')) path = `library/${path}`;
  if (path.length > longest) fail(`the repository is longer than ${longest} characters`);
  return { domain, path, tag: tag ?? (digest === undefined ? 'latest' : undefined), digest };
}

/** What stands before the first slash is a registry only when it looks like one; otherwise it is docker.io's. */
function splitDomain(name: string): { domain: string; rest: string } {
  const slash = name.indexOf('/');
  const first = name.slice(0, slash);
  if (slash === -1 || (!/[.:]/.test(first) && first !== 'localhost' && first.toLowerCase() === first)) {
    return { domain: defaultDomain, rest: name };
  }
  return { domain: first === 'index.docker.io' ? defaultDomain : first, rest: name.slice(slash + 1) };
}

/** Whether `text` is a digest of an algorithm that keelson verifies. */
export function isDigest(text: unknown): text is string {
  if (typeof text !== 'string') return false;
  const [algorithm = '', hex = '', ...more] = text.split(':');
  return (
    more.length === 0 &&
    Object.hasOwn(digestLengths, algorithm) &&
    hex.length === digestLengths[algorithm] &&
    /^[a-f0-9]+$/.test(hex)
  );
}

/** `docker.io/library/busybox`. */
export function repositoryOf(reference: Reference): string {
  return `${reference.domain}/${reference.path}`;
}

/** The one way in which a reference is stored and compared; a tag beside a digest is dropped. */
export function formatReference(reference: Reference): string {
  return reference.digest === undefined
    ? `${repositoryOf(reference)}:${reference.tag}`
    : `${repositoryOf(reference)}@${reference.digest}`;
}

/** The image id that `text` is (`sha256:…`, or its bare 64 digits), or undefined where it is a reference. */
export function imageIdOf(text: string): string | undefined {
  const match = /^(?:sha256:)?([a-f0-9]{64})$/.exec(text);
  return match === null ? undefined : `sha256:${match[1]}`;
}

/** Host and port to connect to for a domain. */
export function endpointOf(domain: string): string {
  return domain === defaultDomain ? dockerEndpoint : domain;
}

/** Whether the `serverAddress` of a credential (`host`, `host:port` or a URL) speaks of `domain`. */
export function isAddressOf(serverAddress: string, domain: string): boolean {
  const host = serverAddress
    .replace(/^https?:\/\//, '')
    .replace(/\/.*$/, '')
    .toLowerCase();
  return host === domain.toLowerCase() || (domain === defaultDomain && dockerAliases.includes(host));
}

/** Whether the registry is on this machine: it then speaks plain http unless it says otherwise, as for containerd. */
export function isLoopback(domain: string): boolean {
  const host = domain.replace(/:[0-9]+$/, '').toLowerCase();
  return host === 'localhost' || host === '[::1]' || /^127(?:\.\d{1,3}){3}$/.test(host);
}
