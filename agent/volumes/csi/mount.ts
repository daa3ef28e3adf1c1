/** File systems of CSI drivers: staged once for the node, published to each pod (kubelet's csi_attacher and csi_mounter). */
import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Pod } from '../../apiserver/types.ts';
import { isMounted } from '../kinds/filesystem.ts';
import { setOwnership } from '../kinds/ownership.ts';
import { mountLabel, withLabel } from '../kinds/selinux.ts';
import {
  type CsiDriverObject,
  type CsiVolume,
  capabilityOf,
  checkLifecycle,
  isFinal,
  needsAttachment,
  podInfo,
  weSetGroup,
} from './decide.ts';
import type { CsiDriver, CsiDrivers } from './drivers.ts';
import type { CsiFacts } from './facts.ts';
import type { VolumesInUse } from './in_use.ts';
import type { NodeCapability } from './messages.ts';
import { attachmentName, blockPaths, globalMount, mountPath } from './paths.ts';
import { hasOtherMounts, readData, removeMount, writeData } from './users.ts';

export interface CsiContext {
  /** kubelet's root folder. */
  readonly kubeletDir: string;
  readonly nodeName: string;
  readonly drivers: CsiDrivers;
  readonly facts: CsiFacts;
  /** Absent where there is no apiserver. */
  readonly inUse: VolumesInUse | undefined;
  /** Of containers on this host; undefined without SELinux. Default: there is none. */
  readonly fileContext?: () => Promise<string | undefined>;
  /** Volumes that this process has staged: `<driver>^<handle>`. */
  readonly staged: Set<string>;
}

/** One pod's wish for a volume. */
export interface CsiRequest {
  readonly pod: Pod;
  /** Of the volume in the pod. */
  readonly name: string;
  readonly volume: CsiVolume;
  /** The pod's folder of the volume. */
  readonly folder: string;
  /** The pod has it already: it is published once more, and stays whatever comes of it. */
  readonly again: boolean;
  readonly signal: AbortSignal | undefined;
}

/** kubelet's name for a volume at a node. */
export const volumeKey = (driver: string, handle: string) => `${driver}^${handle}`;

/**
 * Returns where the volume is mounted, or throws. What was begun is known on disk before it is begun, so that it is taken
 * away with the pod.
 */
export async function mountVolume(
  context: CsiContext,
  request: CsiRequest,
): Promise<CsiDriverObject | undefined> {
  const { kubeletDir, nodeName, drivers, facts } = context;
  const { pod, name, folder, again, signal } = request;
  const driver = drivers.get(request.volume.driver);
  const object = await facts.driver(request.volume.driver, signal);
  checkLifecycle(request.volume, object);
  const label = mountLabel(pod, name, request.volume, object, await context.fileContext?.());
  const volume = withLabel(request.volume, label);
  const can = await driver.can(signal);
  const { fsGroup, fsGroupChangePolicy: changePolicy } = pod.spec?.securityContext ?? {};
  const ours = weSetGroup(volume, object, can, fsGroup);
  await hold(context, volume, object, signal);
  const publishContext = await facts.publishContext(volume, object, signal);
  const publishSecrets = await facts.secret(volume.publishSecret, 'NodePublishSecretRef', signal);
  const tokens = await facts.tokens(pod, object, signal);
  const asSecrets = object?.spec.serviceAccountTokenInSecrets === true;
  const volumeCapability = capabilityOf(volume, can, fsGroup);
  await writeData(folder, {
    attachmentID: attachmentName(volume.handle, volume.driver, nodeName),
    driverName: volume.driver,
    nodeName,
    specVolID: volume.specName,
    volumeHandle: volume.handle,
    volumeLifecycleMode: volume.mode,
  });
  const target = mountPath(folder);
  const staging =
    volume.mode === 'Persistent' && can('STAGE_UNSTAGE_VOLUME')
      ? globalMount(kubeletDir, volume.driver, volume.handle)
      : '';
  const wasMounted = again || (await isMounted(target));
  try {
    if (staging !== '') await stage(context, request, driver, staging, publishContext, volumeCapability);
  } catch (error) {
    // Nothing was done: the pod can go without its driver.
    if (isFinal(error) && !wasMounted) await removeMount(target);
    throw error;
  }
  try {
    await driver.call(
      'NodePublishVolume',
      {
        volumeId: volume.handle,
        publishContext,
        stagingTargetPath: staging,
        targetPath: target,
        volumeCapability,
        readonly: volume.readOnly,
        secrets: { ...publishSecrets, ...(asSecrets ? tokens : {}) },
        volumeContext: {
          ...volume.attributes,
          ...podInfo(pod, volume, object),
          ...(asSecrets ? {} : tokens),
        },
      },
      signal,
    );
  } catch (error) {
    if (isFinal(error) && !wasMounted && staging === '') await removeMount(target);
    throw error;
  }
  if (ours) await setOwnership(target, fsGroup!, { changePolicy, signal });
  return object;
}

