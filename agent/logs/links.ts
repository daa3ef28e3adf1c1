/** The links to containers' logs that log shippers follow (`/var/log/containers`): removing those of no use. */
import { existsSync } from 'node:fs';
import { readlink, rm } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { listFolder } from '../../runtime/host/files.ts';

interface Target {
  /** Of the pod whose log it is. */
  readonly uid: string;
  /** Of the container, by the name of the link. */
  readonly containerId: string;
  readonly path: string;
}

/**
 * Removes the links of `folder` that lead into a pod's folder below `podLogsDir` and are `unwanted`. What else is in the
 * folder is somebody else's.
 */
export async function removeLinks(
  folder: string,
  podLogsDir: string,
  unwanted: (target: Target) => boolean,
): Promise<void> {
  for (const name of await listFolder(folder)) {
    const containerId = /-([^-]+)\.log$/.exec(name)?.[1];
    const path = await readlink(join(folder, name)).catch(() => undefined);
    if (containerId === undefined || path === undefined) continue;
    const uid = /^[^/]+_([^_/]+)\/[^/]+\/[^/]+$/.exec(relative(podLogsDir, path))?.[1];
    if (uid !== undefined && unwanted({ uid, containerId, path }))
      await rm(join(folder, name), { force: true });
  }
}

/** Removes links to logs that are gone. A log that is just being rotated is not there either: `known` containers keep theirs. */
export async function removeDeadLinks(
  folder: string,
  podLogsDir: string,
  known: ReadonlySet<string>,
): Promise<void> {
  await removeLinks(
    folder,
    podLogsDir,
    ({ containerId, path }) => !known.has(containerId) && !existsSync(path),
  );
}
