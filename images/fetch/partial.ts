/**
 * Parts of compressed layers on disk, below `blobs/partial/`: what a slow or broken fetch has got so far, for the next
 * one to go on with. They are not trusted: a fetch reads them through the whole of the verification.
 */
import { lstat, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../runtime/host/clock.ts';
import { listFolder } from '../../runtime/host/files.ts';
import { keyedQueue } from '../../runtime/host/keyed.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { ensureStoreFolder } from '../store/start.ts';
import { expiredPartials, type FetchPolicy } from './policy.ts';

export interface Partials {
  /** Where the part of the blob `digest` is, or would be. */
  path(digest: string): string;
  /** Runs `body` when nobody else uses that file. */
  exclusive<T>(digest: string, body: () => Promise<T>): Promise<T>;
  /** No error where there is none. */
  remove(digest: string): Promise<void>;
}

const nameOf = (digest: string) => digest.replace(':', '-');

/** Makes the folder, and removes what nobody wants any more or what is too much. */
export async function openPartials(options: {
  readonly stateDir: string;
  readonly policy: FetchPolicy;
  readonly clock: Clock;
  readonly log: Logger;
}): Promise<Partials> {
  const { stateDir, policy, clock, log } = options;
  const folder = join(stateDir, 'blobs', 'partial');
  await ensureStoreFolder(folder);
  const files = await Promise.all(
    (await listFolder(folder)).map(async (name) => {
      const { size, mtimeMs } = await lstat(join(folder, name));
      return { name, size, usedAt: mtimeMs };
    }),
  );
  const expired = expiredPartials(policy, files, clock.now());
  await Promise.all(expired.map((name) => rm(join(folder, name), { recursive: true, force: true })));
  if (expired.length > 0) log.info({ folder, files: expired.length }, 'removed old parts of layers');

  const users = keyedQueue();
  const path = (digest: string) => join(folder, nameOf(digest));
  return {
    path,
    exclusive: (digest, body) => users.run(digest, body),
    remove: (digest) => rm(path(digest), { recursive: true, force: true }),
  };
}
