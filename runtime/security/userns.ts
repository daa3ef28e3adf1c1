/** User namespaces: which mapping a pod has, and namespaces that belong to it (user_namespaces(7)). */
import { spawn } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import type { IdMapping, NamespaceOption, UserNamespace } from '../api.ts';
import { abortError, KeelsonError } from '../host/errors.ts';

/** The user namespace that is wanted; undefined: the node's. Pure. */
export function wantedUsers({ user }: NamespaceOption): UserNamespace | undefined {
  return user === undefined || user.mode === 'node' ? undefined : user;
}

/**
 * Pure. Throws `code` for mappings that the kernel or the rest of the pod cannot do: one range each, as Kubernetes gives
 * them, that holds root.
 */
export function checkUsers(
  namespaces: NamespaceOption,
  code: 'INVALID_ARGUMENT' | 'CONTAINER_CONFIG_INVALID',
): void {
  const users = wantedUsers(namespaces);
  if (users === undefined) return;
  const fail = (message: string) => new KeelsonError(code, `user namespace: ${message}`);
  for (const [what, mappings] of [
    ['uids', users.uids],
    ['gids', users.gids],
  ] as const) {
    const [mapping] = mappings;
    if (mapping === undefined || mappings.length > 1) {
      throw fail(`${what}: exactly one mapping is supported, not ${mappings.length}`);
    }
    const { containerId, hostId, length } = mapping;
    const sound = [containerId, hostId, length].every((id) => Number.isSafeInteger(id) && id >= 0);
    if (!sound || length === 0 || Math.max(hostId, containerId) + length > 2 ** 32) {
      throw fail(`${what}: ${JSON.stringify(mapping)} is no range of ids`);
    }
    if (containerId !== 0) throw fail(`${what}: the mapping must begin at id 0 of the container`);
  }
  if (namespaces.network === 'node') {
    throw fail("a pod with a user namespace cannot share the node's network");
  }
  if (namespaces.pid === 'node' || namespaces.ipc === 'node') {
    throw fail("a pod with a user namespace cannot share the node's PID or IPC namespace");
  }
}

/** Both none, or the same mappings. Pure. */
export function sameUsers(a: UserNamespace | undefined, b: UserNamespace | undefined): boolean {
  const text = (users: UserNamespace | undefined) =>
    users && [users.uids, users.gids].map((list) => list.map((m) => [m.containerId, m.hostId, m.length]));
  return JSON.stringify(text(a)) === JSON.stringify(text(b));
}

/** The id on the host of `id` inside; the host's overflow id where it has none. Pure. */
export function outsideId(mappings: readonly IdMapping[], id: number): number {
  const found = mappings.find(({ containerId, length }) => id >= containerId && id < containerId + length);
  return found === undefined ? 65534 : found.hostId + (id - found.containerId);
}

export interface OwnedNamespaces {
  /** Of the process that has them, while it lives. */
  readonly pid: number;
  /** Ends the process: namespaces that are pinned stay. */
  end(): Promise<void>;
}

/**
 * A process in a new user namespace with the mappings, with network, IPC and UTS namespaces that belong to it. A process
 * with threads cannot go into a new user namespace itself (unshare(2)), so unshare(1) makes it.
 * Throws SANDBOX_CREATE_FAILED, ABORTED.
 */
export async function makeUserNamespaces(
  users: Pick<UserNamespace, 'uids' | 'gids'>,
  options: { readonly ipc: boolean; readonly signal?: AbortSignal },
): Promise<OwnedNamespaces> {
  const { ipc, signal } = options;
  if (signal?.aborted) throw abortError(signal, 'making the user namespace');
  const child = spawn('unshare', ['--user', '--net', '--uts', ...(ipc ? ['--ipc'] : []), '--', 'cat'], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin' },
  });
  const ended = new Promise<void>((resolve) => {
    child.once('exit', () => resolve());
    child.once('error', () => resolve());
  });
  const end = async () => {
    child.kill('SIGKILL');
    await ended;
  };
  let broken = (_: Error) => {};
  const onAbort = () => broken(abortError(signal!, 'making the user namespace'));
  try {
    // cat answers once unshare has become it, and so once the namespaces are there.
    await new Promise<void>((resolve, reject) => {
      broken = reject;
      let said = '';
      child.stderr.on('data', (text: Buffer) => {
        said += text.toString('utf8').slice(0, 1000);
      });
      child.once('error', reject);
      child.once('close', () => reject(new Error(said.trim() || 'unshare ended')));
      child.stdout.once('data', () => resolve());
      signal?.addEventListener('abort', onAbort, { once: true });
      child.stdin.on('error', () => {});
      child.stdin.write('\n');
    });
    const table = (mappings: readonly IdMapping[]) =>
      mappings.map(({ containerId, hostId, length }) => `${containerId} ${hostId} ${length}\n`).join('');
    await writeFile(`/proc/${child.pid}/uid_map`, table(users.uids));
    await writeFile(`/proc/${child.pid}/gid_map`, table(users.gids));
    return { pid: child.pid!, end };
  } catch (error) {
    await end();
    if (error instanceof KeelsonError) throw error;
    throw new KeelsonError(
      'SANDBOX_CREATE_FAILED',
      `cannot make a user namespace: ${error instanceof Error ? error.message : String(error)}`,
      {
        cause: error,
        hint: 'see user.max_user_namespaces (sysctl) and whether the kernel has CONFIG_USER_NS',
      },
    );
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}
