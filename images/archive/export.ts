/**
 * An export: images → an archive that Docker, containerd, Podman, skopeo and keelson read. The layers are made anew
 * from their files, byte for byte as they were before compression, so the ids of the images stay the same.
 *
 * A docker-archive holds them as they are, as `docker save` does. OCI archives hold them as gzip of the quickest level,
 * which is nearly as small as the usual one in 40 % of its time. zstd would be quicker still, but skopeo cannot make
 * schema 2 images of it and umoci cannot read it. What a registry had is not kept, so their manifests are new.
 */
import { createHash } from 'node:crypto';
import { pipeline } from 'node:stream/promises';
import { constants, createGzip } from 'node:zlib';
import type { ArchiveFormat } from '../../runtime/api.ts';
import { abortError, errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import { parseImageConfig } from '../config.ts';
import { formatReference, imageIdOf, parseReference } from '../reference.ts';
import type { Store, StoredImage } from '../store/store.ts';
import { rebuildArchive } from '../unpack/tar_map.ts';
import { sha256Of } from './contents.ts';
import { blobFile } from './layout.ts';
import { type ArchiveWriter, createArchive } from './writer.ts';

export interface ExportOptions {
  readonly store: Pick<Store, 'holdLayers'>;
  /** By id or normalised or other name. */
  readonly find: (image: string) => StoredImage | undefined;
  /** The uncompressed archive of a layer of the store. */
  readonly layerTar: (diffId: string) => AsyncIterable<Buffer>;
}

/** The archives of the layers of `store`, made anew. Throws FAILED_PRECONDITION where one cannot be. */
export function layersOf(store: Pick<Store, 'layerFiles'>): ExportOptions['layerTar'] {
  return (diffId) => {
    const files = store.layerFiles(diffId);
    if (files?.map !== undefined) return rebuildArchive(files.folder, files.map);
    throw new KeelsonError(
      'FAILED_PRECONDITION',
      `layer ${diffId} has no map from which it can be exported`,
      {
        hint: 'remove the image and get it again',
      },
    );
  };
}

interface Chosen {
  readonly image: StoredImage;
  readonly diffIds: readonly string[];
  /** Tags, normalised. */
  readonly names: readonly string[];
}

interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
}

/**
 * Writes `images` (names; or ids, then with all tags that they have) as one archive to `path`, which must not exist.
 * Throws INVALID_ARGUMENT, IMAGE_NOT_PRESENT, ALREADY_EXISTS, NOT_FOUND (the folder), LAYER_DAMAGED, FAILED_PRECONDITION
 * (a layer that cannot be made anew), STORAGE_FULL, ABORTED.
 */
export async function exportArchive(
  options: ExportOptions,
  images: readonly string[],
  path: string,
  format: ArchiveFormat,
  signal?: AbortSignal,
): Promise<void> {
  const chosen = choose(options, images);
  const release = options.store.holdLayers(chosen.flatMap(({ diffIds }) => diffIds));
  let writer: ArchiveWriter | undefined;
  try {
    writer = await createArchive(path, format === 'oci-layout' ? 'folder' : 'tar');
    const layerTar = (diffId: string) => verified(options.layerTar(diffId), diffId, signal);
    if (format === 'docker-archive') await writeDocker(writer, chosen, layerTar, signal);
    else await writeLayout(writer, chosen, layerTar, signal);
    await writer.finish();
  } catch (error) {
    await writer?.discard();
    throw inWords(error, path, signal);
  } finally {
    release();
  }
}

function choose({ find }: ExportOptions, images: readonly string[]): Chosen[] {
  if (images.length === 0) throw new KeelsonError('INVALID_ARGUMENT', 'no images to export were named');
  const chosen = new Map<string, Chosen & { names: string[] }>();
  for (const name of images) {
    const image = find(name);
    if (image === undefined) {
      throw new KeelsonError('IMAGE_NOT_PRESENT', `image ${name} is not present on this node`);
    }
    const { diffIds } = parseImageConfig(image.config, `config ${image.id}`);
    const found = chosen.get(image.id) ?? { image, diffIds, names: [] };
    chosen.set(image.id, found);
    const names = imageIdOf(name) === undefined ? tagsOf(name) : image.repoTags;
    for (const tag of names) if (!found.names.includes(tag)) found.names.push(tag);
  }
  return [...chosen.values()];
}

/** A reference by digest is no name for a new manifest. */
function tagsOf(name: string): string[] {
  const reference = parseReference(name);
  return reference.digest === undefined ? [formatReference(reference)] : [];
}

