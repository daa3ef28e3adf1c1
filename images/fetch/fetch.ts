/**
 * One layer from its source into the store. Whatever breaks, the bytes that are here stay here: a broken connection is
 * taken up where it broke, into the same unpacking, and a new process goes on with what an earlier one has written
 * down. Nothing becomes visible before both digests are right.
 */
import { constants, type FileHandle, open, utimes } from 'node:fs/promises';
import type { Clock } from '../../runtime/host/clock.ts';
import { abortError, describe, errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { Descriptor } from '../manifest.ts';
import type { LayerSource } from '../registry/repository.ts';
import type { Blobs } from '../store/blobs.ts';
import type { Store } from '../store/store.ts';
import type { UnpackPool } from '../unpack/pool.ts';
import { download, watchLink } from './download.ts';
import { layerError } from './failure.ts';
import { type Flight, type Inlet, makeInlet } from './inlet.ts';
import type { Counters } from './metrics.ts';
import type { Partials } from './partial.ts';
import { type FetchPolicy, spoolDecision } from './policy.ts';
import type { ProgressTeller } from './speed.ts';
import { makeSpool, type Spool } from './spool.ts';

export interface WantedLayer {
  readonly descriptor: Descriptor;
  /** sha256 of the uncompressed archive, by the image's configuration. */
  readonly diffId: string;
}

export interface FetchOptions {
  readonly store: Pick<Store, 'stage' | 'discard' | 'commitLayer'>;
  readonly blobs: Blobs;
  readonly partials: Partials;
  readonly unpack: Pick<UnpackPool, 'begin'>;
  readonly clock: Clock;
  readonly log: Logger;
  readonly policy: FetchPolicy;
  /** Keep the compressed layer. */
  readonly keepBlobs: boolean;
  /** The folder of the store, for messages. */
  readonly stateDir: string;
  /** From 0 to 1. */
  readonly random: () => number;
  readonly flight: Flight;
  readonly counters: Counters;
}

/** Failures that say nothing against the bytes that are here. After any other they are not trusted again. */
const onTheWay = [
  'ABORTED',
  'REGISTRY_UNAVAILABLE',
  'IMAGE_NOT_FOUND',
  'IMAGE_PULL_DENIED',
  'UNAVAILABLE',
  'DEADLINE_EXCEEDED',
] as const;

/** Resolves when the layer is committed. Throws as `Layers.ensure`. */
export function fetchLayer(
  options: FetchOptions,
  layer: WantedLayer,
  from: LayerSource,
  progress: ProgressTeller,
  signal: AbortSignal,
): Promise<void> {
  const { partials, log, stateDir } = options;
  const { digest } = layer.descriptor;
  const what = `layer ${from.name}@${digest}`;
  return partials.exclusive(digest, async () => {
    for (let anew = false; ; anew = true) {
      const run: Run = { layer, from, what, progress, signal, anew, pieced: false };
      try {
        if (signal.aborted) throw abortError(signal, what);
        return await fetchOnce(options, run);
      } catch (error) {
        if (signal.aborted) throw abortError(signal, what);
        // Bytes of several connections or of an earlier process need not be one: all of them at once may be good.
        const told = layerError(error, what, stateDir);
        if (anew || !run.pieced || isError(told, 'STORAGE_FULL', ...onTheWay)) throw told;
        log.warn({ layer: digest, from: from.name, why: describe(error) }, 'fetching a layer once more');
      }
    }
  });
}

interface Run {
  readonly layer: WantedLayer;
  readonly from: LayerSource;
  readonly what: string;
  readonly progress: ProgressTeller;
  readonly signal: AbortSignal;
  /** Take nothing that is here. */
  readonly anew: boolean;
  /** Set when the bytes did not all come in one piece. */
  pieced: boolean;
}

async function fetchOnce(options: FetchOptions, run: Run): Promise<void> {
  const { store, blobs, partials, unpack, clock, log, policy, keepBlobs, flight, counters } = options;
  const { layer, what, progress, signal } = run;
  const { digest, size, mediaType } = layer.descriptor;
  const folder = await store.stage();
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const begun = unpack.begin(folder, size, digest.split(':')[0]!);
  const inlet = makeInlet(begun, flight, (error) => failed.abort(error));
  const abortUnpacking = () =>
    begun.then(
      (unpacking) => unpacking.abort(),
      () => {},
    );
  signal.addEventListener('abort', abortUnpacking, { once: true });
  const link = watchLink(clock, counters);
  let local: Local | undefined;
  let spool: Spool | undefined;
  /** Of the part on disk: whether the next fetch can use it. */
  let keepPart = true;
  try {
    local = run.anew ? undefined : await openLocal(options, layer);
    spool = makeSpool({
      path: partials.path(digest),
      from: local?.size ?? 0,
      mostPending: policy.spoolPendingBytes,
      decide: (bytes) =>
        spoolDecision(policy, { keep: keepBlobs, bytes, broken: link.broken, ...link.seen(bytes) }),
      onFailure: (error) => {
        if (keepBlobs) failed.abort(error);
        else log.warn({ layer: digest, why: describe(error) }, 'cannot write a part of a layer down');
      },
    });
    progress.phase(clock.monotonic(), 'downloading', 0);
    if (local !== undefined) {
      counters.layersResumed++;
      await readLocal(local, inlet, either, () => progress.bytes(clock.monotonic(), inlet.received, 0));
    }
    await download({ ...options, ...run, descriptor: layer.descriptor, inlet, spool, link, signal: either });
    progress.phase(clock.monotonic(), 'verifying', size);
    await inlet.drained();
    const result = await (await begun).end();
    if (result.digest !== digest) {
      throw new KeelsonError('IMAGE_DIGEST_MISMATCH', `${what}: the registry sent ${result.digest}`);
    }
    if (result.diffId !== layer.diffId) {
      throw new KeelsonError(
        'IMAGE_DIGEST_MISMATCH',
        `${what}: unpacked it is ${result.diffId}, but the image's config says ${layer.diffId}`,
      );
    }
    if (keepBlobs && local?.kind !== 'blob') {
      await spool.finish();
      await blobs.add(partials.path(digest), { digest, size, mediaType, diffId: layer.diffId });
    }
    if (signal.aborted) throw abortError(signal, what);
    await store.commitLayer(folder, { ...result, diffId: layer.diffId });
    keepPart = false;
  } catch (caught) {
    const error = failed.signal.aborted && !signal.aborted ? failed.signal.reason : caught;
    run.pieced = local !== undefined || link.broken;
    await abortUnpacking();
    store.discard(folder);
    keepPart = signal.aborted || isError(error, ...onTheWay);
    if (!keepPart && local?.kind === 'blob') {
      // The only copy on a site without a network is not thrown away for what something else may have done.
      if (await blobs.verify(digest)) run.pieced = false;
      else await blobs.remove(digest);
    }
    throw error;
  } finally {
    signal.removeEventListener('abort', abortUnpacking);
    inlet.close();
    try {
      await local?.handle.close();
      await spool?.close(keepPart);
      if (!keepPart) await partials.remove(digest);
    } catch (err) {
      // The layer is committed, or something worse has happened.
      log.warn({ err, layer: digest }, 'cannot put away a part of a layer');
    }
  }
}

interface Local {
  readonly kind: 'blob' | 'partial';
  readonly handle: FileHandle;
  /** Bytes to read from it; from there on the network has the rest. */
  readonly size: number;
}

/** What is on this machine of the layer's compressed bytes. */
async function openLocal(
  { blobs, partials, clock }: FetchOptions,
  { descriptor: { digest, size } }: WantedLayer,
): Promise<Local | undefined> {
  const kept = blobs.find(digest);
  if (kept?.size === size) {
    const handle = await blobs.open(digest).catch(() => undefined);
    if (handle !== undefined) return { kind: 'blob', handle, size };
  }
  const path = partials.path(digest);
  let handle: FileHandle;
  try {
    handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') await partials.remove(digest);
    return undefined;
  }
  const found = await handle.stat();
  if (found.isFile() && found.size > 0 && found.size <= size) {
    // The sweep goes by the time of the last use.
    const now = clock.now() / 1000;
    await utimes(path, now, now);
    return { kind: 'partial', handle, size: found.size };
  }
  await handle.close();
  await partials.remove(digest);
  return undefined;
}

const readSize = 256 << 10;

async function readLocal(
  { handle, size }: Local,
  inlet: Inlet,
  signal: AbortSignal,
  onRead: () => void,
): Promise<void> {
  while (inlet.received < size) {
    if (signal.aborted) throw abortError(signal, 'reading a part of a layer');
    // New each time: they go on by reference.
    const buffer = Buffer.allocUnsafeSlow(Math.min(readSize, size - inlet.received));
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, inlet.received);
    if (bytesRead === 0) throw new KeelsonError('IMAGE_INVALID', 'its part on disk has become shorter');
    await inlet.give(buffer.subarray(0, bytesRead));
    onRead();
  }
}
