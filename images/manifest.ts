/**
 * Manifests and indexes as registries send them: OCI image-spec 1.1 and Docker schema 2. Foreign JSON is checked
 * field by field here, and nowhere else; everything behind this file works with its types.
 */
import { readFileSync } from 'node:fs';
import { KeelsonError } from '../runtime/host/errors.ts';
import { isDigest } from './reference.ts';

export interface Platform {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string;
}

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  /** Bytes. */
  readonly size: number;
  /** Of a foreign layer: where else its bytes are. Anybody's words, not yet checked to be URLs. */
  readonly urls?: readonly string[];
}

export interface ImageManifest {
  readonly kind: 'manifest';
  readonly config: Descriptor;
  /** Lowest first. */
  readonly layers: readonly Descriptor[];
}

export interface ImageIndex {
  readonly kind: 'index';
  readonly manifests: readonly (Descriptor & { readonly platform?: Platform })[];
}

const types = {
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerIndex: 'application/vnd.docker.distribution.manifest.list.v2+json',
} as const;

/** For the Accept header of a manifest request. */
export const manifestTypes: readonly string[] = Object.values(types);
/** Bytes of a manifest, index or config that are read at most (the size that every registry must accept). */
export const largestManifest = 4 << 20;
/** overlayfs stacks at most 500 lower layers. */
const mostLayers = 500;
const mostManifests = 1000;
const mostUrls = 10;
/**
 * OCI's and Docker's layers, foreign ones too, and tar archives under the names of others, in any compression that is
 * unpacked: their bytes say themselves which one it is. Never encrypted ones (`+encrypted`).
 */
