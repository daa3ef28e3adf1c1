/** The embedded runtime: RuntimeService in process, put together from its parts. */
import { closeSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import type { Cni } from '../cni/network.ts';
import type { EmbeddedImages } from '../images/service.ts';
import type {
  Container,
  ContainerEvent,
  ContainerStatus,
  PodSandbox,
  PodSandboxStatus,
  RuntimeDetails,
  RuntimeService,
  RuntimeStats,
} from './api.ts';
import { makeCdiRegistry } from './cdi/registry.ts';
import { makeCheckpoint } from './checkpoint/checkpoint.ts';
import { makeContainers } from './container.ts';
import { makeContainerEnds } from './container_end.ts';
import { type Context, layOut, makePrograms, openMountView, readBootId, readHostFacts } from './context.ts';
import { watchExits } from './exits.ts';
import { detectCgroups } from './host/cgroups.ts';
import type { Clock } from './host/clock.ts';
import { type Database, lockFile } from './host/database.ts';
import { describe, KeelsonError } from './host/errors.ts';
import type { Logger } from './host/log.ts';
import { makePatience } from './host/mounts/patience.ts';
import { forwardPort } from './io/forward.ts';
import { makeLaunches } from './monitor/launch.ts';
import { makeMonitorWatch } from './monitor/watch.ts';
import { logPathOf } from './oci/bundle.ts';
import { handlerFeatures } from './oci/handlers.ts';
import { makeAccounts } from './oci/user.ts';
import { isAlive } from './processes.ts';
import { makeNetworkSweep, recover } from './recovery.ts';
import { makeDetails } from './report/details.ts';
import { makeStats } from './report/stats.ts';
import { makeUpdateResources, resourcesOf } from './resources/update.ts';
import { makeSandboxes } from './sandbox.ts';
import { wantedNamespaces } from './sandbox_config.ts';
import { makeNamespacePinner, pinnedNetwork, pinPaths } from './sandbox_namespaces.ts';
import { makeAppArmor } from './security/apparmor.ts';
import { makeSelinux } from './security/selinux.ts';
import { type ContainerRecord, openState, type SandboxRecord } from './state.ts';

export interface EmbeddedRuntime extends RuntimeService, RuntimeStats, RuntimeDetails {
  /** Ends watching; containers go on. Waits for what is being cleaned up. */
  close(): Promise<void>;
}

export interface RuntimeOptions {
  readonly db: Database;
  readonly stateDir: string;
  /** A short path: sockets lie below it. */
  readonly runDir: string;
  readonly images: EmbeddedImages;
  readonly cni: Cni;
  readonly log: Logger;
  readonly clock: Clock;
  /** OCI runtimes by the names that RuntimeClasses use. Default: runc. */
  readonly handlers?: Readonly<Record<string, { readonly path: string }>>;
  /** Default: conmon on the PATH. */
  readonly conmon?: string;
  /** Containers get SELinux labels, on hosts with SELinux. Default: false, as in containerd. */
  readonly selinux?: boolean;
  /** Where the specifications of CDI devices lie; later folders win. Default: /etc/cdi and /var/run/cdi. */
  readonly cdiFolders?: readonly string[];
  /** Folders besides its own from which mounts of containers come as a rule, as those of pods' volumes. */
  readonly mountFolders?: readonly string[];
  /** Default: cgroupfs. */
  readonly cgroupDriver?: 'cgroupfs' | 'systemd';
  readonly version: string;
}

/** How often is looked at what nobody asks about and nothing tells of: a sandbox waits to be undone. */
const monitorCheckMs = 30_000;

/** Opens the runtime and brings what an earlier one left into order. */
export async function makeRuntime(options: RuntimeOptions): Promise<EmbeddedRuntime> {
  const { images, cni, log, clock, cgroupDriver = 'cgroupfs' } = options;
  const handlers = options.handlers ?? { runc: { path: 'runc' } };
  const folders = layOut(options.runDir, options.stateDir);
  await Promise.all(
    [folders.exits, folders.sandboxes, folders.bundles, folders.data].map((path) =>
      mkdir(path, { recursive: true, mode: 0o700 }),
    ),
  );
  // What our rows do not name is swept: another keelson with a database of its own must not share the folder.
  const lock = lockFile(join(folders.runDir, 'lock'));
  if (lock === undefined) {
    throw new KeelsonError('FAILED_PRECONDITION', `${folders.runDir} is in use by another keelson process`, {
      hint: 'stop it first, or give this one its own runDir',
    });
  }
  const state = openState(options.db);
  const cgroups = detectCgroups();
  const patience = makePatience({ clock });
  const view = openMountView(folders, handlers, options.mountFolders ?? [], patience, log);
  const listeners = new Set<(event: ContainerEvent) => void>();
  const warned = new Set<string>();
  const context: Context = {
    state,
    images,
    cni,
    cgroups,
    cgroupDriver,
    folders,
    programs: makePrograms({
      handlers,
      conmon: options.conmon ?? 'conmon',
      folders,
      systemdCgroup: cgroupDriver === 'systemd',
      view,
    }),
    host: readHostFacts(cgroups.version),
    patience,
    accountsOf: makeAccounts(),
    apparmor: makeAppArmor({ tempDir: folders.runDir }),
    selinux: makeSelinux(options.selinux ?? false),
    cdi: makeCdiRegistry(options.cdiFolders),
    bootId: readBootId(),
    hostname: hostname(),
    log,
    clock,
    emit(type, containerId, sandbox) {
      if (sandbox === undefined) return;
      const event = { type, containerId, at: clock.now(), sandbox };
      for (const listener of listeners) {
        try {
          listener(event);
        } catch (error) {
          log.error({ err: error }, 'a listener of container events failed');
        }
      }
    },
    warnOnce(message, facts = {}) {
      if (warned.has(message)) return;
      warned.add(message);
      log.warn(facts, message);
    },
  };
  for (const error of context.programs.missing()) log.error({ err: error }, 'containers cannot run yet');
  if (!context.host.capabilities.includes('SYS_RESOURCE')) {
    context.warnOnce('without CAP_SYS_RESOURCE no oom_score_adj below the own one can be set: it is clamped');
  }
  const complain = (error: unknown) => log.error({ err: error }, 'looking after a container failed');
  const launches = makeLaunches(context, (id) => {
    const { monitor } = state.containers.get(id) ?? {};
    if (monitor !== undefined) watch.watch(id, folders.container(id).bundle, monitor);
    // Its process may have been killed before the row named it.
    void ends.noticeExit(id).catch(complain);
  });
  const ends = makeContainerEnds(context, launches);
  const watch = makeMonitorWatch((id) => void ends.checkMonitor(id).catch(complain));
  const containers = makeContainers(context, ends, launches);
  const pinner = makeNamespacePinner();
  const sandboxes = makeSandboxes(context, pinner, containers);
  // Before recovery, so that no exit falls between the two.
  const exits = watchExits(folders.exits, (id) => void ends.noticeExit(id).catch(complain));
  await recover(context, { ends, launches, watch }, sandboxes, Object.keys(handlers));
  const closing = new AbortController();
  const sweepNetwork = makeNetworkSweep(context, closing.signal);
  let sweeping = sweepNetwork();

  let endOfWait = () => {};
  let undoing: Promise<void> | undefined;
  const checkMonitors = () => {
    for (const record of state.containers.values()) {
      if (record.state === 'running' || record.state === 'created') {
        void ends.checkMonitor(record.id).catch(complain);
      }
    }
    sweeping = sweepNetwork();
    undoing ??= sandboxes.undoLeft(closing.signal).finally(() => {
      undoing = undefined;
    });
    endOfWait = clock.after(monitorCheckMs, checkMonitors);
  };
  endOfWait = clock.after(monitorCheckMs, checkMonitors);

  const visible = <T extends SandboxRecord | ContainerRecord>(
    record: T | undefined,
    what: string,
    id: string,
  ): T => {
    if (record !== undefined && record.state !== 'creating') return record;
    throw new KeelsonError('NOT_FOUND', `there is no ${what} ${JSON.stringify(id)}`);
  };

  return {
    ...makeDetails(context),
    ...makeStats(context),
    version: async () => ({ runtimeName: 'keelson', runtimeVersion: options.version }),
    async status() {
      const missing = context.programs.missing();
      const network = await cni.status();
      return [
        {
          type: 'RuntimeReady',
          status: missing.length === 0,
          reason: missing.length === 0 ? '' : 'RuntimeProgramMissing',
          message: missing.map(describe).join('; '),
        },
        {
          type: 'NetworkReady',
          status: network.ready,
          reason: network.reason,
          message: network.message,
        },
      ];
    },
    runPodSandbox: sandboxes.run,
    stopPodSandbox: sandboxes.stop,
    removePodSandbox: sandboxes.remove,
    async podSandboxStatus(id) {
      const record = visible(state.sandboxes.get(id), 'sandbox', id);
      if (record.state === 'ready' && record.init !== undefined && !isAlive(record.init)) {
        // With it the kernel ended everything in the PID namespace.
        return sandboxStatus(state.changeSandbox(id, { state: 'notready' }) ?? record, folders.sandbox(id));
      }
      return sandboxStatus(record, folders.sandbox(id));
    },
    async listPodSandbox(filter = {}) {
      const { id, state: wanted, labels } = filter;
      return [...state.sandboxes.values()]
        .filter((record) => record.state !== 'creating')
        .filter((record) => id === undefined || record.id === id)
        .filter((record) => wanted === undefined || record.state === wanted)
        .filter((record) => hasLabels(record.config.labels, labels))
        .map(sandboxOf);
    },
    createContainer: containers.create,
    startContainer: containers.start,
    stopContainer: ends.stop,
    removeContainer: ends.remove,
    async listContainers(filter = {}) {
      const { id, podSandboxId, state: wanted, labels } = filter;
      return [...state.containers.values()]
        .filter((record) => record.state !== 'creating')
        .filter((record) => id === undefined || record.id === id)
        .filter((record) => podSandboxId === undefined || record.sandboxId === podSandboxId)
        .filter((record) => wanted === undefined || record.state === wanted)
        .filter((record) => hasLabels(record.config.labels, labels))
        .map(containerOf);
    },
    async containerStatus(id) {
      visible(state.containers.get(id), 'container', id);
      await ends.checkMonitor(id);
      const record = visible(state.containers.get(id), 'container', id);
      const sandbox = state.sandboxes.get(record.sandboxId);
      return containerStatus(record, (sandbox && logPathOf(sandbox, record.config)) ?? '');
    },
    execSync: containers.execSync,
    updateContainerResources: makeUpdateResources(context, launches),
    exec: containers.exec,
    attach: containers.attach,
    async portForward(sandboxId, port, io, signal) {
      const sandbox = visible(state.sandboxes.get(sandboxId), 'sandbox', sandboxId);
      const network = pinnedNetwork(folders.sandbox(sandboxId));
      const { network: mode } = sandbox.config.linux.security.namespaces;
      if (sandbox.state !== 'ready' || (mode === 'pod' && network === undefined)) {
        throw new KeelsonError('FAILED_PRECONDITION', `sandbox ${sandboxId} is stopped`);
      }
      const inNetwork = <T>(work: () => T): T =>
        mode === 'node' || network === undefined ? work() : pinner.inNetwork(network, work);
      await forwardPort({ port, io, inNetwork, clock, signal });
    },
    reopenContainerLog: containers.reopenLog,
    checkpointContainer: makeCheckpoint(context),
    containerEvents(listener) {
      // A wrapper of its own, so that one function may listen twice.
      const own = (event: ContainerEvent) => listener(event);
      listeners.add(own);
      return () => listeners.delete(own);
    },
    handlers: () => handlerFeatures(context.programs, Object.keys(handlers)),
    features: async () => ({
      supplementalGroupsPolicy: true,
      userNamespacesHostNetwork: false,
      mountOptions: true,
    }),
    async close() {
      if (closing.signal.aborted) return;
      closing.abort();
      endOfWait();
      exits.close();
      watch.close();
      await launches.close();
      await Promise.all([ends.settled(), sweeping, undoing]);
      pinner.close();
      view?.close();
      closeSync(lock);
    },
  };
}

function hasLabels(
  labels: Readonly<Record<string, string>>,
  wanted: Readonly<Record<string, string>> = {},
): boolean {
  return Object.entries(wanted).every(([name, value]) => labels[name] === value);
}

function sandboxOf(record: SandboxRecord): PodSandbox {
  const { id, config, state, createdAt, handler } = record;
  return {
    id,
    metadata: config.metadata,
    state: state === 'ready' ? 'ready' : 'notready',
    createdAt,
    labels: config.labels,
    annotations: config.annotations,
    runtimeHandler: handler,
  };
}

function sandboxStatus(record: SandboxRecord, folder: string): PodSandboxStatus {
  return {
    ...sandboxOf(record),
    ips: record.ips,
    namespaces: record.config.linux.security.namespaces,
    networkNamespace: pinPaths(folder, wantedNamespaces(record.config)).network,
  };
}

function containerOf(record: ContainerRecord): Container {
  const { id, sandboxId, config, imageId, state, createdAt } = record;
  return {
    id,
    podSandboxId: sandboxId,
    metadata: config.metadata,
    image: config.userImage ?? config.image.image,
    imageRef: imageId,
    state: state === 'creating' ? 'unknown' : state,
    createdAt,
    labels: config.labels,
    annotations: config.annotations,
  };
}

function containerStatus(record: ContainerRecord, logPath: string): ContainerStatus {
  const { startedAt, finishedAt, exitCode, reason, message, config, init, state } = record;
  return {
    ...containerOf(record),
    startedAt,
    finishedAt,
    exitCode,
    reason,
    message,
    logPath,
    mounts: config.mounts,
    resources: resourcesOf(record),
    stopSignal: record.stopSignal,
    imageDigestRef: record.imageDigestRef,
    pid: state === 'running' ? (init?.pid ?? 0) : 0,
    user: record.user,
  };
}
