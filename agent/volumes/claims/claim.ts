/**
 * Which persistent volume a pod's volume means, and whether the pod may have it on this node: kubelet's rules and words
 * (volumemanager/populator, volume/util/operationexecutor). Pure.
 */
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { PersistentVolume, PersistentVolumeClaim, Pod, Volume } from '../../apiserver/types.ts';
import { matchesNode } from '../../node/selector.ts';

/** A claim and the volume that it is bound to. */
export interface Bound {
  readonly claim: PersistentVolumeClaim;
  readonly volume: PersistentVolume;
}

const protection = 'kubernetes.io/pvc-protection';

/** The name of the claim that `volume` of `pod` stands for; undefined where it stands for none. */
export function claimNameOf(pod: Pod, volume: Volume): string | undefined {
  if (volume.persistentVolumeClaim) return volume.persistentVolumeClaim.claimName;
  return volume.ephemeral ? `${pod.metadata?.name}-${volume.name}` : undefined;
}

/** Throws VOLUME_FAILED unless the claim is bound and, where `volume` made it, the pod's own. */
export function checkClaim(pod: Pod, volume: Volume, claim: PersistentVolumeClaim): void {
  const { metadata, spec, status } = claim;
  if (metadata?.deletionTimestamp !== undefined && !metadata.finalizers?.includes(protection)) {
    throw failed(claim, 'PVC is being deleted');
  }
  if (status?.phase !== 'Bound') throw failed(claim, 'PVC is not bound');
  if (!spec?.volumeName) throw failed(claim, 'PVC has empty pvc.Spec.VolumeName');
  if (!volume.ephemeral) return;
  const owner = metadata?.ownerReferences?.find(({ controller }) => controller === true);
  if (owner?.uid === pod.metadata?.uid) return;
  throw new KeelsonError(
    'VOLUME_FAILED',
    `PVC ${nameOf(claim)} was not created for pod ${pod.metadata?.namespace}/${pod.metadata?.name} (pod is not owner)`,
  );
}

/** Throws VOLUME_FAILED unless `volume` is bound to the claim and is used as what it is. */
export function checkVolume(pod: Pod, name: string, { claim, volume }: Bound): void {
  const reference = volume.spec?.claimRef;
  const found = `found PV object ${volume.metadata?.name}`;
  if (!reference) {
    throw failed(
      claim,
      `${found} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim`,
    );
  }
  if (reference.uid !== claim.metadata?.uid) {
    throw failed(
      claim,
      `${found} but its pv.Spec.ClaimRef.UID ${reference.uid} does not point to claim.UID ${claim.metadata?.uid}`,
    );
  }
  const { mounts, devices } = usesOf(pod, name);
  const mode = volume.spec?.volumeMode ?? 'Filesystem';
  const use =
    mounts && mode !== 'Filesystem' ? 'volumeMounts' : devices && mode !== 'Block' ? 'volumeDevices' : '';
  if (use !== '') {
    throw new KeelsonError(
      'VOLUME_FAILED',
      `volume ${name} has volumeMode ${mode}, but is specified in ${use}`,
    );
  }
}

/** Throws VOLUME_FAILED where the volume cannot be had on a node of such `labels`. */
export function checkNode({ volume }: Bound, labels: Readonly<Record<string, string>>): void {
  const required = volume.spec?.nodeAffinity?.required;
  if (!required || matchesNode(required.nodeSelectorTerms, labels, {})) return;
  throw new KeelsonError('VOLUME_FAILED', 'no matching NodeSelectorTerms', {
    details: { operation: 'MountVolume.NodeAffinity check' },
  });
}

/** Whether some container of the pod has the volume as a file system, and as a device. */
export function usesOf(pod: Pod, name: string): { readonly mounts: boolean; readonly devices: boolean } {
  const { containers = [], initContainers = [] } = pod.spec ?? {};
  const all = [...initContainers, ...containers];
  const among = (list: readonly { readonly name: string }[] | undefined) =>
    list?.some((one) => one.name === name) === true;
  return {
    mounts: all.some(({ volumeMounts }) => among(volumeMounts)),
    devices: all.some(({ volumeDevices }) => among(volumeDevices)),
  };
}

/** `cause` kept the claim of that name from being followed. */
export function failed(claim: PersistentVolumeClaim, cause: string, error?: unknown): KeelsonError {
  return new KeelsonError('VOLUME_FAILED', `error processing PVC ${nameOf(claim)}: ${cause}`, {
    cause: error,
  });
}

function nameOf({ metadata }: PersistentVolumeClaim): string {
  return `${metadata?.namespace}/${metadata?.name}`;
}
