/** From the wanted container to its bundle: everything that the OCI runtime makes a container of. */
import { mkdir, open, realpath, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { ImageForContainer } from '../../images/service.ts';
import type { ContainerConfig, Mount } from '../api.ts';
import { injectDevices } from '../cdi/edits.ts';
import { wantedCdiDevices } from '../cdi/registry.ts';
import type { Context } from '../context.ts';
import { slicePath } from '../host/cgroups.ts';
import { abortError, errnoOf, KeelsonError } from '../host/errors.ts';
import type { Patience } from '../host/mounts/patience.ts';
import { type LayerIds, makeImageVolumes, mountRootfs } from '../rootfs.ts';
import { wantedNamespaces } from '../sandbox_config.ts';
import { joinedPins } from '../sandbox_namespaces.ts';
import { confine } from '../security/confinement.ts';
import { levelFor } from '../security/selinux.ts';
import { outsideId } from '../security/userns.ts';
import type { SandboxRecord } from '../state.ts';
import { hostDevices, wantedDevices } from './devices.ts';
import { declaredVolumes, mountImageVolumes, openForGroup } from './image_mounts.ts';
import { planMounts, readMounts, type SandboxFiles } from './mounts.ts';
import { capabilitiesOf, containerCgroup, containerSpec, type JoinedNamespaces } from './spec.ts';
import { type ResolvedUser, resolveUser } from './user.ts';

/** Absolute path of a container's log; undefined where the sandbox wants none. Pure. */
export function logPathOf(
  sandbox: SandboxRecord,
  config: Pick<ContainerConfig, 'logPath'>,
): string | undefined {
  const { logDirectory } = sandbox.config;
  return logDirectory === '' || config.logPath === '' ? undefined : join(logDirectory, config.logPath);
}

/**
 * Makes the bundle: mounted root file system, config.json, log. The row is there before; undoing after a failure is the
 * caller's. Throws what `containerSpec` throws, DEPENDENCY_MISSING where nothing could make a container of it.
 */
export async function makeBundle(
  context: Context,
  sandbox: SandboxRecord,
  id: string,
  config: ContainerConfig,
  image: ImageForContainer,
  signal: AbortSignal,
): Promise<ResolvedUser> {
  const { folders, programs, host } = context;
  programs.conmon();
  const places = folders.container(id);
  const { security } = config.linux;
  const privileged = security.privileged ?? false;
  const logPath = logPathOf(sandbox, config);
  const runtime = programs.runtimeFor(sandbox.handler);
  const capabilities = capabilitiesOf(config, host);
  const namespaces = joinedNamespaces(context, sandbox, config);
  const ids = namespaces.user && layerIds(namespaces.user);
  const cdiNames = wantedCdiDevices(config.cdiDevices ?? [], config.annotations);
  const features = await runtime.features();
  if (ids !== undefined && !features.idmap) throw noUserNamespaces(sandbox.handler);
  const ofPod = sandbox.config.linux.security.selinux;
  const labels = context.selinux.labelsFor(security.selinux ?? ofPod, privileged, levelFor(sandbox.id));
  const view = { ids, label: labels?.mount };
  const [mounts, devices, confinement, cdi] = await allSettled([
    mountImageVolumes(context, places, id, config.mounts, view).then((ready) =>
      Promise.all(ready.map((mount) => prepareSource(mount, context.patience, signal))),
    ),
    privileged ? hostDevices() : wantedDevices(config.devices ?? []),
    confine(
      context,
      {
        ...security,
        privileged,
        selinux: security.selinux ?? ofPod,
        capabilities: capabilities.all,
      },
      features,
      sandbox.id,
    ),
    context.cdi.resolve(cdiNames),
    mountRootfs(places, image.layers, view),
    logPath === undefined ? undefined : makeLog(logPath),
  ]);
  if (namespaces.user !== undefined) {
    await openForGroup(
      [folders.runDir, folders.bundles],
      [places.bundle],
      outsideId(namespaces.user.gids, 0),
    );
  }
  const accounts = await context.accountsOf(image.id, places.rootfs);
  let wanted: readonly Mount[] = mounts;
  const { Volumes } = image.config;
  if (Volumes.length > 0) {
    await makeImageVolumes(places.rootfs, Volumes);
    if (security.readonlyRootfs) {
      wanted = [...mounts, ...(await declaredVolumes(places.rootfs, Volumes, mounts))];
    }
  }
  const files = sandboxFiles(context, sandbox);
  if (labels !== undefined) {
    const asked = mounts.filter(({ selinuxRelabel, image: of }) => selinuxRelabel && of === undefined);
    const shared = wantedNamespaces(sandbox.config).ipc ? [files.shm] : [];
    for (const path of [
      files.resolvConf,
      files.hostname,
      ...shared,
      ...asked.map(({ hostPath }) => hostPath),
    ]) {
      await context.selinux.relabel(await realpath(path), labels.mount);
    }
  }
  const user = resolveUser(
    { ...security, policy: security.supplementalGroupsPolicy, imageUser: image.config.User },
    accounts,
  );
  const { metadata } = sandbox.config;
  const driver = context.cgroupDriver;
  const plain = containerSpec({
    sandbox: {
      id: sandbox.id,
      name: metadata.name,
      namespace: metadata.namespace,
      uid: metadata.uid,
      hostname: wantedNamespaces(sandbox.config).hostname ?? context.hostname,
    },
    config,
    image: image.config,
    user,
    rootfs: places.rootfs,
    cgroupsPath: containerCgroup(driver, sandbox.config.linux.cgroupParent, id, slicePath).cgroupsPath,
    namespaces,
    mountPlan: planMounts({
      wanted,
      files,
      privileged,
      readonlyRootfs: security.readonlyRootfs ?? false,
      hostMounts: wanted.some(({ propagation }) => propagation !== 'private') ? readMounts() : [],
      features,
    }),
    devices,
    host,
    confinement,
  });
  const spec = cdi.length === 0 ? plain : await injectDevices(plain, cdi);
  await writeFile(join(places.bundle, 'config.json'), JSON.stringify(spec), { mode: 0o600 });
  if (signal.aborted) throw abortError(signal, 'creating the container');
  return user;
}

/** Throws CONTAINER_CONFIG_INVALID for a PID namespace that is not there. */
function joinedNamespaces(
  { state, folders }: Context,
  sandbox: SandboxRecord,
  config: ContainerConfig,
): JoinedNamespaces {
  const folder = folders.sandbox(sandbox.id);
  const pins = joinedPins(folder, wantedNamespaces(sandbox.config));
  const { pid, targetId } = config.linux.security.namespaces;
  if (pid === 'node') return { ...pins, pid: 'host' };
  if (pid === 'container') return { ...pins, pid: 'own' };
  if (pid === 'pod') {
    if (sandbox.init !== undefined) return { ...pins, pid: { path: join(folder, 'pid') } };
    throw new KeelsonError(
      'CONTAINER_CONFIG_INVALID',
      'the container wants the PID namespace of its pod, but the pod was made without one',
    );
  }
  const target = state.containers.get(targetId ?? '');
  if (target?.sandboxId !== sandbox.id || target.state !== 'running' || target.init === undefined) {
    throw new KeelsonError(
      'CONTAINER_CONFIG_INVALID',
      `target container ${targetId} does not run in this pod`,
    );
  }
  return { ...pins, pid: { path: `/proc/${target.init.pid}/ns/pid` } };
}

function layerIds({ path, uids, gids }: NonNullable<JoinedNamespaces['user']>): LayerIds {
  return { namespace: path, uids, gids };
}

/** Of a handler whose runtime cannot do what pods with user namespaces need. */
export function noUserNamespaces(handler: string): KeelsonError {
  return new KeelsonError(
    'CONTAINER_CONFIG_INVALID',
    `user namespaces are not supported by the runtime handler ${handler || 'runc'}`,
    { hint: 'they take runc 1.2 or crun 1.8, and Linux 5.19' },
  );
}

function sandboxFiles({ folders }: Context, sandbox: SandboxRecord): SandboxFiles {
  const folder = folders.sandbox(sandbox.id);
  return {
    resolvConf: join(folder, 'resolv.conf'),
    hostname: join(folder, 'hostname'),
    shm: wantedNamespaces(sandbox.config).ipc ? join(folder, 'shm') : '/dev/shm',
  };
}

/**
 * The host side of a mount as runc needs it: there, and without links where the mount under it matters. What is not
 * there becomes a folder, as in containerd and Docker.
 */
async function prepareSource(mount: Mount, patience: Patience, signal: AbortSignal): Promise<Mount> {
  const { hostPath } = mount;
  if (mount.image !== undefined) return mount;
  if (!hostPath.startsWith('/') || hostPath.includes('\0')) return mount;
  try {
    await patience.ask(hostPath, () => stat(hostPath), signal);
  } catch (error) {
    if (error instanceof KeelsonError) throw error;
    if (errnoOf(error) !== 'ENOENT') throw missingSource(hostPath, error);
    await mkdir(hostPath, { recursive: true, mode: 0o755 }).catch((reason: unknown) => {
      throw missingSource(hostPath, reason);
    });
  }
  if (mount.propagation === 'private') return mount;
  return { ...mount, hostPath: await patience.ask(hostPath, () => realpath(hostPath), signal) };
}

function missingSource(path: string, cause: unknown): KeelsonError {
  return new KeelsonError(
    'CONTAINER_CREATE_FAILED',
    `${path} cannot be mounted: it is not there and cannot be made (${errnoOf(cause) ?? String(cause)})`,
    { cause },
  );
}

/** Promise.all, but nothing goes on behind the back of the one who undoes after a failure. */
async function allSettled<T extends readonly unknown[]>(work: T) {
  await Promise.allSettled(work);
  return Promise.all(work);
}

/** An empty log that the group may read; conmon alone would make it for root only. */
async function makeLog(path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o755 });
  await (await open(path, 'a', 0o640)).close();
}
