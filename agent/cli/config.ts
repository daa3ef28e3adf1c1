/** `keelson config check`: is this a configuration? */
import { parseArgs } from 'node:util';
import { usageError } from './usage.ts';

export const usage = `keelson config check --config FILE

Read a configuration and say what is wrong with it.`;

export async function run(args: string[]): Promise<void> {
  const [verb, ...rest] = args;
  if (verb !== 'check') throw usageError(`keelson config: unknown command ${verb ?? '(none)'}`, 'config');
  const { values } = parseArgs({ args: rest, options: { config: { type: 'string' } } });
  if (values.config === undefined)
    throw usageError('keelson config check: --config FILE is missing', 'config');
  const { loadConfig } = await import('../config/load.ts');
  const loaded = await loadConfig(values.config);
  for (const warning of loaded.warnings) console.log(`warning: ${warning}`);
  console.log(`${values.config} is a valid configuration`);
}
