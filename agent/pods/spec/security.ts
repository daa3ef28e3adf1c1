/** The security context that a container gets: its own fields over the pod's. Pure. */
import { join } from 'node:path';
import {
  defaultMaskedPaths,
  defaultReadonlyPaths,
  type LinuxContainerSecurityContext,
  type SecurityProfile,
} from '../../../runtime/api.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { Pod, PodContainer } from '../../apiserver/types.ts';
import { appArmorProfile } from './apparmor.ts';
import { formatPod } from './pod.ts';
import { namespacesOf } from './sandbox_config.ts';

export interface SecuritySettings {
  /** Where Localhost seccomp profiles are. */
  readonly seccompRoot: string;
  /** Containers that ask for nothing get RuntimeDefault. */
  readonly seccompDefault: boolean;
  /** What this host hides of /sys besides what every host does. */
  readonly maskedPaths?: readonly string[];
  /** The host has SELinux switched on: what belongs to a pod alone gets its label. */
  readonly selinux?: boolean;
}

/** Of users and groups, in the API (validation.IsValidUserID). */
const largestId = 2 ** 31 - 1;

interface Profile {
  readonly type: string;
  readonly localhostProfile?: string;
}

/** Throws CONTAINER_CONFIG_INVALID. */
function profileOf(
  kind: 'seccomp' | 'AppArmor',
  given: Profile | undefined,
  localhost: (name: string) => string,
): SecurityProfile | undefined {
  if (given === undefined) return undefined;
  const { type, localhostProfile } = given;
  if (type === 'RuntimeDefault' || type === 'Unconfined') return { type };
  if (type === 'Localhost' && localhostProfile) return { type, localhostRef: localhost(localhostProfile) };
  throw new KeelsonError(
    'CONTAINER_CONFIG_INVALID',
    type !== 'Localhost'
      ? `unknown ${kind} profile type: ${JSON.stringify(type)}`
      : kind === 'seccomp'
        ? 'localhostProfile must be set if seccompProfile type is Localhost.'
        : 'missing localhost apparmor profile name',
  );
}

/** Whether the container's configuration depends on its image's user; else the runtime looks after that alone. */
export function asksImageUser(pod: Pod, container: PodContainer): boolean {
  const ofPod = pod.spec?.securityContext;
  const own = container.securityContext;
  if ((own?.runAsUser ?? ofPod?.runAsUser) !== undefined) return false;
  return (
    (own?.runAsNonRoot ?? ofPod?.runAsNonRoot) === true ||
    (own?.runAsGroup ?? ofPod?.runAsGroup) !== undefined
  );
}

/** CAP_NAME and NAME are both written; the runtime takes either. `imageUser`: absent unless `asksImageUser`. */
export function containerSecurity(
  pod: Pod,
  container: PodContainer,
  imageUser: { readonly uid?: number; readonly username?: string } | undefined,
  settings: SecuritySettings,
): LinuxContainerSecurityContext {
  const ofPod = pod.spec?.securityContext;
  const own = container.securityContext;
  const runAsUser = own?.runAsUser ?? ofPod?.runAsUser;
  if ((own?.runAsNonRoot ?? ofPod?.runAsNonRoot) === true)
    verifyNonRoot(pod, container, runAsUser, imageUser ?? {});
  const groups = [
    ...(ofPod?.fsGroup === undefined ? [] : [ofPod.fsGroup]),
    ...(ofPod?.supplementalGroups ?? []),
  ];
  const policy = (ofPod as { supplementalGroupsPolicy?: string } | undefined)?.supplementalGroupsPolicy;
  if (policy !== undefined && policy !== 'Merge' && policy !== 'Strict')
    throw new KeelsonError('CONTAINER_CONFIG_INVALID', `unsupported supplementalGroupsPolicy: ${policy}`);
  const privileged = own?.privileged === true;
  const unmasked = own?.procMount === 'Unmasked';
  const seccomp =
    profileOf('seccomp', own?.seccompProfile ?? ofPod?.seccompProfile, (name) =>
      join(settings.seccompRoot, name),
    ) ?? ({ type: settings.seccompDefault ? 'RuntimeDefault' : 'Unconfined' } as const);
  const apparmor = profileOf('AppArmor', appArmorProfile(pod, container), (name) => name);
  const selinux = own?.seLinuxOptions ?? ofPod?.seLinuxOptions;
  return {
    namespaces: namespacesOf(pod),
    privileged,
    capabilities: { add: own?.capabilities?.add ?? [], drop: own?.capabilities?.drop ?? [] },
    ...(runAsUser !== undefined
      ? { runAsUser }
      : imageUser === undefined
        ? {}
        : imageUser.uid !== undefined
          ? { runAsUser: imageUser.uid }
          : imageUser.username
            ? { runAsUsername: imageUser.username }
            : // The image names nobody: root, and the group goes with somebody.
              { runAsUser: 0 }),
    runAsGroup: own?.runAsGroup ?? ofPod?.runAsGroup,
    supplementalGroups: groups,
    supplementalGroupsPolicy: policy === 'Strict' ? 'strict' : 'merge',
    readonlyRootfs: own?.readOnlyRootFilesystem === true,
    noNewPrivs: own?.allowPrivilegeEscalation === false,
    maskedPaths: unmasked || privileged ? [] : [...defaultMaskedPaths, ...(settings.maskedPaths ?? [])],
    readonlyPaths: unmasked || privileged ? [] : defaultReadonlyPaths,
    seccomp: privileged ? { type: 'Unconfined' } : seccomp,
    ...(apparmor === undefined ? {} : { apparmor }),
    ...(selinux === undefined ? {} : { selinux }),
  };
}

/** verifyRunAsNonRoot: a name cannot be judged before the container's /etc/passwd is read, so it is refused. */
function verifyNonRoot(
  pod: Pod,
  container: PodContainer,
  runAsUser: number | undefined,
  image: { readonly uid?: number; readonly username?: string },
): void {
  const where = `(pod: "${formatPod(pod)}", container: ${container.name})`;
  const refuse = (message: string, hint: string) =>
    new KeelsonError('CONTAINER_CONFIG_INVALID', `${message} ${where}`, { hint });
  if (runAsUser !== undefined) {
    if (runAsUser === 0)
      throw refuse("container's runAsUser breaks non-root policy", 'set runAsUser to another number than 0');
    return;
  }
  if (image.uid === undefined && image.username) {
    throw refuse(
      `container has runAsNonRoot and image has non-numeric user (${image.username}), cannot verify user is non-root`,
      'set runAsUser to a number',
    );
  }
  if ((image.uid ?? 0) === 0) {
    throw refuse(
      'container has runAsNonRoot and image will run as root',
      'set runAsUser to another number than 0',
    );
  }
  if (image.uid !== undefined && image.uid > largestId) {
    throw refuse(
      `container has runAsNonRoot and image has an invalid user id (${image.uid}). (Must be 1-(${largestId})): must be between 0 and ${largestId}, inclusive`,
      'set runAsUser to another number than 0',
    );
  }
}
