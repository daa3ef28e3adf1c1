/** `keelson ps`: the containers of this node. */
import { parseArgs } from 'node:util';
import type { ListedContainer } from '../../control/protocol.ts';
import { withAgent } from '../session.ts';
import { formatAge, formatTable, printJson } from '../terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from '../usage.ts';

export const usage = `keelson ps [--all] [--pod POD] [--no-trunc] [--quiet | --json] [--config FILE]

List the containers that run, newest first. Asks the running agent or 'keelson runtime'.

  -a, --all       also those that have ended or not begun
  --pod POD       only those of one pod: NAMESPACE/POD, POD, an id or its beginning
  --no-trunc      ids in full
  -q, --quiet     only the ids
  --json          one document: {"containers": [{id, metadata, pod, image, imageRef, state, createdAt, labels, …}]}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      ...sharedOptions,
      all: { type: 'boolean', short: 'a', default: false },
      pod: { type: 'string' },
      'no-trunc': { type: 'boolean', default: false },
      quiet: { type: 'boolean', short: 'q', default: false },
    },
  });
  if (positionals.length > 0) throw usageError('keelson ps takes no names; see --pod', 'ps');
  const { pod } = values;
  const found = await withAgent(values.config, (control, signal) =>
    control.call('runtime/containers', pod === undefined ? {} : { pod }, { signal }),
  );
  const containers = found
    .filter(({ state }) => values.all || state === 'running')
    .sort((a, b) => b.createdAt - a.createdAt);
  const full = values['no-trunc'];
  if (values.json) console.log(printJson({ containers }));
  else if (values.quiet) for (const { id } of containers) console.log(full ? id : id.slice(0, 12));
  else process.stdout.write(formatContainers(containers, { full, now: Date.now() }));
}

/** Pure. */
export function formatContainers(
  containers: readonly ListedContainer[],
  { full, now }: { readonly full: boolean; readonly now: number },
): string {
  const rows = containers.map(({ id, metadata, pod, image, state, createdAt }) => [
    full ? id : id.slice(0, 12),
    metadata.name,
    `${pod.namespace}/${pod.name}`,
    image,
    state,
    `${metadata.attempt}`,
    formatAge(now - createdAt),
  ]);
  return formatTable(['CONTAINER ID', 'NAME', 'POD', 'IMAGE', 'STATE', 'ATTEMPT', 'AGE'], rows);
}
