/** Making and starting one container. */
import { chmod, mkdir, readFile, symlink, unlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { KeyValue } from '../../../runtime/api.ts';
import { describe, errnoOf, isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { writeFileAtomic } from '../../../runtime/host/files.ts';
import { apiStatus } from '../../apiserver/client.ts';
import type { ConfigMap, PodContainer, Secret } from '../../apiserver/types.ts';
import { expandCommand, makeEnv, referencesOf, valueKey } from '../env.ts';
import { containerBackoff, failedAgain } from '../plan/backoff.ts';
import { without } from '../plan/memory.ts';
import { makeContainerConfig, subPathMounts, withUsers } from '../spec/container_config.ts';
import { hostsFile } from '../spec/hosts.ts';
import { asksRecursiveReadOnly, withMountModes } from '../spec/mount_modes.ts';
import { isHostNetwork, namespaceOf, podLogFolder, specGraceSeconds, uidOf } from '../spec/pod.ts';
import { podHostname } from '../spec/sandbox_config.ts';
import { asksImageUser } from '../spec/security.ts';
import { volumesOf, withUsedVolumes } from '../spec/used_volumes.ts';
import { type ActionContext, interrupted, type MemoryUpdate, podFolder, tell } from './context.ts';
import { runHook } from './hooks.ts';
import { stopContainer } from './stop.ts';
import { inTarget } from './target.ts';

/** A container could not be made or started: remembered with its reason until the next try. */
function failure(context: ActionContext, name: string, reason: string, error: unknown): MemoryUpdate {
  const message = describe(error);
  const now = context.clock.now();
  return (memory) => ({
    ...memory,
    startFailures: {
      ...memory.startFailures,
      [name]: failedAgain(memory.startFailures[name], reason, message, now, containerBackoff),
    },
  });
}

export async function createContainer(
  context: ActionContext,
  container: PodContainer,
  attempt: number,
  sandboxId: string,
  imageId: string,
): Promise<MemoryUpdate> {
  const { name } = container;
  let step = 'CreateContainerConfigError';
  try {
    const config = await configure(context, container, attempt, sandboxId, imageId);
    step = 'CreateContainerError';
    await context.runtime.createContainer(sandboxId, config, context.signal);
  } catch (error) {
    if (interrupted(context)) throw error;
    tell(context, name, 'Warning', 'Failed', `Error: ${describe(error)}`);
    const remember = failure(context, name, step, error);
    if (!isError(error, 'IMAGE_NOT_PRESENT')) return remember;
    // It was there when it was looked for, and has been removed since: it is to be looked for anew.
    return (memory) => remember({ ...memory, images: without(memory.images, name) });
  }
  context.stage('create');
  tell(context, name, 'Normal', 'Created', 'Container created');
  return (memory) => memory;
}

/** An ephemeral container may be the first to use a volume. */
async function volumesFor(context: ActionContext, container: PodContainer): Promise<ActionContext['ready']> {
  const { ready, pod, volumes, signal } = context;
  const known = pod.spec?.volumes?.map(({ name }) => name) ?? [];
  if (volumesOf(container).every((name) => ready.has(name) || !known.includes(name))) return ready;
  const more = await volumes.setUp(withUsedVolumes(pod), signal);
  context.setReady(more);
  return more;
}

/** Everything that the container's configuration needs, fetched and written side by side. */
async function configure(
  before: ActionContext,
  container: PodContainer,
  attempt: number,
  sandboxId: string,
  imageId: string,
) {
  const ready = await volumesFor(before, container);
  const context = { ...before, ready };
  const { pod, config } = context;
  const folder = podFolder(config, uidOf(pod));
  const terminationFile = join(folder, 'containers', container.name, String(attempt));
  const hosts = join(folder, 'etc-hosts');
  const [env, image] = await Promise.all([
    environment(context, container),
    asksImageUser(pod, container) ? context.images.imageStatus({ image: imageId }) : undefined,
    writeHosts(context, hosts),
    makeTerminationFile(terminationFile),
    mkdir(join(podLogFolder(config.podLogsDir, pod), container.name), { recursive: true }),
  ]);
  const subPaths = await pinSubPaths(context, container, env);
  const made = makeContainerConfig({
    pod,
    container,
    attempt,
    imageId,
    ...(asksImageUser(pod, container) ? { imageUser: { uid: image?.uid, username: image?.username } } : {}),
    env,
    ...expandCommand(container, env),
    volumes: ready,
    volumeImages: context.memory.images[container.name]?.volumeImages,
    subPaths,
    hostsFile: hosts,
    terminationFile,
    cgroup: config.cgroup,
    kernel: config.kernel,
    security: config.security,
    memoryCapacity: context.memoryCapacity,
  });
  const sandbox = context.observed.sandboxes.find(({ id }) => id === sandboxId);
  const handler = asksRecursiveReadOnly(container)
    ? await context.handlers.features(sandbox?.runtimeHandler ?? '')
    : undefined;
  const moded = withMountModes(made, pod, container, {
    recursiveReadOnly: handler?.recursiveReadOnlyMounts ?? false,
    selinux: config.security.selinux ?? false,
  });
  return withUsers(inTarget(moded, container, context.observed), sandbox?.namespaces.user);
}

/** Host paths of the mounts that are parts of volumes, by mount index. */
async function pinSubPaths(
  context: ActionContext,
  container: PodContainer,
  env: readonly KeyValue[],
): Promise<ReadonlyMap<number, string>> {
  const pinned = new Map<number, string>();
  const parts = subPathMounts(container, context.ready, env);
  if (parts.length === 0) return pinned;
  const { resolveSubPath, subPathTarget } = await import('../../volumes/subpath.ts');
  for (const { index, volume, volumePath, subPath } of parts) {
    const target = subPathTarget(
      context.config.kubeletDir,
      uidOf(context.pod),
      volume,
      container.name,
      index,
    );
    pinned.set(index, await resolveSubPath(volumePath, subPath, { target, signal: context.signal }));
  }
  return pinned;
}

async function environment(context: ActionContext, container: PodContainer): Promise<KeyValue[]> {
  const { pod, objects, signal } = context;
  const namespace = namespaceOf(pod);
  const values = new Map<string, ConfigMap | Secret>();
  const fetched = referencesOf(pod, container).map(async ({ kind, name }) => {
    try {
      values.set(valueKey(kind, name), await objects.get<ConfigMap | Secret>(kind, namespace, name, signal));
    } catch (error) {
      // What does not exist is judged with the variable that wants it.
      if (apiStatus(error) !== 404) throw error;
    }
  });
  const [services, fileValues] = await Promise.all([
    objects.services(namespace),
    fileVariables(context, container),
    ...fetched,
  ]);
  return makeEnv({
    pod,
    container,
    values,
    fileValues,
    services,
    allocatable: context.allocatable(),
    podIPs: context.observed.sandboxes[0]?.ips ?? [],
    hostIPs: context.hostIps(),
    nodeName: context.nodeName,
  });
}

/** What variables from files are, by their references. */
async function fileVariables(
  { pod, ready }: ActionContext,
  container: PodContainer,
): Promise<ReadonlyMap<object, string>> {
  const values = new Map<object, string>();
  if (!container.env?.some(({ valueFrom }) => valueFrom && 'fileKeyRef' in valueFrom)) return values;
  const { fileKeyRefOf, readFileKey } = await import('./env_file.ts');
  for (const variable of container.env) {
    const ref = variable.value ? undefined : fileKeyRefOf(variable);
    if (ref === undefined) continue;
    const folder = ready.get(ref.volumeName)?.hostPath;
    const isEmptyDir = pod.spec?.volumes?.some(({ name, emptyDir }) => name === ref.volumeName && emptyDir);
    if (folder === undefined || !isEmptyDir)
      throw new KeelsonError(
        'CONTAINER_CONFIG_INVALID',
        `cannot find the volume "${ref.volumeName}" referenced by FileKeyRef`,
      );
    const value = await readFileKey(folder, ref);
    if (value !== undefined) values.set(ref, value);
  }
  return values;
}

/** Replaced only when it differs: running containers have the file itself mounted. */
async function writeHosts(context: ActionContext, path: string): Promise<void> {
  const { pod, config } = context;
  const nodeHosts = isHostNetwork(pod) ? await readFile('/etc/hosts', 'utf8').catch(() => '') : '';
  const name = podHostname(pod, config.clusterDomain);
  const content = hostsFile(pod, name, context.observed.sandboxes[0]?.ips ?? [], nodeHosts);
  const there = await readFile(path, 'utf8').catch(() => undefined);
  if (there === content) return;
  if (there === undefined) await mkdir(dirname(path), { recursive: true, mode: 0o750 });
  await writeFileAtomic(path, content, { mode: 0o644 });
}

/** Any user of the container may write it, whatever the umask here. */
async function makeTerminationFile(path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o755 });
  await writeFile(path, '', { mode: 0o666 });
  await chmod(path, 0o666);
}

