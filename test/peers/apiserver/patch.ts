/** The patch formats: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7386) and Kubernetes' strategic merge patch. */
import { isDeepStrictEqual } from 'node:util';
import { badRequest, StatusError, unsupportedMediaType } from './status.ts';

type Json = Record<string, unknown>;

const isMap = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const unprocessable = (message: string) => new StatusError(422, 'Invalid', message);

/** `target` with the patch of media type `type` applied; neither is changed. */
export function applyPatch(type: string, kind: string, target: Json, patch: unknown): Json {
  const media = type.split(';')[0]!.trim();
  if (media === 'application/json-patch+json') return jsonPatch(target, patch);
  if (!isMap(patch)) throw badRequest('the patch is not a JSON object');
  if (media === 'application/merge-patch+json') return mergePatch(target, patch) as Json;
  if (media === 'application/strategic-merge-patch+json') return strategic(kind, target, patch);
  throw unsupportedMediaType(media);
}

function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isMap(patch)) return patch;
  const result: Json = isMap(target) ? { ...target } : {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete result[key];
    else result[key] = mergePatch(result[key], value);
  }
  return result;
}

/** Lists that are merged, with the field that tells their elements apart (`patchMergeKey` in k8s.io/api). */
const mergeKeys: Readonly<Record<string, string>> = {
  addresses: 'type',
  conditions: 'type',
  containers: 'name',
  env: 'name',
  ephemeralContainers: 'name',
  hostAliases: 'ip',
  hostIPs: 'ip',
  imagePullSecrets: 'name',
  initContainers: 'name',
  ownerReferences: 'uid',
  podIPs: 'ip',
  ports: 'containerPort',
  resourceClaims: 'name',
  resourceClaimStatuses: 'name',
  schedulingGates: 'name',
  secrets: 'name',
  topologySpreadConstraints: 'topologyKey',
  volumeDevices: 'devicePath',
  volumeMounts: 'mountPath',
  volumes: 'name',
};
/** Lists of plain values that are merged as sets. */
const mergedSets: readonly string[] = ['finalizers', 'podCIDRs'];

function mergeKeyOf(kind: string, field: string): string | undefined {
  return kind === 'Service' && field === 'ports' ? 'port' : mergeKeys[field];
}

function strategic(kind: string, target: Json, patch: Json): Json {
  if (patch['$patch'] === 'replace') return withoutDirectives(patch);
  if (patch['$patch'] === 'delete') return {};
  const result: Json = { ...target };
  const retain = patch['$retainKeys'];
  if (Array.isArray(retain)) {
    for (const key of Object.keys(result)) if (!retain.includes(key)) delete result[key];
  }
  for (const [key, value] of Object.entries(patch)) {
    if (key.startsWith('$deleteFromPrimitiveList/')) {
      const field = key.slice(key.indexOf('/') + 1);
      const list = result[field];
      if (Array.isArray(list) && Array.isArray(value))
        result[field] = list.filter((item) => !value.includes(item));
    }
    if (key.startsWith('$')) continue;
    if (value === null) delete result[key];
    else if (isMap(value)) {
      const under = result[key];
      result[key] = strategic(kind, isMap(under) ? under : {}, value);
    } else if (Array.isArray(value)) {
      const under = result[key];
      result[key] = mergeLists(kind, key, Array.isArray(under) ? under : [], value);
    } else result[key] = value;
    order(result, key, patch[`$setElementOrder/${key}`], mergeKeyOf(kind, key));
  }
  return result;
}

function withoutDirectives(map: Json): Json {
  return Object.fromEntries(Object.entries(map).filter(([key]) => !key.startsWith('$')));
}

