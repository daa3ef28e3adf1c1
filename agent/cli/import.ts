/** `keelson import`: images from archives. */
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { Image } from '../../runtime/api.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { withControl } from './session.ts';
import { viewFor } from './terminal/progress.ts';
import { printable } from './terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from './usage.ts';

export const usage = `keelson import [--pin] [--quiet | --json] [--config FILE] FILE|DIR...

Take in all images of archives: docker-archive ('docker save'), oci-archive, each as tar, tar.gz or tar.zst, and OCI
layouts (folders). The agent reads the files, so they must be where it can see them.

  --pin           keep the images from garbage collection
  -q, --quiet     no progress
  --json          one document: {"images": [{id, repoTags, repoDigests, size, pinned}]}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      ...sharedOptions,
      pin: { type: 'boolean', default: false },
      quiet: { type: 'boolean', short: 'q', default: false },
    },
  });
  if (positionals.length === 0) throw usageError('keelson import: FILE or DIR is missing', 'import');
  await withControl(values.config, async (control, signal) => {
    const images = new Map<string, Image>();
    for (const path of positionals) {
      const view = values.quiet || values.json ? undefined : viewFor(path, process.stderr, systemClock);
      try {
        const found = await control.call(
          'images/import',
          { path: resolve(path), pin: values.pin },
          { signal, onProgress: (progress) => view?.tell(progress) },
        );
        for (const image of found) images.set(image.id, image);
        view?.end();
        if (!values.json) for (const image of found) console.log(line(image));
      } catch (error) {
        view?.end();
        throw error;
      }
    }
    if (values.json) console.log(JSON.stringify({ images: [...images.values()] }));
  });
}

function line({ id, repoTags, repoDigests }: Image): string {
  const names = repoTags.length > 0 ? repoTags : repoDigests.slice(0, 1);
  return printable([id, ...names].join(' '));
}
