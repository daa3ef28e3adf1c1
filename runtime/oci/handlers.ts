/** The handlers of a node (RuntimeClass) and what their OCI runtimes can do. */
import type { RuntimeHandler } from '../api.ts';
import type { Programs } from '../context.ts';
import { isError } from '../host/errors.ts';
import { noFeatures } from './features.ts';

/** Of each of `names`, and first of the default one under the name ''. */
export function handlerFeatures(
  programs: Pick<Programs, 'runtimeFor'>,
  names: readonly string[],
): Promise<readonly RuntimeHandler[]> {
  return Promise.all(
    ['', ...names].map(async (name) => {
      const { recursiveReadonly, idmap } = await featuresOf(programs, name);
      return { name, recursiveReadOnlyMounts: recursiveReadonly, userNamespaces: idmap };
    }),
  );
}

async function featuresOf(programs: Pick<Programs, 'runtimeFor'>, name: string) {
  try {
    return await programs.runtimeFor(name).features();
  } catch (error) {
    // Not installed (yet), or no default: nothing can run under it.
    if (isError(error, 'DEPENDENCY_MISSING', 'INVALID_ARGUMENT')) return noFeatures;
    throw error;
  }
}
