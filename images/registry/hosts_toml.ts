/**
 * containerd's hosts.toml (docs/hosts.md and core/remotes/docker/config/hosts.go of containerd 2): where the images of
 * one registry come from. Only the text is read here; nothing of the machine is touched.
 *
 * Where we differ on purpose: a file that cannot be read is an error of this registry, where containerd logs it and
 * goes to the registry itself, past the mirrors that the file was to name; `server = ""` says that there is nothing but
 * the hosts, where containerd takes it for unset; `http://` is plain http, where containerd tries https first for a
 * host that also has certificates; and `header` is for the host alone, not also for its token service.
 */
import { isAbsolute, join } from 'node:path';
import { parse, TomlError } from 'smol-toml';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { isObject } from '../manifest.ts';

export type Capability = 'pull' | 'resolve' | 'push';

/** How one host is spoken to: the fields that a `[host."…"]` table and the root of the file share. */
export interface HostSettings {
  /** All three where the file names none. */
  readonly capabilities: ReadonlySet<Capability>;
  /** Absolute paths of PEM files, besides the system's authorities. */
  readonly ca: readonly string[];
  /** Absolute paths of PEM files; without `key`, the certificate's file holds the key too. */
  readonly client: readonly { readonly cert: string; readonly key: string | undefined }[];
  readonly skipVerify: boolean | undefined;
  /** Names in lower case. Values may be secrets. */
  readonly headers: Readonly<Record<string, string>>;
  /** Milliseconds to connect; 0 for no limit. */
  readonly dialTimeoutMs: number | undefined;
  /** Instead of what the environment says. May hold a password. */
  readonly proxy: URL | undefined;
}

export interface HostAddress {
  readonly scheme: 'http' | 'https';
  /** `host` or `host:port`, lower case. */
  readonly host: string;
  /** Where the API begins: `/v2`, or with override_path anything, without a slash at the end. */
  readonly path: string;
}

export interface HostsFile {
  /** In the order of the file. */
  readonly hosts: readonly (HostAddress & HostSettings)[];
  /** Asked last. `undefined`: the registry itself; `none`: nobody. */
  readonly server: HostAddress | 'none' | undefined;
  /** The root's fields: for `server`, or for the registry itself where it is unset. */
  readonly serverSettings: HostSettings;
}

const capabilities: readonly Capability[] = ['pull', 'resolve', 'push'];
const largestFile = 1 << 20;

/**
 * Reads the text of `file`, whose folder relative paths are relative to. Fields that nobody knows are ignored, as
 * containerd does. Throws CONFIG_INVALID, which names the file, the field and what is expected, and no value.
 */
export function parseHostsToml(text: string, file: string, folder: string): HostsFile {
  const invalid = (why: string) =>
    new KeelsonError('CONFIG_INVALID', `${file}: ${why}`, {
      hint: 'images of this registry cannot be pulled until the file is corrected',
    });
  if (text.length > largestFile) throw invalid(`it has more than ${largestFile} characters`);
  let root: unknown;
  try {
    root = parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw invalid('it is not TOML');
    // The message goes on with the lines around the mistake, which may hold a secret.
    const why = error.message.split('\n')[0]!.replace(/^Invalid TOML document: /, '');
    throw invalid(`line ${error.line}, column ${error.column}: ${why}`);
  }
  if (!isObject(root)) throw invalid('it is not a table');
  const { host: table = {}, server } = root;
  if (!isObject(table)) throw invalid('host: expected tables such as [host."https://mirror.example"]');
  if (server !== undefined && typeof server !== 'string') {
    throw invalid('server: expected a text such as "https://registry.example"');
  }
  return {
    // Keys keep the order of the file, except those that look like array indexes, which no host does.
    hosts: Object.entries(table).map(([key, value]) => {
      const where = `host.${JSON.stringify(key)}`;
      if (!isObject(value)) throw invalid(`${where}: expected a table`);
      return {
        ...readAddress(key, value['override_path'], where, invalid),
        ...readSettings(value, where, folder, invalid),
      };
    }),
    server:
      server === undefined
        ? undefined
        : server === ''
          ? 'none'
          : readAddress(server, root['override_path'], 'server', invalid),
    serverSettings: readSettings(root, '', folder, invalid),
  };
}

type Invalid = (why: string) => KeelsonError;
type Table = Readonly<Record<string, unknown>>;

function readAddress(text: string, overridePath: unknown, where: string, invalid: Invalid): HostAddress {
  const expected = `${where}: expected a URL such as "https://mirror.example:5000" or a host name`;
  if (overridePath !== undefined && typeof overridePath !== 'boolean') {
    throw invalid(`${where}: override_path: expected true or false`);
  }
  const full = text.includes('://') ? text : `https://${text}`;
  if (/^\d*$/.test(text) || /[\s\\]/.test(text) || !URL.canParse(full)) throw invalid(expected);
  const url = new URL(full);
  const scheme = url.protocol.slice(0, -1);
  if ((scheme !== 'http' && scheme !== 'https') || url.hostname === '') throw invalid(expected);
  let path = url.pathname.replace(/\/{2,}/g, '/').replace(/\/$/, '');
  if (!overridePath && !path.endsWith('/v2')) path += '/v2';
  return { scheme, host: url.host, path };
}

