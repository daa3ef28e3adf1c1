/**
 * Follows claims to volumes. A node may only get, not watch, what its pods refer to, so claims are asked for when a pod's
 * volumes are set up. What was found is kept beside the pod's volumes: a node that starts again while the apiserver is
 * away knows the volumes of its pods.
 */
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, KeelsonError } from '../../../runtime/host/errors.ts';
import { writeFileAtomic } from '../../../runtime/host/files.ts';
import { apiStatus } from '../../apiserver/answers.ts';
import type {
  ApiserverClient,
  PersistentVolume,
  PersistentVolumeClaim,
  Pod,
  Volume,
} from '../../apiserver/types.ts';
import { type Bound, checkClaim, checkVolume, claimNameOf, failed } from './claim.ts';

export interface ClaimsOptions {
  /** Absent: only what is on disk is known. */
  readonly client?: ApiserverClient;
  /** `<kubelet root>/pods`. */
  readonly podsDir: string;
}

export interface Claims {
  /**
   * What the volume's claim is bound to; undefined where it stands for no claim. Asked for once for each volume of a pod.
   * Throws VOLUME_FAILED with kubelet's words.
   */
  follow(pod: Pod, volume: Volume, signal: AbortSignal | undefined): Promise<Bound | undefined>;
  forget(podUid: string): void;
}

export function makeClaims({ client, podsDir }: ClaimsOptions): Claims {
  /** By pod uid, then by the pod's name for the volume. */
  const known = new Map<string, Map<string, Bound>>();

  async function ask(
    pod: Pod,
    volume: Volume,
    name: string,
    signal: AbortSignal | undefined,
  ): Promise<Bound> {
    const namespace = pod.metadata?.namespace ?? 'default';
    const wanted = { metadata: { namespace, name } };
    if (client === undefined) throw failed(wanted, 'there is no apiserver to fetch it from');
    const get = <T>(path: string, what: string): Promise<T> =>
      client.get<T>(path, signal === undefined ? {} : { signal }).catch((error: unknown) => {
        throw failed(wanted, `failed to fetch ${what} from API server: ${describe(error)}`, error);
      });
    const claim = await get<PersistentVolumeClaim>(
      `/api/v1/namespaces/${namespace}/persistentvolumeclaims/${name}`,
      'PVC',
    );
    checkClaim(pod, volume, claim);
    const volumeName = claim.spec?.volumeName ?? '';
    const bound = {
      claim,
      volume: await get<PersistentVolume>(
        `/api/v1/persistentvolumes/${encodeURIComponent(volumeName)}`,
        `PV ${volumeName}`,
      ),
    };
    checkVolume(pod, volume.name, bound);
    return bound;
  }

  const recordOf = (uid: string, name: string) => join(podsDir, uid, 'claims', `${name}.json`);

  async function askOrRecall(
    pod: Pod,
    volume: Volume,
    claim: string,
    signal: AbortSignal | undefined,
  ): Promise<Bound> {
    const file = recordOf(pod.metadata?.uid ?? '', volume.name);
    try {
      const bound = await ask(pod, volume, claim, signal);
      await mkdir(join(file, '..'), { recursive: true, mode: 0o750 });
      await writeFileAtomic(file, JSON.stringify(bound), { durable: true });
      return bound;
    } catch (error) {
      // Only where nobody answered: an answer counts, whatever it is.
      const unanswered = error instanceof KeelsonError && error.cause !== undefined;
      if (!unanswered || apiStatus(error.cause) !== undefined || signal?.aborted) throw error;
      const record = await readFile(file, 'utf8').catch(() => undefined);
      if (record === undefined) throw error;
      try {
        return JSON.parse(record) as Bound;
      } catch {
        throw error;
      }
    }
  }

  return {
    async follow(pod, volume, signal) {
      const claim = claimNameOf(pod, volume);
      if (claim === undefined) return undefined;
      const uid = pod.metadata?.uid ?? '';
      const before = known.get(uid)?.get(volume.name);
      if (before !== undefined) return before;
      const bound = await askOrRecall(pod, volume, claim, signal);
      const own = known.get(uid) ?? new Map<string, Bound>();
      own.set(volume.name, bound);
      known.set(uid, own);
      return bound;
    },
    forget: (podUid) => void known.delete(podUid),
  };
}
