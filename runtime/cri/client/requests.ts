/** Arguments of runtime/api.ts → requests of the wire: the other way of from_wire.ts. Pure. */
import { constants } from 'node:os';
import {
  type AuthConfig,
  type ContainerConfig,
  defaultMaskedPaths,
  defaultReadonlyPaths,
  type ImageSpec,
  type LinuxContainerSecurityContext,
  type PodSandboxConfig,
  type SecurityProfile,
} from '../../api.ts';
import { groupPolicies, nameOf, profileTypes, protocols, signalNameOf } from '../names.ts';
import { mountTo, namespacesTo, resourcesTo } from '../to_wire.ts';
import type { WireInput } from '../wire/types.ts';

function profileTo(profile: SecurityProfile | undefined): WireInput<'SecurityProfile'> | undefined {
  return profile && { profileType: nameOf(profileTypes, profile.type), localhostRef: profile.localhostRef };
}

export function sandboxConfigTo(config: PodSandboxConfig): WireInput<'PodSandboxConfig'> {
  const { metadata, hostname, logDirectory, dns, portMappings, labels, annotations, linux } = config;
  const { security } = linux;
  return {
    metadata,
    hostname,
    logDirectory,
    dnsConfig: dns,
    portMappings: portMappings.map(({ protocol, containerPort, hostPort, hostIp }) => ({
      protocol: nameOf(protocols, protocol),
      containerPort,
      hostPort,
      hostIp,
    })),
    labels,
    annotations,
    linux: {
      cgroupParent: linux.cgroupParent,
      sysctls: linux.sysctls,
      securityContext: {
        namespaceOptions: namespacesTo(security.namespaces),
        privileged: security.privileged,
        seccomp: profileTo(security.seccomp),
        apparmor: profileTo(security.apparmor),
        selinuxOptions: security.selinux,
      },
    },
  };
}

export function imageSpecTo({ image, runtimeHandler }: ImageSpec): WireInput<'ImageSpec'> {
  return { image, runtimeHandler };
}

const int64 = (value: number | undefined) => (value === undefined ? undefined : { value });

function securityTo(security: LinuxContainerSecurityContext): WireInput<'LinuxContainerSecurityContext'> {
  const { capabilities, privileged = false } = security;
  // Other runtimes hide nothing unless they are told what.
  const hidden = (asked: readonly string[] | undefined, usual: readonly string[]) =>
    asked ?? (privileged ? [] : usual);
  return {
    namespaceOptions: namespacesTo(security.namespaces),
    privileged,
    capabilities: capabilities && {
      addCapabilities: capabilities.add,
      dropCapabilities: capabilities.drop,
      addAmbientCapabilities: capabilities.addAmbient,
    },
    runAsUser: int64(security.runAsUser),
    runAsUsername: security.runAsUsername,
    runAsGroup: int64(security.runAsGroup),
    supplementalGroups: security.supplementalGroups?.map(BigInt),
    supplementalGroupsPolicy: nameOf(groupPolicies, security.supplementalGroupsPolicy ?? 'merge'),
    readonlyRootfs: security.readonlyRootfs,
    noNewPrivs: security.noNewPrivs,
    maskedPaths: hidden(security.maskedPaths, defaultMaskedPaths),
    readonlyPaths: hidden(security.readonlyPaths, defaultReadonlyPaths),
    seccomp: profileTo(security.seccomp),
    apparmor: profileTo(security.apparmor),
    selinuxOptions: security.selinux,
  };
}

export function containerConfigTo(config: ContainerConfig): WireInput<'ContainerConfig'> {
  const { stopSignal } = config;
  return {
    metadata: config.metadata,
    image: { ...imageSpecTo(config.image), userSpecifiedImage: config.userImage },
    command: config.command,
    args: config.args,
    workingDir: config.workingDir,
    envs: config.envs.map(({ key, value }) => ({ key, value: Buffer.from(value, 'utf8') })),
    mounts: config.mounts.map(mountTo),
    devices: config.devices,
    CDIDevices: config.cdiDevices,
    labels: config.labels,
    annotations: config.annotations,
    logPath: config.logPath,
    stdin: config.stdin,
    stdinOnce: config.stdinOnce,
    tty: config.tty,
    stopSignal: stopSignal === undefined ? undefined : signalNameOf(stopSignal, constants.signals),
    linux: {
      resources: resourcesTo(config.linux.resources),
      securityContext: securityTo(config.linux.security),
    },
  };
}

export function authTo(auth: AuthConfig): WireInput<'AuthConfig'> {
  return auth;
}

/** Milliseconds → the whole seconds that the wire has; a part of one counts as one, so that 0 stays "none". */
export function secondsTo(milliseconds: number): number {
  return Math.ceil(milliseconds / 1000);
}
