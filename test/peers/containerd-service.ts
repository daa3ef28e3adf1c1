/** containerd with folders and a socket of its own, for the pods of a test node: its network, its registry. */
import { access, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { makeCriClient } from '../../runtime/cri/client.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { listFolder } from '../../runtime/host/files.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { type ContainerdPrograms, containerdPrograms } from './containerd.ts';
import { cacheFolder } from './go-programs.ts';
import { type Daemon, startDaemon, waitFor } from './process.ts';

export interface ContainerdOptions {
  /** Everything goes below it; its path must be short enough for sockets. */
  readonly folder: string;
  readonly cniConfDir: string;
  /** Name of an image that holds the namespaces of pods. Registries on 127.0.0.1 are asked over plain http. */
  readonly sandboxImage: string;
  /** Folder with a `hosts.toml` for each registry. */
  readonly registries?: string;
}

export interface ContainerdService {
  readonly version: string;
  /** `unix:///…` */
  readonly endpoint: string;
  /** Starts it and waits until it answers, pods of a daemon before go on. */
  start(): Promise<void>;
  /** Its containers go on. */
  stop(): Promise<void>;
  /** Removes what network plugins' results it has left where they cannot be told to go elsewhere. It must not run. */
  forgetNetworks(): Promise<void>;
  readonly daemon: Daemon;
}

/** The programs, or the reason why they cannot be had here. */
export async function findContainerd(): Promise<ContainerdPrograms | { readonly missing: string }> {
  try {
    return await containerdPrograms(cacheFolder());
  } catch (error) {
    return { missing: `containerd cannot be had: ${String(error)}` };
  }
}

export async function prepareContainerd(
  programs: ContainerdPrograms,
  options: ContainerdOptions,
): Promise<ContainerdService> {
  const { folder } = options;
  const at = (name: string) => join(folder, name);
  const socket = at('run/containerd.sock');
  const endpoint = `unix://${socket}`;
  await mkdir(folder, { recursive: true });
  await writeFile(
    at('config.toml'),
    `version = 3
root = '${at('root')}'
state = '${at('run/state')}'
temp = '${at('temp')}'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt']
[grpc]
address = '${socket}'
[ttrpc]
address = '${socket}.ttrpc'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '${options.sandboxImage}'
${options.registries === undefined ? '' : `[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '${options.registries}'`}
[plugins.'io.containerd.cri.v1.runtime']
# Root of a container that the tests run in may not lower it.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dir = '${await pluginFolder()}'
conf_dir = '${options.cniConfDir}'
`,
  );
  let daemon: Daemon | undefined;
  const running = () => {
    if (daemon === undefined) throw new Error('containerd has not been started');
    return daemon;
  };
  return {
    version: programs.version,
    endpoint,
    get daemon() {
      return running();
    },
    async start() {
      daemon = await startDaemon(programs.containerd, ['--config', at('config.toml')], {
        logFile: at('containerd.log'),
        // Where it looks for its shim.
        env: { PATH: `${dirname(programs.containerd)}:${process.env['PATH']}` },
      });
      const client = makeCriClient({ endpoint, clock: systemClock, log: makeLogger('silent') });
      try {
        const ready = async () =>
          (await client.runtime.status()).every(({ status }) => status) ? true : undefined;
        await waitFor('containerd', ready, { deadlineMs: 60_000, daemon });
      } finally {
        client.close();
      }
    },
    stop: () => running().stop(),
    async forgetNetworks() {
      const results = '/var/lib/cni/results';
      for (const name of await listFolder(results)) {
        const path = join(results, name);
        const text = await readFile(path, 'utf8').catch(() => '');
        if (text.includes(folder)) await rm(path, { force: true });
      }
    },
  };
}

async function pluginFolder(): Promise<string> {
  for (const folder of ['/opt/cni/bin', '/usr/lib/cni']) {
    if (
      await access(join(folder, 'bridge')).then(
        () => true,
        () => false,
      )
    ) {
      return folder;
    }
  }
  throw new KeelsonError('DEPENDENCY_MISSING', 'no network plugins: install containernetworking-plugins');
}
