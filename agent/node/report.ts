/** What the runtime says of itself, within a deadline: one that hangs must not keep the status from being written. */
import type { ImageService, RuntimeService } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { describe, KeelsonError } from '../../runtime/host/errors.ts';
import type { RuntimeReport } from './types.ts';

export interface ReporterOptions {
  readonly runtime: Pick<RuntimeService, 'status' | 'version' | 'handlers' | 'features'>;
  readonly images: Pick<ImageService, 'listImages'>;
  readonly clock: Clock;
  /** Default 5,000. */
  readonly deadlineMs?: number;
}

/** Returns a function that never throws. Calls that hang are waited for again, not started again. */
export function makeRuntimeReporter(options: ReporterOptions): () => Promise<RuntimeReport> {
  const { runtime, images, clock, deadlineMs = 5000 } = options;
  const within = <T>(what: string, start: () => Promise<T>): (() => Promise<T>) => {
    let running: Promise<T> | undefined;
    return async () => {
      running ??= start().finally(() => {
        running = undefined;
      });
      let cancel = () => {};
      const late = new Promise<never>((_, reject) => {
        cancel = clock.after(deadlineMs, () =>
          reject(new KeelsonError('DEADLINE_EXCEEDED', `${what} did not answer within ${deadlineMs} ms`)),
        );
      });
      try {
        return await Promise.race([running, late]);
      } finally {
        cancel();
      }
    };
  };
  const status = within('its status', () => runtime.status());
  const version = within('its version', () => runtime.version());
  const list = within('its list of images', () => images.listImages());
  let runtimeVersion = '';
  let listed: RuntimeReport['images'] = [];
  let handlers: RuntimeReport['handlers'];
  let features: RuntimeReport['features'];
  // A runtime that comes back may be a newer one, that can do more.
  const abilities = within('what it can do', async () => {
    const told = await Promise.all([runtime.handlers(), runtime.features()]);
    [handlers, features] = told;
  });

  return async () => {
    const [conditions, , present] = await Promise.allSettled([
      status(),
      // Each time: another runtime may be a newer one when it comes back.
      version().then((found) => {
        runtimeVersion = `${found.runtimeName}://${found.runtimeVersion}`;
      }),
      list(),
      abilities(),
    ]);
    if (present.status === 'fulfilled') {
      listed = present.value.map(({ repoDigests, repoTags, size }) => ({
        names: [...repoDigests, ...repoTags],
        sizeBytes: size,
      }));
    }
    const failed = conditions.status === 'rejected' ? describe(conditions.reason) : undefined;
    return {
      conditions: conditions.status === 'fulfilled' ? conditions.value : [],
      // Validation wants something that looks like one.
      runtimeVersion: runtimeVersion || 'keelson://Unknown',
      images: listed,
      handlers,
      features,
      failure: failed,
    };
  };
}
