/** What a container may ask for at all, and in its sandbox. Pure. */
import type { ContainerConfig, PodSandboxConfig, SecurityProfile } from '../api.ts';
import { KeelsonError } from '../host/errors.ts';
import { checkResources } from '../resources/limits.ts';
import { checkOption } from './selinux.ts';
import { checkUsers, sameUsers, wantedUsers } from './userns.ts';

/** Classes of Intel RDT and of block devices, as CRI-O's and containerd's users write them. */
const classAnnotations =
  /^(io\.kubernetes\.cri\.(?:blockio|rdt)-class|(?:blockio|rdt)\.resources\.beta\.kubernetes\.io\/(?:pod|container\..*))$/;

/** Throws CONTAINER_CONFIG_INVALID. */
export function checkContainerRequest(
  config: ContainerConfig,
  sandbox: PodSandboxConfig,
  cgroupVersion: 1 | 2,
): void {
  const { security, resources } = config.linux;
  const invalid = (message: string, hint?: string) =>
    new KeelsonError('CONTAINER_CONFIG_INVALID', message, { hint });
  checkResources(resources, 'CONTAINER_CONFIG_INVALID', cgroupVersion);
  if (security.privileged && !sandbox.linux.security.privileged) {
    throw invalid('a privileged container is not allowed in a sandbox that is not privileged');
  }
  checkUsers(security.namespaces, 'CONTAINER_CONFIG_INVALID');
  if (!sameUsers(wantedUsers(security.namespaces), wantedUsers(sandbox.linux.security.namespaces))) {
    throw invalid("the container's user namespace is not that of its sandbox");
  }
  checkProfile('seccomp', security.seccomp, 'CONTAINER_CONFIG_INVALID');
  checkProfile('AppArmor', security.apparmor, 'CONTAINER_CONFIG_INVALID');
  checkOption(security.selinux);
  for (const [what, paths] of [
    ['masked', security.maskedPaths],
    ['read-only', security.readonlyPaths],
  ] as const) {
    const broken = paths?.find((path) => !path.startsWith('/') || path.includes('\0'));
    if (broken !== undefined)
      throw invalid(`${JSON.stringify(broken)} cannot be ${what}: it is no absolute path`);
  }
  const asked = [...Object.keys(config.annotations), ...Object.keys(sandbox.annotations)];
  const found = asked.find((name) => classAnnotations.test(name));
  if (found !== undefined) {
    throw invalid(
      `annotation ${found}: this node has no classes of block I/O or RDT`,
      'remove the annotation, or run the pod on a node that has them',
    );
  }
}

/** Throws `code` for a profile that contradicts itself. */
export function checkProfile(
  kind: string,
  profile: SecurityProfile | undefined,
  code: 'INVALID_ARGUMENT' | 'CONTAINER_CONFIG_INVALID',
): void {
  if (profile === undefined) return;
  const { type, localhostRef = '' } = profile;
  if (type === 'Localhost' && localhostRef === '') {
    throw new KeelsonError(code, `a ${kind} profile of type Localhost needs the name of the profile`);
  }
  if (type !== 'Localhost' && localhostRef !== '') {
    throw new KeelsonError(
      code,
      `a ${kind} profile of type ${type} has no name (${JSON.stringify(localhostRef)})`,
    );
  }
}
