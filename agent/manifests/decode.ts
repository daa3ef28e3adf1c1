/** From the text of a manifest to the static pod that it describes. */
import { createHash } from 'node:crypto';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { Pod } from '../apiserver/types.ts';
import { yamlParser } from '../config/yaml.ts';
import { defaultPod } from './defaults.ts';
import { apiReference, validatePod } from './validate.ts';

export interface ManifestOrigin {
  /** Absolute path of the file; not given for what comes from a URL. */
  readonly file?: string;
  /** Where it was fetched from. */
  readonly url?: string;
  readonly nodeName: string;
  /** RFC 3339: when it was seen. */
  readonly seen: string;
}

/**
 * The pod in `text` (YAML or JSON): defaulted, bound to the node, its name ending in the node's, its uid a hash of
 * content, node and file, so that a changed manifest is another pod. Throws POD_INVALID naming the field.
 */
export async function decodeManifest(text: string, origin: ManifestOrigin): Promise<Pod> {
  return decodePod(withoutNulls(await parse(text)), origin);
}

/**
 * The pods in `text`, which is a Pod or a PodList as kubelet's staticPodURL gives them. One that is wrong spoils the
 * list: nobody can tell what was meant to go. Throws POD_INVALID.
 */
export async function decodeManifests(text: string, origin: ManifestOrigin): Promise<Pod[]> {
  const document = withoutNulls(await parse(text));
  const { kind, apiVersion, items } = (document ?? {}) as {
    readonly kind?: unknown;
    readonly apiVersion?: unknown;
    readonly items?: unknown;
  };
  if (kind !== 'PodList' && kind !== 'List') return [decodePod(document, origin)];
  if (apiVersion !== 'v1' || (items !== undefined && !Array.isArray(items)))
    throw new KeelsonError(
      'POD_INVALID',
      'invalid list of pods: expected apiVersion v1 and a list of items',
      {
        details: { fields: ['apiVersion', 'items'] },
      },
    );
  // The items of a typed list do not say what they are.
  const given = ((items ?? []) as unknown[]).map((item) =>
    typeof item === 'object' && item !== null && !Array.isArray(item)
      ? { apiVersion: 'v1', kind: 'Pod', ...item }
      : item,
  );
  const pods = given.map((item) => decodePod(item, origin));
  const names = pods.map(({ metadata }) => `${metadata?.namespace}/${metadata?.name}`);
  const uids = pods.map(({ metadata }) => metadata?.uid);
  const twice = names.find((name, at) => names.indexOf(name) !== at || uids.indexOf(uids[at]) !== at);
  if (twice !== undefined)
    throw new KeelsonError('POD_INVALID', `invalid list of pods: ${twice} is in it twice`, {
      details: { fields: ['items'] },
    });
  return pods;
}

function decodePod(document: unknown, origin: ManifestOrigin): Pod {
  const given = document as Pod;
  if (typeof document !== 'object' || document === null || Array.isArray(document)) {
    throw new KeelsonError('POD_INVALID', 'invalid pod: the document is not a map of fields');
  }
  if (given.kind !== 'Pod' || given.apiVersion !== 'v1') {
    throw new KeelsonError(
      'POD_INVALID',
      `invalid pod: expected apiVersion v1 and kind Pod, got ${show(given.apiVersion)} and ${show(given.kind)}`,
      { details: { fields: ['apiVersion', 'kind'] } },
    );
  }
  const fault = validatePod(given);
  if (fault !== undefined) throw fault;
  const reference = apiReference(given);
  if (reference !== undefined) {
    throw new KeelsonError('POD_INVALID', `static pods may not reference ${reference}`);
  }
  return asStatic(withTextQuantities(given), origin);
}

function asStatic(given: Pod, { file, url, nodeName, seen }: ManifestOrigin): Pod {
  const pod = defaultPod(given);
  // Hashed before defaulting, so that another default in a newer keelson restarts nothing.
  const uid =
    given.metadata?.uid ??
    createHash('sha256')
      .update(`${canonical(given)}${file === undefined ? `url:${url}` : `host:${nodeName}file:${file}`}`)
      .digest('hex')
      .slice(0, 32);
  const { metadata, spec } = pod;
  return {
    ...pod,
    metadata: {
      ...metadata,
      name: `${metadata!.name!}-${nodeName.toLowerCase()}`,
      uid,
      annotations: {
        ...metadata?.annotations,
        'kubernetes.io/config.source': file === undefined ? 'http' : 'file',
        'kubernetes.io/config.hash': uid,
        'kubernetes.io/config.seen': seen,
      },
    },
    spec: {
      ...spec!,
      nodeName,
      // Trouble of the node does not evict what the node itself was told to run.
      ...(file === undefined
        ? {}
        : { tolerations: [...(spec?.tolerations ?? []), { operator: 'Exists', effect: 'NoExecute' }] }),
    },
    status: { phase: 'Pending' },
  };
}

async function parse(text: string): Promise<unknown> {
  const bad = (why: string, cause?: unknown) =>
    new KeelsonError('POD_INVALID', `not valid YAML: ${why}`, { cause });
  if (text.trim() === '') throw new KeelsonError('POD_INVALID', 'the file is empty');
  try {
    if (text.trimStart().startsWith('{')) return JSON.parse(text) as unknown;
  } catch {
    // YAML in flow style looks like it.
  }
  const parseYaml = await yamlParser();
  try {
    const document = parseYaml(text);
    const [error] = document.errors;
    if (error?.code === 'MULTIPLE_DOCS') throw bad('it holds several documents, and a manifest is one pod');
    if (error !== undefined) throw bad(error.message.split('\n', 1)[0]!);
    return document.toJS({ maxAliasCount: 100 }) as unknown;
  } catch (error) {
    if (error instanceof KeelsonError) throw error;
    throw bad(error instanceof Error ? error.message : String(error), error);
  }
}

/** A field without a value is as absent. Entries of lists stay, for the validation to name them. */
function withoutNulls(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutNulls);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, entry]) => entry !== null && entry !== undefined)
      .map(([key, entry]) => [key, withoutNulls(entry)]),
  );
}

const quantityMaps = new Set(['limits', 'requests', 'overhead']);
const quantityFields = new Set(['sizeLimit', 'divisor']);

/** `cpu: 1` becomes `cpu: "1"`: the API has quantities as text. */
function withTextQuantities<T>(value: T): T {
  const convert = (node: unknown, inMap: boolean): unknown => {
    if (Array.isArray(node)) return node.map((entry) => convert(entry, false));
    if (typeof node !== 'object' || node === null) return node;
    return Object.fromEntries(
      Object.entries(node).map(([key, entry]: [string, unknown]) => [
        key,
        typeof entry === 'number' && (inMap || quantityFields.has(key))
          ? String(entry)
          : convert(entry, quantityMaps.has(key)),
      ]),
    );
  };
  return convert(value, false) as T;
}

/** JSON with sorted keys: the same for the same content, however it was written. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_, node: unknown) =>
    typeof node === 'object' && node !== null && !Array.isArray(node)
      ? Object.fromEntries(Object.entries(node).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)))
      : node,
  );
}

function show(value: unknown): string {
  return value === undefined ? 'nothing' : (JSON.stringify(value) ?? String(value)).slice(0, 60);
}
