/** The agent's side of images: with which credentials an image is pulled, how many at once, and who may have it. */
import type { ImageService } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { apiStatus } from '../apiserver/client.ts';
import type { ApiserverClient, ObjectCache, Secret } from '../apiserver/types.ts';
import { makeTokens } from '../volumes/tokens.ts';
import { type Credential, type CredentialSet, lookUp, setOfSecret } from './credentials/keyring.ts';
import { makeNodeConfig, nodeConfigCandidates } from './credentials/node_config.ts';
import { makeCredentialProviders, type PullingPod } from './credentials/provider.ts';
import { loadProviderConfig } from './credentials/provider_config.ts';
import { ofAllTries, otherCredentialMayHelp } from './failures.ts';
import { repositoryOf } from './image_name.ts';
import { makePullLimits } from './pull_limits.ts';
import { openPulledImages, type PulledImages } from './pulled_images.ts';
import type { VerificationPolicy } from './verification.ts';

export interface ImageAccess extends Pick<PulledImages, 'mustPull'> {
  /** `keelson.pullAlwaysFallback`. */
  readonly pullAlwaysFallback: boolean;
  /**
   * What `image` may be pulled with, in the order to be tried: the pod's secrets, the node's config.json, credential
   * providers. What could not be had or read is said in `warnings`. Throws only ABORTED.
   */
  credentials(
    image: string,
    pod: PullingPod & { readonly pullSecrets: readonly string[] },
    signal: AbortSignal,
  ): Promise<{ readonly credentials: readonly Credential[]; readonly warnings: readonly Warning[] }>;
  /**
   * Pulls with one credential after the other, within the node's limits, and records with which it succeeded.
   * Throws what the image service throws, and UNAVAILABLE for "pull QPS exceeded".
   */
  pull(
    image: string,
    credentials: readonly Credential[],
    signal: AbortSignal,
  ): Promise<{
    readonly id: string /** Milliseconds, without the waiting for other pulls. */;
    readonly tookMs: number;
  }>;
  /** The pod is gone. */
  forget(podUid: string): void;
  close(): Promise<void>;
}

/** For an event of the pod. */
export interface Warning {
  readonly reason: string;
  readonly message: string;
}

export interface ImageAccessOptions {
  readonly images: ImageService;
  readonly objects: Pick<ObjectCache, 'get'>;
  readonly client: ApiserverClient | undefined;
  readonly clock: Clock;
  readonly log: Logger;
  readonly kubeletDir: string;
  /** Where the node's docker configuration is looked for. Default: as kubelet, around `kubeletDir` and the home. */
  readonly nodeConfigFiles?: ReturnType<typeof nodeConfigCandidates>;
  readonly verification: VerificationPolicy;
  readonly allowlist: readonly string[];
  readonly qps: number;
  readonly burst: number;
  readonly parallelPulls: number | undefined;
  readonly pullAlwaysFallback: boolean;
  readonly providers: { readonly config: string; readonly binDir: string } | undefined;
}

const mayFail = 'attempting to pull the image may not succeed.';

