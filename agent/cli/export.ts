/** `keelson export`: images into an archive. */
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { ArchiveFormat } from '../../runtime/api.ts';
import { withControl } from './session.ts';
import { printable } from './terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from './usage.ts';

const formats: readonly ArchiveFormat[] = ['docker-archive', 'oci-archive', 'oci-layout'];

export const usage = `keelson export [--format FORMAT] -o PATH [--json] [--config FILE] IMAGE...

Write images into one archive, which must not exist yet. IMAGE is a name, an id or the beginning of an id; an image that
is given by its id has no name in the archive. The agent writes the file.

  --format FORMAT ${formats.join(', ')} (a folder); default ${formats[1]}
  -o, --output PATH
  --json          one document: {"path", "format", "images"}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      ...sharedOptions,
      format: { type: 'string', default: formats[1] as string },
      output: { type: 'string', short: 'o' },
    },
  });
  const { format, output } = values;
  const wrong = (why: string) => usageError(`keelson export: ${why}`, 'export');
  if (!isFormat(format)) throw wrong(`--format is one of ${formats.join(', ')}`);
  if (output === undefined || output === '') throw wrong('-o PATH is missing');
  if (output === '-') throw wrong('an archive goes to a file, not to standard output');
  if (positionals.length === 0) throw wrong('IMAGE is missing');
  const path = resolve(output);
  await withControl(values.config, async (control, signal) => {
    const { images } = await control.call('images/export', { images: positionals, path, format }, { signal });
    console.log(
      values.json
        ? JSON.stringify({ path, format, images })
        : printable(`wrote ${images.join(', ')} to ${path} (${format})`),
    );
  });
}

function isFormat(text: string): text is ArchiveFormat {
  return formats.some((format) => format === text);
}