const layerType =
  /^application\/(?:[\w!#$&^.+-]*[.+-])?(?:tar|tgz|x-tar|x-gtar|x-gzip-tar)(?:[.+-](?:gzip|gz|zstd|zst))?$/;
const configTypes = [
  'application/vnd.oci.image.config.v1+json',
  'application/vnd.docker.container.image.v1+json',
];

type Json = Readonly<Record<string, unknown>>;

/** Parses `bytes` as a JSON object. Throws IMAGE_INVALID; `what` names the document. */
export function parseDocument(bytes: Buffer, what: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new KeelsonError('IMAGE_INVALID', `${what} is not JSON`, { cause: error });
  }
  if (!isObject(value)) throw new KeelsonError('IMAGE_INVALID', `${what} is not a JSON object`);
  return value;
}

export function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * `contentType` is the HTTP header's, used where the document does not name its own type.
 * Throws IMAGE_INVALID, or IMAGE_UNSUPPORTED for schema 1 and for artifacts that are not container images.
 */
export function parseManifest(
  bytes: Buffer,
  contentType: string | undefined,
  what: string,
): ImageManifest | ImageIndex {
  const invalid = (why: string) => new KeelsonError('IMAGE_INVALID', `${what}: ${why}`);
  const json = parseDocument(bytes, what);
  const mediaType =
    typeof json['mediaType'] === 'string' ? json['mediaType'] : contentType?.split(';')[0]?.trim();
  if (
    json['schemaVersion'] === 1 ||
    mediaType?.startsWith('application/vnd.docker.distribution.manifest.v1')
  ) {
    throw new KeelsonError('IMAGE_UNSUPPORTED', `${what} has the old Docker manifest schema 1`, {
      hint: 'push the image again with a current tool, which writes OCI or schema 2 manifests',
    });
  }
  if (json['schemaVersion'] !== 2) throw invalid('schemaVersion is not 2');
  const { layers, manifests, config } = json;
  // A document that is both could be read as one thing by us and as another by who signed it (CVE-2021-41190).
  if (manifests !== undefined && (layers !== undefined || config !== undefined)) {
    throw invalid('it is a manifest and an index at once');
  }
  const isIndex = manifests !== undefined;
  const expected: readonly string[] = isIndex
    ? [types.ociIndex, types.dockerIndex]
    : [types.ociManifest, types.dockerManifest];
  if (mediaType !== undefined && manifestTypes.includes(mediaType) && !expected.includes(mediaType)) {
    throw invalid(`it says that it is ${mediaType}, but it is ${isIndex ? 'an index' : 'a manifest'}`);
  }
  if (isIndex) {
    if (!Array.isArray(manifests)) throw invalid('manifests is not a list');
    if (manifests.length > mostManifests) throw invalid(`it names more than ${mostManifests} manifests`);
    return {
      kind: 'index',
      manifests: manifests.flatMap((entry: unknown, at) => {
        const found = readDescriptor(entry, `manifests[${at}]`, invalid);
        const platform = readPlatform((entry as Json)['platform'], `manifests[${at}].platform`, invalid);
        const annotations = (entry as Json)['annotations'];
        const attestation = isObject(annotations) && 'vnd.docker.reference.type' in annotations;
        return attestation || platform?.os === 'unknown' ? [] : [{ ...found, platform }];
      }),
    };
  }
  if (!Array.isArray(layers)) throw invalid('layers is not a list');
  if (layers.length > mostLayers) throw invalid(`it has more than ${mostLayers} layers`);
  const configFound = readDescriptor(config, 'config', invalid);
  if (!configTypes.includes(configFound.mediaType)) throw artifact(json, configFound, layers, what);
  if (configFound.size > largestManifest) throw invalid(`config has more than ${largestManifest} bytes`);
  return {
    kind: 'manifest',
    config: configFound,
    layers: layers.map((entry: unknown, at) => {
      const layer = readDescriptor(entry, `layers[${at}]`, invalid);
      const urls = readUrls((entry as Json)['urls'], `layers[${at}].urls`, invalid);
      if (layerType.test(layer.mediaType)) return urls === undefined ? layer : { ...layer, urls };
      throw new KeelsonError(
        'IMAGE_UNSUPPORTED',
        `${what}: layer ${layer.digest} is of a type that cannot be unpacked: ${JSON.stringify(layer.mediaType.slice(0, 200))}`,
      );
    }),
  };
}

/** An OCI artifact (image-spec 1.1, "artifacts usage"): it has no root file system, whatever its layers are. */
function artifact(json: Json, config: Descriptor, layers: readonly unknown[], what: string): KeelsonError {
  const shown = (type: unknown) => JSON.stringify(String(type).slice(0, 100));
  const { artifactType = config.mediaType } = json;
  const types = [...new Set(layers.map((layer) => (isObject(layer) ? layer['mediaType'] : undefined)))];
  const more = types.length > 5 ? `, and ${types.length - 5} more` : '';
  return new KeelsonError(
    'IMAGE_UNSUPPORTED',
    `${what} is not a container image: it is an artifact of type ${shown(artifactType)} with layers of type ${types.slice(0, 5).map(shown).join(', ') || 'none'}${more}; its config is ${shown(config.mediaType)}`,
    { hint: 'only images with a root file system can be run or mounted; build the content into an image' },
  );
}

type Invalid = (why: string) => KeelsonError;

/** Schemes are checked where the URLs are used. */
function readUrls(value: unknown, where: string, invalid: Invalid): readonly string[] | undefined {
  if (value === undefined || value === null) return undefined;
  if (!Array.isArray(value) || !value.every((url) => typeof url === 'string' && url.length <= 4096)) {
    throw invalid(`${where} is not a list of URLs`);
  }
  if (value.length > mostUrls) throw invalid(`${where} has more than ${mostUrls} URLs`);
  return value.length === 0 ? undefined : value;
}

function readDescriptor(value: unknown, where: string, invalid: Invalid): Descriptor {
  if (!isObject(value)) throw invalid(`${where} is not an object`);
  const { mediaType, digest, size } = value;
  if (typeof mediaType !== 'string') throw invalid(`${where}.mediaType is not a string`);
  if (!isDigest(digest)) throw invalid(`${where}.digest is not a sha256 or sha512 digest`);
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) {
    throw invalid(`${where}.size is not a number of bytes`);
  }
  return { mediaType, digest, size };
}

function readPlatform(value: unknown, where: string, invalid: Invalid): Platform | undefined {
  if (value === undefined || value === null) return undefined;
  if (!isObject(value)) throw invalid(`${where} is not an object`);
  const { os, architecture, variant } = value;
  if (typeof os !== 'string' || typeof architecture !== 'string') {
    throw invalid(`${where} lacks os or architecture`);
  }
  return { os, architecture, variant: typeof variant === 'string' && variant !== '' ? variant : undefined };
}

