/** What the node's rooms share. */
import type { RuntimeCondition, RuntimeFeatures, RuntimeHandler } from '../../runtime/api.ts';
import type { NodeStatus } from '../apiserver/types.ts';
import type { AgentConfig } from '../config/load.ts';

/** The part of the configuration that makes the Node object. */
export type NodeConfig = Pick<
  AgentConfig,
  | 'nodeName'
  | 'maxPods'
  | 'podsPerCore'
  | 'kubeReserved'
  | 'systemReserved'
  | 'evictionHard'
  | 'evictionPressureTransitionPeriod'
  | 'nodeStatusMaxImages'
  | 'nodeStatusUpdateFrequency'
  | 'nodeStatusReportFrequency'
  | 'nodeLeaseDurationSeconds'
  | 'registerNode'
  | 'registerWithTaints'
  | 'providerID'
  | 'enableServer'
  | 'enableDebuggingHandlers'
  | 'port'
> & { readonly keelson: Pick<AgentConfig['keelson'], 'hostnameOverride' | 'nodeLabels'> };

/** What the runtime says of itself. */
export interface RuntimeReport {
  readonly conditions: readonly RuntimeCondition[];
  /** `keelson://0.1.0`. */
  readonly runtimeVersion: string;
  readonly images: readonly { readonly names: readonly string[]; readonly sizeBytes: number }[];
  /** The default one has the name ''. As last told; absent before it has told any. */
  readonly handlers?: readonly RuntimeHandler[];
  /** As last told; absent before it has told any. */
  readonly features?: RuntimeFeatures;
  /** Set when the runtime gave no answer. */
  readonly failure?: string;
}

/** Fields of core/v1 that are newer than the types that we have. */
export interface NodeStatusNow extends NodeStatus {
  nodeInfo?: NodeStatus['nodeInfo'] & { swap?: { capacity: number } };
  declaredFeatures?: string[];
  features?: { supplementalGroupsPolicy?: boolean };
}
