/**
 * The beginning of containers: root file system and bundle, behind them monitor and `runc create`; then `runc start`;
 * and what is done to running ones.
 *
 * creating ──bundle written──▶ created ──start──▶ running ──exit file──▶ exited ──remove──▶ gone.
 */
import { randomBytes } from 'node:crypto';
import type { ContainerConfig, ExecSyncResult, RuntimeService } from './api.ts';
import type { ContainerEnds } from './container_end.ts';
import type { Context } from './context.ts';
import { slicePath } from './host/cgroups.ts';
import { abortError, describe, isError, KeelsonError } from './host/errors.ts';
import { attachToMonitor } from './io/attach.ts';
import { execOnPipes } from './io/exec.ts';
import { execOnTerminal } from './io/terminal.ts';
import { type Launches, unlessAborted } from './monitor/launch.ts';
import { logPathOf, makeBundle } from './oci/bundle.ts';
import { reopenLog } from './oci/conmon.ts';
import { checkSize } from './oci/process.ts';
import { containerCgroup } from './oci/spec.ts';
import { signalNumber } from './processes.ts';
import { checkContainerRequest } from './security/admission.ts';
import type { ContainerRecord, SandboxRecord } from './state.ts';

/** How long the container may wait for one who is attached and does not read. */
const attachStallMs = 30_000;

