/** Remembers which images were pulled and with which credentials, and says who may have them without another pull. */
import type { ImageService } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { keyedQueue } from '../../runtime/host/keyed.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { Credential } from './credentials/keyring.ts';
import { openRecordFiles } from './record_files.ts';
import {
  accessOf,
  compare,
  mustVerify,
  type PulledRecord,
  type PulledWith,
  pulledWith,
  type VerificationPolicy,
  withPull,
} from './verification.ts';

export interface PulledImages {
  /**
   * Whether `image`, which is present as `imageId`, has to be pulled again before the pod may have it. `credentials`
   * is asked only where it matters. What cannot be read on disk counts as not known.
   */
  mustPull(
    image: string,
    imageId: string,
    credentials: () => Promise<readonly Credential[]>,
  ): Promise<boolean>;
  /**
   * To be called before a pull, which may begin once this has resolved: from then on the image counts as pulled, even
   * after a power cut. Each call needs one of the two below. Throws what writing files throws.
   */
  begin(image: string): Promise<void>;
  /** `credential`: the one that the registry took; undefined for none. */
  succeeded(image: string, imageId: string, credential: Credential | undefined): Promise<void>;
  failed(image: string): Promise<void>;
}

export interface PulledImagesOptions {
  readonly kubeletDir: string;
  readonly policy: VerificationPolicy;
  readonly allowlist: readonly string[];
  readonly images: Pick<ImageService, 'imageStatus' | 'listImages'>;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Records of images that are gone are looked for at the start and, after a pull, at most this often. */
const pruneMs = 3_600_000;

/** Opens the records and takes up the pulls that the process before left unfinished. */
export async function openPulledImages(options: PulledImagesOptions): Promise<PulledImages> {
  const { policy, allowlist, images, clock, log } = options;
  const files = await openRecordFiles(options.kubeletDir);
  /** Pulls in progress. */
  const pulling = new Map<string, number>();
  const records = keyedQueue();
  const intents = keyedQueue();
  let prunedAt = clock.monotonic();

  async function learn(image: string, imageId: string, learned: PulledWith | undefined): Promise<void> {
    await records.run(imageId, async () => {
      let record: PulledRecord | undefined;
      try {
        record = await files.readRecord(imageId);
      } catch (error) {
        log.warn({ err: error, image }, 'a record of an image pull is replaced by a new one');
      }
      const next = withPull(record, imageId, image, learned, clock.now());
      if (next !== undefined) await files.writeRecord(next);
    });
  }

  async function ended(image: string): Promise<void> {
    await intents.run(image, async () => {
      const others = (pulling.get(image) ?? 1) - 1;
      if (others > 0) {
        pulling.set(image, others);
        return;
      }
      try {
        await files.deleteIntent(image);
        pulling.delete(image);
      } catch (error) {
        // It stays "pulled by somebody unknown", which is the safe side.
        log.error({ err: error, image }, 'cannot remove the intent to pull an image');
      }
    });
  }

  /** An image that was being pulled when the process ended, and is there: nobody knows for whom. */
  async function recover(): Promise<void> {
    for (const image of await files.listIntents()) {
      try {
        const present = await images.imageStatus({ image });
        if (present === undefined) continue;
        await learn(image, present.id, undefined);
        await files.deleteIntent(image);
      } catch (error) {
        log.error({ err: error, image }, 'cannot take up an unfinished image pull');
      }
    }
  }

  async function prune(): Promise<void> {
    prunedAt = clock.monotonic();
    const until = clock.now();
    try {
      const present = new Set((await images.listImages()).map(({ id }) => id));
      for (const { imageRef, lastUpdated } of await files.listRecords()) {
        // Times on disk are whole seconds: one of this very second may be newer than the list.
        if (present.has(imageRef) || lastUpdated >= until - 1000) continue;
        await records.run(imageRef, () => files.deleteRecord(imageRef));
      }
    } catch (error) {
      log.error({ err: error }, 'cannot remove the records of images that are gone');
    }
  }

  await recover();
  await prune();

  return {
    async mustPull(image, imageId, credentials) {
      if (!mustVerify(policy, allowlist, image, true)) return false;
      let record: PulledRecord | undefined;
      let pulled: boolean;
      try {
        record = await records.run(imageId, () => files.readRecord(imageId));
        pulled = record !== undefined || pulling.has(image) || (await files.hasIntent(image));
      } catch (error) {
        log.error(
          { err: error, image },
          'the records of image pulls cannot be read: the image is pulled again',
        );
        return true;
      }
      if (!mustVerify(policy, allowlist, image, pulled)) return false;
      const access = accessOf(record, image);
      if (access === 'allowed') return false;
      if (access !== 'unknown') {
        const { allowed, learn: learned } = compare(access.with, await credentials());
        if (learned !== undefined) {
          await learn(image, imageId, learned).catch((error: unknown) =>
            log.error({ err: error, image }, 'cannot record the credentials for an image'),
          );
        }
        if (allowed) return false;
      }
      log.info(
        { image, imageId, policy },
        "present, but the pod's access to it has to be verified by a pull",
      );
      return true;
    },
    begin: (image) =>
      intents.run(image, async () => {
        // Counted only once it is written: whoever comes second must not run ahead of a write that fails.
        if (!pulling.has(image)) await files.writeIntent(image);
        pulling.set(image, (pulling.get(image) ?? 0) + 1);
      }),
    async succeeded(image, imageId, credential) {
      try {
        await learn(image, imageId, pulledWith(credential));
      } catch (error) {
        // The intent stays, so that the image counts as pulled; at the next start it becomes a record.
        log.error({ err: error, image }, 'cannot record the pull of an image');
        return;
      }
      await ended(image);
      if (clock.monotonic() - prunedAt >= pruneMs) await prune();
    },
    failed: ended,
  };
}
