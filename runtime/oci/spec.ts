/**
 * From what the CRI asks for to what an OCI runtime is told: config.json of the runtime-spec. Pure: everything that
 * must be looked up on the host is given.
 */
import {
  type ContainerConfig,
  defaultMaskedPaths,
  defaultReadonlyPaths,
  type LinuxContainerResources,
  type SecurityProfile,
} from '../api.ts';
import { KeelsonError } from '../host/errors.ts';
import type { MountPlan, OciMount } from './mounts.ts';
import { defaultPath, environment, type ImageDefaults, processArgs, workingDir } from './process.ts';
import { clampOomScore, containerCapabilities } from './security.ts';
import type { ResolvedUser } from './user.ts';

export interface OciDevice {
  readonly path: string;
  readonly type: 'b' | 'c';
  readonly major: number;
  readonly minor: number;
  readonly fileMode?: number;
  readonly uid?: number;
  readonly gid?: number;
}

interface DeviceRule {
  readonly allow: boolean;
  readonly type?: 'a' | 'b' | 'c';
  readonly major?: number;
  readonly minor?: number;
  readonly access: string;
}

/** The part of runtime-spec's config.json that is used here. */
export interface OciSpec {
  readonly ociVersion: string;
  readonly process: {
    readonly terminal: boolean;
    readonly user: { readonly uid: number; readonly gid: number; readonly additionalGids: readonly number[] };
    readonly args: readonly string[];
    readonly env: readonly string[];
    readonly cwd: string;
    readonly capabilities: {
      readonly bounding: readonly string[];
      readonly effective: readonly string[];
      readonly permitted: readonly string[];
    };
    readonly noNewPrivileges: boolean;
    readonly oomScoreAdj?: number;
  };
  readonly root: { readonly path: string; readonly readonly: boolean };
  readonly mounts: readonly OciMount[];
  readonly annotations: Readonly<Record<string, string>>;
  readonly linux: {
    readonly namespaces: readonly { readonly type: string; readonly path?: string }[];
    readonly cgroupsPath: string;
    readonly resources: Readonly<Record<string, unknown>>;
    readonly devices: readonly OciDevice[];
    readonly maskedPaths: readonly string[];
    readonly readonlyPaths: readonly string[];
    readonly rootfsPropagation?: string;
  };
}

/** What this process and kernel offer. */
export interface HostFacts {
  /** Without CAP_. */
  readonly capabilities: readonly string[];
  readonly oomScoreAdj: number;
  readonly cgroupVersion: 1 | 2;
  /** The hugetlb controller is there. */
  readonly hugetlb: boolean;
  /** Swap is accounted for: then a memory limit is one of memory and swap together. */
  readonly swapLimit: boolean;
}

/** Paths of namespaces to join; a namespace that is absent is the host's. PID `own`: a new one. */
export interface JoinedNamespaces {
  readonly network?: string;
  readonly ipc?: string;
  readonly uts?: string;
  readonly pid: 'own' | 'host' | { readonly path: string };
}

export interface SpecInput {
  readonly sandbox: {
    readonly id: string;
    readonly name: string;
    readonly namespace: string;
    readonly uid: string;
    readonly hostname: string;
  };
  readonly config: ContainerConfig;
  readonly image: ImageDefaults;
  readonly user: ResolvedUser;
  readonly rootfs: string;
  readonly cgroupsPath: string;
  readonly namespaces: JoinedNamespaces;
  readonly mountPlan: MountPlan;
  /** The wanted devices, or for a privileged container all of the host. */
  readonly devices: readonly (OciDevice & { readonly access: string })[];
  readonly host: HostFacts;
}

/** Throws CONTAINER_CONFIG_INVALID for what cannot be run. */
export function containerSpec(input: SpecInput): OciSpec {
  const { sandbox, config, image, user, mountPlan, host } = input;
  const { security } = config.linux;
  const privileged = security.privileged ?? false;
  rejectProfile('seccomp', security.seccomp);
  rejectProfile('AppArmor', security.apparmor);
  const capabilities = containerCapabilities({
    privileged,
    add: security.capabilities?.add ?? [],
    drop: security.capabilities?.drop ?? [],
    own: host.capabilities,
  });
  const { oomScoreAdj } = config.linux.resources;
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: config.tty ?? false,
      user: { uid: user.uid, gid: user.gid, additionalGids: user.additionalGids },
      args: processArgs(config, image),
      env: environment(config, image, sandbox.hostname),
      cwd: workingDir(config.workingDir || image.WorkingDir || '/'),
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
      noNewPrivileges: security.noNewPrivs ?? false,
      oomScoreAdj:
        oomScoreAdj === undefined
          ? undefined
          : clampOomScore(oomScoreAdj, host.oomScoreAdj, host.capabilities),
    },
    root: { path: input.rootfs, readonly: security.readonlyRootfs ?? false },
    mounts: mountPlan.mounts,
    annotations: {
      'io.container.manager': 'keelson',
      'io.kubernetes.cri.container-type': 'container',
      'io.kubernetes.cri.container-name': config.metadata.name,
      'io.kubernetes.cri.image-name': config.userImage ?? config.image.image,
      'io.kubernetes.cri.sandbox-id': sandbox.id,
      'io.kubernetes.cri.sandbox-name': sandbox.name,
      'io.kubernetes.cri.sandbox-namespace': sandbox.namespace,
      'io.kubernetes.cri.sandbox-uid': sandbox.uid,
    },
    linux: {
      namespaces: namespaceList(input.namespaces, host.cgroupVersion === 2 && !privileged),
      cgroupsPath: input.cgroupsPath,
      resources: {
        ...resourceLimits(config.linux.resources, host),
        devices: deviceRules(privileged, input.devices),
      },
      devices: input.devices.map(({ access: _, ...device }) => device),
      maskedPaths: privileged ? [] : (security.maskedPaths ?? defaultMaskedPaths),
      readonlyPaths: privileged ? [] : (security.readonlyPaths ?? defaultReadonlyPaths),
      rootfsPropagation: mountPlan.rootfsPropagation,
    },
  };
}

