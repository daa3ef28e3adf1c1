/** A pull: reference → manifest → configuration → layers → image. */
import type { AuthConfig, PullProgress } from '../runtime/api.ts';
import { isError, KeelsonError } from '../runtime/host/errors.ts';
import { parseImageConfig } from './config.ts';
import type { LayerProgress, Layers } from './fetch/layers.ts';
import {
  chooseManifest,
  type Descriptor,
  formatPlatform,
  type ImageManifest,
  type Platform,
  parseManifest,
  platformMissing,
  platformRank,
} from './manifest.ts';
import { formatReference, type Reference, repositoryOf } from './reference.ts';
import { openRepository, type RegistryOptions, type Repository } from './registry/repository.ts';
import type { Store } from './store/store.ts';
import type { UnpackPool } from './unpack/pool.ts';

export interface PullOptions extends RegistryOptions {
  readonly store: Store;
  readonly layers: Layers;
  readonly unpack: UnpackPool;
  readonly platform: Platform;
}

/** An index may name an index, but not for ever. */
const deepestIndex = 3;

/**
 * Makes the image of `reference` present and returns its id. Always asks the registry what the reference means;
 * fetches only what the store lacks.
 */
export async function pull(
  options: PullOptions,
  reference: Reference,
  auths: readonly AuthConfig[],
  onProgress: (progress: PullProgress) => void,
  signal: AbortSignal,
): Promise<string> {
  const { store, layers, unpack, clock, log, platform } = options;
  const started = clock.monotonic();
  const from = await openRepository(options, reference.domain, reference.path, auths);
  // Needed only after two or three answers of the registry, and takes about as long to start.
  unpack.warm().catch((err: unknown) => log.debug({ err }, 'no unpack thread'));
  const found = await resolve(store, from, reference, platform, signal);
  const names = [formatReference(reference), `${repositoryOf(reference)}@${found.digests[0]}`];
  if (found.id !== undefined) {
    if (store.nameImage(found.id, names, found.digests)) return found.id;
    return pull(options, reference, auths, onProgress, signal);
  }

  const { manifest, bytes, what } = found;
  const configBytes = await from.document(manifest.config, signal);
  const id = manifest.config.digest;
  const { diffIds, platform: offered } = parseImageConfig(configBytes, `config ${from.name}@${id}`);
  if (platformRank(platform, offered) === undefined)
    throw platformMissing(platform, [formatPlatform(offered)], what);
  if (diffIds.length !== manifest.layers.length) {
    throw new KeelsonError(
      'IMAGE_INVALID',
      `${what} has ${manifest.layers.length} layers, but its config names ${diffIds.length}`,
    );
  }
  const release = store.holdLayers(diffIds);
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  try {
    const image = formatReference(reference);
    const wanted = manifest.layers.map((descriptor, at) => {
      const tell: LayerProgress = (step) =>
        onProgress({ image, digest: descriptor.digest, totalBytes: descriptor.size, ...step });
      const fetch = () => layers.ensure({ descriptor, diffId: diffIds[at]! }, from, tell, either, image);
      return fromAnyone(from, descriptor, fetch);
    });
    try {
      await Promise.all(wanted);
    } catch (error) {
      failed.abort(new KeelsonError('ABORTED', `another layer of ${image} failed`, { cause: error }));
      await Promise.allSettled(wanted);
      throw error;
    }
    store.commitImage({ id, config: configBytes, manifest: bytes, diffIds }, names, found.digests);
  } finally {
    release();
  }
  log.info(
    { image: formatReference(reference), id, ms: Math.round(clock.monotonic() - started) },
    'image pulled',
  );
  return id;
}

/** Runs `fetch` of a layer; what is wrong with that may be wrong with one mirror only: then again, with the next one. */
async function fromAnyone(from: Repository, layer: Descriptor, fetch: () => Promise<void>): Promise<void> {
  for (;;) {
    try {
      return await fetch();
    } catch (error) {
      if (!isError(error, 'IMAGE_DIGEST_MISMATCH', 'IMAGE_INVALID', 'LAYER_UNSAFE')) throw error;
      from.distrust(layer, error); // Throws when there is no next one.
    }
  }
}

type Resolved = {
  /** Of the manifest, and before it of the indexes that led to it: the first is what the reference names. */
  readonly digests: readonly string[];
} & (
  | { readonly id: string }
  | {
      readonly id?: undefined;
      readonly manifest: ImageManifest;
      readonly bytes: Buffer;
      readonly what: string;
    }
);

async function resolve(
  store: Store,
  from: Repository,
  reference: Reference,
  platform: Platform,
  signal: AbortSignal,
): Promise<Resolved> {
  const digests: string[] = [];
  let next = reference.digest ?? reference.tag ?? 'latest';
  for (let depth = 0; depth <= deepestIndex; depth++) {
    const { bytes, mediaType, digest } = await from.manifest(next, signal);
    digests.push(digest);
    const id = store.imageOfManifest(digest);
    if (id !== undefined) return { digests, id };
    const what = `manifest ${from.name}@${digest}`;
    const manifest = parseManifest(bytes, mediaType, what);
    if (manifest.kind === 'manifest') return { digests, manifest, bytes, what };
    next = chooseManifest(manifest, platform, what).digest;
    const known = store.imageOfManifest(next);
    if (known !== undefined) return { digests: [...digests, next], id: known };
  }
  throw new KeelsonError(
    'IMAGE_INVALID',
    `manifest ${from.name}@${digests[0]}: more than ${deepestIndex} indexes in each other`,
  );
}
