/** What the files of configMap, secret and downwardAPI volumes hold. Pure. */
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { ConfigMap, Pod, Secret, Volume } from '../apiserver/types.ts';
import { metadataField, resourceField } from '../pods/downward.ts';

export interface FileProjection {
  readonly data: Buffer;
  /** Permission bits. */
  readonly mode: number;
  /** Owner; root where absent. */
  readonly uid?: number;
}
/** Files by their path below the volume. */
export type Payload = ReadonlyMap<string, FileProjection>;

type Items = readonly { readonly key: string; readonly path: string; readonly mode?: number }[] | undefined;

const maxPathLength = 4096;
const maxNameLength = 255;

function invalid(message: string): KeelsonError {
  return new KeelsonError('VOLUME_FAILED', message);
}

/** Without `items`: a file for every key. Throws VOLUME_FAILED where a key that is not optional is absent. */
export function configMapPayload(
  object: ConfigMap | undefined,
  items: Items,
  defaultMode: number,
  optional: boolean,
): Payload {
  const data = new Map<string, () => Buffer>();
  for (const [key, text] of Object.entries(object?.data ?? {})) data.set(key, () => Buffer.from(text));
  for (const [key, text] of Object.entries(object?.binaryData ?? {})) {
    if (!data.has(key)) data.set(key, () => Buffer.from(text, 'base64'));
  }
  return pick(data, items, defaultMode, optional, 'configmap references non-existent config key');
}

/** As `configMapPayload`, for a Secret. */
export function secretPayload(
  object: Secret | undefined,
  items: Items,
  defaultMode: number,
  optional: boolean,
): Payload {
  const data = new Map(
    Object.entries(object?.data ?? {}).map(
      ([key, text]) => [key, () => Buffer.from(text, 'base64')] as const,
    ),
  );
  return pick(data, items, defaultMode, optional, 'references non-existent secret key');
}

function pick(
  data: ReadonlyMap<string, () => Buffer>,
  items: Items,
  defaultMode: number,
  optional: boolean,
  complaint: string,
): Payload {
  const files = new Map<string, FileProjection>();
  if (items === undefined || items.length === 0) {
    for (const [key, read] of data) files.set(key, { data: read(), mode: defaultMode });
    return files;
  }
  for (const { key, path, mode } of items) {
    const read = data.get(key);
    if (read !== undefined) files.set(path, { data: read(), mode: mode ?? defaultMode });
    else if (!optional) throw invalid(`${complaint}: ${key}`);
  }
  return files;
}

type DownwardItems = NonNullable<NonNullable<Volume['downwardAPI']>['items']>;

/** Fields and resources of the pod itself. Throws CONTAINER_CONFIG_INVALID for a field that there is not. */
export function downwardPayload(
  pod: Pod,
  items: DownwardItems,
  defaultMode: number,
  allocatable: Readonly<Record<string, string>>,
): Payload {
  return new Map(
    items.map((item) => {
      const text = item.fieldRef
        ? metadataField(pod, item.fieldRef.fieldPath)
        : item.resourceFieldRef
          ? resourceField(pod, undefined, item.resourceFieldRef, allocatable)
          : '';
      return [item.path, { data: Buffer.from(text), mode: item.mode ?? defaultMode }] as const;
    }),
  );
}

/**
 * The payload with clean paths. Throws VOLUME_FAILED for a path that is absolute, leaves the volume, is too long or
 * would collide with the writer's own names (kubelet's atomic writer, validatePath), and where one file would have
 * to be the folder of another.
 */
export function cleanPayload(payload: Payload): Payload {
  const clean = new Map<string, FileProjection>();
  for (const [path, file] of payload) {
    if (path === '') throw invalid('a file has an empty path');
    if (path.startsWith('/')) throw invalid(`the path ${path} must be relative`);
    if (path.includes('\0')) throw invalid('a path contains a NUL byte');
    if (Buffer.byteLength(path) > maxPathLength) {
      throw invalid(`a path is longer than ${maxPathLength} bytes`);
    }
    const steps = path.split('/').filter((step) => step !== '' && step !== '.');
    if (steps.length === 0) throw invalid(`the path ${path} is the volume itself`);
    if (steps.includes('..')) throw invalid(`the path ${path} must not contain '..'`);
    if (steps[0]!.startsWith('..')) throw invalid(`the path ${path} must not start with '..'`);
    if (steps.some((step) => Buffer.byteLength(step) > maxNameLength)) {
      throw invalid(`a file name in a path is longer than ${maxNameLength} bytes`);
    }
    clean.set(steps.join('/'), file);
  }
  for (const path of clean.keys()) {
    for (let end = path.lastIndexOf('/'); end > 0; end = path.lastIndexOf('/', end - 1)) {
      if (clean.has(path.slice(0, end))) {
        throw invalid(`${path.slice(0, end)} is a file and also the folder of ${path}`);
      }
    }
  }
  return clean;
}