function mergeLists(kind: string, field: string, target: unknown[], patch: unknown[]): unknown[] {
  if (mergedSets.includes(field)) return [...new Set([...target, ...patch])];
  const mergeKey = mergeKeyOf(kind, field);
  if (mergeKey === undefined) return patch.map((item) => (isMap(item) ? withoutDirectives(item) : item));
  if (patch.some((item) => isMap(item) && item['$patch'] === 'replace')) {
    return patch.filter((item) => !(isMap(item) && item['$patch'] === 'replace'));
  }
  const result = [...target];
  for (const item of patch) {
    if (!isMap(item)) throw unprocessable(`${field}: an element of the patch is not an object`);
    const id = item[mergeKey];
    if (id === undefined) {
      throw unprocessable(`map: ${JSON.stringify(item)} does not contain declared merge key: ${mergeKey}`);
    }
    const index = result.findIndex((other) => isMap(other) && other[mergeKey] === id);
    if (item['$patch'] === 'delete') {
      if (index >= 0) result.splice(index, 1);
    } else if (index >= 0) result[index] = strategic(kind, result[index] as Json, item);
    else result.push(strategic(kind, {}, item));
  }
  return result;
}

/** `$setElementOrder/<list>`: named elements in that order, the others after them as they were. */
function order(result: Json, key: string, wanted: unknown, mergeKey: string | undefined): void {
  const list = result[key];
  if (!Array.isArray(wanted) || !Array.isArray(list)) return;
  const idOf = (item: unknown) => (mergeKey !== undefined && isMap(item) ? item[mergeKey] : item);
  const ids = wanted.map(idOf);
  const place = (item: unknown) => {
    const index = ids.indexOf(idOf(item));
    return index < 0 ? ids.length : index;
  };
  result[key] = [...list].sort((a, b) => place(a) - place(b));
}

function jsonPatch(target: Json, patch: unknown): Json {
  if (!Array.isArray(patch) || !patch.every(isMap))
    throw badRequest('the patch is not a JSON array of objects');
  let result = structuredClone(target);
  for (const step of patch) {
    const path = pointer(step['path']);
    if (step['op'] === 'test') {
      const found = lookup(result, path);
      if (!isDeepStrictEqual(found, step['value']))
        throw unprocessable(`testing value ${step['path']} failed: test failed`);
    } else if (step['op'] === 'remove') edit(result, path, 'remove', undefined);
    else if (step['op'] === 'add' || step['op'] === 'replace') {
      const value = structuredClone(step['value']);
      if (path.length === 0) result = value as Json;
      else edit(result, path, step['op'], value);
    } else if (step['op'] === 'move' || step['op'] === 'copy') {
      const from = pointer(step['from']);
      const value = structuredClone(lookup(result, from));
      if (step['op'] === 'move') edit(result, from, 'remove', undefined);
      edit(result, path, 'add', value);
    } else throw badRequest(`unexpected kind: ${String(step['op'])}`);
  }
  return result;
}

function pointer(text: unknown): string[] {
  if (typeof text !== 'string' || (text !== '' && !text.startsWith('/'))) {
    throw badRequest(`not a JSON pointer: ${String(text)}`);
  }
  return text
    .split('/')
    .slice(1)
    .map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'));
}

function lookup(document: unknown, path: readonly string[]): unknown {
  let value = document;
  for (const key of path) {
    if (Array.isArray(value)) value = value[Number(key)];
    else value = isMap(value) ? value[key] : undefined;
  }
  return value;
}

function edit(
  document: Json,
  path: readonly string[],
  op: 'add' | 'replace' | 'remove',
  value: unknown,
): void {
  const parent = lookup(document, path.slice(0, -1));
  const key = path.at(-1)!;
  const missing = () =>
    unprocessable(
      `the server rejected our request: ${op} operation does not apply: doc is missing path: /${path.join('/')}`,
    );
  if (Array.isArray(parent)) {
    const index = key === '-' && op === 'add' ? parent.length : Number(key);
    if (!Number.isInteger(index) || index < 0 || index > parent.length - (op === 'add' ? 0 : 1))
      throw missing();
    if (op === 'remove') parent.splice(index, 1);
    else parent.splice(index, op === 'add' ? 0 : 1, value);
  } else if (isMap(parent)) {
    if (op !== 'add' && !(key in parent)) throw missing();
    if (op === 'remove') delete parent[key];
    else parent[key] = value;
  } else throw missing();
}
