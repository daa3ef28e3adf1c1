/** The images of the node: what the runtime and the agent see of this room. */
import { createHash } from 'node:crypto';
import type {
  AuthConfig,
  Image,
  ImageArchives,
  ImageCollector,
  ImageService,
  PullProgress,
} from '../runtime/api.ts';
import type { Clock } from '../runtime/host/clock.ts';
import type { Database } from '../runtime/host/database.ts';
import { isError, KeelsonError } from '../runtime/host/errors.ts';
import type { Logger } from '../runtime/host/log.ts';
import { type ImageConfig, imageUser, parseImageConfig } from './config.ts';
import { makeLayers } from './fetch/layers.ts';
import type { FetchMetrics } from './fetch/metrics.ts';
import { openPartials } from './fetch/partial.ts';
import { defaultPolicy, type FetchPolicy } from './fetch/policy.ts';
import { nodePlatform, type Platform } from './manifest.ts';
import { pull } from './pull.ts';
import { formatReference, imageIdOf, parseReference } from './reference.ts';
import { makeClients } from './registry/clients.ts';
import { makeHealth } from './registry/health.ts';
import { makeHosts } from './registry/hosts.ts';
import { proxyRules } from './registry/proxy.ts';
import { sharedWork } from './shared.ts';
import { openBlobs } from './store/blobs.ts';
import { openStore, type StoredImage } from './store/store.ts';
import { makeVerifier } from './store/verify.ts';
import { defaultLimits, makeUnpackPool } from './unpack/pool.ts';
import type { UnpackLimits } from './unpack/protocol.ts';

export type { ImageConfig } from './config.ts';
export type { FetchMetrics } from './fetch/metrics.ts';

export interface ImageForContainer {
  readonly id: string;
  /** Absolute lower folders, topmost layer first: the order of overlayfs' lowerdir. */
  readonly layers: readonly string[];
  readonly config: ImageConfig;
  /** `repository@digest` where one is known, else the id. */
  readonly digestRef: string;
}

export interface EmbeddedImages
  extends ImageService,
    ImageCollector,
    Pick<ImageArchives, 'exportImages' | 'verifyImages'> {
  /** `gently`: one layer after the other, for imports that nobody waits for. */
  importImages(
    path: string,
    options?: Parameters<ImageArchives['importImages']>[1] & { gently?: boolean },
  ): Promise<readonly Image[]>;
  /** By id or reference. Throws IMAGE_NOT_PRESENT, IMAGE_NAME_INVALID. */
  forContainer(image: string): Promise<ImageForContainer>;
  /** Keeps an image for `holder` (a container) over restarts. Idempotent. Throws IMAGE_NOT_PRESENT. */
  lease(imageId: string, holder: string): void;
  /** Ends all leases of `holder`. Idempotent. */
  release(holder: string): void;
  /** `listener` hears the progress of every layer of every pull, a few times a second each; returns how to end that. */
  events(listener: (progress: PullProgress) => void): () => void;
  /** What fetching layers has come to since the process began. */
  fetchMetrics(): FetchMetrics;
  /** Aborts pulls, ends threads, waits for removals. */
  close(): Promise<void>;
}

export interface ImagesOptions {
  readonly db: Database;
  readonly stateDir: string;
  readonly log: Logger;
  readonly clock: Clock;
  /** Layers fetched at once on this node. Default 3. */
  readonly parallelDownloads?: number;
  /** Bytes of layers received and not yet taken by an unpacker, at most, for the whole node. Default 16 MiB. */
  readonly downloadBytesInFlight?: number;
  /** Keep compressed layers, for repairs and export without the network. Default false. */
  readonly keepBlobs?: boolean;
  /** When a connection counts as stalled, how often a fetch is tried again, what is written down. Default: see there. */
  readonly fetchPolicy?: Partial<FetchPolicy>;
  /** Default: this machine's. */
  readonly platform?: Platform;
  /** `host` or `host:port` of registries that may speak plain http, besides those on loopback. */
  readonly insecureRegistries?: readonly string[];
  /** Folders with a `hosts.toml` or certificates for each registry, the first one first. Default: containerd's too. */
  readonly registryFolders?: readonly string[];
  /** A registry with mirrors is never asked itself. Default false. */
  readonly registryMirrorsOnly?: boolean;
  /** The node's own credentials for a mirror (its config.json): a pull's secrets are only for the image's registry. */
  readonly mirrorAuths?: (host: string) => Promise<readonly AuthConfig[]>;
  /** For HTTP_PROXY, HTTPS_PROXY and NO_PROXY. Default: the environment of this process. */
  readonly environment?: Readonly<Record<string, string | undefined>>;
  /** Of one layer. Default: a million entries and 64 GiB. */
  readonly limits?: UnpackLimits;
  /** Called when an image has become not present because a layer was found to be damaged: an archive may have it. */
  readonly onImageLost?: () => void;
  /** Called when a pull or an import fails for want of space. */
  readonly onStorageFull?: () => void;
  /** Default: this machine's. Another one than the last run's says that the machine has been restarted. */
  readonly bootId?: string;
}

