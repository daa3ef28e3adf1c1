/** Which addresses the node gives itself. Pure. */
import { isIP } from 'node:net';
import type { NetworkInterfaceInfo } from 'node:os';
import type { DefaultRoute } from './procfs.ts';

export interface HostNetwork {
  /** As `os.networkInterfaces` gives them. */
  readonly interfaces: Readonly<Record<string, readonly NetworkInterfaceInfo[] | undefined>>;
  readonly routes4: readonly DefaultRoute[];
  readonly routes6: readonly DefaultRoute[];
}

/**
 * The node's InternalIPs, primary first. `wanted` (nodeIP) is taken as it is; `0.0.0.0` and `::` in it only choose a
 * family. Else: the first global address of the interface of the best default route, IPv4 before IPv6 as kubelet
 * does; without a default route, the first global address of any interface. May be empty: addresses come late.
 */
export function internalIps(wanted: readonly string[], network: HostNetwork): readonly string[] {
  const found: string[] = [];
  for (const address of wanted) {
    if (address === '0.0.0.0') push(found, pick(network, 4));
    else if (address === '::') push(found, pick(network, 6));
    else if (isIP(address) !== 0) push(found, address);
  }
  if (wanted.length === 0) push(found, pick(network, 4) ?? pick(network, 6));
  return found;
}

/** `10.0.0.1,fd00::1` as the configuration writes it. */
export function splitNodeIp(nodeIp: string | undefined): readonly string[] {
  return (nodeIp ?? '')
    .split(',')
    .map((part) => part.trim())
    .filter((part) => part !== '');
}

function pick(network: HostNetwork, family: 4 | 6): string | undefined {
  const routes = family === 4 ? network.routes4 : network.routes6;
  const names = [...routes.map((route) => route.interface), ...Object.keys(network.interfaces)];
  // An interface without a default route is only asked where there is no route at all: it may be a pod bridge.
  for (const name of routes.length > 0 ? names.slice(0, routes.length) : names) {
    const info = network.interfaces[name]?.find((one) => isGlobal(one, family));
    if (info !== undefined) return info.address;
  }
  return undefined;
}

function isGlobal({ address, family, internal }: NetworkInterfaceInfo, wanted: 4 | 6): boolean {
  if (internal || family !== `IPv${wanted}`) return false;
  return wanted === 4 ? !address.startsWith('169.254.') : !/^fe[89ab]/i.test(address);
}

function push(list: string[], address: string | undefined): void {
  if (address !== undefined && !list.includes(address)) list.push(address);
}
