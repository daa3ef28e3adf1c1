/**
 * Which proxy a request goes through, by the environment: HTTP_PROXY, HTTPS_PROXY and NO_PROXY as the programs around
 * us read them (golang.org/x/net/http/httpproxy). Pure: the connection is made in runtime/host/http.ts.
 *
 * As there: upper case wins over lower case, ALL_PROXY is not read, `localhost` and loopback addresses are never
 * proxied, and what cannot be understood is ignored.
 */
import { BlockList, isIP } from 'node:net';

export interface ProxyRules {
  /** The proxy for `url`, perhaps with user and password; undefined to connect directly. */
  proxyFor(url: URL): URL | undefined;
}

type Environment = Readonly<Record<string, string | undefined>>;

export function proxyRules(environment: Environment): ProxyRules {
  const read = (name: string) => environment[name] || environment[name.toLowerCase()] || '';
  const proxies: Readonly<Record<string, URL | undefined>> = {
    'http:': parseProxy(read('HTTP_PROXY')),
    'https:': parseProxy(read('HTTPS_PROXY')),
  };
  const excluded = parseNoProxy(read('NO_PROXY'));
  return {
    proxyFor(url) {
      const proxy = proxies[url.protocol];
      if (proxy === undefined) return undefined;
      const host = url.hostname.replace(/^\[|\]$/g, '');
      const port = url.port || (url.protocol === 'https:' ? '443' : '80');
      return excluded(host, port) ? undefined : proxy;
    },
  };
}

/** The URL of a proxy; `host:port` is http. Undefined where it is none that can be used. */
export function parseProxy(text: string): URL | undefined {
  const trimmed = text.trim();
  const full = trimmed.includes('://') ? trimmed : `http://${trimmed}`;
  if (!URL.canParse(full)) return undefined;
  const url = new URL(full);
  return url.protocol === 'http:' || url.protocol === 'https:' ? url : undefined;
}

/**
 * NO_PROXY: entries separated by commas, each a host (which means its subdomains too), `.domain` or `*.domain` (only
 * the subdomains), an address, a CIDR block, any of the names and addresses with `:port`, or `*` for everything.
 * The result says of a host name or bare address and its port whether it is excluded.
 */
export function parseNoProxy(text: string): (host: string, port: string) => boolean {
  const rules: ((host: string, family: number, port: string) => boolean)[] = [];
  for (const part of text.split(',')) {
    const entry = part.trim().toLowerCase();
    if (entry === '') continue;
    if (entry === '*') return () => true;
    const block = parseBlock(entry);
    if (block !== undefined) {
      rules.push((host, family) => family !== 0 && block.check(host, family === 6 ? 'ipv6' : 'ipv4'));
      continue;
    }
    const { name, port: only } = splitPort(entry);
    if (name === '') continue;
    if (familyOf(name) !== 0) {
      const address = new BlockList();
      address.addAddress(name, familyOf(name) === 6 ? 'ipv6' : 'ipv4');
      rules.push(
        (host, family, port) =>
          family !== 0 &&
          address.check(host, family === 6 ? 'ipv6' : 'ipv4') &&
          (only === '' || only === port),
      );
      continue;
    }
    const pattern = asciiName(name.startsWith('*.') ? name.slice(1) : name);
    const suffix = pattern.startsWith('.') ? pattern : `.${pattern}`;
    rules.push(
      (host, _family, port) => (host.endsWith(suffix) || host === pattern) && (only === '' || only === port),
    );
  }
  return (givenHost, port) => {
    const host = givenHost.toLowerCase();
    const family = familyOf(host);
    if (host === 'localhost' || isLoopbackAddress(host, family)) return true;
    return rules.some((rule) => rule(host, family, port));
  };
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

function isLoopbackAddress(host: string, family: number): boolean {
  return family !== 0 && loopback.check(host, family === 6 ? 'ipv6' : 'ipv4');
}

/** 4, 6, or 0 for what is no address; one with a zone (`%eth0`) is none, since no URL can name it. */
function familyOf(text: string): number {
  return text.includes('%') ? 0 : isIP(text);
}

/** The block that `entry` is in CIDR notation, or undefined. */
function parseBlock(entry: string): BlockList | undefined {
  const [, address = '', bits = ''] = /^([^/]+)\/(\d{1,3})$/.exec(entry) ?? [];
  const family = familyOf(address);
  if (family === 0 || Number(bits) > (family === 6 ? 128 : 32)) return undefined;
  const block = new BlockList();
  block.addSubnet(address, Number(bits), family === 6 ? 'ipv6' : 'ipv4');
  return block;
}

/** `name:port` and `[address]:port`; an address of the sixth version without brackets has no port. */
function splitPort(entry: string): { name: string; port: string } {
  const bracketed = /^\[([^\]]*)\](?::(.*))?$/.exec(entry);
  if (bracketed !== null) return { name: bracketed[1]!, port: bracketed[2] ?? '' };
  const colon = entry.indexOf(':');
  if (colon === -1 || colon !== entry.lastIndexOf(':')) return { name: entry, port: '' };
  return { name: entry.slice(0, colon), port: entry.slice(colon + 1) };
}

/** A name with other letters than ASCII as it stands in a URL. */
function asciiName(name: string): string {
  if (!/[^\0-\x7f]/.test(name)) return name;
  const dot = name.startsWith('.') ? '.' : '';
  const url = `http://${name.slice(dot.length)}`;
  return URL.canParse(url) ? dot + new URL(url).hostname : name;
}
