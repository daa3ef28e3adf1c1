/** Removing what is left of containers and pods. Every step may be repeated. */
import { readdir, rm, rmdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { ContainerStatus } from '../../../runtime/api.ts';
import { listFolder, removeTree } from '../../../runtime/host/files.ts';
import { podLogFolder, uidOf } from '../spec/pod.ts';
import { cgroupOf, podCgroup } from '../spec/qos.ts';
import { type ActionContext, podFolder } from './context.ts';
import { logLink } from './start.ts';
import { userIdsFile } from './user_ids.ts';

/** A container and, without `keepLogs`, its logs (rotated ones too) and the link to them. */
export async function removeContainer(context: ActionContext, id: string, keepLogs = false): Promise<void> {
  const container = context.observed.containers.find((one) => one.id === id);
  await context.runtime.removeContainer(id, context.signal);
  if (container === undefined) return;
  await Promise.all([removeLink(context, container), keepLogs ? undefined : removeLogs(container)]);
}

async function removeLink(context: ActionContext, container: ContainerStatus): Promise<void> {
  await rm(logLink(context, container.metadata.name, container.id), { force: true });
}

/** `3.log`, and rotated ones like `3.log.20260101-000000.gz`. */
async function removeLogs(container: ContainerStatus): Promise<void> {
  if (container.logPath === '') return;
  const folder = dirname(container.logPath);
  const name = basename(container.logPath);
  const files = (await listFolder(folder)).filter((file) => file === name || file.startsWith(`${name}.`));
  await Promise.all(files.map((file) => rm(join(folder, file), { force: true })));
}

/** A sandbox with its containers; their logs go with the pod's folder. */
export async function removeSandbox(context: ActionContext, id: string): Promise<void> {
  const { runtime, signal, observed } = context;
  const links = observed.containers
    .filter(({ podSandboxId }) => podSandboxId === id)
    .map((container) => removeLink(context, container));
  const removing = runtime.stopPodSandbox(id, signal).then(() => runtime.removePodSandbox(id, signal));
  await Promise.all([removing, ...links]);
}

/** The pod's cgroup, logs and folder. */
export async function erase(context: ActionContext): Promise<void> {
  const { pod, config, cgroups, signal } = context;
  const uid = uidOf(pod);
  const folder = podFolder(config, uid);
  const groups = context.orphan
    ? (['Guaranteed', 'Burstable', 'BestEffort'] as const).map((qos) => cgroupOf(uid, qos, config.cgroup))
    : [podCgroup(pod, config.cgroup)];
  await Promise.all([
    ...groups.map(({ path }) => cgroups?.remove(path, signal)),
    context.orphan ? removeLogsOf(context, uid) : removeTree(podLogFolder(config.podLogsDir, pod)),
    removeTree(join(folder, 'etc-hosts')),
    removeTree(join(folder, 'containers')),
    rm(join(folder, userIdsFile), { force: true }),
  ]);
  // Only when empty: what others left there is not ours to judge.
  await rmdir(folder).catch(() => {});
}

/** The pod's name may not be known: its log folders end in its uid. */
async function removeLogsOf(context: ActionContext, uid: string): Promise<void> {
  const root = context.config.podLogsDir;
  const names = await readdir(root).catch(() => [] as string[]);
  await Promise.all(
    names.filter((name) => name.endsWith(`_${uid}`)).map((name) => removeTree(join(root, name))),
  );
}
