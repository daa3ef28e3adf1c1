/** `keelson rm`: remove images, containers or pods. */
import { parseArgs } from 'node:util';
import { describe, KeelsonError } from '../../runtime/host/errors.ts';
import { withAgent, withControl } from './session.ts';
import { printable } from './terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from './usage.ts';

export const usage = `keelson rm [--json] [--config FILE] IMAGE...
keelson rm --container [--force] [--json] [--config FILE] CONTAINER...
keelson rm --pod [--force] [--json] [--config FILE] POD...

Remove images with all their names. IMAGE is a name, an id or the beginning of an id. An image that a container uses
stays. With --container or --pod all names are those of containers, or of pods, which are removed with their containers;
logs stay. The others are removed also when one cannot be; the exit code is then 1.

  --container     CONTAINER: an id, its beginning, or a name: CONTAINER, POD/CONTAINER or NAMESPACE/POD/CONTAINER
  --pod           POD: an id, its beginning, POD or NAMESPACE/POD
  -f, --force     also what has not ended: it is killed
  --json          one document: {"removed": [{id, names}], "failed": [{image, code, message}]}; of containers and pods
                  {"removed": [{id, name}], "failed": [{name, code, message}]}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      ...sharedOptions,
      container: { type: 'boolean', default: false },
      pod: { type: 'boolean', default: false },
      force: { type: 'boolean', short: 'f', default: false },
    },
  });
  const { container, pod, force } = values;
  if (container && pod) throw usageError('keelson rm: either --container or --pod', 'rm');
  const kind = pod ? 'pod' : container ? 'container' : 'image';
  if (positionals.length === 0) throw usageError(`keelson rm: ${kind.toUpperCase()} is missing`, 'rm');
  if (kind === 'image') {
    if (force) throw usageError('keelson rm: --force is for containers and pods', 'rm');
    return removeImages(positionals, values);
  }
  const { forEachName } = await import('./containers/each.ts');
  await withAgent(values.config, (control, signal) =>
    forEachName(positionals, { done: 'removed', json: values.json, signal }, (name) =>
      control.call('runtime/remove', { kind, name, force }, { signal }),
    ),
  );
}

async function removeImages(
  names: readonly string[],
  values: { readonly config?: string; readonly json: boolean },
): Promise<void> {
  await withControl(values.config, async (control, signal) => {
    const removed: object[] = [];
    const failed: { image: string; error: KeelsonError }[] = [];
    for (const image of names) {
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
      throw new KeelsonError('FAILED_PRECONDITION', `${failed.length} of ${names.length} images stay`);
    }
  });
}
