/** Which version of the specification to speak with a network's plugins. */
import type { SettledNetwork } from './chain.ts';
import type { Network } from './config.ts';
import type { PluginRunner } from './plugin.ts';
import { type CniVersion, newest } from './version.ts';

/** `supportedVersions` of a plugin's answer to VERSION (specification, section 5); empty for what is none. Pure. */
export function readSupported(stdout: string): readonly string[] {
  try {
    const value: unknown = JSON.parse(stdout);
    const supported = (value as { supportedVersions?: unknown } | null)?.supportedVersions;
    return Array.isArray(supported) ? supported.filter((version) => typeof version === 'string') : [];
  } catch {
    return [];
  }
}

/**
 * The newest version that the configuration allows and all plugins know. Plugins are asked only where the
 * configuration leaves a choice; where the answers leave none, the configuration's newest is taken, so that the
 * plugin's own error reaches the user.
 */
export async function settleVersion(
  network: Network,
  runner: PluginRunner,
  signal?: AbortSignal,
): Promise<SettledNetwork> {
  const last = network.versions.at(-1)!;
  if (network.versions.length === 1) return { network, version: last };
  const types = new Set(
    network.plugins.flatMap(({ type, ipamType }) => (ipamType === undefined ? [type] : [type, ipamType])),
  );
  const answers = await Promise.all(
    [...types].map(async (type) =>
      readSupported(
        await runner.run({
          command: 'VERSION',
          network: network.name,
          type,
          input: JSON.stringify({ cniVersion: last }),
          // Old plugins look at these even for VERSION.
          containerId: 'dummy',
          netns: 'dummy',
          ifName: 'dummy',
          signal,
        }),
      ),
    ),
  );
  const common: CniVersion[] = network.versions.filter((version) =>
    answers.every((supported) => supported.includes(version)),
  );
  return { network, version: newest(common) ?? last };
}
