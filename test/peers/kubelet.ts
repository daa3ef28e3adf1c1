/** A stock kubelet for a test node: in the node's folders, on the node's ports, on whatever runtime its socket has. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { cgroupHierarchies } from './machine.ts';
import type { TestNode } from './node.ts';
import { type Daemon, startDaemon } from './process.ts';

export interface KubeletOptions {
  readonly program: string;
  readonly node: TestNode;
  readonly kubeconfig: string;
  readonly clientCaFile: string;
  /** `unix:///…` */
  readonly endpoint: string;
}

/** Starts it; it ends with `stop()` of what is returned, its pods go on. */
export async function startKubelet(options: KubeletOptions): Promise<Daemon> {
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
  };
  await writeFile(at('kubelet.json'), JSON.stringify(config, null, 2));
  return startDaemon(
    options.program,
    [
      ...['--config', at('kubelet.json'), '--kubeconfig', options.kubeconfig],
      ...['--hostname-override', node.name, '--root-dir', paths.kubeletDir],
      ...['--cert-dir', at('kubelet-pki'), '--v', '2'],
    ],
    { logFile: at('kubelet.log') },
  );
}
