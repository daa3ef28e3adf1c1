/**
 * What `docker save` writes: manifest.json, which names for each image its config, tags and layers, as files of the
 * archive. Old Dockers put layers to `<id>/layer.tar` (some as links to others), new ones to `blobs/sha256/`; skopeo and
 * Podman to `<digest>.tar`. `repositories` beside it is for readers from before 2016 and is ignored.
 */
import { createHash } from 'node:crypto';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { isObject } from '../manifest.ts';
import { formatReference } from '../reference.ts';
import {
  type ArchivedLayer,
  type FoundImage,
  type ReadOptions,
  readConfig,
  readEach,
  readName,
  readSmall,
  sha256Of,
} from './contents.ts';
import { type ArchiveFiles, show } from './files.ts';
import { compressionOf } from './spool.ts';

interface Item {
  readonly config: string;
  readonly tags: readonly string[];
  readonly layers: readonly string[];
}

const mostImages = 1000;
const mostLayers = 500;
const layerTypes = {
  none: 'application/vnd.docker.image.rootfs.diff.tar',
  gzip: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
  zstd: 'application/vnd.docker.image.rootfs.diff.tar.zstd',
} as const;

/** Throws IMAGE_INVALID, IMAGE_PLATFORM_MISSING, IMAGE_DIGEST_MISMATCH, ABORTED. */
export async function readDockerArchive(files: ArchiveFiles, options: ReadOptions): Promise<FoundImage[]> {
  const items = parseItems(
    await readSmall(files, 'manifest.json', options.signal),
    `archive ${files.path}: manifest.json`,
  );
  const layers = new Map<
    string,
    Promise<Omit<ArchivedLayer['descriptor'], 'digest'> & { digest?: string }>
  >();
  const layerOf = (name: string) => {
    const known = layers.get(name) ?? describeLayer(files, name, options.signal);
    layers.set(name, known);
    return known;
  };
  return readEach(items, (item) => readImage(files, item, layerOf, options), options.onSkipped);
}

/** Throws IMAGE_INVALID. Pure. */
export function parseItems(bytes: Buffer, what: string): Item[] {
  const invalid = (why: string) => new KeelsonError('IMAGE_INVALID', `${what}: ${why}`);
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new KeelsonError('IMAGE_INVALID', `${what} is not JSON`, { cause: error });
  }
  if (!Array.isArray(json)) throw invalid('it is not a list of images');
  if (json.length === 0) throw invalid('it names no images');
  if (json.length > mostImages) throw invalid(`it names more than ${mostImages} images`);
  return json.map((item: unknown, at) => {
    const isText = (value: unknown) => typeof value === 'string' && value !== '' && !value.includes('\0');
    const texts = (value: unknown, name: string): string[] => {
      if (value === undefined || value === null) return [];
      if (Array.isArray(value) && value.every(isText)) return value;
      throw invalid(`[${at}].${name} is not a list of texts`);
    };
    if (!isObject(item) || !isText(item['Config'])) throw invalid(`[${at}] has no Config`);
    const layers = texts(item['Layers'], 'Layers');
    if (layers.length > mostLayers) throw invalid(`[${at}] has more than ${mostLayers} layers`);
    return { config: String(item['Config']), tags: texts(item['RepoTags'], 'RepoTags'), layers };
  });
}

async function readImage(
  files: ArchiveFiles,
  item: Item,
  layerOf: (
    name: string,
  ) => Promise<Omit<ArchivedLayer['descriptor'], 'digest'> & { readonly digest?: string }>,
  { platform, signal }: ReadOptions,
): Promise<FoundImage> {
  const config = await readSmall(files, item.config, signal);
  const id = sha256Of(config);
  const named = /(?:^|\/)([a-f0-9]{64})(?:\.json)?$/.exec(item.config)?.[1];
  if (named !== undefined && id !== `sha256:${named}`) {
    const why = `config ${show(item.config)} is ${id} in truth`;
    throw new KeelsonError('IMAGE_DIGEST_MISMATCH', `archive ${files.path}: ${why}`);
  }
  const { diffIds } = readConfig(config, id, files, platform);
  const layers = await Promise.all(
    item.layers.map(async (file, at): Promise<ArchivedLayer> => {
      const found = await layerOf(file);
      // Not compressed, a layer is what its config names; a config that names fewer is refused by whoever asked.
      return { file, descriptor: { ...found, digest: found.digest ?? diffIds[at] ?? id } };
    }),
  );
  const names = item.tags.map((tag) => {
    const reference = readName(tag, files);
    if (reference.digest === undefined) return formatReference(reference);
    // Nothing here could show that it is true.
    throw new KeelsonError('IMAGE_INVALID', `archive ${files.path}: the tag ${show(tag)} has a digest`);
  });
  const descriptor = {
    mediaType: 'application/vnd.docker.container.image.v1+json',
    digest: id,
    size: config.length,
  };
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: 'application/vnd.docker.distribution.manifest.v2+json',
      config: descriptor,
      layers: layers.map((layer) => layer.descriptor),
    }),
  );
  return { id, config, manifest, diffIds, layers, names, digests: [] };
}

/** Its type and size, and its digest where it is compressed: by its name, which is verified later, or by reading it. */
async function describeLayer(files: ArchiveFiles, name: string, signal?: AbortSignal) {
  const size = await files.size(name);
  if (size === undefined) {
    throw new KeelsonError('IMAGE_INVALID', `archive ${files.path}: layer ${show(name)} is missing`);
  }
  let first: Buffer = Buffer.alloc(0);
  for await (const piece of files.read(name, 0, signal)) {
    first = piece;
    break;
  }
  const compression = compressionOf(first);
  const described = { mediaType: layerTypes[compression], size };
  if (compression === 'none') return described;
  const named = /^blobs\/sha256\/([a-f0-9]{64})$/.exec(name)?.[1];
  if (named !== undefined) return { ...described, digest: `sha256:${named}` };
  const hash = createHash('sha256');
  for await (const piece of files.read(name, 0, signal)) hash.update(piece);
  return { ...described, digest: `sha256:${hash.digest('hex')}` };
}
