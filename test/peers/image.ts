/** Builds small real OCI images and puts them into a registry over its HTTP API. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { makeTar, type TarEntry } from './tar.ts';

export interface LayerSpec {
  readonly files: readonly TarEntry[];
  /** Default gzip. */
  readonly compression?: 'gzip' | 'zstd' | 'none';
}

export interface Blob {
  readonly digest: string;
  readonly data: Buffer;
  readonly mediaType: string;
}

export interface BuiltImage {
  /** The config digest: the image id. */
  readonly id: string;
  readonly manifest: Blob;
  readonly config: Blob;
  readonly layers: readonly (Blob & { readonly diffId: string })[];
  readonly platform: { readonly os: string; readonly architecture: string; readonly variant?: string };
}

/** The `config` object of an OCI image configuration. */
export interface ImageRunConfig {
  readonly User?: string;
  readonly Env?: readonly string[];
  readonly Entrypoint?: readonly string[];
  readonly Cmd?: readonly string[];
  readonly WorkingDir?: string;
  readonly StopSignal?: string;
  readonly Volumes?: Readonly<Record<string, object>>;
  readonly Labels?: Readonly<Record<string, string>>;
}

export const ociManifest = 'application/vnd.oci.image.manifest.v1+json';
export const ociIndex = 'application/vnd.oci.image.index.v1+json';
const dockerManifest = 'application/vnd.docker.distribution.manifest.v2+json';
const architectures: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64' };

export function sha256(data: string | Buffer): string {
  return `sha256:${createHash('sha256').update(data).digest('hex')}`;
}

export function makeBlob(data: Buffer, mediaType: string): Blob {
  return { digest: sha256(data), data, mediaType };
}

/** The image of `layers`, lowest first. The same input gives the same digests. */
export function buildImage(options: {
  readonly layers: readonly LayerSpec[];
  readonly config?: ImageRunConfig;
  /** Default: this machine's. */
  readonly platform?: { readonly os: string; readonly architecture: string; readonly variant?: string };
  /** Write Docker schema 2 instead of OCI media types. */
  readonly docker?: boolean;
}): BuiltImage {
  const platform = options.platform ?? {
    os: 'linux',
    architecture: architectures[process.arch] ?? process.arch,
  };
  const layers = options.layers.map((spec) => buildLayer(spec, options.docker ?? false));
  const config = makeBlob(
    Buffer.from(
      JSON.stringify({
        created: '2024-01-01T00:00:00Z',
        ...platform,
        config: options.config ?? {},
        rootfs: { type: 'layers', diff_ids: layers.map((layer) => layer.diffId) },
      }),
    ),
    options.docker
      ? 'application/vnd.docker.container.image.v1+json'
      : 'application/vnd.oci.image.config.v1+json',
  );
  const mediaType = options.docker ? dockerManifest : ociManifest;
  const manifest = makeBlob(
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType,
        config: descriptor(config),
        layers: layers.map(descriptor),
      }),
    ),
    mediaType,
  );
  return { id: config.digest, manifest, config, layers, platform };
}

/** What names a blob in a manifest or index. */
export function descriptor(blob: Blob): { mediaType: string; digest: string; size: number } {
  return { mediaType: blob.mediaType, digest: blob.digest, size: blob.data.length };
}

function buildLayer(spec: LayerSpec, docker: boolean): Blob & { diffId: string } {
  const tar = makeTar(spec.files);
  const compression = spec.compression ?? 'gzip';
  const data =
    compression === 'gzip'
      ? gzipSync(tar, { level: 6 })
      : compression === 'zstd'
        ? zstdCompressSync(tar)
        : tar;
  const suffix = compression === 'none' ? '' : compression;
  const mediaType = docker
    ? `application/vnd.docker.image.rootfs.diff.tar${suffix && `.${suffix}`}`
    : `application/vnd.oci.image.layer.v1.tar${suffix && `+${suffix}`}`;
  return { ...makeBlob(data, mediaType), diffId: sha256(tar) };
}

/** Pushes over plain http to `host` as `repo:tag` (or `repo` by digest only); returns the manifest digest. */
export async function pushImage(host: string, reference: string, image: BuiltImage): Promise<string> {
  const { repository, tag } = split(reference);
  await Promise.all([image.config, ...image.layers].map((blob) => pushBlob(host, repository, blob)));
  await putManifest(host, repository, tag ?? image.manifest.digest, image.manifest);
  return image.manifest.digest;
}

