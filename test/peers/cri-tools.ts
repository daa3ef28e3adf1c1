/**
 * The programs that speak with a runtime through the container runtime interface as Kubernetes' own tests do: critest
 * (with the runner that it needs for parallel runs), crictl, and a program for critest's no-new-privileges image. Built
 * once from the Go modules that test/peers/cri-tools pins, into a cache folder outside the checkout.
 */
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { goPrograms } from './go-programs.ts';

const pins = join(dirname(fileURLToPath(import.meta.url)), 'cri-tools');

export interface CriTools {
  /** `1.37.0` */
  readonly version: string;
  /** Absolute paths. */
  readonly critest: string;
  readonly crictl: string;
  /** critest starts it for `-parallel`, from the PATH: put its folder there. */
  readonly ginkgo: string;
  /** Prints its effective user id. */
  readonly nonewprivs: string;
}

/**
 * The programs, or the reason why they cannot be had here. A build takes some minutes and says so on standard error.
 * Throws EXEC_FAILED where the build fails.
 */
export async function criTools(): Promise<CriTools | { readonly missing: string }> {
  const version = /sigs\.k8s\.io\/cri-tools v(\S+)/.exec(await readFile(join(pins, 'go.mod'), 'utf8'))![1]!;
  const ldflags = `-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=${version}`;
  const built = await goPrograms({
    pins,
    label: `cri-tools-${version}`,
    programs: [
      { name: 'critest', package: 'sigs.k8s.io/cri-tools/cmd/critest', ldflags, tests: true },
      { name: 'crictl', package: 'sigs.k8s.io/cri-tools/cmd/crictl', ldflags },
      { name: 'ginkgo', package: 'github.com/onsi/ginkgo/v2/ginkgo', ldflags: '-s -w' },
      { name: 'nonewprivs', package: './nonewprivs', ldflags: '-s -w' },
    ],
    hint: 'no go on the PATH to build critest and crictl with: install Go',
  });
  if ('missing' in built) return built;
  const at = (name: string) => join(built.folder, name);
  return {
    version,
    critest: at('critest'),
    crictl: at('crictl'),
    ginkgo: at('ginkgo'),
    nonewprivs: at('nonewprivs'),
  };
}

/** Says where the programs are or why not: `node test/peers/cri-tools.ts` builds them ahead of the tests. */
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const found = await criTools();
  if ('missing' in found) throw new KeelsonError('DEPENDENCY_MISSING', found.missing);
  console.log(dirname(found.crictl));
}
