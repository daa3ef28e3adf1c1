/**
 * Packages of Debian unpacked into folders, without touching what is installed: contents for test images, and newer
 * programs than the machine's own suite has. apt checks the signatures against Debian's keyring.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';
import { listFolder } from '../../runtime/host/files.ts';

const mirror = 'http://deb.debian.org/debian';
const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';

export interface DebianSuite {
  /** Paths of the .deb files of `packages`, and of those only. */
  download(packages: readonly string[]): Promise<string[]>;
  /**
   * The same with all dependencies (not the recommended ones), as a system without any package would need them, less
   * those that an earlier call gave.
   */
  downloadWithDependencies(packages: readonly string[]): Promise<string[]>;
}

/** Reads the package lists of a suite (`bookworm`, `sid`) into `folder`, which apt uses instead of its own. */
export async function openSuite(suite: string, folder: string, signal?: AbortSignal): Promise<DebianSuite> {
  const archives = join(folder, 'cache/archives');
  for (const path of ['state/lists/partial', 'cache/archives/partial', 'download']) {
    await mkdir(join(folder, path), { recursive: true });
  }
  await writeFile(join(folder, 'status'), '');
  await writeFile(join(folder, 'sources.list'), `deb [signed-by=${keyring}] ${mirror} ${suite} main\n`);
  const settings = Object.entries({
    'Dir::Etc::sourcelist': join(folder, 'sources.list'),
    'Dir::Etc::sourceparts': '/dev/null',
    'Dir::State': join(folder, 'state'),
    'Dir::State::status': join(folder, 'status'),
    'Dir::Cache': join(folder, 'cache'),
    'APT::Install-Recommends': 'false',
    // The other user that apt downloads as may not enter a folder of root.
    'APT::Sandbox::User': 'root',
  }).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  const apt = (args: readonly string[], cwd = folder) =>
    exec('apt-get', ['-q', '-y', ...settings, ...args], {
      cwd,
      env: { ...(process.env as Record<string, string>), DEBIAN_FRONTEND: 'noninteractive' },
      deadlineMs: 10 * 60_000,
      onOverflow: 'discard',
      signal,
    });
  await apt(['update']);
  const seen = new Set<string>();
  const fresh = async (where: string): Promise<string[]> => {
    const names = (await listFolder(where)).filter((name) => name.endsWith('.deb') && !seen.has(name)).sort();
    if (names.length === 0) throw new KeelsonError('NOT_FOUND', `apt-get has downloaded nothing to ${where}`);
    for (const name of names) seen.add(name);
    return names.map((name) => join(where, name));
  };
  return {
    async download(packages) {
      const where = join(folder, 'download');
      await apt(['download', ...packages], where);
      return fresh(where);
    },
    async downloadWithDependencies(packages) {
      await apt(['install', '--download-only', ...packages]);
      return fresh(archives);
    },
  };
}

/**
 * Unpacks packages over each other into `root`, with the merged /usr of Debian 12 and later; no script of theirs runs.
 * Where /bin and the like are links already they are kept.
 */
export async function unpackPackages(
  debs: readonly string[],
  root: string,
  signal?: AbortSignal,
): Promise<void> {
  const script = `set -e
cd "$0"
for top in bin sbin lib lib64; do
  mkdir -p usr/$top
  ln -sfn usr/$top $top
done
for deb; do
  dpkg-deb --fsys-tarfile "$deb" > .package.tar
  tar --extract --keep-directory-symlink --file=.package.tar
done
rm .package.tar`;
  await mkdir(root, { recursive: true });
  await exec('sh', ['-c', script, root, ...debs], { deadlineMs: 10 * 60_000, signal });
}
