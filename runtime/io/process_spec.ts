/** Another command as the container's own process: its user, environment, capabilities and limits. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

type ProcessSpec = { readonly env?: readonly string[] };

/** As the OCI runtime specification writes a process; `change` makes what differs. Throws what reading the bundle throws. */
export async function processSpec(
  bundle: string,
  command: readonly string[],
  change: (own: ProcessSpec) => object,
): Promise<string> {
  const config = JSON.parse(await readFile(join(bundle, 'config.json'), 'utf8')) as {
    process: ProcessSpec;
  };
  return JSON.stringify({ ...config.process, args: command, ...change(config.process) });
}
