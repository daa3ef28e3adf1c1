/** What a sandbox's configuration means: namespaces, resolv.conf, network attachment. */
import { hostname as hostHostname } from 'node:os';
import type { Attachment } from '../cni/network.ts';
import type { DnsConfig, PodSandboxConfig } from './api.ts';
import { cleanCgroupPath } from './host/cgroups.ts';
import { KeelsonError } from './host/errors.ts';
import type { WantedNamespaces } from './sandbox_namespaces.ts';
import { checkProfile } from './security/admission.ts';
import { checkUsers, wantedUsers } from './security/userns.ts';
import type { SandboxRecord } from './state.ts';

/** Which namespaces a sandbox has of its own. Without a hostname it gets the node's. */
export function wantedNamespaces(config: PodSandboxConfig): WantedNamespaces {
  const { namespaces } = config.linux.security;
  const network = namespaces.network === 'pod';
  return {
    network,
    ipc: namespaces.ipc === 'pod',
    // The node's network goes with the node's name, as in containerd.
    hostname: network ? config.hostname || hostHostname() : undefined,
    sysctls: config.linux.sysctls,
    users: wantedUsers(namespaces),
  };
}

/** resolv.conf(5) of a sandbox. Pure. */
export function resolvConf(dns: DnsConfig): string {
  const lines: string[] = [];
  if (dns.searches.length > 0) lines.push(`search ${dns.searches.join(' ')}`);
  for (const server of dns.servers) lines.push(`nameserver ${server}`);
  if (dns.options.length > 0) lines.push(`options ${dns.options.join(' ')}`);
  return lines.map((line) => `${line}\n`).join('');
}

/**
 * What the network is told of a sandbox. Capability arguments come from where the CRI has them: port mappings, DNS,
 * cgroup parent and the bandwidth annotations. It has nothing for the others (ips, mac, ipRanges, aliases, deviceID,
 * infinibandGUID); plugins that have conventions of their own for these read them from the annotations.
 */
export function attachmentOf({ id, config }: SandboxRecord): Omit<Attachment, 'netns'> {
  const { metadata, dns, annotations } = config;
  const rate = (name: string) => bitsPerSecond(annotations[`kubernetes.io/${name}-bandwidth`]);
  const ingressRate = rate('ingress');
  const egressRate = rate('egress');
  const portMappings = config.portMappings
    .filter(({ hostPort }) => hostPort)
    .map(({ hostPort, containerPort, protocol, hostIp }) => ({
      hostPort: hostPort!,
      containerPort,
      protocol: protocol.toLowerCase() as 'tcp' | 'udp' | 'sctp',
      hostIP: hostIp || undefined,
    }));
  // The kernel's bucket must hold something: as much as plugins take, about 2 GiB.
  const burst = 2 ** 31 - 1;
  return {
    containerId: id,
    ifName: 'eth0',
    args: { podName: metadata.name, podNamespace: metadata.namespace, podUid: metadata.uid },
    capabilities: {
      portMappings: portMappings.length === 0 ? undefined : portMappings,
      dns: dns && { servers: dns.servers, searches: dns.searches, options: dns.options },
      bandwidth:
        ingressRate === undefined && egressRate === undefined
          ? undefined
          : {
              ingressRate,
              ingressBurst: ingressRate && burst,
              egressRate,
              egressBurst: egressRate && burst,
            },
      cgroupPath: config.linux.cgroupParent || undefined,
      'io.kubernetes.cri.pod-annotations': Object.keys(annotations).length === 0 ? undefined : annotations,
    },
  };
}

const decimalUnits = ['n', 'u', 'm', '', 'k', 'M', 'G', 'T', 'P', 'E'];
const binaryUnits = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei'];

/** A Kubernetes quantity such as `10M`, `1.5Gi` or `1e6`, rounded up; undefined where it is none. Pure. */
export function bitsPerSecond(quantity: string | undefined): number | undefined {
  const match = /^\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3}|[A-Za-z]{0,2})$/.exec(quantity ?? '');
  if (match === null) return undefined;
  const [, digits, suffix] = match as unknown as [string, string, string];
  if (/^[eE][+-]?\d/.test(suffix)) return Math.ceil(Number(digits + suffix));
  if (decimalUnits.includes(suffix)) {
    return Math.ceil(Number(`${digits}e${(decimalUnits.indexOf(suffix) - 3) * 3}`));
  }
  const power = binaryUnits.indexOf(suffix);
  return power < 0 ? undefined : Math.ceil(Number(digits) * 1024 ** power);
}

/** Pure. Throws INVALID_ARGUMENT. */
export function checkSandboxConfig(config: PodSandboxConfig, driver: 'cgroupfs' | 'systemd'): void {
  const { metadata, dns, hostname, logDirectory, linux } = config;
  const invalid = (message: string) => new KeelsonError('INVALID_ARGUMENT', `pod sandbox: ${message}`);
  for (const field of ['name', 'uid', 'namespace'] as const) {
    if (metadata[field] === '' || metadata[field].includes('\0'))
      throw invalid(`metadata.${field} is missing`);
    // Network plugins get it in a list that has no way to quote these.
    if (/[;=]/.test(metadata[field])) throw invalid(`metadata.${field} may not hold ";" or "="`);
  }
  // The node's network takes no limits.
  const limited = linux.security.namespaces.network === 'pod' ? ['ingress', 'egress'] : [];
  for (const way of limited) {
    const name = `kubernetes.io/${way}-bandwidth`;
    const wanted = config.annotations[name];
    const rate = bitsPerSecond(wanted);
    // The bounds of Kubernetes. A pod that asks for a limit and silently gets none would be worse.
    if (wanted !== undefined && !(rate !== undefined && rate >= 1e3 && rate <= 1e15)) {
      throw invalid(
        `annotation ${name}: ${JSON.stringify(wanted)} is no rate from 1k to 1P (bits per second)`,
      );
    }
  }
  if (!/^[a-zA-Z0-9_.-]{0,64}$/.test(hostname)) throw invalid(`${JSON.stringify(hostname)} is no host name`);
  if (logDirectory !== '' && (!logDirectory.startsWith('/') || /(^|\/)\.\.(\/|$)|\0/.test(logDirectory))) {
    throw invalid(`logDirectory ${JSON.stringify(logDirectory)} is not an absolute path`);
  }
  // conmon takes what follows a colon for something else, and would log to another file.
  if (logDirectory.includes(':')) {
    throw invalid(`logDirectory ${JSON.stringify(logDirectory)} contains a colon`);
  }
  if (driver === 'cgroupfs' && linux.cgroupParent !== '') cleanCgroupPath(linux.cgroupParent);
  if (driver === 'systemd' && !/^[\w/.:@\\-]*$/.test(linux.cgroupParent)) {
    throw invalid(`cgroupParent ${JSON.stringify(linux.cgroupParent)} is not a slice`);
  }
  checkUsers(linux.security.namespaces, 'INVALID_ARGUMENT');
  checkProfile('seccomp', linux.security.seccomp, 'INVALID_ARGUMENT');
  checkProfile('AppArmor', linux.security.apparmor, 'INVALID_ARGUMENT');
  for (const word of [...(dns?.servers ?? []), ...(dns?.searches ?? []), ...(dns?.options ?? [])]) {
    if (!/^[^\s\0]+$/.test(word)) throw invalid(`dns: ${JSON.stringify(word)} is not one word`);
  }
}
