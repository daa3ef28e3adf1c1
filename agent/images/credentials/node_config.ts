/** The node's own docker configuration: kubelet's search path, read again when the file has changed. */
import { readFile, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { errnoOf } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import { type DockerConfig, type DockerEntry, parseDockerConfig } from './docker_config.ts';

export interface NodeConfig {
  /** The entries of the first file that is there and can be read. Never throws: faults are logged, once each. */
  read(): Promise<readonly DockerEntry[]>;
}

export interface Candidate {
  readonly path: string;
  readonly shape: 'json' | 'legacy';
}

/** All config.json before all .dockercfg, as kubelet (pkg/credentialprovider/config.go) has them. */
export function nodeConfigCandidates(
  kubeletDir: string,
  workingDir = process.cwd(),
  home = homedir(),
): Candidate[] {
  const json = [kubeletDir, workingDir, join(home, '.docker'), '/.docker'];
  const legacy = [kubeletDir, workingDir, home, '/'];
  return [
    ...json.map((folder) => ({ path: resolve(folder, 'config.json'), shape: 'json' as const })),
    ...legacy.map((folder) => ({ path: resolve(folder, '.dockercfg'), shape: 'legacy' as const })),
  ];
}

/** A larger file is not one of credentials. */
const largest = 1 << 20;

export function makeNodeConfig(candidates: readonly Candidate[], log: Logger): NodeConfig {
  const kept = new Map<string, { readonly version: string; readonly config: DockerConfig }>();

  async function load({ path, shape }: Candidate): Promise<DockerConfig | undefined> {
    try {
      const { mtimeNs, ctimeNs, size, ino, mode } = await stat(path, { bigint: true });
      const version = [mtimeNs, ctimeNs, size, ino].join(' ');
      const before = kept.get(path);
      if (before?.version === version) return before.config;
      if (size > largest) throw new Error(`it has ${size} bytes`);
      const config = parseDockerConfig(await readFile(path, 'utf8'), shape);
      kept.set(path, { version, config });
      for (const fault of config.faults) log.warn({ path }, `credentials of the node: ${fault}`);
      if ((mode & 0o004n) !== 0n && config.entries.length > 0)
        log.warn({ path }, 'credentials of the node can be read by every user: chmod 600 would keep them');
      return config;
    } catch (error) {
      const errno = errnoOf(error);
      if (errno !== 'ENOENT' && errno !== 'ENOTDIR' && kept.get(path)?.version !== String(error)) {
        kept.set(path, { version: String(error), config: { entries: [], faults: [], unusable: true } });
        log.warn({ err: error, path }, 'cannot read the credentials of the node');
      }
      return undefined;
    }
  }

  return {
    async read() {
      for (const candidate of candidates) {
        const config = await load(candidate);
        if (config !== undefined && !config.unusable) return config.entries;
      }
      return [];
    },
  };
}
