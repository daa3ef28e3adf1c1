/** What every verb of the command line is made of. */
import { KeelsonError } from '../../runtime/host/errors.ts';

/** What the module of a verb exports. */
export interface Command {
  /** For `keelson help <verb>` and `keelson <verb> --help`. */
  readonly usage: string;
  /** Does it. Throws INVALID_ARGUMENT for wrong usage, and the errors of node:util's parseArgs. */
  run(args: string[]): Promise<void>;
}

/** A wrong call of the command line. */
export function usageError(why: string, verb?: string): KeelsonError {
  const help = verb === undefined ? 'keelson help' : `keelson help ${verb}`;
  return new KeelsonError('INVALID_ARGUMENT', why, { hint: `see '${help}'` });
}

/** The options that every verb has which asks the agent for something. */
export const sharedOptions = {
  config: { type: 'string' },
  json: { type: 'boolean', default: false },
} as const;

export const sharedUsage = `  --config FILE   the agent's configuration: it says where the agent's socket and its state are
                  (default: /etc/keelson/config.yaml where that exists)`;
