/** The verbs about images: requests are checked here, names and ids are found, the image service does the work. */
import { isAbsolute } from 'node:path';
import type { ArchiveFormat, AuthConfig, Image, ImageArchives, ImageService } from '../../runtime/api.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { CallOptions, Verb, Verbs } from './protocol.ts';
import { flagOf, type Request, textOf } from './request.ts';

/** Does one verb. `request` is whatever came over the wire. */
export type Handler<V extends Verb> = (
  request: Request,
  options: CallOptions<V>,
) => Promise<Verbs[V]['result']>;
export type Handlers = { readonly [V in Verb]: Handler<V> };
export type ImageHandlers = Pick<Handlers, Extract<Verb, `images/${string}`>>;

export interface ImageVerbsOptions {
  readonly images: ImageService & Partial<ImageArchives>;
  /** The node's own credentials for an image, for pulls that bring none. */
  readonly authsFor?: (image: string, signal: AbortSignal) => Promise<readonly AuthConfig[]>;
}

const formats: readonly string[] = ['docker-archive', 'oci-archive', 'oci-layout'] satisfies ArchiveFormat[];

export function imageVerbs({ images, authsFor }: ImageVerbsOptions): ImageHandlers {
  /** A name or a whole id, then the beginning of an id. Throws IMAGE_NOT_PRESENT, INVALID_ARGUMENT where it is not one. */
  const find = async (text: string): Promise<{ image: Image; known: string }> => {
    const beginning = /^(?:sha256:)?([0-9a-f]{4,64})$/.exec(text)?.[1];
    try {
      const image = await images.imageStatus({ image: text });
      if (image !== undefined) return { image, known: text };
    } catch (error) {
      // `sha256:` and a few digits are no name, but may be the beginning of an id.
      if (beginning === undefined) throw error;
    }
    const all = beginning === undefined ? [] : await images.listImages();
    const begun = all.filter(({ id }) => id.startsWith(`sha256:${beginning}`));
    if (begun.length > 1) {
      const ids = begun.map(({ id }) => id.slice(0, 7 + Math.max(12, beginning!.length + 4))).join(', ');
      throw new KeelsonError(
        'INVALID_ARGUMENT',
        `${text} is the beginning of ${begun.length} image ids: ${ids}`,
        {
          hint: 'give more of it',
        },
      );
    }
    if (begun.length === 1) return { image: begun[0]!, known: begun[0]!.id };
    throw new KeelsonError('IMAGE_NOT_PRESENT', `image ${text} is not present on this node`, {
      hint: "'keelson images' lists what is",
    });
  };
  const archives = (): ImageArchives => {
    const { importImages, exportImages, verifyImages } = images;
    if (importImages === undefined || exportImages === undefined || verifyImages === undefined) {
      throw new KeelsonError('UNIMPLEMENTED', 'this image service has no archives and no verification');
    }
    return { importImages, exportImages, verifyImages };
  };

  return {
    'images/list': () => images.listImages(),
    async 'images/pull'(request, { signal, onProgress }) {
      const image = textOf(request, 'image');
      const auths = authsOf(request['auths']) ?? (await authsFor?.(image, signal)) ?? [];
      const id = await images.pullImage({ image }, { auths, signal, onProgress });
      const pulled = await images.imageStatus({ image: id });
      if (pulled !== undefined) return pulled;
      throw new KeelsonError('IMAGE_NOT_PRESENT', `image ${image} was removed as soon as it was pulled`);
    },
    async 'images/remove'(request) {
      const { image } = await find(textOf(request, 'image'));
      await images.removeImage({ image: image.id });
      return { id: image.id, names: [...image.repoTags, ...image.repoDigests] };
    },
    async 'images/import'(request, { signal, onProgress }) {
      const path = pathOf(request);
      return archives().importImages(path, { pin: flagOf(request, 'pin'), signal, onProgress });
    },
    async 'images/export'(request, { signal }) {
      const path = pathOf(request);
      const { format, images: wanted } = request;
      if (typeof format !== 'string' || !formats.includes(format)) {
        throw new KeelsonError('INVALID_ARGUMENT', `format: one of ${formats.join(', ')} is expected`);
      }
      if (
        !Array.isArray(wanted) ||
        wanted.length === 0 ||
        !wanted.every((name) => typeof name === 'string')
      ) {
        throw new KeelsonError('INVALID_ARGUMENT', 'images: names or ids of images are expected');
      }
      const { exportImages } = archives();
      const found: string[] = [];
      for (const name of wanted as string[]) found.push((await find(name)).known);
      await exportImages(found, path, { format: format as ArchiveFormat, signal });
      return { images: found };
    },
    'images/verify': async (request, { signal, onProgress }) =>
      archives().verifyImages({ repair: flagOf(request, 'repair'), signal, onLayer: onProgress }),
  };
}

function pathOf(request: Request): string {
  const path = textOf(request, 'path');
  if (isAbsolute(path) && !path.includes('\0')) return path;
  throw new KeelsonError('INVALID_ARGUMENT', 'path: an absolute path is expected');
}

const authFields = [
  'username',
  'password',
  'auth',
  'serverAddress',
  'identityToken',
  'registryToken',
] as const;

/** Undefined where none were given. What is wrong with them is said without their content. */
function authsOf(value: unknown): AuthConfig[] | undefined {
  if (value === undefined || value === null) return undefined;
  const wrong = () => new KeelsonError('INVALID_ARGUMENT', 'auths: a list of credentials is expected');
  if (!Array.isArray(value)) throw wrong();
  return value.map((entry: unknown) => {
    if (typeof entry !== 'object' || entry === null || Array.isArray(entry)) throw wrong();
    const auth: Record<string, string> = {};
    for (const name of authFields) {
      const field = (entry as Record<string, unknown>)[name];
      if (typeof field === 'string') auth[name] = field;
      else if (field !== undefined && field !== null) throw wrong();
    }
    return auth;
  });
}
