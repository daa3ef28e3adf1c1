/** Ephemeral containers that look into another container (`kubectl debug --target`). */
import type { ContainerConfig } from '../../../runtime/api.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { PodContainer } from '../../apiserver/types.ts';
import type { ObservedPod } from '../types.ts';

/**
 * `config` with the PID namespace of the container that `container` names as its target, where it names one. In a pod
 * that shares its PID namespace, or has the node's, everybody is seen anyway. Throws CONTAINER_CONFIG_INVALID.
 */
export function inTarget(
  config: ContainerConfig,
  container: PodContainer,
  observed: ObservedPod,
): ContainerConfig {
  const name = (container as { targetContainerName?: string }).targetContainerName;
  const { security } = config.linux;
  if (!name || security.namespaces.pid !== 'container') return config;
  const target = observed.containers.find(({ metadata }) => metadata.name === name);
  if (target === undefined) {
    throw new KeelsonError('CONTAINER_CONFIG_INVALID', `unable to find target container ${name}`, {
      hint: 'name a container of the pod that runs',
    });
  }
  const namespaces = { ...security.namespaces, pid: 'target', targetId: target.id } as const;
  return { ...config, linux: { ...config.linux, security: { ...security, namespaces } } };
}
