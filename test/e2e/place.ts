/** What the suite runs against: a network interface, a registry, a control plane, and a node with a machine to itself. */
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Node } from 'kubernetes-types/core/v1.js';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';
import { hostsToml } from '../critest/images.ts';
import { kubeletProgram } from '../peers/binaries.ts';
import { type Cluster, startCluster } from '../peers/cluster.ts';
import { findContainerd, prepareContainerd } from '../peers/containerd-service.ts';
import { startKubelet } from '../peers/kubelet.ts';
import { startNode } from '../peers/node.ts';
import { type Daemon, startDaemon, waitFor } from '../peers/process.ts';
import { sandboxImage } from './images.ts';

const address = '192.0.2.10';
const nodeName = 'e2e-node';
/** Nobody answers there: no spec of the node or of volumes asks for names of services. */
const dnsAddress = '10.217.0.10';
const serviceAddress = '10.217.0.1';
/** Where specs look for a node's files, whatever its configuration says. */
const folders = [
  '/var/lib/kubelet',
  '/var/lib/keelson',
  '/var/log/pods',
  '/var/log/containers',
  '/var/lib/cni',
];

/** An address for the node, and its own folders in the places where every node has them. To be called after `settleApart`. */
export async function furnish(folder: string): Promise<void> {
  const script = [
    `hostname ${nodeName}`,
    'ip link add node0 type veth peer name world0',
    'ip link set world0 up',
    `ip address add ${address}/24 dev node0`,
    'ip link set node0 up',
    'ip route add default dev node0',
    ...folders.map((target) => {
      const source = join(folder, 'machine', target);
      return `mkdir -p '${source}' '${target}' && mount --bind '${source}' '${target}' && mount --make-rshared '${target}'`;
    }),
  ];
  await exec('sh', ['-ec', script.join('\n')], { deadlineMs: 30_000 });
}

/** Asked of the kernel, in the network namespace that is the machine's own. */
export async function hasDummyLinks(): Promise<boolean> {
  const script = 'ip link add dummy-try type dummy && ip link delete dummy-try';
  return (await exec('sh', ['-c', script], { deadlineMs: 10_000, okCodes: 'any' })).code === 0;
}

/** Asked of the kernel: it takes CAP_SYS_RESOURCE. */
export async function lowersOomScores(): Promise<boolean> {
  const script = 'echo -997 > /proc/self/oom_score_adj';
  return (await exec('sh', ['-c', script], { deadlineMs: 10_000, okCodes: 'any' })).code === 0;
}

export const peers = ['keelson', 'kubelet'] as const;
export type Peer = (typeof peers)[number];

export interface Place {
  readonly cluster: Cluster;
  /** Of the process that is the node. */
  readonly daemon: Daemon;
  readonly runtimeEndpoint: string;
  close(): Promise<void>;
}

/** A registry that specs start in a pod on the node's network: the only one that is asked itself. */
const podRegistry = 'localhost:5000';

/** Starts the control plane and the node, `registry` answering for all other registries, and waits until the node is Ready. */
export async function setPlace(peer: Peer, folder: string, registry: string): Promise<Place> {
  const registries = join(folder, 'certs.d');
  for (const [name, host] of [
    ['_default', registry],
    [podRegistry, podRegistry],
  ] as const) {
    await mkdir(join(registries, name), { recursive: true });
    await writeFile(join(registries, name, 'hosts.toml'), hostsToml(host));
  }
  const cluster = await startCluster();
  let served: { readonly daemon: Daemon; readonly runtimeEndpoint: string } | undefined;
  let posing: Daemon | undefined;
  const close = async () => {
    await served?.daemon.kill();
    await posing?.kill();
    await cluster.close();
  };
  try {
    await serveToPods(cluster.url);
    if (peer === 'keelson') posing = await poseAsKubelet(folder);
    served = await (peer === 'keelson' ? startKeelson : startStock)({ cluster, folder, registries });
    const { daemon } = served;
    const ready = async () => {
      const object = await cluster.read<Node>(`/api/v1/nodes/${nodeName}`);
      const conditions = object?.status?.conditions ?? [];
      const isReady = conditions.some(({ type, status }) => type === 'Ready' && status === 'True');
      return isReady && (object?.spec?.taints ?? []).length === 0 ? true : undefined;
    };
    await waitFor('the node to be Ready', ready, { deadlineMs: 90_000, daemon });
    return { cluster, ...served, close };
  } catch (error) {
    await close();
    throw error;
  }
}

