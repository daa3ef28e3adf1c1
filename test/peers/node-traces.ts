/** What a test node and its pods leave on the machine: listing it, and removing it whatever state the node is in. */
import { rmdir } from 'node:fs/promises';
import { basename, join, relative } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';
import { listFolder, removeTree } from '../../runtime/host/files.ts';
import { umountFlags, unmount } from '../../runtime/host/syscalls.ts';
import {
  cgroupFolders,
  commandOf,
  deleteLink,
  links,
  mountsBelow,
  natRulesOf,
  processesNaming,
  processesOf,
  removeNatRules,
} from './machine.ts';
import type { TestNodePaths } from './node.ts';

/** The names by which everything of one node is found. */
export interface NodeNames {
  readonly folder: string;
  readonly cgroupRoot: string;
  readonly bridge: string;
  /** Name of its CNI network. */
  readonly network: string;
}

/** Cgroups that a node has with no pods too, once it has had one. */
const standing = /[/-](kubepods|burstable|besteffort)(\.slice)?$/;

/** See `TestNode.traces`. */
export async function tracesOfNode(own: NodeNames, paths: TestNodePaths): Promise<string[]> {
  const [mounts, cgroups, naming, allLinks, rules] = await Promise.all([
    mountsBelow(own.folder),
    cgroupFolders(own.cgroupRoot),
    processesNaming(own.folder),
    links(),
    natRulesOf(own.network),
  ]);
  const inCgroups = await Promise.all(
    (await Promise.all(cgroups.map(processesOf)))
      .flat()
      .map(async (pid) => ({ pid, command: await commandOf(pid) })),
  );
  const processes = new Map([...naming, ...inCgroups].map((found) => [found.pid, found.command]));
  const names = async (kind: string, folder: string) =>
    (await listFolder(folder)).map((name) => `${kind} ${name}`);
  return [
    ...mounts.map((mount) => `mount ${relative(own.folder, mount)}`),
    ...cgroups
      .filter((folder) => !folder.endsWith(own.cgroupRoot) && !standing.test(folder))
      .map((folder) => `cgroup ${folder}`),
    ...[...processes]
      .filter(([, command]) => !command.includes('agent/cli.ts'))
      .map(([pid, command]) => `process ${pid} ${command.slice(0, 200)}`),
    ...allLinks.filter((link) => link.master === own.bridge).map((link) => `link ${link.name}`),
    ...rules.map((rule) => `firewall ${rule}`),
    ...(await names('address', join(paths.ipamDir, own.network))).filter((name) =>
      / \d+\.\d+\.\d+\.\d+$/.test(name),
    ),
    ...(await names('cni result', join(paths.cniCacheDir, 'results'))),
    ...(await names('pod folder', join(paths.kubeletDir, 'pods'))),
    ...(await names('pod logs', paths.podLogsDir)),
    ...(await names('container log', paths.containerLogsDir)),
    ...(await names('container folder', join(paths.stateDir, 'containers'))),
    ...(await names('sandbox folder', join(paths.stateDir, 'sandboxes'))),
  ].sort();
}

/** Removes all of a node whose agent does not run any more, and its folder. Throws as `endNode` does. */
export async function removeNodeTraces(own: NodeNames): Promise<void> {
  await endNode(own);
  await removeTree(own.folder);
}

/**
 * Ends what a machine without power has no more: processes (those in the node's cgroup and those that name its folder),
 * mounts, cgroups, links, firewall rules. Throws FAILED_PRECONDITION with what would not go.
 */
export async function endNode(own: NodeNames): Promise<void> {
  const until = performance.now() + 20_000;
  const left: string[] = [];
  for (;;) {
    left.length = 0;
    for (const pid of await processesOfNode(own)) {
      left.push(`process ${pid} ${await commandOf(pid)}`);
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // Gone by itself.
      }
    }
    for (const target of await mountsBelow(own.folder)) {
      if (!unmountLazily(target)) left.push(`mount ${target}`);
    }
    for (const folder of await cgroupFolders(own.cgroupRoot)) {
      await rmdir(folder).catch(() => left.push(`cgroup ${folder}`));
    }
    if (left.length === 0) break;
    if (performance.now() > until) {
      throw new KeelsonError(
        'FAILED_PRECONDITION',
        `cannot remove what a test node left:\n${left.join('\n')}`,
      );
    }
    await delay(100);
  }
  if (own.cgroupRoot.endsWith('.slice')) {
    await exec('systemctl', ['stop', basename(own.cgroupRoot)], { deadlineMs: 60_000, okCodes: 'any' });
  }
  for (const link of await links()) if (link.master === own.bridge) await deleteLink(link.name);
  await deleteLink(own.bridge);
  await removeNatRules(own.network);
}

async function processesOfNode(own: NodeNames): Promise<number[]> {
  const inCgroups = await Promise.all((await cgroupFolders(own.cgroupRoot)).map(processesOf));
  return [...new Set([...inCgroups.flat(), ...(await processesNaming(own.folder)).map(({ pid }) => pid)])];
}

/** A busy mount goes when its last user has gone; the users are killed in the same round. */
function unmountLazily(target: string): boolean {
  try {
    unmount(target, umountFlags.DETACH | umountFlags.NOFOLLOW);
    return true;
  } catch {
    return false;
  }
}
