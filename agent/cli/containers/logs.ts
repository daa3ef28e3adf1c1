/** `keelson logs`: what a container wrote. */
import { parseArgs } from 'node:util';
import { isError } from '../../../runtime/host/errors.ts';
import type { LogOptions } from '../../api/log-options.ts';
import type { ContainerLog } from '../../api/logs.ts';
import { parseDuration } from '../../config/duration.ts';
import type { Control } from '../../control/protocol.ts';
import { withAgent } from '../session.ts';
import { sharedUsage, usageError } from '../usage.ts';

export const usage = `keelson logs [--follow] [--tail LINES] [--since TIME] [--timestamps] [--previous] [--config FILE] CONTAINER

Show what a container wrote to its standard output and standard error, from its log on this node's disk.

  CONTAINER       an id, its beginning, or a name: CONTAINER, POD/CONTAINER or NAMESPACE/POD/CONTAINER
  -f, --follow    go on until the container ends
  --tail LINES    only the last lines
  --since TIME    only what is not older: 10s, 5m, 1h30m, or a time like 2026-01-31T12:00:00Z
  -t, --timestamps
                  with the time of each line
  -p, --previous  of the container before the last restart
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      config: { type: 'string' },
      follow: { type: 'boolean', short: 'f', default: false },
      tail: { type: 'string' },
      since: { type: 'string' },
      timestamps: { type: 'boolean', short: 't', default: false },
      previous: { type: 'boolean', short: 'p', default: false },
    },
  });
  const [container] = positionals;
  if (container === undefined || positionals.length > 1) {
    throw usageError('keelson logs: one CONTAINER is needed', 'logs');
  }
  if (values.tail !== undefined && !/^\d{1,15}$/.test(values.tail)) {
    throw usageError(`--tail: ${values.tail} is no number of lines`, 'logs');
  }
  const { follow, previous, timestamps } = values;
  const options: LogOptions = {
    follow,
    previous,
    timestamps,
    tailLines: values.tail === undefined ? undefined : Number(values.tail),
    since: values.since === undefined ? undefined : sinceOf(values.since, Date.now()),
    stream: 'all',
  };
  await withAgent(values.config, async (control, signal) => {
    const found = await control.call('runtime/log', { container, previous }, { signal });
    const { streamLog } = await import('../../api/logs.ts');
    const over = new AbortController();
    const lost = new AbortController();
    const told = {
      signal: AbortSignal.any([signal, over.signal]),
      onLost: (error: unknown) => lost.abort(error),
    };
    try {
      await streamLog({
        log: followed(control, found, follow, told),
        options,
        write,
        signal: AbortSignal.any([signal, lost.signal]),
      });
    } finally {
      over.abort();
    }
  });
}

/** Unix milliseconds: so long before `now`, or that time. Throws INVALID_ARGUMENT. Pure. */
export function sinceOf(text: string, now: number): number {
  const duration = parseDuration(text);
  if (duration !== undefined && duration >= 0) return now - duration;
  const time = /^\d{4}-\d\d-\d\d(T.*)?$/.test(text) ? Date.parse(text) : Number.NaN;
  if (!Number.isNaN(time)) return time;
  throw usageError(`--since: ${text} is neither a duration nor a time`, 'logs');
}

function followed(
  control: Control,
  { id, logPath, running }: { id: string; logPath: string; running: boolean },
  follow: boolean,
  { signal, onLost }: { readonly signal: AbortSignal; readonly onLost: (error: unknown) => void },
): ContainerLog {
  let up = running;
  const listeners = new Set<() => void>();
  if (running && follow) {
    const ended = () => {
      up = false;
      for (const listener of listeners) listener();
    };
    control.call('runtime/wait', { id }, { signal }).then(ended, (error: unknown) => {
      if (isError(error, 'NOT_FOUND'))
        ended(); // It was removed.
      else onLost(error); // The agent went: nobody would tell of the end any more.
    });
  }
  return {
    logPath,
    running: () => up,
    onExit(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

function write(chunk: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(chunk, (error) => (error ? reject(error) : resolve()));
  });
}
