/** What an archive holds: its images, checked as far as possible without reading layers. */
import { createHash } from 'node:crypto';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import { type ImageDocument, parseImageConfig } from '../config.ts';
import {
  type Descriptor,
  formatPlatform,
  largestManifest,
  type Platform,
  platformMissing,
  platformRank,
} from '../manifest.ts';
import { parseReference, type Reference } from '../reference.ts';
import { type ArchiveFiles, show } from './files.ts';

/** One image of an archive. */
export interface FoundImage {
  /** Its config digest. */
  readonly id: string;
  readonly config: Buffer;
  readonly manifest: Buffer;
  /** Lowest first, as `layers`. */
  readonly diffIds: readonly string[];
  readonly layers: readonly ArchivedLayer[];
  /** Normalised: tags, and `repository@digest` where the archive has the manifest as the registry had it. */
  readonly names: readonly string[];
  /** Of the manifest, and of the indexes that led to it. */
  readonly digests: readonly string[];
}

export interface ArchivedLayer {
  readonly descriptor: Descriptor;
  /** Its file in the archive. */
  readonly file: string;
}

export interface ReadOptions {
  readonly platform: Platform;
  /** Told of images that are left out since they are not for this node, when there are others. */
  readonly onSkipped: (error: KeelsonError) => void;
  readonly signal?: AbortSignal;
}

/**
 * The images that `files` hold, each once. Many archives are an OCI layout and have a manifest.json too: Docker and
 * containerd write it for old readers. The layout is preferred, since it knows platforms and the digests that registries
 * gave; manifest.json adds what the layout lacks (Docker leaves images without a tag out of it) and replaces one that is
 * broken (Docker 25.0 mixed the layers up).
 * Throws IMAGE_INVALID, IMAGE_UNSUPPORTED, IMAGE_PLATFORM_MISSING, IMAGE_DIGEST_MISMATCH, ABORTED.
 */
export async function readContents(files: ArchiveFiles, options: ReadOptions): Promise<FoundImage[]> {
  const [index, manifests] = [await files.size('index.json'), await files.size('manifest.json')];
  if (index === undefined && manifests === undefined) {
    throw new KeelsonError(
      'IMAGE_INVALID',
      `archive ${files.path} holds no images: it has neither index.json nor manifest.json`,
      { hint: 'make it with docker save, skopeo copy, ctr images export or keelson export' },
    );
  }
  let found: FoundImage[] | undefined;
  if (index !== undefined) {
    const { readLayout } = await import('./layout.ts');
    try {
      found = await readLayout(files, options);
    } catch (error) {
      if (manifests === undefined || !isError(error, 'IMAGE_INVALID', 'IMAGE_UNSUPPORTED')) throw error;
    }
    if (manifests === undefined) return found!.map(checked(files));
  }
  const { readDockerArchive } = await import('./docker.ts');
  if (found === undefined || !found.every(fits)) {
    return (await readDockerArchive(files, options)).map(checked(files));
  }
  try {
    const more = await readDockerArchive(files, { ...options, onSkipped: () => {} });
    return merged([...found, ...more.map(checked(files))]);
  } catch (error) {
    if (!isError(error) || error.code === 'ABORTED') throw error;
    return found; // What it lacks is there for readers that know no better.
  }
}

/** Whether the layers are as many as, and where they are not compressed the ones that, the config names. Pure. */
function fits({ layers, diffIds }: FoundImage): boolean {
  return (
    layers.length === diffIds.length &&
    layers.every(
      ({ descriptor: { mediaType, digest } }, at) =>
        !mediaType.endsWith('.tar') || !digest.startsWith('sha256:') || digest === diffIds[at],
    )
  );
}

function checked(files: ArchiveFiles): (image: FoundImage) => FoundImage {
  return (image) => {
    if (image.layers.length === image.diffIds.length) return image;
    throw new KeelsonError(
      'IMAGE_INVALID',
      `archive ${files.path}: image ${image.id} has ${image.layers.length} layers, but its config names ${image.diffIds.length}`,
    );
  };
}

/** A whole small file. Throws IMAGE_INVALID where it is missing or has more than 4 MiB. */
export async function readSmall(files: ArchiveFiles, name: string, signal?: AbortSignal): Promise<Buffer> {
  const size = await files.size(name);
  if (size === undefined) {
    throw new KeelsonError('IMAGE_INVALID', `archive ${files.path}: ${show(name)} is missing`);
  }
  if (size > largestManifest) {
    const why = `${show(name)} has ${size} bytes, more than the ${largestManifest} of any sensible one`;
    throw new KeelsonError('IMAGE_INVALID', `archive ${files.path}: ${why}`);
  }
  const pieces: Buffer[] = [];
  for await (const piece of files.read(name, 0, signal)) pieces.push(piece);
  return Buffer.concat(pieces);
}

export function sha256Of(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

/** A configuration that this node can run. Throws IMAGE_INVALID, IMAGE_PLATFORM_MISSING. */
export function readConfig(bytes: Buffer, id: string, files: ArchiveFiles, node: Platform): ImageDocument {
  const document = parseImageConfig(bytes, `archive ${files.path}: config ${id}`);
  if (platformRank(node, document.platform) !== undefined) return document;
  throw platformMissing(node, [formatPlatform(document.platform)], `archive ${files.path}: image ${id}`);
}

/** A name that stands in an archive as that of an image. Throws IMAGE_INVALID. */
export function readName(text: string, files: ArchiveFiles): Reference {
  try {
    return parseReference(text);
  } catch (error) {
    if (!(error instanceof KeelsonError)) throw error;
    throw new KeelsonError('IMAGE_INVALID', `archive ${files.path}: ${error.message}`, { hint: error.hint });
  }
}

/**
 * What `read` gives for each of `items`; those that are for other machines are left out while others are not.
 */
export async function readEach<T>(
  items: readonly T[],
  read: (item: T) => Promise<FoundImage>,
  onSkipped: ReadOptions['onSkipped'],
): Promise<FoundImage[]> {
  const found: FoundImage[] = [];
  const skipped: KeelsonError[] = [];
  for (const item of items) {
    try {
      found.push(await read(item));
    } catch (error) {
      if (!isError(error, 'IMAGE_PLATFORM_MISSING', 'IMAGE_UNSUPPORTED')) throw error;
      skipped.push(error);
    }
  }
  if (found.length === 0 && skipped.length > 0) throw skipped[0];
  for (const error of skipped) onSkipped(error);
  return merged(found);
}

/** Images that come more than once, under several names, become one. Pure. */
function merged(found: readonly FoundImage[]): FoundImage[] {
  const byId = new Map<string, FoundImage>();
  for (const image of found) {
    const before = byId.get(image.id);
    const union = (a: readonly string[], b: readonly string[]) => [...new Set([...a, ...b])];
    byId.set(
      image.id,
      before === undefined
        ? image
        : {
            ...before,
            names: union(before.names, image.names),
            digests: union(before.digests, image.digests),
          },
    );
  }
  return [...byId.values()];
}