/** Starts a created container, links its log and runs its postStart hook. */
export async function startContainer(
  context: ActionContext,
  container: PodContainer,
  id: string,
): Promise<MemoryUpdate> {
  const { name } = container;
  try {
    await context.runtime.startContainer(id, context.signal);
  } catch (error) {
    if (interrupted(context)) throw error;
    tell(context, name, 'Warning', 'Failed', `Error: ${describe(error)}`);
    const remember = failure(context, name, 'RunContainerError', error);
    return (memory) => remember({ ...memory, broken: [...memory.broken, id] });
  }
  context.stage('start');
  tell(context, name, 'Normal', 'Started', 'Container started');
  await linkLog(context, name, id);
  const hook = container.lifecycle?.postStart;
  if (hook !== undefined) {
    try {
      await runHook(context, container, id, hook, context.signal);
    } catch (error) {
      if (interrupted(context)) throw error;
      // The message may hold what the hook printed: not for everybody to read.
      context.log.warn({ container: name, error: describe(error) }, 'postStart hook failed');
      tell(context, name, 'Warning', 'FailedPostStartHook', 'PostStartHook failed');
      const deadline = context.clock.now() + specGraceSeconds(context.pod) * 1000;
      await stopContainer(context, name, id, deadline, 'FailedPostStartHook', false);
      return failure(
        context,
        name,
        'PostStartHookError',
        new KeelsonError('FAILED_PRECONDITION', `the postStart hook of container ${name} failed`),
      );
    }
  }
  return (memory) => ({ ...memory, startFailures: without(memory.startFailures, name) });
}

/** `<pod>_<namespace>_<container>-<id>.log`, where log shippers look. */
export function logLink(context: Pick<ActionContext, 'config' | 'pod'>, name: string, id: string): string {
  const { pod, config } = context;
  return join(config.containerLogsDir, `${pod.metadata?.name}_${namespaceOf(pod)}_${name}-${id}.log`);
}

/** A missing link is not worth a failed start. */
async function linkLog(context: ActionContext, name: string, id: string): Promise<void> {
  const known = context.observed.containers.find((one) => one.id === id);
  if (known === undefined || known.logPath === '') return;
  const link = logLink(context, name, id);
  try {
    await symlink(known.logPath, link).catch(async (error: unknown) => {
      if (errnoOf(error) === 'ENOENT') await mkdir(context.config.containerLogsDir, { recursive: true });
      else if (errnoOf(error) === 'EEXIST') await unlink(link);
      else throw error;
      await symlink(known.logPath, link);
    });
  } catch (error) {
    context.log.warn({ err: error, link }, 'cannot link a container log');
  }
}
