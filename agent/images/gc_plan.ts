/** Which images go, by kubelet's rules (pkg/kubelet/images/image_gc_manager.go). Pure. */
import type { ImageUse } from '../../runtime/api.ts';

export interface ImageGcThresholds {
  /** Percent of the file system of images from which on images are removed… */
  readonly highPercent: number;
  /** …until no more than so many are used. */
  readonly lowPercent: number;
  /** Milliseconds: an image that was used within them stays. */
  readonly minimumAgeMs: number;
  /** Milliseconds: an image that has not been used for longer goes, however much space there is. 0: never. */
  readonly maximumAgeMs: number;
}

/** Of the file system of images. */
export interface DiskUsage {
  readonly capacityBytes: number;
  readonly availableBytes: number;
  /** Something has just failed for want of space: whatever can go goes. */
  readonly full?: boolean;
}

export interface ImageGcPlan {
  /** Ids, in the order of their removal: the one that nobody has used for longest first. */
  readonly remove: readonly string[];
  /** Bytes that must come free to be at the low threshold again; 0 below the high one. */
  readonly wantedBytes: number;
  /** Bytes that come free with `remove`. */
  readonly freedBytes: number;
}

/** Is the node at or over the high threshold, or full? */
export function isOverThreshold(usage: DiskUsage, thresholds: ImageGcThresholds): boolean {
  const { capacityBytes, availableBytes, full } = usage;
  if (full) return true;
  if (capacityBytes <= 0) return false;
  return 100 - Math.floor((availableBytes * 100) / capacityBytes) >= thresholds.highPercent;
}

/**
 * `now`: Unix milliseconds. An image that is in use or pinned never goes, nor one whose removal would free nothing
 * because images that stay have all its layers. What was used in the future (the clock was set back) was used just now.
 */
export function planImageGc(
  images: readonly ImageUse[],
  usage: DiskUsage,
  thresholds: ImageGcThresholds,
  now: number,
): ImageGcPlan {
  const { lowPercent, minimumAgeMs, maximumAgeMs } = thresholds;
  const ageOf = ({ lastUsedAt }: ImageUse) => Math.max(0, now - lastUsedAt);
  const isOld = (image: ImageUse) => maximumAgeMs > 0 && ageOf(image) > maximumAgeMs;
  const mayGo = (image: ImageUse) =>
    !image.inUse && !image.pinned && (isOld(image) || ageOf(image) >= minimumAgeMs);
  const going = images.filter(mayGo).sort((a, b) => a.lastUsedAt - b.lastUsedAt || (a.id < b.id ? -1 : 1));

  const stayingLayers = new Set<string>();
  /** How many of the images that are left have each layer. */
  const users = new Map<string, number>();
  for (const image of images) {
    for (const { diffId } of image.layers) {
      users.set(diffId, (users.get(diffId) ?? 0) + 1);
      if (!mayGo(image)) stayingLayers.add(diffId);
    }
  }
  const remove: string[] = [];
  let freedBytes = 0;
  const take = (image: ImageUse) => {
    remove.push(image.id);
    for (const { diffId, size } of image.layers) {
      const left = users.get(diffId)! - 1;
      users.set(diffId, left);
      if (left === 0) freedBytes += size;
    }
  };

  for (const image of going) if (isOld(image)) take(image);
  if (!isOverThreshold(usage, thresholds)) return { remove, wantedBytes: 0, freedBytes };

  const { capacityBytes, availableBytes, full } = usage;
  const wantedBytes = Math.max(0, Math.ceil((capacityBytes * (100 - lowPercent)) / 100 - availableBytes));
  for (const image of going) {
    if (!full && freedBytes >= wantedBytes) break;
    const helps = image.layers.some(({ diffId, size }) => size > 0 && !stayingLayers.has(diffId));
    if (helps && !isOld(image)) take(image);
  }
  return { remove, wantedBytes, freedBytes };
}
