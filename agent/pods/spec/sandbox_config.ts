/** From a pod to the sandbox that the runtime is asked for. Pure. */
import { isIPv6 } from 'node:net';
import type {
  DnsConfig,
  NamespaceOption,
  PodSandboxConfig,
  PortMapping,
  UserNamespace,
} from '../../../runtime/api.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { Pod } from '../../apiserver/types.ts';
import {
  everyContainer,
  initContainers,
  isHostNetwork,
  isSidecar,
  labelNames,
  namespaceOf,
  podLogFolder,
  regularContainers,
  uidOf,
} from './pod.ts';
import { podSysctls } from './sysctls.ts';

export interface DnsSettings {
  readonly clusterDns: readonly string[];
  readonly clusterDomain: string;
  /** The node's resolver configuration, parsed. */
  readonly host: DnsConfig;
}

/** Limits of the API (validation.MaxDNSNameservers, MaxDNSSearchPaths, MaxDNSSearchListChars) and of one name. */
const maxServers = 3;
const maxSearches = 32;
const maxSearchChars = 2048;
const maxNameChars = 253;
const maxHostname = 63;

/** Reads a resolv.conf: nameservers add up, of search lines the last one counts. */
export function parseResolvConf(text: string): DnsConfig {
  const servers: string[] = [];
  let searches: string[] = [];
  const options = new Map<string, string>();
  for (const line of text.split('\n')) {
    const [word, ...rest] = line.trim().split(/\s+/);
    if (word === 'nameserver' && rest[0] !== undefined) servers.push(rest[0]);
    else if (word === 'search')
      searches = rest.filter((name) => name !== '.').map((name) => name.replace(/\.$/, ''));
    else if (word === 'options') for (const option of rest) options.set(option.split(':')[0]!, option);
  }
  return { servers, searches, options: [...options.values()] };
}

/** In kubelet's words, which people look for. */
const noClusterDns =
  'kubelet does not have ClusterDNS IP configured and cannot create Pod using "ClusterFirst" policy. Falling back to "Default" policy.';

/**
 * The pod's resolver configuration; `warnings` say what did not fit, `missing` that the pod wants the cluster's DNS and
 * the node knows none.
 */
export function podDns(
  pod: Pod,
  settings: DnsSettings,
): { dns: DnsConfig; warnings: readonly string[]; missing?: string } {
  const warnings: string[] = [];
  let missing: string | undefined;
  const policy = pod.spec?.dnsPolicy ?? 'ClusterFirst';
  let base: DnsConfig = settings.host;
  if (policy === 'None') base = { servers: [], searches: [], options: [] };
  else if (policy !== 'Default' && !(policy === 'ClusterFirst' && isHostNetwork(pod))) {
    if (settings.clusterDns.length === 0) {
      missing = noClusterDns;
    } else {
      const domain = settings.clusterDomain;
      const cluster = domain === '' ? [] : [`${namespaceOf(pod)}.svc.${domain}`, `svc.${domain}`, domain];
      base = {
        servers: settings.clusterDns,
        searches: [...cluster, ...settings.host.searches],
        options: ['ndots:5'],
      };
    }
  }
  const own = pod.spec?.dnsConfig;
  const options = new Map(base.options.map((option) => [option.split(':')[0]!, option]));
  for (const { name = '', value } of own?.options ?? [])
    options.set(name, value === undefined || value === '' ? name : `${name}:${value}`);
  const servers = [...new Set([...base.servers, ...(own?.nameservers ?? [])])];
  const searches = [...new Set([...base.searches, ...(own?.searches ?? [])])];
  const kept = fitSearches(searches);
  if (servers.length > maxServers) {
    warnings.push(
      `Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: ${servers.slice(0, maxServers).join(' ')}`,
    );
  }
  if (kept.length < searches.length) {
    warnings.push(
      `Search Line limits were exceeded, some search paths have been omitted, the applied search line is: ${kept.join(' ')}`,
    );
  }
  return {
    dns: { servers: servers.slice(0, maxServers), searches: kept, options: [...options.values()] },
    warnings,
    ...(missing === undefined ? {} : { missing }),
  };
}

function fitSearches(searches: readonly string[]): string[] {
  const kept = searches.slice(0, maxSearches).filter((name) => name.length <= maxNameChars);
  while (kept.join(' ').length > maxSearchChars) kept.pop();
  return kept;
}