interface Wanted {
  readonly cluster: Cluster;
  readonly folder: string;
  readonly registries: string;
}

async function startKeelson({ cluster, registries }: Wanted) {
  const node = await startNode({
    name: nodeName,
    kubeconfig: ({ name }) => cluster.makeNodeKubeconfig(name),
    config: {
      port: 10_250,
      healthzPort: 10_248,
      cgroupRoot: '/',
      podLogsDir: '/var/log/pods',
      authentication: { x509: { clientCAFile: cluster.caFile } },
      clusterDNS: [dnsAddress],
      clusterDomain: 'cluster.local',
      registryPullQPS: 0,
      // The machine's disk is what it is.
      imageGCHighThresholdPercent: 100,
      keelson: {
        stateDir: '/var/lib/keelson',
        runDir: '/run/keelson',
        kubeletDir: '/var/lib/kubelet',
        containerLogsDir: '/var/log/containers',
        cniCacheDir: '/var/lib/cni',
        registryFolders: [registries],
      },
    },
  });
  return { daemon: node.agent, runtimeEndpoint: 'unix:///run/keelson/keelson.sock' };
}

/** kubelet of the suite's version on Debian sid's containerd: tells what the machine or a stand-in is to blame for. */
async function startStock({ cluster, folder, registries }: Wanted) {
  const [kubelet, containerd] = await Promise.all([kubeletProgram(), findContainerd()]);
  if (typeof kubelet !== 'string') throw new KeelsonError('DEPENDENCY_MISSING', kubelet.missing);
  if ('missing' in containerd) throw new KeelsonError('DEPENDENCY_MISSING', containerd.missing);
  const node = await startNode({ name: nodeName, start: false });
  const runtime = await prepareContainerd(containerd, {
    folder: join(folder, 'containerd'),
    cniConfDir: node.paths.cniConfDir,
    sandboxImage,
    registries,
  });
  await runtime.start();
  const started = await startKubelet({
    program: kubelet,
    node: { name: nodeName, paths: node.paths, cgroupRoot: '/', ports: { api: 10_250, healthz: 10_248 } },
    kubeconfig: await cluster.makeNodeKubeconfig(nodeName),
    clientCaFile: cluster.caFile,
    endpoint: runtime.endpoint,
    config: { clusterDNS: [dnsAddress], clusterDomain: 'cluster.local', registryPullQPS: 0 },
  });
  return { daemon: started.daemon, runtimeEndpoint: runtime.endpoint };
}

/** Specs enter the mount namespace of a process of this name, which is the machine's. */
async function poseAsKubelet(folder: string): Promise<Daemon> {
  const name = join(folder, 'kubelet');
  await symlink('/bin/sleep', name);
  return startDaemon(name, ['infinity'], { logFile: '/dev/null' });
}

/** The service `kubernetes`, without a proxy: its address leads to the apiserver on the loopback. */
async function serveToPods(url: string): Promise<void> {
  const rule = `-d ${serviceAddress} -p tcp --dport 443 -j DNAT --to-destination 127.0.0.1:${new URL(url).port}`;
  const script = `echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
echo 1 > /proc/sys/net/ipv4/ip_forward
iptables -w -t nat -A PREROUTING ${rule}
iptables -w -t nat -A OUTPUT ${rule}`;
  await exec('sh', ['-ec', script], { deadlineMs: 30_000 });
}
