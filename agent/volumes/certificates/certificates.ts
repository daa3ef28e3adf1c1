/**
 * Certificates of pods (PodCertificateRequest, certificates.k8s.io/v1): keys are made here, signers answer, and the
 * node follows its own requests only, from the first time that a pod wants one. Nothing is kept over a restart: then
 * every certificate is asked for anew, as with kubelet, while the volumes keep what they hold.
 */
import type { Clock } from '../../../runtime/host/clock.ts';
import { abortError, describe, KeelsonError } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import { abortable } from '../../apiserver/credentials.ts';
import { reflect } from '../../apiserver/reflector.ts';
import type { ApiserverClient, KubeObject, Pod } from '../../apiserver/types.ts';
import { makeKeyAndProof } from './keys.ts';
import {
  abandoned,
  abandonMs,
  answered,
  type CertificateRequest,
  type Issued,
  jitterMs,
  lateness,
  type Pending,
  type State,
} from './states.ts';

/** core/v1 PodCertificateProjection. */
export interface CertificateProjection {
  readonly signerName?: string;
  readonly keyType?: string;
  readonly maxExpirationSeconds?: number;
  readonly credentialBundlePath?: string;
  readonly keyPath?: string;
  readonly certificateChainPath?: string;
  readonly userAnnotations?: Readonly<Record<string, string>>;
}

export interface Credentials {
  /** PKCS#8 in PEM; a secret. */
  readonly key: string;
  /** PEM. */
  readonly chain: string;
  /** Wall clock, milliseconds: when to look again. */
  readonly renewAt: number;
}

export interface Certificates {
  /**
   * The key and the certificate of one source of one volume. Throws VOLUME_FAILED with kubelet's words where it was
   * not issued in time, denied or failed; API_UNREACHABLE, API_STATUS, ABORTED.
   */
  get(
    pod: Pod,
    source: { readonly volume: string; readonly index: number; readonly projection: CertificateProjection },
    signal: AbortSignal | undefined,
  ): Promise<Credentials>;
  forget(podUid: string): void;
}

export interface CertificatesOptions {
  readonly client: ApiserverClient | undefined;
  readonly nodeName: string;
  readonly clock: Clock;
  readonly log: Logger;
  /** A warning event about a pod. */
  readonly warn: (pod: Pod, reason: string, message: string) => void;
  /** Ends the watch. */
  readonly ending?: AbortSignal | undefined;
  /** From 0 to 1. Default Math.random. */
  readonly random?: () => number;
}

interface RequestObject extends KubeObject {
  readonly spec?: { readonly podUID?: string };
  readonly status?: CertificateRequest;
}

const group = '/apis/certificates.k8s.io/v1';
/** Milliseconds that the first list may take. */
const syncMs = 10_000;
/** How long a pod waits here for its first certificate, and for a new one, before it is tried again later. */
const firstMs = 10_000;
const refreshMs = 5000;
/** When to look again at a refresh that is not done, milliseconds; kubelet takes one to two minutes. */
const againMs = 60_000;

