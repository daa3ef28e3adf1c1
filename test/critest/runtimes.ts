/** The runtimes that critest can be run against, each started with folders, a network and a registry of its own. */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { exec } from '../../runtime/host/exec.ts';
import { containerdPrograms } from '../peers/containerd.ts';
import { cacheFolder } from '../peers/go-programs.ts';
import { type Daemon, startDaemon, waitFor } from '../peers/process.ts';
import { hostsToml, sandboxImage } from './images.ts';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const pluginFolders = ['/opt/cni/bin', '/usr/lib/cni'];

export interface Place {
  /** Everything of the runtime goes below it. */
  readonly folder: string;
  /** `127.0.0.1:PORT`: answers for every registry. */
  readonly registry: string;
  readonly crictl: string;
  readonly signal: AbortSignal;
  /** A runtime besides runc, named as its program. */
  readonly handler?: string;
  /** Where more than one runtime runs on the machine. Default: `critest`, `critest0`, `10.88.0.0/16`. */
  readonly network?: { readonly name: string; readonly bridge: string; readonly subnet: string };
}

export interface ServedRuntime {
  readonly socket: string;
  readonly daemon: Daemon;
}

export const peers = ['keelson', 'containerd'] as const;
export type Peer = (typeof peers)[number];

/** Starts it and waits until it says over the CRI that it and its network are ready. */
export async function startRuntime(peer: Peer, place: Place): Promise<ServedRuntime> {
  await writeRegistries(place);
  await writeNetwork(place);
  const runtime = await (peer === 'keelson' ? startKeelson(place) : startContainerd(place));
  const ready = async () => {
    const { stdout } = await exec(place.crictl, ['--runtime-endpoint', `unix://${runtime.socket}`, 'info'], {
      deadlineMs: 10_000,
      signal: place.signal,
    });
    const { status } = JSON.parse(stdout.toString('utf8')) as {
      status: { conditions: { type: string; status: boolean }[] };
    };
    // containerd has more conditions, about warnings, which may be false.
    const holds = (type: string) => status.conditions.some((one) => one.type === type && one.status);
    return holds('RuntimeReady') && holds('NetworkReady') ? true : undefined;
  };
  await waitFor('the runtime to be ready', ready, { deadlineMs: 60_000, daemon: runtime.daemon });
  return runtime;
}

const registries = (place: Place) => join(place.folder, 'certs.d');
const networks = (place: Place) => join(place.folder, 'net.d');

async function writeRegistries(place: Place): Promise<void> {
  const all = join(registries(place), '_default');
  await mkdir(all, { recursive: true });
  await writeFile(join(all, 'hosts.toml'), hostsToml(place.registry));
}

const ownNetwork = { name: 'critest', bridge: 'critest0', subnet: '10.88.0.0/16' };

async function writeNetwork(place: Place): Promise<void> {
  const { name, bridge, subnet } = place.network ?? ownNetwork;
  const network = {
    cniVersion: '1.0.0',
    name,
    plugins: [
      {
        type: 'bridge',
        bridge,
        isGateway: true,
        ipMasq: true,
        hairpinMode: true,
        ipam: {
          type: 'host-local',
          dataDir: join(place.folder, 'ipam'),
          ranges: [[{ subnet }]],
          routes: [{ dst: '0.0.0.0/0' }],
        },
      },
      { type: 'portmap', capabilities: { portMappings: true } },
    ],
  };
  await mkdir(networks(place), { recursive: true });
  await writeFile(join(networks(place), '10-critest.conflist'), JSON.stringify(network, null, 2));
}

async function startKeelson(place: Place): Promise<ServedRuntime> {
  const at = (name: string) => join(place.folder, name);
  const config = {
    kind: 'KubeletConfiguration',
    apiVersion: 'kubelet.config.k8s.io/v1beta1',
    cgroupDriver: 'cgroupfs',
    podLogsDir: at('log/pods'),
    keelson: {
      stateDir: at('state'),
      runDir: at('run'),
      kubeletDir: at('kubelet'),
      containerLogsDir: at('log/containers'),
      cniConfDirs: [networks(place)],
      cniBinDirs: pluginFolders,
      cniCacheDir: at('cni-cache'),
      registryFolders: [registries(place)],
      runtimes: Object.fromEntries(['runc', place.handler ?? 'runc'].map((name) => [name, { path: name }])),
    },
  };
  // JSON is YAML.
  await writeFile(at('config.yaml'), JSON.stringify(config, null, 2));
  const daemon = await startDaemon(
    join(root, 'packaging/keelson'),
    ['runtime', '--config', at('config.yaml')],
    { logFile: at('runtime.log') },
  );
  return { socket: at('run/keelson.sock'), daemon };
}

async function startContainerd(place: Place): Promise<ServedRuntime> {
  const at = (name: string) => join(place.folder, name);
  const { containerd } = await containerdPrograms(cacheFolder(), place.signal);
  const socket = at('run/containerd.sock');
  // Where it keeps the results of network plugins cannot be chosen.
  await exec('sh', ['-c', 'mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni'], {
    deadlineMs: 5000,
  });
  const { stdout } = await exec('sh', ['-c', `ls -d ${pluginFolders.join(' ')} 2>/dev/null | head -1`], {
    deadlineMs: 5000,
  });
  await writeFile(
    at('config.toml'),
    `version = 3
root = '${at('root')}'
state = '${at('run/state')}'
temp = '${at('temp')}'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt']
[grpc]
address = '${socket}'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '${sandboxImage}'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '${registries(place)}'
[plugins.'io.containerd.cri.v1.runtime']
# Root of a container that the tests run in may not lower it.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dir = '${stdout.toString('utf8').trim()}'
conf_dir = '${networks(place)}'
`,
  );
  const daemon = await startDaemon(containerd, ['--config', at('config.toml')], {
    logFile: at('runtime.log'),
    // Where it looks for its shim.
    env: { PATH: `${dirname(containerd)}:${process.env['PATH']}` },
  });
  return { socket, daemon };
}
