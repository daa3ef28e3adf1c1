/** One verb for each of several names: what can be done is done, also where one fails. */
import { describe, KeelsonError } from '../../../runtime/host/errors.ts';
import type { Found } from '../../control/protocol.ts';
import { printable, printJson } from '../terminal/text.ts';

/**
 * Calls `act` for each name, one after the other, and tells of each: `stopped NAME (ID)`, or, as `json`,
 * `{"stopped": [{id, name}], "failed": [{name, code, message}]}`. Throws what failed, or FAILED_PRECONDITION for several.
 */
export async function forEachName(
  names: readonly string[],
  options: { readonly done: string; readonly json: boolean; readonly signal: AbortSignal },
  act: (name: string) => Promise<Found>,
): Promise<void> {
  const { done, json, signal } = options;
  const good: Found[] = [];
  const failed: { name: string; error: KeelsonError }[] = [];
  for (const name of names) {
    try {
      const found = await act(name);
      good.push(found);
      if (!json) console.log(printable(`${done} ${found.name} (${found.id.slice(0, 12)})`));
    } catch (error) {
      if (signal.aborted || !(error instanceof KeelsonError)) throw error;
      failed.push({ name, error });
    }
  }
  if (json) {
    const told = failed.map(({ name, error }) => ({ name, code: error.code, message: describe(error) }));
    console.log(printJson({ [done]: good, failed: told }));
  }
  if (failed.length === 1) throw failed[0]!.error;
  if (failed.length > 1) {
    for (const { error } of failed) process.stderr.write(`${printable(describe(error))}\n`);
    throw new KeelsonError('FAILED_PRECONDITION', `${failed.length} of ${names.length} were not ${done}`);
  }
}
