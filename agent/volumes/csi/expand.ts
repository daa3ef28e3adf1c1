/** Grows volumes at this node whose claims have grown, and tells the claims (NodeExpandVolume). */
import type { Clock } from '../../../runtime/host/clock.ts';
import { describe, KeelsonError } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import { parseQuantity } from '../../apiserver/quantity.ts';
import type { ApiserverClient, EventRecorder, PersistentVolume } from '../../apiserver/types.ts';
import type { Bound } from '../claims/claim.ts';
import type { VolumeRequest } from '../kinds/kind.ts';
import { type CsiVolume, capabilityOf, isFinal } from './decide.ts';
import type { CsiDriver } from './drivers.ts';
import { type Claim, type Expansion, isInfeasible, patches, wantedExpansion } from './expansion.ts';
import type { CsiFacts } from './facts.ts';
import { volumeKey } from './mount.ts';
import { blockPaths, globalMount, mountPath } from './paths.ts';

export interface Expander {
  /**
   * Looks at the claim as it is now, and grows the volume of the pod where it has grown. A driver that cannot now is no
   * error: the pod goes on with what it has. Returns whether the volume may have to be looked at again: the driver can grow
   * volumes, and a node may not watch claims. Throws ABORTED.
   */
  expand(driver: CsiDriver, request: VolumeRequest, volume: CsiVolume, bound: Bound): Promise<boolean>;
}

export interface ExpanderOptions {
  readonly kubeletDir: string;
  readonly client: ApiserverClient;
  readonly facts: CsiFacts;
  readonly events: EventRecorder;
  readonly clock: Clock;
  readonly log: Logger;
}

const successful = 'FileSystemResizeSuccessful';
const failing = 'FileSystemResizeFailed';

export function makeExpander({ kubeletDir, client, facts, events, clock, log }: ExpanderOptions): Expander {
  /** Bytes that a volume has at this node, by kubelet's name for it. */
  const sizes = new Map<string, number>();
  /** Sizes that the driver refused while the volume is in use: not tried again by this process. */
  const refused = new Map<string, number>();

  const tell = (
    type: 'Normal' | 'Warning',
    reason: string,
    message: string,
    request: VolumeRequest,
    claim: Claim,
  ) => {
    events.event(
      { apiVersion: 'v1', kind: 'Pod', metadata: request.pod.metadata ?? {} },
      type,
      reason,
      message,
    );
    events.event(
      { apiVersion: 'v1', kind: 'PersistentVolumeClaim', metadata: claim.metadata ?? {} },
      type,
      reason,
      message,
    );
  };

  async function grow(
    driver: CsiDriver,
    request: VolumeRequest,
    volume: CsiVolume,
    claim: Claim,
    wanted: Expansion,
  ): Promise<void> {
    const { pod, signal, folder } = request;
    const can = await driver.can(signal);
    const path = `/api/v1/namespaces/${claim.metadata?.namespace}/persistentvolumeclaims/${claim.metadata?.name}/status`;
    const patch = (body: object) => client.patch(path, 'merge', body);
    const staging = volume.block
      ? blockPaths(kubeletDir, volume.specName, '').staging
      : globalMount(kubeletDir, volume.driver, volume.handle);
    if (wanted.told && wanted.steps) await patch(patches.begun(claim));
    try {
      await driver.call(
        'NodeExpandVolume',
        {
          volumeId: volume.handle,
          volumePath: volume.block
            ? blockPaths(kubeletDir, volume.specName, pod.metadata?.uid ?? '').publish
            : mountPath(folder),
          stagingTargetPath: can('STAGE_UNSTAGE_VOLUME') ? staging : '',
          capacityRange: { requiredBytes: BigInt(Math.ceil(wanted.bytes)) },
          // The group is not said here.
          volumeCapability: capabilityOf(volume, can),
          secrets: await facts.secret(volume.expandSecret, 'NodeExpandSecretRef', signal),
        },
        signal,
      );
    } catch (error) {
      const status = error instanceof KeelsonError ? error.details['grpc'] : undefined;
      if (wanted.told && wanted.steps && isFinal(error)) {
        await patch(patches.failed(claim, describe(error), isInfeasible(status), clock.now()));
      }
      if (status === 9) refused.set(volumeKey(volume.driver, volume.handle), wanted.bytes);
      throw error;
    }
    sizes.set(volumeKey(volume.driver, volume.handle), wanted.bytes);
    const message = `MountVolume.NodeExpandVolume succeeded for volume "${volume.specName}" ${pod.spec?.nodeName ?? ''}`;
    tell('Normal', successful, message, request, claim);
    if (wanted.told) await patch(patches.done(claim, wanted.size));
  }

  async function look(
    driver: CsiDriver,
    request: VolumeRequest,
    volume: CsiVolume,
    bound: Bound,
  ): Promise<void> {
    const { namespace, name } = bound.claim.metadata ?? {};
    const limits = request.signal === undefined ? {} : { signal: request.signal };
    const key = volumeKey(volume.driver, volume.handle);
    const claim = await client.get<Claim>(
      `/api/v1/namespaces/${namespace}/persistentvolumeclaims/${name}`,
      limits,
    );
    const persistent = await client.get<PersistentVolume>(
      `/api/v1/persistentvolumes/${encodeURIComponent(claim.spec?.volumeName ?? '')}`,
      limits,
    );
    const reported = parseQuantity(claim.status?.capacity?.['storage'] ?? '0');
    const wanted = wantedExpansion(claim, persistent, sizes.get(key));
    if (!sizes.has(key)) sizes.set(key, reported);
    if (wanted === undefined || refused.get(key) === wanted.bytes) return;
    if (volume.readOnly) {
      refused.set(key, wanted.bytes);
      const message = `MountVolume.NodeExpandVolume failed for volume "${volume.specName}" requested read-only file system`;
      tell('Warning', failing, message, request, claim);
      return;
    }
    try {
      await grow(driver, request, volume, claim, wanted);
    } catch (error) {
      if (request.signal?.aborted) throw error;
      const text = `MountVolume.NodeExpandVolume failed for volume "${volume.specName}" : Expander.NodeExpand failed to expand the volume : ${describe(error)}`;
      tell('Warning', 'VolumeResizeFailed', text, request, claim);
      log.warn({ err: error, volume: volume.specName }, 'cannot grow a volume; it stays as it is');
    }
  }

  return {
    async expand(driver, request, volume, bound) {
      const can = await driver.can(request.signal);
      if (!can('EXPAND_VOLUME')) return false;
      try {
        await look(driver, request, volume, bound);
      } catch (error) {
        if (request.signal?.aborted) throw error;
        log.warn({ err: error, volume: volume.specName }, 'cannot see whether a volume has grown');
      }
      return true;
    },
  };
}
