/**
 * The downward API: fields and resources of a pod as text, for environment variables and volumes. Pure.
 * Kubernetes documentation, "Downward API"; the fine print is kubelet's pkg/fieldpath and pkg/api/v1/resource.
 */
import { KeelsonError } from '../../runtime/host/errors.ts';
import { milli, parseQuantity, wholeUnits } from '../apiserver/quantity.ts';
import type { Pod, PodContainer } from '../apiserver/types.ts';
import { podNeeds } from './spec/qos.ts';

type Quantities = Readonly<Record<string, string>>;

function invalid(message: string): KeelsonError {
  return new KeelsonError('CONTAINER_CONFIG_INVALID', message);
}

/** `metadata.labels['x']` as path and key; undefined where there is no key. */
function subscript(path: string): { path: string; key: string } | undefined {
  const open = path.indexOf("['");
  if (open <= 0 || !path.endsWith("']") || open + 2 > path.length - 2) return undefined;
  return { path: path.slice(0, open), key: path.slice(open + 2, -2) };
}

/** Qualified names: optional DNS prefix, then 63 characters (apimachinery validation.IsQualifiedName). */
function isQualifiedName(name: string): boolean {
  const [last, prefix, ...more] = name.split('/').reverse();
  if (more.length > 0) return false;
  if (prefix !== undefined && (prefix.length > 253 || !/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/.test(prefix))) {
    return false;
  }
  return /^([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$/.test(last!);
}

/**
 * A field of the object's metadata. Labels and annotations as a whole are lines of `key="value"`.
 * Throws CONTAINER_CONFIG_INVALID where the path is not one of them.
 */
export function metadataField(pod: Pod, fieldPath: string): string {
  const metadata = pod.metadata ?? {};
  const part = subscript(fieldPath);
  if (part !== undefined) {
    const isLabel = part.path === 'metadata.labels';
    if (!isLabel && part.path !== 'metadata.annotations') {
      throw invalid(`fieldPath "${fieldPath}" does not support subscript`);
    }
    if (!isQualifiedName(isLabel ? part.key : part.key.toLowerCase())) {
      throw invalid(`invalid key subscript in ${fieldPath}`);
    }
    const values = (isLabel ? metadata.labels : metadata.annotations) ?? {};
    return Object.hasOwn(values, part.key) ? values[part.key]! : '';
  }
  switch (fieldPath) {
    case 'metadata.name':
      return metadata.name ?? '';
    case 'metadata.namespace':
      return metadata.namespace ?? '';
    case 'metadata.uid':
      return metadata.uid ?? '';
    case 'metadata.labels':
      return formatMap(metadata.labels ?? {});
    case 'metadata.annotations':
      return formatMap(metadata.annotations ?? {});
    default:
      throw invalid(`unsupported fieldPath: ${fieldPath}`);
  }
}

export interface PodFacts {
  readonly podIPs: readonly string[];
  readonly hostIPs: readonly string[];
  readonly nodeName: string;
}

/** A field for an environment variable. Throws CONTAINER_CONFIG_INVALID. */
export function podField(pod: Pod, fieldPath: string, facts: PodFacts): string {
  const podIPs = facts.podIPs.length === 0 && pod.spec?.hostNetwork === true ? facts.hostIPs : facts.podIPs;
  switch (fieldPath) {
    case 'spec.nodeName':
    case 'spec.host':
      return pod.spec?.nodeName ?? facts.nodeName;
    case 'spec.serviceAccountName':
      return pod.spec?.serviceAccountName ?? '';
    case 'status.hostIP':
      return facts.hostIPs[0] ?? '';
    case 'status.hostIPs':
      return facts.hostIPs.join(',');
    case 'status.podIP':
      return podIPs[0] ?? '';
    case 'status.podIPs':
      return podIPs.join(',');
    default:
      return metadataField(pod, fieldPath);
  }
}

interface ResourceSelector {
  readonly containerName?: string;
  readonly divisor?: string;
  readonly resource: string;
}

/**
 * `requests.x` or `limits.x` of a container, divided by the divisor and rounded up. A limit that is not set is the
 * pod's (KEP-2837), or else the node's allocatable (cpu, memory and ephemeral-storage only; pods have no limit of the
 * last). Throws CONTAINER_CONFIG_INVALID.
 */
export function resourceField(
  pod: Pod,
  own: PodContainer | undefined,
  selector: ResourceSelector,
  allocatable: Quantities,
): string {
  const container = selector.containerName ? findContainer(pod, selector.containerName) : own;
  if (container === undefined) throw invalid(`container ${selector.containerName ?? ''} not found`);
  const match = /^(requests|limits)\.(cpu|memory|ephemeral-storage|hugepages-.+)$/.exec(selector.resource);
  if (match === null) throw invalid(`unsupported container resource : ${selector.resource}`);
  const name = match[2]!;
  const isLimit = match[1] === 'limits';
  const given = (isLimit ? container.resources?.limits : container.resources?.requests)?.[name];
  const text =
    isLimit && isUnset(given) && !name.startsWith('hugepages-')
      ? (defaultLimit(pod, name, allocatable) ?? given ?? '0')
      : (given ?? '0');
  const asked = selector.divisor ?? '0';
  const divisor = parseQuantity(asked) === 0 ? '1' : asked;
  const value = name === 'cpu' ? milli(text) / milli(divisor) : wholeUnits(text) / wholeUnits(divisor);
  return String(Math.ceil(value));
}

const isUnset = (quantity: string | undefined) => quantity === undefined || parseQuantity(quantity) === 0;

/** As kubelet's defaultPodLimitsForDownwardAPI. */
function defaultLimit(pod: Pod, name: string, allocatable: Quantities): string | undefined {
  const whole = name === 'ephemeral-storage' ? undefined : podNeeds(pod)?.limits?.[name];
  return isUnset(whole) ? allocatable[name] : whole;
}

function findContainer(pod: Pod, name: string): PodContainer | undefined {
  const all = [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? [])];
  return all.find((container) => container.name === name);
}

/** Lines of `key="value"`, sorted by key, the value quoted as Go's strconv.Quote does. */
function formatMap(values: Readonly<Record<string, string>>): string {
  return Object.keys(values)
    .sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    .map((key) => `${key}=${quote(values[key]!)}`)
    .join('\n');
}

const goEscapes: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\x07': '\\a',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
  '\v': '\\v',
};

function quote(text: string): string {
  const quoted = text.replace(/["\\]|[^\p{L}\p{M}\p{N}\p{P}\p{S} ]/gu, (character) => {
    const known = goEscapes[character];
    if (known !== undefined) return known;
    const code = character.codePointAt(0)!;
    const hex = code.toString(16);
    if (code < 0x80) return `\\x${hex.padStart(2, '0')}`;
    return code < 0x10000 ? `\\u${hex.padStart(4, '0')}` : `\\U${hex.padStart(8, '0')}`;
  });
  return `"${quoted}"`;
}
