/**
 * The image of `npm run bench:pull`: 7 layers, about 470 MB and 27,000 files of Debian and npm packages, as an OCI
 * layout in the user's cache folder, with gzip layers (reference `gzip`) and with zstd ones (`zstd`). Built once.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { access, copyFile, mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import { exec } from '../../../runtime/host/exec.ts';
import { removeTree } from '../../../runtime/host/files.ts';
import { openSuite, unpackPackages } from '../../peers/debian.ts';
import { cacheFolder } from '../../peers/go-programs.ts';

const here = dirname(fileURLToPath(import.meta.url));
const repository = join(here, '../../..');

export const kinds = ['gzip', 'zstd'] as const;
export type Kind = (typeof kinds)[number];

/** What decides what is in the image; a change makes another one. */
const recipe = {
  version: 2,
  suite: 'bookworm',
  base: [
    'apt',
    'base-files',
    'base-passwd',
    'bash',
    'bsdutils',
    'coreutils',
    'dash',
    'debianutils',
    'diffutils',
  ].concat(
    ['dpkg', 'findutils', 'grep', 'gzip', 'hostname', 'init-system-helpers', 'libc-bin', 'login', 'mount'],
    ['ncurses-base', 'ncurses-bin', 'passwd', 'perl-base', 'sed', 'sysvinit-utils', 'tar', 'util-linux'],
  ),
  tools: [
    'ca-certificates',
    'curl',
    'git',
    'gnupg',
    'iproute2',
    'less',
    'openssh-client',
    'procps',
    'vim-tiny',
  ],
  python: ['python3', 'python3-pip'],
  /** Npm packages that make the application layer. */
  application: ['prettier', 'react', 'react-dom', 'scheduler', 'express'],
  /** As slim images leave them out. */
  leftOut: ['usr/share/doc', 'usr/share/info', 'usr/share/locale', 'usr/share/man'],
  /** No file is newer: the layers of two builds are the same while the packages are. */
  newest: 1_735_689_600,
  gzip: ['gzip', '-n', '-6'],
  zstd: ['zstd', '-q', '-3', '-T1'],
};

export interface BenchImage {
  /** The OCI layout. */
  readonly layout: string;
  /** Paths of the compressed layers, lowest first. */
  readonly layers: Readonly<Record<Kind, readonly string[]>>;
  /** The uncompressed layers, lowest first. */
  readonly contents: readonly LayerContents[];
}

interface LayerContents {
  readonly name: string;
  /** Of the tar archive. */
  readonly bytes: number;
  readonly entries: number;
  /** Entries other than folders. */
  readonly files: number;
}

interface Summary {
  readonly contents: BenchImage['contents'];
  readonly layers: Readonly<Record<Kind, readonly string[]>>;
}

/** The image; builds it where it is not in the cache yet, which takes about two minutes and is said on standard error. */
export async function benchImage(signal: AbortSignal): Promise<BenchImage> {
  const lock = await readFile(join(here, 'npm/package-lock.json'));
  const key = createHash('sha256')
    .update(JSON.stringify([recipe, process.version, process.arch]))
    .update(lock)
    .digest('hex')
    .slice(0, 12);
  const folder = join(cacheFolder(), `bench-pull-${key}`);
  const built = await access(join(folder, 'summary.json')).then(
    () => true,
    () => false,
  );
  if (!built) await build(folder, signal);
  const { contents, layers } = JSON.parse(await readFile(join(folder, 'summary.json'), 'utf8')) as Summary;
  const layout = join(folder, 'layout');
  const paths = (kind: Kind) => layers[kind].map((digest) => blobPath(layout, digest));
  return { layout, contents, layers: { gzip: paths('gzip'), zstd: paths('zstd') } };
}

const blobPath = (layout: string, digest: string) =>
  join(layout, 'blobs/sha256', digest.replace('sha256:', ''));

