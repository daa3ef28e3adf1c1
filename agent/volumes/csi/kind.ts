/** Volumes of CSI drivers as a kind of volume: persistent ones, devices among them, and those that a pod declares itself. */
import type { Clock } from '../../../runtime/host/clock.ts';
import { describe, errnoOf } from '../../../runtime/host/errors.ts';
import { keyedQueue } from '../../../runtime/host/keyed.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import type { PersistentVolume, Pod, Volume } from '../../apiserver/types.ts';
import { isMounted } from '../kinds/filesystem.ts';
import type { Prepared, VolumeKind, VolumeRequest } from '../kinds/kind.ts';
import { fileContext as hostContext } from '../kinds/selinux.ts';
import { mapDevice, unmapDevice } from './block.ts';
import type { CsiDriverObject, CsiVolume } from './decide.ts';
import type { CsiDrivers } from './drivers.ts';
import type { Expander } from './expand.ts';
import type { CsiFacts } from './facts.ts';
import { namesOnDisk, uniqueName, type VolumesInUse } from './in_use.ts';
import { type CsiContext, mountVolume, unmountVolume, volumeKey } from './mount.ts';
import { blockPaths, inlineHandle, mountPath, plugin } from './paths.ts';
import { readData } from './users.ts';

export interface CsiKindOptions {
  /** kubelet's root folder. */
  readonly kubeletDir: string;
  readonly nodeName: string;
  readonly drivers: CsiDrivers;
  readonly facts: CsiFacts;
  /** Absent where there is no apiserver. */
  readonly inUse?: VolumesInUse;
  /** Grows file systems and devices whose PersistentVolume has grown. Absent: they stay. */
  readonly expander?: Expander;
  /** Of containers on this host (SELinux). Default: read from the host. */
  readonly fileContext?: () => Promise<string | undefined>;
  readonly clock: Clock;
  readonly log: Logger;
  /** From 0 to 1, spreads what is repeated. Default Math.random. */
  readonly random?: () => number;
  readonly warn: (pod: Pod, reason: string, message: string) => void;
}

/** How often a volume is published again for drivers that want it (CSIDriver requiresRepublish), as pods are with kubelet. */
const republishMs = 60_000;
const retryMs = 10_000;
/** How often it is asked whether a claim has grown: kubelet asks whenever it looks at a pod again. */
const growMs = 60_000;

type PersistentSource = NonNullable<NonNullable<PersistentVolume['spec']>['csi']>;
type InlineSource = NonNullable<Volume['csi']>;

/** The volume as its driver shall see it. Pure. */
export function csiVolumeOf({
  pod,
  name,
  specName,
  source,
  bound,
  block,
  readOnly,
  mountOptions,
}: Pick<
  VolumeRequest,
  'pod' | 'name' | 'specName' | 'source' | 'bound' | 'block' | 'readOnly' | 'mountOptions'
>): CsiVolume {
  if (bound === undefined) {
    const inline = source.csi as InlineSource;
    const { name: secret } = inline.nodePublishSecretRef ?? {};
    return {
      mode: 'Ephemeral',
      driver: inline.driver,
      handle: inlineHandle(pod.metadata?.uid ?? '', name),
      specName,
      block: false,
      readOnly: inline.readOnly === true,
      fsType: inline.fsType ?? '',
      accessModes: undefined,
      mountOptions: [],
      attributes: inline.volumeAttributes ?? {},
      stageSecret: undefined,
      publishSecret:
        secret === undefined ? undefined : { name: secret, namespace: pod.metadata?.namespace ?? 'default' },
      expandSecret: undefined,
    };
  }
  const csi = source.csi as PersistentSource & { nodeExpandSecretRef?: CsiVolume['expandSecret'] };
  return {
    mode: 'Persistent',
    driver: csi.driver,
    handle: csi.volumeHandle,
    specName,
    block,
    readOnly,
    fsType: csi.fsType ?? '',
    accessModes: bound.volume.spec?.accessModes,
    mountOptions,
    attributes: csi.volumeAttributes ?? {},
    stageSecret: csi.nodeStageSecretRef,
    publishSecret: csi.nodePublishSecretRef,
    expandSecret: csi.nodeExpandSecretRef,
  };
}

