/** Ids as people type them: a part of the beginning that only one has stands for the whole, as with other runtimes. */
import type { RuntimeService } from '../api.ts';
import { KeelsonError } from '../host/errors.ts';

export interface Ids {
  /** The whole id; what nobody has comes back as it is, for the call itself to judge. Throws NOT_FOUND where two have it. */
  sandbox(id: string): Promise<string>;
  container(id: string): Promise<string>;
}

export function makeIds(runtime: RuntimeService): Ids {
  const wholeId = async (
    id: string,
    what: string,
    list: () => Promise<readonly { readonly id: string }[]>,
  ) => {
    if (!/^[0-9a-f]{1,63}$/.test(id)) return id;
    const [found, another] = (await list()).filter((one) => one.id.startsWith(id));
    if (another !== undefined) throw new KeelsonError('NOT_FOUND', `more than one ${what} begins with ${id}`);
    return found?.id ?? id;
  };
  return {
    sandbox: (id) => wholeId(id, 'sandbox', () => runtime.listPodSandbox()),
    container: (id) => wholeId(id, 'container', () => runtime.listContainers()),
  };
}