/** The pod's host name and, where it has a subdomain, the domain of it. */
export function podHostname(pod: Pod, clusterDomain: string): { hostname: string; domain: string } {
  const override = (pod.spec as { hostnameOverride?: string } | undefined)?.hostnameOverride;
  const wanted = override ?? (pod.spec?.hostname || pod.metadata?.name) ?? '';
  const hostname = wanted.slice(0, maxHostname).replace(/[-.]+$/, '');
  const subdomain = pod.spec?.subdomain ?? '';
  if (subdomain === '' || override !== undefined) return { hostname, domain: '' };
  return { hostname, domain: `${subdomain}.${namespaceOf(pod)}.svc.${clusterDomain}` };
}

/** What uname(2) shows in the pod: the short name, or the full one where the pod asks for it. */
export function kernelHostname(pod: Pod, clusterDomain: string): string {
  const { hostname, domain } = podHostname(pod, clusterDomain);
  if (pod.spec?.setHostnameAsFQDN !== true || domain === '') return hostname;
  const full = `${hostname}.${domain}`;
  if (full.length > 64) {
    throw new KeelsonError('POD_INVALID', `the pod's full host name ${full} is longer than 64 characters`, {
      hint: 'shorten hostname or subdomain, or leave setHostnameAsFQDN away',
    });
  }
  return full;
}

/** The namespaces of the pod's sandbox and containers. */
export function namespacesOf(pod: Pod): NamespaceOption {
  const { hostPID, hostIPC, shareProcessNamespace } = pod.spec ?? {};
  return {
    network: isHostNetwork(pod) ? 'node' : 'pod',
    ipc: hostIPC === true ? 'node' : 'pod',
    pid: hostPID === true ? 'node' : shareProcessNamespace === true ? 'pod' : 'container',
  };
}

/** Whether root in the pod is nobody on the node (`hostUsers: false`). */
export function hasOwnUsers(pod: Pod): boolean {
  return (pod.spec as { hostUsers?: boolean } | undefined)?.hostUsers === false;
}

/** The ports of the pod, each once; ports of one name in one container count once. */
export function portMappings(pod: Pod): PortMapping[] {
  const found: PortMapping[] = [];
  const sidecars = initContainers(pod).filter((container) => isSidecar(pod, container));
  for (const container of [...sidecars, ...regularContainers(pod)]) {
    const seen = new Set<string>();
    for (const port of container.ports ?? []) {
      const family = !port.hostIP ? 'any' : isIPv6(port.hostIP) ? 'v6' : 'v4';
      const protocol = (port.protocol ?? 'TCP') as PortMapping['protocol'];
      const key =
        port.name || `${family}-${protocol}-${port.hostIP ?? ''}:${port.containerPort}:${port.hostPort ?? 0}`;
      if (seen.has(key)) continue;
      seen.add(key);
      found.push({
        protocol,
        containerPort: port.containerPort,
        ...(port.hostPort ? { hostPort: port.hostPort } : {}),
        ...(port.hostIP ? { hostIp: port.hostIP } : {}),
      });
    }
  }
  return found;
}

export interface SandboxSettings {
  readonly podLogsDir: string;
  readonly clusterDomain: string;
  readonly cgroupParent: string;
  /** Those that every pod gets (`defaultPodSysctls`). */
  readonly sysctls?: Readonly<Record<string, string>>;
  /** Of a pod with a user namespace of its own. */
  readonly users?: UserNamespace;
}

/** The whole sandbox. Throws POD_INVALID. */
export function makeSandboxConfig(
  pod: Pod,
  attempt: number,
  dns: DnsConfig,
  settings: SandboxSettings,
): PodSandboxConfig {
  const name = pod.metadata?.name ?? '';
  const namespace = namespaceOf(pod);
  const uid = uidOf(pod);
  const selinux = pod.spec?.securityContext?.seLinuxOptions;
  return {
    metadata: { name, namespace, uid, attempt },
    hostname: isHostNetwork(pod) ? '' : kernelHostname(pod, settings.clusterDomain),
    logDirectory: podLogFolder(settings.podLogsDir, pod),
    dns,
    portMappings: portMappings(pod),
    labels: {
      ...pod.metadata?.labels,
      [labelNames.podName]: name,
      [labelNames.podNamespace]: namespace,
      [labelNames.podUid]: uid,
    },
    annotations: { ...pod.metadata?.annotations },
    linux: {
      cgroupParent: settings.cgroupParent,
      sysctls: podSysctls(pod, settings.sysctls),
      security: {
        namespaces: {
          ...namespacesOf(pod),
          ...(settings.users === undefined ? {} : { user: settings.users }),
        },
        privileged: everyContainer(pod).some((container) => container.securityContext?.privileged === true),
        seccomp: { type: 'RuntimeDefault' },
        ...(selinux === undefined ? {} : { selinux }),
      },
    },
  };
}