export interface Containers {
  create(sandboxId: string, config: ContainerConfig, signal?: AbortSignal): Promise<string>;
  start(id: string, signal?: AbortSignal): Promise<void>;
  execSync(
    id: string,
    command: readonly string[],
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<ExecSyncResult>;
  exec: RuntimeService['exec'];
  attach: RuntimeService['attach'];
  reopenLog(id: string, signal?: AbortSignal): Promise<void>;
  /** Ends the containers of a sandbox, also those that are being created. */
  stopAll(sandboxId: string, signal?: AbortSignal): Promise<void>;
  removeAll(sandboxId: string, signal?: AbortSignal): Promise<void>;
}

/** Pure. Throws CONTAINER_CONFIG_INVALID. */
export function checkContainerConfig(config: ContainerConfig): void {
  const { metadata, logPath, stopSignal } = config;
  const invalid = (message: string) => new KeelsonError('CONTAINER_CONFIG_INVALID', message);
  if (metadata.name === '' || metadata.name.includes('\0')) throw invalid('the container has no name');
  if (!Number.isSafeInteger(metadata.attempt) || metadata.attempt < 0) {
    throw invalid(`attempt ${metadata.attempt} is no count`);
  }
  if (logPath.startsWith('/') || /(^|\/)\.\.(\/|$)|[\0\n]/.test(logPath)) {
    throw invalid(`logPath ${JSON.stringify(logPath)} leads out of the pod's log folder`);
  }
  // conmon would take the part before it for the path.
  if (logPath.includes(':')) throw invalid(`logPath ${JSON.stringify(logPath)} contains a colon`);
  if (stopSignal && signalNumber(stopSignal) === undefined) throw invalid(`${stopSignal} is no signal`);
}

export function makeContainers(context: Context, ends: ContainerEnds, launches: Launches): Containers {
  const { state, images, folders, programs, clock, log } = context;
  const creating = new Map<string, Promise<string>>();
  /** By sandbox: how to break off what is being created in it. */
  const breakOff = new Map<
    string,
    Set<{ readonly abort: AbortController; readonly done: Promise<unknown> }>
  >();
  const starting = new Set<string>();

  const find = (id: string): ContainerRecord => {
    const record = state.containers.get(id);
    if (record === undefined || record.state === 'creating') {
      throw new KeelsonError('NOT_FOUND', `there is no container ${JSON.stringify(id)}`);
    }
    return record;
  };

  const readySandbox = (id: string): SandboxRecord => {
    const sandbox = state.sandboxes.get(id);
    if (sandbox === undefined || sandbox.state === 'creating') {
      throw new KeelsonError('NOT_FOUND', `there is no sandbox ${JSON.stringify(id)}`);
    }
    if (sandbox.state !== 'ready') throw new KeelsonError('FAILED_PRECONDITION', `sandbox ${id} is stopped`);
    return sandbox;
  };

  const running = (id: string): ContainerRecord => {
    const record = find(id);
    if (record.state === 'running') return record;
    throw new KeelsonError('FAILED_PRECONDITION', `container ${id} is ${record.state}, not running`);
  };
  const runtimeOf = ({ sandboxId }: ContainerRecord) =>
    programs.runtimeFor(state.sandboxes.get(sandboxId)?.handler ?? '');

  const create = async (sandboxId: string, config: ContainerConfig, signal: AbortSignal): Promise<string> => {
    checkContainerConfig(config);
    checkContainerRequest(config, readySandbox(sandboxId).config, context.host.cgroupVersion);
    if (signal.aborted) throw abortError(signal, 'creating the container');
    const image = await images.forContainer(config.image.image);
    const sandbox = readySandbox(sandboxId);
    const { envs, command, args, ...kept } = config;
    const id = randomBytes(32).toString('hex');
    const imageSignal = image.config.StopSignal ?? '';
    const record: ContainerRecord = {
      id,
      sandboxId,
      config: kept,
      createdAt: clock.now(),
      imageId: image.id,
      imageDigestRef: image.digestRef,
      cgroup: containerCgroup(context.cgroupDriver, sandbox.config.linux.cgroupParent, id, slicePath).path,
      stopSignal: config.stopSignal || (signalNumber(imageSignal) === undefined ? 'SIGTERM' : imageSignal),
      state: 'creating',
      init: undefined,
      monitor: undefined,
      user: undefined,
      startedAt: 0,
      finishedAt: 0,
      exitCode: 0,
      reason: '',
      message: '',
      cleaned: false,
    };
    state.addContainer(record);
    try {
      images.lease(image.id, id);
      const user = await makeBundle(context, sandbox, id, config, image, signal);
      state.changeContainer(id, {
        state: 'created',
        user: { uid: user.uid, gid: user.gid, supplementalGroups: user.additionalGids },
      });
    } catch (error) {
      try {
        await ends.destroy(record);
        state.removeContainer(id);
      } catch (undoError) {
        // The row stays `creating`: the next call for this container and the next start try again.
        log.error({ err: undoError, container: id }, 'a failed container could not be undone yet');
      }
      if (error instanceof KeelsonError && error.code !== 'SYSCALL_FAILED') throw error;
      throw new KeelsonError(
        'CONTAINER_CREATE_FAILED',
        `cannot create container ${config.metadata.name}: ${describe(error)}`,
        { cause: error },
      );
    }
    context.emit('created', id, sandbox.config.metadata);
    void launches.launch(id);
    return id;
  };

  const createOnce: Containers['create'] = async (sandboxId, config, signal) => {
    const { name, attempt } = config.metadata;
    readySandbox(sandboxId);
    const key = JSON.stringify([sandboxId, name, attempt]);
    const underWay = creating.get(key);
    if (underWay !== undefined) {
      try {
        return await underWay;
      } catch (error) {
        // The caller who began gave up; this one has not. (A sandbox that is stopped says so the second time.)
        if (!isError(error, 'ABORTED', 'DEADLINE_EXCEEDED') || signal?.aborted) throw error;
        return createOnce(sandboxId, config, signal);
      }
    }
    const existing = state.containerFor(sandboxId, name, attempt);
    if (existing?.state === 'created') return existing.id;
    if (existing !== undefined && existing.state !== 'creating') {
      throw new KeelsonError(
        'ALREADY_EXISTS',
        `container ${name}, attempt ${attempt}, exists as ${existing.id} and is ${existing.state}`,
        { hint: 'remove it, or count the attempt up' },
      );
    }
    const abort = new AbortController();
    const work = (async () => {
      if (existing !== undefined) {
        await ends.destroy(existing);
        state.removeContainer(existing.id);
      }
      return create(
        sandboxId,
        config,
        signal === undefined ? abort.signal : AbortSignal.any([signal, abort.signal]),
      );
    })();
    const entry = { abort, done: work };
    const entries = breakOff.get(sandboxId) ?? new Set();
    breakOff.set(sandboxId, entries.add(entry));
    creating.set(key, work);
    try {
      return await work;
    } finally {
      creating.delete(key);
      entries.delete(entry);
      if (entries.size === 0) breakOff.delete(sandboxId);
    }
  };

  const start: Containers['start'] = async (id, signal) => {
    const record = find(id);
    if (record.state !== 'created' || starting.has(id)) {
      throw new KeelsonError(
        'FAILED_PRECONDITION',
        `container ${id} is ${starting.has(id) ? 'being started' : record.state}, not created`,
      );
    }
    const sandbox = readySandbox(record.sandboxId);
    starting.add(id);
    try {
      const failed = await unlessAborted(launches.launch(id), signal, 'starting the container');
      if (failed !== undefined) {
        // Broken off: whoever did so tells what became of it.
        if (failed.code !== 'ABORTED') await ends.startFailed(id, failed);
        throw failed;
      }
      const ready = find(id);
      if (ready.state !== 'created') {
        throw new KeelsonError('FAILED_PRECONDITION', `container ${id} is ${ready.state}, not created`);
      }
      const runtime = programs.runtimeFor(sandbox.handler);
      const started = runtime.start(id, signal).catch(async (error: unknown) => {
        // The start of an agent that was killed meanwhile may have come first.
        if ((await runtime.state(id)) !== 'running') throw error;
      });
      const startedAt = clock.now();
      const work = started.then(() => {
        state.changeContainer(id, { state: 'running', startedAt });
        context.emit('started', id, sandbox.config.metadata);
      });
      ends.duringStart(id, work);
      await work;
    } finally {
      starting.delete(id);
    }
  };

  return {
    create: createOnce,
    start,
    async execSync(id, command, timeoutMs, signal) {
      const record = running(id);
      if (command.length === 0) throw new KeelsonError('INVALID_ARGUMENT', 'no command to run');
      checkSize(command, 'the command');
      const { bundle } = folders.container(id);
      return runtimeOf(record).exec({ id, bundle, command, timeoutMs, signal });
    },
    async exec(id, command, { tty, ...streams }, signal) {
      const record = running(id);
      if (command.length === 0) throw new KeelsonError('INVALID_ARGUMENT', 'no command to run');
      const { bundle } = folders.container(id);
      const runtime = runtimeOf(record);
      if (!tty) return execOnPipes({ runtime, id, bundle, command, streams, signal });
      const conmon = programs.conmon();
      const temporaryDir = folders.runDir;
      return execOnTerminal({
        ...{ runtime, conmon, temporaryDir, id, bundle, command, streams, clock, signal },
      });
    },
    async attach(id, streams, signal) {
      const { config } = running(id);
      const { bundle } = folders.container(id);
      const stdin = config.stdin ? streams.stdin : undefined;
      if (stdin === undefined) streams.stdin?.resume();
      await attachToMonitor({
        ...{ bundle, clock, signal, stallMs: attachStallMs, tty: config.tty ?? false },
        streams: { ...streams, stdin },
      });
    },
    async reopenLog(id, signal) {
      const record = find(id);
      const sandbox = state.sandboxes.get(record.sandboxId);
      const logPath = sandbox && logPathOf(sandbox, record.config);
      if (record.state !== 'running') {
        throw new KeelsonError('FAILED_PRECONDITION', `container ${id} is ${record.state}, not running`);
      }
      if (logPath !== undefined) await reopenLog(folders.container(id).bundle, logPath, signal);
    },
    async stopAll(sandboxId, signal) {
      const broken = [...(breakOff.get(sandboxId) ?? [])];
      for (const { abort } of broken) abort.abort();
      await Promise.allSettled(broken.map(({ done }) => done));
      await Promise.all(state.containersOf(sandboxId).map(({ id }) => ends.stop(id, 0, signal)));
    },
    async removeAll(sandboxId, signal) {
      await Promise.all(
        state.containersOf(sandboxId).map(async (record) => {
          if (record.state !== 'creating') return ends.remove(record.id, signal);
          await ends.destroy(record);
          state.removeContainer(record.id);
        }),
      );
    },
  };
}
