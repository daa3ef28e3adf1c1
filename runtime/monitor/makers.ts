/** The programs that make a container: its conmon and what runs below it, `runc create` as a rule. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { monitorPidFile } from '../oci/conmon.ts';
import {
  allProcesses,
  argumentsOf,
  childrenOf,
  identify,
  isAlive,
  type ProcessIdentity,
  readPidFile,
  signalProcess,
} from '../processes.ts';

/** Ends those of a container that is not finished and shall not be; resolves when they are gone. */
export async function endMakers(bundle: string, id: string): Promise<void> {
  await Promise.all(makersOf(bundle, id).map(end));
}

function makersOf(bundle: string, id: string): ProcessIdentity[] {
  const ofContainer = (pid: number) => argumentsOf(pid).includes(id);
  const pid = readPidFile(monitorPidFile(bundle));
  let monitors = pid === undefined ? [] : [pid].filter(ofContainer);
  // conmon is started after this file was written; a kill may have come between its fork and its pid file.
  if (pid === undefined && existsSync(join(bundle, 'config.json')))
    monitors = allProcesses().filter(ofContainer);
  return monitors
    .flatMap((monitor) => [monitor, ...childrenOf(monitor)])
    .map(identify)
    .filter((identity) => identity !== undefined);
}

/** KILL, and until it is gone; a killed conmon goes at once. */
async function end(identity: ProcessIdentity): Promise<void> {
  signalProcess(identity, 'SIGKILL');
  for (let wait = 1; isAlive(identity) && wait < 2000; wait *= 2) await sleep(wait);
}
