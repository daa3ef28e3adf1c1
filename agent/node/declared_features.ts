/**
 * The features that a Node says it has (KEP-5328, `status.declaredFeatures`; the names are in component-helpers,
 * nodedeclaredfeatures). The control plane relies on them: only what is so may be in the list. Pure.
 */
import type { NodeConfig } from './types.ts';

/** Sorted; decided once at the start. */
export function declaredFeatures(
  config: Pick<NodeConfig, 'enableServer' | 'enableDebuggingHandlers'>,
): readonly string[] {
  // Whatever the runtime: resizes of pods as a whole and of init containers that run, and starting all over in place.
  const features = [
    'InPlacePodLevelResourcesVerticalScaling',
    'InPlacePodVerticalScalingInitContainers',
    'RestartAllContainersOnContainerExits',
  ];
  // The apiserver hands WebSockets of exec, attach and port-forward through instead of speaking SPDY (KEP-4006).
  if (config.enableServer && config.enableDebuggingHandlers) features.push('ExtendWebSocketsToKubelet');
  return features.sort();
}
