/** The nodes that are measured, each with folders, a bridge and cgroups of its own, on one control plane. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { exec } from '../../../runtime/host/exec.ts';
import { kubeletProgram } from '../../peers/binaries.ts';
import type { Cluster } from '../../peers/cluster.ts';
import { findContainerd, prepareContainerd } from '../../peers/containerd-service.ts';
import { startKubelet } from '../../peers/kubelet.ts';
import { processesNaming } from '../../peers/machine.ts';
import { startNode, type TestNode } from '../../peers/node.ts';
import type { Daemon } from '../../peers/process.ts';
import { pssMib } from '../memory.ts';
import { type CpuMeter, meterCpu } from './cpu.ts';

export const peers = ['keelson', 'kubelet'] as const;
export type Peer = (typeof peers)[number];

/** Over kubelet's default, so that all of the largest burst runs at once. */
const maxPods = 150;

export interface BenchNode {
  readonly peer: Peer;
  /** What it is called in the cluster. */
  readonly name: string;
  readonly daemons: readonly Daemon[];
  /** Of the daemons, what they start and the pods. */
  readonly cpu: CpuMeter;
  /** MiB (PSS) of the daemons, and of the monitors of containers: conmon or containerd's shims. */
  memory(): Promise<{ readonly daemons: number; readonly monitors: readonly number[] }>;
  /** The end of the agent's log; empty for kubelet. */
  log(bytes: number): Promise<string>;
  close(): Promise<void>;
}

export interface Place {
  readonly cluster: Cluster;
  /** Everything of the node goes below it; short enough for sockets. */
  readonly folder: string;
  readonly sandboxImage: string;
  /** A copy of Node.js: memory is not shared with this process. */
  readonly ownNode: string;
  /** Node.js options of the agent. */
  readonly nodeOptions?: string;
}

/** Starts it; it need not be Ready yet. */
export async function startPeer(peer: Peer, place: Place): Promise<BenchNode> {
  const node = await startNode({
    start: false,
    kubeconfig: ({ name }) => place.cluster.makeNodeKubeconfig(name),
    config: {
      maxPods,
      authentication: { x509: { clientCAFile: place.cluster.caFile } },
      imageGCHighThresholdPercent: 100,
    },
    env: {
      KEELSON_NODE: place.ownNode,
      ...(place.nodeOptions === undefined ? {} : { NODE_OPTIONS: place.nodeOptions }),
    },
  });
  // As on a real machine: what need not outlive a boot is in memory.
  await mountTmpfs(node.paths.cniCacheDir);
  return peer === 'keelson' ? startKeelson(node) : startStock(node, place);
}

async function startKeelson(node: TestNode): Promise<BenchNode> {
  await mountTmpfs(node.paths.runDir);
  await node.start();
  return {
    peer: 'keelson',
    name: node.name,
    daemons: [node.agent],
    cpu: await meterCpu(node.cgroupRoot, [node.agent.pid]),
    memory: () => memoryOf([node.agent], node.paths.folder, /(^|\/)conmon /),
    log: (bytes) => node.log(bytes),
    async close() {
      await node.stop();
      await node.cleanup();
    },
  };
}

/** A stock kubelet on Debian's newest containerd. */
async function startStock(node: TestNode, { cluster, folder, sandboxImage }: Place): Promise<BenchNode> {
  const [kubelet, programs] = await Promise.all([kubeletProgram(), findContainerd()]);
  if (typeof kubelet !== 'string') throw new KeelsonError('DEPENDENCY_MISSING', kubelet.missing);
  if ('missing' in programs) throw new KeelsonError('DEPENDENCY_MISSING', programs.missing);
  const place = join(folder, 'containerd');
  await mountTmpfs(join(place, 'run'));
  const containerd = await prepareContainerd(programs, {
    folder: place,
    cniConfDir: node.paths.cniConfDir,
    sandboxImage,
  });
  await containerd.start();
  const { daemon, end } = await startKubelet({
    program: kubelet,
    node,
    kubeconfig: await cluster.makeNodeKubeconfig(node.name),
    clientCaFile: cluster.caFile,
    endpoint: containerd.endpoint,
    config: { maxPods, nodeStatusUpdateFrequency: '10s' },
  });
  const daemons = [daemon, containerd.daemon];
  return {
    peer: 'kubelet',
    name: node.name,
    daemons,
    cpu: await meterCpu(
      node.cgroupRoot,
      daemons.map(({ pid }) => pid),
    ),
    memory: () => memoryOf(daemons, place, /containerd-shim/),
    log: async () => '',
    async close() {
      await end();
      await containerd.stop();
      await node.cleanup();
    },
  };
}

async function mountTmpfs(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  await exec('mount', ['-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', folder], { deadlineMs: 5000 });
}

/** The monitors carry `folder` in their arguments. */
async function memoryOf(daemons: readonly Daemon[], folder: string, monitor: RegExp) {
  const monitors = (await processesNaming(folder)).filter(({ command }) => monitor.test(command));
  const [own, theirs] = await Promise.all([
    Promise.all(daemons.map(({ pid }) => pssMib(pid))),
    Promise.all(monitors.map(({ pid }) => pssMib(pid))),
  ]);
  return { daemons: own.reduce((sum, one) => sum + one, 0), monitors: theirs };
}

/** Writes the policy by which an apiserver logs what nodes ask of it, and returns its options. */
export async function auditOptions(folder: string): Promise<{ file: string; options: readonly string[] }> {
  const policy = {
    apiVersion: 'audit.k8s.io/v1',
    kind: 'Policy',
    omitStages: ['RequestReceived'],
    rules: [{ level: 'Metadata', userGroups: ['system:nodes'] }, { level: 'None' }],
  };
  const file = join(folder, 'audit.log');
  await writeFile(join(folder, 'audit-policy.json'), JSON.stringify(policy));
  return {
    file,
    options: [`--audit-policy-file=${join(folder, 'audit-policy.json')}`, `--audit-log-path=${file}`],
  };
}
