/** The kernel's security modules for one process: seccomp, AppArmor, SELinux. */
import type { SecurityProfile, SelinuxOption } from '../api.ts';
import type { Confinement } from '../oci/spec.ts';
import type { AppArmor } from './apparmor.ts';
import { seccompFor } from './seccomp.ts';
import { levelFor, type Selinux } from './selinux.ts';

export interface SecurityModules {
  readonly apparmor: AppArmor;
  readonly selinux: Selinux;
}

/** Throws CONTAINER_CONFIG_INVALID for what the host does not have. */
export async function confine(
  modules: SecurityModules,
  wanted: {
    readonly seccomp?: SecurityProfile;
    readonly apparmor?: SecurityProfile;
    readonly selinux?: SelinuxOption;
    readonly privileged: boolean;
    /** With CAP_. */
    readonly capabilities: readonly string[];
  },
  runtime: { readonly seccomp: boolean | undefined; readonly apparmor: boolean | undefined },
  sandboxId: string,
): Promise<Confinement> {
  const { privileged, capabilities } = wanted;
  const [seccomp, apparmor] = await Promise.all([
    seccompFor(wanted.seccomp, { privileged, capabilities, supported: runtime.seccomp }),
    modules.apparmor.profileFor(wanted.apparmor, privileged, runtime.apparmor),
  ]);
  return {
    seccomp,
    apparmor,
    selinux: modules.selinux.labelsFor(wanted.selinux, privileged, levelFor(sandboxId)),
  };
}
