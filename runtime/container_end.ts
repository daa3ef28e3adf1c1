/**
 * The end of containers: noticing exits, stopping, cleaning up behind them, removing.
 *
 * conmon's exit file is the one sign of an exit. What an exited container held (mount, runc's state, cgroup) is let go
 * in the background; its folders and row stay until it is removed.
 */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Context } from './context.ts';
import { exitReason, readExit } from './exits.ts';
import { abortError, describe, KeelsonError } from './host/errors.ts';
import { removeTree } from './host/files.ts';
import { keyedQueue } from './host/keyed.ts';
import { isUnlaunched, type Launches } from './monitor/launch.ts';
import { endMakers } from './monitor/makers.ts';
import { isAlive, signalNumber, signalProcess } from './processes.ts';
import { unmountBundle } from './rootfs.ts';
import type { ContainerRecord } from './state.ts';

export interface ContainerEnds {
  /** The exit file of `id` may be there: reads it and tells everybody. */
  noticeExit(id: string): Promise<void>;
  /** `starting` must settle before an exit of `id` is told, so that it is told after the start. */
  duringStart(id: string, starting: Promise<void>): void;
  /** The process of `id` could not be made: it has ended before it began. */
  startFailed(id: string, error: KeelsonError): Promise<void>;
  /** It ended while nothing watched it. */
  lost(id: string): Promise<void>;
  /** Is the monitor still there? If not, ends what it left behind and tells the truth about it. */
  checkMonitor(id: string): Promise<void>;
  stop(id: string, timeoutMs: number, signal?: AbortSignal): Promise<void>;
  remove(id: string, signal?: AbortSignal): Promise<void>;
  /** Kills and removes every trace but the row. */
  destroy(record: ContainerRecord): Promise<void>;
  /** Lets go, in the background, of what exited containers still hold. */
  cleanSoon(id: string): void;
  /** Resolves when nothing runs in the background. */
  settled(): Promise<void>;
}

/** How long the kernel may take to end a killed process: one in a sick file system may never end. */
const killDeadlineMs = 30_000;
/** How long a stop waits for what it leaves to be tidied up. */
const longestCleanupMs = 2000;
/** runc deletes that may run at once in the background. */
const cleaners = 2;

