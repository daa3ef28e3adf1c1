/** The cluster's ClusterTrustBundles: followed from the first time that a pod wants one, as kubelet does. */
import type { Clock } from '../../../runtime/host/clock.ts';
import { abortError, KeelsonError } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import { apiStatus } from '../../apiserver/answers.ts';
import { abortable } from '../../apiserver/credentials.ts';
import { reflect } from '../../apiserver/reflector.ts';
import type { ApiserverClient, KubeObject } from '../../apiserver/types.ts';
import { type Bundle, type LabelSelector, selects, trustAnchors } from './anchors.ts';

/** core/v1 ClusterTrustBundleProjection. */
export interface TrustProjection {
  readonly name?: string;
  readonly signerName?: string;
  readonly labelSelector?: LabelSelector;
  readonly optional?: boolean;
  readonly path: string;
}

export interface Trust {
  /** The certificates in PEM. Throws VOLUME_FAILED with kubelet's words, API_UNREACHABLE, API_STATUS, ABORTED. */
  anchors(projection: TrustProjection, signal: AbortSignal | undefined): Promise<string>;
}

export interface TrustOptions {
  readonly client: ApiserverClient | undefined;
  readonly clock: Clock;
  readonly log: Logger;
  /** Ends the watch. */
  readonly ending?: AbortSignal | undefined;
}

interface TrustObject extends KubeObject {
  readonly spec?: { readonly signerName?: string; readonly trustBundle?: string };
}

/** Newest first. */
const versions = ['v1', 'v1beta1', 'v1alpha1'];
/** Milliseconds that the first list may take. */
const syncMs = 10_000;

export function makeTrust({ client, clock, log, ending }: TrustOptions): Trust {
  const bundles = new Map<string, Bundle>();
  let following: Promise<{ readonly synced: Promise<void> }> | undefined;

  const put = ({ metadata, spec }: TrustObject) =>
    bundles.set(metadata?.name ?? '', {
      name: metadata?.name ?? '',
      signerName: spec?.signerName ?? '',
      labels: metadata?.labels ?? {},
      trustBundle: spec?.trustBundle ?? '',
    });

  /** The first version that the apiserver has them in. */
  async function servedPath(from: ApiserverClient): Promise<string> {
    for (const version of versions) {
      const group = `/apis/certificates.k8s.io/${version}`;
      try {
        const { resources } = await from.get<{ resources?: readonly { name: string }[] }>(
          group,
          ending === undefined ? {} : { signal: ending },
        );
        if (resources?.some(({ name }) => name === 'clustertrustbundles'))
          return `${group}/clustertrustbundles`;
      } catch (error) {
        if (apiStatus(error) !== 404) throw error;
      }
    }
    throw unsupported('let the apiserver serve ClusterTrustBundles (feature gate ClusterTrustBundle)');
  }

  async function follow(): Promise<{ readonly synced: Promise<void> }> {
    if (client === undefined) throw unsupported('it needs an apiserver');
    const { synced } = reflect<TrustObject>({
      client,
      path: await servedPath(client),
      onReplace: (items) => items.forEach(put),
      onUpsert: put,
      onDelete: ({ metadata }) => void bundles.delete(metadata?.name ?? ''),
      clock,
      log,
      ...(ending === undefined ? {} : { signal: ending }),
    });
    synced.catch(() => {});
    return { synced };
  }

  async function synced(): Promise<void> {
    // Tried again where it failed: an apiserver may come to serve them.
    following ??= follow().catch((error: unknown) => {
      following = undefined;
      throw error;
    });
    const followed = await following;
    const late = Promise.withResolvers<never>();
    const cancel = clock.after(syncMs, () =>
      late.reject(failed('ClusterTrustBundle informer has not yet synced')),
    );
    try {
      await Promise.race([followed.synced, late.promise]);
    } finally {
      cancel();
    }
  }

  return {
    async anchors({ name, signerName, labelSelector, optional = false }, signal) {
      const what = 'reading ClusterTrustBundles';
      if (signal?.aborted) throw abortError(signal, what);
      await abortable(synced(), signal, what);
      if (name !== undefined) {
        const found = bundles.get(name);
        if (found !== undefined) return trustAnchors([found.trustBundle]);
        if (optional) return '';
        throw failed(
          `while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io "${name}" not found`,
        );
      }
      if (signerName === undefined)
        throw failed('ClusterTrustBundle projection requires either name or signerName to be set');
      const found = [...bundles.values()].filter(
        (bundle) => bundle.signerName === signerName && selects(labelSelector, bundle.labels),
      );
      if (found.length === 0 && !optional)
        throw failed('combination of signerName and labelSelector matched zero ClusterTrustBundles');
      return trustAnchors(found.map(({ trustBundle }) => trustBundle));
    },
  };
}

function failed(message: string): KeelsonError {
  return new KeelsonError('VOLUME_FAILED', message);
}

function unsupported(hint: string): KeelsonError {
  return new KeelsonError('VOLUME_FAILED', 'ClusterTrustBundle projection is not supported', { hint });
}
