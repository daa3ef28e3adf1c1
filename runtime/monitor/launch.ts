/**
 * From a written bundle to a process that waits for its start: conmon and the OCI runtime's `create`, in the background.
 *
 * CreateContainer answers once the bundle is written, as containerd does, and whoever needs the process waits here. A
 * failure is kept until it is asked for, so that it shows at StartContainer. A container whose row says `created` and
 * names no process is one that was not launched, or not to the end: the next start launches it.
 */
import { readdir, rm } from 'node:fs/promises';
import { join, relative } from 'node:path';
import type { ContainerConfig } from '../api.ts';
import { wantedCdiDevices } from '../cdi/registry.ts';
import type { Context, Folders } from '../context.ts';
import { abortError, describe, isError, KeelsonError } from '../host/errors.ts';
import { logPathOf } from '../oci/bundle.ts';
import { type MonitorOptions, type MountsAt, startMonitor } from '../oci/conmon.ts';
import type { ContainerRecord } from '../state.ts';
import { endMakers } from './makers.ts';

export interface Launches {
  /** Launches, unless that is under way or done; its error, or undefined where the process waits. Never rejects. */
  launch(id: string): Promise<KeelsonError | undefined>;
  /** Breaks off what is under way; resolves when nobody works on the container any more. The error as above. */
  breakOff(id: string): Promise<KeelsonError | undefined>;
  /** Ends the programs that an earlier process left launching `record`, and what they have made. */
  clear(record: ContainerRecord): Promise<void>;
  forget(id: string): void;
  /** Breaks all off. */
  close(): Promise<void>;
}

interface Entry {
  readonly abort: AbortController;
  readonly done: Promise<KeelsonError | undefined>;
}

/** Has been created, and has no process yet. Pure. */
export function isUnlaunched({ state, init, monitor }: ContainerRecord): boolean {
  return state === 'created' && init === undefined && monitor === undefined;
}

/** `onLaunched` is called when the row names the process. */
export function makeLaunches(context: Context, onLaunched: (id: string) => void): Launches {
  const { state, folders, programs, log } = context;
  const entries = new Map<string, Entry>();
  let closing = false;

  const run = async (record: ContainerRecord, signal: AbortSignal): Promise<KeelsonError | undefined> => {
    const { id, config } = record;
    try {
      // The answer to CreateContainer goes first.
      await new Promise<void>((resolve) => setImmediate(resolve));
      if (signal.aborted) throw abortError(signal, 'creating the container');
      const { init, monitor } = await startMonitor(programs.conmon(), optionsOf(context, record), signal);
      const now = state.containers.get(id);
      // Ended meanwhile by one who found nothing to break off.
      if (now === undefined || !isUnlaunched(now))
        throw abortError(AbortSignal.abort(), 'creating the container');
      state.changeContainer(id, { init, monitor });
    } catch (error) {
      await endMakers(folders.container(id).bundle, id).catch((failure: unknown) =>
        log.error({ err: failure, container: id }, 'what makes a failed container could not be ended'),
      );
      if (isError(error, 'ABORTED', 'DEADLINE_EXCEEDED', 'DEPENDENCY_MISSING', 'CONTAINER_START_FAILED'))
        return error;
      const message = `cannot create container ${config.metadata.name}: ${describe(error)}`;
      return new KeelsonError('CONTAINER_START_FAILED', message, { cause: error });
    }
    entries.delete(id);
    onLaunched(id);
    return undefined;
  };

  return {
    launch(id) {
      const known = entries.get(id);
      if (known !== undefined) return known.done;
      const record = state.containers.get(id);
      if (record === undefined || !isUnlaunched(record)) return Promise.resolve(undefined);
      const abort = new AbortController();
      if (closing) abort.abort();
      const done = run(record, abort.signal);
      entries.set(id, { abort, done });
      return done;
    },
    async breakOff(id) {
      const entry = entries.get(id);
      entry?.abort.abort();
      return entry?.done;
    },
    async clear(record) {
      const { bundle } = folders.container(record.id);
      await endMakers(bundle, record.id);
      const handler = state.sandboxes.get(record.sandboxId)?.handler ?? '';
      await programs.runtimeFor(handler).remove(record.id);
      // Fifos, sockets and pid files, which are made only once. What the bundle was made with is folders and one file.
      const names = await readdir(bundle, { withFileTypes: true }).catch(() => []);
      const theirs = names.filter((entry) => !entry.isDirectory() && entry.name !== 'config.json');
      await Promise.all(theirs.map(({ name }) => rm(join(bundle, name), { force: true })));
    },
    forget(id) {
      entries.delete(id);
    },
    async close() {
      closing = true;
      for (const { abort } of entries.values()) abort.abort();
      await Promise.all([...entries.values()].map(({ done }) => done));
    },
  };
}

/** Throws FAILED_PRECONDITION where the sandbox has gone. */
function optionsOf(context: Context, { id, sandboxId, config }: ContainerRecord): MonitorOptions {
  const { state, folders, programs } = context;
  const sandbox = state.sandboxes.get(sandboxId);
  if (sandbox === undefined) throw new KeelsonError('FAILED_PRECONDITION', `sandbox ${sandboxId} is gone`);
  return {
    id,
    name: config.metadata.name,
    bundle: folders.container(id).bundle,
    exitDir: folders.exits,
    temporaryDir: folders.runDir,
    logPath: logPathOf(sandbox, config),
    tty: config.tty ?? false,
    stdin: config.stdin ?? false,
    stdinOnce: config.stdinOnce ?? false,
    runtime: programs.runtimeFor(sandbox.handler),
    mountsAt: mountsNeeded(folders, sandboxId, config),
  };
}

/**
 * Where the container has mounts to start from, besides its bundle; undefined where that cannot be said: mounts that go on
 * to be shared with the host, whatever holds keelson's own folders, and devices whose vendors' hooks look around. Pure.
 */
export function mountsNeeded(
  { runDir, data, sandbox }: Pick<Folders, 'runDir' | 'data' | 'sandbox'>,
  sandboxId: string,
  { mounts, cdiDevices = [], annotations }: Pick<ContainerConfig, 'mounts' | 'cdiDevices' | 'annotations'>,
): MountsAt | undefined {
  const sources = mounts
    .filter(({ image }) => image === undefined)
    // A link on all systems of today, and often mounted.
    .map((mount) => ({ ...mount, hostPath: mount.hostPath.replace(/^\/var\/run(?=\/|$)/, '/run') }));
  const holdsOurs = ({ hostPath }: { readonly hostPath: string }) =>
    [runDir, data].some((folder) => !relative(hostPath, folder).startsWith('..'));
  if (wantedCdiDevices(cdiDevices, annotations).length > 0) return undefined;
  if (sources.some((mount) => mount.propagation !== 'private' || holdsOurs(mount))) return undefined;
  return { own: [sandbox(sandboxId)], others: sources.map(({ hostPath }) => hostPath) };
}

/** `work`, or an error as soon as `signal` is aborted; the work goes on. */
export function unlessAborted<T>(
  work: Promise<T>,
  signal: AbortSignal | undefined,
  what: string,
): Promise<T> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(abortError(signal, what));
    if (signal.aborted) return onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