/** Builds into a folder beside `folder` and renames it, so that a broken build leaves nothing half. */
async function build(folder: string, signal: AbortSignal): Promise<void> {
  console.error(`building the image of the benchmark into ${folder}, once; minutes`);
  const partial = `${folder}.${process.pid}.partial`;
  try {
    await mkdir(join(partial, 'layout/blobs/sha256'), { recursive: true });
    const work = join(partial, 'work');
    const roots = await fillLayers(work, signal);
    const summary = await writeLayout(join(partial, 'layout'), roots, work, signal);
    await rm(work, { recursive: true });
    await writeFile(join(partial, 'summary.json'), `${JSON.stringify(summary, null, 2)}\n`);
    await rename(partial, folder).catch(async (error: unknown) => {
      // Somebody else was faster; theirs is the same.
      await access(join(folder, 'summary.json')).catch(() => Promise.reject(error));
    });
  } finally {
    await removeTree(partial);
  }
}

/** Makes the contents of the layers below `work`; returns their names and folders, lowest first. */
async function fillLayers(work: string, signal: AbortSignal): Promise<{ name: string; root: string }[]> {
  const names = ['base', 'tools', 'python', 'node', 'packages', 'application', 'configuration'];
  const layers = names.map((name) => ({ name, root: join(work, name) }));
  const rootOf = (name: string) => join(work, name);
  const [base, tools, python] = [rootOf('base'), rootOf('tools'), rootOf('python')];
  for (const { root } of layers) await mkdir(root, { recursive: true });

  const suite = await openSuite(recipe.suite, join(work, 'apt'), signal);
  await unpackPackages(await suite.downloadWithDependencies(recipe.base), base, signal);
  const all = [...recipe.base, ...recipe.tools];
  await unpackPackages(await suite.downloadWithDependencies(all), tools, signal);
  await unpackPackages(await suite.downloadWithDependencies([...all, ...recipe.python]), python, signal);
  for (const root of [base, tools, python]) {
    for (const path of recipe.leftOut) await rm(join(root, path), { recursive: true, force: true });
    // Only the lowest layer has the links of the merged /usr: in a higher one they would only repeat it.
    if (root !== base) for (const link of ['bin', 'sbin', 'lib', 'lib64']) await rm(join(root, link));
  }

  const node = rootOf('node');
  await mkdir(join(node, 'usr/local/bin'), { recursive: true });
  await copyFile(await findNode(), join(node, 'usr/local/bin/node'));

  const modules = join(rootOf('packages'), 'srv/packages');
  await mkdir(modules, { recursive: true });
  for (const file of ['package.json', 'package-lock.json']) {
    await copyFile(join(here, 'npm', file), join(modules, file));
  }
  await exec('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'], {
    cwd: modules,
    env: process.env as Record<string, string>,
    deadlineMs: 10 * 60_000,
    onOverflow: 'discard',
    signal,
  });
  const vendor = join(rootOf('application'), 'srv/application/vendor');
  await mkdir(vendor, { recursive: true });
  for (const name of recipe.application)
    await rename(join(modules, 'node_modules', name), join(vendor, name));

  const configuration = rootOf('configuration');
  await mkdir(join(configuration, 'etc/application'), { recursive: true });
  await writeFile(join(configuration, 'etc/hostname'), 'bench\n');
  await writeFile(join(configuration, 'etc/application/settings.json'), '{"listen":"0.0.0.0:8080"}\n');
  return layers;
}

/** The Node.js that package.json pins, from npm; the running one where this machine has another. */
async function findNode(): Promise<string> {
  const pinned = join(repository, `node_modules/node-linux-${process.arch}/bin/node`);
  return access(pinned).then(
    () => pinned,
    () => process.execPath,
  );
}

