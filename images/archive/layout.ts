/** OCI image layouts (image-spec image-layout.md): `oci-layout`, `index.json` and `blobs/<algorithm>/<hex>`. */
import { KeelsonError } from '../../runtime/host/errors.ts';
import {
  chooseManifest,
  type Descriptor,
  type ImageIndex,
  isObject,
  largestManifest,
  parseDocument,
  parseManifest,
} from '../manifest.ts';
import { formatReference, repositoryOf } from '../reference.ts';
import { digestOf } from '../registry/repository.ts';
import { type FoundImage, type ReadOptions, readConfig, readEach, readName, readSmall } from './contents.ts';
import type { ArchiveFiles } from './files.ts';

/** An index may name an index, but not for ever. */
const deepestIndex = 3;

export function blobFile(digest: string): string {
  return `blobs/${digest.replace(':', '/')}`;
}

/** Throws IMAGE_INVALID, IMAGE_UNSUPPORTED, IMAGE_PLATFORM_MISSING, IMAGE_DIGEST_MISMATCH, ABORTED. */
export async function readLayout(files: ArchiveFiles, options: ReadOptions): Promise<FoundImage[]> {
  const { platform, onSkipped, signal } = options;
  const what = `archive ${files.path}: index.json`;
  await checkVersion(files, signal);
  const bytes = await readSmall(files, 'index.json', signal);
  const index = parseManifest(bytes, undefined, what);
  if (index.kind !== 'index') throw new KeelsonError('IMAGE_INVALID', `${what} is not an index`);
  if (index.manifests.length === 0) throw new KeelsonError('IMAGE_INVALID', `${what} names no images`);
  const names = namesOf(bytes, what);

  // Several entries of one name are one image for several platforms.
  const wanted = new Map<string, { entry: Descriptor; names: string[] }>();
  const want = (entry: Descriptor, name?: string) => {
    const found = wanted.get(entry.digest) ?? { entry, names: [] };
    if (name !== undefined) found.names.push(name);
    wanted.set(entry.digest, found);
  };
  const byName = new Map<string, ImageIndex['manifests'][number][]>();
  const unnamed: ImageIndex['manifests'][number][] = [];
  for (const entry of new Map(index.manifests.map((entry) => [entry.digest, entry])).values()) {
    for (const name of names.get(entry.digest) ?? []) {
      byName.set(name, [...(byName.get(name) ?? []), entry]);
    }
    if ((names.get(entry.digest)?.size ?? 0) === 0) unnamed.push(entry);
  }
  for (const [name, entries] of byName) {
    if (entries.length === 1) want(entries[0]!, name);
    else want(chooseManifest({ kind: 'index', manifests: entries }, platform, `${what}: ${name}`), name);
  }
  for (const entry of unnamed) want(entry);
  return readEach([...wanted.values()], (item) => readImage(files, item, options), onSkipped);
}

async function checkVersion(files: ArchiveFiles, signal?: AbortSignal): Promise<void> {
  // Some tools forget it.
  if ((await files.size('oci-layout')) === undefined) return;
  const what = `archive ${files.path}: oci-layout`;
  const version = parseDocument(await readSmall(files, 'oci-layout', signal), what)['imageLayoutVersion'];
  if (typeof version === 'string' && /^1\.\d+\.\d+$/.test(version)) return;
  throw new KeelsonError('IMAGE_UNSUPPORTED', `${what} is of a version that is not known`);
}

/**
 * Full names by the digest of their entry: `io.containerd.image.name` (containerd, Docker), else
 * `org.opencontainers.image.ref.name` where it is one; a tag alone (umoci) names no repository.
 */
function namesOf(bytes: Buffer, what: string): Map<string, Set<string>> {
  const names = new Map<string, Set<string>>();
  for (const entry of parseDocument(bytes, what)['manifests'] as unknown[]) {
    if (!isObject(entry) || !isObject(entry['annotations'])) continue;
    const full = entry['annotations']['io.containerd.image.name'];
    const reference = entry['annotations']['org.opencontainers.image.ref.name'];
    const name = typeof full === 'string' && full !== '' ? full : reference;
    if (typeof name !== 'string' || !/[/:@]/.test(name)) continue;
    const digest = String(entry['digest']);
    names.set(digest, (names.get(digest) ?? new Set()).add(name));
  }
  return names;
}

async function readImage(
  files: ArchiveFiles,
  { entry, names }: { entry: Descriptor; names: readonly string[] },
  { platform, signal }: ReadOptions,
): Promise<FoundImage> {
  const digests: string[] = [];
  for (let next = entry; digests.length <= deepestIndex; ) {
    const what = `archive ${files.path}: manifest ${next.digest}`;
    const bytes = await readBlob(files, next, what, signal);
    digests.push(next.digest);
    const manifest = parseManifest(bytes, next.mediaType, what);
    if (manifest.kind === 'index') {
      next = chooseManifest(manifest, platform, what);
      continue;
    }
    const id = manifest.config.digest;
    const config = await readBlob(files, manifest.config, `archive ${files.path}: config ${id}`, signal);
    return {
      id,
      config,
      manifest: bytes,
      diffIds: readConfig(config, id, files, platform).diffIds,
      layers: manifest.layers.map((descriptor) => ({ descriptor, file: blobFile(descriptor.digest) })),
      names: names.flatMap((name) => normalised(name, entry.digest, files)),
      digests,
    };
  }
  const what = `archive ${files.path}: manifest ${entry.digest}`;
  throw new KeelsonError('IMAGE_INVALID', `${what}: more than ${deepestIndex} indexes in each other`);
}

/** As a pull of `name` that led to `digest` would name the image. */
function normalised(name: string, digest: string, files: ArchiveFiles): string[] {
  const reference = readName(name, files);
  const byDigest = `${repositoryOf(reference)}@${digest}`;
  // A name with a digest is a promise of what it names.
  if (reference.digest !== undefined && reference.digest !== digest) {
    throw new KeelsonError(
      'IMAGE_DIGEST_MISMATCH',
      `archive ${files.path}: ${digest} has the name ${formatReference(reference)}`,
    );
  }
  return [...new Set([formatReference(reference), byDigest])];
}

/** A small blob, whole and verified. */
async function readBlob(
  files: ArchiveFiles,
  blob: Descriptor,
  what: string,
  signal?: AbortSignal,
): Promise<Buffer> {
  const size = await files.size(blobFile(blob.digest));
  if (size === undefined) throw new KeelsonError('IMAGE_INVALID', `${what} is missing`);
  if (size !== blob.size && size <= largestManifest) {
    throw new KeelsonError('IMAGE_DIGEST_MISMATCH', `${what} has ${size} bytes instead of ${blob.size}`);
  }
  const bytes = await readSmall(files, blobFile(blob.digest), signal);
  const digest = digestOf(bytes, blob.digest.split(':')[0]!);
  if (digest === blob.digest) return bytes;
  throw new KeelsonError('IMAGE_DIGEST_MISMATCH', `${what} is ${digest} in truth`);
}
