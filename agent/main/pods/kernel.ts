/** What of the host the pods' limits depend on, read once. */
import { existsSync, readdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { AgentConfig } from '../../config/load.ts';
import type { NodeFacts } from '../../node/facts.ts';
import { type KernelSettings, swapDevices } from '../../pods/resources/kernel_limits.ts';

/** Throws FAILED_PRECONDITION where the configuration forbids swap and the host has some on. */
export async function kernelSettings(
  config: AgentConfig,
  facts: NodeFacts,
  cgroupVersion: 1 | 2,
  root = '/sys/fs/cgroup',
): Promise<KernelSettings> {
  if (config.failSwapOn) {
    const swaps = swapDevices(await readFile('/proc/swaps', 'utf8').catch(() => ''));
    if (swaps.length > 0)
      throw new KeelsonError(
        'FAILED_PRECONDITION',
        `running with swap on is not supported (failSwapOn): ${swaps.join(', ')}`,
        { hint: 'disable swap (swapoff -a), or set failSwapOn: false' },
      );
  }
  return {
    cgroupVersion,
    swapControl: cgroupVersion === 2 && hasSwapControl(root),
    swapBehavior: config.memorySwap.swapBehavior === 'LimitedSwap' ? 'LimitedSwap' : 'NoSwap',
    memoryBytes: facts.memoryBytes,
    swapBytes: facts.swapBytes,
    hugepages: Object.keys(facts.hugepages),
    singleProcessOOMKill: config.singleProcessOOMKill ?? cgroupVersion === 1,
  };
}

/** The root of the tree has no such file: any group below it tells. */
function hasSwapControl(root: string): boolean {
  return readdirSync(root, { withFileTypes: true }).some(
    (entry) => entry.isDirectory() && existsSync(`${root}/${entry.name}/memory.swap.max`),
  );
}
