/**
 * Crashes at will, within one process: from a chosen step on (a call of the file system, a mount or unmount, the start of a
 * program, and what a test adds by `step`) nothing of a run goes on, as if its process had been killed there. What it had
 * open is closed, as the kernel does.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { type FileHandle, default as fsPromises } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import koffi from 'koffi';

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

/** Counts one step. Returns whether the run is over. */
function isOver(run: Run): boolean {
  if (!run.dead && ++run.calls >= run.last) {
    run.dead = true;
    run.crashed.resolve('crashed');
    if (run.busy === 0) run.quiet.resolve();
  }
  return run.dead;
}

/** Counts the call as one step, and never returns where the run is over. */
export async function step<T>(call: () => Promise<T>): Promise<T> {
  const run = current.getStore();
  if (run === undefined) return call();
  if (isOver(run)) return new Promise<never>(() => {});
  run.busy++;
  try {
    return await call();
  } finally {
    run.busy--;
    if (run.dead && run.busy === 0) run.quiet.resolve();
  }
}

type Native = ((...args: unknown[]) => unknown) & { async(...args: unknown[]): void };
type Answer = (error: unknown, result?: unknown) => void;

/** The system call as one step. One that is made at once cannot wait for ever: it throws, and nothing after it is done. */
function stepping(native: Native): Native {
  const call = (...args: unknown[]) => {
    const run = current.getStore();
    if (run !== undefined && isOver(run)) throw new Error('killed here');
    return native(...args);
  };
  const aside = (...args: unknown[]) => {
    const answer = args.pop() as Answer;
    step(
      () =>
        new Promise((resolve, reject) => {
          native.async(...args, (error: unknown, result: unknown) =>
            error === null ? resolve(result) : reject(error),
          );
        }),
    ).then(
      (result) => answer(null, result),
      (error) => answer(error),
    );
  };
  return Object.assign(call, { async: aside });
}

/** Those that change something that outlives the process. */
const systemCalls = /^int (mount|umount2|posix_spawnp)\(/;

function installSystemCalls(): void {
  const mutable = koffi as unknown as {
    load: (path: string | null) => { func: (...args: never[]) => unknown };
  };
  const load = mutable.load.bind(koffi);
  mutable.load = (path) => {
    const library = load(path);
    return {
      func(...args: never[]) {
        const native = library.func(...args);
        return systemCalls.test(String(args[0])) ? stepping(native as Native) : native;
      },
    };
  };
}

const ofHandles = ['chmod', 'chown', 'writeFile', 'sync', 'stat', 'truncate'] as const;

/** From now on the calls of this process can be made to end. Before what is tested is loaded. */
export function install(): void {
  installSystemCalls();
  const functions = fsPromises as unknown as Record<string, unknown>;
  for (const [name, original] of Object.entries(functions)) {
    if (typeof original !== 'function') continue;
    const call = original as Call;
    functions[name] = (...args: never[]) => {
      const run = current.getStore();
      return step(async () => {
        const result = await call(...args);
        if (name !== 'open' || run === undefined) return result;
        const handle = result as FileHandle & Record<string, unknown>;
        run.open.add(handle);
        for (const method of ofHandles) {
          const own = (handle[method] as Call).bind(handle);
          Object.defineProperty(handle, method, { value: (...rest: never[]) => step(() => own(...rest)) });
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
