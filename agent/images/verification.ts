/**
 * Whether a pod may have an image that is on the node already (KEP-2535): the policy, what is remembered of pulls, and
 * how a pod's credentials compare with it. Pure. The words and rules are kubelet's pkg/kubelet/images/pullmanager.
 */

import type { Coordinates, Credential } from './credentials/keyring.ts';
import { withoutTag } from './image_name.ts';

export const verificationPolicies = [
  'NeverVerify',
  'NeverVerifyPreloadedImages',
  'NeverVerifyAllowlistedImages',
  'AlwaysVerify',
] as const;
export type VerificationPolicy = (typeof verificationPolicies)[number];

export interface PulledSecret extends Coordinates {
  readonly credentialHash: string;
}

/** What an image may be used with, as kubelet's ImagePullCredentials. */
export interface PulledWith {
  readonly kubernetesSecrets?: readonly PulledSecret[];
  readonly kubernetesServiceAccounts?: readonly Coordinates[];
  /** Pulled without credentials, or with the node's own. */
  readonly nodePodsAccessible?: boolean;
}

/** kubelet's ImagePulledRecord. */
export interface PulledRecord {
  /** Wall clock, milliseconds; whole seconds are kept. */
  readonly lastUpdated: number;
  /** The image id. */
  readonly imageRef: string;
  /** By the image's name in the pod, without tag and digest. */
  readonly credentialMapping: Readonly<Record<string, PulledWith>>;
}

/** With so many secrets on record, those that merely match are not added. */
const mostSecrets = 100;

/** What is wrong with an entry of preloadedImagesVerificationAllowlist: a name without tag, or a prefix and `/*`. */
export function allowlistFault(pattern: string): string | undefined {
  if (pattern !== pattern.trim()) return 'must not begin or end with blanks';
  const prefix = pattern.endsWith('/*') ? pattern.slice(0, -1) : undefined;
  const rest = prefix ?? pattern;
  if (rest === '') return 'must not be empty';
  if (rest.includes('*')) return 'may have a * only as its last part, behind a /';
  if (prefix !== undefined) return prefix === '/' ? 'must name at least a registry' : undefined;
  const name = withoutTag(pattern);
  if (name === undefined) return 'is not an image name';
  return name === pattern ? undefined : 'must have neither a tag nor a digest';
}

/** Whether a pod has to show credentials for an image on the node; `pulled`: it was pulled for a pod, or may have been. */
export function mustVerify(
  policy: VerificationPolicy,
  allowlist: readonly string[],
  image: string,
  pulled: boolean,
): boolean {
  switch (policy) {
    case 'NeverVerify':
      return false;
    case 'NeverVerifyPreloadedImages':
      return pulled;
    case 'AlwaysVerify':
      return true;
    case 'NeverVerifyAllowlistedImages': {
      const name = withoutTag(image) ?? image;
      return !allowlist.some((pattern) =>
        pattern.endsWith('/*') ? name.startsWith(pattern.slice(0, -1)) : name === pattern,
      );
    }
  }
}

/** What the record says before the pod's credentials are known; `with` is to be compared with them. */
export function accessOf(
  record: PulledRecord | undefined,
  image: string,
): 'allowed' | 'unknown' | { readonly with: PulledWith } {
  const name = withoutTag(image);
  if (record === undefined || name === undefined) return 'unknown';
  const found = Object.hasOwn(record.credentialMapping, name) ? record.credentialMapping[name] : undefined;
  if (found === undefined) return 'unknown';
  if (found.nodePodsAccessible) return 'allowed';
  const nothing =
    (found.kubernetesSecrets ?? []).length === 0 && (found.kubernetesServiceAccounts ?? []).length === 0;
  return nothing ? 'unknown' : { with: found };
}

/**
 * Whether one of the pod's credentials is on record. A secret matches by its content, wherever it is, or by its
 * coordinates, whatever it now holds; `learn` is then what should be remembered of it.
 */
