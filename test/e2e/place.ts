/** What the suite runs against: a network interface, a registry, a control plane, and a node with a machine to itself. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Node } from 'kubernetes-types/core/v1.js';
import { exec } from '../../runtime/host/exec.ts';
import { hostsToml } from '../critest/images.ts';
import { type Cluster, startCluster } from '../peers/cluster.ts';
import { startNode, type TestNode } from '../peers/node.ts';
import { waitFor } from '../peers/process.ts';

const address = '192.0.2.10';
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
    'hostname e2e-node',
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

export interface Place {
  readonly cluster: Cluster;
  readonly node: TestNode;
  close(): Promise<void>;
}

/** Starts the control plane and the node, `registry` answering for all registries, and waits until the node is Ready. */
export async function setPlace(folder: string, registry: string): Promise<Place> {
  const registries = join(folder, 'certs.d');
  await mkdir(join(registries, '_default'), { recursive: true });
  await writeFile(join(registries, '_default/hosts.toml'), hostsToml(registry));
  const cluster = await startCluster();
  let node: TestNode | undefined;
  const close = async () => {
    await node?.agent.kill();
    await cluster.close();
  };
  try {
    await serveToPods(cluster.url);
    node = await startNode({
      name: 'e2e-node',
      kubeconfig: ({ name }) => cluster.makeNodeKubeconfig(name),
      config: {
        port: 10_250,
        healthzPort: 10_248,
        cgroupRoot: '/',
        podLogsDir: '/var/log/pods',
        authentication: { x509: { clientCAFile: cluster.caFile } },
        clusterDNS: ['10.217.0.10'],
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
    const { agent } = node;
    const ready = async () => {
      const object = await cluster.read<Node>('/api/v1/nodes/e2e-node');
      const conditions = object?.status?.conditions ?? [];
      const taints = object?.spec?.taints ?? [];
      return conditions.some(({ type, status }) => type === 'Ready' && status === 'True') &&
        taints.length === 0
        ? true
        : undefined;
    };
    await waitFor('the node to be Ready', ready, { deadlineMs: 90_000, daemon: agent });
    return { cluster, node, close };
  } catch (error) {
    console.error(await node?.log(8000));
    await close();
    throw error;
  }
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
