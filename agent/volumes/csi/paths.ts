/** kubelet's places and names for volumes of CSI drivers (pkg/volume/csi), so that either can go on for the other. Pure. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';

/** Name of the kind's folder below `volumes/` and `volumeDevices/` of a pod. */
export const plugin = 'kubernetes.io~csi';
export const dataFile = 'vol_data.json';

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');

/** What is kept beside a volume to take it away by. */
export interface VolumeData {
  readonly driverName: string;
  readonly volumeHandle: string;
  readonly specVolID?: string;
  readonly nodeName?: string;
  readonly attachmentID?: string;
  readonly volumeLifecycleMode?: 'Persistent' | 'Ephemeral';
}

/** What a data file says. Undefined for what is none. */
export function parseData(text: string): VolumeData | undefined {
  let found: unknown;
  try {
    found = JSON.parse(text);
  } catch {
    return undefined;
  }
  const { driverName, volumeHandle } = (found ?? {}) as Record<string, unknown>;
  if (typeof driverName !== 'string' || typeof volumeHandle !== 'string') return undefined;
  return found as VolumeData;
}

/** The name of the VolumeAttachment object that says that the volume is at the node. */
export function attachmentName(handle: string, driver: string, nodeName: string): string {
  return `csi-${sha256(handle + driver + nodeName)}`;
}

/** The handle of a volume that a pod declares itself. */
export function inlineHandle(podUid: string, volumeName: string): string {
  return `csi-${sha256(podUid + volumeName)}`;
}

const pluginDir = (kubeletDir: string) => join(kubeletDir, 'plugins/kubernetes.io/csi');

/** Where a volume is staged for all pods of the node; its data file is in the folder above. */
export function globalMount(kubeletDir: string, driver: string, handle: string): string {
  return join(pluginDir(kubeletDir), driver, sha256(handle), 'globalmount');
}

/** Where a pod has the volume, below its folder of the volume, which has the data file. */
export const mountPath = (folder: string) => join(folder, 'mount');

export interface BlockPaths {
  /** Everything of the volume but the next two. */
  readonly folder: string;
  /** Has the data file. */
  readonly data: string;
  readonly staging: string;
  /** The device for the pod, which the driver makes. */
  readonly publish: string;
  /** The pod's link to it. */
  readonly link: string;
}

export function blockPaths(kubeletDir: string, specName: string, podUid: string): BlockPaths {
  const devices = join(pluginDir(kubeletDir), 'volumeDevices');
  return {
    folder: join(devices, specName),
    data: join(devices, specName, 'data'),
    staging: join(devices, 'staging', specName),
    publish: join(devices, 'publish', specName, podUid),
    link: join(kubeletDir, 'pods', podUid, 'volumeDevices', plugin, specName),
  };
}
