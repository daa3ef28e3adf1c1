/** What garbage collection wants of the images of another runtime, which knows nothing of their use: kubelet's way. */
import type { ImageCollector, ImageService, RuntimeService } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import type { Logger } from '../../runtime/host/log.ts';

export interface ForeignCollectorOptions {
  readonly runtime: Pick<RuntimeService, 'listContainers'>;
  readonly images: Pick<ImageService, 'listImages' | 'imageStatus' | 'removeImage'>;
  readonly clock: Clock;
  readonly log: Logger;
}

/** The same questions with answers that take a while. */
export type SlowCollector = {
  readonly [Name in keyof ImageCollector]: (
    ...args: Parameters<ImageCollector[Name]>
  ) => Promise<ReturnType<ImageCollector[Name]>>;
};

/**
 * An image was used last when it was seen in use last, else when it was seen first: nothing of it is kept over a restart,
 * after which every image is as young as if it had just come.
 */
export function makeForeignCollector(options: ForeignCollectorOptions): SlowCollector {
  const { runtime, images, clock, log } = options;
  const lastUsed = new Map<string, number>();
  return {
    async imageUse(wanted) {
      const [all, containers] = await Promise.all([images.listImages(), runtime.listContainers()]);
      const used = new Set(containers.flatMap(({ image, imageRef }) => [image, imageRef]));
      for (const image of new Set(wanted)) {
        // A name that is not valid means no image.
        const found = await images.imageStatus({ image }).catch(() => undefined);
        if (found !== undefined) used.add(found.id);
      }
      const now = clock.now();
      const use = all.map(({ id, repoTags, repoDigests, pinned, size }) => {
        const inUse = [id, ...repoTags, ...repoDigests].some((name) => used.has(name));
        const lastUsedAt = inUse ? now : (lastUsed.get(id) ?? now);
        return { id, pinned, inUse, lastUsedAt, layers: [{ diffId: id, size }] };
      });
      lastUsed.clear();
      for (const { id, lastUsedAt } of use) lastUsed.set(id, lastUsedAt);
      return use;
    },
    async collectImage(id) {
      try {
        await images.removeImage({ image: id });
        return true;
      } catch (error) {
        log.warn({ err: error, image: id }, 'an image that nobody needs cannot be removed');
        return false;
      }
    },
    /** What a broken-off pull leaves is the other runtime's own matter. */
    collectLayers: async () => 0,
  };
}
