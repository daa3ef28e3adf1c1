/** Can pods be attached now? */
import { describe, isError, KeelsonError } from '../runtime/host/errors.ts';
import type { Chain, SettledNetwork } from './chain.ts';
import type { Configured } from './folder.ts';
import { type PluginRunner, pluginPackage } from './plugin.ts';
import { atLeast } from './version.ts';

export interface Readiness {
  readonly ready: boolean;
  readonly reason: string;
  /** Why not, what to install, and which files were passed over. */
  readonly message: string;
}

/** The condition's reason where it is not, as the kubelet knows it. */
const notReady = 'NetworkPluginNotReady';

export function notConfigured(confDirs: readonly string[], skipped: readonly string[]): KeelsonError {
  const why = skipped.length === 0 ? '' : ` (${skipped.join('; ')})`;
  return new KeelsonError(
    'CNI_NOT_CONFIGURED',
    `no network is configured: no valid .conflist, .conf or .json file in ${confDirs.join(' or ')}${why}`,
    { hint: `install the package ${pluginPackage} and put a network configuration into ${confDirs[0]}` },
  );
}

/**
 * Is there a network, are its plugins there, and do they say so themselves (STATUS, since 1.1.0)? Throws only what is
 * not about the network, and where `signal` ends it.
 */
export async function readinessOf(
  configured: Configured,
  on: {
    readonly confDirs: readonly string[];
    readonly runner: PluginRunner;
    readonly chain: Chain;
    /** Milliseconds for the STATUS of each plugin: who asks, waits. */
    readonly deadlineMs: number;
    settle(configured: Configured): Promise<SettledNetwork | undefined>;
  },
  signal?: AbortSignal,
): Promise<Readiness> {
  const skipped = configured.skipped.length === 0 ? '' : `passed over: ${configured.skipped.join('; ')}`;
  const no = (message: string) => ({
    ready: false,
    reason: notReady,
    message: skipped === '' ? message : `${message}; ${skipped}`,
  });
  if (configured.network === undefined) return no(describe(notConfigured(on.confDirs, [])));
  try {
    const types = configured.network.plugins.flatMap(({ type, ipamType }) =>
      ipamType === undefined ? [type] : [type, ipamType],
    );
    await Promise.all([...new Set(types)].map((type) => on.runner.find(type)));
    const network = await on.settle(configured);
    if (network !== undefined && atLeast(network.version, '1.1.0')) {
      await on.chain.status(network, on.deadlineMs, signal);
    }
  } catch (error) {
    if (!isError(error) || signal?.aborted) throw error;
    return no(describe(error));
  }
  return { ready: true, reason: '', message: skipped };
}
