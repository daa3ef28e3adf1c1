/** Gathers what configMap, secret, downwardAPI and projected volumes hold from where it comes from. */
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { ConfigMap, ObjectCache, Pod, Secret, Volume } from '../apiserver/types.ts';
import type { CertificateProjection, Certificates } from './certificates/certificates.ts';
import {
  configMapPayload,
  downwardPayload,
  type FileProjection,
  type Payload,
  secretPayload,
} from './payload.ts';
import type { TokenKey, Tokens } from './tokens.ts';
import type { Trust } from './trust/bundles.ts';

export interface Collected {
  readonly payload: Payload;
  /** Wall clock, milliseconds: when a token in it is due. */
  readonly renewAt?: number;
  /** It has objects that may change without the pod being told. */
  readonly mayChange: boolean;
}

export interface Sources {
  readonly objects: ObjectCache;
  readonly tokens: Tokens;
  /** Loaded when the first pod wants it. */
  readonly trust: () => Promise<Trust>;
  /** As `trust`. */
  readonly certificates: () => Promise<Certificates>;
  /** The node's allocatable resources, as quantities. */
  readonly allocatable: () => Readonly<Record<string, string>>;
}

const defaultFileMode = 0o644;

/** The payload of `volume`. Throws VOLUME_FAILED with kubelet's words where something is missing. */
export async function collect(
  pod: Pod,
  volume: Volume,
  from: Sources,
  signal: AbortSignal | undefined,
): Promise<Collected> {
  const namespace = pod.metadata?.namespace ?? 'default';
  const { configMap, secret, downwardAPI, projected } = volume;
  if (configMap) {
    const optional = configMap.optional ?? false;
    const object = await fetch<ConfigMap>(
      from,
      'configmaps',
      namespace,
      configMap.name ?? '',
      optional,
      signal,
    );
    return {
      payload: configMapPayload(object, configMap.items, configMap.defaultMode ?? defaultFileMode, optional),
      mayChange: object?.immutable !== true,
    };
  }
  if (secret) {
    const optional = secret.optional ?? false;
    const object = await fetch<Secret>(from, 'secrets', namespace, secret.secretName ?? '', optional, signal);
    return {
      payload: secretPayload(object, secret.items, secret.defaultMode ?? defaultFileMode, optional),
      mayChange: object?.immutable !== true,
    };
  }
  if (downwardAPI) {
    const mode = downwardAPI.defaultMode ?? defaultFileMode;
    return {
      payload: downwardPayload(pod, downwardAPI.items ?? [], mode, from.allocatable()),
      mayChange: false,
    };
  }
  const mode = projected?.defaultMode ?? defaultFileMode;
  const parts = await Promise.all(
    (projected?.sources ?? []).map(async (source, index) => {
      const { podCertificate: projection } = source as { podCertificate?: CertificateProjection };
      if (!projection) return collectPart(pod, namespace, source, mode, from, signal);
      const certificates = await from.certificates();
      const { renewAt, ...credentials } = await certificates.get(
        pod,
        { volume: volume.name, index, projection },
        signal,
      );
      return { payload: credentialFiles(pod, projection, credentials, mode), renewAt, mayChange: false };
    }),
  );
  const due = parts.map(({ renewAt }) => renewAt).filter((time) => time !== undefined);
  return {
    // Later sources win.
    payload: new Map(parts.flatMap(({ payload }) => [...payload])),
    mayChange: parts.some(({ mayChange }) => mayChange),
    ...(due.length === 0 ? {} : { renewAt: Math.min(...due) }),
  };
}

type ProjectedSource = NonNullable<NonNullable<Volume['projected']>['sources']>[number];

