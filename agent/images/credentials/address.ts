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
  if (host.startsWith('[')) {
    if (!/^\[[^\]]*\](?::\d*)?$/.test(host)) return undefined;
  } else if (!/^[^[\]]*$/.test(host.replace(/\[[^\]]*\]/g, '')) || !/^(?::\d*)?$/.test(portTextOf(host))) {
    return undefined;
  }
  const escaped = slash === -1 ? '' : bare.slice(slash);
  if (/%(?![0-9a-fA-F]{2})/.test(escaped)) return undefined;
  try {
    return { host, path: decodeURIComponent(escaped) };
  } catch {
    return { host, path: escaped };
  }
}

function portTextOf(host: string): string {
  const colon = host.lastIndexOf(':');
  return colon === -1 ? '' : host.slice(colon);
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

/** As net.SplitHostPort: what has no port, or too many colons, is all host. */
function splitHost(host: string): { parts: readonly string[]; port: string } {
  const match = /^(?:\[([^\]]*)\]|([^:]*)):(\d*)$/.exec(host);
  const [, bracketed, plain, port = ''] = match ?? [];
  return { parts: (bracketed ?? plain ?? host).split('.'), port };
}

type Token = 'any' | ((char: string) => boolean);

/**
 * filepath.Match for a text without slashes: `*`, `?`, `[a-z]`, `[^a]`, `\` before a character. A pattern that is not
 * right matches nothing. Takes time in proportion to both lengths, whatever the pattern: it may be an attacker's.
 */
export function globMatches(pattern: string, text: string): boolean {
  const tokens = globTokens([...pattern]);
  if (tokens === undefined) return false;
  const chars = [...text];
  let token = 0;
  let at = 0;
  /** Where to go on when what follows the last star does not fit. */
  let star: { token: number; at: number } | undefined;
  while (at < chars.length || token < tokens.length) {
    const wanted = tokens[token];
    if (wanted === 'any') {
      star = { token, at };
      token++;
    } else if (wanted !== undefined && at < chars.length && wanted(chars[at]!)) {
      token++;
      at++;
    } else if (star !== undefined && star.at < chars.length) {
      star = { token: star.token, at: star.at + 1 };
      token = star.token + 1;
      at = star.at;
    } else {
      return false;
    }
  }
  return true;
}

function globTokens(pattern: readonly string[]): Token[] | undefined {
  const tokens: Token[] = [];
  for (let at = 0; at < pattern.length; at++) {
    const char = pattern[at]!;
    if (char === '*') tokens.push('any');
    else if (char === '?') tokens.push(() => true);
    else if (char === '[') {
      const found = globClass(pattern, at + 1);
      if (found === undefined) return undefined;
      tokens.push(found.test);
      at = found.end;
    } else if (char === '\\') {
      const literal = pattern[++at];
      if (literal === undefined) return undefined;
      tokens.push((one) => one === literal);
    } else tokens.push((one) => one === char);
  }
  return tokens;
}

/** A class from behind its bracket; `end` is its closing bracket. */
function globClass(
  pattern: readonly string[],
  start: number,
): { test: (char: string) => boolean; end: number } | undefined {
  let at = start;
  const negated = pattern[at] === '^';
  if (negated) at++;
  const ranges: [number, number][] = [];
  const one = (): number | undefined => {
    if (pattern[at] === '-' || pattern[at] === ']') return undefined;
    if (pattern[at] === '\\') at++;
    return pattern[at++]?.codePointAt(0);
  };
  while (pattern[at] !== ']' || ranges.length === 0) {
    const low = one();
    if (low === undefined) return undefined;
    let high: number | undefined = low;
    if (pattern[at] === '-') {
      at++;
      high = one();
    }
    if (high === undefined || at >= pattern.length) return undefined;
    ranges.push([low, high]);
  }
  const inside = (code: number) => ranges.some(([low, high]) => low <= code && code <= high);
  return { test: (char) => inside(char.codePointAt(0)!) !== negated, end: at };
}
