/** Where a probe or a hook goes: hosts, ports, and who asks. Pure. */
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { PodContainer } from '../../apiserver/types.ts';
import { kubernetesVersion } from '../../version.ts';

/**
 * The port of a probe or hook, by number or by a name in the container's ports (kubelet's ResolveContainerPort).
 * Throws FAILED_PRECONDITION where there is no such port.
 */
export function portOf(container: PodContainer, port: string | number): number {
  const number =
    typeof port === 'number'
      ? port
      : (container.ports?.find(({ name }) => name === port)?.containerPort ??
        (/^\d+$/.test(port) ? Number(port) : undefined));
  if (number === undefined)
    throw new KeelsonError('FAILED_PRECONDITION', `container ${container.name} has no port named "${port}"`);
  if (number > 0 && number < 65_536) return number;
  throw new KeelsonError('FAILED_PRECONDITION', `invalid port number: ${number}`);
}

/** `host:port`, an IPv6 address in brackets. */
export function authorityOf(host: string, port: number): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}

const release = kubernetesVersion.replace(/^v(\d+\.\d+).*/, '$1');

/** `kube-probe/1.37`: what servers know kubelet by. */
export function userAgent(purpose: 'probe' | 'lifecycle'): string {
  return `kube-${purpose}/${release}`;
}
