/**
 * What a start does before anything else: brings rows and machine together again after a crash, a kill or a reboot.
 *
 * Half-made things are undone, running ones are taken over, ended ones are told truly, and what no row names is swept.
 */
import { existsSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { endLeftCheckpoint } from './checkpoint/checkpoint.ts';
import type { ContainerEnds } from './container_end.ts';
import type { Context } from './context.ts';
import { describe, isError } from './host/errors.ts';
import { listFolder, removeTree } from './host/files.ts';
import { isUnlaunched, type Launches } from './monitor/launch.ts';
import type { MonitorWatch } from './monitor/watch.ts';
import { readMounts } from './oci/mounts.ts';
import {
  allProcesses,
  argumentsOf,
  identify,
  isAlive,
  type ProcessIdentity,
  signalProcess,
} from './processes.ts';
import { unmountBundle } from './rootfs.ts';
import type { Sandboxes } from './sandbox.ts';
import { wantedNamespaces } from './sandbox_config.ts';
import { pinPaths, unpin } from './sandbox_namespaces.ts';
import type { ContainerRecord, SandboxRecord } from './state.ts';

/** What of the containers' parts recovery asks. */
export interface ContainerParts {
  readonly ends: ContainerEnds;
  readonly launches: Launches;
  readonly watch: MonitorWatch;
}

/** Failures of single things are logged; their rows stay, and the next call or start tries again. */
export async function recover(
  context: Context,
  { ends, launches, watch }: ContainerParts,
  sandboxes: Sandboxes,
  handlers: readonly string[],
): Promise<void> {
  const { state, folders, log } = context;
  const attempt = async (what: string, id: string, work: () => Promise<void>) => {
    try {
      await work();
    } catch (error) {
      log.error({ err: error, id }, `${what} failed; it is tried again later`);
    }
  };
  const [bundles, data, pinned] = await Promise.all([
    listFolder(folders.bundles),
    listFolder(folders.data),
    listFolder(folders.sandboxes),
  ]);
  const unknown = (known: ReadonlyMap<string, unknown>) => (name: string) => !known.has(name);
  const halfMade = [...state.containers.values()].filter((record) => record.state === 'creating');
  const lost = bundles.filter(unknown(state.containers));
  const { monitors, calls } = orphans(context, handlers);
  await settleCalls(calls);

  // Containers first: sandboxes are undone under nobody's feet.
  await Promise.all([
    ...halfMade.map((record) =>
      attempt('undoing a half-made container', record.id, async () => {
        await killMonitors(monitors.get(record.id));
        await ends.destroy(record);
        state.removeContainer(record.id);
      }),
    ),
    ...[...state.containers.values()]
      .filter((record) => record.state === 'created' || record.state === 'running')
      .map((record) =>
        attempt('taking over a container', record.id, async () => {
          if (isUnlaunched(record)) await killMonitors(monitors.get(record.id));
          await adopt(context, { ends, launches, watch }, record);
        }),
      ),
    ...lost.map((id) =>
      attempt('sweeping a container that no row names', id, async () => {
        await killMonitors(monitors.get(id));
        await removeFromRuntimes(context, handlers, id);
        await unmountBundle(folders.container(id).bundle);
        await removeTree(folders.container(id).bundle);
      }),
    ),
  ]);
  for (const record of state.containers.values()) {
    if (record.state === 'exited' && !record.cleaned) ends.cleanSoon(record.id);
  }

  const mounted = new Set(readMounts().map(({ path }) => path));
  await Promise.all([
    ...[...state.sandboxes.values()].map((record) =>
      record.state === 'creating'
        ? attempt('undoing a half-made sandbox', record.id, () => sandboxes.undo(record))
        : checkSandbox(context, record, mounted),
    ),
    ...pinned.filter(unknown(state.sandboxes)).map((id) =>
      attempt('sweeping a sandbox that no row names', id, async () => {
        await removeFromRuntimes(context, handlers, id);
        unpin(folders.sandbox(id));
      }),
    ),
    ...data.filter(unknown(state.containers)).map((id) => {
      context.images.release(id);
      return removeTree(folders.container(id).data);
    }),
    sweepRuntimeState(context, handlers, attempt),
    sweepFiles(context),
  ]);
}

const firstSweepWaitMs = 30_000;
const longestSweepWaitMs = 3_600_000;

/**
 * Sweeps what no sandbox owns out of the pod network. At boot its plugins or their configuration may come after us,
 * so each call tries again until it has worked once, after failures less and less often. Never rejects.
 */
export function makeNetworkSweep(
  { state, cni, log, clock }: Context,
  signal: AbortSignal,
): () => Promise<void> {
  let done = false;
  let running: Promise<void> | undefined;
  let notBefore = 0;
  let wait = firstSweepWaitMs;
  const sweep = async () => {
    try {
      const attached = [...state.sandboxes.values()].filter((record) => record.attached);
      await cni.gc(
        attached.map(({ id }) => ({ containerId: id, ifName: 'eth0' })),
        signal,
      );
      done = true;
    } catch (error) {
      // Nothing was asked, so there is nothing to spare.
      if (signal.aborted || isError(error, 'CNI_NOT_CONFIGURED')) return;
      log.warn(
        { err: error, reason: describe(error) },
        'leftovers in the pod network could not be swept yet',
      );
      notBefore = clock.monotonic() + wait;
      wait = Math.min(wait * 2, longestSweepWaitMs);
    }
  };
  return () => {
    if (running === undefined && !done && clock.monotonic() >= notBefore) {
      running = sweep().finally(() => {
        running = undefined;
      });
    }
    return running ?? Promise.resolve();
  };
}

/** A container that was created or running when the last agent ended. */
async function adopt(
  context: Context,
  { ends, launches, watch }: ContainerParts,
  record: ContainerRecord,
): Promise<void> {
  const { state, programs, clock } = context;
  const { id } = record;
  const sandbox = state.sandboxes.get(record.sandboxId);
  const { bundle } = context.folders.container(id);
  const sameBoot = sandbox?.bootId === context.bootId;
  if (isUnlaunched(record)) {
    // Its next start launches it, if there is still what to launch.
    await launches.clear(record);
    if (!sameBoot || !existsSync(join(bundle, 'config.json'))) await ends.lost(id);
    return;
  }
  await ends.noticeExit(id);
  // A pid and start time of an earlier boot may be anybody's now.
  if (!sameBoot && state.containers.get(id)?.state !== 'exited') {
    state.changeContainer(id, { init: undefined, monitor: undefined });
    await ends.lost(id);
  }
  await ends.checkMonitor(id);
  if (state.containers.get(id)?.state === 'running') await endLeftCheckpoint(context, record);
  const { monitor } = state.containers.get(id) ?? {};
  if (monitor !== undefined) watch.watch(id, bundle, monitor);
  if (state.containers.get(id)?.state !== 'created') return;
  // Did the last agent start it before it could say so?
  const real = await programs.runtimeFor(sandbox?.handler ?? '').state(id);
  if (real === 'running' && state.containers.get(id)?.state === 'created') {
    state.changeContainer(id, { state: 'running', startedAt: clock.now() });
  }
}

/** Pins and the first process do not outlive a reboot; nobody should take such a sandbox for ready. */
function checkSandbox(context: Context, record: SandboxRecord, mounted: ReadonlySet<string>): void {
  if (record.state !== 'ready') return;
  const pins = Object.values(pinPaths(context.folders.sandbox(record.id), wantedNamespaces(record.config)));
  const whole = pins.every((path) => path === undefined || mounted.has(path));
  const sameBoot = record.bootId === context.bootId;
  if (whole && sameBoot && (record.init === undefined || isAlive(record.init))) return;
  context.state.changeSandbox(record.id, { state: 'notready', init: sameBoot ? record.init : undefined });
}

interface Orphans {
  /** The conmons that write to our exit folder, by container: the daemon and, for a moment, its parent. */
  readonly monitors: ReadonlyMap<string, ProcessIdentity[]>;
  /** Calls of the OCI runtime that the last agent did not see the end of. */
  readonly calls: readonly { readonly verb: string; readonly identity: ProcessIdentity }[];
}

/** What the last agent left running on our folders, besides containers. */
function orphans({ folders }: Context, handlers: readonly string[]): Orphans {
  const monitors = new Map<string, ProcessIdentity[]>();
  const calls: { verb: string; identity: ProcessIdentity }[] = [];
  const roots = handlers.map((handler) => `--root=${folders.ociRoot(handler)}`);
  for (const pid of allProcesses()) {
    const args = argumentsOf(pid);
    const identity = args.length > 1 ? identify(pid) : undefined;
    if (identity === undefined) continue;
    if (args[args.indexOf('--exit-dir') + 1] === folders.exits) {
      const id = args[args.indexOf('--cid') + 1];
      if (id !== undefined) monitors.set(id, [...(monitors.get(id) ?? []), identity]);
    } else if (args.some((arg) => roots.includes(arg))) {
      const verb = args.find((arg) => ['run', 'create', 'start', 'delete'].includes(arg));
      if (verb !== undefined) calls.push({ verb, identity });
    }
  }
  return { monitors, calls };
}

/** A start or delete ends by itself, in milliseconds; what would make something new is ended. */
async function settleCalls(calls: Orphans['calls']): Promise<void> {
  for (const { verb, identity } of calls) if (verb === 'run') signalProcess(identity, 'SIGKILL');
  const short = calls.filter(({ verb }) => verb !== 'create').map(({ identity }) => identity);
  for (let wait = 1; wait < 2000 && short.some(isAlive); wait *= 2) {
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

async function killMonitors(monitors: readonly ProcessIdentity[] = []): Promise<void> {
  for (const monitor of monitors) signalProcess(monitor, 'SIGKILL');
  for (let wait = 1; wait < 1000 && monitors.some(isAlive); wait *= 2) {
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

/** No row, so nobody knows which handler made it. */
async function removeFromRuntimes(context: Context, handlers: readonly string[], id: string): Promise<void> {
  for (const handler of handlers) {
    const known = await listFolder(context.folders.ociRoot(handler));
    if (known.includes(id)) await context.programs.runtimeFor(handler).remove(id);
  }
}

async function sweepRuntimeState(
  context: Context,
  handlers: readonly string[],
  attempt: (what: string, id: string, work: () => Promise<void>) => Promise<void>,
): Promise<void> {
  const { state, folders, programs } = context;
  for (const handler of handlers) {
    const ids = await listFolder(folders.ociRoot(handler));
    await Promise.all(
      ids
        .filter((id) => !state.containers.has(id) && !state.sandboxes.has(id))
        .map((id) =>
          attempt('sweeping what the OCI runtime kept', id, () => programs.runtimeFor(handler).remove(id)),
        ),
    );
  }
}

/** Exit files of removed containers, temporary files of conmons that were killed. */
async function sweepFiles({ state, folders }: Context): Promise<void> {
  const exits = (await readdir(folders.exits)).filter(
    // `<id>.XXXXXX`: a conmon may be writing it just now.
    (name) => !state.containers.has(name.replace(/\..*$/, '')),
  );
  const sockets = (await readdir(folders.runDir)).filter((name) => name.startsWith('conmon-term.'));
  await Promise.all([
    ...exits.map((name) => rm(join(folders.exits, name), { force: true })),
    ...sockets.map((name) => rm(join(folders.runDir, name), { force: true })),
  ]);
}