export function csiKind(options: CsiKindOptions): VolumeKind {
  const {
    kubeletDir,
    nodeName,
    drivers,
    facts,
    inUse,
    expander,
    clock,
    log,
    random = Math.random,
    warn,
  } = options;
  let selinux: Promise<string | undefined> | undefined;
  const fileContext = () => {
    selinux ??= (options.fileContext ?? hostContext)();
    return selinux;
  };
  const context: CsiContext = {
    kubeletDir,
    nodeName,
    drivers,
    facts,
    inUse,
    fileContext,
    staged: new Set(),
  };
  /** What concerns one volume of the node happens one after another, whichever pod it is for. */
  const turns = keyedQueue();
  /** Volumes that this process has made for pods, by `<uid>/<name>`; when they are published again, monotonic. */
  const done = new Map<string, { due: number | undefined }>();

  const due = (object: CsiDriverObject | undefined) =>
    object?.spec.requiresRepublish === true
      ? clock.monotonic() + republishMs * (1 + random() / 2)
      : undefined;

  const isRegistered = (driver: string): boolean => {
    try {
      return drivers.get(driver) !== undefined;
    } catch {
      return false;
    }
  };

  /** Makes the volume, unless it is there. Returns when it is to be published again. */
  async function make(request: VolumeRequest, volume: CsiVolume): Promise<number | undefined> {
    const { pod, name, folder, signal } = request;
    const key = `${pod.metadata?.uid}/${name}`;
    const before = done.get(key);
    if (before !== undefined && (before.due === undefined || before.due > clock.monotonic()))
      return before.due;
    const own = { pod, name, volume, folder, signal };
    const act = volume.block ? mapDevice : mountVolume;
    if (before !== undefined) {
      try {
        before.due = due(await act(context, { ...own, again: true }));
      } catch (error) {
        if (signal?.aborted) throw error;
        log.warn(
          { err: error, pod: pod.metadata?.name, namespace: pod.metadata?.namespace, volume: name },
          'cannot publish a volume again; the pod keeps it as it is',
        );
        warn(
          pod,
          'FailedMount',
          `MountVolume.SetUp failed for volume "${volume.specName}" : ${describe(error)}`,
        );
        before.due = clock.monotonic() + retryMs * (1 + random());
      }
      return before.due;
    }
    // A process that starts again meets what is there before the driver has registered again: the pod goes on with it.
    if (!isRegistered(volume.driver) && (await isThere(volume, request))) return clock.monotonic() + retryMs;
    const next = due(
      await act(context, { ...own, again: false }).catch(async (error: unknown) => {
        await letGo(volume);
        throw error;
      }),
    );
    done.set(key, { due: next });
    return next;
  }

  /** Grows the volume where it is to be. Returns when it is to be looked at again. */
  async function grow(request: VolumeRequest, volume: CsiVolume): Promise<number | undefined> {
    const { bound } = request;
    if (bound === undefined || expander === undefined || !isRegistered(volume.driver)) return undefined;
    const again = await expander.expand(drivers.get(volume.driver), request, volume, bound);
    return again ? clock.monotonic() + growMs * (1 + random() / 2) : undefined;
  }

  /** A volume that nobody began to have may be detached. */
  async function letGo({ driver, handle, mode }: CsiVolume): Promise<void> {
    if (inUse === undefined || mode === 'Ephemeral') return;
    const data = { driverName: driver, volumeHandle: handle };
    if (!(await namesOnDisk(kubeletDir)).has(uniqueName(data))) await inUse.remove(data);
  }

  async function isThere(volume: CsiVolume, { pod, folder }: VolumeRequest): Promise<boolean> {
    const paths = blockPaths(kubeletDir, volume.specName, pod.metadata?.uid ?? '');
    const data = await readData(volume.block ? paths.data : folder).catch(() => undefined);
    if (data?.driverName !== volume.driver || data.volumeHandle !== volume.handle) return false;
    return isMounted(volume.block ? paths.publish : mountPath(folder));
  }

  const place = (volume: CsiVolume, { pod, folder }: VolumeRequest): Prepared =>
    volume.block
      ? {
          hostPath: blockPaths(kubeletDir, volume.specName, pod.metadata?.uid ?? '').publish,
          readOnly: volume.readOnly,
          device: true,
        }
      : { hostPath: mountPath(folder), readOnly: volume.readOnly };

  return {
    plugin,
    has: (source) => !!source.csi,
    setUp(request) {
      const volume = csiVolumeOf(request);
      return turns.run(volumeKey(volume.driver, volume.handle), async () => {
        const next = await make(request, volume);
        const looked = await grow(request, volume);
        const dues = [next, looked].filter((one) => one !== undefined);
        return { ...place(volume, request), ...(dues.length === 0 ? {} : { due: Math.min(...dues) }) };
      });
    },
    async tearDown({ podUid, specName, folder, signal }) {
      const block = isDeviceFolder(folder);
      const data = await readData(block ? blockPaths(kubeletDir, specName, podUid).data : folder).catch(
        (error: unknown) => {
          if (errnoOf(error) !== undefined) throw error;
          // Whose it is cannot be known any more; what is mounted is unmounted with the rest of the pod.
          log.error({ err: error, podUid, volume: specName }, 'cannot take a CSI volume away by its driver');
          return undefined;
        },
      );
      const key = data === undefined ? folder : volumeKey(data.driverName, data.volumeHandle);
      await turns.run(key, async () => {
        if (block) await unmapDevice(context, podUid, specName, signal);
        else if (data !== undefined) await unmountVolume(context, podUid, folder, signal);
      });
      for (const one of done.keys()) if (one.startsWith(`${podUid}/`)) done.delete(one);
    },
    forget(podUid) {
      for (const one of done.keys()) if (one.startsWith(`${podUid}/`)) done.delete(one);
    },
  };
}

/** Remains of devices are in a folder of their own of the pod. */
function isDeviceFolder(folder: string): boolean {
  return folder.split('/').at(-3) === 'volumeDevices';
}
