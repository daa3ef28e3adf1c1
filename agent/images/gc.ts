/**
 * Garbage collection of images: in kubelet's rhythm, since a disk that fills tells nobody, and at once when something
 * failed for want of space.
 */
import type { ImageCollector } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { describe } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { EventRecorder, Pod } from '../apiserver/types.ts';
import type { SlowCollector } from './foreign_collector.ts';
import { type DiskUsage, type ImageGcThresholds, isOverThreshold, planImageGc } from './gc_plan.ts';

export interface ImageGcOptions {
  readonly images: ImageCollector | SlowCollector;
  /** Pods whose images are not to go, whether they have started or not. */
  readonly pods: () => readonly Pod[];
  /** Of the file system of images; zeros where it cannot be read. */
  readonly disk: () => Promise<Omit<DiskUsage, 'full'>>;
  readonly thresholds: ImageGcThresholds;
  readonly nodeName: string;
  readonly events: EventRecorder;
  readonly clock: Clock;
  readonly log: Logger;
  /** Milliseconds between two runs. Default: kubelet's five minutes. */
  readonly periodMs?: number;
}

export interface ImageGc {
  /** Something failed for want of space: collect now. */
  spaceRanOut(): void;
  close(): Promise<void>;
}

/** So long the layers of a pull that was broken off are there for the next try. */
const brokenOffMs = 3_600_000;

export function startImageGc(options: ImageGcOptions): ImageGc {
  const { images, disk, thresholds, nodeName, events, clock, log, periodMs = 300_000 } = options;
  const about = { apiVersion: 'v1', kind: 'Node', metadata: { name: nodeName } };
  const isOff = thresholds.highPercent === 100 && thresholds.maximumAgeMs === 0;
  let failedBefore = false;
  let full = false;
  let running: Promise<void> | undefined;
  let closed = false;
  let cancel = () => {};

  /** Returns what is wrong, where it did not free what it should. */
  const collect = async (ranOut: boolean): Promise<string | undefined> => {
    const { capacityBytes, availableBytes } = await disk();
    if (closed) return undefined;
    if (capacityBytes <= 0 && !ranOut) {
      const message = `invalid capacity ${capacityBytes} on image filesystem`;
      events.event(about, 'Warning', 'InvalidDiskCapacity', message);
      return message;
    }
    const before = { capacityBytes, availableBytes, full: ranOut };
    const isOver = isOverThreshold(before, thresholds);
    // From here on nothing waits, where the images are our own: neither a container nor a pull can come between the look
    // and the removal.
    const layers = images.collectLayers(isOver ? thresholds.minimumAgeMs : brokenOffMs);
    const leftovers = layers instanceof Promise ? await layers : layers;
    const usage = { ...before, availableBytes: availableBytes + leftovers };
    const found = images.imageUse(options.pods().flatMap(imagesOf));
    const use = found instanceof Promise ? await found : found;
    const plan = planImageGc(use, usage, thresholds, clock.now());
    const removed: string[] = [];
    for (const id of plan.remove) {
      const gone = images.collectImage(id);
      if (gone instanceof Promise ? await gone : gone) removed.push(id);
    }
    const freed = plan.freedBytes + leftovers;
    if (freed > 0 || removed.length > 0) {
      log.info({ images: removed, bytes: freed }, 'images that nobody needs were removed');
    }
    const nothingWent = ranOut && freed === 0;
    if (plan.freedBytes >= plan.wantedBytes && !nothingWent) return undefined;
    const message =
      `Failed to garbage collect required amount of images. Attempted to free ${plan.wantedBytes + leftovers} bytes, ` +
      `but only found ${freed} bytes eligible to free.`;
    events.event(about, 'Warning', 'FreeDiskSpaceFailed', message);
    return message;
  };

  const run = async () => {
    const ranOut = full;
    full = false;
    const problem = await collect(ranOut).catch(describe);
    if (problem !== undefined) {
      log.warn({ problem }, 'garbage collection of images failed');
      // As kubelet has it: once does not count.
      if (failedBefore) events.event(about, 'Warning', 'ImageGCFailed', problem);
    }
    failedBefore = problem !== undefined;
  };
  const start = () => {
    cancel();
    running ??= run().finally(() => {
      running = undefined;
      if (closed) return;
      if (full) start();
      else cancel = clock.after(periodMs, start);
    });
  };
  // Not at once: the pods of the node are not known yet.
  if (!isOff) cancel = clock.after(periodMs, start);

  return {
    spaceRanOut() {
      if (isOff || closed) return;
      full = true;
      start();
    },
    async close() {
      closed = true;
      cancel();
      await running;
    },
  };
}

/** References of all images that a pod runs or mounts; none of one that has ended for good. */
export function imagesOf(pod: Pod): string[] {
  const { phase } = pod.status ?? {};
  if (phase === 'Succeeded' || phase === 'Failed') return [];
  const { initContainers = [], containers = [], ephemeralContainers = [], volumes = [] } = pod.spec ?? {};
  const mounted = volumes.map((volume) => (volume as { image?: { reference?: string } }).image?.reference);
  return [
    ...[...initContainers, ...containers, ...ephemeralContainers].map(({ image }) => image),
    ...mounted,
  ].filter((image): image is string => image !== undefined && image !== '');
}
