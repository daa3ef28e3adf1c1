/** The configuration blob of an image (OCI image-spec config.md; Docker's has the same fields), checked. */
import { KeelsonError } from '../runtime/host/errors.ts';
import { isObject, type Platform, parseDocument } from './manifest.ts';
import { isDigest } from './reference.ts';

/** What a container takes over from its image. */
export interface ImageConfig {
  /** `user[:group]`, names or numbers. */
  readonly User?: string;
  /** `NAME=value`. */
  readonly Env: string[];
  readonly Entrypoint: string[];
  readonly Cmd: string[];
  /** Empty: `/`. */
  readonly WorkingDir: string;
  readonly StopSignal?: string;
  /** Paths in the container. */
  readonly Volumes: string[];
  readonly Labels: Record<string, string>;
}

export interface ImageDocument {
  readonly platform: Platform;
  /** Digests of the uncompressed layers, lowest first. */
  readonly diffIds: readonly string[];
  readonly config: ImageConfig;
}

/** Throws IMAGE_INVALID. Fields may be null, as Docker writes them. */
export function parseImageConfig(bytes: Buffer, what: string): ImageDocument {
  const invalid = (why: string) => new KeelsonError('IMAGE_INVALID', `${what}: ${why}`);
  const json = parseDocument(bytes, what);
  const { os, architecture, variant, rootfs } = json;
  if (typeof os !== 'string' || typeof architecture !== 'string')
    throw invalid('os or architecture is missing');
  if (!isObject(rootfs) || rootfs['type'] !== 'layers') throw invalid('rootfs.type is not "layers"');
  const diffIds = rootfs['diff_ids'] ?? [];
  if (!Array.isArray(diffIds) || !diffIds.every((id) => isDigest(id) && id.startsWith('sha256:'))) {
    throw invalid('rootfs.diff_ids is not a list of sha256 digests');
  }

  const config = json['config'] ?? {};
  if (!isObject(config)) throw invalid('config is not an object');
  const text = (name: string): string | undefined => {
    const value = config[name] ?? undefined;
    if (value === undefined || value === '') return undefined;
    if (typeof value !== 'string' || value.includes('\0')) throw invalid(`config.${name} is not a text`);
    return value;
  };
  const list = (name: string): string[] => {
    const value = config[name] ?? [];
    if (!Array.isArray(value) || !value.every((item) => typeof item === 'string' && !item.includes('\0'))) {
      throw invalid(`config.${name} is not a list of texts`);
    }
    return value;
  };
  const map = (name: string): Readonly<Record<string, unknown>> => {
    const value = config[name] ?? {};
    if (!isObject(value)) throw invalid(`config.${name} is not an object`);
    return value;
  };
  const labels = Object.entries(map('Labels')).map(([key, value]): [string, string] => {
    if (typeof value !== 'string') throw invalid(`config.Labels[${JSON.stringify(key)}] is not a text`);
    return [key, value];
  });
  return {
    platform: {
      os,
      architecture,
      variant: typeof variant === 'string' && variant !== '' ? variant : undefined,
    },
    diffIds,
    config: {
      User: text('User'),
      Env: list('Env'),
      Entrypoint: list('Entrypoint'),
      Cmd: list('Cmd'),
      WorkingDir: text('WorkingDir') ?? '',
      StopSignal: text('StopSignal'),
      Volumes: Object.keys(map('Volumes')),
      Labels: Object.fromEntries(labels),
    },
  };
}

/** USER as the CRI reports it: the number, or the name, without the group; neither for none. */
export function imageUser(user: string | undefined): { uid?: number; username?: string } {
  const name = user?.split(':')[0] ?? '';
  if (name === '') return {};
  return /^\d{1,10}$/.test(name) ? { uid: Number(name) } : { username: name };
}