/** Before it is looked for: from here on it is not detached. */
export async function hold(
  { inUse }: CsiContext,
  volume: CsiVolume,
  object: CsiDriverObject | undefined,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (!needsAttachment(volume, object)) return;
  await inUse?.add({ driverName: volume.driver, volumeHandle: volume.handle }, signal);
}

async function stage(
  { facts, staged }: CsiContext,
  { volume, signal }: CsiRequest,
  driver: CsiDriver,
  staging: string,
  publishContext: Readonly<Record<string, string>>,
  volumeCapability: ReturnType<typeof capabilityOf>,
): Promise<void> {
  const key = volumeKey(volume.driver, volume.handle);
  if (staged.has(key)) return;
  const secrets = await facts.secret(volume.stageSecret, 'NodeStageSecretRef', signal);
  const wasMounted = await isMounted(staging);
  await writeData(dirname(staging), { driverName: volume.driver, volumeHandle: volume.handle });
  await mkdir(staging, { recursive: true, mode: 0o750 });
  try {
    await driver.call(
      'NodeStageVolume',
      {
        volumeId: volume.handle,
        publishContext,
        stagingTargetPath: staging,
        volumeCapability,
        secrets,
        volumeContext: volume.attributes,
      },
      signal,
    );
  } catch (error) {
    if (isFinal(error) && !wasMounted) await removeMount(staging);
    throw error;
  }
  staged.add(key);
}

/** Takes the volume in `folder` from the pod, and from the node where no other pod has it. Nothing there is no error. */
export async function unmountVolume(
  { kubeletDir, drivers, staged, inUse }: CsiContext,
  podUid: string,
  folder: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const data = await readData(folder);
  if (data === undefined) return;
  const { driverName, volumeHandle } = data;
  const driver = drivers.get(driverName);
  const target = mountPath(folder);
  await driver.call('NodeUnpublishVolume', { volumeId: volumeHandle, targetPath: target }, signal);
  const staging = globalMount(kubeletDir, driverName, volumeHandle);
  const isPersistent = data.volumeLifecycleMode !== 'Ephemeral';
  const isLast = isPersistent && !(await hasOtherMounts(kubeletDir, podUid, folder, data));
  // Before the pod's own data goes, by which it is known that this is still to be done.
  if (isLast) {
    if ((await readData(dirname(staging))) !== undefined) {
      await unstage(driver, volumeHandle, staging, signal);
      staged.delete(volumeKey(driverName, volumeHandle));
    } else {
      // A process may have been killed between removing the data and the folder, or while it wrote the data.
      await removeMount(staging);
    }
  }
  await removeMount(target);
  if (isLast) await inUse?.remove(data);
}

async function unstage(
  driver: CsiDriver,
  volumeId: string,
  stagingTargetPath: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const can: (capability: NodeCapability) => boolean = await driver.can(signal);
  if (can('STAGE_UNSTAGE_VOLUME')) {
    await driver.call('NodeUnstageVolume', { volumeId, stagingTargetPath }, signal);
  }
  await removeMount(stagingTargetPath);
}

/** What a driver says of a volume: bytes and inodes. */
export interface VolumeUsage {
  readonly capacityBytes: number;
  readonly availableBytes: number;
  readonly usedBytes: number;
  readonly inodes: number;
  readonly inodesFree: number;
  readonly inodesUsed: number;
}

/**
 * How full the volume in the pod's `folder` is, or how big the device whose link that is; undefined where its driver
 * does not say.
 */
export async function volumeUsage(
  drivers: CsiDrivers,
  folder: string,
  kubeletDir: string,
  signal: AbortSignal,
): Promise<VolumeUsage | undefined> {
  const { data: place, path } = placeOf(folder, kubeletDir);
  const data = await readData(place);
  if (data === undefined) return undefined;
  const driver = drivers.get(data.driverName);
  if (!(await driver.can(signal))('GET_VOLUME_STATS')) return undefined;
  const { usage } = await driver.call(
    'NodeGetVolumeStats',
    { volumeId: data.volumeHandle, volumePath: path },
    signal,
  );
  const of = (wanted: string) => usage.find(({ unit }) => unit === wanted);
  const bytes = of('BYTES');
  const inodes = of('INODES');
  if (bytes === undefined) return undefined;
  return {
    capacityBytes: Number(bytes.total),
    availableBytes: Number(bytes.available),
    usedBytes: Number(bytes.used),
    inodes: Number(inodes?.total ?? 0),
    inodesFree: Number(inodes?.available ?? 0),
    inodesUsed: Number(inodes?.used ?? 0),
  };
}

/** `<pod>/volumes/<plugin>/<name>`, or `<pod>/volumeDevices/<plugin>/<name>`. */
function placeOf(folder: string, kubeletDir: string): { readonly data: string; readonly path: string } {
  const [uid = '', kind, , name = ''] = folder.split('/').slice(-4);
  if (kind !== 'volumeDevices') return { data: folder, path: mountPath(folder) };
  const { data, publish } = blockPaths(kubeletDir, name, uid);
  return { data, path: publish };
}
