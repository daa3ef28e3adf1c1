/** New limits for a container: all of them or none. */
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { LinuxContainerResources } from '../api.ts';
import type { Context } from '../context.ts';
import type { Cgroups } from '../host/cgroups.ts';
import { KeelsonError } from '../host/errors.ts';
import { keyedQueue } from '../host/keyed.ts';
import type { Launches } from '../monitor/launch.ts';
import type { ContainerRecord } from '../state.ts';
import {
  checkResources,
  hugepageFile,
  type LimitFile,
  limitFiles,
  mergeResources,
  resourceLimits,
} from './limits.ts';

export type UpdateResources = (
  id: string,
  resources: LinuxContainerResources,
  signal?: AbortSignal,
) => Promise<void>;

/** The limits of a container as last set. Pure. */
export function resourcesOf(record: ContainerRecord): LinuxContainerResources {
  return record.resources ?? record.config.linux.resources;
}

export function makeUpdateResources(context: Context, launches: Pick<Launches, 'launch'>): UpdateResources {
  const { state, programs, folders, cgroups, host } = context;
  const oneAtATime = keyedQueue();
  return async (id, change, signal) => {
    checkResources(change, 'INVALID_ARGUMENT', host.cgroupVersion);
    await oneAtATime.run(id, async () => {
      // What is being made has its limits only then; of what could not be made they are only remembered.
      const failed = await launches.launch(id);
      const record = state.containers.get(id);
      if (record === undefined || record.state === 'creating') {
        throw new KeelsonError('NOT_FOUND', `there is no container ${JSON.stringify(id)}`);
      }
      const wanted = mergeResources(resourcesOf(record), change);
      checkResources(wanted, 'INVALID_ARGUMENT', host.cgroupVersion);
      if (wanted.hugepageLimits?.length && change.hugepageLimits?.length && !host.hugetlb) {
        throw new KeelsonError(
          'FAILED_PRECONDITION',
          'huge pages cannot be limited: the node has no hugetlb cgroups',
        );
      }
      // An ended one only remembers, as in containerd.
      if (record.state !== 'exited' && failed === undefined) {
        const handler = state.sandboxes.get(record.sandboxId)?.handler ?? '';
        const { bundle } = folders.container(id);
        const file = join(bundle, 'update.json');
        const before = await readFiles(cgroups, record.cgroup, limitFiles(wanted, cgroups.version));
        try {
          await writeFile(file, JSON.stringify(resourceLimits(wanted, host)), { mode: 0o600 });
          await programs.runtimeFor(handler).update(id, file, signal);
          // The runtimes' update leaves these out.
          for (const { pageSize, limit } of change.hugepageLimits ?? []) {
            const { controller, file: name } = hugepageFile(pageSize, cgroups.version);
            await cgroups.write(record.cgroup, controller, name, String(limit));
          }
        } catch (error) {
          await putBack(cgroups, record.cgroup, before);
          if (state.containers.get(id)?.state === 'exited') return;
          throw error;
        } finally {
          await rm(file, { force: true });
        }
      }
      state.changeContainer(id, { resources: wanted });
    });
  };
}

type Saved = readonly (LimitFile & { readonly value: string })[];

async function readFiles(cgroups: Cgroups, path: string, files: readonly LimitFile[]): Promise<Saved> {
  const found = await Promise.all(
    files.map(async (file) => ({ ...file, value: await cgroups.read(path, file.controller, file.file) })),
  );
  return found.flatMap(({ value, ...file }) =>
    value === undefined ? [] : [{ ...file, value: value.trim() }],
  );
}

/** Only what has changed: a cpuset, say, may not be written twice while the group above has shrunk. */
async function putBack(cgroups: Cgroups, path: string, saved: Saved): Promise<void> {
  for (const { controller, file, value } of saved) {
    const now = await cgroups.read(path, controller, file);
    if (now === undefined || now.trim() === value) continue;
    // The second of a pair may have to go first; it comes again.
    await cgroups.write(path, controller, file, value).catch(() => {});
  }
}
