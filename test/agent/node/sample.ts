/** A node's facts, configuration and runtime for tests. */
import type { NodeFacts } from '../../../agent/node/facts.ts';
import type { NodeConfig, RuntimeReport } from '../../../agent/node/types.ts';

const Gi = 2 ** 30;

export const facts: NodeFacts = {
  architecture: 'amd64',
  machineId: 'm',
  systemUuid: 's',
  bootId: 'boot-1',
  kernelVersion: '6.1.0',
  osImage: 'Debian GNU/Linux 12 (bookworm)',
  cpus: 4,
  memoryBytes: 8 * Gi,
  memoryAvailableBytes: 6 * Gi,
  swapBytes: 0,
  hugepages: { 'hugepages-2Mi': 0 },
  nodefs: { capacityBytes: 100 * Gi, availableBytes: 50 * Gi, inodes: 1000, inodesFree: 900 },
  imagefs: { capacityBytes: 100 * Gi, availableBytes: 50 * Gi, inodes: 1000, inodesFree: 900 },
  tasks: 200,
  maxTasks: 32768,
  addresses: ['10.0.0.5'],
};

export const config = {
  nodeName: 'edge-1',
  maxPods: 110,
  podsPerCore: undefined,
  kubeReserved: undefined,
  systemReserved: undefined,
  evictionHard: {
    'memory.available': '100Mi',
    'nodefs.available': '10%',
    'nodefs.inodesFree': '5%',
    'imagefs.available': '15%',
    'imagefs.inodesFree': '5%',
  },
  evictionPressureTransitionPeriod: 300_000,
  nodeStatusMaxImages: 50,
  nodeStatusUpdateFrequency: 10_000,
  nodeStatusReportFrequency: 300_000,
  nodeLeaseDurationSeconds: 40,
  registerNode: true,
  registerWithTaints: undefined,
  providerID: undefined,
  enableServer: true,
  port: 10250,
  keelson: { hostnameOverride: undefined, nodeLabels: undefined },
} as unknown as NodeConfig;

export const runtime: RuntimeReport = {
  conditions: [
    { type: 'RuntimeReady', status: true, reason: '', message: '' },
    { type: 'NetworkReady', status: true, reason: '', message: '' },
  ],
  runtimeVersion: 'keelson://0.1.0',
  images: [],
  handlers: [{ name: '', recursiveReadOnlyMounts: true, userNamespaces: false }],
  features: { supplementalGroupsPolicy: true, userNamespacesHostNetwork: false, mountOptions: true },
};
