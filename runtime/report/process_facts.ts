/** What /proc tells of the processes of a container; those that end meanwhile do not count. */
import { readdir, readFile, readlink } from 'node:fs/promises';

export interface ProcessFacts {
  readonly processes: number;
  readonly descriptors: number;
  readonly sockets: number;
  /** The soft limit of the first one; absent where it is gone or has none. */
  readonly openFilesLimit?: number;
}

/** Of so many the descriptors are looked at; the rest counts with none, or a scrape would take seconds. */
const maxLookedAt = 256;

/** `pids`: of one container, its first process first. */
export async function processFacts(pids: readonly number[]): Promise<ProcessFacts> {
  let descriptors = 0;
  let sockets = 0;
  for (const pid of pids.slice(0, maxLookedAt)) {
    const folder = `/proc/${pid}/fd`;
    const names = await readdir(folder).catch(() => []);
    descriptors += names.length;
    const targets = await Promise.all(
      names.slice(0, 1024).map((name) => readlink(`${folder}/${name}`).catch(() => '')),
    );
    sockets += targets.filter((target) => target.startsWith('socket:')).length;
  }
  const limits =
    pids[0] === undefined ? '' : await readFile(`/proc/${pids[0]}/limits`, 'latin1').catch(() => '');
  const soft = /^Max open files\s+(\d+)/m.exec(limits)?.[1];
  return {
    processes: pids.length,
    descriptors,
    sockets,
    openFilesLimit: soft === undefined ? undefined : Number(soft),
  };
}
