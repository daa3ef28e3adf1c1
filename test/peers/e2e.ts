/**
 * Kubernetes' own end-to-end suite, the runner that it needs for parallel specs, and the program that most of its pods run.
 * Built once from the Go modules that test/peers/e2e pins, into a cache folder outside the checkout.
 */
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { stampedFlags } from './binaries.ts';
import { goPrograms } from './go-programs.ts';

const pins = join(dirname(fileURLToPath(import.meta.url)), 'e2e');

export interface E2ePrograms {
  /** `v1.37.2` */
  readonly version: string;
  /** Absolute paths. */
  readonly suite: string;
  readonly ginkgo: string;
  /** Of the image that has it as `/agnhost`: a static program of many verbs. */
  readonly agnhost: string;
  /** Prints its effective user id. */
  readonly nonewprivs: string;
}

/**
 * The programs, or the reason why they cannot be had here. A build takes some minutes and says so on standard error.
 * Throws EXEC_FAILED where the build fails.
 */
export async function e2ePrograms(): Promise<E2ePrograms | { readonly missing: string }> {
  const version = /k8s\.io\/kubernetes (v\S+)/.exec(await readFile(join(pins, 'go.mod'), 'utf8'))![1]!;
  const built = await goPrograms({
    pins,
    label: `e2e-${version}`,
    programs: [
      ...(['agnhost', 'nonewprivs'] as const).map((name) => ({
        name,
        package: `k8s.io/kubernetes/test/images/${name}`,
        ldflags: '-s -w',
      })),
      { name: 'ginkgo', package: 'github.com/onsi/ginkgo/v2/ginkgo', ldflags: '-s -w' },
      {
        name: 'e2e.test',
        package: 'k8s.io/kubernetes/test/e2e',
        ldflags: stampedFlags(version),
        tests: true,
      },
    ],
    hint: 'no go on the PATH to build the end-to-end suite with: install Go',
  });
  if ('missing' in built) return built;
  const at = (name: string) => join(built.folder, name);
  return {
    version,
    suite: at('e2e.test'),
    ginkgo: at('ginkgo'),
    agnhost: at('agnhost'),
    nonewprivs: at('nonewprivs'),
  };
}

/** Says where the programs are or why not: `node test/peers/e2e.ts` builds them ahead of the tests. */
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const found = await e2ePrograms();
  if ('missing' in found) throw new KeelsonError('DEPENDENCY_MISSING', found.missing);
  console.log(dirname(found.suite));
}
