/** Which sysctls pods may set: kubelet's safe ones and those of `allowedUnsafeSysctls` (pkg/kubelet/sysctl). Pure. */
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { Pod } from '../../apiserver/types.ts';
import { isHostNetwork } from './pod.ts';

/** The kernel's namespace that a sysctl belongs to, as messages name it. */
export type SysctlNamespace = 'IPC' | 'Net' | 'UTS' | 'User';

/** By name, and by the beginning of the name. */
export interface SysctlAllowlist {
  readonly names: ReadonlyMap<string, SysctlNamespace>;
  readonly prefixes: ReadonlyMap<string, SysctlNamespace>;
}

/** Namespaced, and without an effect on other pods, since the kernel that is named. */
const safe: readonly (readonly [name: string, since?: string])[] = [
  ['kernel.shm_rmid_forced'],
  ['net.ipv4.ip_local_port_range'],
  ['net.ipv4.tcp_syncookies'],
  ['net.ipv4.ping_group_range'],
  ['net.ipv4.ip_unprivileged_port_start'],
  ['net.ipv4.ip_local_reserved_ports', '3.16'],
  ['net.ipv4.tcp_keepalive_time', '4.5'],
  ['net.ipv4.tcp_fin_timeout', '4.6'],
  ['net.ipv4.tcp_keepalive_intvl', '4.5'],
  ['net.ipv4.tcp_keepalive_probes', '4.5'],
  ['net.ipv4.tcp_rmem', '4.15'],
  ['net.ipv4.tcp_wmem', '4.15'],
  ['net.ipv4.tcp_slow_start_after_idle', '4.15'],
  ['net.ipv4.tcp_notsent_lowat', '4.6'],
];

/** `kernel.shm` and `kernel.msg` are what is left of the patterns `kernel.shm*` and `kernel.msg*`. */
const ipc = /^kernel\.(sem|shm|shmall|shmmax|shmmni|shm_rmid_forced|msg|msgmax|msgmnb|msgmni)$|^fs\.mqueue\./;

/** Undefined where the kernel has only one of it for the whole node. */
export function namespaceOfSysctl(name: string): SysctlNamespace | undefined {
  if (name === 'kernel.domainname') return 'UTS';
  if (ipc.test(name)) return 'IPC';
  if (name.startsWith('net.')) return 'Net';
  return name.startsWith('user.') ? 'User' : undefined;
}

/** With dots between the parts: where a slash comes first, the two have changed places (sysctl.d(5)). */
export function normalSysctl(name: string): string {
  if (/[./]/.exec(name)?.[0] !== '/') return name;
  return name.replace(/[./]/g, (sign) => (sign === '.' ? '/' : '.'));
}

const segment = '[a-z0-9](?:[-_a-z0-9]*[a-z0-9])?';
const pattern = new RegExp(`^(?:${segment}[./])*(?:[a-z0-9][-_a-z0-9]*)?[a-z0-9*]$`);

/** What is wrong with an entry of `allowedUnsafeSysctls`; undefined: nothing. */
export function sysctlPatternFault(entry: string): string | undefined {
  if (entry.length > 253 || !pattern.test(entry))
    return `${JSON.stringify(entry)} is no sysctl and no beginning of one with * at the end`;
  return namespaceOfSysctl(plain(entry)) === undefined
    ? `the sysctls ${JSON.stringify(plain(entry))} are not known to be namespaced`
    : undefined;
}

/** Without the star. */
function plain(entry: string): string {
  return normalSysctl(entry).split('*', 1)[0]!;
}

/** `kernel`: as uname -r. Throws CONFIG_INVALID for an entry of which `sysctlPatternFault` tells a fault. */
export function sysctlAllowlist(allowedUnsafe: readonly string[], kernel: string): SysctlAllowlist {
  const names = new Map<string, SysctlNamespace>();
  const prefixes = new Map<string, SysctlNamespace>();
  const known = safe.filter(([, since]) => since === undefined || isSince(kernel, since));
  for (const entry of [...known.map(([name]) => name), ...allowedUnsafe]) {
    const fault = sysctlPatternFault(entry);
    if (fault !== undefined) throw new KeelsonError('CONFIG_INVALID', `allowedUnsafeSysctls: ${fault}`);
    (entry.includes('*') ? prefixes : names).set(plain(entry), namespaceOfSysctl(plain(entry))!);
  }
  return { names, prefixes };
}

function isSince(kernel: string, wanted: string): boolean {
  const [a = 0, b = 0] = kernel.split('.').map((part) => Number.parseInt(part, 10));
  const [c = 0, d = 0] = wanted.split('.').map(Number);
  return a > c || (a === c && b >= d);
}

/** Which of the node's namespaces the pod shares. */
function shares(pod: Pod, namespace: SysctlNamespace): boolean {
  const { hostIPC, hostUsers } = (pod.spec ?? {}) as { hostIPC?: boolean; hostUsers?: boolean };
  if (namespace === 'IPC') return hostIPC === true;
  if (namespace === 'Net') return isHostNetwork(pod);
  // Unless it asks for its own.
  return namespace === 'User' && hostUsers !== false;
}

/** Why the node does not take the pod, as kubelet says it; undefined: it may set what it wants to. */
export function sysctlRefusal(
  pod: Pod,
  { names, prefixes }: SysctlAllowlist,
): { readonly reason: string; readonly message: string } | undefined {
  for (const sysctl of pod.spec?.securityContext?.sysctls ?? []) {
    const name = normalSysctl(sysctl.name);
    const namespace = names.get(name) ?? [...prefixes].find(([prefix]) => name.startsWith(prefix))?.[1];
    const why =
      namespace === undefined
        ? `${JSON.stringify(name)} not allowlisted`
        : shares(pod, namespace)
          ? `${JSON.stringify(name)} not allowed with host ${namespace} enabled`
          : undefined;
    if (why !== undefined) return { reason: 'SysctlForbidden', message: `forbidden sysctl: ${why}` };
  }
  return undefined;
}

/**
 * What is set in the pod: the node's defaults (`defaultPodSysctls`), where the pod has the namespace to itself, and its
 * own over them.
 */
export function podSysctls(
  pod: Pod,
  defaults: Readonly<Record<string, string>> = {},
): Readonly<Record<string, string>> {
  const set: Record<string, string> = {};
  for (const [key, value] of Object.entries(defaults)) {
    const name = normalSysctl(key);
    const namespace = namespaceOfSysctl(name);
    if (namespace === undefined || shares(pod, namespace)) continue;
    // The name of the domain is the node's where the network is.
    if (namespace === 'UTS' && isHostNetwork(pod)) continue;
    set[name] = value;
  }
  for (const { name, value } of pod.spec?.securityContext?.sysctls ?? []) {
    // One spelling, so that the pod's own replaces the node's.
    delete set[normalSysctl(name)];
    set[name] = value;
  }
  return set;
}
