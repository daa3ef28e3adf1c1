/**
 * Where the images of a registry come from on this node: its endpoints in order, from the `certs.d` folders in the
 * layout of containerd and Docker, with what each connection needs. Read again when a file has changed; each pull
 * asks once, which costs a few stat calls.
 */
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from '../../runtime/host/errors.ts';
import { endpointOf, isLoopback } from '../reference.ts';
import { type ClientSettings, clientSettings, readTls, unreadable } from './clients.ts';
import type { HostAddress, HostSettings, HostsFile } from './hosts_toml.ts';

export interface Endpoint extends HostAddress {
  /** `https://mirror.example:5000`, for messages. */
  readonly name: string;
  /** The registry that the image's name names, and not a mirror: it gets the credentials, and no `?ns=`. */
  readonly isRegistry: boolean;
  /** May say which digest a tag means. */
  readonly canResolve: boolean;
  /** May give what a digest names. */
  readonly canPull: boolean;
  /** Sent to this endpoint only. Lower case; values may be secrets. */
  readonly headers: Readonly<Record<string, string>>;
  readonly client: ClientSettings;
}

export interface Hosts {
  /**
   * The endpoints for a registry as it stands in image names, in the order in which they are tried; maybe none.
   * Throws CONFIG_INVALID, which names the file.
   */
  endpoints(domain: string): Promise<readonly Endpoint[]>;
}

export interface HostsOptions {
  /** The first one that has a folder for a registry (or `_default`) has all the say about it. */
  readonly folders: readonly string[];
  /** `host` or `host:port` of registries that speak plain http. Those on this machine do so on any port but 443. */
  readonly insecureRegistries: readonly string[];
  /**
   * A registry with at least one mirror is itself never asked, whatever its file says. Without it an unset `server`
   * means the registry itself as the last resort, as for containerd, whose files these are; one file can say the
   * same for its registry with `server = ""`, or, as containerd's manual advises, with a mirror as `server`.
   */
  readonly mirrorsOnly: boolean;
}

/** Milliseconds to connect to a mirror that has no dial_timeout, and to the registry itself. */
export const mirrorDialTimeoutMs = 3000;
export const registryDialTimeoutMs = 10_000;

/** A file younger than this (milliseconds) could change once more without a new time stamp. */
const settledAfter = 1000;
const mostCached = 200;

export function makeHosts(options: HostsOptions): Hosts {
  const cache = new Map<string, { stamp: string; files: readonly string[]; found: readonly Endpoint[] }>();

  return {
    async endpoints(domain) {
      const folder = await hostFolder(options.folders, domain);
      if (folder === undefined) return [upstreamOf(options, domain)];
      const id = `${domain} ${folder}`;
      const known = cache.get(id);
      if (known !== undefined && known.stamp === (await stampOf(known.files)).stamp) return known.found;
      cache.delete(id);
      const { found, files } = await load(options, domain, folder);
      const { stamp, newest } = await stampOf(files);
      if (Date.now() - newest > settledAfter) {
        if (cache.size >= mostCached) cache.clear();
        cache.set(id, { stamp, files, found });
      }
      return found;
    },
  };
}

/** The names that a registry's folder may have, the best first; `_default` is for all that have none. */
export function folderNames(domain: string): readonly string[] {
  const port = /:(\d+)$/.exec(domain);
  const withoutColon = port === null ? [] : [`${domain.slice(0, port.index)}_${port[1]}_`];
  return [...withoutColon, domain, '_default'];
}

async function hostFolder(folders: readonly string[], domain: string): Promise<string | undefined> {
  for (const folder of folders) {
    for (const name of folderNames(domain)) {
      const path = join(folder, name);
      try {
        if ((await stat(path)).isDirectory()) return path;
      } catch (error) {
        // A folder that cannot be looked into may forbid what we would do without it.
        if (errnoOf(error) !== 'ENOENT' && errnoOf(error) !== 'ENOTDIR') throw unreadable(path, error);
      }
    }
  }
  return undefined;
}

