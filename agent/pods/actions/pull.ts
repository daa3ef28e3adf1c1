/** Making sure that a container's image, and those that it mounts, are there, and that the pod may have them. */
import type { Image } from '../../../runtime/api.ts';
import { describe, isError, KeelsonError } from '../../../runtime/host/errors.ts';
import type { Pod, PodContainer } from '../../apiserver/types.ts';
import type { Credential } from '../../images/credentials/keyring.ts';
import { noRegistryAnswered, pullFailure } from '../../images/failures.ts';
import type { VolumeSource } from '../../volumes/kinds/kind.ts';
import { type PullPolicy, pullPolicyOf } from '../images.ts';
import { failedAgain, imageBackoff } from '../plan/backoff.ts';
import { namespaceOf, uidOf } from '../spec/pod.ts';
import { type ActionContext, interrupted, type MemoryUpdate, tell } from './context.ts';

/** The image service itself failed, before anything was pulled. */
const inspectReason = 'ImageInspectError';
/** Says the same whether there is no copy or one that the pod may not have: its owner is not to learn which. */
const noCopy =
  'no copy on this node can be used instead: there is none, or it is not verified that this pod has access to it';

/** An image that is wanted, and who is told of it: a container, or the pod for its volumes. */
interface Wanted {
  readonly name: string | undefined;
  readonly image: string;
  readonly policy: PullPolicy;
}

export async function ensureImage(
  context: ActionContext,
  container: PodContainer,
  attempt: number,
): Promise<MemoryUpdate> {
  const { name, image = '' } = container;
  let wanted: Wanted = { name, image, policy: pullPolicyOf(container) };
  try {
    const imageId = await presentOrPulled(context, wanted);
    const volumeImages: Record<string, string> = {};
    for (wanted of mountedImages(context.pod, container)) {
      volumeImages[wanted.image] = await presentOrPulled(context, wanted);
    }
    context.stage('pullEnd');
    const present = { attempt, image, imageId, volumeImages };
    return (memory) => ({ ...memory, images: { ...memory.images, [name]: present } });
  } catch (error) {
    if (interrupted(context)) throw error;
    const { reason, message } =
      isError(error) && error.details['reason'] === inspectReason
        ? { reason: inspectReason, message: describe(error) }
        : pullFailure(wanted.image, error);
    if (isError(error, 'IMAGE_NAME_INVALID')) {
      const text = `Failed to apply default image tag "${wanted.image}": ${describe(error)}`;
      tell(context, wanted.name, 'Warning', 'InspectFailed', text);
    }
    tell(context, name, 'Warning', 'Failed', `Error: ${reason}`);
    const failed = wanted.image;
    return (memory) => {
      const before = memory.images[name];
      const failure = failedAgain(
        before?.image === undefined || before.image === image ? before?.failure : undefined,
        reason,
        message,
        context.clock.now(),
        imageBackoff,
      );
      return {
        ...memory,
        images: {
          ...memory.images,
          [name]: { attempt, image, failure, ...(failed === image ? {} : { failed }) },
        },
      };
    };
  }
}

/** The images of the volumes that the container mounts. */
function mountedImages(pod: Pod, { volumeMounts = [] }: PodContainer): Wanted[] {
  const mounted = new Set(volumeMounts.map(({ name }) => name));
  return (pod.spec?.volumes ?? []).flatMap((volume) => {
    const { image } = volume as VolumeSource;
    if (!image || !mounted.has(volume.name)) return [];
    const { reference = '', pullPolicy } = image;
    const policy = pullPolicyOf({ image: reference, imagePullPolicy: pullPolicy });
    return [{ name: undefined, image: reference, policy }];
  });
}