/** Throws CONFIG_INVALID for providers that are not right, and what the file system throws. */
export async function makeImageAccess(options: ImageAccessOptions): Promise<ImageAccess> {
  const { images, objects, client, clock, log, kubeletDir } = options;
  const { providers: given } = options;
  const nodeConfig = makeNodeConfig(options.nodeConfigFiles ?? nodeConfigCandidates(kubeletDir), log);
  const providers = makeCredentialProviders({
    providers: given === undefined ? [] : await loadProviderConfig(given.config, given.binDir),
    client,
    tokens: makeTokens({ client, clock, log }),
    clock,
    log,
  });
  const limits = makePullLimits({
    qps: options.qps,
    burst: options.burst,
    parallel: options.parallelPulls,
    clock,
  });
  const pulled = await openPulledImages({
    kubeletDir,
    policy: options.verification,
    allowlist: options.allowlist,
    images,
    clock,
    log,
  });

  async function secretSets(
    namespace: string,
    names: readonly string[],
    signal: AbortSignal,
  ): Promise<{ sets: CredentialSet[]; warnings: Warning[] }> {
    const missing: string[] = [];
    const reason = 'FailedToRetrieveImagePullSecret';
    const warnings: Warning[] = [];
    const found = await Promise.all(
      names.map(async (name) => {
        try {
          return await objects.get<Secret>('secrets', namespace, name, signal);
        } catch (error) {
          if (signal.aborted) throw error;
          if (apiStatus(error) !== 404)
            log.warn({ err: error, namespace, secret: name }, 'cannot get a pull secret');
          missing.push(name);
          return undefined;
        }
      }),
    );
    if (missing.length > 0) {
      const message = `Unable to retrieve some image pull secrets (${missing.join(', ')}); ${mayFail}`;
      warnings.push({ reason, message });
    }
    const sets = found.flatMap((secret, index) => {
      if (secret === undefined) return [];
      const { set, faults } = setOfSecret(secret);
      if (faults.length > 0) {
        const shown = faults.slice(0, 3).join('; ') + (faults.length > 3 ? '; …' : '');
        const message = `Unable to read all of the image pull secret ${names[index]}: ${shown}; ${mayFail}`;
        warnings.push({ reason, message });
      }
      return [set];
    });
    return { sets, warnings };
  }

  return {
    pullAlwaysFallback: options.pullAlwaysFallback,
    async credentials(image, pod, signal) {
      const repository = repositoryOf(image);
      if (repository === undefined) return { credentials: [], warnings: [] };
      const [secrets, entries, provided] = await Promise.all([
        secretSets(pod.namespace, pod.pullSecrets, signal),
        nodeConfig.read(),
        providers.provide(repository, pod, signal),
      ]);
      const failures = provided.failures.map(({ provider, message }) => ({
        reason: 'FailedCredentialProvider',
        message: `Credential provider ${provider} gave no credentials for ${repository}: ${message}; ${mayFail}`,
      }));
      return {
        credentials: [secrets.sets, [{ source: { kind: 'node' as const }, entries }], provided.sets].flatMap(
          (sets) => lookUp(repository, sets),
        ),
        warnings: [...secrets.warnings, ...failures],
      };
    },
    mustPull: pulled.mustPull,
    async pull(image, credentials, signal) {
      try {
        await pulled.begin(image);
      } catch (error) {
        // Pulled all the same, nobody could say later who may have it.
        throw new KeelsonError(
          'FAILED_PRECONDITION',
          `Failed to record image pull intent for container image "${image}"`,
          { cause: error },
        );
      }
      let credential: Credential | undefined;
      let id: string | undefined;
      try {
        const leave = await limits.enter(
          JSON.stringify([image, credentials.map(({ hash }) => hash)]),
          signal,
        );
        const begun = clock.monotonic();
        try {
          ({ id, credential } = await tryEach(images, image, credentials, signal));
        } finally {
          leave();
        }
        return { id, tookMs: clock.monotonic() - begun };
      } finally {
        if (id === undefined) await pulled.failed(image);
        else await pulled.succeeded(image, id, credential);
      }
    },
    forget: providers.forget,
    close: providers.close,
  };
}

async function tryEach(
  images: ImageService,
  image: string,
  credentials: readonly Credential[],
  signal: AbortSignal,
): Promise<{ id: string; credential: Credential | undefined }> {
  const errors: unknown[] = [];
  for (const credential of credentials.length === 0 ? [undefined] : credentials) {
    try {
      const auths = credential === undefined ? [] : [credential.auth];
      return { id: await images.pullImage({ image }, { auths, signal }), credential };
    } catch (error) {
      if (signal.aborted || isError(error, 'IMAGE_NAME_INVALID')) throw error;
      errors.push(error);
      if (!otherCredentialMayHelp(error)) break;
    }
  }
  throw ofAllTries(errors);
}
