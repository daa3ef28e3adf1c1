/** image volumes: the files of an image. It is pulled with the container's own, and the runtime mounts it. */
import type { VolumeKind } from './kind.ts';

export function imageKind(): VolumeKind {
  return {
    has: ({ image }) => !!image,
    setUp: async ({ source: { image } }) => ({ hostPath: '', readOnly: true, image: image?.reference ?? '' }),
  };
}
