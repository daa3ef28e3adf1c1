/** runtime.v1.ImageService of another runtime as the ImageService of runtime/api.ts. */
import { formatReference, imageIdOf, parseReference } from '../../../images/reference.ts';
import type { AuthConfig, ImageService } from '../../api.ts';
import { isError, KeelsonError } from '../../host/errors.ts';
import { answered, imageOf } from './answers.ts';
import type { Channel } from './channel.ts';
import { authTo, imageSpecTo } from './requests.ts';

/** `timeoutMs`: of every call but pulls, which take as long as they take. */
export function makeRemoteImages({ call }: Channel, timeoutMs: number): ImageService {
  /** Throws IMAGE_NAME_INVALID, which runtimes only say in words. */
  const spec = (image: string) => imageSpecTo({ image: fullName(image) });
  return {
    async listImages(filter) {
      const wanted = filter?.image === undefined ? undefined : { image: spec(filter.image) };
      const { images } = await call('ListImages', { filter: wanted }, { deadlineMs: timeoutMs });
      return images.map(imageOf);
    },
    async imageStatus({ image }) {
      const request = { image: spec(image) };
      try {
        const { image: found } = await call('ImageStatus', request, { deadlineMs: timeoutMs });
        return found && imageOf(found);
      } catch (error) {
        // The specification wants an empty answer.
        if (isError(error, 'NOT_FOUND')) return undefined;
        throw error;
      }
    },
    async pullImage({ image, runtimeHandler }, { auths = [], signal } = {}) {
      const wanted = { ...spec(image), runtimeHandler };
      let denied: unknown;
      for (const auth of [...auths, undefined] as (AuthConfig | undefined)[]) {
        try {
          const request = { image: wanted, auth: auth && authTo(auth) };
          const { imageRef } = await call('PullImage', request, { signal });
          return await idOf(imageRef);
        } catch (error) {
          const next = isError(error, 'IMAGE_PULL_DENIED', 'IMAGE_NOT_FOUND') && auth !== undefined;
          // What the given credentials were told says more than what nobody was told.
          denied ??= error;
          if (!next) throw isError(error, 'IMAGE_PULL_DENIED', 'IMAGE_NOT_FOUND') ? denied : error;
        }
      }
      throw denied;
    },
    async removeImage({ image }) {
      try {
        await call('RemoveImage', { image: spec(image) }, { deadlineMs: timeoutMs });
      } catch (error) {
        if (!isError(error, 'NOT_FOUND')) throw error;
      }
    },
    async imageFsInfo() {
      const { imageFilesystems } = await call('ImageFsInfo', {}, { deadlineMs: timeoutMs });
      const { fsId, usedBytes, inodesUsed } = answered(imageFilesystems[0], 'image_filesystems');
      return {
        mountpoint: answered(fsId, 'fs_id').mountpoint,
        usedBytes: Number(usedBytes?.value ?? 0n),
        usedInodes: Number(inodesUsed?.value ?? 0n),
      };
    },
  };

  /** Some runtimes answer a pull with a digest of the repository. */
  async function idOf(imageRef: string): Promise<string> {
    if (imageIdOf(imageRef) !== undefined) return imageRef;
    const request = { image: { image: imageRef } };
    const { image } = await call('ImageStatus', request, { deadlineMs: timeoutMs });
    if (image === undefined) {
      throw new KeelsonError('IMAGE_NOT_PRESENT', `image ${imageRef} was removed as soon as it was pulled`);
    }
    return image.id;
  }
}

/** With domain and tag, so that every runtime means the same; ids stay as they are. */
function fullName(image: string): string {
  return imageIdOf(image) === undefined ? formatReference(parseReference(image)) : image;
}
