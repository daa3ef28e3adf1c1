/**
 * Results of plugins (CNI specification, section 5), in one inner form that every version converts from and to. Pure.
 *
 * 0.3.x and 0.4.0 name the family of each address (`version`), 1.0.0 does not, 1.1.0 adds fields to interfaces and
 * routes. Newer fields are kept where libcni keeps them: those of routes always, those of interfaces since 1.0.0, as
 * plugins built today write them into results of older versions too. What no version knows is dropped, as libcni does.
 */
import { isIP } from 'node:net';
import { atLeast, type CniVersion, isKnown } from './version.ts';

export interface ResultInterface {
  readonly name: string;
  readonly mac?: string;
  /** Path of the network namespace; absent or empty for an interface of the host. */
  readonly sandbox?: string;
  readonly mtu?: number;
  readonly socketPath?: string;
  readonly pciID?: string;
}

export interface ResultAddress {
  /** With its prefix length: `10.1.2.3/24`. */
  readonly address: string;
  readonly gateway?: string;
  /** Index in `interfaces`. */
  readonly interface?: number;
}

export interface ResultRoute {
  readonly dst: string;
  readonly gw?: string;
  readonly mtu?: number;
  readonly advmss?: number;
  readonly priority?: number;
  readonly table?: number;
  readonly scope?: number;
}

export interface ResultDns {
  readonly nameservers?: readonly string[];
  readonly domain?: string;
  readonly search?: readonly string[];
  readonly options?: readonly string[];
}

export interface CniResult {
  readonly interfaces: readonly ResultInterface[];
  readonly ips: readonly ResultAddress[];
  readonly routes: readonly ResultRoute[];
  readonly dns: ResultDns;
}

/** Why a text is no result: a sentence without a subject. Becomes a CNI_PLUGIN_FAILED where the plugin is known. */
export class ResultProblem extends Error {}

type Json = Readonly<Record<string, unknown>>;

function object(value: unknown, what: string): Json {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ResultProblem(`${what} is not an object`);
  }
  return value as Json;
}

/** Go writes empty lists as null or leaves them out. */
function list(value: unknown, what: string): readonly unknown[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) throw new ResultProblem(`${what} is not a list`);
  if (value.length > 1024) throw new ResultProblem(`${what} has more than 1024 entries`);
  return value;
}

function text(value: unknown, what: string): string | undefined {
  if (value === undefined || value === null || value === '') return undefined;
  if (typeof value !== 'string') throw new ResultProblem(`${what} is not a string`);
  return value;
}

function number(value: unknown, what: string): number | undefined {
  if (value === undefined || value === null) return undefined;
  if (!Number.isSafeInteger(value)) throw new ResultProblem(`${what} is not a whole number`);
  return value as number;
}

/** No zone, which Node.js takes for a part of an address and nobody else does here. */
function isAddress(value: string): boolean {
  return isIP(value) !== 0 && !value.includes('%');
}

function ip(value: unknown, what: string): string | undefined {
  const found = text(value, what);
  if (found !== undefined && !isAddress(found)) throw new ResultProblem(`${what} is not an IP address`);
  return found;
}

function cidr(value: unknown, what: string): string {
  const match = typeof value === 'string' ? /^([^/]+)\/(\d{1,3})$/.exec(value) : null;
  const family = isIP(match?.[1] ?? '');
  if (match === null || !isAddress(match[1]!) || Number(match[2]) > (family === 4 ? 32 : 128)) {
    throw new ResultProblem(`${what} is not an address with a prefix length`);
  }
  return match[0];
}

/** Leaves out what is undefined, so that results compare and print as plugins write them. */
function compact<T extends object>(value: T): T {
  return Object.fromEntries(Object.entries(value).filter(([, entry]) => entry !== undefined)) as T;
}

/**
 * Reads the JSON value of a result. `configVersion` is the version of the configuration that the plugin was given,
 * which counts where the result names none (libcni does the same). Throws ResultProblem.
 */
