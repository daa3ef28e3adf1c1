/** What the pod worker wants of volumes. */
import type { Pod } from '../apiserver/types.ts';

/** A volume that is ready to be mounted into containers. */
export interface ReadyVolume {
  readonly name: string;
  /** Absolute path on the host; empty for an image. */
  readonly hostPath: string;
  /** `hostPath` is a device, for `volumeDevices`. */
  readonly device?: true;
  /** The reference of an image whose files it is. */
  readonly image?: string;
  /** The volume itself is read-only, whatever the container's mount says. */
  readonly readOnly: boolean;
}

/**
 * The volumes of pods, under `<kubelet root>/pods/<uid>/volumes/kubernetes.io~<plugin>/<name>`.
 * Both calls are idempotent, survive a crash at any line, and are bounded by `signal`.
 */
export interface VolumeManager {
  /** Makes or updates every volume of the pod. Throws VOLUME_FAILED naming the volume and why. */
  setUp(pod: Pod, signal?: AbortSignal): Promise<ReadonlyMap<string, ReadyVolume>>;
  /** Milliseconds until `setUp` should run again (token refresh, changed ConfigMap), or undefined. */
  refreshAfterMs(pod: Pod): number | undefined;
  /** Unmounts and removes everything of the pod, also what a crashed process left. */
  tearDown(podUid: string, signal?: AbortSignal): Promise<void>;
  /** Uids that have a pod folder on disk: for finding orphans at start. */
  podsOnDisk(): Promise<readonly string[]>;
}