async function presentOrPulled(context: ActionContext, wanted: Wanted): Promise<string> {
  const { imageAccess } = context;
  const { name, image, policy } = wanted;
  // Asked for once, and not before it is known that they matter.
  let asked: ReturnType<typeof credentialsOf> | undefined;
  const found = () => (asked ??= credentialsOf(context, image));
  const credentials = async () => (await found()).credentials;
  if (policy !== 'Always') {
    const present = await inspect(context, image);
    if (present !== undefined && !(await imageAccess.mustPull(image, present.id, credentials))) {
      const text = `Container image "${image}" already present on machine and can be accessed by the pod`;
      tell(context, name, 'Normal', 'Pulled', text);
      return present.id;
    }
    if (policy === 'Never') {
      const message = `Container image "${image}" is not present with pull policy of Never`;
      tell(context, name, 'Warning', 'ErrImageNeverPull', message);
      throw new KeelsonError('IMAGE_NOT_PRESENT', message, {
        hint: 'import the image on the node, or set imagePullPolicy to IfNotPresent',
      });
    }
  }
  const { credentials: given, warnings } = await found();
  try {
    return await pulled(context, wanted, given);
  } catch (error) {
    if (interrupted(context) || isError(error, 'IMAGE_NAME_INVALID')) throw error;
    // What lacks is told where it may be why.
    for (const { reason, message } of warnings) tell(context, undefined, 'Warning', reason, message);
    const failed = (why: unknown) => {
      tell(context, name, 'Warning', 'Failed', `Failed to pull image "${image}": ${describe(why)}`);
      return why;
    };
    const wantsCopy = policy !== 'Always' || imageAccess.pullAlwaysFallback;
    if (!wantsCopy || !noRegistryAnswered(error)) throw failed(error);
    const present = policy === 'Always' ? await inspect(context, image) : undefined;
    // The copy is for those who might have it with IfNotPresent: Always is often set to keep others from it.
    if (present === undefined || (await imageAccess.mustPull(image, present.id, credentials)))
      throw failed(withoutCopy(error));
    const copy = present.repoDigests[0] ?? present.id;
    const text = `No registry could be reached for image "${image}", so the copy on this node (${copy}) is used, which may not be the newest: ${describe(error)}`;
    tell(context, name, 'Warning', 'LocalImageUsed', text);
    return present.id;
  }
}

async function inspect({ images }: ActionContext, image: string): Promise<Image | undefined> {
  try {
    return await images.imageStatus({ image });
  } catch (error) {
    if (isError(error, 'IMAGE_NAME_INVALID')) throw error;
    throw new KeelsonError('INTERNAL', `Failed to inspect image "${image}"`, {
      cause: error,
      details: { reason: inspectReason },
    });
  }
}

async function pulled(
  context: ActionContext,
  { name, image }: Wanted,
  credentials: readonly Credential[],
): Promise<string> {
  const { images, imageAccess, clock, signal } = context;
  context.stage('pullStart');
  tell(context, name, 'Normal', 'Pulling', `Pulling image "${image}"`);
  const begun = clock.monotonic();
  const { id, tookMs } = await imageAccess.pull(image, credentials, signal);
  const all = seconds(clock.monotonic() - begun);
  const size = (await images.imageStatus({ image: id }))?.size ?? 0;
  const text = `Successfully pulled image "${image}" in ${seconds(tookMs)} (${all} including waiting). Image size: ${size} bytes.`;
  tell(context, name, 'Normal', 'Pulled', text);
  return id;
}

function withoutCopy(error: unknown): unknown {
  if (!isError(error)) return error;
  return new KeelsonError(error.code, `${describe(error)}; ${noCopy}`, {
    details: error.details,
  });
}

function seconds(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)}ms` : `${(ms / 1000).toFixed(3).replace(/\.?0+$/, '')}s`;
}

/** The image's credentials for this pod, and what is wrong with some of them. */
function credentialsOf({ pod, imageAccess, signal }: ActionContext, image: string) {
  return imageAccess.credentials(
    image,
    {
      namespace: namespaceOf(pod),
      name: pod.metadata?.name ?? '',
      uid: uidOf(pod),
      serviceAccount: pod.spec?.serviceAccountName ?? '',
      // The service account's own pull secrets are put here by the apiserver's ServiceAccount admission.
      pullSecrets: (pod.spec?.imagePullSecrets ?? []).flatMap(({ name }) => (name ? [name] : [])),
    },
    signal,
  );
}