export function readResult(value: unknown, configVersion: CniVersion): CniResult {
  const result = object(value, 'the result');
  const version = text(result['cniVersion'], 'cniVersion') ?? configVersion;
  if (!isKnown(version)) throw new ResultProblem(`its version ${version.slice(0, 40)} is not supported`);
  const interfaces = list(result['interfaces'], 'interfaces').map((entry, index): ResultInterface => {
    const what = `interfaces[${index}]`;
    const from = object(entry, what);
    return compact({
      name: text(from['name'], `${what}.name`) ?? '',
      mac: text(from['mac'], `${what}.mac`),
      sandbox: text(from['sandbox'], `${what}.sandbox`),
      mtu: number(from['mtu'], `${what}.mtu`),
      socketPath: text(from['socketPath'], `${what}.socketPath`),
      pciID: text(from['pciID'], `${what}.pciID`),
    });
  });
  const ips = list(result['ips'], 'ips').map((entry, index): ResultAddress => {
    const what = `ips[${index}]`;
    const from = object(entry, what);
    const at = number(from['interface'], `${what}.interface`);
    // libvirt-minded plugins write -1 for "none"; anything else must point into the list.
    if (at !== undefined && at >= interfaces.length) {
      throw new ResultProblem(`${what}.interface points to no interface`);
    }
    return compact({
      address: cidr(from['address'], `${what}.address`),
      gateway: ip(from['gateway'], `${what}.gateway`),
      interface: at !== undefined && at < 0 ? undefined : at,
    });
  });
  const routes = list(result['routes'], 'routes').map((entry, index): ResultRoute => {
    const what = `routes[${index}]`;
    const from = object(entry, what);
    return compact({
      dst: cidr(from['dst'], `${what}.dst`),
      gw: ip(from['gw'], `${what}.gw`),
      mtu: number(from['mtu'], `${what}.mtu`),
      advmss: number(from['advmss'], `${what}.advmss`),
      priority: number(from['priority'], `${what}.priority`),
      table: number(from['table'], `${what}.table`),
      scope: number(from['scope'], `${what}.scope`),
    });
  });
  const dns = object(result['dns'] ?? {}, 'dns');
  const strings = (key: string): string[] | undefined => {
    const found = list(dns[key], `dns.${key}`).map((entry) => text(entry, `dns.${key}`) ?? '');
    return found.length === 0 ? undefined : found;
  };
  return {
    interfaces,
    ips,
    routes,
    dns: compact({
      nameservers: strings('nameservers'),
      domain: text(dns['domain'], 'dns.domain'),
      search: strings('search'),
      options: strings('options'),
    }),
  };
}

/** The result as `version` writes it: for `prevResult` and for the cache. */
export function writeResult(result: CniResult, version: CniVersion): Record<string, unknown> {
  const { interfaces, ips, routes, dns } = result;
  const named = !atLeast(version, '1.0.0');
  return compact({
    cniVersion: version,
    interfaces:
      interfaces.length === 0
        ? undefined
        : interfaces.map(({ name, mac, sandbox, mtu, socketPath, pciID }) =>
            compact({ name, mac, sandbox, ...(named ? {} : { mtu, socketPath, pciID }) }),
          ),
    ips:
      ips.length === 0
        ? undefined
        : ips.map((entry) =>
            named ? { version: isIP(entry.address.split('/')[0]!) === 6 ? '6' : '4', ...entry } : entry,
          ),
    routes: routes.length === 0 ? undefined : routes,
    dns,
  });
}

/**
 * The addresses of interface `ifName` in the sandbox, without prefix lengths, in the plugin's order; all addresses
 * where the result does not say whose they are, but for the loopback interface's.
 */
export function addressesOf(result: CniResult, ifName: string): string[] {
  const ours = result.ips.filter(({ interface: at }) => {
    const owner = at === undefined ? undefined : result.interfaces[at];
    return owner === undefined || (owner.name === ifName && (owner.sandbox ?? '') !== '');
  });
  const found = (ours.length === 0 ? result.ips : ours).map(({ address }) => address.split('/')[0]!);
  return [...new Set(found)].filter((address) => !/^127\.|^(0*:)+0*1$/.test(address));
}
