/**
 * The ids of pods with user namespaces of their own (`hostUsers: false`). Each has its own 65,536 ids of the node, kept
 * in kubelet's own file `pods/<uid>/userns`, so that they stay while there is anything of the pod, whoever runs it.
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { IdMapping, UserNamespace } from '../../../runtime/api.ts';
import { errnoOf, KeelsonError } from '../../../runtime/host/errors.ts';
import { ensureFolder, writeFileAtomic } from '../../../runtime/host/files.ts';

const length = 65_536;
/** As many as a node can have without a special configuration (kubelet's mapLen for 65536 ids each). */
const blocks = 2 ** 16 - 1;
export const userIdsFile = 'userns';

export interface UserIds {
  /** The pod's mappings, made when it has none. Throws RESOURCE_EXHAUSTED, and FAILED_PRECONDITION for a damaged file. */
  of(uid: string): Promise<UserNamespace>;
}

/** `kubeletDir`: `/var/lib/kubelet`. */
export function makeUserIds(kubeletDir: string): UserIds {
  const pods = join(kubeletDir, 'pods');
  const fileOf = (uid: string) => join(pods, uid, userIdsFile);
  // One after the other, so that two pods never choose the same.
  let last: Promise<unknown> = Promise.resolve();

  async function read(uid: string): Promise<UserNamespace | undefined> {
    try {
      return parseUserIds(await readFile(fileOf(uid), 'utf8'), fileOf(uid));
    } catch (error) {
      if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined;
      throw error;
    }
  }

  async function find(uid: string): Promise<UserNamespace> {
    const own = await read(uid);
    if (own !== undefined) return own;
    const names = await readdir(pods).catch(() => [] as string[]);
    // What is damaged keeps its own pod from starting, not the others.
    const held = await Promise.all(names.map((name) => read(name).catch(() => undefined)));
    const block = freeBlock(held.filter((one) => one !== undefined));
    if (block === undefined)
      throw new KeelsonError('RESOURCE_EXHAUSTED', 'no 65,536 user ids of the node are free for another pod');
    const mapping = [{ hostId: block * length, containerId: 0, length }];
    await ensureFolder(join(pods, uid), 0o750);
    await writeFileAtomic(fileOf(uid), JSON.stringify({ uidMappings: mapping, gidMappings: mapping }), {
      mode: 0o600,
    });
    return { mode: 'pod', uids: mapping, gids: mapping };
  }

  return {
    of(uid) {
      const found = last.then(() => find(uid));
      last = found.catch(() => {});
      return found;
    },
  };
}

/** The first block of ids, after the node's own, that none of `held` has a part of. Pure. */
export function freeBlock(held: readonly UserNamespace[]): number | undefined {
  const taken = new Set<number>();
  for (const { uids, gids } of held) {
    for (const mapping of [...uids, ...gids]) {
      const end = mapping.hostId + mapping.length;
      for (let block = Math.floor(mapping.hostId / length); block * length < end; block++) taken.add(block);
    }
  }
  for (let block = 1; block <= blocks; block++) if (!taken.has(block)) return block;
  return undefined;
}

/** Reads the file's text. Pure. Throws FAILED_PRECONDITION. */
export function parseUserIds(text: string, path: string): UserNamespace {
  const isMapping = (value: unknown): value is IdMapping =>
    ['hostId', 'containerId', 'length'].every((field) => {
      const id = (value as Record<string, unknown> | null)?.[field];
      return Number.isSafeInteger(id) && (id as number) >= 0 && (id as number) <= 2 ** 32;
    });
  try {
    const said = JSON.parse(text) as { uidMappings?: unknown[]; gidMappings?: unknown[] };
    const [uids, gids] = [said.uidMappings ?? [], said.gidMappings ?? []];
    if (uids.length > 0 && gids.length > 0 && uids.every(isMapping) && gids.every(isMapping))
      return { mode: 'pod', uids, gids };
  } catch {
    // Told below.
  }
  throw new KeelsonError('FAILED_PRECONDITION', `${path} does not hold the id mappings of a pod`, {
    hint: 'delete the pod; if it comes back with the same uid, remove the file',
  });
}
