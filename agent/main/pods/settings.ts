/** What pods are run with: the configuration, and what the kernel of this node has. */
import type { AgentConfig } from '../../config/load.ts';
import { podsConfig } from '../../config/rooms.ts';
import type { NodeFacts } from '../../node/facts.ts';
import { kernelSettings } from './kernel.ts';
import { kernelSecurity } from './security.ts';

export async function podSettings(config: AgentConfig, facts: NodeFacts, cgroupVersion: 1 | 2) {
  const [{ maskedPaths, selinux, ...kernelHas }, kernel] = await Promise.all([
    kernelSecurity(config),
    kernelSettings(config, facts, cgroupVersion),
  ]);
  const settings = podsConfig(config);
  return {
    settings: { ...settings, kernel, security: { ...settings.security, maskedPaths, selinux } },
    /** For admission: what pods may ask of the kernel. */
    kernelHas,
  };
}