async function collectPart(
  pod: Pod,
  namespace: string,
  source: ProjectedSource,
  mode: number,
  from: Sources,
  signal: AbortSignal | undefined,
): Promise<Collected> {
  if (source.configMap) {
    const { name, items, optional = false } = source.configMap;
    const object = await fetch<ConfigMap>(from, 'configmaps', namespace, name ?? '', optional, signal);
    return {
      payload: configMapPayload(object, items, mode, optional),
      mayChange: object?.immutable !== true,
    };
  }
  if (source.secret) {
    const { name, items, optional = false } = source.secret;
    const object = await fetch<Secret>(from, 'secrets', namespace, name ?? '', optional, signal);
    return { payload: secretPayload(object, items, mode, optional), mayChange: object?.immutable !== true };
  }
  if (source.downwardAPI) {
    return {
      payload: downwardPayload(pod, source.downwardAPI.items ?? [], mode, from.allocatable()),
      mayChange: false,
    };
  }
  if (source.serviceAccountToken) {
    const token = await from.tokens.get(tokenKey(pod, source.serviceAccountToken), signal);
    return {
      payload: new Map([[source.serviceAccountToken.path, tokenFile(pod, token.text, mode)]]),
      renewAt: token.renewAt,
      mayChange: false,
    };
  }
  if (source.clusterTrustBundle) {
    const text = await (await from.trust()).anchors(source.clusterTrustBundle, signal);
    return {
      payload: new Map([[source.clusterTrustBundle.path, tokenFile(pod, text, mode)]]),
      mayChange: true,
    };
  }
  const kinds = Object.keys(source).join(', ') || 'an empty source';
  throw new KeelsonError('VOLUME_FAILED', `projected volumes of ${kinds} are not supported by keelson yet`);
}

export function tokenKey(pod: Pod, source: NonNullable<ProjectedSource['serviceAccountToken']>): TokenKey {
  return {
    namespace: pod.metadata?.namespace ?? 'default',
    serviceAccount: pod.spec?.serviceAccountName || 'default',
    podName: pod.metadata?.name ?? '',
    podUid: pod.metadata?.uid ?? '',
    audience: source.audience,
    expirationSeconds: source.expirationSeconds,
  };
}

/** The files that the projection wants of a certificate and its key. Pure. */
export function credentialFiles(
  pod: Pod,
  { credentialBundlePath, keyPath, certificateChainPath }: CertificateProjection,
  { key, chain }: { readonly key: string; readonly chain: string },
  mode: number,
): Payload {
  const wanted: readonly [string | undefined, string][] = [
    [credentialBundlePath, key + chain],
    [keyPath, key],
    [certificateChainPath, chain],
  ];
  return new Map(
    wanted.flatMap(([path, text]) => (path ? [[path, tokenFile(pod, text, mode)] as const] : [])),
  );
}

/** 0600 where the one user of the pod or its group is known and made owner, else the volume's mode. Pure. */
export function tokenFile(pod: Pod, text: string, mode: number): FileProjection {
  const uid = commonUser(pod);
  const owned = uid !== undefined || pod.spec?.securityContext?.fsGroup !== undefined;
  return { data: Buffer.from(text), mode: owned ? 0o600 : mode, ...(uid === undefined ? {} : { uid }) };
}

/** The user that every container runs as, where all say so and are of one mind (kubelet's FsUserFrom). */
function commonUser(pod: Pod): number | undefined {
  const ofPod = pod.spec?.securityContext?.runAsUser;
  const users = [...(pod.spec?.initContainers ?? []), ...(pod.spec?.containers ?? [])].map(
    ({ securityContext }) => securityContext?.runAsUser ?? ofPod,
  );
  return users.every((user) => user === users[0]) ? users[0] : undefined;
}

/** undefined where it is optional and absent. */
async function fetch<T>(
  from: Sources,
  kind: 'configmaps' | 'secrets',
  namespace: string,
  name: string,
  optional: boolean,
  signal: AbortSignal | undefined,
): Promise<T | undefined> {
  try {
    return await from.objects.get<T>(kind, namespace, name, signal);
  } catch (error) {
    if (!isError(error, 'API_STATUS') || error.details['status'] !== 404) throw error;
    if (optional) return undefined;
    const noun = kind === 'configmaps' ? 'configmap' : 'secret';
    throw new KeelsonError('VOLUME_FAILED', `${noun} "${name}" not found`);
  }
}
