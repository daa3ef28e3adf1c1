/** The image that agnhost's `fake-registry-server` gives out: files of a layout of its own (its prepare_registry.sh). Pure. */
import { dirname } from 'node:path';
import type { Blob, BuiltImage } from '../peers/image.ts';
import type { TarEntry } from '../peers/tar.ts';

/** What an image with that server has to have besides its program, so that it serves `image` as `name:tag`. */
export function servedImage(name: string, tag: string, image: BuiltImage): TarEntry[] {
  const root = `var/registry/${name}`;
  const file = (kind: 'blobs' | 'manifests', { digest, data }: Blob) => {
    const [algorithm, hash] = digest.split(':') as [string, string];
    return { path: `${root}/${kind}/${algorithm}/${hash.slice(0, 2)}/${hash}/data`, content: data };
  };
  const files = [
    { path: `${root}/manifests/${tag}`, content: image.manifest.digest },
    file('manifests', image.manifest),
    ...[image.config, ...image.layers].map((blob) => file('blobs', blob)),
  ];
  const folders = new Set(files.flatMap(({ path }) => parents(path)));
  return [...[...folders].sort().map((path) => ({ path, type: 'directory' as const })), ...files];
}

function parents(path: string): string[] {
  const parent = dirname(path);
  return parent === '.' ? [] : [parent, ...parents(parent)];
}
