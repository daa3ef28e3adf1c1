/**
 * Crashes at will, within one process: from a chosen call of the file system on, nothing of a run goes on, as if its
 * process had been killed there. What it had open is closed, as the kernel does.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { type FileHandle, default as fsPromises } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';

interface Run {
  calls: number;
  /** The call that is not made any more. */
  readonly last: number;
  /** Calls that the kernel is still busy with. */
  busy: number;
  readonly open: Set<FileHandle>;
  readonly crashed: PromiseWithResolvers<'crashed'>;
  readonly quiet: PromiseWithResolvers<void>;
  dead: boolean;
}

const current = new AsyncLocalStorage<Run>();
type Call = (...args: never[]) => Promise<unknown>;

/** Counts the call, and never returns where the run is over. */
async function guarded<T>(call: () => Promise<T>): Promise<T> {
  const run = current.getStore();
  if (run === undefined) return call();
  if (!run.dead && ++run.calls >= run.last) {
    run.dead = true;
    run.crashed.resolve('crashed');
    if (run.busy === 0) run.quiet.resolve();
  }
  if (run.dead) return new Promise<never>(() => {});
  run.busy++;
  try {
    return await call();
  } finally {
    run.busy--;
    if (run.dead && run.busy === 0) run.quiet.resolve();
  }
}

const ofHandles = ['chmod', 'chown', 'writeFile', 'sync', 'stat', 'truncate'] as const;

/** From now on the calls of this process can be made to end. Before what is tested is loaded. */
export function install(): void {
  const functions = fsPromises as unknown as Record<string, unknown>;
  for (const [name, original] of Object.entries(functions)) {
    if (typeof original !== 'function') continue;
    const call = original as Call;
    functions[name] = (...args: never[]) => {
      const run = current.getStore();
      return guarded(async () => {
        const result = await call(...args);
        if (name !== 'open' || run === undefined) return result;
        const handle = result as FileHandle & Record<string, unknown>;
        run.open.add(handle);
        for (const method of ofHandles) {
          const own = (handle[method] as Call).bind(handle);
          Object.defineProperty(handle, method, { value: (...rest: never[]) => guarded(() => own(...rest)) });
        }
        const close = handle.close.bind(handle);
        Object.defineProperty(handle, 'close', {
          value: async () => {
            run.open.delete(handle);
            await close();
          },
        });
        return handle;
      });
    };
  }
  syncBuiltinESMExports();
}

/** Runs `work` until its call number `last` (from 1). Resolves with whether that came; throws what `work` throws before. */
export async function crashAt(last: number, work: () => Promise<unknown>): Promise<boolean> {
  const run: Run = {
    calls: 0,
    last,
    busy: 0,
    open: new Set(),
    crashed: Promise.withResolvers(),
    quiet: Promise.withResolvers(),
    dead: false,
  };
  const end = await Promise.race([current.run(run, work), run.crashed.promise]);
  if (end !== 'crashed' && !run.dead) return false;
  await run.quiet.promise;
  for (const handle of run.open) await handle.close();
  return true;
}
