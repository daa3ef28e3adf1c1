/** How far a pod's certificate is (kubelet's podcertificate.IssuingManager). Pure. */

/** What of a PodCertificateRequest (certificates.k8s.io/v1) matters here. */
export interface CertificateRequest {
  readonly conditions?: readonly {
    readonly type: string;
    readonly reason?: string;
    readonly message?: string;
  }[];
  /** PEM. */
  readonly certificateChain?: string;
  /** RFC 3339. */
  readonly beginRefreshAt?: string;
  readonly notAfter?: string;
}

/** A request that was made and is not answered yet. */
export interface Pending {
  /** PKCS#8 in PEM; a secret. */
  readonly key: string;
  /** Of the request. */
  readonly name: string;
  /** Wall clock, milliseconds: when a request that nobody has seen is taken for deleted. */
  readonly abandonAt: number;
}

export interface Issued {
  readonly key: string;
  readonly chain: string;
  /** Wall clock, milliseconds. */
  readonly refreshAt: number;
  readonly notAfter: number;
  readonly told: { readonly overdue: boolean; readonly expired: boolean };
}

export type State =
  | { readonly kind: 'initial' }
  | { readonly kind: 'wait'; readonly pending: Pending }
  /** `pending`: a new one is asked for. */
  | { readonly kind: 'fresh'; readonly issued: Issued; readonly pending?: Pending }
  /** For good: the pod has to be made anew. */
  | { readonly kind: 'denied' | 'failed'; readonly reason: string; readonly message: string };

/** A warning event about the pod. */
export interface Telling {
  readonly reason: string;
  readonly message: string;
}

/** A request that the watch has not shown for this long is taken for deleted, in milliseconds. */
export const abandonMs = 600_000;
/** Requests of many pods are spread over this time, in milliseconds. */
export const jitterMs = 300_000;
const overdueMs = 600_000;

/** `id`: namespace and name of the request. `jitter`: from 0 to 1. The same state where it is not decided yet. */
export function answered(
  state: State,
  id: string,
  request: CertificateRequest,
  jitter: number,
): { readonly state: State; readonly tell?: Telling } {
  const pending = state.kind === 'wait' || state.kind === 'fresh' ? state.pending : undefined;
  if (pending === undefined) return { state };
  for (const { type, reason = '', message = '' } of request.conditions ?? []) {
    if (type === 'Denied' || type === 'Failed') {
      const did = type === 'Denied' ? 'was denied' : 'failed';
      const why = `reason=${JSON.stringify(reason)}, message=${JSON.stringify(message)}`;
      return {
        state: { kind: type === 'Denied' ? 'denied' : 'failed', reason, message },
        tell: { reason: type, message: `PodCertificateRequest ${id} ${did}, ${why}` },
      };
    }
    if (type === 'Issued')
      return {
        state: {
          kind: 'fresh',
          issued: {
            key: pending.key,
            chain: cleanChain(request.certificateChain ?? ''),
            refreshAt: Date.parse(request.beginRefreshAt ?? '') + jitter * jitterMs,
            notAfter: Date.parse(request.notAfter ?? ''),
            told: { overdue: false, expired: false },
          },
        },
      };
  }
  return { state };
}

/** The state after the request that it waits for is gone. */
export function abandoned(state: State): State {
  if (state.kind === 'wait') return { kind: 'initial' };
  return state.kind === 'fresh' ? { kind: 'fresh', issued: state.issued } : state;
}

/** Each is told once for each certificate. */
export function lateness(issued: Issued, now: number): { readonly issued: Issued; readonly tell: Telling[] } {
  const overdue = now > issued.refreshAt + overdueMs;
  const expired = now > issued.notAfter;
  const tell: Telling[] = [];
  if (overdue && !issued.told.overdue)
    tell.push({ reason: 'CertificateOverdueForRefresh', message: 'PodCertificate refresh overdue' });
  if (expired && !issued.told.expired)
    tell.push({ reason: 'CertificateExpired', message: 'PodCertificate expired' });
  if (tell.length === 0) return { issued, tell };
  const told = { overdue: overdue || issued.told.overdue, expired: expired || issued.told.expired };
  return { issued: { ...issued, told }, tell };
}

const block = /-----BEGIN ([^\n-]+)-----\r?\n([\s\S]*?)-----END \1-----/g;

/** The certificates in the signer's order, without what is between them or in their headers. */
export function cleanChain(text: string): string {
  return [...text.matchAll(block)]
    .map(([, , body]) => {
      // Headers (RFC 1421) end with an empty line.
      const data = body!.slice(body!.includes(':') ? body!.search(/\r?\n\r?\n/) : 0);
      const base64 = Buffer.from(data, 'base64').toString('base64');
      return `-----BEGIN CERTIFICATE-----\n${base64.replace(/.{1,64}/g, '$&\n')}-----END CERTIFICATE-----\n`;
    })
    .join('');
}