/** manifest.json, one config and one archive per layer, as skopeo writes it. */
async function writeDocker(
  writer: ArchiveWriter,
  chosen: readonly Chosen[],
  layerTar: ExportOptions['layerTar'],
  signal?: AbortSignal,
): Promise<void> {
  const hexOf = (digest: string) => digest.slice('sha256:'.length);
  for (const diffId of new Set(chosen.flatMap(({ diffIds }) => diffIds))) {
    await writer.stream(layerTar(diffId), () => `${hexOf(diffId)}.tar`, signal);
  }
  for (const { image } of chosen) await writer.file(`${hexOf(image.id)}.json`, image.config);
  const items = chosen.map(({ image, diffIds, names }) => ({
    Config: `${hexOf(image.id)}.json`,
    RepoTags: names,
    Layers: diffIds.map((diffId) => `${hexOf(diffId)}.tar`),
  }));
  await writer.file('manifest.json', Buffer.from(JSON.stringify(items)));
}

async function writeLayout(
  writer: ArchiveWriter,
  chosen: readonly Chosen[],
  layerTar: ExportOptions['layerTar'],
  signal?: AbortSignal,
): Promise<void> {
  await writer.file('oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}'));
  const layers = new Map<string, Descriptor>();
  for (const diffId of new Set(chosen.flatMap(({ diffIds }) => diffIds))) {
    const mediaType = 'application/vnd.oci.image.layer.v1.tar+gzip';
    layers.set(diffId, { mediaType, ...(await writer.stream(gzip(layerTar(diffId)), blobFile, signal)) });
  }
  const manifests: object[] = [];
  for (const { image, diffIds, names } of chosen) {
    const config = await writeBlob(writer, 'application/vnd.oci.image.config.v1+json', image.config);
    const mediaType = 'application/vnd.oci.image.manifest.v1+json';
    const manifest = { schemaVersion: 2, mediaType, config, layers: diffIds.map((id) => layers.get(id)) };
    const written = await writeBlob(writer, mediaType, Buffer.from(JSON.stringify(manifest)));
    const { platform } = parseImageConfig(image.config, `config ${image.id}`);
    const entry = { ...written, platform };
    // The whole name in both: tools that know only the second one could not tell images with the same tag apart.
    for (const name of names) {
      const annotations = {
        'io.containerd.image.name': name,
        'org.opencontainers.image.ref.name': name,
      };
      manifests.push({ ...entry, annotations });
    }
    if (names.length === 0) manifests.push(entry);
  }
  const index = { schemaVersion: 2, mediaType: 'application/vnd.oci.image.index.v1+json', manifests };
  await writer.file('index.json', Buffer.from(JSON.stringify(index)));
}

async function writeBlob(writer: ArchiveWriter, mediaType: string, bytes: Buffer): Promise<Descriptor> {
  const digest = sha256Of(bytes);
  await writer.file(blobFile(digest), bytes);
  return { mediaType, digest, size: bytes.length };
}

async function* gzip(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const compress = createGzip({ chunkSize: 256 << 10, level: constants.Z_BEST_SPEED });
  const feeding = pipeline(source, compress);
  feeding.catch(() => {}); // Told by the reading end too.
  try {
    for await (const chunk of compress) yield chunk as Buffer;
  } finally {
    compress.destroy();
  }
  await feeding;
}

/** Throws at the end where it was not the layer that it should be: what goes out is as good as what came in. */
async function* verified(
  source: AsyncIterable<Buffer>,
  diffId: string,
  signal?: AbortSignal,
): AsyncGenerator<Buffer> {
  const damaged = (why: string, cause?: unknown) =>
    new KeelsonError('LAYER_DAMAGED', `layer ${diffId} is damaged on disk: ${why}`, {
      cause,
      hint: 'keelson images verify --repair, or remove the image and get it again',
    });
  const hash = createHash('sha256');
  try {
    for await (const chunk of source) {
      if (signal?.aborted) throw abortError(signal, 'the export');
      hash.update(chunk);
      yield chunk;
    }
  } catch (error) {
    throw isError(error, 'LAYER_DAMAGED') ? damaged(error.message, error) : error;
  }
  const found = `sha256:${hash.digest('hex')}`;
  if (found !== diffId) throw damaged(`it is now ${found}`);
}

function inWords(error: unknown, path: string, signal?: AbortSignal): unknown {
  if (signal?.aborted) return abortError(signal, `export to ${path}`);
  const errno = errnoOf(error);
  if (errno === 'ENOSPC' || errno === 'EDQUOT' || errno === 'EFBIG') {
    const why = errno === 'EFBIG' ? 'the file system takes no file as large' : 'no space is left';
    return new KeelsonError('STORAGE_FULL', `export to ${path}: ${why}`, { cause: error });
  }
  if (error instanceof KeelsonError && !error.message.includes(path)) {
    const { code, message, cause, hint, details } = error;
    return new KeelsonError(code, `export to ${path}: ${message}`, { cause, hint, details });
  }
  return error;
}
