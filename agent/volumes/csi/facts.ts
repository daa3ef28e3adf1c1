/** What the apiserver knows of a CSI volume besides the volume itself: its driver, attachment, secrets, and pods' tokens. */
import { type Clock, rfc3339, sleep } from '../../../runtime/host/clock.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { apiStatus } from '../../apiserver/answers.ts';
import type { ApiserverClient, KubeObject, Pod, Secret } from '../../apiserver/types.ts';
import type { Tokens } from '../tokens.ts';
import { type CsiDriverObject, type CsiVolume, needsAttachment } from './decide.ts';
import { attachmentName } from './paths.ts';

type Strings = Readonly<Record<string, string>>;

export interface CsiFacts {
  /** Undefined where the cluster has none of that name: drivers need not. */
  driver(name: string, signal: AbortSignal | undefined): Promise<CsiDriverObject | undefined>;
  /** What the attacher says about the volume at this node, waited for; empty where nothing is attached. */
  publishContext(
    volume: CsiVolume,
    object: CsiDriverObject | undefined,
    signal: AbortSignal | undefined,
  ): Promise<Strings>;
  /** The secret's data; empty where there is no reference. `what` names the reference in errors. */
  secret(
    reference: { readonly name?: string; readonly namespace?: string } | undefined,
    what: string,
    signal: AbortSignal | undefined,
  ): Promise<Strings>;
  /** Tokens that the driver asks for, as one entry of JSON; empty where it asks for none. */
  tokens(pod: Pod, object: CsiDriverObject | undefined, signal: AbortSignal | undefined): Promise<Strings>;
}

/** storage.k8s.io/v1 VolumeAttachment, as far as a node reads it. */
interface VolumeAttachment extends KubeObject {
  readonly status?: {
    readonly attached?: boolean;
    readonly attachmentMetadata?: Strings;
    readonly attachError?: { readonly message?: string };
  };
}

/** How long one set-up waits for the volume to be attached; a node may not watch the object. */
const attachMs = 60_000;
const firstWaitMs = 500;
const longestWaitMs = 7000;

/** Whether the volume is there. Throws VOLUME_FAILED with kubelet's words where it will not be. Pure. */
export function isAttached(attachment: VolumeAttachment | undefined): boolean {
  if (attachment === undefined) return false;
  if (attachment.metadata?.deletionTimestamp !== undefined) {
    throw new KeelsonError('VOLUME_FAILED', 'volume attachment is being deleted');
  }
  const { attached, attachError } = attachment.status ?? {};
  if (attached === true) return true;
  if (attachError)
    throw new KeelsonError('VOLUME_FAILED', attachError.message ?? 'the volume was not attached');
  return false;
}

/** When a JSON web token ends, as kubelet's status of a TokenRequest has it; undefined where it does not say. Pure. */
export function expiryOf(token: string): string | undefined {
  try {
    const claims: unknown = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString('utf8'));
    const { exp } = (claims ?? {}) as { exp?: unknown };
    return typeof exp === 'number' ? rfc3339(exp * 1000) : undefined;
  } catch {
    return undefined;
  }
}

export function makeCsiFacts(options: {
  readonly client: ApiserverClient | undefined;
  readonly nodeName: string;
  readonly tokens: Tokens;
  readonly clock: Clock;
}): CsiFacts {
  const { client, nodeName, tokens, clock } = options;

  /** Undefined for what is not there. */
  const find = async <T>(path: string, signal: AbortSignal | undefined): Promise<T | undefined> => {
    if (client === undefined)
      throw new KeelsonError('VOLUME_FAILED', 'CSI volumes need an apiserver, and none is configured');
    try {
      return await client.get<T>(path, signal === undefined ? {} : { signal });
    } catch (error) {
      if (apiStatus(error) === 404) return undefined;
      throw error;
    }
  };

  return {
    driver: (name, signal) =>
      find<CsiDriverObject>(`/apis/storage.k8s.io/v1/csidrivers/${encodeURIComponent(name)}`, signal),

    async publishContext(volume, object, signal) {
      if (!needsAttachment(volume, object)) return {};
      const name = attachmentName(volume.handle, volume.driver, nodeName);
      const end = clock.monotonic() + attachMs;
      for (let wait = firstWaitMs; ; wait = Math.min(wait * 1.5, longestWaitMs)) {
        const attachment = await find<VolumeAttachment>(
          `/apis/storage.k8s.io/v1/volumeattachments/${name}`,
          signal,
        );
        if (isAttached(attachment)) return attachment?.status?.attachmentMetadata ?? {};
        if (clock.monotonic() + wait > end) {
          throw new KeelsonError(
            'VOLUME_FAILED',
            `timed out waiting for external-attacher of ${volume.driver} CSI driver to attach volume ${volume.handle}`,
            { details: { operation: 'MountVolume.WaitForAttach' } },
          );
        }
        await sleep(clock, wait, signal);
      }
    },

    async secret(reference, what, signal) {
      if (!reference?.name) return {};
      const { namespace = '', name } = reference;
      const path = `/api/v1/namespaces/${encodeURIComponent(namespace)}/secrets/${encodeURIComponent(name)}`;
      const fail = (cause: unknown) =>
        new KeelsonError('VOLUME_FAILED', `fetching ${what} ${namespace}/${name} failed`, { cause });
      const secret = await find<Secret>(path, signal).catch((error: unknown) => {
        if (signal?.aborted) throw error;
        throw fail(error);
      });
      if (secret === undefined)
        throw fail(
          new KeelsonError('NOT_FOUND', `failed to find the secret ${name} in the namespace ${namespace}`),
        );
      return Object.fromEntries(
        Object.entries(secret.data ?? {}).map(([key, value]) => [
          key,
          Buffer.from(value, 'base64').toString('utf8'),
        ]),
      );
    },

    async tokens(pod, object, signal): Promise<Strings> {
      const requests = object?.spec.tokenRequests ?? [];
      if (requests.length === 0) return {};
      const all: Record<string, { token: string; expirationTimestamp?: string | undefined }> = {};
      for (const { audience, expirationSeconds } of requests) {
        const { text } = await tokens.get(
          {
            namespace: pod.metadata?.namespace ?? 'default',
            serviceAccount: pod.spec?.serviceAccountName ?? 'default',
            podName: pod.metadata?.name ?? '',
            podUid: pod.metadata?.uid ?? '',
            ...(audience === '' ? {} : { audience }),
            ...(expirationSeconds === undefined ? {} : { expirationSeconds }),
          },
          signal,
        );
        all[audience] = { token: text, expirationTimestamp: expiryOf(text) };
      }
      return { 'csi.storage.k8s.io/serviceAccount.tokens': JSON.stringify(all) };
    },
  };
}
