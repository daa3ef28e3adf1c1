/** Making sure that a container's image is there. */
import type { AuthConfig } from '../../../runtime/api.ts';
import { describe, isError, KeelsonError, reasonOf } from '../../../runtime/host/errors.ts';
import { apiStatus } from '../../apiserver/client.ts';
import type { PodContainer, Secret } from '../../apiserver/types.ts';
import { authsFor, pullPolicyOf } from '../images.ts';
import { failedAgain, imageBackoff } from '../plan/backoff.ts';
import { namespaceOf } from '../spec/pod.ts';
import { type ActionContext, interrupted, type MemoryUpdate, tell } from './context.ts';

export async function ensureImage(
  context: ActionContext,
  container: PodContainer,
  attempt: number,
): Promise<MemoryUpdate> {
  const { name } = container;
  try {
    const imageId = await presentOrPulled(context, container);
    context.stage('pullEnd');
    return (memory) => ({ ...memory, images: { ...memory.images, [name]: { attempt, imageId } } });
  } catch (error) {
    if (interrupted(context)) throw error;
    const reason = reasonOf(error, 'ErrImagePull');
    if (isError(error, 'IMAGE_NAME_INVALID')) {
      const message = `Failed to apply default image tag "${container.image}": ${describe(error)}`;
      tell(context, name, 'Warning', 'InspectFailed', message);
    }
    tell(context, name, 'Warning', 'Failed', `Error: ${reason}`);
    return (memory) => {
      const failure = failedAgain(
        memory.images[name]?.failure,
        reason,
        describe(error),
        context.clock.now(),
        imageBackoff,
      );
      return { ...memory, images: { ...memory.images, [name]: { attempt, failure } } };
    };
  }
}

async function presentOrPulled(context: ActionContext, container: PodContainer): Promise<string> {
  const { images, clock, signal } = context;
  const { name, image = '' } = container;
  const policy = pullPolicyOf(container);
  if (policy !== 'Always') {
    const present = await images.imageStatus({ image });
    if (present !== undefined) {
      tell(context, name, 'Normal', 'Pulled', `Container image "${image}" already present on machine`);
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
  const auths = await credentials(context, image);
  context.stage('pullStart');
  tell(context, name, 'Normal', 'Pulling', `Pulling image "${image}"`);
  const begun = clock.monotonic();
  let id: string;
  try {
    id = await images.pullImage({ image }, { auths, signal });
  } catch (error) {
    if (!interrupted(context) && !isError(error, 'IMAGE_NAME_INVALID')) {
      tell(context, name, 'Warning', 'Failed', `Failed to pull image "${image}": ${describe(error)}`);
    }
    throw error;
  }
  const took = seconds(clock.monotonic() - begun);
  const size = (await images.imageStatus({ image: id }))?.size ?? 0;
  tell(
    context,
    name,
    'Normal',
    'Pulled',
    `Successfully pulled image "${image}" in ${took} (${took} including waiting). Image size: ${size} bytes.`,
  );
  return id;
}

function seconds(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)}ms` : `${(ms / 1000).toFixed(3).replace(/\.?0+$/, '')}s`;
}

/** What the pod's pull secrets hold for the image. A missing secret is told of, and the pull goes on without it. */
async function credentials(context: ActionContext, image: string): Promise<readonly AuthConfig[]> {
  const { pod, objects, signal } = context;
  const names = (pod.spec?.imagePullSecrets ?? []).flatMap(({ name }) => (name ? [name] : []));
  const missing: string[] = [];
  const secrets = await Promise.all(
    names.map(async (name) => {
      try {
        return await objects.get<Secret>('secrets', namespaceOf(pod), name, signal);
      } catch (error) {
        if (interrupted(context)) throw error;
        if (apiStatus(error) !== 404)
          context.log.warn({ err: error, secret: name }, 'cannot read a pull secret');
        missing.push(name);
        return undefined;
      }
    }),
  );
  if (missing.length > 0) {
    tell(
      context,
      undefined,
      'Warning',
      'FailedToRetrieveImagePullSecret',
      `Unable to retrieve some image pull secrets (${missing.join(', ')}); attempting to pull the image may not succeed.`,
    );
  }
  return authsFor(
    image,
    secrets.filter((secret) => secret !== undefined),
  );
}
