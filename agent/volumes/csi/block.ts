/** Devices of CSI drivers, for containers' `volumeDevices` (kubelet's csi_block). */
import { mkdir, readlink, rm, rmdir, stat, symlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { removeTree } from '../../../runtime/host/files.ts';
import { isMounted } from '../kinds/filesystem.ts';
import { type CsiDriverObject, capabilityOf, checkLifecycle, isFinal, podInfo } from './decide.ts';
import { type CsiContext, type CsiRequest, hold, volumeKey } from './mount.ts';
import { attachmentName, type BlockPaths, blockPaths } from './paths.ts';
import { hasOtherDevices, quietly, readData, writeData } from './users.ts';

/** Throws, or the pod has a device at the link of `blockPaths`. */
export async function mapDevice(
  context: CsiContext,
  request: CsiRequest,
): Promise<CsiDriverObject | undefined> {
  const { kubeletDir, nodeName, drivers, facts, staged } = context;
  const { pod, volume, again, signal } = request;
  const driver = drivers.get(volume.driver);
  const object = await facts.driver(volume.driver, signal);
  checkLifecycle(volume, object);
  const can = await driver.can(signal);
  await hold(context, volume, object, signal);
  const publishContext = await facts.publishContext(volume, object, signal);
  const publishSecrets = await facts.secret(volume.publishSecret, 'NodePublishSecretRef', signal);
  const volumeCapability = capabilityOf(volume, can);
  const paths = blockPaths(kubeletDir, volume.specName, pod.metadata?.uid ?? '');
  const isStaging = can('STAGE_UNSTAGE_VOLUME');
  // First to come and last to go: by it the pod is known to have something to take away.
  await link(paths);
  await writeData(paths.data, {
    attachmentID: attachmentName(volume.handle, volume.driver, nodeName),
    driverName: volume.driver,
    nodeName,
    specVolID: volume.specName,
    volumeHandle: volume.handle,
  });
  const key = volumeKey(volume.driver, volume.handle);
  const wasStaged = staged.has(key);
  try {
    if (isStaging && !wasStaged) {
      const secrets = await facts.secret(volume.stageSecret, 'NodeStageSecretRef', signal);
      await mkdir(paths.staging, { recursive: true, mode: 0o750 });
      await driver.call(
        'NodeStageVolume',
        {
          volumeId: volume.handle,
          publishContext,
          stagingTargetPath: paths.staging,
          volumeCapability,
          secrets,
          volumeContext: volume.attributes,
        },
        signal,
      );
      staged.add(key);
    }
    await mkdir(dirname(paths.publish), { recursive: true, mode: 0o750 });
    await driver.call(
      'NodePublishVolume',
      {
        volumeId: volume.handle,
        publishContext,
        stagingTargetPath: isStaging ? paths.staging : '',
        targetPath: paths.publish,
        volumeCapability,
        readonly: volume.readOnly,
        secrets: publishSecrets,
        volumeContext: { ...volume.attributes, ...podInfo(pod, volume, object) },
      },
      signal,
    );
  } catch (error) {
    const nothingDone = isFinal(error) && !again && !staged.has(key) && !(await isMounted(paths.publish));
    if (nothingDone) {
      if (!(await hasOtherDevices(kubeletDir, pod.metadata?.uid ?? '', volume.specName)))
        await removeLeft(paths);
      await rm(paths.link, { force: true });
    }
    throw error;
  }
  if (!(await stat(paths.publish)).isBlockDevice()) {
    throw new KeelsonError(
      'VOLUME_FAILED',
      `driver ${volume.driver} published ${paths.publish}, which is not a block device`,
    );
  }
  return object;
}

/** Takes the device from the pod, and from the node where no other pod has it. Nothing there is no error. */
export async function unmapDevice(
  { kubeletDir, drivers, staged, inUse }: CsiContext,
  podUid: string,
  specName: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const paths = blockPaths(kubeletDir, specName, podUid);
  const data = await readData(paths.data);
  const isLast = !(await hasOtherDevices(kubeletDir, podUid, specName));
  if (data !== undefined) {
    const { driverName, volumeHandle: volumeId } = data;
    const driver = drivers.get(driverName);
    await driver.call('NodeUnpublishVolume', { volumeId, targetPath: paths.publish }, signal);
    if (isLast) {
      if ((await driver.can(signal))('STAGE_UNSTAGE_VOLUME')) {
        await driver.call('NodeUnstageVolume', { volumeId, stagingTargetPath: paths.staging }, signal);
      }
      staged.delete(volumeKey(driverName, volumeId));
    }
  }
  // Also where a process was killed before it had written the data, or after it had removed them.
  if (isLast) await removeLeft(paths);
  if (isLast && data !== undefined) await inUse?.remove(data);
  await rm(paths.link, { force: true });
}

/** What is left of a volume that nobody has. Nothing of a driver's is removed: what is mounted or full stays. */
async function removeLeft({ publish, staging, folder, data }: BlockPaths): Promise<void> {
  await quietly(rmdir(publish).catch(() => rm(publish)));
  await quietly(rmdir(dirname(publish)));
  if (!(await isMounted(staging))) await quietly(rmdir(staging));
  await removeTree(data);
  await quietly(rmdir(folder));
}

async function link({ link: path, publish }: BlockPaths): Promise<void> {
  if ((await readlink(path).catch(() => undefined)) === publish) return;
  await mkdir(dirname(path), { recursive: true, mode: 0o750 });
  await rm(path, { force: true });
  await symlink(publish, path);
}
