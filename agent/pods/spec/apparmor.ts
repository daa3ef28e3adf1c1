/** Which AppArmor profile a container is to have, and whether the node can give it (pkg/security/apparmor). Pure. */
import type { Pod, PodContainer } from '../../apiserver/types.ts';
import { everyContainer } from './pod.ts';

/** core/v1 AppArmorProfile. */
export interface AppArmorProfile {
  readonly type: string;
  readonly localhostProfile?: string;
}

/** With the container's name after it: how profiles were asked for before they had a field. */
const annotation = 'container.apparmor.security.beta.kubernetes.io/';

/** The container's own field, its annotation (a static pod may have no more), the pod's field. */
export function appArmorProfile(pod: Pod, container: PodContainer): AppArmorProfile | undefined {
  return (
    container.securityContext?.appArmorProfile ??
    annotated(pod.metadata?.annotations?.[annotation + container.name]) ??
    pod.spec?.securityContext?.appArmorProfile
  );
}

/** What is none of the known values is as if it were not there. */
function annotated(value: string | undefined): AppArmorProfile | undefined {
  if (value === 'runtime/default') return { type: 'RuntimeDefault' };
  if (value === 'unconfined') return { type: 'Unconfined' };
  if (value?.startsWith('localhost/') !== true) return undefined;
  return { type: 'Localhost', localhostProfile: value.slice('localhost/'.length) };
}

/** Some profile is asked for anywhere. */
function isRequired(pod: Pod): boolean {
  const fields = [
    pod.spec?.securityContext?.appArmorProfile,
    ...everyContainer(pod).map(({ securityContext }) => securityContext?.appArmorProfile),
  ];
  return (
    fields.some((profile) => profile !== undefined && profile.type !== 'Unconfined') ||
    Object.entries(pod.metadata?.annotations ?? {}).some(
      ([key, value]) => key.startsWith(annotation) && value !== 'unconfined',
    )
  );
}

/** Why the node does not take the pod, as kubelet says it. `enabled`: the host has AppArmor switched on. */
export function appArmorRefusal(
  pod: Pod,
  enabled: boolean,
): { readonly reason: string; readonly message: string } | undefined {
  if (!isRequired(pod)) return undefined;
  const refuse = (why: string) => ({ reason: 'AppArmor', message: `Cannot enforce AppArmor: ${why}` });
  if (!enabled) return refuse('AppArmor is not enabled on the host');
  for (const container of everyContainer(pod)) {
    const profile = appArmorProfile(pod, container);
    if (profile?.type !== 'Localhost' || profile.localhostProfile?.trim()) continue;
    const name = profile.localhostProfile === undefined ? 'nil' : `*${profile.localhostProfile}`;
    return refuse(
      `invalid empty AppArmor profile name: "&AppArmorProfile{Type:Localhost,LocalhostProfile:${name},}"`,
    );
  }
  return undefined;
}