/** Pushes all `images` and an OCI index of them as `reference`; returns the index's digest. */
export async function pushIndex(
  host: string,
  reference: string,
  images: readonly BuiltImage[],
): Promise<string> {
  const { repository, tag } = split(reference);
  for (const image of images) await pushImage(host, repository, image);
  const index = makeBlob(
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: ociIndex,
        manifests: images.map((image) => ({ ...descriptor(image.manifest), platform: image.platform })),
      }),
    ),
    ociIndex,
  );
  await putManifest(host, repository, tag ?? index.digest, index);
  return index.digest;
}

function split(reference: string): { repository: string; tag?: string } {
  const colon = reference.lastIndexOf(':');
  return colon === -1
    ? { repository: reference }
    : { repository: reference.slice(0, colon), tag: reference.slice(colon + 1) };
}

async function pushBlob(host: string, repository: string, blob: Blob): Promise<void> {
  const base = `http://${host}/v2/${repository}/blobs`;
  const head = await fetch(`${base}/${blob.digest}`, { method: 'HEAD' });
  if (head.ok) return;
  const started = await expectOk(await fetch(`${base}/uploads/`, { method: 'POST' }), 'start upload');
  const location = new URL(started.headers.get('location')!, `http://${host}`);
  location.searchParams.set('digest', blob.digest);
  await expectOk(
    await fetch(location, {
      method: 'PUT',
      headers: { 'content-type': 'application/octet-stream' },
      body: new Uint8Array(blob.data),
    }),
    `upload ${blob.digest}`,
  );
}

async function putManifest(host: string, repository: string, name: string, blob: Blob): Promise<void> {
  await expectOk(
    await fetch(`http://${host}/v2/${repository}/manifests/${name}`, {
      method: 'PUT',
      headers: { 'content-type': blob.mediaType },
      body: new Uint8Array(blob.data),
    }),
    `put manifest ${repository}:${name}`,
  );
}

async function expectOk(response: Response, what: string): Promise<Response> {
  const text = await response.text();
  if (!response.ok) throw new Error(`${what}: ${response.status} ${text}`);
  return response;
}

const installedBusybox = '/bin/busybox';
const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/www:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
`;
const group = `root:x:0:
daemon:x:1:
www-data:x:33:
users:x:100:www-data
nogroup:x:65534:
`;

/**
 * A busybox image of three layers: the binary with a link for each of its applets in /bin; /etc; /www/index.html.
 * Runs `sh` by default. `config` replaces single fields of the configuration, `files` adds a fourth layer.
 */
export function busyboxImage(
  options: {
    config?: ImageRunConfig;
    page?: string;
    files?: readonly TarEntry[];
    /** Path of a static busybox; default: the machine's. */
    program?: string;
  } = {},
): BuiltImage {
  const busybox = options.program ?? installedBusybox;
  if (!existsSync(busybox)) throw new Error(`${busybox} is missing: apt-get install busybox-static`);
  const applets = execFileSync(busybox, ['--list'], { encoding: 'utf8' })
    .split('\n')
    .filter((name) => name !== '' && name !== 'busybox');
  const folder = (path: string, mode = 0o755): TarEntry => ({ path, type: 'directory', mode });
  const layers: LayerSpec[] = [
    {
      files: [
        ...['bin', 'dev', 'etc', 'proc', 'sys', 'usr', 'usr/bin', 'var', 'var/tmp'].map((path) =>
          folder(path),
        ),
        folder('root', 0o700),
        folder('tmp', 0o1777),
        { path: 'bin/busybox', fromHost: busybox, mode: 0o755 },
        ...applets.map((name): TarEntry => ({ path: `bin/${name}`, type: 'symlink', target: 'busybox' })),
      ],
    },
    {
      files: [
        folder('etc'),
        { path: 'etc/passwd', content: passwd },
        { path: 'etc/group', content: group },
        { path: 'etc/nsswitch.conf', content: 'passwd: files\ngroup: files\nhosts: files dns\n' },
      ],
    },
    {
      files: [
        folder('www'),
        { path: 'www/index.html', content: options.page ?? '<h1>It works: keelson test page</h1>\n' },
      ],
    },
  ];
  if (options.files !== undefined) layers.push({ files: options.files });
  return buildImage({
    layers,
    config: {
      Env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
      Cmd: ['sh'],
      ...options.config,
    },
  });
}

/** A static program that does nothing but wait: what other runtimes hold the namespaces of a pod with. `mark` makes another image. */
export function pauseImage(mark = ''): BuiltImage {
  const catatonit = execFileSync('sh', ['-c', 'command -v catatonit'], { encoding: 'utf8' }).trim();
  return buildImage({
    layers: [{ files: [{ path: 'pause', fromHost: catatonit, mode: 0o755 }] }],
    config: { Entrypoint: ['/pause', '-P'], Labels: { 'test.keelson/pause': mark } },
  });
}
