/** `keelson inspect`: all that is known of a container or pod. */
import { parseArgs } from 'node:util';
import { withAgent } from '../session.ts';
import { printJson } from '../terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from '../usage.ts';

export const usage = `keelson inspect [--json] [--config FILE] CONTAINER
keelson inspect --pod [--json] [--config FILE] POD

Show all that the runtime knows of a container, or of a pod: {"status": {…}, "info": {pid, config, runtimeSpec, …}}. The
configuration has the environment in it, and with that perhaps passwords.

  CONTAINER       an id, its beginning, or a name: CONTAINER, POD/CONTAINER or NAMESPACE/POD/CONTAINER
  --pod           the name is one of a pod: an id, its beginning, POD or NAMESPACE/POD
  --json          on one line
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { ...sharedOptions, pod: { type: 'boolean', default: false } },
  });
  const [name] = positionals;
  if (name === undefined || positionals.length > 1) {
    throw usageError('keelson inspect: one CONTAINER or POD is needed', 'inspect');
  }
  const kind = values.pod ? 'pod' : 'container';
  const found = await withAgent(values.config, (control, signal) =>
    control.call('runtime/inspect', { kind, name }, { signal }),
  );
  console.log(printJson(found, values.json ? undefined : 2));
}
