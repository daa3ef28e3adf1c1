/** `keelson rm`: remove images. */
import { parseArgs } from 'node:util';
import { describe, KeelsonError } from '../../runtime/host/errors.ts';
import { withControl } from './session.ts';
import { printable } from './terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from './usage.ts';

export const usage = `keelson rm [--json] [--config FILE] IMAGE...

Remove images with all their names. IMAGE is a name, an id or the beginning of an id. An image that a container uses
stays. The others are removed also when one cannot be; the exit code is then 1.

  --json          one document: {"removed": [{id, names}], "failed": [{image, code, message}]}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({ args, allowPositionals: true, options: sharedOptions });
  if (positionals.length === 0) throw usageError('keelson rm: IMAGE is missing', 'rm');
  await withControl(values.config, async (control, signal) => {
    const removed: object[] = [];
    const failed: { image: string; error: KeelsonError }[] = [];
    for (const image of positionals) {
      try {
        const { id, names } = await control.call('images/remove', { image }, { signal });
        removed.push({ image, id, names });
        if (!values.json) console.log(printable(`removed ${image} (${id})`));
      } catch (error) {
        if (signal.aborted || !(error instanceof KeelsonError)) throw error;
        failed.push({ image, error });
      }
    }
    if (values.json) {
      const told = failed.map(({ image, error }) => ({ image, code: error.code, message: describe(error) }));
      console.log(JSON.stringify({ removed, failed: told }));
    }
    if (failed.length === 1) throw failed[0]!.error;
    if (failed.length > 1) {
      for (const { error } of failed) process.stderr.write(`${printable(describe(error))}\n`);
      throw new KeelsonError('FAILED_PRECONDITION', `${failed.length} of ${positionals.length} images stay`);
    }
  });
}
