/** A stock kubelet for a test node: in the node's folders, on the node's ports, on whatever runtime its socket has. */
import { existsSync } from 'node:fs';
import { mkdir, readFile, rmdir, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { cgroupHierarchies } from './machine.ts';
import type { TestNode } from './node.ts';
import { type Daemon, startDaemon } from './process.ts';

export interface KubeletOptions {
  readonly program: string;
  readonly node: Pick<TestNode, 'name' | 'paths' | 'ports' | 'cgroupRoot'>;
  readonly kubeconfig: string;
  readonly clientCaFile: string;
  /** `unix:///…` */
  readonly endpoint: string;
  /** Fields over the defaults below. */
  readonly config?: Readonly<Record<string, unknown>>;
}

/** What kubelet sets for the whole machine when it starts, whatever its configuration says. */
const tunables = ['vm/overcommit_memory', 'vm/panic_on_oom', 'kernel/panic', 'kernel/panic_on_oops'].map(
  (name) => `/proc/sys/${name}`,
);
/** Where it listens for device plugins, whatever its --root-dir is, innermost first. */
const elsewhere = ['/var/lib/kubelet/device-plugins', '/var/lib/kubelet', '/var/log/containers'];

export interface Kubelet {
  readonly daemon: Daemon;
  /** KILL, and everything of the machine that it has changed is as it was. Its pods go on. */
  end(): Promise<void>;
}

export async function startKubelet(options: KubeletOptions): Promise<Kubelet> {
  const { node } = options;
  const { paths, ports } = node;
  const at = (name: string) => join(paths.folder, name);
  await mkdir(at('kubelet-plugins'), { recursive: true });
  // kubelet wants the root of its cgroups to be there.
  for (const hierarchy of await cgroupHierarchies()) {
    await mkdir(join(hierarchy, node.cgroupRoot), { recursive: true });
  }
  const config = {
    kind: 'KubeletConfiguration',
    apiVersion: 'kubelet.config.k8s.io/v1beta1',
    port: ports.api,
    healthzPort: ports.healthz,
    readOnlyPort: 0,
    authentication: { x509: { clientCAFile: options.clientCaFile }, anonymous: { enabled: false } },
    containerRuntimeEndpoint: options.endpoint,
    cgroupDriver: 'cgroupfs',
    cgroupRoot: node.cgroupRoot,
    podLogsDir: paths.podLogsDir,
    volumePluginDir: at('kubelet-plugins'),
    // The machine of the tests: cgroup v1, swap, a disk that is rather full, a root user without CAP_SYS_RESOURCE.
    failCgroupV1: false,
    failSwapOn: false,
    enforceNodeAllocatable: [],
    evictionHard: { 'memory.available': '0%', 'nodefs.available': '0%', 'imagefs.available': '0%' },
    imageGCHighThresholdPercent: 100,
    localStorageCapacityIsolation: false,
    protectKernelDefaults: false,
    makeIPTablesUtilChains: false,
    nodeStatusUpdateFrequency: '2s',
    ...options.config,
  };
  await writeFile(at('kubelet.json'), JSON.stringify(config, null, 2));
  const before = await Promise.all(tunables.map((path) => readFile(path, 'utf8')));
  const made = elsewhere.filter((folder) => !existsSync(folder));
  const daemon = await startDaemon(
    options.program,
    [
      ...['--config', at('kubelet.json'), '--kubeconfig', options.kubeconfig],
      ...['--hostname-override', node.name, '--root-dir', paths.kubeletDir],
      ...['--cert-dir', at('kubelet-pki'), '--v', '2'],
    ],
    { logFile: at('kubelet.log') },
  );
  return {
    daemon,
    async end() {
      await daemon.kill();
      for (const [index, path] of tunables.entries()) await writeFile(path, before[index]!);
      if (made.length > 0) await unlink(join(elsewhere[0]!, 'kubelet.sock')).catch(() => {});
      for (const folder of made) await rmdir(folder).catch(() => {});
    },
  };
}
