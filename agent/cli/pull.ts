/** `keelson pull`: make an image present. */
import { parseArgs } from 'node:util';
import { systemClock } from '../../runtime/host/clock.ts';
import { askHidden, readAll, readCredentials } from './credentials.ts';
import { withControl } from './session.ts';
import { viewFor } from './terminal/progress.ts';
import { sharedOptions, sharedUsage, usageError } from './usage.ts';

export const usage = `keelson pull [--creds USER | --creds-stdin] [--quiet | --json] [--config FILE] IMAGE

Pull an image from its registry, or from the registry's mirrors. Progress goes to standard error (bars on a terminal, else
a line for each step of a layer), the image's id to standard output. Interrupting it ends the pull, unless a pod waits
for the same image. Without credentials here the node's own are used, where it has any for the registry.

  --creds USER    ask for the password on the terminal; USER:PASSWORD works too, but others can read it there
  --creds-stdin   read USER:PASSWORD from standard input; with --creds USER the password alone
  -q, --quiet     no progress
  --json          JSON lines: each step of a layer {image, digest, phase, bytes, totalBytes, bytesPerSecond}, then, as
                  the last line, the image {id, repoTags, repoDigests, size, pinned}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      ...sharedOptions,
      creds: { type: 'string' },
      'creds-stdin': { type: 'boolean', default: false },
      quiet: { type: 'boolean', short: 'q', default: false },
    },
  });
  const [image] = positionals;
  if (image === undefined || positionals.length > 1)
    throw usageError('keelson pull: one IMAGE is expected', 'pull');
  const auth = await readCredentials({
    creds: values.creds,
    fromStdin: values['creds-stdin'],
    readStdin: () => readAll(process.stdin),
    ask: process.stdin.isTTY ? askHidden : undefined,
    warn: (text) => process.stderr.write(`warning: ${text}\n`),
  });
  await withControl(values.config, async (control, signal) => {
    const view = values.quiet || values.json ? undefined : viewFor(image, process.stderr, systemClock);
    try {
      const pulled = await control.call(
        'images/pull',
        { image, ...(auth === undefined ? {} : { auths: [auth] }) },
        {
          signal,
          onProgress(progress) {
            view?.tell(progress);
            if (values.json && !values.quiet) console.log(JSON.stringify(progress));
          },
        },
      );
      view?.end();
      console.log(values.json ? JSON.stringify(pulled) : pulled.id);
    } catch (error) {
      view?.end();
      throw error;
    }
  });
}
