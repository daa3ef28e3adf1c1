/** Whom a container runs as: the CRI's security context and the image's USER against the image's own accounts. */
import { constants } from 'node:fs';
import { lstat, open, readlink } from 'node:fs/promises';
import { LRUCache } from 'lru-cache';
import { KeelsonError } from '../host/errors.ts';

export interface WantedUser {
  readonly runAsUser?: number;
  readonly runAsUsername?: string;
  readonly runAsGroup?: number;
  readonly supplementalGroups?: readonly number[];
  readonly policy?: 'merge' | 'strict';
  /** The image's USER: `user`, `uid`, `user:group` and so on. */
  readonly imageUser?: string;
}

export interface ResolvedUser {
  readonly uid: number;
  readonly gid: number;
  /** The primary group first, as setgroups(2) needs it for "everybody but this group" permissions (CVE-2022-36109). */
  readonly additionalGids: readonly number[];
}

/** Contents of the image's /etc/passwd and /etc/group; empty where there is none. */
export interface Accounts {
  readonly passwd: string;
  readonly group: string;
}

const maxId = 2 ** 32 - 2;
const maxAccountFile = 4 << 20;
/** Characters of all that is kept. */
const keptAccounts = 256 << 10;

/** Pure. Throws CONTAINER_CONFIG_INVALID for a name that the image does not know. */
export function resolveUser(wanted: WantedUser, { passwd, group }: Accounts): ResolvedUser {
  const [imageUser = '', imageGroup = ''] = (wanted.imageUser ?? '').split(':');
  const given = wanted.runAsUser !== undefined || !!wanted.runAsUsername;
  const name =
    wanted.runAsUser !== undefined ? String(wanted.runAsUser) : wanted.runAsUsername || imageUser || '0';
  const users = entries(passwd).map(([user = '', , uid, gid]) => ({ user, uid: id(uid), gid: id(gid) }));
  const groups = entries(group).map(([title = '', , gid, members = '']) => ({
    title,
    gid: id(gid),
    members: members.split(','),
  }));
  if (wanted.runAsGroup !== undefined && !given) {
    throw new KeelsonError('CONTAINER_CONFIG_INVALID', 'runAsGroup is given without a user to run as', {
      hint: 'give runAsUser or runAsUsername, too',
    });
  }
  for (const [field, value] of [
    ['runAsUser', wanted.runAsUser],
    ['runAsGroup', wanted.runAsGroup],
    ...(wanted.supplementalGroups ?? []).map((group) => ['supplementalGroups', group] as const),
  ] as const) {
    if (value !== undefined && id(String(value)) === undefined) {
      throw new KeelsonError('CONTAINER_CONFIG_INVALID', `${field} ${value} is not an id`);
    }
  }
  if (wanted.runAsUser !== undefined && wanted.runAsUsername) {
    throw new KeelsonError('CONTAINER_CONFIG_INVALID', 'runAsUser and runAsUsername exclude each other');
  }
  const numeric = id(name);
  // A name made of digits is a number, as everywhere in the container world.
  const user =
    numeric === undefined
      ? users.find((entry) => entry.user === name)
      : users.find((entry) => entry.uid === numeric);
  const uid = numeric ?? user?.uid;
  if (uid === undefined) {
    throw new KeelsonError('CONTAINER_CONFIG_INVALID', `user ${JSON.stringify(name)} is not in the image`, {
      hint: 'add it to the image, or set securityContext.runAsUser to a number',
    });
  }
  let gid = user?.gid ?? 0;
  if (!given && imageGroup !== '') {
    const found = id(imageGroup) ?? groups.find((entry) => entry.title === imageGroup)?.gid;
    if (found === undefined) {
      throw new KeelsonError(
        'CONTAINER_CONFIG_INVALID',
        `group ${JSON.stringify(imageGroup)} is not in the image`,
        { hint: 'add it to the image, or set securityContext.runAsGroup to a number' },
      );
    }
    gid = found;
  }
  if (wanted.runAsGroup !== undefined) gid = wanted.runAsGroup;
  const fromImage =
    wanted.policy === 'strict' || user === undefined
      ? []
      : groups.filter((entry) => entry.members.includes(user.user)).map((entry) => entry.gid);
  const all = [gid, ...fromImage, ...(wanted.supplementalGroups ?? [])];
  return {
    uid,
    gid,
    additionalGids: [...new Set(all.filter((entry) => entry !== undefined))],
  };
}

function entries(text: string): string[][] {
  return text
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => line.trimEnd().split(':'));
}

function id(text: string | undefined): number | undefined {
  if (text === undefined || !/^\d{1,10}$/.test(text)) return undefined;
  const number = Number(text);
  return number <= maxId ? number : undefined;
}

/** The accounts of images, by image id and the fresh `rootfs` of one of its containers: the last ones are kept. */
export function makeAccounts(): (imageId: string, rootfs: string) => Promise<Accounts> {
  const kept = new LRUCache<string, Accounts>({
    maxSize: keptAccounts,
    sizeCalculation: ({ passwd, group }) => passwd.length + group.length + 1,
  });
  return async (imageId, rootfs) => {
    const known = kept.get(imageId);
    if (known !== undefined) return known;
    const accounts = await readAccounts(rootfs);
    kept.set(imageId, accounts);
    return accounts;
  };
}

/** Reads the accounts in `rootfs`, which nothing may be changing meanwhile. */
export async function readAccounts(rootfs: string): Promise<Accounts> {
  const [passwd, group] = await Promise.all([
    readInside(rootfs, 'etc/passwd'),
    readInside(rootfs, 'etc/group'),
  ]);
  return { passwd, group };
}

/** A regular file below `root`; empty where there is none, or where it is something else or too big. */
async function readInside(root: string, path: string): Promise<string> {
  const target = await resolveInside(root, path);
  if (target === undefined) return '';
  const info = await lstat(target).catch(() => undefined);
  if (!info?.isFile() || info.size > maxAccountFile) return '';
  const handle = await open(target, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}

/**
 * The real path of `path` below `root`, with links read as a process whose root directory is `root` would read them:
 * they can never lead out. Undefined where something on the way is missing or links go in circles.
 */
export async function resolveInside(root: string, path: string): Promise<string | undefined> {
  const waiting = path.split('/').reverse();
  const real: string[] = [];
  let links = 0;
  while (waiting.length > 0) {
    const part = waiting.pop()!;
    if (part === '' || part === '.') continue;
    if (part === '..') {
      real.pop();
      continue;
    }
    const here = [root, ...real, part].join('/');
    const info = await lstat(here).catch(() => undefined);
    if (info === undefined) return undefined;
    if (!info.isSymbolicLink()) {
      real.push(part);
      continue;
    }
    if (++links > 40) return undefined;
    const target = await readlink(here);
    if (target.startsWith('/')) real.length = 0;
    waiting.push(...target.split('/').reverse());
  }
  return [root, ...real].join('/');
}
