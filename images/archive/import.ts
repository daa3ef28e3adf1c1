/** An import: archive → images → layers, through the same verification, unpacking and store as those of a pull. */
import type { PullProgress } from '../../runtime/api.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { Layers } from '../fetch/layers.ts';
import type { Platform } from '../manifest.ts';
import type { LayerSource } from '../registry/repository.ts';
import type { Store } from '../store/store.ts';
import { type FoundImage, readContents } from './contents.ts';
import { type ArchiveFiles, about, openArchive } from './files.ts';

export interface ImportOptions {
  readonly store: Store;
  readonly layers: Layers;
  readonly log: Logger;
  readonly platform: Platform;
  /** Bytes of a compressed archive after decompression. */
  readonly limit: number;
}

export interface ImportRequest {
  readonly pin?: boolean;
  /** One layer after the other, for imports that nobody waits for. */
  readonly gently?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: PullProgress) => void;
}

/**
 * Takes in all images of the archive at `path` or, where one cannot be, none of them; returns their ids.
 * Throws NOT_FOUND, INVALID_ARGUMENT, IMAGE_INVALID, IMAGE_UNSUPPORTED, IMAGE_PLATFORM_MISSING, IMAGE_DIGEST_MISMATCH,
 * LAYER_UNSAFE, STORAGE_FULL, ABORTED.
 */
export async function importArchive(
  options: ImportOptions,
  path: string,
  request: ImportRequest,
): Promise<string[]> {
  const { store, log, platform, limit } = options;
  const { signal } = request;
  const files = await openArchive({ store, limit }, path, signal);
  try {
    const images = await readContents(files, {
      platform,
      signal,
      onSkipped: (error) => log.warn({ archive: path }, `not imported: ${error.message}`),
    });
    const release = store.holdLayers(images.flatMap(({ diffIds }) => diffIds));
    try {
      await fetchLayers(options, files, images, request);
      for (const { id, config, manifest, diffIds, names, digests } of images) {
        store.commitImage({ id, config, manifest, diffIds }, names, digests, request.pin);
      }
      await store.settled();
      release();
    } catch (error) {
      release();
      // Of the layers that were on their way one may still have been completed.
      const diffIds = images.flatMap((image) => image.diffIds);
      void options.layers.idle().then(() => store.collectLayersOf(diffIds));
      throw error;
    }
    for (const { id, names } of images) log.info({ archive: path, id, names }, 'image imported');
    return images.map(({ id }) => id);
  } catch (error) {
    throw about(path, error);
  } finally {
    await files.close();
  }
}

async function fetchLayers(
  { layers, store }: ImportOptions,
  files: ArchiveFiles,
  images: readonly FoundImage[],
  { gently, signal, onProgress }: ImportRequest,
): Promise<void> {
  const from = sourceOf(files, images);
  const failed = new AbortController();
  const either = signal === undefined ? failed.signal : AbortSignal.any([signal, failed.signal]);
  const running: Promise<void>[] = [];
  const seen = new Set<string>();
  try {
    for (const { id, names, diffIds, layers: archived } of images) {
      for (const [at, { descriptor, file }] of archived.entries()) {
        const diffId = diffIds[at]!;
        if (seen.has(diffId)) continue;
        seen.add(diffId);
        // Archives may leave out what their makers thought to be there.
        if (!store.hasLayer(diffId)) await checkSize(files, descriptor, file);
        const image = names[0] ?? id;
        const { digest, size: totalBytes } = descriptor;
        const ensured = layers.ensure(
          { descriptor, diffId },
          from,
          (progress) => onProgress?.({ image, digest, totalBytes, ...progress }),
          either,
        );
        running.push(ensured);
        ensured.catch(() => {}); // Told below.
        if (gently) await ensured;
      }
    }
    await Promise.all(running);
  } catch (error) {
    failed.abort(new KeelsonError('ABORTED', `another layer of ${files.path} failed`, { cause: error }));
    await Promise.allSettled(running);
    throw inWordsOfArchives(error);
  }
}

async function checkSize(
  files: ArchiveFiles,
  { digest, size }: { readonly digest: string; readonly size: number },
  file: string,
): Promise<void> {
  const found = await files.size(file);
  if (found === undefined) {
    throw new KeelsonError('IMAGE_INVALID', `archive ${files.path}: layer ${digest} is missing`);
  }
  if (found === size) return;
  const why = `layer ${digest} has ${found} bytes instead of ${size}`;
  throw new KeelsonError('IMAGE_DIGEST_MISMATCH', `archive ${files.path}: ${why}`);
}

/** The archive as one more place that layers come from. */
function sourceOf(files: ArchiveFiles, images: readonly FoundImage[]): LayerSource {
  const names = new Map(
    images.flatMap(({ layers }) => layers.map(({ descriptor, file }) => [descriptor.digest, file] as const)),
  );
  return {
    name: files.path,
    async blob({ digest }, offset, signal) {
      return { body: files.read(names.get(digest)!, offset, signal), offset };
    },
  };
}

/** Of what came through the way of pulls. */
function inWordsOfArchives(error: unknown): unknown {
  if (!isError(error) || !error.message.includes('the registry sent')) return error;
  const { code, message, cause, hint, details } = error;
  const said = message.replaceAll('the registry sent', 'the archive has');
  return new KeelsonError(code, said, { cause, hint, details });
}
