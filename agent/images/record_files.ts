/**
 * kubelet's files about pulls, below `<kubelet root>/image_manager`: in `pulling/` an ImagePullIntent for each image
 * whose pull has begun, in `pulled/` an ImagePulledRecord for each image id. The format is kubelet's, so that either
 * can go on where the other was; written durably, since a lost intent would make a pulled image look preloaded.
 */
import { createHash } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { rfc3339 } from '../../runtime/host/clock.ts';
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { ensureFolder, listFolder, sweepTemporaryFiles, writeFileAtomic } from '../../runtime/host/files.ts';
import type { Coordinates } from './credentials/keyring.ts';
import type { PulledRecord, PulledSecret, PulledWith } from './verification.ts';

export interface RecordFiles {
  writeIntent(image: string): Promise<void>;
  /** No error where there is none. */
  deleteIntent(image: string): Promise<void>;
  /** Throws FAILED_PRECONDITION where the file cannot be made sense of. */
  hasIntent(image: string): Promise<boolean>;
  /** The images of all readable intents. */
  listIntents(): Promise<readonly string[]>;
  /** Throws FAILED_PRECONDITION where the file cannot be made sense of. */
  readRecord(imageRef: string): Promise<PulledRecord | undefined>;
  writeRecord(record: PulledRecord): Promise<void>;
  deleteRecord(imageRef: string): Promise<void>;
  listRecords(): Promise<readonly PulledRecord[]>;
}

const prefix = 'sha256-';
const apiVersions = ['kubelet.config.k8s.io/v1beta1', 'kubelet.config.k8s.io/v1alpha1'];
const [apiVersion] = apiVersions;

export function recordFileName(key: string): string {
  return prefix + createHash('sha256').update(key).digest('hex');
}

