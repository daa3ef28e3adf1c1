/** Requests of the wire, and what answers share with them → runtime/api.ts. Pure; throws INVALID_ARGUMENT for what makes no sense. */
import type {
  AuthConfig,
  ContainerConfig,
  ImageSpec,
  LinuxContainerResources,
  LinuxContainerSecurityContext,
  Mount,
  NamespaceOption,
  PodSandboxConfig,
  SecurityProfile,
  UserNamespace,
} from '../api.ts';
import { KeelsonError } from '../host/errors.ts';
import {
  groupPolicies,
  namespaceModes,
  profileTypes,
  propagations,
  protocols,
  signalOf,
  wordOf,
} from './names.ts';
import type { Wire } from './wire/types.ts';

function invalid(message: string): KeelsonError {
  return new KeelsonError('INVALID_ARGUMENT', message);
}

/** `value`, which must be there. */
export function given<T>(value: T | undefined, field: string): T {
  if (value === undefined) throw invalid(`${field} is missing`);
  return value;
}

/** An int64 as a number; what does not fit one exactly is nothing that a kernel takes. */
function numberOf(value: bigint, field: string): number {
  const number = Number(value);
  // "As much as there is" is written as the greatest int64, or as the greatest page below it.
  if (value >= 2n ** 62n) return Number.MAX_SAFE_INTEGER;
  if (!Number.isSafeInteger(number)) throw invalid(`${field} is ${value}`);
  return number;
}

function idOf(value: bigint, field: string): number {
  if (value < 0n || value > 0xffff_fffen) throw invalid(`${field} ${value} is no id of a user or group`);
  return Number(value);
}

export function namespacesOf(options: Wire<'NamespaceOption'> | undefined): NamespaceOption {
  // Without options everything has the enum's zero, POD.
  if (options === undefined) return { network: 'pod', pid: 'pod', ipc: 'pod' };
  const shared = (mode: Wire<'NamespaceOption'>['network'], field: string): 'pod' | 'node' => {
    const word = wordOf(namespaceModes, mode, field);
    if (word === 'pod' || word === 'node') return word;
    throw invalid(`${field} cannot be ${word}`);
  };
  return {
    network: shared(options.network, 'namespace_options.network'),
    pid: wordOf(namespaceModes, options.pid, 'namespace_options.pid'),
    ipc: shared(options.ipc, 'namespace_options.ipc'),
    targetId: options.targetId || undefined,
    user: options.usernsOptions && usersOf(options.usernsOptions),
  };
}

function usersOf({ mode, uids, gids }: Wire<'UserNamespace'>): UserNamespace {
  const word = wordOf(namespaceModes, mode, 'userns_options.mode');
  if (word === 'pod' || word === 'node') return { mode: word, uids, gids };
  throw invalid(`userns_options.mode cannot be ${word}`);
}

/** `old` is the field that the profile replaced: `runtime/default`, `unconfined`, `localhost/NAME`. */
function profileOf(
  profile: Wire<'SecurityProfile'> | undefined,
  old: string,
  field: string,
): SecurityProfile | undefined {
  if (profile !== undefined) {
    const type = wordOf(profileTypes, profile.profileType, `${field}.profile_type`);
    return { type, localhostRef: profile.localhostRef || undefined };
  }
  if (old === '') return undefined;
  if (old === 'runtime/default' || old === 'docker/default') return { type: 'RuntimeDefault' };
  if (old === 'unconfined') return { type: 'Unconfined' };
  if (old.startsWith('localhost/'))
    return { type: 'Localhost', localhostRef: old.slice('localhost/'.length) };
  throw invalid(`${field}: unknown profile ${JSON.stringify(old)}`);
}

export function sandboxConfigOf(config: Wire<'PodSandboxConfig'> | undefined): PodSandboxConfig {
  const { metadata, hostname, logDirectory, dnsConfig, portMappings, labels, annotations, linux } = given(
    config,
    'config',
  );
  const security = linux?.securityContext;
  return {
    metadata: given(metadata, 'config.metadata'),
    hostname,
    logDirectory,
    dns: dnsConfig,
    portMappings: portMappings.map(({ protocol, containerPort, hostPort, hostIp }) => {
      for (const port of [containerPort, hostPort]) {
        if (port < 0 || port > 65_535) throw invalid(`port_mappings: ${port} is no port`);
      }
      return {
        protocol: wordOf(protocols, protocol, 'port_mappings.protocol'),
        containerPort,
        hostPort: hostPort || undefined,
        hostIp: hostIp || undefined,
      };
    }),
    labels,
    annotations,
    linux: {
      cgroupParent: linux?.cgroupParent ?? '',
      sysctls: linux?.sysctls ?? {},
      security: {
        namespaces: namespacesOf(security?.namespaceOptions),
        privileged: security?.privileged,
        seccomp: profileOf(security?.seccomp, security?.seccompProfilePath ?? '', 'seccomp'),
        apparmor: profileOf(security?.apparmor, '', 'apparmor'),
        selinux: security?.selinuxOptions,
      },
    },
  };
}

export function imageSpecOf(image: Wire<'ImageSpec'> | undefined): ImageSpec {
  const { image: name, runtimeHandler } = given(image, 'image');
  if (name === '') throw invalid('image.image is empty');
  return { image: name, runtimeHandler: runtimeHandler || undefined };
}

function wantedMountOf(mount: Wire<'Mount'>): Mount {
  if (mount.image !== undefined && !mount.readonly) {
    throw invalid(`mounts: the image at ${mount.containerPath} can only be mounted with readonly`);
  }
  return mountOf(mount);
}

