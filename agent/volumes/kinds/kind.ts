/** What a kind of volume is asked to do: one file of this folder for each kind. */
import type { PersistentVolume, Pod, Volume } from '../../apiserver/types.ts';
import type { Bound } from '../claims/claim.ts';

type PersistentSource = NonNullable<PersistentVolume['spec']>;

/** Where the contents of a volume come from: the fields of a pod's volume and of a persistent volume that have a kind. */
export interface VolumeSource
  extends Pick<
      Volume,
      'configMap' | 'downwardAPI' | 'emptyDir' | 'hostPath' | 'nfs' | 'projected' | 'secret'
    >,
    Pick<PersistentSource, 'local'> {
  readonly csi?: Volume['csi'] | PersistentSource['csi'];
  /** core/v1 ImageVolumeSource, which is newer than the types. */
  readonly image?: { readonly reference?: string; readonly pullPolicy?: string };
}

/** A volume of a pod, its claim followed. */
export interface VolumeRequest {
  readonly pod: Pod;
  /** As the pod calls it. */
  readonly name: string;
  /** Name of its folder: that of the persistent volume, or else the pod's (kubelet's spec name). */
  readonly specName: string;
  readonly source: VolumeSource;
  /** Where it came by a claim. */
  readonly bound?: Bound;
  /** Containers get it as a device, not as a file system. */
  readonly block: boolean;
  /** Nobody shall write to it: the claim's reference says so, or the source does. */
  readonly readOnly: boolean;
  /** The persistent volume's, for mount(8). */
  readonly mountOptions: readonly string[];
  /** `<pod>/volumes/<plugin>/<specName>`; its parent exists. */
  readonly folder: string;
  readonly signal: AbortSignal | undefined;
}

/** What containers get: a path to mount, or the path of a device. */
export interface Prepared {
  readonly hostPath: string;
  readonly readOnly: boolean;
  /** `hostPath` is a device, for `volumeDevices`. */
  readonly device?: true;
  /** An image to mount instead of a path: a reference, as the pod has it. */
  readonly image?: string;
  /** Monotonic milliseconds when `setUp` is due again. */
  readonly due?: number;
}

/** What is left of a volume on disk, whoever made it. */
export interface VolumeRemains {
  readonly podUid: string;
  readonly specName: string;
  readonly folder: string;
  readonly signal: AbortSignal | undefined;
}

export interface VolumeKind {
  /** Name of the kind's folder below `volumes/`: kubelet's plugin name, with `~` for `/`. Absent: it keeps nothing there. */
  readonly plugin?: string;
  /** Whether such a source is of this kind. */
  readonly has: (source: VolumeSource) => boolean;
  /**
   * Makes the volume or brings it up to date. Called again and again while the pod runs, also by the next process: what
   * is there already stays. Throws VOLUME_FAILED, ABORTED.
   */
  readonly setUp: (request: VolumeRequest) => Promise<Prepared>;
  /**
   * Gives back what a folder alone does not hold. Called before what is mounted at or below `folder` is unmounted and
   * the folder removed; again until it succeeds once, so nothing to do is no error. Subpaths are unmounted already.
   */
  readonly tearDown?: (remains: VolumeRemains) => Promise<void>;
  /** The pod is going: what only memory holds of its volumes is let go of. */
  readonly forget?: (podUid: string) => void;
}
