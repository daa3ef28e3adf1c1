/** A container's log as the body of an answer. */
import type { ServerResponse } from 'node:http';
import type { LogOptions } from '../log-options.ts';
import { type ContainerLog, streamLog } from '../logs.ts';

/** Resolves when all is written. Throws as `streamLog`, before the headers where there is nothing yet. */
export async function sendLog(
  response: ServerResponse,
  log: ContainerLog,
  options: LogOptions,
  signal: AbortSignal,
): Promise<void> {
  let begun = false;
  const begin = () => {
    if (begun) return;
    begun = true;
    response.writeHead(200, {
      'content-type': 'text/plain; charset=utf-8',
      'x-content-type-options': 'nosniff',
    });
    response.flushHeaders();
  };
  if (options.follow) begin(); // Whoever follows a silent container must see that the stream stands.
  await streamLog({
    log,
    options,
    signal,
    write: async (chunk) => {
      begin();
      if (response.write(chunk) || signal.aborted) return;
      await new Promise<void>((resolve) => {
        const done = () => {
          response.off('drain', done);
          signal.removeEventListener('abort', done);
          resolve();
        };
        response.on('drain', done);
        signal.addEventListener('abort', done);
      });
    },
  });
  begin();
  response.end();
}
