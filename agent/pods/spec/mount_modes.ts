/** What of a container's mounts depends on the host: read-only all the way down (KEP-3857), SELinux labels. Pure. */
import type { ContainerConfig, Mount } from '../../../runtime/api.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { Pod, PodContainer } from '../../apiserver/types.ts';

type VolumeMount = NonNullable<PodContainer['volumeMounts']>[number];

/** Made for the pod alone, so that they may have its label. */
const own = ['emptyDir', 'configMap', 'secret', 'downwardAPI', 'projected'] as const;

/** Whether what the handler can do matters. */
export function asksRecursiveReadOnly({ volumeMounts }: PodContainer): boolean {
  return (volumeMounts ?? []).some(
    ({ recursiveReadOnly }) => recursiveReadOnly === 'Enabled' || recursiveReadOnly === 'IfPossible',
  );
}

/** Whether the mounts below it are read-only too. Throws CONTAINER_CONFIG_INVALID, as kubelet's resolveRecursiveReadOnly. */
function isRecursive(mount: VolumeMount, supported: boolean): boolean {
  const { name, readOnly, mountPropagation = 'None', recursiveReadOnly: mode = 'Disabled' } = mount;
  if (mode === 'Disabled') return false;
  const wanted = `volume "${name}" requested recursive read-only mode`;
  const refuse = (why: string) => new KeelsonError('CONTAINER_CONFIG_INVALID', `${wanted}, but it is ${why}`);
  if (!readOnly) throw refuse('not read-only');
  if (mountPropagation !== 'None') throw refuse(`not compatible with propagation "${mountPropagation}"`);
  if (mode === 'IfPossible') return supported;
  if (mode !== 'Enabled')
    throw new KeelsonError('CONTAINER_CONFIG_INVALID', `unknown recursive read-only mode "${mode}"`);
  if (!supported) throw refuse('not supported by the runtime');
  return true;
}

/** `config` of `container` as this host can do it: `recursiveReadOnly` is the handler's, `selinux` the kernel's. */
export function withMountModes(
  config: ContainerConfig,
  pod: Pod,
  container: PodContainer,
  host: { readonly recursiveReadOnly: boolean; readonly selinux: boolean },
): ContainerConfig {
  const asked = new Map(
    (container.volumeMounts ?? []).map((mount) => [
      mount.mountPath.startsWith('/') ? mount.mountPath : `/${mount.mountPath}`,
      mount,
    ]),
  );
  const change = (mount: Mount): Mount => {
    const wanted = asked.get(mount.containerPath);
    const { recursiveReadonly: _, ...rest } = mount;
    return {
      ...rest,
      ...(wanted !== undefined && isRecursive(wanted, host.recursiveReadOnly)
        ? { recursiveReadonly: true }
        : {}),
      ...(host.selinux && isOwn(pod, wanted) ? { selinuxRelabel: true } : {}),
    };
  };
  return { ...config, mounts: config.mounts.map(change) };
}

/** What is no volume is a file that the node made: hosts, the last message. */
function isOwn(pod: Pod, mount: VolumeMount | undefined): boolean {
  if (mount === undefined) return true;
  const volume = pod.spec?.volumes?.find(({ name }) => name === mount.name);
  return volume !== undefined && own.some((kind) => volume[kind] !== undefined);
}
