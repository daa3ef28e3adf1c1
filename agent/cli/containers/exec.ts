/** `keelson exec`: run a command in a container. */
import { parseArgs } from 'node:util';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { withAgent } from '../session.ts';
import { runRemoteCommand } from '../streams/remote_command.ts';
import { sharedUsage, usageError } from '../usage.ts';

export const usage = `keelson exec [--stdin] [--tty] [--config FILE] CONTAINER [--] COMMAND [ARGUMENT...]

Run a command in a container that runs. The exit code is that of the command, or 125 where it could not be run. What comes
after CONTAINER is the command's own.

  CONTAINER       an id, its beginning, or a name: CONTAINER, POD/CONTAINER or NAMESPACE/POD/CONTAINER
  -i, --stdin     give it this standard input
  -t, --tty       give it a terminal, of the size of this one; with -i every key goes there, Ctrl-C as well
${sharedUsage}`;

/** As docker has it: not the command, but the way to it has failed. */
const notRun = 125;

export async function run(args: string[]): Promise<void> {
  const { own, rest } = splitCommand(args);
  const { values } = parseArgs({
    args: own,
    options: {
      config: { type: 'string' },
      stdin: { type: 'boolean', short: 'i', default: false },
      tty: { type: 'boolean', short: 't', default: false },
    },
  });
  const [container, ...command] = rest;
  if (container === undefined) throw usageError('keelson exec: CONTAINER is missing', 'exec');
  if (command[0] === '--') command.shift();
  if (command.length === 0) throw usageError('keelson exec: COMMAND is missing', 'exec');
  const { stdin, tty } = values;
  try {
    process.exitCode = await withAgent(values.config, async (control, signal) => {
      const { url } = await control.call('runtime/exec', { container, command, stdin, tty }, { signal });
      return runRemoteCommand({ url, stdin, tty, detachable: false, signal });
    });
  } catch (error) {
    if (!(error instanceof KeelsonError)) throw error;
    const { message, code, hint, cause, details } = error;
    throw new KeelsonError(code, message, { hint, cause, details: { ...details, exitCode: notRun } });
  }
}

/** Our options end at the first word that is none: what follows may look like them, and is the command's. Pure. */
export function splitCommand(args: readonly string[]): { own: string[]; rest: string[] } {
  let at = 0;
  while (at < args.length && args[at]!.startsWith('-') && args[at] !== '--') {
    at += args[at] === '--config' ? 2 : 1;
  }
  return { own: args.slice(0, at), rest: args.slice(args[at] === '--' ? at + 1 : at) };
}
