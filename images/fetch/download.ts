/** The part of a layer that is still missing, over as many connections as it takes. */
import { type Clock, sleep } from '../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import { requestError } from '../../runtime/host/http.ts';
import type { Descriptor } from '../manifest.ts';
import { type LayerSource, unavailable } from '../registry/repository.ts';
import { longestWait } from '../registry/retry.ts';
import { discard, readAll } from './body.ts';
import type { Inlet } from './inlet.ts';
import type { Counters } from './metrics.ts';
import { countTries, type FetchPolicy } from './policy.ts';
import { type Floor, type ProgressTeller, throughputFloor } from './speed.ts';
import type { Spool } from './spool.ts';

/** What a fetch has seen of the link that its bytes come over. */
export interface Link {
  /** A connection has broken. */
  broken: boolean;
  /** The first bytes come now. */
  begin(floor: Floor): void;
  /** Milliseconds since then, and the speed with `bytes` of this layer received. */
  seen(bytes: number): { readonly ms: number; readonly bytesPerSecond: number };
}

export function watchLink(clock: Clock, counters: Counters): Link {
  let begun: { readonly at: number; readonly nodeBytes: number; network(): number } | undefined;
  return {
    broken: false,
    begin(floor) {
      const at = clock.monotonic();
      const before = floor.elapsed(at);
      const network = () => floor.elapsed(clock.monotonic()) - before;
      begun ??= { at, nodeBytes: counters.bytesFetched, network };
    },
    seen(bytes) {
      if (begun === undefined) return { ms: 0, bytesPerSecond: 0 };
      const ms = clock.monotonic() - begun.at;
      // The link is the node's: a layer that shares it with others is not slow, nor one that its unpacking holds up.
      const node = (counters.bytesFetched - begun.nodeBytes) / Math.max(1, ms);
      const own = bytes / Math.max(1, begun.network());
      return { ms, bytesPerSecond: Math.max(node, own) * 1000 };
    },
  };
}

export interface Download {
  readonly descriptor: Descriptor;
  readonly from: LayerSource;
  /** For messages. */
  readonly what: string;
  readonly inlet: Inlet;
  readonly spool: Spool;
  readonly progress: ProgressTeller;
  readonly clock: Clock;
  readonly policy: FetchPolicy;
  readonly random: () => number;
  readonly counters: Counters;
  readonly link: Link;
  readonly signal: AbortSignal;
}

/**
 * Gives `inlet` and `spool` what they lack of the layer, not a byte more or less than its size, and each byte once.
 * Throws what the source throws, REGISTRY_UNAVAILABLE after too many tries without progress, and IMAGE_DIGEST_MISMATCH
 * for more bytes than the layer's.
 */
export async function download(options: Download): Promise<void> {
  const { descriptor, what, inlet, clock, policy, random, counters, link, signal } = options;
  const { size } = descriptor;
  const tries = countTries(policy, random, inlet.received);
  const short = () =>
    new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: the registry sent ${inlet.received} of ${size} bytes`);
  while (inlet.received < size) {
    try {
      await oneConnection(options);
      if (inlet.received >= size) return;
      throw short();
    } catch (caught) {
      const error = unavailable(requestError(caught, what, signal), what);
      if (signal.aborted || !isError(error, 'REGISTRY_UNAVAILABLE')) throw error;
      if (inlet.received >= size) return; // It broke after the last byte.
      const delay = tries.next(inlet.received);
      // 416: asked for what follows, it says that nothing does.
      if (delay === undefined) throw error.details['status'] === 416 ? short() : error;
      // With nothing here yet, nothing has broken: it was refused.
      if (inlet.received > 0) link.broken = true;
      counters.retries++;
      const asked = error.details['retryAfterMs'];
      // Too long a wait is for the next pull to keep, as for manifests.
      if (typeof asked === 'number' && asked > longestWait) throw error;
      await sleep(clock, delay + (typeof asked === 'number' ? asked : 0), signal);
    }
  }
}

/** Milliseconds until it is looked again whether the connection has stalled, and how fast it is. */
const lookEvery = (policy: FetchPolicy) => Math.min(1000, policy.stallMs / 6);

async function oneConnection(options: Download): Promise<void> {
  const { descriptor, from, what, inlet, spool, progress, clock, policy, counters, link } = options;
  const { size } = descriptor;
  const start = inlet.received;
  const stall = new AbortController();
  const signal = AbortSignal.any([options.signal, stall.signal]);
  const { body, offset } = await from.blob(descriptor, start, signal);
  if (offset > start) {
    discard(body);
    throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: the registry left out bytes from ${start} on`);
  }
  const floor = throughputFloor(policy, clock.monotonic());
  let at = offset;
  let first = true;

  const take = (chunk: Buffer): Promise<void> | undefined => {
    const now = clock.monotonic();
    if (first) link.begin(floor);
    first = false;
    at += chunk.length;
    counters.bytesFetched += chunk.length;
    floor.add(now, chunk.length);
    if (at > size) {
      throw new KeelsonError(
        'IMAGE_DIGEST_MISMATCH',
        `${what}: the registry sent more than its ${size} bytes`,
      );
    }
    const missing = at - inlet.received;
    let given: Promise<void> | undefined;
    let written: Promise<void> | undefined;
    if (missing > 0) {
      // A registry that cannot begin in the middle sends again what is here.
      const piece = missing === chunk.length ? chunk : chunk.subarray(chunk.length - missing);
      written = spool.push(piece);
      given = inlet.give(piece);
    }
    progress.bytes(now, inlet.received, chunk.length);
    if (written === undefined) return given;
    return given === undefined ? written : Promise.all([written, given]).then(() => {});
  };

  let cancel = () => {};
  const look = () => {
    const now = clock.monotonic();
    if (floor.stalled(now)) {
      const { minBytesPerSecond, stallMs } = policy;
      return stall.abort(
        new KeelsonError(
          'REGISTRY_UNAVAILABLE',
          `${what}: the connection has stalled: less than ${Math.max(1, minBytesPerSecond)} bytes a second for ${stallMs / 1000} s`,
        ),
      );
    }
    progress.bytes(now, inlet.received, 0);
    cancel = clock.after(lookEvery(policy), look);
  };
  cancel = clock.after(lookEvery(policy), look);
  try {
    await readAll(body, take, signal, (held) => {
      if (held) floor.hold(clock.monotonic());
      else floor.resume(clock.monotonic());
    });
  } finally {
    cancel();
  }
}
