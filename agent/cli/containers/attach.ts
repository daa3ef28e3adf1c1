/** `keelson attach`: join the streams of what runs in a container. */
import { parseArgs } from 'node:util';
import { withAgent } from '../session.ts';
import { runRemoteCommand } from '../streams/remote_command.ts';
import { sharedUsage, usageError } from '../usage.ts';

export const usage = `keelson attach [--no-stdin] [--config FILE] CONTAINER

Show what a container writes from now on, and give it this standard input where it was made to take one. Where it has a
terminal, every key goes there, Ctrl-C as well; Ctrl-P Ctrl-Q leaves it.

  CONTAINER       an id, its beginning, or a name: CONTAINER, POD/CONTAINER or NAMESPACE/POD/CONTAINER
  --no-stdin      only look
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { config: { type: 'string' }, 'no-stdin': { type: 'boolean', default: false } },
  });
  const [container] = positionals;
  if (container === undefined || positionals.length > 1) {
    throw usageError('keelson attach: one CONTAINER is needed', 'attach');
  }
  await withAgent(values.config, async (control, signal) => {
    const wanted = { container, stdin: !values['no-stdin'] };
    const { url, tty, stdin } = await control.call('runtime/attach', wanted, { signal });
    await runRemoteCommand({ url, stdin, tty, detachable: true, signal });
  });
}
