/**
 * The programs of a Kubernetes control plane: from KUBEBUILDER_ASSETS (envtest's convention), or built once from the
 * Go modules that test/peers/cluster pins, into a cache folder outside the checkout.
 */
import { createHash } from 'node:crypto';
import { access, constants, mkdir, readFile, rename } from 'node:fs/promises';
import { homedir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';
import { removeTree } from '../../runtime/host/files.ts';

const pins = join(dirname(fileURLToPath(import.meta.url)), 'cluster');
const programs = ['kube-apiserver', 'etcd', 'kubectl', 'kube-controller-manager', 'kube-scheduler'] as const;

export type ClusterProgram = (typeof programs)[number];
/** Absolute path of each. */
export type ClusterPrograms = Readonly<Record<ClusterProgram, string>>;

/**
 * The programs, or the reason why they cannot be had here. A build takes minutes (5 on two cores with nothing
 * downloaded) and says so on standard error. Throws EXEC_FAILED where the build fails.
 */
export async function clusterPrograms(): Promise<ClusterPrograms | { readonly missing: string }> {
  const assets = process.env['KUBEBUILDER_ASSETS'];
  if (assets !== undefined && assets !== '') {
    const absent = await absentFrom(assets);
    return absent.length === 0
      ? inFolder(assets)
      : { missing: `KUBEBUILDER_ASSETS=${assets} lacks ${absent.join(', ')}` };
  }
  const version = /k8s\.io\/kubernetes (v\S+)/.exec(await readFile(join(pins, 'go.mod'), 'utf8'))![1]!;
  const builds = buildCommands(version);
  const key = createHash('sha256')
    .update(await readFile(join(pins, 'go.mod')))
    .update(await readFile(join(pins, 'go.sum')))
    .update(JSON.stringify([builds, process.arch]))
    .digest('hex')
    .slice(0, 12);
  const cache = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'keelson');
  const folder = join(cache, `kubernetes-${version}-${key}`);
  if ((await absentFrom(folder)).length === 0) return inFolder(folder);
  if (!(await goIsThere())) {
    return {
      missing: 'no go on the PATH to build kube-apiserver with: install Go, or set KUBEBUILDER_ASSETS',
    };
  }
  await build(builds, version, folder);
  return inFolder(folder);
}

interface Build {
  readonly name: string;
  readonly module: string;
  readonly ldflags: string;
}

/** The version is set as the official builds set it, since the apiserver's and kubectl's behaviour depends on it. */
function buildCommands(version: string): readonly Build[] {
  const minor = version.split('.')[1]!;
  const facts = {
    gitVersion: version,
    gitMajor: '1',
    gitMinor: minor,
    gitTreeState: 'clean',
    gitCommit: 'release',
    buildDate: '1970-01-01T00:00:00Z',
  };
  const stamps = ['k8s.io/component-base/version', 'k8s.io/client-go/pkg/version'].flatMap((place) =>
    Object.entries(facts).map(([name, value]) => `-X ${place}.${name}=${value}`),
  );
  return programs.map((name) =>
    name === 'etcd'
      ? { name, module: 'go.etcd.io/etcd/server/v3', ldflags: '-s -w' }
      : { name, module: `k8s.io/kubernetes/cmd/${name}`, ldflags: ['-s', '-w', ...stamps].join(' ') },
  );
}

/** Builds into a folder beside `folder` and renames it, so that a broken build or two at once leave nothing half. */
async function build(builds: readonly Build[], version: string, folder: string): Promise<void> {
  const temporary = `${folder}.${process.pid}.partial`;
  await mkdir(temporary, { recursive: true });
  try {
    for (const [index, { name, module, ldflags }] of builds.entries()) {
      console.error(
        `building ${name} (${index + 1} of ${builds.length}, Kubernetes ${version}), once; minutes`,
      );
      await exec(
        'go',
        ['build', '-mod=readonly', '-trimpath', '-ldflags', ldflags, '-o', join(temporary, name), module],
        {
          cwd: pins,
          env: { ...(process.env as Record<string, string>), CGO_ENABLED: '0', GOFLAGS: '' },
          deadlineMs: 45 * 60_000,
          onOverflow: 'discard',
        },
      );
    }
    await rename(temporary, folder).catch(async (error: unknown) => {
      // Somebody else was faster; theirs is the same.
      if ((await absentFrom(folder)).length > 0) throw error;
    });
  } finally {
    await removeTree(temporary);
  }
}

/** The programs that `folder` does not have. */
async function absentFrom(folder: string): Promise<string[]> {
  const checks = programs.map(async (name) => {
    const there = await access(join(folder, name), constants.X_OK).then(
      () => true,
      () => false,
    );
    return there ? [] : [name];
  });
  return (await Promise.all(checks)).flat();
}

const inFolder = (folder: string): ClusterPrograms =>
  Object.fromEntries(programs.map((name) => [name, join(folder, name)])) as ClusterPrograms;

async function goIsThere(): Promise<boolean> {
  const places = (process.env['PATH'] ?? '').split(delimiter).map((place) => join(place, 'go'));
  const found = await Promise.all(
    places.map((path) =>
      access(path, constants.X_OK).then(
        () => true,
        () => false,
      ),
    ),
  );
  return found.includes(true);
}

/** Says where the programs are or why not: `node test/peers/binaries.ts` builds them ahead of the tests. */
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const found = await clusterPrograms();
  if ('missing' in found) throw new KeelsonError('DEPENDENCY_MISSING', found.missing);
  console.log(dirname(found.kubectl));
}
