/**
 * The programs of a Kubernetes control plane: from KUBEBUILDER_ASSETS (envtest's convention), or built once from the
 * Go modules that test/peers/cluster pins, into a cache folder outside the checkout.
 */
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { absentFrom, type GoProgram, goPrograms } from './go-programs.ts';

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
    const absent = await absentFrom(assets, programs);
    return absent.length === 0
      ? inFolder(assets)
      : { missing: `KUBEBUILDER_ASSETS=${assets} lacks ${absent.join(', ')}` };
  }
  const version = await pinnedVersion();
  const built = await goPrograms({
    pins,
    label: `kubernetes-${version}`,
    programs: recipes(version),
    hint: 'no go on the PATH to build kube-apiserver with: install Go, or set KUBEBUILDER_ASSETS',
  });
  return 'missing' in built ? built : inFolder(built.folder);
}

/**
 * kubelet of the same version: the path, or the reason why it cannot be had here. Built apart from the others, since only
 * few tests want it. Throws EXEC_FAILED where the build fails.
 */
export async function kubeletProgram(): Promise<string | { readonly missing: string }> {
  const assets = process.env['KUBEBUILDER_ASSETS'];
  if (assets && (await absentFrom(assets, ['kubelet'])).length === 0) return join(assets, 'kubelet');
  const version = await pinnedVersion();
  const built = await goPrograms({
    pins,
    label: `kubelet-${version}`,
    programs: [{ name: 'kubelet', package: 'k8s.io/kubernetes/cmd/kubelet', ldflags: stampedFlags(version) }],
    hint: 'no go on the PATH to build kubelet with: install Go',
  });
  return 'missing' in built ? built : join(built.folder, 'kubelet');
}

async function pinnedVersion(): Promise<string> {
  return /k8s\.io\/kubernetes (v\S+)/.exec(await readFile(join(pins, 'go.mod'), 'utf8'))![1]!;
}

function recipes(version: string): readonly GoProgram[] {
  return programs.map((name) =>
    name === 'etcd'
      ? { name, package: 'go.etcd.io/etcd/server/v3', ldflags: '-s -w' }
      : { name, package: `k8s.io/kubernetes/cmd/${name}`, ldflags: stampedFlags(version) },
  );
}

/** The version is set as the official builds set it, since the apiserver's and kubectl's behaviour depends on it. */
export function stampedFlags(version: string): string {
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
  return ['-s', '-w', ...stamps].join(' ');
}

const inFolder = (folder: string): ClusterPrograms =>
  Object.fromEntries(programs.map((name) => [name, join(folder, name)])) as ClusterPrograms;

/** Says where the programs are or why not: `node test/peers/binaries.ts` builds them ahead of the tests. */
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const found = await clusterPrograms();
  if ('missing' in found) throw new KeelsonError('DEPENDENCY_MISSING', found.missing);
  console.log(dirname(found.kubectl));
  const kubelet = await kubeletProgram();
  if (typeof kubelet === 'string') console.log(kubelet);
}
