/** Parsers of what the kernel and the distribution tell in files. Pure; what they do not know they leave out. */

/** Bytes by name, from /proc/meminfo. */
export function parseMeminfo(text: string): Readonly<Record<string, number>> {
  const found: Record<string, number> = {};
  for (const [, name, value, unit] of text.matchAll(/^([\w()]+):\s+(\d{1,15})(?: (kB))?\s*$/gm)) {
    found[name!] = Number(value) * (unit === undefined ? 1 : 1024);
  }
  return found;
}

/** How many are in a kernel list such as `0-3,8`; undefined where it is none. */
export function countCpus(text: string): number | undefined {
  let count = 0;
  for (const part of text.trim().split(',')) {
    const match = /^(\d{1,6})(?:-(\d{1,6}))?$/.exec(part);
    if (match === null) return undefined;
    const first = Number(match[1]);
    const last = Number(match[2] ?? match[1]);
    if (last < first) return undefined;
    count += last - first + 1;
  }
  return count;
}

/** Threads and processes that exist, from /proc/loadavg. */
export function parseTaskCount(loadavg: string): number | undefined {
  const match = /^(?:[\d.]+ ){3}\d+\/(\d{1,9}) /.exec(loadavg);
  return match === null ? undefined : Number(match[1]);
}

/** NAME=value lines with shell quoting: /etc/os-release (os-release(5)). */
export function parseOsRelease(text: string): Readonly<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const [, name, raw] of text.matchAll(/^([A-Z0-9_]+)=(.*)$/gm)) {
    const quoted = /^(["'])(.*)\1\s*$/.exec(raw!);
    const value = quoted === null ? raw!.trim() : quoted[2]!;
    found[name!] = quoted?.[1] === "'" ? value : value.replace(/\\(["$`\\])/g, '$1');
  }
  return found;
}

export interface DefaultRoute {
  readonly interface: string;
  readonly metric: number;
}

const routeUp = 0x1;
const routeReject = 0x200;

/** Default routes of /proc/net/route, best first. */
export function parseDefaultRoutes4(text: string): readonly DefaultRoute[] {
  const routes: DefaultRoute[] = [];
  for (const line of text.split('\n').slice(1)) {
    const [name, destination, , flags, , , metric, mask] = line.trim().split(/\s+/);
    if (destination !== '00000000' || mask !== '00000000') continue;
    if (!name || !usable(flags)) continue;
    routes.push({ interface: name, metric: Number(metric) || 0 });
  }
  return routes.sort((a, b) => a.metric - b.metric);
}

/** Default routes of /proc/net/ipv6_route, best first. */
export function parseDefaultRoutes6(text: string): readonly DefaultRoute[] {
  const routes: DefaultRoute[] = [];
  for (const line of text.split('\n')) {
    const fields = line.trim().split(/\s+/);
    const [destination, prefix, , , , metric, , , flags, name] = fields;
    if (fields.length !== 10 || !/^0{32}$/.test(destination!) || prefix !== '00') continue;
    if (!usable(flags) || name === 'lo') continue;
    routes.push({ interface: name!, metric: Number.parseInt(metric!, 16) || 0 });
  }
  return routes.sort((a, b) => a.metric - b.metric);
}

function usable(flags: string | undefined): boolean {
  const bits = Number.parseInt(flags ?? '', 16);
  return (bits & routeUp) !== 0 && (bits & routeReject) === 0;
}

/** The page size of a folder of /sys/kernel/mm/hugepages as Kubernetes names the resource: `hugepages-2Mi`. */
export function hugepageResource(
  folder: string,
): { readonly name: string; readonly pageBytes: number } | undefined {
  const match = /^hugepages-(\d{1,12})kB$/.exec(folder);
  if (match === null) return undefined;
  let size = Number(match[1]);
  let unit = 'Ki';
  for (const next of ['Mi', 'Gi', 'Ti']) {
    if (size === 0 || size % 1024 !== 0) break;
    size /= 1024;
    unit = next;
  }
  return { name: `hugepages-${size}${unit}`, pageBytes: Number(match[1]) * 1024 };
}
