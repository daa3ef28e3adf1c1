/** `keelson events`: what happens to containers and pods, as it happens. */
import { parseArgs } from 'node:util';
import type { ContainerEvent } from '../../../runtime/api.ts';
import { withAgent } from '../session.ts';
import { printable, printJson } from '../terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from '../usage.ts';

export const usage = `keelson events [--json] [--config FILE]

Show every event of containers and pods from now on, until it is interrupted: created, started, stopped, deleted. The id is
that of the container, or of the pod's sandbox. The head of the table is written when events are listened for.

  --json          a line for each: {type, containerId, at, sandbox: {name, namespace, uid, attempt}}; "at" in Unix ms
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({ args, allowPositionals: true, options: sharedOptions });
  if (positionals.length > 0) throw usageError('keelson events takes no names', 'events');
  await withAgent(values.config, (control, signal) =>
    control.call(
      'runtime/events',
      {},
      {
        signal,
        onProgress({ event }) {
          if (values.json && event !== undefined) console.log(printJson(event));
          else if (!values.json) console.log(event === undefined ? head : formatEvent(event));
        },
      },
    ),
  );
}

const columns = ({ time, type, id, pod }: Record<'time' | 'type' | 'id' | 'pod', string>) =>
  `${time.padEnd(24)}  ${type.padEnd(7)}  ${id.padEnd(12)}  ${pod}`;
const head = columns({ time: 'TIME', type: 'TYPE', id: 'ID', pod: 'POD' });

/** Pure. */
export function formatEvent({ type, containerId, at, sandbox }: ContainerEvent): string {
  return columns({
    time: new Date(Math.floor(at)).toISOString(),
    type: printable(type),
    id: printable(containerId.slice(0, 12)),
    pod: printable(`${sandbox.namespace}/${sandbox.name}`),
  });
}
