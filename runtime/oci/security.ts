/** What a process in a container may do: capabilities, masked paths, devices, OOM score. Pure. */
import { KeelsonError } from '../host/errors.ts';

/** By number (linux/capability.h). */
export const capabilityNames = [
  'CHOWN',
  'DAC_OVERRIDE',
  'DAC_READ_SEARCH',
  'FOWNER',
  'FSETID',
  'KILL',
  'SETGID',
  'SETUID',
  'SETPCAP',
  'LINUX_IMMUTABLE',
  'NET_BIND_SERVICE',
  'NET_BROADCAST',
  'NET_ADMIN',
  'NET_RAW',
  'IPC_LOCK',
  'IPC_OWNER',
  'SYS_MODULE',
  'SYS_RAWIO',
  'SYS_CHROOT',
  'SYS_PTRACE',
  'SYS_PACCT',
  'SYS_ADMIN',
  'SYS_BOOT',
  'SYS_NICE',
  'SYS_RESOURCE',
  'SYS_TIME',
  'SYS_TTY_CONFIG',
  'MKNOD',
  'LEASE',
  'AUDIT_WRITE',
  'AUDIT_CONTROL',
  'SETFCAP',
  'MAC_OVERRIDE',
  'MAC_ADMIN',
  'SYSLOG',
  'WAKE_ALARM',
  'BLOCK_SUSPEND',
  'AUDIT_READ',
  'PERFMON',
  'BPF',
  'CHECKPOINT_RESTORE',
] as const;

/** containerd's and Docker's default set. */
const defaultCapabilities = [
  'CHOWN',
  'DAC_OVERRIDE',
  'FSETID',
  'FOWNER',
  'MKNOD',
  'NET_RAW',
  'SETGID',
  'SETUID',
  'SETFCAP',
  'SETPCAP',
  'NET_BIND_SERVICE',
  'SYS_CHROOT',
  'KILL',
  'AUDIT_WRITE',
];

/** The names of the bits in a mask of /proc/<pid>/status, without CAP_. */
export function capabilitiesIn(hexMask: string): string[] {
  const mask = BigInt(`0x${hexMask}`);
  return capabilityNames.filter((_, bit) => (mask >> BigInt(bit)) & 1n);
}

export interface Capabilities {
  /** Sorted, with CAP_. */
  readonly all: readonly string[];
  /** Those of `all` that stay when the process is not root or gives that up. */
  readonly ambient: readonly string[];
}

/**
 * The capabilities of a container. `ALL` is taken first, then names are added, then dropped, as in containerd; ambient
 * ones are added like others. `own` are those that this process has: `ALL` and privileged cannot give more.
 * Throws CONTAINER_CONFIG_INVALID for a name that is none.
 */
export function containerCapabilities(options: {
  readonly privileged: boolean;
  readonly add: readonly string[];
  readonly drop: readonly string[];
  readonly addAmbient?: readonly string[];
  readonly own: readonly string[];
}): Capabilities {
  const { privileged, own } = options;
  const ambient = (options.addAmbient ?? []).map(plainName);
  const add = [...options.add.map(plainName), ...ambient];
  const drop = options.drop.map(plainName);
  for (const name of [...add, ...drop]) {
    if (name !== 'ALL' && !(capabilityNames as readonly string[]).includes(name)) {
      throw new KeelsonError('CONTAINER_CONFIG_INVALID', `there is no capability ${JSON.stringify(name)}`, {
        hint: 'names are those of capabilities(7) without CAP_, such as NET_ADMIN',
      });
    }
  }
  let names = new Set<string>(defaultCapabilities);
  if (privileged || add.includes('ALL')) names = new Set(own);
  else if (drop.includes('ALL')) names = new Set();
  if (!privileged) {
    for (const name of add) if (name !== 'ALL') names.add(name);
    for (const name of drop) names.delete(name);
  }
  const all = [...names].sort();
  const kept = ambient.includes('ALL') ? all : all.filter((name) => ambient.includes(name));
  const spell = (name: string) => `CAP_${name}`;
  return { all: all.map(spell), ambient: kept.map(spell) };
}

function plainName(name: string): string {
  return name.toUpperCase().replace(/^CAP_/, '');
}

/** `wanted` as far as this process may set it: without CAP_SYS_RESOURCE never below its own. */
export function clampOomScore(wanted: number, own: number, ownCapabilities: readonly string[]): number {
  const valid = Math.max(-1000, Math.min(1000, Math.trunc(wanted)));
  return ownCapabilities.includes('SYS_RESOURCE') ? valid : Math.max(valid, own);
}