/** Opens the folders; makes them where they are missing. */
export async function openRecordFiles(kubeletDir: string): Promise<RecordFiles> {
  const pulling = join(kubeletDir, 'image_manager', 'pulling');
  const pulled = join(kubeletDir, 'image_manager', 'pulled');
  for (const folder of [pulling, pulled]) {
    await ensureFolder(folder, 0o700);
    await sweepTemporaryFiles(folder);
  }
  const write = (folder: string, key: string, content: string) =>
    writeFileAtomic(join(folder, recordFileName(key)), content, { durable: true });
  // Not synced: what comes back after a power cut only asks for one more pull.
  const remove = (folder: string, key: string) => rm(join(folder, recordFileName(key)), { force: true });
  return {
    writeIntent: (image) => write(pulling, image, formatIntent(image)),
    deleteIntent: (image) => remove(pulling, image),
    async hasIntent(image) {
      const text = await readIfThere(join(pulling, recordFileName(image)));
      return text !== undefined && parseIntent(text) === image;
    },
    listIntents: () => readAll(pulling, parseIntent),
    async readRecord(imageRef) {
      const text = await readIfThere(join(pulled, recordFileName(imageRef)));
      const record = text === undefined ? undefined : parseRecord(text);
      return record?.imageRef === imageRef ? record : undefined;
    },
    writeRecord: (record) => write(pulled, record.imageRef, formatRecord(record)),
    deleteRecord: (imageRef) => remove(pulled, imageRef),
    listRecords: () => readAll(pulled, parseRecord),
  };
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** What can be read of a folder; a file that is not right stays, for whoever asks for it by name. */
async function readAll<T>(folder: string, parse: (text: string) => T): Promise<T[]> {
  const all: T[] = [];
  for (const name of await listFolder(folder)) {
    if (!/^sha256-[0-9a-f]{64}$/.test(name)) continue;
    try {
      const text = await readIfThere(join(folder, name));
      if (text !== undefined) all.push(parse(text));
    } catch {
      // Its image has to be verified: asking by name throws.
    }
  }
  return all;
}

export function formatIntent(image: string): string {
  return `${JSON.stringify({ kind: 'ImagePullIntent', apiVersion, image })}\n`;
}

export function formatRecord({ lastUpdated, imageRef, credentialMapping }: PulledRecord): string {
  return `${JSON.stringify({
    kind: 'ImagePulledRecord',
    apiVersion,
    lastUpdatedTime: rfc3339(lastUpdated),
    imageRef,
    ...(Object.keys(credentialMapping).length > 0 && { credentialMapping }),
  })}\n`;
}

/** The image. Throws FAILED_PRECONDITION. */
export function parseIntent(text: string): string {
  return stringIn(readObject(text, 'ImagePullIntent', ['image']), 'image');
}

/** Throws FAILED_PRECONDITION. Unknown fields are refused, as kubelet refuses them: they might restrict something. */
export function parseRecord(text: string): PulledRecord {
  const object = readObject(text, 'ImagePulledRecord', ['lastUpdatedTime', 'imageRef', 'credentialMapping']);
  const time = object['lastUpdatedTime'] ?? '1970-01-01T00:00:00Z';
  const lastUpdated = typeof time === 'string' ? Date.parse(time) : Number.NaN;
  if (Number.isNaN(lastUpdated)) throw unreadable('lastUpdatedTime is not a time');
  const mapping = Object.entries(asMap(object['credentialMapping'] ?? {}, 'credentialMapping'));
  return {
    lastUpdated,
    imageRef: stringIn(object, 'imageRef'),
    credentialMapping: Object.fromEntries(mapping.map(([name, value]) => [name, parsePulledWith(value)])),
  };
}

function parsePulledWith(raw: unknown): PulledWith {
  const map = asMap(raw, 'credentials');
  onlyFields(map, ['kubernetesSecrets', 'kubernetesServiceAccounts', 'nodePodsAccessible']);
  const everyone = map['nodePodsAccessible'] ?? false;
  if (typeof everyone !== 'boolean') throw unreadable('nodePodsAccessible is not a boolean');
  const kubernetesSecrets = listIn(map, 'kubernetesSecrets', (item): PulledSecret => {
    onlyFields(item, ['uid', 'namespace', 'name', 'credentialHash']);
    return { ...coordinatesIn(item), credentialHash: stringIn(item, 'credentialHash') };
  });
  const kubernetesServiceAccounts = listIn(map, 'kubernetesServiceAccounts', (item) => {
    onlyFields(item, ['uid', 'namespace', 'name']);
    return coordinatesIn(item);
  });
  return {
    ...(kubernetesSecrets.length > 0 && { kubernetesSecrets }),
    ...(kubernetesServiceAccounts.length > 0 && { kubernetesServiceAccounts }),
    ...(everyone && { nodePodsAccessible: true }),
  };
}

type Map = Readonly<Record<string, unknown>>;

function readObject(text: string, kind: string, fields: readonly string[]): Map {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw unreadable('it is not JSON');
  }
  const object = asMap(value, kind);
  if (object['kind'] !== kind || !apiVersions.includes(String(object['apiVersion']))) {
    throw unreadable(`it is not a ${kind} of ${apiVersions.join(' or ')}`);
  }
  onlyFields(object, ['kind', 'apiVersion', ...fields]);
  return object;
}

function asMap(value: unknown, what: string): Map {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Map;
  throw unreadable(`${what} is not an object`);
}

function onlyFields(map: Map, known: readonly string[]): void {
  for (const name of Object.keys(map)) {
    if (!known.includes(name)) throw unreadable(`unknown field ${JSON.stringify(name.slice(0, 100))}`);
  }
}

/** Absent is empty, as in Go. */
function stringIn(map: Map, name: string): string {
  const value = map[name] ?? '';
  if (typeof value !== 'string') throw unreadable(`${name} is not a string`);
  return value;
}

function coordinatesIn(map: Map): Coordinates {
  return { uid: stringIn(map, 'uid'), namespace: stringIn(map, 'namespace'), name: stringIn(map, 'name') };
}

function listIn<T>(map: Map, name: string, read: (item: Map) => T): T[] {
  const value = map[name] ?? [];
  if (!Array.isArray(value)) throw unreadable(`${name} is not a list`);
  return value.map((item) => read(asMap(item, name)));
}

function unreadable(why: string): KeelsonError {
  return new KeelsonError('FAILED_PRECONDITION', `a record of an image pull cannot be read: ${why}`);
}