/** Whether this node can run images for `offered`, and how well: lower is better, undefined is not at all. */
export function platformRank(node: Platform, offered: Platform): number | undefined {
  if (offered.os !== node.os) return undefined;
  const version = (platform: Platform): number => {
    const match = /^v(\d+)/.exec(platform.variant ?? '');
    if (match !== null) return Number(match[1]);
    return platform.architecture === 'arm64' ? 8 : platform.architecture === 'arm' ? 7 : 1;
  };
  if (offered.architecture === node.architecture) {
    const distance = version(node) - version(offered);
    return distance < 0 ? undefined : distance;
  }
  // The 32-bit programs that a 64-bit processor usually runs too, as containerd chooses.
  if (node.architecture === 'amd64' && offered.architecture === '386') return 100;
  if (node.architecture === 'arm64' && offered.architecture === 'arm') return 100 + 8 - version(offered);
  return undefined;
}

/** The entry of an index for `node`: the best platform, then one that names none. Throws IMAGE_PLATFORM_MISSING. */
export function chooseManifest(index: ImageIndex, node: Platform, what: string): Descriptor {
  let best: { entry: Descriptor; rank: number } | undefined;
  for (const entry of index.manifests) {
    const rank = entry.platform === undefined ? 1000 : platformRank(node, entry.platform);
    if (rank !== undefined && (best === undefined || rank < best.rank)) best = { entry, rank };
  }
  if (best !== undefined) return best.entry;
  const offered = index.manifests.flatMap(({ platform }) => (platform ? [formatPlatform(platform)] : []));
  throw platformMissing(node, offered, what);
}

export function platformMissing(node: Platform, offered: readonly string[], what: string): KeelsonError {
  return new KeelsonError(
    'IMAGE_PLATFORM_MISSING',
    `${what} is not for ${formatPlatform(node)}; it is for ${offered.slice(0, 20).join(', ') || 'no platform at all'}`,
    { hint: 'build the image for the platform of the node, or bind the pod to another node' },
  );
}

/** `linux/arm64/v8`. */
export function formatPlatform({ os, architecture, variant }: Platform): string {
  return [os, architecture, ...(variant === undefined ? [] : [variant])].join('/').slice(0, 100);
}

/** The platform of this process in OCI's names, with what the processor can do as the variant. */
export function nodePlatform(): Platform {
  const architectures: Readonly<Record<string, string>> = { x64: 'amd64', ia32: '386' };
  const architecture = architectures[process.arch] ?? process.arch;
  let cpuinfo = '';
  try {
    cpuinfo = readFileSync('/proc/cpuinfo', 'latin1');
  } catch {
    // The least of each architecture is assumed.
  }
  return { os: process.platform, architecture, variant: cpuVariant(architecture, cpuinfo) };
}

/**
 * The variant of a processor by /proc/cpuinfo: `v1` to `v4` for amd64 (the levels of the x86-64 psABI), `v5` to `v8`
 * for arm, `v8` and later for arm64. Undefined where it says nothing, and for other architectures.
 */
export function cpuVariant(architecture: string, cpuinfo: string): string | undefined {
  const field = (name: string) => new RegExp(`^${name}\\s*:\\s*(.*)$`, 'mi').exec(cpuinfo)?.[1]?.trim();
  if (architecture === 'arm' || architecture === 'arm64') {
    const version = Number(/^\d+/.exec(field('CPU architecture') ?? '')?.[0]);
    if (architecture === 'arm64') return version > 8 ? `v${version}` : 'v8';
    // ARM1176 processors (the first Raspberry Pi) call themselves version 7.
    if (version === 7 && /v6l/i.test(field('model name') ?? '')) return 'v6';
    return version >= 5 ? `v${Math.min(version, 8)}` : 'v7';
  }
  if (architecture !== 'amd64') return undefined;
  const flags = new Set(field('flags')?.split(/\s+/));
  if (flags.size < 2) return undefined;
  const level = x86Levels.findIndex((needed) => !needed.every((flag) => flags.has(flag)));
  return `v${level === -1 ? x86Levels.length + 1 : level + 1}`;
}

/** What v2, v3 and v4 need beyond the level below, in the kernel's names (`pni` is SSE3, `abm` has LZCNT). */
const x86Levels: readonly (readonly string[])[] = [
  ['cx16', 'lahf_lm', 'popcnt', 'pni', 'sse4_1', 'sse4_2', 'ssse3'],
  ['avx', 'avx2', 'bmi1', 'bmi2', 'f16c', 'fma', 'abm', 'movbe', 'xsave'],
  ['avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl'],
];
