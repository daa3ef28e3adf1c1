/**
 * CreateContainer wants the configuration of the sandbox once more, and no call gives it back. What containers need of it
 * is kept in an annotation of the sandbox, so that it is there after a restart of ours, too. Pure.
 */
import type { PodSandbox, PodSandboxConfig } from '../../api.ts';

const annotation = 'io.keelson.sandbox-config';

type Kept = Pick<PodSandboxConfig, 'hostname' | 'logDirectory' | 'linux'>;

export function withMemory(config: PodSandboxConfig): PodSandboxConfig {
  const { hostname, logDirectory, linux, annotations } = config;
  const kept: Kept = { hostname, logDirectory, linux };
  return { ...config, annotations: { ...annotations, [annotation]: JSON.stringify(kept) } };
}

export function withoutMemory<T extends PodSandbox>(sandbox: T): T {
  const { [annotation]: _, ...annotations } = sandbox.annotations;
  return { ...sandbox, annotations };
}

/** Undefined for a sandbox that somebody else has made. */
export function remembered(sandbox: PodSandbox): PodSandboxConfig | undefined {
  const { metadata, labels, annotations } = sandbox;
  const text = annotations[annotation];
  if (text === undefined) return undefined;
  const { hostname, logDirectory, linux } = JSON.parse(text) as Kept;
  return { metadata, labels, annotations, hostname, logDirectory, linux, portMappings: [] };
}