function readSettings(table: Table, where: string, folder: string, invalid: Invalid): HostSettings {
  const fail = (field: string, expected: string) =>
    invalid(`${where === '' ? '' : `${where}: `}${field}: expected ${expected}`);
  const absolute = (path: string) => (isAbsolute(path) ? path : join(folder, path));

  const readCapabilities = (value: unknown): ReadonlySet<Capability> => {
    if (value === undefined || (Array.isArray(value) && value.length === 0)) return new Set(capabilities);
    const found = isTexts(value) ? value.map((name) => name.toLowerCase() as Capability) : [];
    if (found.length > 0 && found.every((name) => capabilities.includes(name))) return new Set(found);
    throw fail('capabilities', 'a list of "pull", "resolve" and "push"');
  };
  const readCa = (value: unknown): readonly string[] => {
    if (value === undefined) return [];
    const list = typeof value === 'string' ? [value] : value;
    if (isTexts(list) && !list.includes('')) return list.map(absolute);
    throw fail('ca', 'the path of a PEM file or a list of paths');
  };
  const readClient = (value: unknown): HostSettings['client'] => {
    if (value === undefined) return [];
    const list: readonly unknown[] | undefined =
      typeof value === 'string' ? [value] : Array.isArray(value) ? value : undefined;
    const pairs = list?.map((entry) => {
      const [cert, key = '', ...more] = typeof entry === 'string' ? [entry] : isTexts(entry) ? entry : [];
      const single = typeof entry === 'string' || (Array.isArray(entry) && entry.length === 2);
      if (!cert || more.length > 0 || !single) return undefined;
      return { cert: absolute(cert), key: key === '' ? undefined : absolute(key) };
    });
    if (pairs === undefined || pairs.includes(undefined)) {
      throw fail('client', 'the path of a PEM file, a list of paths, or a list of [certificate, key] pairs');
    }
    return pairs as HostSettings['client'];
  };
  const readHeaders = (value: unknown): Readonly<Record<string, string>> => {
    if (value === undefined) return {};
    if (!isObject(value)) throw fail('header', 'a table of header names and values');
    const headers: [string, string][] = Object.entries(value).map(([name, content]) => {
      const values = typeof content === 'string' ? [content] : content;
      const ours = ['host', 'content-length', 'connection', 'transfer-encoding', 'range', 'upgrade'];
      if (!/^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/.test(name) || ours.includes(name.toLowerCase())) {
        throw fail(`header.${JSON.stringify(name)}`, 'the name of a header that may be added');
      }
      if (!isTexts(values) || !values.every((text) => /^[\t\x20-\x7e\x80-\xff]*$/.test(text))) {
        throw fail(`header.${JSON.stringify(name)}`, 'a text on one line or a list of such');
      }
      return [name.toLowerCase(), values.join(', ')];
    });
    return Object.fromEntries(headers);
  };
  const { skip_verify: skipVerify, dial_timeout: dialTimeout, proxy } = table;
  if (skipVerify !== undefined && typeof skipVerify !== 'boolean') throw fail('skip_verify', 'true or false');
  let dialTimeoutMs: number | undefined;
  if (dialTimeout !== undefined && dialTimeout !== '') {
    dialTimeoutMs = typeof dialTimeout === 'string' ? parseGoDuration(dialTimeout) : undefined;
    if (dialTimeoutMs === undefined) throw fail('dial_timeout', 'a duration such as "3s" or "500ms"');
  }
  if (
    proxy !== undefined &&
    (typeof proxy !== 'string' || !URL.canParse(proxy) || !isProxy(new URL(proxy)))
  ) {
    throw fail('proxy', 'a URL such as "http://proxy.example:3128"');
  }
  return {
    capabilities: readCapabilities(table['capabilities']),
    ca: readCa(table['ca']),
    client: readClient(table['client']),
    skipVerify,
    headers: readHeaders(table['header']),
    dialTimeoutMs,
    proxy: proxy === undefined ? undefined : new URL(proxy),
  };
}

function isTexts(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every((entry) => typeof entry === 'string');
}

function isProxy({ protocol, hostname, pathname, search, hash }: URL): boolean {
  return (
    (protocol === 'http:' || protocol === 'https:') &&
    hostname !== '' &&
    (pathname === '/' || pathname === '') &&
    search === '' &&
    hash === ''
  );
}

/** A duration as Go writes it (`1m30s`, `1.5h`, `0`), not negative, in milliseconds; undefined for anything else. */
function parseGoDuration(text: string): number | undefined {
  const units: Readonly<Record<string, number>> = {
    ns: 1e-6,
    us: 1e-3,
    µs: 1e-3,
    μs: 1e-3,
    ms: 1,
    s: 1000,
    m: 60_000,
    h: 3_600_000,
  };
  if (/^\+?0$/.test(text)) return 0;
  const number = String.raw`(?:\d{1,15}\.?\d{0,15}|\.\d{1,15})`;
  if (!new RegExp(`^\\+?(?:${number}(?:ns|us|µs|μs|ms|s|m|h)){1,20}$`).test(text)) return undefined;
  let total = 0;
  for (const [, amount, unit] of text.matchAll(new RegExp(`(${number})(ns|us|µs|μs|ms|s|m|h)`, 'g'))) {
    total += Number(amount) * units[unit!]!;
  }
  return total > 2 ** 31 - 1 ? undefined : total > 0 ? Math.max(1, Math.round(total)) : 0;
}
