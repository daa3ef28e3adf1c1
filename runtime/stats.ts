/** What pods use of the node. */
import type { RuntimeStats } from './api.ts';
import type { Context } from './context.ts';
import { KeelsonError } from './host/errors.ts';

export function makeStats(_context: Context): RuntimeStats {
  const later = () => Promise.reject(new KeelsonError('UNIMPLEMENTED', 'not yet'));
  return {
    containerStats: later,
    listContainerStats: later,
    podSandboxStats: later,
    listPodSandboxStats: later,
    metricDescriptors: () => [],
    listPodSandboxMetrics: later,
  };
}
