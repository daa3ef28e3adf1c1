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
import { formatPod } from './pod.ts';
import { namespacesOf } from './sandbox_config.ts';

export interface SecuritySettings {
  /** Where Localhost seccomp profiles are. */
  readonly seccompRoot: string;
  /** Containers that ask for nothing get RuntimeDefault. */
  readonly seccompDefault: boolean;
}

interface Profile {
  readonly type: string;
  readonly localhostProfile?: string;
}

function profileOf(
  own: Profile | undefined,
  ofPod: Profile | undefined,
  localhost: (name: string) => string,
): SecurityProfile | undefined {
  const given = own ?? ofPod;
  if (given === undefined) return undefined;
  if (given.type === 'Localhost') {
    if (!given.localhostProfile) {
      throw new KeelsonError('CONTAINER_CONFIG_INVALID', 'localhostProfile must be set for type Localhost');
    }
    return { type: 'Localhost', localhostRef: localhost(given.localhostProfile) };
  }
  return { type: given.type === 'RuntimeDefault' ? 'RuntimeDefault' : 'Unconfined' };
}

/** CAP_NAME and NAME are both written; the runtime takes either. */
export function containerSecurity(
  pod: Pod,
  container: PodContainer,
  imageUser: { readonly uid?: number; readonly username?: string },
  settings: SecuritySettings,
): LinuxContainerSecurityContext {
  const ofPod = pod.spec?.securityContext;
  const own = container.securityContext;
  const runAsUser = own?.runAsUser ?? ofPod?.runAsUser;
  if ((own?.runAsNonRoot ?? ofPod?.runAsNonRoot) === true)
    verifyNonRoot(pod, container, runAsUser, imageUser);
  const groups = [
    ...(ofPod?.fsGroup === undefined ? [] : [ofPod.fsGroup]),
    ...(ofPod?.supplementalGroups ?? []),
  ];
  const policy = (ofPod as { supplementalGroupsPolicy?: string } | undefined)?.supplementalGroupsPolicy;
  const privileged = own?.privileged === true;
  const unmasked = own?.procMount === 'Unmasked';
  const seccomp =
    profileOf(own?.seccompProfile, ofPod?.seccompProfile, (name) => join(settings.seccompRoot, name)) ??
    ({ type: settings.seccompDefault ? 'RuntimeDefault' : 'Unconfined' } as const);
  const apparmor = profileOf(own?.appArmorProfile, ofPod?.appArmorProfile, (name) => name);
  return {
    namespaces: namespacesOf(pod),
    privileged,
    capabilities: { add: own?.capabilities?.add ?? [], drop: own?.capabilities?.drop ?? [] },
    ...(runAsUser !== undefined
      ? { runAsUser }
      : imageUser.uid !== undefined
        ? { runAsUser: imageUser.uid }
        : imageUser.username
          ? { runAsUsername: imageUser.username }
          : // Nobody is named: root, and the group goes with somebody.
            { runAsUser: 0 }),
    runAsGroup: own?.runAsGroup ?? ofPod?.runAsGroup,
    supplementalGroups: groups,
    supplementalGroupsPolicy: policy === 'Strict' ? 'strict' : 'merge',
    readonlyRootfs: own?.readOnlyRootFilesystem === true,
    noNewPrivs: own?.allowPrivilegeEscalation === false,
    maskedPaths: unmasked || privileged ? [] : defaultMaskedPaths,
    readonlyPaths: unmasked || privileged ? [] : defaultReadonlyPaths,
    seccomp: privileged ? { type: 'Unconfined' } : seccomp,
    ...(apparmor === undefined ? {} : { apparmor }),
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
}
