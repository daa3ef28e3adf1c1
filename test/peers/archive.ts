/** Archives of images as docker save, old and new, and OCI tools write them. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import { type Blob, type BuiltImage, descriptor, makeBlob, ociIndex, sha256 } from './image.ts';
import { makeTar, type TarEntry } from './tar.ts';

/** Files by name. */
export type Files = Map<string, Buffer>;

export interface Named {
  readonly image: BuiltImage;
  readonly tags: readonly string[];
}

export const hexOf = (digest: string): string => digest.slice('sha256:'.length);
export const blobPath = (digest: string): string => `blobs/sha256/${hexOf(digest)}`;
const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));

/** The layer as it was before compression. */
export function layerTar({ data, mediaType }: Blob): Buffer {
  if (mediaType.endsWith('gzip')) return gunzipSync(data);
  return mediaType.endsWith('zstd') ? zstdDecompressSync(data) : data;
}

/** What a config, or any JSON, names here needs to be valid: an index entry with further fields. */
export function entry(blob: Blob, more: object = {}): object {
  return { ...descriptor(blob), ...more };
}

/** An OCI layout of `blobs` whose index.json has `manifests`. */
export function layout(blobs: readonly Blob[], manifests: readonly object[]): Files {
  const files: Files = new Map([
    ['oci-layout', json({ imageLayoutVersion: '1.0.0' })],
    ['index.json', json({ schemaVersion: 2, mediaType: ociIndex, manifests })],
  ]);
  for (const blob of blobs) files.set(blobPath(blob.digest), blob.data);
  return files;
}

export const blobsOf = ({ config, manifest, layers }: BuiltImage): Blob[] => [config, manifest, ...layers];

/** A layout with one entry per name, the name in `annotation`. */
export function namedLayout(
  named: readonly Named[],
  annotation = 'org.opencontainers.image.ref.name',
): Files {
  return layout(
    named.flatMap(({ image }) => blobsOf(image)),
    named.flatMap(({ image, tags }) =>
      tags.length === 0
        ? [entry(image.manifest, { platform: image.platform })]
        : tags.map((tag) =>
            entry(image.manifest, { platform: image.platform, annotations: { [annotation]: tag } }),
          ),
    ),
  );
}

/**
 * As Docker before 25 saves: a folder for each layer, named by an id of old, with layer.tar, VERSION and json; a layer
 * that comes again is a link to the first; `repositories` for even older readers.
 */
export function dockerSaveOld(named: readonly Named[]): TarEntry[] {
  const entries: TarEntry[] = [];
  const first = new Map<string, string>();
  const repositories: Record<string, Record<string, string>> = {};
  const manifest = named.map(({ image, tags }) => {
    const layers = image.layers.map((layer, at) => {
      const id = hexOf(sha256(`${image.id} ${at}`));
      const known = first.get(layer.diffId);
      entries.push({ path: `${id}/`, type: 'directory' });
      entries.push({ path: `${id}/VERSION`, content: '1.0' });
      entries.push({ path: `${id}/json`, content: json({ id, os: 'linux' }) });
      if (known === undefined) entries.push({ path: `${id}/layer.tar`, content: layerTar(layer) });
      else entries.push({ path: `${id}/layer.tar`, type: 'symlink', target: `../${known}/layer.tar` });
      if (known === undefined) first.set(layer.diffId, id);
      return `${id}/layer.tar`;
    });
    for (const tag of tags) {
      const [repository = '', name = ''] = tag.split(':');
      repositories[repository] = { ...repositories[repository], [name]: layers.at(-1)!.split('/')[0]! };
    }
    entries.push({ path: `${hexOf(image.id)}.json`, content: image.config.data });
    return {
      Config: `${hexOf(image.id)}.json`,
      RepoTags: tags.length === 0 ? null : tags,
      Layers: layers,
    };
  });
  entries.push({ path: 'manifest.json', content: json(manifest) });
  entries.push({ path: 'repositories', content: json(repositories) });
  return entries;
}

/**
 * As Docker 25 and later saves: an OCI layout of uncompressed layers, and manifest.json beside it. `order` is that of
 * the layers in the layout's manifest: 25.0 mixed them up.
 */
export function dockerSaveNew(
  named: readonly Named[],
  order = (layers: readonly Blob[]): readonly Blob[] => layers,
): Files {
  const blobs: Blob[] = [];
  const manifests: object[] = [];
  const items = named.map(({ image, tags }) => {
    const layers = image.layers.map((layer) =>
      makeBlob(layerTar(layer), 'application/vnd.oci.image.layer.v1.tar'),
    );
    const config = makeBlob(image.config.data, 'application/vnd.oci.image.config.v1+json');
    const mediaType = 'application/vnd.oci.image.manifest.v1+json';
    const manifest = makeBlob(
      json({
        schemaVersion: 2,
        mediaType,
        config: descriptor(config),
        layers: order(layers).map(descriptor),
      }),
      mediaType,
    );
    blobs.push(config, manifest, ...layers);
    for (const tag of tags) {
      manifests.push(
        entry(manifest, {
          annotations: {
            'io.containerd.image.name': `docker.io/library/${tag}`,
            'org.opencontainers.image.ref.name': tag.split(':')[1],
          },
        }),
      );
    }
    return {
      Config: blobPath(image.id),
      RepoTags: tags,
      Layers: layers.map(({ digest }) => blobPath(digest)),
      LayerSources: Object.fromEntries(layers.map((layer) => [layer.digest, descriptor(layer)])),
    };
  });
  return new Map([
    ...layout(blobs, manifests),
    ['manifest.json', json(items)],
    ['repositories', json({ library: {} })],
  ]);
}

/** A tar archive of `files`, with its folders. */
export function tarOf(files: Files): Buffer {
  const folders = new Set([...files.keys()].flatMap((path) => parents(path)));
  return makeTar([
    ...[...folders].map((path): TarEntry => ({ path: `${path}/`, type: 'directory' })),
    ...[...files].map(([path, content]): TarEntry => ({ path, content })),
  ]);
}

function parents(path: string): string[] {
  const parts = path.split('/').slice(0, -1);
  return parts.map((_, at) => parts.slice(0, at + 1).join('/'));
}

export function writeFolder(folder: string, files: Files): string {
  for (const [path, content] of files) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), content);
  }
  return folder;
}
