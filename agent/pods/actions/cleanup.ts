/** Removing what is left of containers and pods. Every step may be repeated. */
import { rm, rmdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { ContainerStatus } from '../../../runtime/api.ts';
import { listFolder, removeTree } from '../../../runtime/host/files.ts';
import { removeLinks } from '../../logs/links.ts';
import { podLogFolder, uidOf } from '../spec/pod.ts';
import { cgroupOf, podCgroup } from '../spec/qos.ts';
import { type ActionContext, podFolder } from './context.ts';
import { logLink } from './start.ts';
import { userIdsFile } from './user_ids.ts';

/**
 * A container and, without `keepLogs`, its logs (rotated ones too) and the link to them: before the container itself,
 * since after it nobody knows of them any more.
 */
export async function removeContainer(context: ActionContext, id: string, keepLogs = false): Promise<void> {
  const container = context.observed.containers.find((one) => one.id === id);
  if (container !== undefined)
    await Promise.all([removeLink(context, container), keepLogs ? undefined : removeLogs(container)]);
  await context.runtime.removeContainer(id, context.signal);
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
  const own = observed.containers.filter(({ podSandboxId }) => podSandboxId === id);
  await Promise.all([
    runtime.stopPodSandbox(id, signal),
    ...own.map((container) => removeLink(context, container)),
  ]);
  await runtime.removePodSandbox(id, signal);
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

/** The pod's name may not be known: its log folders end in its uid. The links to them go first. */
async function removeLogsOf({ config }: ActionContext, uid: string): Promise<void> {
  const { podLogsDir, containerLogsDir } = config;
  await removeLinks(containerLogsDir, podLogsDir, (target) => target.uid === uid);
  const names = (await listFolder(podLogsDir)).filter((name) => name.endsWith(`_${uid}`));
  await Promise.all(names.map((name) => removeTree(join(podLogsDir, name))));
}