export function makeContainerEnds(context: Context, launches: Launches): ContainerEnds {
  const { state, folders, programs, cgroups, images, log, clock } = context;
  const oneAtATime = keyedQueue();
  const lanes = keyedQueue();
  const starting = new Map<string, Promise<void>>();
  const waiting = new Map<string, Set<() => void>>();
  const cleaning = new Map<string, Promise<void>>();
  let cleaned = 0;

  const runtimeOf = (record: ContainerRecord) =>
    programs.runtimeFor(state.sandboxes.get(record.sandboxId)?.handler ?? '');

  const markExited = (id: string, code: number, at: number, reason: string, message: string) => {
    const old = state.containers.get(id);
    if (old === undefined || old.state === 'exited') return;
    state.changeContainer(id, {
      state: 'exited',
      exitCode: code,
      // The file's time comes from a coarser clock than the start's.
      finishedAt: Math.max(at, old.startedAt, old.createdAt),
      reason,
      message,
      init: undefined,
      monitor: undefined,
    });
    // Only now: had we been killed before the row, the next start would read the file.
    void rm(join(folders.exits, id), { force: true }).catch(() => {});
    for (const wake of waiting.get(id) ?? []) wake();
    waiting.delete(id);
    context.emit('stopped', id, state.sandboxes.get(old.sandboxId)?.config.metadata);
    cleanSoon(id);
  };

  const end = (id: string, code: number, reason: string, message: string) =>
    oneAtATime.run(id, async () => markExited(id, code, clock.now(), reason, message));

  const lost = (id: string) => {
    const message = 'it ended while nothing watched it (the node was restarted, or its monitor killed)';
    return end(id, 255, 'ContainerStatusUnknown', message);
  };

  /** As containerd tells of it. */
  const startFailed = (id: string, error: KeelsonError) => end(id, 128, 'StartError', describe(error));

  const noticeExit = (id: string): Promise<void> => {
    const record = state.containers.get(id);
    if (record === undefined || record.state === 'creating' || record.state === 'exited') {
      return Promise.resolve();
    }
    // Is looked at once it is launched.
    if (isUnlaunched(record)) return Promise.resolve();
    return oneAtATime.run(id, async () => {
      const exit = await readExit(folders.exits, id);
      if (exit === undefined) return;
      // Asked for after the file was there: it may have been started, and have ended, while the file was looked for.
      await starting.get(id);
      const [files, kills] = await Promise.all([
        readdir(folders.container(id).bundle).catch((): string[] => []),
        cgroups.oomKills(record.cgroup),
      ]);
      const reason = exitReason(exit.code, kills > 0 || files.includes('oom'));
      markExited(id, exit.code, exit.at, reason, '');
    });
  };

  /** True when it has exited; false after `ms`. */
  const waitForExit = (id: string, ms: number, signal: AbortSignal | undefined): Promise<boolean> =>
    new Promise((resolve, reject) => {
      const exited = () => {
        const record = state.containers.get(id);
        return record === undefined || record.state === 'exited';
      };
      if (exited()) return resolve(true);
      if (signal?.aborted) return reject(abortError(signal, `stopping container ${id}`));
      const end = () => {
        cancel();
        signal?.removeEventListener('abort', onAbort);
        waiting.get(id)?.delete(wake);
      };
      const wake = () => {
        end();
        resolve(true);
      };
      const onAbort = () => {
        end();
        reject(abortError(signal!, `stopping container ${id}`));
      };
      const cancel = clock.after(ms, () => {
        end();
        resolve(exited());
      });
      signal?.addEventListener('abort', onAbort, { once: true });
      waiting.set(id, (waiting.get(id) ?? new Set()).add(wake));
    });

  const kill = async (record: ContainerRecord) => {
    if (record.init !== undefined) signalProcess(record.init, 'SIGKILL');
    // In a PID namespace of others the end of the first process ends nobody else.
    if (record.config.linux.security.namespaces.pid !== 'container') await cgroups.kill(record.cgroup);
  };

  const checkMonitor = async (id: string) => {
    const record = state.containers.get(id);
    if (record === undefined || record.state === 'creating' || record.state === 'exited') return;
    if (isUnlaunched(record)) return;
    if (record.monitor !== undefined && isAlive(record.monitor)) return;
    // Looked at after the monitor: it writes the file before it ends.
    await noticeExit(id);
    if (state.containers.get(id)?.state === 'exited') return;
    const alive = record.init !== undefined && isAlive(record.init);
    await kill(record);
    if (!alive) return lost(id);
    const message = 'its monitor (conmon) was killed; without it the container could not go on';
    await end(id, 137, 'ContainerStatusUnknown', message);
  };

  /** What is being made, or was not begun, ends before it has a process. */
  const endUnlaunched = async (id: string) => {
    const failure = await launches.breakOff(id);
    const record = state.containers.get(id);
    if (record === undefined || !isUnlaunched(record)) return;
    if (failure === undefined || failure.code === 'ABORTED') await end(id, 137, 'Error', '');
    else await startFailed(id, failure);
  };

  const endNow = async (id: string, timeoutMs: number, signal: AbortSignal | undefined) => {
    await endUnlaunched(id);
    await checkMonitor(id);
    const record = state.containers.get(id);
    if (record === undefined || record.state === 'exited' || record.state === 'creating') return;
    if (signal?.aborted) throw abortError(signal, `stopping container ${id}`);
    if (timeoutMs > 0 && record.state === 'running' && record.init !== undefined) {
      signalProcess(record.init, signalNumber(record.stopSignal) ?? 15);
      if (await waitForExit(id, timeoutMs, signal)) return;
    }
    await kill(record);
    if (await waitForExit(id, killDeadlineMs, signal)) return;
    await checkMonitor(id);
    if (state.containers.get(id)?.state !== 'exited') {
      throw new KeelsonError(
        'DEADLINE_EXCEEDED',
        `container ${record.config.metadata.name} (${id}) still runs ${killDeadlineMs / 1000} s after KILL`,
        { hint: 'its process may hang in a file system or device; see dmesg on the node' },
      );
    }
  };

  const stop: ContainerEnds['stop'] = async (id, timeoutMs, signal) => {
    await endNow(id, timeoutMs, signal);
    // So that its removal need not wait.
    const cleanup = cleaning.get(id);
    if (cleanup === undefined) return;
    let cancel = () => {};
    const late = new Promise<void>((resolve) => {
      cancel = clock.after(longestCleanupMs, resolve);
    });
    await Promise.race([cleanup, late]);
    cancel();
  };

  /** What an exited container need not hold. */
  const letGo = async (record: ContainerRecord) => {
    if (record.cleaned) return;
    await runtimeOf(record).remove(record.id);
    await cgroups.remove(record.cgroup);
    await unmountBundle(folders.container(record.id).bundle);
  };

  const cleanSoon = (id: string) => {
    const work: Promise<void> = lanes
      .run(String(cleaned++ % cleaners), () =>
        oneAtATime.run(id, async () => {
          const record = state.containers.get(id);
          if (record?.state !== 'exited' || record.cleaned) return;
          await letGo(record);
          state.changeContainer(id, { cleaned: true });
        }),
      )
      .catch((error) =>
        // Removing the container tries again, and says so if it fails.
        log.warn({ err: error, container: id }, 'an exited container could not be cleaned up yet'),
      )
      .finally(() => {
        if (cleaning.get(id) === work) cleaning.delete(id);
      });
    cleaning.set(id, work);
  };

  const destroy = async (record: ContainerRecord) => {
    const { id } = record;
    const { bundle, data } = folders.container(id);
    if (record.state !== 'exited') {
      // First those who would go on making what is being removed.
      await launches.breakOff(id);
      await endMakers(bundle, id);
      if (record.init !== undefined) signalProcess(record.init, 'SIGKILL');
      await cgroups.kill(record.cgroup);
    }
    await letGo(record);
    await Promise.all([removeTree(bundle), removeTree(data), rm(join(folders.exits, id), { force: true })]);
    images.release(id);
    launches.forget(id);
  };

  const removing = new Map<string, Promise<void>>();
  const remove: ContainerEnds['remove'] = (id, signal) => {
    const underWay = removing.get(id);
    if (underWay !== undefined) return underWay;
    const work = (async () => {
      await stop(id, 0, signal);
      await oneAtATime.run(id, async () => {
        const record = state.containers.get(id);
        if (record === undefined || record.state === 'creating') return;
        await destroy(record);
        state.removeContainer(id);
        context.emit('deleted', id, state.sandboxes.get(record.sandboxId)?.config.metadata);
      });
    })().finally(() => removing.delete(id));
    removing.set(id, work);
    return work;
  };

  return {
    noticeExit,
    duringStart(id, work) {
      const quiet = work.catch(() => {}).finally(() => starting.delete(id));
      starting.set(id, quiet);
    },
    startFailed,
    lost,
    checkMonitor,
    stop,
    remove,
    destroy,
    cleanSoon,
    async settled() {
      while (cleaning.size > 0) await Promise.all(cleaning.values());
    },
  };
}
