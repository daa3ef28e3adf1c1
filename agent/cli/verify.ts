/** `keelson verify`: is every layer on disk what its digest says? */
import { parseArgs } from 'node:util';
import type { LayerReport } from '../../runtime/api.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { withControl } from './session.ts';
import { printable } from './terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from './usage.ts';

export const usage = `keelson verify [--repair] [--json] [--config FILE]

Read every layer on disk and compare it with its digest. Reads the whole store: minutes on a slow disk. The exit code is 1
when a layer is damaged at the end.

  --repair        make damaged layers anew from their kept blobs
  --json          one document: {"layers": [{diffId, images, state: good|damaged|repaired, message}]}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { ...sharedOptions, repair: { type: 'boolean', default: false } },
  });
  if (positionals.length > 0)
    throw usageError('keelson verify: takes no names, it checks all layers', 'verify');
  await withControl(values.config, async (control, signal) => {
    const layers = await control.call(
      'images/verify',
      { repair: values.repair },
      { signal, ...(values.json ? {} : { onProgress: (report) => console.log(line(report)) }) },
    );
    if (values.json) console.log(JSON.stringify({ layers }));
    const count = (state: LayerReport['state']) => layers.filter((layer) => layer.state === state).length;
    const damaged = count('damaged');
    if (!values.json) {
      console.log(
        `${layers.length} layers: ${count('good')} good, ${count('repaired')} repaired, ${damaged} damaged`,
      );
    }
    if (damaged === 0) return;
    throw new KeelsonError('FAILED_PRECONDITION', `${damaged} of ${layers.length} layers are damaged`, {
      hint: values.repair
        ? "their blobs are not kept: remove the images with 'keelson rm' and pull them again"
        : "'keelson verify --repair' makes them anew where their blobs are kept",
    });
  });
}

function line({ state, diffId, images, message }: LayerReport): string {
  const about = images.length === 0 ? '' : ` ${images.join(', ')}`;
  return printable(`${state.padEnd(8)} ${diffId}${about}${message === '' ? '' : `: ${message}`}`);
}
