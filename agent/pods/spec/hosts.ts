/** The /etc/hosts of a pod, in kubelet's words: other tools look for its header. */
import type { Pod } from '../../apiserver/types.ts';
import { isHostNetwork } from './pod.ts';

const managedHeader = '# Kubernetes-managed hosts file.\n';
const managedHostNetworkHeader = '# Kubernetes-managed hosts file (host network).\n';

/**
 * The content of the pod's /etc/hosts. `nodeHosts` is the node's own file, for pods on the host network.
 * `domain` is empty where the pod has no subdomain.
 */
export function hostsFile(
  pod: Pod,
  name: { readonly hostname: string; readonly domain: string },
  ips: readonly string[],
  nodeHosts: string,
): string {
  if (isHostNetwork(pod)) return managedHostNetworkHeader + nodeHosts + aliases(pod);
  const names = name.domain === '' ? name.hostname : `${name.hostname}.${name.domain}\t${name.hostname}`;
  return (
    `${managedHeader}127.0.0.1\tlocalhost\n` +
    '::1\tlocalhost ip6-localhost ip6-loopback\n' +
    'fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n' +
    ips.map((ip) => `${ip}\t${names}\n`).join('') +
    aliases(pod)
  );
}

function aliases(pod: Pod): string {
  const given = pod.spec?.hostAliases ?? [];
  if (given.length === 0) return '';
  const lines = given.map(({ ip, hostnames }) => `${ip}\t${(hostnames ?? []).join('\t')}\n`);
  return `\n# Entries added by HostAliases.\n${lines.join('')}`;
}
