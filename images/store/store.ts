/**
 * What is remembered of images: rows in state.db, and one folder for each layer below `layers/`.
 *
 * A layer whose row a crash took is known by its map, and comes back when it has been verified (verify.ts). A layer that
 * is found damaged is marked, not removed: its images count as not present, so that the next use pulls that layer again,
 * and containers that have it mounted keep its folder.
 */
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clock, systemClock } from '../../runtime/host/clock.ts';
import type { Database } from '../../runtime/host/database.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { syncFilesystem } from '../../runtime/host/syscalls.ts';
import { makeImageStore } from './image_store.ts';
import { openLayerStore } from './layer_store.ts';
import { schema } from './schema.ts';
import { beginRun, currentBootId, dropBrokenImages, endRun, ensureStoreFolder } from './start.ts';
import { groupedSync } from './sync.ts';

export interface ImageRow {
  readonly id: string;
  /** The configuration blob as it came. */
  readonly config: Buffer;
  /** The manifest as it came. */
  readonly manifest: Buffer;
  /** Lowest first. */
  readonly diffIds: readonly string[];
}

export interface LayerRow {
  readonly diffId: string;
  /** Bytes of its files. */
  readonly size: number;
  readonly inodes: number;
  /** Its map is complete (unpack/tar_map.ts). */
  readonly mapped: boolean;
}

/** A layer that has a row. */
export interface KnownLayer {
  readonly diffId: string;
  readonly size: number;
  /** It is known to be; its images are not present. */
  readonly damaged: boolean;
  /** Names, or ids, of the images that have it. */
  readonly images: readonly string[];
}

/** A folder with a map that no row names. */
export interface StrayLayer {
  readonly number: number;
  readonly folder: string;
  readonly map: string;
}

/** What garbage collection wants to know of an image, present or not. */
export interface ImageUse {
  readonly id: string;
  readonly names: readonly string[];
  readonly pinned: boolean;
  /** A container has it. */
  readonly leased: boolean;
  /** When it was pulled, named, leased or released last. Unix milliseconds. */
  readonly lastUsedAt: number;
  /** Each once. Size: bytes that go with it; 0 while a pull holds it. */
  readonly layers: readonly { readonly diffId: string; readonly size: number }[];
}

export interface Store {
  /** An empty folder to unpack a layer into. */
  stage(): Promise<string>;
  /** Removes what `stage` gave, in the background. */
  discard(folder: string): void;
  /**
   * Makes a staged folder the layer of its diffID, in the place of a damaged one where there is one. A power cut before
   * `settled` may hurt it: after one it is verified before it is used.
   */
  commitLayer(folder: string, layer: LayerRow): Promise<void>;
  hasLayer(diffId: string): boolean;
  /** Where a layer is, absolute; `map` is undefined where its archive cannot be built again from it. */
  layerFiles(diffId: string): { readonly folder: string; readonly map: string | undefined } | undefined;
  /** Keeps layers from being collected, present or not, until the returned function is called. */
  holdLayers(diffIds: readonly string[]): () => void;
  isHeld(diffId: string): boolean;
  knownLayers(): KnownLayer[];
  /** DiffIDs that the power cut before this start may have hurt, should the disk not have kept its word. */
  readonly suspects: readonly string[];
  /** Those that had not been written to the disk by then: they count as damaged until `markLayer` says otherwise. */
  readonly doubts: readonly string[];
  strays(): StrayLayer[];
  /** Gives a verified stray its row. False, and the folder goes, where its layer is here already. */
  adoptStray(number: number, layer: LayerRow): boolean;
  dropStray(number: number): void;
  markLayer(diffId: string, state: 'good' | 'damaged'): void;
  /**
   * Writes an image whose layers are all there, gives it `names` (normalised tag and digest references, taken from
   * whatever image had them) and notes that the manifests of `manifestDigests` mean it. `pin` keeps it from collection,
   * until it is removed; without it a pinned image stays so.
   */
  commitImage(
    image: ImageRow,
    names: readonly string[],
    manifestDigests: readonly string[],
    pin?: boolean,
  ): void;
  /** The image that a manifest or index with this digest was resolved to, where it is still here. */
  imageOfManifest(digest: string): string | undefined;
  /** Gives an image further names and manifests; false where it has just been removed. */
  nameImage(id: string, names: readonly string[], manifestDigests: readonly string[]): boolean;
  /** A pinned image is never collected. No error for an unknown one. */
  setPinned(id: string, pinned: boolean): void;
  /** The image with this id or normalised name. */
  findImage(idOrName: string): StoredImage | undefined;
  listImages(): StoredImage[];
  /** Absolute folders of its layers, topmost first, each once. */
  layerFolders(id: string): string[];
  /** Throws IMAGE_NOT_PRESENT for an unknown image. */
  lease(id: string, holder: string): void;
  release(holder: string): void;
  /** Removes an image and what only it needed. Throws FAILED_PRECONDITION while it is leased; no error where unknown. */
  removeImage(id: string): void;
  /** The same, unless it is leased or pinned: then false. */
  collectImage(id: string): boolean;
  imageUse(): ImageUse[];
  /** Removes layers that no image has and nobody holds, where they came so many milliseconds ago. Returns their bytes. */
  collectLayers(unneededForMs: number): number;
  /** Removes those of these layers that no image has and nobody holds. */
  collectLayersOf(diffIds: readonly string[]): void;
  usage(): { usedBytes: number; usedInodes: number };
  /** Resolves when all layers and rows so far survive a power cut; without it they do so some seconds later. */
  settled(): Promise<void>;
  /** Waits for removals that are under way, and marks that the run has ended in order. */
  close(): Promise<void>;
}

export interface StoredImage {
  readonly id: string;
  readonly config: Buffer;
  readonly size: number;
  readonly repoTags: readonly string[];
  /** Newest first. */
  readonly repoDigests: readonly string[];
  readonly pinned: boolean;
}

/** Opens the store below `stateDir`, after removing what a crash left half-made. */
export async function openStore(
  db: Database,
  stateDir: string,
  log: Logger,
  { clock = systemClock, bootId = currentBootId() }: { clock?: Clock; bootId?: string } = {},
): Promise<Store> {
  db.migrate('images', schema);
  const layersFolder = join(stateDir, 'layers');
  const stagingFolder = join(stateDir, 'staging');
  // Nobody but root may walk into layers: they hold setuid programs and device nodes.
  await Promise.all([ensureStoreFolder(layersFolder), ensureStoreFolder(stagingFolder)]);
  const afterPowerCut = beginRun(db, bootId);
  dropBrokenImages(db, log);
  const stateFolder = await open(stateDir, 'r');
  try {
    const sync = groupedSync(() => syncFilesystem(stateFolder.fd));
    const layers = await openLayerStore({ db, layersFolder, stagingFolder, log, clock, sync, afterPowerCut });
    return {
      ...layers,
      ...makeImageStore(db, layers, clock),
      async settled() {
        await layers.synced();
        await db.sync();
      },
      async close() {
        layers.close();
        await layers.synced();
        await layers.idle();
        await stateFolder.close();
        endRun(db);
      },
    };
  } catch (error) {
    await stateFolder.close();
    throw error;
  }
}
