/** What the node's API asks of whoever measures. */
import type { Summary } from './summary.ts';

export interface NodeStats {
  /** kubelet's Summary API (k8s.io/kubelet, stats/v1alpha1); `brief`: processor and memory only. */
  summary(brief: boolean, signal: AbortSignal): Promise<Summary>;
  /** The text of `/metrics/resource`, which metrics-server reads. */
  resourceMetrics(signal: AbortSignal): Promise<string>;
  /** The text of `/metrics/cadvisor`: what the runtime counts. */
  podMetrics(signal: AbortSignal): Promise<string>;
}
