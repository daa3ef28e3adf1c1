/** `keelson stop`: end containers or pods. */
import { parseArgs } from 'node:util';
import { parseDuration } from '../../config/duration.ts';
import { withAgent } from '../session.ts';
import { sharedOptions, sharedUsage, usageError } from '../usage.ts';
import { forEachName } from './each.ts';

export const usage = `keelson stop [--timeout TIME] [--json] [--config FILE] CONTAINER...
keelson stop --pod [--json] [--config FILE] POD...

End containers: with their stop signal and, after a while, with KILL. A pod is ended at once with all that is in it, and
its network is taken down. An agent starts again what belongs to a pod that it was told to run.

  CONTAINER       an id, its beginning, or a name: CONTAINER, POD/CONTAINER or NAMESPACE/POD/CONTAINER
  --pod           the names are those of pods: an id, its beginning, POD or NAMESPACE/POD
  --timeout TIME  until KILL: 10s, 1m30s; 0 for at once (default: 10s)
  --json          one document: {"stopped": [{id, name}], "failed": [{name, code, message}]}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      ...sharedOptions,
      pod: { type: 'boolean', default: false },
      timeout: { type: 'string' },
    },
  });
  const kind = values.pod ? 'pod' : 'container';
  if (positionals.length === 0) throw usageError(`keelson stop: ${kind.toUpperCase()} is missing`, 'stop');
  if (values.pod && values.timeout !== undefined) throw usageError('--timeout is for containers', 'stop');
  const text = values.timeout ?? '10s';
  const timeoutMs = parseDuration(/^\d+$/.test(text) ? `${text}s` : text);
  if (timeoutMs === undefined || timeoutMs < 0) throw usageError(`--timeout: ${text} is no duration`, 'stop');
  await withAgent(values.config, (control, signal) =>
    forEachName(positionals, { done: 'stopped', json: values.json, signal }, (name) =>
      control.call('runtime/stop', { kind, name, timeoutMs }, { signal }),
    ),
  );
}
