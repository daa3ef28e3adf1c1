/** `keelson pods`: the pods of this node. */
import { parseArgs } from 'node:util';
import type { ListedPod } from '../../control/protocol.ts';
import { withAgent } from '../session.ts';
import { formatAge, formatTable, printJson } from '../terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from '../usage.ts';

export const usage = `keelson pods [--all] [--no-trunc] [--quiet | --json] [--config FILE]

List the pods whose sandboxes are ready, newest first. Asks the running agent or 'keelson runtime'.

  -a, --all       also those that have ended
  --no-trunc      ids in full
  -q, --quiet     only the ids
  --json          one document: {"pods": [{id, metadata, state, createdAt, ips, runtimeHandler, containers, labels, …}]}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      ...sharedOptions,
      all: { type: 'boolean', short: 'a', default: false },
      'no-trunc': { type: 'boolean', default: false },
      quiet: { type: 'boolean', short: 'q', default: false },
    },
  });
  if (positionals.length > 0) throw usageError('keelson pods takes no names', 'pods');
  const found = await withAgent(values.config, (control, signal) =>
    control.call('runtime/pods', {}, { signal }),
  );
  const pods = found
    .filter(({ state }) => values.all || state === 'ready')
    .sort((a, b) => b.createdAt - a.createdAt);
  const full = values['no-trunc'];
  if (values.json) console.log(printJson({ pods }));
  else if (values.quiet) for (const { id } of pods) console.log(full ? id : id.slice(0, 12));
  else process.stdout.write(formatPods(pods, { full, now: Date.now() }));
}

/** Pure. */
export function formatPods(
  pods: readonly ListedPod[],
  { full, now }: { readonly full: boolean; readonly now: number },
): string {
  const rows = pods.map(({ id, metadata, state, ips, containers, runtimeHandler, createdAt }) => [
    full ? id : id.slice(0, 12),
    metadata.name,
    metadata.namespace,
    state,
    `${containers.running}/${containers.all}`,
    ips[0] ?? '-',
    runtimeHandler || '-',
    `${metadata.attempt}`,
    formatAge(now - createdAt),
  ]);
  return formatTable(
    ['POD ID', 'NAME', 'NAMESPACE', 'STATE', 'RUNNING', 'IP', 'HANDLER', 'ATTEMPT', 'AGE'],
    rows,
  );
}
