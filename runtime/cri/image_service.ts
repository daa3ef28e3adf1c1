/** runtime.v1.ImageService over the image service of the process. */
import type { Image, ImageService } from '../api.ts';
import type { Clock } from '../host/clock.ts';
import { authOf, imageSpecOf } from './from_wire.ts';
import type { ImageHandlers } from './handlers.ts';
import { sendInParts } from './parts.ts';
import { imageTo, infoOf, nanoseconds } from './to_wire.ts';
import type { Wire } from './wire/types.ts';

export interface ImageServiceOptions {
  readonly images: ImageService;
  readonly clock: Clock;
  /** What the verbose status of an image tells besides. */
  describe?(image: Image): Readonly<Record<string, unknown>>;
}

export function makeImageHandlers({ images, clock, describe }: ImageServiceOptions): ImageHandlers {
  const list = async (filter: Wire<'ImageFilter'> | undefined) => {
    const image = filter?.image?.image;
    return (await images.listImages(image ? { image } : undefined)).map(imageTo);
  };
  return {
    ListImages: async ({ filter }) => ({ images: await list(filter) }),
    StreamImages: async ({ filter }, call) =>
      sendInParts('Image', await list(filter), (part) => call.send({ images: part })),
    async ImageStatus({ image, verbose }) {
      const found = await images.imageStatus(imageSpecOf(image));
      if (found === undefined) return {};
      return { image: imageTo(found), info: verbose ? infoOf({ info: describe?.(found) ?? {} }) : {} };
    },
    async PullImage({ image, auth }, { signal }) {
      return { imageRef: await images.pullImage(imageSpecOf(image), { auths: authOf(auth), signal }) };
    },
    async RemoveImage({ image }) {
      await images.removeImage(imageSpecOf(image));
      return {};
    },
    async ImageFsInfo() {
      const { mountpoint, usedBytes, usedInodes } = await images.imageFsInfo();
      const usage = {
        timestamp: nanoseconds(clock.now()),
        fsId: { mountpoint },
        usedBytes: { value: usedBytes },
        inodesUsed: { value: usedInodes },
      };
      return { imageFilesystems: [usage], containerFilesystems: [usage] };
    },
  };
}