/** The first process of a shared PID namespace: catatonit, waiting for orphans, with no rights and nothing to see. */
export function sandboxInitSpec(input: {
  readonly rootfs: string;
  /** The program on the host; it must be statically linked. */
  readonly catatonit: string;
  readonly cgroupsPath: string;
  readonly namespaces: Omit<JoinedNamespaces, 'pid'>;
  readonly sandboxId: string;
  readonly host: HostFacts;
}): OciSpec {
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: false,
      user: { uid: 65535, gid: 65535, additionalGids: [] },
      args: ['/catatonit', '-P'],
      env: [defaultPath],
      cwd: '/',
      capabilities: { bounding: [], effective: [], permitted: [] },
      noNewPrivileges: true,
      // As containerd does for pause containers: with it the whole pod would go.
      oomScoreAdj: clampOomScore(-998, input.host.oomScoreAdj, input.host.capabilities),
    },
    root: { path: input.rootfs, readonly: true },
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc', options: ['nosuid', 'noexec', 'nodev', 'ro'] },
      { destination: '/catatonit', type: 'bind', source: input.catatonit, options: ['bind', 'ro'] },
    ],
    annotations: {
      'io.container.manager': 'keelson',
      'io.kubernetes.cri.container-type': 'sandbox',
      'io.kubernetes.cri.sandbox-id': input.sandboxId,
    },
    linux: {
      namespaces: namespaceList({ ...input.namespaces, pid: 'own' }, input.host.cgroupVersion === 2),
      cgroupsPath: input.cgroupsPath,
      resources: { devices: deviceRules(false, []) },
      devices: [],
      maskedPaths: defaultMaskedPaths,
      readonlyPaths: defaultReadonlyPaths,
    },
  };
}

/** The container's cgroup: as config.json names it, and as a path in the tree. `systemd`: parent is a slice. */
export function containerCgroup(
  driver: 'cgroupfs' | 'systemd',
  parent: string,
  id: string,
  pathOfSlice: (slice: string) => string,
): { readonly cgroupsPath: string; readonly path: string } {
  if (driver === 'systemd') {
    const slice = parent.replace(/^.*\//, '') || 'system.slice';
    return { cgroupsPath: `${slice}:keelson:${id}`, path: `${pathOfSlice(slice)}/keelson-${id}.scope` };
  }
  const path = `${parent.replace(/\/+$/, '') || '/keelson'}/${id}`;
  return { cgroupsPath: path, path };
}

/** A profile that the user wrote must not be left out in silence. */
function rejectProfile(kind: string, profile: SecurityProfile | undefined): void {
  if (profile?.type !== 'Localhost') return;
  throw new KeelsonError(
    'CONTAINER_CONFIG_INVALID',
    `${kind} profiles of type Localhost are not supported yet`,
    {
      hint: `set the ${kind} profile type to RuntimeDefault or Unconfined`,
    },
  );
}

function namespaceList(joined: JoinedNamespaces, ownCgroup: boolean): OciSpec['linux']['namespaces'] {
  const list: { type: string; path?: string }[] = [{ type: 'mount' }];
  if (joined.pid === 'own') list.push({ type: 'pid' });
  else if (joined.pid !== 'host') list.push({ type: 'pid', path: joined.pid.path });
  if (joined.network !== undefined) list.push({ type: 'network', path: joined.network });
  if (joined.ipc !== undefined) list.push({ type: 'ipc', path: joined.ipc });
  if (joined.uts !== undefined) list.push({ type: 'uts', path: joined.uts });
  if (ownCgroup) list.push({ type: 'cgroup' });
  return list;
}

function deviceRules(privileged: boolean, devices: SpecInput['devices']): DeviceRule[] {
  if (privileged) return [{ allow: true, access: 'rwm' }];
  // The runtime adds /dev/null and its like, which every container has.
  return [
    { allow: false, access: 'rwm' },
    ...devices.map(({ type, major, minor, access }) => ({ allow: true, type, major, minor, access })),
  ];
}

function resourceLimits(wanted: LinuxContainerResources, host: HostFacts): Record<string, unknown> {
  const { cpuShares, cpuQuota, cpuPeriod, cpusetCpus, cpusetMems, memoryLimitBytes, pidsLimit } = wanted;
  const limits: Record<string, unknown> = {};
  const cpu = {
    shares: cpuShares || undefined,
    quota: cpuQuota || undefined,
    period: cpuPeriod || undefined,
    cpus: cpusetCpus || undefined,
    mems: cpusetMems || undefined,
  };
  if (Object.values(cpu).some((value) => value !== undefined)) limits['cpu'] = cpu;
  if (memoryLimitBytes) {
    limits['memory'] = { limit: memoryLimitBytes, swap: host.swapLimit ? memoryLimitBytes : undefined };
  }
  if (pidsLimit) limits['pids'] = { limit: pidsLimit };
  const pages = host.hugetlb ? (wanted.hugepageLimits ?? []) : [];
  if (pages.length > 0) limits['hugepageLimits'] = pages.map(({ pageSize, limit }) => ({ pageSize, limit }));
  if (host.cgroupVersion === 2 && wanted.unified !== undefined && Object.keys(wanted.unified).length > 0) {
    limits['unified'] = wanted.unified;
  }
  return limits;
}
