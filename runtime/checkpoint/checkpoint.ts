/**
 * Checkpoints of running containers by CRIU, which the OCI runtime drives: an archive as CRI-O and containerd write it
 * (checkpoint-restore's `metadata` package), from which they, Podman and checkpointctl read. The container goes on.
 */
import { randomBytes } from 'node:crypto';
import { chmod, copyFile, mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join } from 'node:path';
import type { RuntimeService } from '../api.ts';
import { type Context, findProgram } from '../context.ts';
import { describe, errnoOf, isError, KeelsonError } from '../host/errors.ts';
import { exec } from '../host/exec.ts';
import { removeTree } from '../host/files.ts';
import { keyedQueue } from '../host/keyed.ts';
import { missingProgram } from '../oci/conmon.ts';
import type { ContainerRecord, SandboxRecord } from '../state.ts';
import { packChanges, rootfsChanges } from './rootfs_diff.ts';

const defaultDeadlineMs = 120_000;
/** What a checkpoint works in, in the container's folder: where one is found, a container may have been left paused. */
const folderPrefix = 'checkpoint-';

export function makeCheckpoint(context: Context): RuntimeService['checkpointContainer'] {
  const { state, folders, programs, images, clock } = context;
  const oneAtATime = keyedQueue();

  const make = async (
    record: ContainerRecord,
    location: string,
    deadlineMs: number,
    signal: AbortSignal | undefined,
  ) => {
    const { id, sandboxId } = record;
    const sandbox = state.sandboxes.get(sandboxId);
    if (sandbox === undefined) throw new KeelsonError('NOT_FOUND', `sandbox ${sandboxId} is gone`);
    const { bundle, data } = folders.container(id);
    const runtime = programs.runtimeFor(sandbox.handler);
    const folder = join(data, `${folderPrefix}${randomBytes(6).toString('hex')}`);
    const at = (name: string) => join(folder, name);
    const partial = join(dirname(location), `.${basename(location)}.partial`);
    const limits = { deadlineMs, signal };
    await mkdir(at('checkpoint'), { recursive: true, mode: 0o700 });
    try {
      // Files and memory of one moment.
      await runtime.pause(id);
      try {
        await runtime.checkpoint(id, { images: at('checkpoint'), work: folder, ...limits });
        const { layers } = await images.forContainer(record.imageId);
        const upper = join(data, 'upper');
        const changes = await rootfsChanges(upper, layers);
        await packChanges(upper, changes, at('rootfs-diff.tar'), limits);
        await writeFile(at('deleted.files'), JSON.stringify(changes.deleted));
      } finally {
        await runtime.resume(id);
      }
      await copyFile(join(bundle, 'config.json'), at('spec.dump'));
      await writeFile(at('config.dump'), JSON.stringify(configDump(record, sandbox, clock.now())));
      await writeFile(at('status.dump'), JSON.stringify(statusDump(record)));
      const names = (await readdir(folder)).filter((name) => archived.has(name)).sort();
      await mkdir(dirname(location), { recursive: true, mode: 0o700 });
      // It holds the memory of the container and its environment: for nobody but root.
      await writeFile(partial, '', { mode: 0o600 });
      await chmod(partial, 0o600);
      await exec('tar', ['--create', `--file=${partial}`, `--directory=${folder}`, ...names], limits);
      await rename(partial, location);
    } finally {
      await Promise.all([removeTree(folder), rm(partial, { force: true })]);
    }
  };

  return async (id, location, timeoutMs, signal) => {
    const record = state.containers.get(id);
    if (record === undefined || record.state === 'creating') {
      throw new KeelsonError('NOT_FOUND', `there is no container ${JSON.stringify(id)}`);
    }
    if (!isAbsolute(location) || location.endsWith('/') || location.includes('\0')) {
      throw new KeelsonError(
        'INVALID_ARGUMENT',
        `location ${JSON.stringify(location)} is not an absolute path of a file`,
      );
    }
    if (record.state !== 'running') {
      throw new KeelsonError('FAILED_PRECONDITION', `container ${id} is ${record.state}, not running`);
    }
    if (findProgram('criu') === undefined) {
      throw new KeelsonError(
        'DEPENDENCY_MISSING',
        'containers cannot be checkpointed: criu is not on this node',
        { hint: 'install the package criu of your distribution' },
      );
    }
    const deadlineMs = timeoutMs > 0 ? timeoutMs : defaultDeadlineMs;
    await oneAtATime.run(id, async () => {
      try {
        await make(record, location, deadlineMs, signal);
      } catch (error) {
        if (isError(error, 'EXEC_NOT_FOUND')) throw missingProgram('tar', error);
        if (isError(error) && error.code !== 'EXEC_FAILED' && error.code !== 'SYSCALL_FAILED') throw error;
        throw new KeelsonError(
          errnoOf(error) === 'ENOSPC' ? 'STORAGE_FULL' : 'FAILED_PRECONDITION',
          `the checkpoint cannot be written: ${describe(error)}`,
          { cause: error },
        );
      }
    });
  };
}

/** Of an agent that was killed at a checkpoint: lets the container go on, and removes what there is of it. */
export async function endLeftCheckpoint(context: Context, { id, sandboxId }: ContainerRecord): Promise<void> {
  const { folders, programs, state } = context;
  const { data } = folders.container(id);
  const left = (await readdir(data).catch(() => [])).filter((name) => name.startsWith(folderPrefix));
  if (left.length === 0) return;
  const runtime = programs.runtimeFor(state.sandboxes.get(sandboxId)?.handler ?? '');
  if ((await runtime.state(id)) === 'paused') await runtime.resume(id);
  await Promise.all(left.map((name) => removeTree(join(data, name))));
}

/** What of the folder goes into the archive, with CRIU's own report. */
const archived = new Set([
  ...['checkpoint', 'config.dump', 'spec.dump', 'status.dump', 'rootfs-diff.tar', 'deleted.files'],
  ...['dump.log', 'stats-dump'],
]);

/** `metadata.ContainerConfig`. Pure. */
function configDump(
  { id, config, createdAt, imageId }: ContainerRecord,
  sandbox: SandboxRecord,
  now: number,
): object {
  const { name, namespace, uid } = sandbox.config.metadata;
  const { metadata, image, userImage } = config;
  return {
    id,
    name: `k8s_${metadata.name}_${name}_${namespace}_${uid}_${metadata.attempt}`,
    rootfsImage: userImage || image.image,
    rootfsImageRef: imageId,
    rootfsImageName: userImage || image.image,
    runtime: sandbox.handler || 'runc',
    createdTime: new Date(createdAt).toISOString(),
    checkpointedTime: new Date(now).toISOString(),
    restoredTime: '0001-01-01T00:00:00Z',
    restored: false,
  };
}

/** `metadata.ContainerdStatus`: nanoseconds. Pure. */
function statusDump({ createdAt, startedAt, init }: ContainerRecord): object {
  const times = [createdAt, startedAt].map((ms) => ms * 1_000_000);
  return {
    ...{ CreatedAt: times[0], StartedAt: times[1], FinishedAt: 0, ExitCode: 0 },
    ...{ Pid: init?.pid ?? 0, Reason: '', Message: '' },
  };
}
