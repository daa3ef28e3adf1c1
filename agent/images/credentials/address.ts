/**
 * Addresses in credentials (`https://host:5000/team`, `*.example.org`) and how they match a repository, by the rules
 * of kubelet's pkg/credentialprovider: Go's url.Parse, one glob for each part of the host, a plain prefix for the
 * path, equal ports. Pure.
 */

export interface Address {
  /** With the port; may hold globs. */
  readonly host: string;
  /** Empty, or from the slash on. */
  readonly path: string;
}

/** What url.Parse refuses in a host: all but letters, digits, these marks and what is not ASCII. */
const badHost = /[\u0000-\u0020%/\\^`{|}?#@\u007f]/;

/** Undefined for what Go's url.Parse refuses behind `https://`. */
export function parseAddress(text: string): Address | undefined {
  if (/[\u0000-\u001f\u007f]/.test(text)) return undefined;
  const bare = text.split('#', 1)[0]!.split('?', 1)[0]!;
  const slash = bare.indexOf('/');
  const authority = slash === -1 ? bare : bare.slice(0, slash);
  const host = authority.slice(authority.lastIndexOf('@') + 1);
  if (badHost.test(host)) return undefined;
  // The address of an IPv6 host in brackets, or a name with at most one colon; the port in digits.
  if (!/^(?:\[[^[\]]*\]|[^[\]:]*)(?::\d*)?$/.test(host)) return undefined;
  const escaped = slash === -1 ? '' : bare.slice(slash);
  if (/%(?![0-9a-fA-F]{2})/.test(escaped)) return undefined;
  try {
    return { host, path: decodeURIComponent(escaped) };
  } catch {
    return { host, path: escaped };
  }
}

/**
 * The address under which a credential is kept: without its scheme, and without the `/v1` or `/v2` that docker wrote
 * behind the host. Undefined for what is no address.
 */
export function credentialKey(text: string): string | undefined {
  const address = parseAddress(text.replace(/^https?:\/\//, ''));
  if (address === undefined) return undefined;
  const path = /^\/v[12]\//.test(address.path) ? address.path.slice(3) : address.path;
  return path === '/' ? address.host : address.host + path;
}

/** Whether the address `pattern`, which has no scheme, is for `repository`. */
export function addressMatches(pattern: string, repository: string): boolean {
  const glob = parseAddress(pattern);
  const target = parseAddress(repository);
  if (glob === undefined || target === undefined) return false;
  const wanted = splitHost(glob.host);
  const given = splitHost(target.host);
  return (
    wanted.port === given.port &&
    wanted.parts.length === given.parts.length &&
    target.path.startsWith(glob.path) &&
    wanted.parts.every((part, at) => globMatches(part, given.parts[at]!))
  );
}

/** As net.SplitHostPort: what has no port is all host. */
function splitHost(host: string): { parts: readonly string[]; port: string } {
  const match = /^(?:\[([^\]]*)\]|([^:]*)):(\d*)$/.exec(host);
  const [, bracketed, plain, port = ''] = match ?? [];
  return { parts: (bracketed ?? plain ?? host).split('.'), port };
}

/**
 * Whether `text` is as `pattern` says, where `*` stands for any characters. (Go's filepath.Match knows more, but
 * none of it can stand in a host.) Takes time in proportion to both lengths, whatever the pattern: it may be an
 * attacker's.
 */
export function globMatches(pattern: string, text: string): boolean {
  let wanted = 0;
  let at = 0;
  /** Where to go on when what follows the last star does not fit. */
  let star: { wanted: number; at: number } | undefined;
  while (at < text.length || wanted < pattern.length) {
    if (pattern[wanted] === '*') {
      star = { wanted, at };
      wanted++;
    } else if (at < text.length && pattern[wanted] === text[at]) {
      wanted++;
      at++;
    } else if (star !== undefined && star.at < text.length) {
      star = { wanted: star.wanted, at: star.at + 1 };
      wanted = star.wanted + 1;
      at = star.at;
    } else {
      return false;
    }
  }
  return true;
}
