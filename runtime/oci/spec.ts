/**
 * From what the CRI asks for to what an OCI runtime is told: config.json of the runtime-spec. Pure: everything that
 * must be looked up on the host is given.
 */
import {
  type ContainerConfig,
  defaultMaskedPaths,
  defaultReadonlyPaths,
  type UserNamespace,
} from '../api.ts';
import { type CgroupFacts, resourceLimits } from '../resources/limits.ts';
import type { OciSeccomp } from '../security/seccomp.ts';
import type { SelinuxLabels } from '../security/selinux.ts';
import { type DeviceRule, idMappings, type OciDevice, type OciSpec } from './config.ts';
import type { MountPlan } from './mounts.ts';
import { defaultPath, environment, type ImageDefaults, processArgs, workingDir } from './process.ts';
import { type Capabilities, clampOomScore, containerCapabilities } from './security.ts';
import type { ResolvedUser } from './user.ts';

/** What this process and kernel offer. */
export interface HostFacts extends CgroupFacts {
  /** Without CAP_. */
  readonly capabilities: readonly string[];
  readonly oomScoreAdj: number;
  /** How many files this process may open, and let others open. */
  readonly openFiles?: number;
}

/** Programs that close every descriptor they might have take minutes where a service has no limit. */
const maxOpenFiles = 1 << 20;

/** Paths of namespaces to join; a namespace that is absent is the host's. PID `own`: a new one. */
export interface JoinedNamespaces {
  readonly network?: string;
  readonly ipc?: string;
  readonly uts?: string;
  readonly pid: 'own' | 'host' | { readonly path: string };
  readonly user?: { readonly path: string } & Pick<UserNamespace, 'uids' | 'gids'>;
}

/** What the security modules of the kernel are told. */
export interface Confinement {
  readonly seccomp?: OciSeccomp;
  /** Name of a loaded profile. */
  readonly apparmor?: string;
  readonly selinux?: SelinuxLabels;
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
  readonly confinement?: Confinement;
}

/** Throws CONTAINER_CONFIG_INVALID for a name that is none. */
export function capabilitiesOf(config: ContainerConfig, host: HostFacts): Capabilities {
  const { privileged = false, capabilities } = config.linux.security;
  return containerCapabilities({
    privileged,
    add: capabilities?.add ?? [],
    drop: capabilities?.drop ?? [],
    addAmbient: capabilities?.addAmbient,
    own: host.capabilities,
  });
}

/** Throws CONTAINER_CONFIG_INVALID for what cannot be run. */
export function containerSpec(input: SpecInput): OciSpec {
  const { sandbox, config, image, user, mountPlan, host } = input;
  const { security } = config.linux;
  const privileged = security.privileged ?? false;
  const { all, ambient } = capabilitiesOf(config, host);
  const { seccomp, apparmor, selinux } = input.confinement ?? {};
  const { oomScoreAdj } = config.linux.resources;
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: config.tty ?? false,
      user: { uid: user.uid, gid: user.gid, additionalGids: user.additionalGids },
      args: processArgs(config, image),
      env: environment(config, image, sandbox.hostname),
      cwd: workingDir(config.workingDir || image.WorkingDir || '/'),
      capabilities: { bounding: all, effective: all, permitted: all, inheritable: ambient, ambient },
      noNewPrivileges: security.noNewPrivs ?? false,
      rlimits: openFiles(host),
      oomScoreAdj:
        oomScoreAdj === undefined
          ? undefined
          : clampOomScore(oomScoreAdj, host.oomScoreAdj, host.capabilities),
      apparmorProfile: apparmor,
      selinuxLabel: selinux?.process,
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
      ...userMappings(input.namespaces),
      cgroupsPath: input.cgroupsPath,
      resources: {
        ...resourceLimits(config.linux.resources, host),
        devices: deviceRules(privileged, input.devices),
      },
      devices: input.devices.map(({ access: _, ...device }) => device),
      maskedPaths: privileged ? [] : (security.maskedPaths ?? defaultMaskedPaths),
      readonlyPaths: privileged ? [] : (security.readonlyPaths ?? defaultReadonlyPaths),
      rootfsPropagation: mountPlan.rootfsPropagation,
      seccomp,
      mountLabel: selinux?.mount,
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
  readonly confinement?: Confinement;
}): OciSpec {
  const { seccomp, apparmor, selinux } = input.confinement ?? {};
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
      apparmorProfile: apparmor,
      selinuxLabel: selinux?.process,
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
      ...userMappings(input.namespaces),
      cgroupsPath: input.cgroupsPath,
      resources: { devices: deviceRules(false, []) },
      devices: [],
      maskedPaths: defaultMaskedPaths,
      readonlyPaths: defaultReadonlyPaths,
      seccomp,
      mountLabel: selinux?.mount,
    },
  };
}

/** Said, not inherited: what a container gets must not depend on how the service was started or what Node.js raised. */
function openFiles({ openFiles: own }: HostFacts): OciSpec['process']['rlimits'] {
  if (own === undefined) return undefined;
  const most = Math.min(own, maxOpenFiles);
  return [{ type: 'RLIMIT_NOFILE', soft: most, hard: most }];
}

function userMappings({ user }: Pick<JoinedNamespaces, 'user'>) {
  return user === undefined ? {} : { uidMappings: idMappings(user.uids), gidMappings: idMappings(user.gids) };
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

function namespaceList(joined: JoinedNamespaces, ownCgroup: boolean): OciSpec['linux']['namespaces'] {
  const list: { type: string; path?: string }[] = [{ type: 'mount' }];
  if (joined.pid === 'own') list.push({ type: 'pid' });
  else if (joined.pid !== 'host') list.push({ type: 'pid', path: joined.pid.path });
  if (joined.network !== undefined) list.push({ type: 'network', path: joined.network });
  if (joined.ipc !== undefined) list.push({ type: 'ipc', path: joined.ipc });
  if (joined.user !== undefined) list.push({ type: 'user', path: joined.user.path });
  if (joined.uts !== undefined) list.push({ type: 'uts', path: joined.uts });
  if (ownCgroup) list.push({ type: 'cgroup' });
  return list;
}

function deviceRules(privileged: boolean, devices: SpecInput['devices']): DeviceRule[] {
  if (privileged) return [{ allow: true, access: 'rwm' }];
  // The runtime adds /dev/null and its like, which every container has.
  return [
    { allow: false, access: 'rwm' },
    ...devices.map(({ type, major, minor, access }) => ({
      allow: true,
      type: type === 'b' ? ('b' as const) : ('c' as const),
      major,
      minor,
      access,
    })),
  ];
}
