/**
 * The life of a sandbox: pinned namespaces, network, resolv.conf, shared memory; and its end.
 *
 * creating ──all there──▶ ready ──stop──▶ notready ──remove──▶ gone. A failure while creating undoes everything.
 */
import { randomBytes } from 'node:crypto';
import { chown, copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { PodSandboxConfig } from './api.ts';
import type { Context } from './context.ts';
import { slicePath } from './host/cgroups.ts';
import { abortError, describe, isError, KeelsonError } from './host/errors.ts';
import { keyedQueue } from './host/keyed.ts';
import { mount, mountFlags } from './host/syscalls.ts';
import { noUserNamespaces } from './oci/bundle.ts';
import { openForGroup } from './oci/image_mounts.ts';
import { containerCgroup, sandboxInitSpec } from './oci/spec.ts';
import { identify, isAlive, type ProcessIdentity, readPidFile, signalProcess } from './processes.ts';
import { attachmentOf, checkSandboxConfig, resolvConf, wantedNamespaces } from './sandbox_config.ts';
import {
  joinedPins,
  type NamespacePinner,
  type Pins,
  pinnedNetwork,
  unpinAside,
} from './sandbox_namespaces.ts';
import { confine } from './security/confinement.ts';
import { makeUserNamespaces, outsideId } from './security/userns.ts';
import type { SandboxRecord } from './state.ts';

export interface Sandboxes {
  run(config: PodSandboxConfig, handler: string, signal?: AbortSignal): Promise<string>;
  stop(id: string, signal?: AbortSignal): Promise<void>;
  remove(id: string, signal?: AbortSignal): Promise<void>;
  /** Removes every trace of a sandbox that was not finished. */
  undo(record: SandboxRecord): Promise<void>;
  /** Tries once more to undo those for which it failed, as when a network plugin was missing. Never rejects. */
  undoLeft(signal: AbortSignal): Promise<void>;
}

/** What the end of a sandbox asks of its containers. */
export interface SandboxContainers {
  stopAll(sandboxId: string, signal?: AbortSignal): Promise<void>;
  removeAll(sandboxId: string, signal?: AbortSignal): Promise<void>;
}

const shmSize = '65536k';

export function makeSandboxes(
  context: Context,
  pinner: NamespacePinner,
  containers: SandboxContainers,
): Sandboxes {
  const { state, cni, folders, programs, log, clock, host } = context;
  const creating = new Map<string, Promise<string>>();
  /** Ids of those that are being made now. */
  const unfinished = new Set<string>();
  const oneAtATime = keyedQueue();

  const cgroupOf = ({ id, config }: SandboxRecord) =>
    containerCgroup(context.cgroupDriver, config.linux.cgroupParent, id, slicePath);

  const startInit = async (record: SandboxRecord, signal: AbortSignal): Promise<ProcessIdentity> => {
    const folder = folders.sandbox(record.id);
    const bundle = join(folder, 'init');
    const rootfs = join(bundle, 'rootfs');
    const dev = join(rootfs, 'dev'); // crun wants it of every root.
    await mkdir(dev, { recursive: true, mode: 0o755 });
    const [runtime, { security }] = [programs.runtimeFor(record.handler), record.config.linux];
    const namespaces = joinedPins(folder, wantedNamespaces(record.config));
    if (namespaces.user !== undefined) {
      await openForGroup(
        [folders.runDir, folders.sandboxes],
        [folder, bundle],
        outsideId(namespaces.user.gids, 0),
      );
      // It makes the places of its mounts itself.
      const { uids, gids } = namespaces.user;
      for (const path of [rootfs, dev]) await chown(path, outsideId(uids, 0), outsideId(gids, 0));
    }
    const spec = sandboxInitSpec({
      rootfs,
      catatonit: programs.catatonit(),
      cgroupsPath: cgroupOf(record).cgroupsPath,
      namespaces,
      sandboxId: record.id,
      host,
      confinement: await confine(
        context,
        { ...security, privileged: false, capabilities: [] },
        await runtime.features(),
        record.id,
      ),
    });
    await writeFile(join(bundle, 'config.json'), JSON.stringify(spec), { mode: 0o600 });
    const pidFile = join(bundle, 'pid');
    await runtime.runDetached(record.id, bundle, pidFile, signal);
    const pid = readPidFile(pidFile);
    const init = pid === undefined ? undefined : identify(pid);
    if (init === undefined) {
      throw new KeelsonError('SANDBOX_CREATE_FAILED', 'the first process of the pod ended at once');
    }
    await writeFile(join(folder, 'pid'), '', { flag: 'wx' });
    mount(`/proc/${init.pid}/ns/pid`, join(folder, 'pid'), null, mountFlags.BIND);
    return init;
  };

  const stopInit = async (record: SandboxRecord) => {
    if (record.config.linux.security.namespaces.pid !== 'pod') return;
    const pid = readPidFile(join(folders.sandbox(record.id), 'init', 'pid'));
    const init = record.init ?? (pid === undefined ? undefined : identify(pid));
    if (init !== undefined && signalProcess(init, 'SIGKILL')) {
      // The host's init reaps it; nobody tells us.
      for (let wait = 1; isAlive(init) && wait < 2000; wait *= 2) await sleep(wait);
    }
    await programs.runtimeFor(record.handler).remove(record.id);
    await context.cgroups.remove(cgroupOf(record).path);
    state.changeSandbox(record.id, { init: undefined });
  };

  const writeFiles = async (record: SandboxRecord) => {
    const folder = folders.sandbox(record.id);
    const { dns } = record.config;
    const wanted = wantedNamespaces(record.config);
    const target = join(folder, 'resolv.conf');
    const filled = dns && (dns.servers.length > 0 || dns.searches.length > 0 || dns.options.length > 0);
    await Promise.all([
      filled
        ? writeFile(target, resolvConf(dns), { mode: 0o644 })
        : copyFile('/etc/resolv.conf', target).catch(() => writeFile(target, '', { mode: 0o644 })),
      writeFile(join(folder, 'hostname'), `${wanted.hostname ?? context.hostname}\n`, { mode: 0o644 }),
    ]);
    if (!wanted.ipc) return;
    const shm = join(folder, 'shm');
    await mkdir(shm, { mode: 0o755 });
    const { NOSUID, NODEV, NOEXEC } = mountFlags;
    mount('shm', shm, 'tmpfs', NOSUID | NODEV | NOEXEC, `mode=1777,size=${shmSize}`);
  };

  const undo = async (record: SandboxRecord, signal?: AbortSignal) => {
    const folder = folders.sandbox(record.id);
    try {
      await stopInit(record);
      if (record.attached) await cni.del({ ...attachmentOf(record), netns: pinnedNetwork(folder) }, signal);
    } finally {
      // Whatever the plugins say: they can do without the namespace, and the row is kept to ask them again.
      await unpinAside(folder);
    }
    state.removeSandbox(record.id);
  };

  const undoLater = (id: string, signal?: AbortSignal) =>
    oneAtATime.run(id, async () => {
      const record = state.sandboxes.get(id);
      if (record?.state === 'creating' && !unfinished.has(id)) await undo(record, signal);
    });

  const create = async (config: PodSandboxConfig, handler: string, signal: AbortSignal | undefined) => {
    checkSandboxConfig(config, context.cgroupDriver);
    const runtime = programs.runtimeFor(handler);
    const wanted = wantedNamespaces(config);
    if (wanted.users !== undefined && !(await runtime.features()).idmap) throw noUserNamespaces(handler);
    if (signal?.aborted) throw abortError(signal, 'creating the sandbox');
    const record: SandboxRecord = {
      id: randomBytes(32).toString('hex'),
      config,
      handler,
      createdAt: clock.now(),
      bootId: context.bootId,
      state: 'creating',
      attached: wanted.network,
      ips: [],
      init: undefined,
    };
    const { id } = record;
    state.addSandbox(record);
    unfinished.add(id);
    const failed = new AbortController();
    const cancel = signal === undefined ? failed.signal : AbortSignal.any([signal, failed.signal]);
    const work: Promise<unknown>[] = [];
    try {
      const from = clock.now();
      const owner = wanted.users && (await makeUserNamespaces(wanted.users, { ipc: wanted.ipc, signal }));
      let pins: Pins;
      try {
        pins = pinner.pin(folders.sandbox(id), wanted, owner?.pid);
      } finally {
        await owner?.end();
      }
      const pinned = clock.now();
      let connected = pinned;
      const network =
        pins.network === undefined
          ? Promise.resolve({ ips: [] })
          : cni.add({ ...attachmentOf(record), netns: pins.network }, cancel).finally(() => {
              connected = clock.now();
            });
      const init =
        config.linux.security.namespaces.pid === 'pod'
          ? startInit(record, cancel)
          : Promise.resolve(undefined);
      work.push(network, init, writeFiles(record));
      await Promise.all(work);
      if (signal?.aborted) throw abortError(signal, 'creating the sandbox');
      state.changeSandbox(id, { state: 'ready', ips: (await network).ips, init: await init });
      const { namespace, name } = config.metadata;
      log.info({ sandbox: id, pod: `${namespace}/${name}`, from, pinned, connected }, 'sandbox ready');
    } catch (error) {
      failed.abort();
      await Promise.allSettled(work);
      try {
        await undo(state.sandboxes.get(id) ?? record);
      } catch (undoError) {
        // The row stays `creating`: the next call for this pod tries again, and `undoLeft`.
        log.error({ err: undoError, sandbox: id }, 'a failed sandbox could not be undone yet');
      }
      if (error instanceof KeelsonError) throw error;
      throw new KeelsonError('SANDBOX_CREATE_FAILED', `cannot make the sandbox: ${describe(error)}`, {
        cause: error,
      });
    } finally {
      unfinished.delete(id);
    }
    context.emit('created', id, config.metadata);
    context.emit('started', id, config.metadata);
    return id;
  };

  const run: Sandboxes['run'] = async (config, handler, signal) => {
    const { uid, name, namespace, attempt } = config.metadata;
    const key = JSON.stringify([uid, name, namespace, attempt]);
    const underWay = creating.get(key);
    if (underWay !== undefined) {
      try {
        return await underWay;
      } catch (error) {
        // The caller who began gave up; this one has not.
        if (!isError(error, 'ABORTED', 'DEADLINE_EXCEEDED') || signal?.aborted) throw error;
        return run(config, handler, signal);
      }
    }
    const existing = state.sandboxFor(config.metadata);
    if (existing?.state === 'ready') return existing.id;
    if (existing?.state === 'notready') {
      throw new KeelsonError(
        'ALREADY_EXISTS',
        `sandbox ${existing.id} of ${namespace}/${name}, attempt ${attempt}, exists and is stopped`,
        { hint: 'remove it, or count the attempt up' },
      );
    }
    const work = (async () => {
      if (existing !== undefined) await undoLater(existing.id);
      return create(config, handler, signal);
    })();
    creating.set(key, work);
    try {
      return await work;
    } finally {
      creating.delete(key);
    }
  };

  const stopNow = async (id: string, signal: AbortSignal | undefined) => {
    const record = state.sandboxes.get(id);
    if (record === undefined) return;
    const { config } = record;
    if (record.state === 'creating') {
      if (unfinished.has(id)) {
        throw new KeelsonError('FAILED_PRECONDITION', `sandbox ${id} is being created`);
      }
      return undo(record);
    }
    const wasReady = record.state === 'ready';
    if (wasReady) state.changeSandbox(id, { state: 'notready' });
    await containers.stopAll(id, signal);
    await stopInit(record);
    const folder = folders.sandbox(id);
    if (state.sandboxes.get(id)?.attached) {
      await cni.del({ ...attachmentOf(record), netns: pinnedNetwork(folder) }, signal);
      state.changeSandbox(id, { attached: false });
    }
    await unpinAside(folder);
    if (wasReady) context.emit('stopped', id, config.metadata);
  };

  return {
    run,
    stop: (id, signal) => oneAtATime.run(id, () => stopNow(id, signal)),
    remove: (id, signal) =>
      oneAtATime.run(id, async () => {
        const record = state.sandboxes.get(id);
        if (record === undefined) return;
        await stopNow(id, signal);
        await containers.removeAll(id, signal);
        if (!state.sandboxes.has(id)) return;
        state.removeSandbox(id);
        context.emit('deleted', id, record.config.metadata);
      }),
    undo,
    async undoLeft(signal) {
      const left = [...state.sandboxes.values()].filter((record) => record.state === 'creating');
      await Promise.allSettled(left.map(({ id }) => undoLater(id, signal)));
    },
  };
}