async function load(
  options: HostsOptions,
  domain: string,
  folder: string,
): Promise<{ found: readonly Endpoint[]; files: readonly string[] }> {
  const file = join(folder, 'hosts.toml');
  let text = '';
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw unreadable(file, error);
  }
  const config: HostsFile =
    text === ''
      ? await dockerPattern(folder)
      : (await import('./hosts_toml.ts')).parseHostsToml(text, file, folder); // Most nodes need no TOML.
  const settings = [...config.hosts, config.serverSettings];
  const files = [
    ...[folder, file],
    ...settings.flatMap(({ ca, client }) => [
      ...ca,
      ...client.flatMap(({ cert, key }) => [cert, key ?? cert]),
    ]),
  ];
  const endpoints = await Promise.all(config.hosts.map((host) => endpoint(domain, host, host, file)));
  if (config.server === undefined) {
    const upstream = upstreamOf(options, domain);
    const { ca, client } = config.serverSettings;
    // Certificates say that it does not speak plain http, even on this machine.
    const scheme = ca.length + client.length > 0 ? 'https' : upstream.scheme;
    const all: HostSettings = {
      ...config.serverSettings,
      capabilities: new Set(['pull', 'resolve', 'push']),
    };
    endpoints.push(await endpoint(domain, { scheme, host: upstream.host, path: '/v2' }, all, file));
  } else if (config.server !== 'none') {
    endpoints.push(await endpoint(domain, config.server, config.serverSettings, file));
  }
  const mirrors = endpoints.filter(({ isRegistry }) => !isRegistry);
  return { found: options.mirrorsOnly && mirrors.length > 0 ? mirrors : endpoints, files };
}

/** Docker's layout: `*.crt` are authorities, `*.cert` with `*.key` of the same name are client certificates. */
async function dockerPattern(folder: string): Promise<HostsFile> {
  let names: string[];
  try {
    names = (await readdir(folder)).sort();
  } catch (error) {
    throw unreadable(folder, error);
  }
  const client = names
    .filter((name) => name.endsWith('.cert'))
    .map((name) => {
      const key = `${name.slice(0, -'.cert'.length)}.key`;
      return { cert: join(folder, name), key: names.includes(key) ? join(folder, key) : undefined };
    });
  return {
    hosts: [],
    server: undefined,
    serverSettings: {
      capabilities: new Set(),
      ca: names.filter((name) => name.endsWith('.crt')).map((name) => join(folder, name)),
      client,
      skipVerify: undefined,
      headers: {},
      dialTimeoutMs: undefined,
      proxy: undefined,
    },
  };
}

async function endpoint(
  domain: string,
  address: HostAddress,
  settings: HostSettings,
  file: string,
): Promise<Endpoint> {
  const { scheme, path } = address;
  const host = endpointOf(address.host === 'index.docker.io' ? 'docker.io' : address.host);
  const isRegistry = sameHost(scheme, host, domain);
  const name = `${scheme}://${host}${path === '/v2' ? '' : path}`;
  return {
    scheme,
    host,
    path,
    name,
    isRegistry,
    canResolve: settings.capabilities.has('resolve') && settings.capabilities.has('pull'),
    canPull: settings.capabilities.has('pull'),
    headers: settings.headers,
    client: clientSettings(
      await readTls(settings, `${file}: ${name}`),
      settings.dialTimeoutMs ?? (isRegistry ? registryDialTimeoutMs : mirrorDialTimeoutMs),
      settings.proxy,
    ),
  };
}

/** The registry itself, as it is spoken to where nothing is configured. */
function upstreamOf(options: HostsOptions, domain: string): Endpoint {
  const securePort = !/:\d+$/.test(domain) || domain.endsWith(':443');
  const plain = options.insecureRegistries.includes(domain) || (isLoopback(domain) && !securePort);
  const scheme = plain ? 'http' : 'https';
  const host = endpointOf(domain);
  return {
    scheme,
    host,
    path: '/v2',
    name: `${scheme}://${host}`,
    isRegistry: true,
    canResolve: true,
    canPull: true,
    headers: {},
    client: clientSettings({}, registryDialTimeoutMs, undefined),
  };
}

/** Whether `host` is where the registry of `domain` answers; the default port may be written or not. */
function sameHost(scheme: string, host: string, domain: string): boolean {
  const normal = (name: string) => {
    const url = `${scheme}://${name}`;
    return URL.canParse(url) ? new URL(url).host : undefined;
  };
  return normal(host) !== undefined && normal(host) === normal(endpointOf(domain));
}

/** Changes when a file does; `newest` is the time (Unix, milliseconds) of the last change. */
async function stampOf(files: readonly string[]): Promise<{ stamp: string; newest: number }> {
  let newest = 0;
  const parts = await Promise.all(
    files.map(async (file) => {
      try {
        const { ctimeNs, mtimeNs, size, ino } = await stat(file, { bigint: true });
        newest = Math.max(newest, Number(ctimeNs / 1_000_000n));
        return `${ctimeNs} ${mtimeNs} ${size} ${ino}`;
      } catch (error) {
        return errnoOf(error) ?? 'unknown';
      }
    }),
  );
  return { stamp: parts.join('\n'), newest };
}
