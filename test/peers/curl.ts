/** curl and bash as files of an image. */
import { join } from 'node:path';
import { cacheFolder } from './go-programs.ts';
import { fetchProgram, linkedFiles, suite } from './linked-program.ts';
import type { TarEntry } from './tar.ts';

const packages = ['bash', 'curl'];

/** `/usr/bin/curl` and `/bin/bash` with their libraries; the first call on a machine downloads 20 MB from Debian. */
export async function curlFiles(signal?: AbortSignal): Promise<TarEntry[]> {
  const root = join(cacheFolder(), `curl-bash-${suite}`);
  const choose = (debian: { downloadWithDependencies(names: readonly string[]): Promise<string[]> }) =>
    debian.downloadWithDependencies(packages);
  await fetchProgram(root, 'usr/bin/bash', choose, signal);
  const files = [...(await linkedFiles(root, 'usr/bin/curl')), ...(await linkedFiles(root, 'usr/bin/bash'))];
  const seen = new Set<string>();
  return [
    // Both have the loader and some libraries.
    ...files.filter(({ path }) => !seen.has(path) && seen.add(path)),
    { path: 'bin/bash', type: 'symlink', target: '/usr/bin/bash' },
  ];
}