const defaultRegistryFolders = ['/etc/keelson/certs.d', '/etc/containerd/certs.d'];

/** Opens the image store below `stateDir` and removes what a crash left half-made. */
export async function makeImages(options: ImagesOptions): Promise<EmbeddedImages> {
  const { db, stateDir, log, clock } = options;
  const store = await openStore(db, stateDir, log, { clock, bootId: options.bootId });
  const unpack = makeUnpackPool({ clock, limits: options.limits });
  const clients = makeClients(proxyRules(options.environment ?? process.env).proxyFor);
  const policy = { ...defaultPolicy, ...options.fetchPolicy };
  const blobs = await openBlobs(db, stateDir, log);
  const partials = await openPartials({ stateDir, policy, clock, log });
  await blobs.sweep();
  const layers = makeLayers({
    store,
    blobs,
    partials,
    unpack,
    clock,
    log,
    stateDir,
    parallel: options.parallelDownloads ?? 3,
    bytesInFlight: options.downloadBytesInFlight,
    keepBlobs: options.keepBlobs,
    policy,
  });
  const pullOptions = {
    store,
    layers,
    unpack,
    hosts: makeHosts({
      folders: options.registryFolders ?? defaultRegistryFolders,
      insecureRegistries: options.insecureRegistries ?? [],
      mirrorsOnly: options.registryMirrorsOnly ?? false,
    }),
    clients,
    mirrorAuths: options.mirrorAuths,
    health: makeHealth(clock),
    clock,
    log,
    platform: options.platform ?? nodePlatform(),
  };
  const pulls = sharedWork<string>();
  const progress = new Map<string, Set<(progress: PullProgress) => void>>();
  const listeners = new Set<(progress: PullProgress) => void>();
  const closing = new AbortController();
  const verifier = makeVerifier({ store, unpack, log, blobs, onLost: options.onImageLost });
  /** Until they are verified, which takes seconds, nobody can tell which images are here. */
  const doubts = store.doubts.length === 0 ? undefined : verifier.verifyDoubts(closing.signal);
  void verifier.verifyStart(closing.signal);
  /** Imports and exports, which are seldom (their code is loaded for each), and removals of blobs. */
  const archiving = new Set<Promise<unknown>>();
  const archive = async <T>(run: Promise<T>): Promise<T> => {
    archiving.add(run);
    try {
      return await run;
    } finally {
      archiving.delete(run);
    }
  };
  const noticed = (error: unknown): unknown => {
    if (isError(error, 'STORAGE_FULL')) options.onStorageFull?.();
    return error;
  };
  /** Those of layers that are gone, when the caller has removed what he wants to. */
  const collectBlobs = async () => {
    await null;
    const needed = blobs.list().filter(({ diffId }) => store.layerFiles(diffId) !== undefined);
    await blobs.collect(new Set(needed.map(({ digest }) => digest)), store.isHeld);
  };
  const untilClosed = (signal?: AbortSignal) =>
    signal === undefined ? closing.signal : AbortSignal.any([signal, closing.signal]);

  const find = (image: string): StoredImage | undefined =>
    store.findImage(imageIdOf(image) ?? formatReference(parseReference(image)));
  const describe = ({ id, config, size, repoTags, repoDigests, pinned }: StoredImage): Image => ({
    id,
    repoTags,
    repoDigests,
    size,
    pinned,
    ...imageUser(parseImageConfig(config, `config ${id}`).config.User),
  });

  return {
    async listImages(filter) {
      if (!filter?.image) return store.listImages().map(describe);
      const found = find(filter.image);
      return found === undefined ? [] : [describe(found)];
    },
    async imageStatus({ image }) {
      await doubts;
      const found = find(image);
      return found === undefined ? undefined : describe(found);
    },
    async pullImage({ image }, { auths = [], signal, onProgress } = {}) {
      const present = imageIdOf(image);
      if (present !== undefined) {
        if (store.findImage(present) !== undefined) return present;
        throw new KeelsonError('IMAGE_NAME_INVALID', `${image} is an image id: only a name can be pulled`);
      }
      const reference = parseReference(image);
      await doubts;
      // Whoever has other credentials must show them to the registry himself.
      const key = `pull of ${formatReference(reference)}`;
      const run = `${key} ${fingerprint(auths)}`;
      const heard = progress.get(run) ?? new Set();
      if (onProgress !== undefined) progress.set(run, heard.add(onProgress));
      const tell = (step: PullProgress) => {
        for (const listener of progress.get(run) ?? []) listener(step);
        for (const listener of listeners) listener(step);
      };
      const mine = untilClosed(signal);
      try {
        return await pulls.join(run, (shared) => pull(pullOptions, reference, auths, tell, shared), mine);
      } catch (error) {
        throw noticed(error);
      } finally {
        if (onProgress !== undefined) heard.delete(onProgress);
        if (heard.size === 0 && progress.get(run) === heard) progress.delete(run);
      }
    },
    async removeImage({ image }) {
      const found = find(image);
      if (found !== undefined) store.removeImage(found.id);
    },
    async importImages(path, { signal, ...request } = {}) {
      const { importArchive } = await import('./archive/import.ts');
      const limit = (options.limits ?? defaultLimits).bytes;
      const { platform } = pullOptions;
      const run = importArchive({ store, layers, log, platform, limit }, path, {
        ...request,
        signal: untilClosed(signal),
      });
      const ids = await archive(run).catch((error: unknown) => {
        throw noticed(error);
      });
      return ids.flatMap((id) => store.findImage(id) ?? []).map(describe);
    },
    async exportImages(images, path, { format, signal }) {
      const { exportArchive, layersOf } = await import('./archive/export.ts');
      await archive(
        exportArchive({ store, find, layerTar: layersOf(store) }, images, path, format, untilClosed(signal)),
      );
    },
    async imageFsInfo() {
      return { mountpoint: stateDir, ...store.usage() };
    },
    async forContainer(image) {
      await doubts;
      const found = find(image);
      if (found === undefined) {
        throw new KeelsonError('IMAGE_NOT_PRESENT', `image ${image} is not present on this node`);
      }
      const { id, config, repoDigests } = found;
      return {
        id,
        layers: store.layerFolders(id),
        config: parseImageConfig(config, `config ${id}`).config,
        digestRef: repoDigests[0] ?? id,
      };
    },
    verifyImages: ({ signal, ...rest } = {}) =>
      verifier.verifyImages({ ...rest, signal: untilClosed(signal) }),
    imageUse(wanted) {
      const names = new Set(wanted.flatMap(nameOf));
      return store.imageUse().map(({ names: own, leased, ...use }) => ({
        ...use,
        inUse: leased || names.has(use.id) || own.some((name) => names.has(name)),
      }));
    },
    collectImage: store.collectImage,
    collectLayers(unneededForMs) {
      const bytes = store.collectLayers(unneededForMs);
      archive(collectBlobs()).catch((err: unknown) => log.warn({ err }, 'cannot remove kept blobs'));
      return bytes;
    },
    lease: store.lease,
    release: store.release,
    events(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    fetchMetrics: layers.metrics,
    async close() {
      closing.abort(new KeelsonError('ABORTED', 'the image store is closing'));
      await Promise.all([unpack.close(), clients.close()]);
      await Promise.all([pulls.idle(), layers.idle(), verifier.idle(), Promise.allSettled(archiving)]);
      await store.close();
    },
  };
}

/** As the store knows it; nothing for what is no reference. */
function nameOf(image: string): string[] {
  try {
    return [imageIdOf(image) ?? formatReference(parseReference(image))];
  } catch {
    return [];
  }
}

function fingerprint(auths: readonly AuthConfig[]): string {
  return auths.length === 0 ? '' : createHash('sha256').update(JSON.stringify(auths)).digest('hex');
}