export function makeCertificates(options: CertificatesOptions): Certificates {
  const { client, nodeName, clock, log, warn, ending, random = Math.random } = options;
  /** By pod uid, then by volume and index. */
  const states = new Map<string, Map<string, State>>();
  /** What was said to requests, until it is taken up; `gone` for those that were deleted. By namespace and name. */
  const answers = new Map<
    string,
    { readonly podUid: string; readonly answer: CertificateRequest | 'gone' }
  >();
  const waiting = new Map<string, () => void>();
  let following: Promise<void> | undefined;

  const idOf = ({ metadata }: KubeObject) => `${metadata?.namespace}/${metadata?.name}`;
  const note = (id: string, podUid: string, answer: CertificateRequest | 'gone') => {
    const ofPod = states.get(podUid);
    if (ofPod === undefined) return;
    // Requests that were answered are deleted sooner or later, which is nothing to remember.
    if (answer === 'gone' && ![...ofPod.values()].some((state) => waitsFor(state, id))) return;
    answers.set(id, { podUid, answer });
    waiting.get(id)?.();
  };

  function follow(from: ApiserverClient): Promise<void> {
    /** By request: its end may tell nothing of the pod. */
    const owners = new Map<string, string>();
    following ??= reflect<RequestObject>({
      client: from,
      path: `${group}/podcertificaterequests`,
      query: { fieldSelector: `spec.nodeName=${nodeName}` },
      // Those are of an earlier process, whose keys are gone.
      onReplace: () => {},
      onUpsert(object) {
        const podUid = object.spec?.podUID ?? '';
        if (!states.has(podUid)) return;
        owners.set(idOf(object), podUid);
        if (object.status?.conditions?.length) note(idOf(object), podUid, object.status);
      },
      onDelete(object) {
        const podUid = owners.get(idOf(object));
        owners.delete(idOf(object));
        if (podUid !== undefined) note(idOf(object), podUid, 'gone');
      },
      clock,
      log,
      ...(ending === undefined ? {} : { signal: ending }),
    }).synced;
    return following;
  }

  /** Resolves when `until` does, after `ms`, or throws when `signal` says so. */
  async function within(until: Promise<void>, ms: number, signal: AbortSignal | undefined): Promise<boolean> {
    const late = Promise.withResolvers<boolean>();
    const cancel = clock.after(ms, () => late.resolve(false));
    try {
      const done = Promise.race([until.then(() => true), late.promise]);
      return await abortable(done, signal, 'waiting for a PodCertificateRequest');
    } finally {
      cancel();
    }
  }

  async function request(
    from: ApiserverClient,
    pod: Pod,
    projection: CertificateProjection,
    signal: AbortSignal | undefined,
  ): Promise<Pending> {
    const { namespace = 'default', name, uid } = pod.metadata ?? {};
    const serviceAccountName = pod.spec?.serviceAccountName || 'default';
    const call = signal === undefined ? {} : { signal };
    const [account, node, { key, proof }] = await Promise.all([
      from.get<KubeObject>(`/api/v1/namespaces/${namespace}/serviceaccounts/${serviceAccountName}`, call),
      from.get<KubeObject>(`/api/v1/nodes/${nodeName}`, call),
      makeKeyAndProof(projection.keyType ?? ''),
    ]);
    const made = await from.create<KubeObject>(
      `${group}/namespaces/${namespace}/podcertificaterequests`,
      {
        apiVersion: 'certificates.k8s.io/v1',
        kind: 'PodCertificateRequest',
        metadata: {
          namespace,
          generateName: 'req-',
          ownerReferences: [{ apiVersion: 'v1', kind: 'Pod', name, uid }],
        },
        spec: {
          signerName: projection.signerName,
          podName: name,
          podUID: uid,
          serviceAccountName,
          serviceAccountUID: account.metadata?.uid,
          nodeName,
          nodeUID: node.metadata?.uid,
          maxExpirationSeconds: projection.maxExpirationSeconds,
          stubPKCS10Request: proof.toString('base64'),
          unverifiedUserAnnotations: projection.userAnnotations,
        },
      },
      call,
    );
    return { key, name: made.metadata?.name ?? '', abandonAt: clock.now() + abandonMs + jitterMs * random() };
  }

  return {
    async get(pod, { volume, index, projection }, signal) {
      if (signal?.aborted) throw abortError(signal, 'waiting for a PodCertificateRequest');
      if (client === undefined) throw failed('a podCertificate needs an apiserver, and none is configured');
      const { uid = '', namespace = 'default' } = pod.metadata ?? {};
      const place = `${volume} ${index}`;
      const ofPod = states.get(uid) ?? new Map<string, State>();
      states.set(uid, ofPod);
      if (!(await within(follow(client), syncMs, signal)))
        throw failed('PodCertificateRequest informer has not yet synced');
      let state = ofPod.get(place) ?? { kind: 'initial' };
      const become = (next: State) => {
        state = next;
        // A pod that was forgotten meanwhile is not remembered again.
        if (states.get(uid) === ofPod) ofPod.set(place, next);
      };

      /** Takes up what was said to the pending request, waiting for it up to `ms`. */
      const settle = async (ms: number): Promise<void> => {
        const pending = state.kind === 'wait' || state.kind === 'fresh' ? state.pending : undefined;
        if (pending === undefined) return;
        const id = `${namespace}/${pending.name}`;
        if (!answers.has(id)) {
          const said = Promise.withResolvers<void>();
          waiting.set(id, said.resolve);
          try {
            await within(said.promise, ms, signal);
          } finally {
            waiting.delete(id);
          }
        }
        const answer = answers.get(id)?.answer;
        answers.delete(id);
        if (answer === 'gone' || (answer === undefined && clock.now() > pending.abandonAt)) {
          log.warn(
            { pod: pod.metadata?.name, namespace, request: pending.name },
            'a PodCertificateRequest was deleted',
          );
          become(abandoned(state));
        } else if (answer !== undefined) {
          const { state: next, tell } = answered(state, id, answer, random());
          become(next);
          if (tell) warn(pod, tell.reason, tell.message);
        }
      };

      const refresh = async (issued: Issued): Promise<void> => {
        const { issued: known, tell } = lateness(issued, clock.now());
        for (const { reason, message } of tell) warn(pod, reason, message);
        try {
          become({ kind: 'fresh', issued: known, pending: await request(client, pod, projection, signal) });
        } catch (error) {
          if (signal?.aborted) throw error;
          become({ kind: 'fresh', issued: known });
          log.warn(
            { error: describe(error), pod: pod.metadata?.name, namespace },
            'cannot ask for a new certificate',
          );
          return;
        }
        await settle(refreshMs);
      };

      await settle(state.kind === 'wait' ? firstMs : 0);
      if (state.kind === 'initial') {
        become({ kind: 'wait', pending: await request(client, pod, projection, signal) });
        await settle(firstMs);
      }
      const now: State = state;
      if (now.kind === 'fresh' && clock.now() >= now.issued.refreshAt) {
        if (now.pending === undefined) await refresh(now.issued);
        else {
          const { issued, tell } = lateness(now.issued, clock.now());
          for (const { reason, message } of tell) warn(pod, reason, message);
          become({ ...now, issued });
        }
      }
      return credentialsOf(state, clock.now() + againMs * (1 + random()), clock.now());
    },
    forget(podUid) {
      states.delete(podUid);
      for (const [id, { podUid: owner }] of answers) if (owner === podUid) answers.delete(id);
    },
  };
}

function waitsFor(state: State, id: string): boolean {
  const pending = state.kind === 'wait' || state.kind === 'fresh' ? state.pending : undefined;
  return pending !== undefined && id.endsWith(`/${pending.name}`);
}

function credentialsOf(state: State, again: number, now: number): Credentials {
  if (state.kind === 'fresh') {
    const { key, chain, refreshAt } = state.issued;
    return { key, chain, renewAt: refreshAt > now ? refreshAt : again };
  }
  if (state.kind === 'denied' || state.kind === 'failed') {
    const why = `reason=${JSON.stringify(state.reason)} message=${JSON.stringify(state.message)}`;
    throw failed(`PodCertificateRequest was permanently ${state.kind}: ${why}`);
  }
  throw failed('credential bundle is not issued yet');
}

function failed(message: string): KeelsonError {
  return new KeelsonError('VOLUME_FAILED', message);
}
