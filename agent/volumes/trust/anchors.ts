/** Which ClusterTrustBundles a projection means, and what its file holds (certificates.k8s.io). Pure. */

/** A ClusterTrustBundle, without what nobody needs. */
export interface Bundle {
  readonly name: string;
  readonly signerName: string;
  readonly labels: Readonly<Record<string, string>>;
  /** Certificates in PEM. */
  readonly trustBundle: string;
}

export interface LabelSelector {
  readonly matchLabels?: Readonly<Record<string, string>>;
  readonly matchExpressions?: readonly {
    readonly key: string;
    readonly operator: string;
    readonly values?: readonly string[];
  }[];
}

/** None means nothing, an empty one everything (metav1.LabelSelectorAsSelector). */
export function selects(
  selector: LabelSelector | undefined,
  labels: Readonly<Record<string, string>>,
): boolean {
  if (selector === undefined) return false;
  const { matchLabels = {}, matchExpressions = [] } = selector;
  return (
    Object.entries(matchLabels).every(([key, value]) => labels[key] === value) &&
    matchExpressions.every(({ key, operator, values = [] }) => {
      const value = labels[key];
      switch (operator) {
        case 'In':
          return value !== undefined && values.includes(value);
        case 'NotIn':
          return value === undefined || !values.includes(value);
        case 'Exists':
          return value !== undefined;
        case 'DoesNotExist':
          return value === undefined;
        default:
          return false;
      }
    })
  );
}

const block = /-----BEGIN ([^\n-]+)-----\r?\n([\s\S]*?)-----END \1-----/g;

/** Every certificate of all the texts once, in PEM, in an order that only depends on what they are. */
export function trustAnchors(texts: readonly string[]): string {
  const found = new Set(
    texts.flatMap((text) =>
      [...text.matchAll(block)].map(([, , body]) => Buffer.from(body!, 'base64').toString('base64')),
    ),
  );
  return [...found]
    .sort()
    .map(
      (body) => `-----BEGIN CERTIFICATE-----\n${body.replace(/.{1,64}/g, '$&\n')}-----END CERTIFICATE-----\n`,
    )
    .join('');
}