/** Packs each folder as a layer, compresses it twice and writes configuration, manifests and index. */
async function writeLayout(
  layout: string,
  roots: readonly { name: string; root: string }[],
  work: string,
  signal: AbortSignal,
): Promise<Summary> {
  const contents: LayerContents[] = [];
  const diffIds: string[] = [];
  const layers: Record<Kind, Descriptor[]> = { gzip: [], zstd: [] };
  for (const { name, root } of roots) {
    const tar = join(work, `${name}.tar`);
    const packing = await exec(
      'tar',
      [
        '--create',
        `--file=${tar}`,
        '--format=gnu',
        '--sort=name',
        '--numeric-owner',
        '--owner=0',
        '--group=0',
      ].concat([
        '--clamp-mtime',
        `--mtime=@${recipe.newest}`,
        '--verbose',
        '--transform=s,^\\./,,',
        '--directory',
        root,
        '.',
      ]),
      { deadlineMs: 10 * 60_000, maxOutput: 64 << 20, signal },
    );
    const entries = packing.stdout.toString('utf8').trimEnd().split('\n');
    const files = entries.filter((entry) => !entry.endsWith('/')).length;
    contents.push({ name, bytes: (await stat(tar)).size, entries: entries.length, files });
    diffIds.push(await digestOf(tar));
    const compressed = await Promise.all(
      kinds.map(async (kind) => {
        const file = `${tar}.${kind}`;
        await exec('sh', ['-c', '"$@" < "$IN" > "$OUT"', 'sh', ...recipe[kind]], {
          env: { PATH: process.env['PATH'] ?? '', IN: tar, OUT: file },
          deadlineMs: 10 * 60_000,
          signal,
        });
        return addBlob(layout, file, `application/vnd.oci.image.layer.v1.tar+${kind}`);
      }),
    );
    kinds.forEach((kind, index) => {
      layers[kind].push(compressed[index]!);
    });
    await rm(tar);
  }
  const architecture = process.arch === 'x64' ? 'amd64' : process.arch;
  const config = await addJson(layout, work, 'application/vnd.oci.image.config.v1+json', {
    architecture,
    os: 'linux',
    created: new Date(recipe.newest * 1000).toISOString(),
    config: { Env: ['PATH=/usr/local/bin:/usr/bin'], Cmd: ['bash'] },
    rootfs: { type: 'layers', diff_ids: diffIds },
    history: roots.map(({ name }) => ({ created_by: `the ${name} layer of npm run bench:pull` })),
  });
  const manifests = [];
  for (const kind of kinds) {
    const mediaType = 'application/vnd.oci.image.manifest.v1+json';
    const manifest = await addJson(layout, work, mediaType, {
      schemaVersion: 2,
      mediaType,
      config,
      layers: layers[kind],
    });
    manifests.push({ ...manifest, annotations: { 'org.opencontainers.image.ref.name': kind } });
  }
  await writeFile(
    join(layout, 'index.json'),
    `${JSON.stringify({ schemaVersion: 2, mediaType: 'application/vnd.oci.image.index.v1+json', manifests })}\n`,
  );
  await writeFile(join(layout, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}\n');
  const digests = (kind: Kind) => layers[kind].map(({ digest }) => digest);
  return { contents, layers: { gzip: digests('gzip'), zstd: digests('zstd') } };
}

interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
}

async function addJson(
  layout: string,
  work: string,
  mediaType: string,
  content: object,
): Promise<Descriptor> {
  const file = join(work, 'blob.json');
  await writeFile(file, JSON.stringify(content));
  return addBlob(layout, file, mediaType);
}

/** Moves `file` to where the layout has it. */
async function addBlob(layout: string, file: string, mediaType: string): Promise<Descriptor> {
  const digest = await digestOf(file);
  const { size } = await stat(file);
  await rename(file, blobPath(layout, digest));
  return { mediaType, digest, size };
}

async function digestOf(file: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(file, { highWaterMark: 1 << 20 }), hash);
  return `sha256:${hash.digest('hex')}`;
}