export function mountOf(mount: Wire<'Mount'>): Mount {
  return {
    containerPath: mount.containerPath,
    hostPath: mount.hostPath,
    readonly: mount.readonly,
    recursiveReadonly: mount.recursiveReadOnly,
    propagation: wordOf(propagations, mount.propagation, 'mounts.propagation'),
    selinuxRelabel: mount.selinuxRelabel,
    ...(mount.uidMappings.length > 0 || mount.gidMappings.length > 0
      ? { uidMappings: mount.uidMappings, gidMappings: mount.gidMappings }
      : {}),
    image: mount.image && imageSpecOf(mount.image),
    imageSubPath: mount.imageSubPath || undefined,
    mountOptions: mount.mountOptions,
  };
}

/** Zeros are what is not set. */
export function resourcesOf(resources: Wire<'LinuxContainerResources'> | undefined): LinuxContainerResources {
  if (resources === undefined) return {};
  const set = (value: bigint, field: string) => (value === 0n ? undefined : numberOf(value, field));
  return {
    cpuPeriod: set(resources.cpuPeriod, 'cpu_period'),
    cpuQuota: set(resources.cpuQuota, 'cpu_quota'),
    cpuShares: set(resources.cpuShares, 'cpu_shares'),
    memoryLimitBytes: set(resources.memoryLimitInBytes, 'memory_limit_in_bytes'),
    memorySwapLimitBytes: set(resources.memorySwapLimitInBytes, 'memory_swap_limit_in_bytes'),
    oomScoreAdj: numberOf(resources.oomScoreAdj, 'oom_score_adj'),
    cpusetCpus: resources.cpusetCpus || undefined,
    cpusetMems: resources.cpusetMems || undefined,
    hugepageLimits: resources.hugepageLimits.map(({ pageSize, limit }) => ({
      pageSize,
      limit: numberOf(limit, 'hugepage_limits.limit'),
    })),
    unified: resources.unified,
  };
}

function securityOf(
  context: Wire<'LinuxContainerSecurityContext'> | undefined,
): LinuxContainerSecurityContext {
  if (context === undefined) return { namespaces: namespacesOf(undefined) };
  const { capabilities, runAsUser, runAsGroup } = context;
  return {
    namespaces: namespacesOf(context.namespaceOptions),
    privileged: context.privileged,
    capabilities: capabilities && {
      add: capabilities.addCapabilities,
      drop: capabilities.dropCapabilities,
      addAmbient: capabilities.addAmbientCapabilities,
    },
    runAsUser: runAsUser && idOf(runAsUser.value, 'run_as_user'),
    runAsUsername: context.runAsUsername || undefined,
    runAsGroup: runAsGroup && idOf(runAsGroup.value, 'run_as_group'),
    supplementalGroups: context.supplementalGroups.map((group) => idOf(group, 'supplemental_groups')),
    supplementalGroupsPolicy: wordOf(
      groupPolicies,
      context.supplementalGroupsPolicy,
      'supplemental_groups_policy',
    ),
    readonlyRootfs: context.readonlyRootfs,
    noNewPrivs: context.noNewPrivs,
    maskedPaths: context.maskedPaths,
    readonlyPaths: context.readonlyPaths,
    seccomp: profileOf(context.seccomp, context.seccompProfilePath, 'seccomp'),
    apparmor: profileOf(context.apparmor, context.apparmorProfile, 'apparmor'),
    selinux: context.selinuxOptions,
  };
}

const utf8 = new TextDecoder('utf-8', { fatal: true });

/** Values are bytes on the wire, and text in what the OCI runtime reads. */
function environmentOf({ key, value }: Wire<'KeyValue'>): { key: string; value: string } {
  if (key === '' || /[=\0]/.test(key)) throw invalid(`envs: ${JSON.stringify(key)} is no name of a variable`);
  try {
    return { key, value: utf8.decode(value) };
  } catch {
    throw invalid(`envs: the value of ${key} is not UTF-8`);
  }
}

export function containerConfigOf(config: Wire<'ContainerConfig'> | undefined): ContainerConfig {
  const wanted = given(config, 'config');
  const image = given(wanted.image, 'config.image');
  return {
    metadata: given(wanted.metadata, 'config.metadata'),
    image: imageSpecOf(image),
    userImage: image.userSpecifiedImage || undefined,
    command: wanted.command,
    args: wanted.args,
    workingDir: wanted.workingDir,
    envs: wanted.envs.map(environmentOf),
    mounts: wanted.mounts.map(wantedMountOf),
    devices: wanted.devices,
    cdiDevices: wanted.CDIDevices,
    labels: wanted.labels,
    annotations: wanted.annotations,
    logPath: wanted.logPath,
    stdin: wanted.stdin,
    stdinOnce: wanted.stdinOnce,
    tty: wanted.tty,
    stopSignal: signalOf(wanted.stopSignal),
    linux: {
      resources: resourcesOf(wanted.linux?.resources),
      security: securityOf(wanted.linux?.securityContext),
    },
  };
}

export function authOf(auth: Wire<'AuthConfig'> | undefined): readonly AuthConfig[] {
  if (auth === undefined) return [];
  const fields = Object.entries(auth).filter(([, value]) => value !== '');
  return fields.some(([name]) => name !== 'serverAddress') ? [Object.fromEntries(fields)] : [];
}

/** Seconds as the wire has them → milliseconds; 0 stays 0. Throws INVALID_ARGUMENT below 0. */
export function millisecondsOf(seconds: bigint, field: string): number {
  if (seconds < 0n) throw invalid(`${field} is ${seconds}`);
  // Longer than a timer can wait means: without end.
  return seconds > 1_000_000n ? 1_000_000_000 : Number(seconds) * 1000;
}
