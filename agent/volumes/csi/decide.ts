/** What a driver is told about a volume: kubelet's rules (pkg/volume/csi). Pure. */
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { InputOf } from '../../../runtime/host/protobuf/schema.ts';
import type { PersistentVolume, Pod } from '../../apiserver/types.ts';
import type { AccessMode, csiNodeService, NodeCapability } from './messages.ts';

/** storage.k8s.io/v1 CSIDriver, as far as a node reads it. */
export interface CsiDriverObject {
  readonly spec: {
    readonly attachRequired?: boolean;
    readonly fsGroupPolicy?: string;
    readonly podInfoOnMount?: boolean;
    readonly requiresRepublish?: boolean;
    readonly seLinuxMount?: boolean;
    readonly serviceAccountTokenInSecrets?: boolean;
    readonly tokenRequests?: readonly { readonly audience: string; readonly expirationSeconds?: number }[];
    readonly volumeLifecycleModes?: readonly string[];
  };
}

export type LifecycleMode = 'Persistent' | 'Ephemeral';
export type Capability = InputOf<(typeof csiNodeService)['schema'], 'VolumeCapability'>;
type PersistentSource = NonNullable<NonNullable<PersistentVolume['spec']>['csi']>;

/** A volume as its driver shall see it, of a PersistentVolume or of the pod itself. */
export interface CsiVolume {
  readonly mode: LifecycleMode;
  readonly driver: string;
  readonly handle: string;
  readonly specName: string;
  readonly block: boolean;
  readonly readOnly: boolean;
  readonly fsType: string;
  /** Kubernetes' names; undefined where the volume has none. */
  readonly accessModes: readonly string[] | undefined;
  readonly mountOptions: readonly string[];
  readonly attributes: Readonly<Record<string, string>>;
  readonly stageSecret: PersistentSource['nodeStageSecretRef'];
  readonly publishSecret: PersistentSource['nodePublishSecretRef'];
  readonly expandSecret: { readonly name?: string; readonly namespace?: string } | undefined;
}

/** A volume is with the node only once an object says so, unless the driver has nothing to attach. */
export function needsAttachment(volume: CsiVolume, driver: CsiDriverObject | undefined): boolean {
  return volume.mode === 'Persistent' && driver?.spec.attachRequired !== false;
}

/** Throws VOLUME_FAILED where the driver is not for volumes of such a life. */
export function checkLifecycle({ mode, driver }: CsiVolume, object: CsiDriverObject | undefined): void {
  if (object === undefined && mode === 'Persistent') return;
  const why =
    object === undefined
      ? 'no CSIDriver object'
      : object.spec.volumeLifecycleModes?.includes(mode)
        ? ''
        : `only supports ${JSON.stringify(object.spec.volumeLifecycleModes ?? [])}`;
  if (why === '') return;
  throw new KeelsonError('VOLUME_FAILED', `volume mode "${mode}" not supported by driver ${driver} (${why})`);
}

/** csi.v1's name for an access mode. */
export function accessMode(mode: string, can: (capability: NodeCapability) => boolean): AccessMode {
  const manyWriters = can('SINGLE_NODE_MULTI_WRITER');
  switch (mode) {
    case 'ReadWriteOnce':
      return manyWriters ? 'SINGLE_NODE_MULTI_WRITER' : 'SINGLE_NODE_WRITER';
    case 'ReadWriteOncePod':
      return manyWriters ? 'SINGLE_NODE_SINGLE_WRITER' : 'SINGLE_NODE_WRITER';
    case 'ReadOnlyMany':
      return 'MULTI_NODE_READER_ONLY';
    case 'ReadWriteMany':
      return 'MULTI_NODE_MULTI_WRITER';
    default:
      return 'UNKNOWN';
  }
}

/** How the volume is wanted. A driver that can gives it to the pod's group itself. */
export function capabilityOf(
  volume: CsiVolume,
  can: (capability: NodeCapability) => boolean,
  fsGroup?: number,
): Capability {
  const mode = accessMode(volume.accessModes?.[0] ?? 'ReadWriteOnce', can);
  if (volume.block) return { accessMode: { mode }, block: {} };
  const group = can('VOLUME_MOUNT_GROUP') && fsGroup !== undefined ? String(fsGroup) : '';
  return {
    accessMode: { mode },
    mount: { fsType: volume.fsType, mountFlags: volume.mountOptions, volumeMountGroup: group },
  };
}

/** Whether the node gives the volume's files to the pod's group. Throws VOLUME_FAILED for an object without a policy. */
export function weSetGroup(
  volume: CsiVolume,
  object: CsiDriverObject | undefined,
  can: (capability: NodeCapability) => boolean,
  fsGroup: number | undefined,
): boolean {
  const policy = object === undefined ? 'ReadWriteOnceWithFSType' : object.spec.fsGroupPolicy;
  if (!policy) {
    throw new KeelsonError(
      'VOLUME_FAILED',
      'expected valid fsGroupPolicy, received nil value or empty string',
    );
  }
  if (fsGroup === undefined || volume.block || volume.readOnly || policy === 'None') return false;
  if (can('VOLUME_MOUNT_GROUP')) return false;
  if (policy === 'File') return true;
  if (volume.fsType === '') return false;
  if (volume.mode === 'Ephemeral') return true;
  return volume.accessModes?.some((mode) => mode === 'ReadWriteOnce' || mode === 'ReadWriteOncePod') === true;
}

/** What a driver that asks for it learns of the pod. */
export function podInfo(
  pod: Pod,
  volume: CsiVolume,
  object: CsiDriverObject | undefined,
): Readonly<Record<string, string>> {
  if (object?.spec.podInfoOnMount !== true) return {};
  return {
    'csi.storage.k8s.io/pod.name': pod.metadata?.name ?? '',
    'csi.storage.k8s.io/pod.namespace': pod.metadata?.namespace ?? '',
    'csi.storage.k8s.io/pod.uid': pod.metadata?.uid ?? '',
    'csi.storage.k8s.io/serviceAccount.name': pod.spec?.serviceAccountName ?? '',
    'csi.storage.k8s.io/ephemeral': String(volume.mode === 'Ephemeral'),
  };
}

/** CSI's codes after which the call may still be going on at the driver; all others end it (CSI spec, "Error Scheme"). */
const pending = new Set([1, 4, 8, 10, 14]);

/** Whether the driver has certainly ended what it was asked to do, without success. */
export function isFinal(error: unknown): boolean {
  const status = error instanceof KeelsonError ? error.details['grpc'] : undefined;
  return typeof status === 'number' && !pending.has(status);
}