export function compare(
  known: PulledWith,
  credentials: readonly Credential[],
): { readonly allowed: boolean; readonly learn?: PulledWith } {
  const secrets = known.kubernetesSecrets ?? [];
  for (const { source, hash } of credentials) {
    if (source.kind !== 'secret') continue;
    for (const recorded of secrets) {
      const sameContent = recorded.credentialHash !== '' && recorded.credentialHash === hash;
      const samePlace = sameCoordinates(recorded, source);
      if (sameContent && samePlace) return { allowed: true };
      // kubelet's rule: a full record does not let a changed secret in.
      if (!sameContent && (!samePlace || secrets.length >= mostSecrets)) continue;
      const learn = { kubernetesSecrets: [pulledSecret(source, hash)] };
      return { allowed: true, ...(secrets.length < mostSecrets && { learn }) };
    }
  }
  // As for kubelet, a pod has one service account, whatever its credentials are for.
  const account = credentials.find(({ source }) => source.kind === 'serviceAccount')?.source;
  const allowed =
    account?.kind === 'serviceAccount' &&
    (known.kubernetesServiceAccounts ?? []).some((recorded) => sameCoordinates(recorded, account));
  return { allowed };
}

/** What a pull with `credential` (undefined: with none) shows. */
export function pulledWith(credential: Credential | undefined): PulledWith {
  if (credential === undefined || credential.source.kind === 'node') return { nodePodsAccessible: true };
  const { source, hash } = credential;
  return source.kind === 'secret'
    ? { kubernetesSecrets: [pulledSecret(source, hash)] }
    : { kubernetesServiceAccounts: [coordinatesOf(source)] };
}

/**
 * The record with `learned` added for `image`, or undefined where that changes nothing. `learned` undefined: the image
 * was pulled, nobody knows with what; it is then on record without anybody who may have it.
 */
export function withPull(
  record: PulledRecord | undefined,
  imageRef: string,
  image: string,
  learned: PulledWith | undefined,
  now: number,
): PulledRecord | undefined {
  const before = record ?? { lastUpdated: now, imageRef, credentialMapping: {} };
  const name = withoutTag(image);
  if (name === undefined || learned === undefined) return record === undefined ? before : undefined;
  const known = Object.hasOwn(before.credentialMapping, name) ? before.credentialMapping[name] : undefined;
  const merged = merge(known, learned);
  if (merged === undefined) return record === undefined ? before : undefined;
  const credentialMapping = { ...before.credentialMapping, [name]: merged };
  return { lastUpdated: now, imageRef, credentialMapping };
}

function merge(known: PulledWith | undefined, learned: PulledWith): PulledWith | undefined {
  if (known?.nodePodsAccessible) return undefined;
  if (learned.nodePodsAccessible) return { nodePodsAccessible: true };
  const secrets = added(
    known?.kubernetesSecrets ?? [],
    learned.kubernetesSecrets ?? [],
    (one, other) => one.credentialHash === other.credentialHash,
  );
  const accounts = added(
    known?.kubernetesServiceAccounts ?? [],
    learned.kubernetesServiceAccounts ?? [],
    () => true,
  );
  if (secrets === undefined && accounts === undefined) return undefined;
  const kubernetesSecrets = secrets ?? known?.kubernetesSecrets;
  const kubernetesServiceAccounts = accounts ?? known?.kubernetesServiceAccounts;
  return {
    ...(kubernetesSecrets && { kubernetesSecrets }),
    ...(kubernetesServiceAccounts && { kubernetesServiceAccounts }),
  };
}

/** One for each place, the newest, ordered by place; undefined where all of `fresh` is there already. */
function added<T extends Coordinates>(
  known: readonly T[],
  fresh: readonly T[],
  same: (one: T, other: T) => boolean,
): T[] | undefined {
  const isNew = fresh.some((one) => !known.some((other) => sameCoordinates(one, other) && same(one, other)));
  if (!isNew) return undefined;
  const kept = known.filter((one) => !fresh.some((other) => sameCoordinates(one, other)));
  const key = ({ namespace, name, uid }: Coordinates) => [namespace, name, uid];
  return [...kept, ...fresh].sort((a, b) => {
    const [left, right] = [key(a), key(b)];
    const at = left.findIndex((part, index) => part !== right[index]);
    return at === -1 ? 0 : left[at]! < right[at]! ? -1 : 1;
  });
}

function sameCoordinates(one: Coordinates, other: Coordinates): boolean {
  return one.uid === other.uid && one.namespace === other.namespace && one.name === other.name;
}

function coordinatesOf({ uid, namespace, name }: Coordinates): Coordinates {
  return { uid, namespace, name };
}

function pulledSecret(source: Coordinates, credentialHash: string): PulledSecret {
  return { ...coordinatesOf(source), credentialHash };
}
