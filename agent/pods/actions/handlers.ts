/** Which runtime handler a pod's RuntimeClass means, and what it can do. */
import type { RuntimeHandler, RuntimeService } from '../../../runtime/api.ts';
import type { Clock } from '../../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { apiStatus } from '../../apiserver/client.ts';
import type { ApiserverClient } from '../../apiserver/types.ts';

export interface Handlers {
  /**
   * The handler of the RuntimeClass `name`; empty for the default one. Asked of the apiserver at most once a minute;
   * while it cannot be reached, what it said before counts. Throws NOT_FOUND, and like `ApiserverClient.get`.
   */
  named(name: string | undefined, signal: AbortSignal): Promise<string>;
  /** What `handler` can do; undefined where the runtime does not know it. */
  features(handler: string): Promise<RuntimeHandler | undefined>;
}

/** How long an answer is taken for true, in milliseconds: the handler of a class never changes. */
const freshMs = 60_000;

export function makeHandlers(options: {
  readonly client?: ApiserverClient;
  readonly runtime: Pick<RuntimeService, 'handlers'>;
  readonly clock: Clock;
}): Handlers {
  const { client, runtime, clock } = options;
  const known = new Map<string, { readonly handler: string; readonly at: number }>();
  return {
    async named(name, signal) {
      if (!name) return '';
      // Without an apiserver a static pod names the handler itself.
      if (client === undefined) return name;
      const before = known.get(name);
      if (before !== undefined && clock.now() - before.at < freshMs) return before.handler;
      try {
        const path = `/apis/node.k8s.io/v1/runtimeclasses/${encodeURIComponent(name)}`;
        const { handler = '' } = await client.get<{ handler?: string }>(path, { signal });
        known.set(name, { handler, at: clock.now() });
        return handler;
      } catch (error) {
        if (apiStatus(error) === 404) {
          known.delete(name);
          throw new KeelsonError(
            'NOT_FOUND',
            `failed to get sandbox runtime: RuntimeClass "${name}" not found`,
            {
              hint: 'make the RuntimeClass, or correct runtimeClassName',
            },
          );
        }
        if (before !== undefined && isError(error, 'API_UNREACHABLE', 'DEADLINE_EXCEEDED'))
          return before.handler;
        throw error;
      }
    },
    features: async (handler) => (await runtime.handlers()).find(({ name }) => name === handler),
  };
}
