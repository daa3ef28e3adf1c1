/** Capacity and allocatable of the node. Pure. */
import { formatBytes, formatMilli, milli, parseQuantity, wholeUnits } from '../apiserver/quantity.ts';
import type { NodeFacts } from './facts.ts';
import { thresholdValue } from './pressure.ts';
import type { NodeConfig } from './types.ts';

type Resources = Readonly<Record<string, string>>;
type ResourceConfig = Pick<
  NodeConfig,
  'maxPods' | 'podsPerCore' | 'kubeReserved' | 'systemReserved' | 'evictionHard'
>;

/** Which hard threshold is kept free of which resource. */
const evictionSignals: Readonly<Record<string, string>> = {
  memory: 'memory.available',
  'ephemeral-storage': 'nodefs.available',
};

/**
 * What the machine has, and what of it pods may use: capacity minus kubeReserved, systemReserved and the hard eviction
 * threshold, never negative. Resources that others wrote (`example.com/dongle`) stay as they are.
 */
export function nodeResources(
  facts: NodeFacts,
  config: ResourceConfig,
  previous: { readonly capacity?: Resources; readonly allocatable?: Resources } = {},
): { readonly capacity: Record<string, string>; readonly allocatable: Record<string, string> } {
  const pods = config.podsPerCore
    ? Math.min(config.podsPerCore * facts.cpus, config.maxPods)
    : config.maxPods;
  const own: Record<string, string> = {
    cpu: String(facts.cpus),
    memory: formatBytes(facts.memoryBytes),
    'ephemeral-storage': formatBytes(facts.nodefs.capacityBytes),
    pods: String(pods),
  };
  for (const [name, bytes] of Object.entries(facts.hugepages)) own[name] = formatBytes(bytes);
  const capacity = { ...foreign(previous.capacity), ...own };
  const allocatable: Record<string, string> = { ...foreign(previous.allocatable) };
  for (const [name, amount] of Object.entries(capacity)) {
    allocatable[name] = name in own ? free(name, amount, config, facts) : (allocatable[name] ?? amount);
  }
  for (const name of Object.keys(allocatable)) if (!(name in capacity)) delete allocatable[name];
  return { capacity, allocatable };
}

function free(name: string, amount: string, config: ResourceConfig, facts: NodeFacts): string {
  const reservations = [config.kubeReserved?.[name], config.systemReserved?.[name]];
  if (name === 'cpu') {
    const reserved = reservations.reduce((sum, value) => sum + (value === undefined ? 0 : milli(value)), 0);
    return formatMilli(Math.max(0, milli(amount) - reserved));
  }
  let left = parseQuantity(amount);
  for (const value of reservations) if (value !== undefined) left -= wholeUnits(value);
  const threshold = config.evictionHard?.[evictionSignals[name] ?? ''];
  if (threshold !== undefined) left -= Math.ceil(thresholdValue(threshold, parseQuantity(amount)) ?? 0);
  // Pages set aside cannot be used as ordinary memory.
  if (name === 'memory') for (const bytes of Object.values(facts.hugepages)) left -= bytes;
  return formatBytes(Math.max(0, left));
}

/** Extended resources have a domain; all others are this node's own to tell. */
function foreign(resources: Resources | undefined): Record<string, string> {
  return Object.fromEntries(Object.entries(resources ?? {}).filter(([name]) => name.includes('/')));
}
